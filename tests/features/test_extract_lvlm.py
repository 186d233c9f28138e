"""A vision-language model as an extraction job: stores, answers, kills, devices."""

import json
import re

import numpy as np
import pytest
from support.speakers import save_pictures, save_speaker

from mmjax import store
from mmjax.core.errors import InputError
from mmjax.encoders.vlm import batching
from mmjax.features.extraction.extract import extract
from mmjax.features.extraction.inputs import of_files
from mmjax.features.extraction.job import Job
from mmjax.parallel import mesh


@pytest.fixture(scope="module")
def speaker(tmp_path_factory):
    pytest.importorskip("torch")
    folder = tmp_path_factory.mktemp("speaker")
    (folder / "prompt.txt").write_text("{image}Say [Category] {Toys}.")
    save_pictures(folder / "pictures", 13, shapes=((84, 84), (56, 56)))
    (folder / "pictures/05.png").write_bytes(b"nothing")
    return save_speaker(folder)


def job(speaker, out, **changes):
    options = {"weights": str(speaker), "prompt": str(speaker / "prompt.txt"), "pooling": "eos"}
    options |= {"layers": ("-1", "1"), "max_new_tokens": 8, **changes}
    return Job("qwen2_vl", str(out), options, batch=3, chunk_rows=6)


def files(folder):
    return {
        path.relative_to(folder): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "manifest.json"
    }


@pytest.mark.slow
def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(speaker, tmp_path, monkeypatch):
    inputs = of_files(speaker / "pictures", "image")
    whole = extract(inputs, job(speaker, tmp_path / "whole"))
    assert (whole.present, len(whole.failed), whole.encoded) == (12, 1, 13)
    assert "not an image" in whole.failed[0]["reason"]

    results, calls = batching._results, []

    def dies(*args):
        calls.append(len(calls))
        if len(calls) == 5:  # in the second chunk or the third
            raise KeyboardInterrupt
        return results(*args)

    monkeypatch.setattr(batching, "_results", dies)
    with pytest.raises(KeyboardInterrupt):
        extract(inputs, job(speaker, tmp_path / "killed"))
    monkeypatch.undo()
    again = extract(inputs, job(speaker, tmp_path / "killed"))
    assert 0 < again.encoded < whole.encoded
    assert files(tmp_path / "killed") == files(tmp_path / "whole")


@pytest.mark.slow
def test_what_was_said_lies_beside_the_vectors(speaker, tmp_path):
    summary = extract(of_files(speaker / "pictures", "image"), job(speaker, tmp_path / "s"))
    lines = (tmp_path / "s/hidden_states.3-eos/descriptions.jsonl").read_text().splitlines()
    answers = [json.loads(line) for line in lines]
    assert [answer["id"] for answer in answers] == [f"{n:02d}" for n in range(13) if n != 5]
    assert sum(not answer["ended"] for answer in answers) == summary.unended
    assert all(answer["tokens"] <= 8 for answer in answers)
    manifest = store.open_store(str(tmp_path / "s/hidden_states.3-eos")).manifest
    assert (manifest["layer"], manifest["pooling"]) == ("hidden_states.3", "eos")
    assert re.fullmatch(r"[0-9a-f]{16}", manifest["settings"]["prompt_hash"])


@pytest.mark.slow
def test_two_devices_say_and_mean_what_one_does(speaker, tmp_path):
    inputs = of_files(speaker / "pictures", "image")
    extract(inputs, job(speaker, tmp_path / "one", layers=("-1",)))
    extract(inputs, job(speaker, tmp_path / "two", layers=("-1",)), mesh=mesh.make("model=2"))
    one, two = (store.open_store(str(tmp_path / name)) for name in ("one", "two"))
    assert np.abs(one.read()[0] - two.read()[0]).max() < 1e-4
    said = [(tmp_path / name / "descriptions.jsonl").read_text() for name in ("one", "two")]
    assert said[0] == said[1]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"prompt": "nowhere.txt"}, "cannot be read"),
        ({"pooling": "first"}, "is none of eos, last_prompt"),
        ({"layers": ("pooler_output",)}, "is no number"),
        ({"layers": ("9",)}, "are 0 .the embeddings. to 3"),
        ({"layers": ("3", "-1")}, "asked for twice"),
        ({"max_new_tokens": 0}, "must be at least 1"),
        ({"max_image_tokens": 0}, "hold no token"),
        ({"reshape": (3, 3)}, "do not reshape"),
    ],
)
def test_configurations_at_fault_stop_before_anything_is_written(
    speaker, tmp_path, change, sentence
):
    with pytest.raises(InputError, match=sentence):
        extract(of_files(speaker / "pictures", "image"), job(speaker, tmp_path / "s", **change))
    assert not (tmp_path / "s").exists()


def test_a_missing_shard_stops_before_weights_are_read(speaker, tmp_path):
    from shutil import copytree

    copy = copytree(speaker, tmp_path / "copy")
    (copy / "model.safetensors").rename(copy / "model-00001-of-00002.safetensors")
    index = {
        "weight_map": {
            "a": "model-00001-of-00002.safetensors",
            "b": "model-00002-of-00002.safetensors",
        }
    }
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match=r"model-00002-of-00002\.safetensors is missing"):
        extract(of_files(copy / "pictures", "image"), job(copy, tmp_path / "s"))
