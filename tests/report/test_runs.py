"""Tables that a reader can trust: aligned, complete, never of runs that cannot be compared."""

import copy
import csv
import io
import json

import numpy as np
import pytest
from PIL import Image
from support import worlds

from configs import itemknn, mostpop
from mmjax.core import files
from mmjax.core.errors import InputError
from mmjax.report import runs as report
from mmjax.training import train


@pytest.fixture(scope="module")
def workdirs(tmp_path_factory):
    """Two real runs on one world."""
    folder = tmp_path_factory.mktemp("report")
    worlds.small(folder / "small", features=False)
    for module in (mostpop, itemknn):
        config = module.get_config("")
        config.update({"dataset": str(folder / "small"), "cutoffs": (10, 20), "mesh": "data=1"})
        train.run(config, folder / config.recommender)
    return [folder / "mostpop", folder / "itemknn"]


@pytest.fixture
def runs(workdirs):
    return report.load(workdirs)


def test_a_card_says_all_that_matters(runs):
    head, names, valid, test, tail = report.card(runs[0]).splitlines()
    assert head == "mostpop on small, protocol strict, seed 0, best epoch 0 of 0"
    assert names.split()[:2] == ["recall@20", "ndcg@20"]
    assert valid.split()[:2] == ["valid", f"{runs[0]['valid']['recall@20']:.4f}"]
    assert test.split()[:2] == ["test", f"{runs[0]['test']['recall@20']:.4f}"]
    assert len(names) == len(valid) == len(test)
    assert tail.startswith(f"{runs[0]['timing']['eval_s']:.3f} s/evaluation")
    assert "MB" in tail


def test_a_listing_has_a_row_a_metric(runs):
    lines = report.listing(runs[0]["test"]).splitlines()
    assert lines[0].split() == ["@10", "@20"]
    table = {line.split()[0]: line.split()[1:] for line in lines[1:]}
    assert table["ndcg"] == [f"{runs[0]['test'][f'ndcg@{k}']:.4f}" for k in (10, 20)]
    assert len(set(map(len, lines))) == 1


def test_markdown_aligns_numbers_to_the_right(runs):
    lines = report.markdown(runs).splitlines()
    table, note = lines[:4], lines[5]
    assert len(set(map(len, table))) == 1
    head, rule, *body = ([cell.strip() for cell in line.strip("|").split("|")] for line in table)
    assert head[0] == "recommender"
    assert rule[0].startswith(":-")
    assert all(cell.endswith("-:") for cell in rule[1:])
    at = head.index("recall@20")
    assert [row[0] for row in body] == ["mostpop", "itemknn"]
    assert [row[at] for row in body] == [f"{run['test']['recall@20']:.4f}" for run in runs]
    assert [row[head.index("valid recall@20")] for row in body] == [
        f"{run['valid']['recall@20']:.4f}" for run in runs
    ]
    for line in table[2:]:  # every number ends where its column does
        for cell in line.split("|")[2:-1]:
            assert cell.endswith(" ")
            assert not cell.endswith("  ") or not cell.strip()
    assert note.startswith("Test split of small, protocol strict, epoch chosen on valid recall@20.")
    assert f"jax {runs[0]['versions']['jax']}" in note


def test_a_column_has_one_number_of_decimals(runs):
    runs[0]["test"]["arp@20"], runs[1]["test"]["arp@20"] = 53.34, 9.2847
    head, body = report.rows(runs, ["arp@20"])
    assert [row[head.index("arp@20")] for row in body] == ["53.3", "9.3"]


def test_csv_has_every_metric_of_both_splits(runs):
    rows = list(csv.DictReader(io.StringIO(report.as_csv(runs))))
    assert [row["recommender"] for row in rows] == ["mostpop", "itemknn"]
    for run, row in zip(runs, rows, strict=True):
        for split in ("valid", "test"):
            for name, value in run[split].items():
                assert float(row[f"{split}/{name}"]) == value


def test_files_are_written_whole(runs, tmp_path):
    paths = report.write(runs, tmp_path / "deep" / "out")
    assert sorted(path.name for path in paths[0].parent.iterdir()) == [
        "table.csv",
        "table.md",
        "table.png",
    ]
    assert paths[0].read_text() == report.markdown(runs)
    assert paths[1].read_text() == report.as_csv(runs)
    with Image.open(paths[2]) as image:
        assert image.format == "PNG"
        pixels = np.asarray(image.convert("RGB"))
    ink = (pixels != 255).any(axis=2)
    edges = [ink[0], ink[-1], ink[:, 0], ink[:, -1]]
    assert ink.mean() > 0.05  # something is drawn
    assert not np.concatenate(edges).any()  # and nothing cut off
    report.write(runs, tmp_path / "deep" / "out")  # again over them


def test_the_best_bar_stands_out(runs, tmp_path):
    report.picture(runs, tmp_path / "x.png")
    with Image.open(tmp_path / "x.png") as image:
        pixels = np.asarray(image.convert("RGB"))
    best, rest = (
        (pixels == [int(color[i : i + 2], 16) for i in (1, 3, 5)]).all(axis=2).sum()
        for color in (report.BEST, report.REST)
    )
    recalls = [run["test"]["recall@20"] for run in runs]
    gains = [run["test"]["ndcg@20"] for run in runs]
    expected = sum(min(v) / max(v) for v in (recalls, gains)) / 2  # bars' lengths are their areas
    assert rest / best == pytest.approx(expected, rel=0.05)


def test_columns(runs):
    head, _ = report.rows(runs, ["hr@10", "gini@20"])
    assert head[3:5] == ["hr@10", "gini@20"]
    with pytest.raises(InputError, match=r"not every run has 'recal@10'; did you mean 'recall@10'"):
        report.markdown(runs, ["recal@10"])
    for run in runs:  # nothing at 20: the longest that all have
        run["test"] = {name: v for name, v in run["test"].items() if name.endswith("@10")}
    assert "recall@10" in report.rows(runs)[0]
    del runs[1]["test"]
    runs[1]["test"] = {"recall@5": 0.1}
    with pytest.raises(InputError, match="share no cutoff"):
        report.rows(runs)


def change(tmp_path, run, **parts):
    run = copy.deepcopy(run)
    for key, value in parts.items():
        run[key] |= value
    files.write_json(tmp_path / "changed" / "results.json", run)
    return tmp_path / "changed"


def test_runs_that_cannot_be_compared_are_refused(workdirs, runs, tmp_path):
    other = change(tmp_path, runs[0], data={"interaction_hash": "x"})
    with pytest.raises(InputError, match="differ in their data"):
        report.load([workdirs[0], other])
    for part in ({"protocol": "mmrec"}, {"threshold": 4.0}):
        with pytest.raises(InputError, match="differ in their protocol"):
            report.load([workdirs[0], change(tmp_path, runs[0], config=part)])


def test_what_is_no_finished_run_is_named(workdirs, runs, tmp_path):
    with pytest.raises(InputError, match=r"nothing has no results\.json; train it to the end"):
        report.load([workdirs[0], tmp_path / "nothing"])
    (tmp_path / "results.json").write_text(json.dumps({"dataset": "x"}))
    with pytest.raises(InputError, match=r"results\.json has no 'recommender'"):
        report.load([tmp_path])
    (tmp_path / "results.json").write_text("[1]")
    with pytest.raises(InputError, match=r"results\.json has no 'dataset'"):
        report.load([tmp_path])


def test_runs_that_differ_in_their_seed_become_one_row(runs, tmp_path):
    again = copy.deepcopy(runs[0])
    again["seed"] = again["config"]["seed"] = 7
    again["test"]["recall@20"] += 0.02
    head, body = report.rows([*runs, again], ["recall@20"])
    assert len(body) == len(runs)
    assert body[0][head.index("seed")] == "2 seeds"
    value = runs[0]["test"]["recall@20"]
    assert body[0][head.index("recall@20")] == f"{value + 0.01:.4f} ± {0.02 / 2**0.5:.4f}"
    assert "mean ± sd over seeds" in report.markdown([*runs, again])
    report.picture([*runs, again], tmp_path / "seeds.png")
    assert (tmp_path / "seeds.png").stat().st_size > 1000
