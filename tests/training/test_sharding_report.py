"""What a mesh does to a run, told before it starts."""

import pytest
from support import worlds

from configs import lightgcn, mostpop
from mmjax.training import sharding_report

TEXT = """
%body (p: f32[8,4]) -> f32[8,4] {
  %a = f32[8,4]{1,0} all-gather(%p), dimensions={0}
  %b = (f32[2,2]{1,0}, pred[]) all-reduce(%x, %y), to_apply=%add
  %c = f32[8,4]{1,0} all-gather(%q), dimensions={0}
}
ENTRY %main (p: f32[8,4]) -> f32[8,4] {
  %d = s32[16]{0} all-to-all-start(%p), dimensions={0}
}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return worlds.small(tmp_path_factory.mktemp("data") / "small", users=203, items=101)


def report(module, folder, mesh):
    made = module.get_config().to_dict() | {"dataset": str(folder), "batch_size": 512}
    return sharding_report.explain(made | {"mesh": mesh})


@pytest.mark.slow
def test_arrays_and_collectives_of_a_mesh(folder):
    said = report(lightgcn, folder, "data=2,model=4")
    assert said.startswith("mesh: trial 1, data 2, model 4 (8 x cpu)")
    row = next(line for line in said.splitlines() if line.startswith("state.params.user"))
    assert row.split("  ")[-1].strip() == "6.66 kB"  # 26 of 208 rows of 64 float32
    assert "model and data" in row
    assert "every step" in said
    assert "all-gather" in said


@pytest.mark.slow
def test_one_device_sends_nothing(folder):
    assert "nothing travels between devices" in report(lightgcn, folder, "data=1")
    assert "scratch" not in report(mostpop, folder, "data=1")  # nothing is trained


def test_collectives_of_a_text():
    assert sharding_report.collectives(TEXT) == [
        (("every step", "all-gather", "f32[8,4]", "128 B"), 2),
        (("every step", "all-reduce", "f32[2,2], pred[]", "17 B"), 1),
        (("once an epoch", "all-to-all", "s32[16]", "64 B"), 1),
    ]


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (3.2e10, "32 GB")]
)
def test_sizes(count, text):
    assert sharding_report.size(count) == text
