"""A sweep's report: the numbers of direct calls, the same in every file, names as mere text."""

import csv
import html.parser
import json
import re
import statistics
import xml.etree.ElementTree as ElementTree
import zlib

import numpy as np
import pytest
from support import scripting

from mmjax.core.errors import InputError
from mmjax.evaluation import significance
from mmjax.report.sweep import page, plots, prose, stats, tables
from mmjax.report.sweep.study import curve, read

USERS, SEEDS = 60, (0, 1, 2)
ODD = "a<b&c_d"  # a model whose name every format must escape
LEVELS = ("gaussian", "real", "shuffle")
METRICS = ("recall@20", "ndcg@20", "hr@20")
# How much better than the others a cell is, for each user.
GAIN = {f"{ODD} features=real": 0.2, f"{ODD} features=shuffle": 0.18}


def config(features):
    return {
        "dataset": "",
        "features": features,
        "recommender": "vbpr",
        "model": {"dim": 8, "l_w": 0.1},
        "lr": 0.1,
        "seed": 0,
        "protocol": "strict",
        "threshold": 0.0,
        "metric": "recall@20",
    }


def per_user(cell, seed):
    """Values [USERS] of each metric, known from the names alone."""
    rng = np.random.default_rng([zlib.crc32(cell.encode()), seed])
    noise = {metric: rng.uniform(0.2, 0.6, USERS) for metric in METRICS}
    return {m: (v + GAIN.get(cell, 0.0)).astype(np.float32) for m, v in noise.items()}


def sweep_of(models, compare=None, **fields):
    compare = compare or {"features": {name: {"features": f"*~{name}"} for name in LEVELS}}
    tune = {"lr": [0.01, 0.1, 1.0], "model": {"l_w": [0.1, 0.2]}}
    entries = {name: {"config": config("auto"), "tune": tune} for name in models}
    entries["pop"] = {"config": config(""), "tune": {"lr": [0.1]}, "compare": {}}
    base = {"search": "grid", "search_seed": 0, "trials": 30, "batch": 10, "stores": ""}
    base |= {"models": entries, "compare": compare, "seeds": list(SEEDS), "dataset": "/data"}
    return base | {"features": ""} | fields


def cells_of(sweep):
    found = {}
    for model, entry in sweep["models"].items():
        named = [{}]
        for factor, levels in entry.get("compare", sweep["compare"]).items():
            named = [one | {factor: level} for one in named for level in levels]
        for levels in named:
            name = " ".join([model, *(f"{k}={v}" for k, v in levels.items())])
            found[name] = {"model": model, "levels": levels}
    return found


def write(folder, sweep, *, skip=(), missing=(), hash_of=lambda levels: "h0"):
    """A sweep's workdir; cells in `skip` are not trained, those in `missing` lacked a store."""
    cells = {name: about for name, about in cells_of(sweep).items() if name not in missing}
    folder.mkdir(parents=True, exist_ok=True)
    about = {"sweep": sweep, "cells": cells, "data": {"/data": "h0"}}
    (folder / "sweep.json").write_text(json.dumps(about))
    ledger = []
    for name, cell in cells.items():
        if name in skip:
            continue
        chosen = {"lr": 0.1} if cell["model"] == "pop" else {"lr": 0.1, "model.l_w": 0.2}
        for seed in sweep["seeds"]:
            trial = f"{zlib.crc32(name.encode()):08x}{seed}"
            line = {"trial": trial, "cell": name, "point": chosen, "seed": seed}
            timing = {"compile_s": 1.0, "epoch_s": 0.5, "eval_s": 0.1, "total_s": 12.0}
            values = per_user(name, seed)
            valid = float(values["recall@20"].mean()) + 0.01
            done = {"valid": valid, "best_epoch": seed + 2, "epochs": 5, "diverged": 0}
            done |= {"pack": f"pack{zlib.crc32(name.encode())}", "place": seed, "of": 3}
            ledger.append({"event": "done"} | line | done | {"timing": timing})
            ledger.append({"event": "tested"} | line)
            if seed == sweep["seeds"][0]:
                ledger.append({"event": "chosen"} | line | {"valid": valid})
            features = "" if cell["model"] == "pop" else "visual=/stores/x"
            run = folder / "runs" / trial
            run.mkdir(parents=True, exist_ok=True)
            means = {metric: round(float(v.mean()), 6) for metric, v in values.items()}
            means |= {"arp@20": 20.0 + seed, "coverage@20": 0.5}
            results = {
                "dataset": f"world {hash_of(cell['levels'])}",
                "recommender": "vbpr",
                "config": config(features) | {"seed": seed},
                "seed": seed,
                "epochs": 5,
                "best_epoch": seed + 2,
                "valid": {"recall@20": round(valid, 6)},
                "test": means,
                "timing": timing,
                "memory": {"peak_rss_mb": 1000.0},
                "versions": {"jax": "1.2.3"},
                "device": "cpu",
                "data": {"item_hash": "i0", "interaction_hash": hash_of(cell["levels"])},
            }
            (run / "results.json").write_text(json.dumps(results))
            arrays = {f"test/{metric}": v for metric, v in values.items()}
            np.savez(run / "per_user.npz", **arrays, **{"test/users": np.arange(USERS)})
        if cell["model"] != "pop":  # a point that was not chosen
            line = {"trial": trial + "x", "cell": name, "point": {"lr": 1.0, "model.l_w": 0.1}}
            done = done | {"valid": 0.1, "timing": timing}
            ledger.append({"event": "done"} | line | done | {"seed": sweep["seeds"][0]})
        pack = folder / "packs" / f"pack{zlib.crc32(name.encode())}"
        pack.mkdir(parents=True, exist_ok=True)
        epochs = [{"epoch": e, "values": [e + 0.1, e + 0.2, e + 0.3]} for e in range(1, 5)]
        lines = [json.dumps({"epoch": 0, "loss": 1.0}), *map(json.dumps, epochs), '{"epo']
        (pack / "metrics.jsonl").write_text("\n".join(lines))
    (folder / "ledger.jsonl").write_text("".join(json.dumps(line) + "\n" for line in ledger))
    return folder


def append(folder, *lines):
    with open(folder / "ledger.jsonl", "a") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write(tmp_path_factory.mktemp("ablation") / "sweep", sweep_of([ODD, "vbpr"]))


@pytest.fixture(scope="module")
def written(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    paths = page.write(folder, out)
    assert [path.name for path in paths] == [f"report.{k}" for k in ("html", "md", "csv", "tex")]
    return {path.suffix: path.read_text() for path in paths}


def over_seeds(cell, metric):
    return np.mean([per_user(cell, seed)[metric].astype(np.float64) for seed in SEEDS], axis=0)


def test_means_and_intervals_are_those_of_direct_calls(folder):
    found = stats.summaries(read(folder))
    assert len(found) == 7 * 3
    for (cell, metric), one in found.items():
        means = [per_user(cell, seed)[metric].astype(np.float64).mean() for seed in SEEDS]
        direct = significance.interval(over_seeds(cell, metric))
        assert one.mean == pytest.approx(statistics.mean(means), abs=1e-12)
        assert one.sd == pytest.approx(statistics.stdev(means), abs=1e-12)
        assert (one.low, one.high) == (direct.low, direct.high)


def test_holm_is_over_all_comparisons_of_the_table(folder):
    compared = stats.compare(read(folder))
    # Two models with two controls against their reference and three levels against the baseline.
    assert len(compared) == 2 * (2 + 3) * 3
    pairs = {(test.cell, test.against) for test in compared}
    assert (f"{ODD} features=gaussian", f"{ODD} features=real") in pairs
    assert ("vbpr features=real", "pop") in pairs
    p = []
    for test in compared:
        first, second = over_seeds(test.cell, test.metric), over_seeds(test.against, test.metric)
        p.append(significance.paired(first, second).t)
        assert test.d_z == pytest.approx(significance.effect(first, second).d_z)
        assert test.difference == pytest.approx((first - second).mean())
    np.testing.assert_allclose([test.p for test in compared], p)
    direct = significance.holm(np.array(p))
    np.testing.assert_allclose([test.adjusted for test in compared], direct)


def test_marks_say_which_side_and_of_what(folder):
    study = read(folder)
    found, compared = stats.summaries(study), stats.compare(study)
    rows = {row.cell.name: row for row in tables.rows(study, found, compared)}
    marks = {name: [entry.marks for entry in row.entries] for name, row in rows.items()}
    assert marks[f"{ODD} features=real"] == ["⇑"] * 3  # the reference has no mark against itself
    assert marks[f"{ODD} features=gaussian"] == ["↓"] * 3
    assert marks[f"{ODD} features=shuffle"] == ["⇑"] * 3  # as good as real, better than none
    assert marks["pop"] == [""] * 3
    best = [name for name, row in rows.items() if row.entries[0].best]
    assert len(best) == 1
    assert found[best[0], "recall@20"].mean == max(
        one.mean for (_, metric), one in found.items() if metric == "recall@20"
    )


def test_a_reading_says_who_won_and_when_nobody_did(folder):
    study = read(folder)
    found, compared = stats.summaries(study), stats.compare(study)
    readings = dict(prose.readings(study, found, compared, "recall@20"))
    assert list(readings) == [ODD, "vbpr"]
    real, control = (found[f"{ODD} features={k}", "recall@20"].mean for k in ("real", "gaussian"))
    change = 100 * (real - control) / control
    better, same = readings[ODD].split("; ")
    assert better.startswith(
        f"real {real:.4f} against gaussian {control:.4f} ({change:+.1f} %, p <"
    )
    assert ", pop without features " in better
    assert better.endswith(": real is better")
    assert same.startswith("against shuffle ")
    assert same.endswith(": no difference can be told.")
    assert readings["vbpr"].count(": ") == 1
    assert readings["vbpr"].endswith(": no difference can be told.")


def test_the_reference_is_real_else_the_first_else_what_is_asked_for(folder, tmp_path):
    study = read(folder)
    order = [cell.level for cell in study.cells if cell.model == "vbpr"]
    assert order == ["real", "gaussian", "shuffle"]
    for wanted in ("shuffle", "features=shuffle"):
        asked = read(folder, wanted)
        assert {cell.reference for cell in asked.cells} == {
            "", f"{ODD} features=shuffle", "vbpr features=shuffle"
        }  # fmt: skip
        against = {t.against for t in stats.compare(asked) if t.kind == "reference"}
        assert against == {f"{ODD} features=shuffle", "vbpr features=shuffle"}
    compare = {"prompt": {"short": {}, "long": {"lr": 0.2}}}
    sweep = sweep_of([], compare)
    sweep["models"]["vbpr"] = {"config": config("auto"), "tune": {"model": {"dim": [8]}}}
    first = read(write(tmp_path / "first", sweep))
    assert first.cell("vbpr prompt=long").reference == "vbpr prompt=short"


@pytest.mark.slow
def test_other_factors_and_datasets_stay_apart(tmp_path):
    compare = {
        "features": {"real": {"features": "*"}, "noise": {"features": "*~gaussian"}},
        "data": {"a": {"dataset": "/a"}, "b": {"dataset": "/b"}},
    }
    sweep = sweep_of(["vbpr", "bm3"], compare)
    del sweep["models"]["pop"]
    folder = write(tmp_path / "two", sweep, hash_of=lambda levels: levels["data"])
    study = read(folder)
    pairs = {(test.cell, test.against) for test in stats.compare(study)}
    assert pairs == {
        (f"{model} features=noise data={data}", f"{model} features=real data={data}")
        for model in ("vbpr", "bm3")
        for data in "ab"
    }
    assert stats.compare(read(folder, "data=a")) == []  # other users
    ranks = stats.ranks(study)
    assert (ranks.models, ranks.blocks) == (["vbpr", "bm3"], 2)
    text = page.write(folder, tmp_path)[0].read_text()
    assert "Models over datasets" in text


def test_critical_differences_need_two_datasets(folder, written):
    assert stats.ranks(read(folder)) is None
    assert "Models over datasets" not in written[".html"]


def test_the_baseline_is_chosen_on_validation(tmp_path):
    sweep = sweep_of(["vbpr"])
    sweep["models"]["pop2"] = sweep["models"]["pop"]
    folder = write(tmp_path / "sweep", sweep)
    lines = [json.loads(line) for line in (folder / "ledger.jsonl").read_text().splitlines()]
    for path in (folder / "runs").glob("*/results.json"):
        about = json.loads(path.read_text())
        cell = next(line["cell"] for line in lines if line["trial"] == path.parent.name)
        if cell == "pop2":
            about["config"]["features"] = ""
            path.write_text(json.dumps(about))
    for best, other in (("pop", "pop2"), ("pop2", "pop")):  # one of them is worse on test
        for line in lines:
            if line["event"] == "done":
                line["valid"] = {best: 0.2, other: 0.1}.get(line["cell"], 0.9)
        (folder / "ledger.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        study = read(folder)
        assert [cell.name for cell in stats.baselines(study).values()] == [best]
        against = {t.against for t in stats.compare(study) if t.kind == "baseline"}
        assert against == {best}


def test_without_features_nowhere_there_is_no_baseline(tmp_path):
    study = read(write(tmp_path / "sweep", sweep_of([])))
    assert stats.baselines(study) == {}
    assert stats.compare(study) == []
    page.write(study.folder, tmp_path)
    assert "⇑" not in (tmp_path / "report.md").read_text()


@pytest.mark.slow
def test_an_unfinished_sweep_shows_what_it_has(tmp_path):
    sweep = sweep_of([ODD, "vbpr"])
    gone = f"{ODD} features=shuffle"
    waiting = "vbpr features=real"
    folder = write(tmp_path / "sweep", sweep, skip=(waiting,), missing=(gone,))
    bad = {"cell": waiting, "point": {"lr": 1.0, "model.l_w": 0.1}, "seed": 0}
    again = {"cell": "pop", "point": {"lr": 0.1}, "seed": 0, "error": "OutOfMemory: once"}
    retried = next(
        line["trial"]
        for line in map(json.loads, (folder / "ledger.jsonl").read_text().splitlines())
        if line["cell"] == "pop"
    )
    append(folder, {"event": "failed", "trial": "f1", "error": "diverged <in> epoch 3"} | bad)
    append(folder, {"event": "failed", "trial": retried} | again)
    # A chosen cell of which one seed was read so far.
    lines = (folder / "ledger.jsonl").read_text().splitlines(keepends=True)
    last = [
        n for n, line in enumerate(lines)
        if '"tested"' in line and "vbpr features=shuffle" in line
    ][1:]  # fmt: skip
    (folder / "ledger.jsonl").write_text("".join(x for n, x in enumerate(lines) if n not in last))
    study = read(folder)
    assert study.left_out == [gone]
    # Five grids of six points with two more seeds each, and one point with two more.
    assert study.planned == 5 * (6 + 2) + 3
    about = prose.about(study)
    assert about["trials"] == (
        "19 of 43 done, 1 failed, 13 tested (unfinished: 5 of 6 cells are tested)"
    )
    compared = stats.compare(study)
    assert not any(test.cell.startswith("vbpr") and test.kind == "reference" for test in compared)
    single = stats.summaries(study)["vbpr features=shuffle", "recall@20"]
    assert np.isnan(single.sd)
    for path in page.write(folder, tmp_path)[:2]:
        text = path.read_text()
        assert "diverged &lt;in&gt; epoch 3" in text
        assert "OutOfMemory" not in text
        assert "diverged <in>" not in text
        named = text.replace("\\", "").replace("&lt;", "<").replace("&amp;", "&")
        assert f"they lacked a store: {gone}" in named
        assert f"Not tested so far: {waiting}" in named
        assert "fewer seeds: vbpr features=shuffle (1 of 3)" in named


def test_cells_that_resolve_to_the_same_share_their_trials(tmp_path):
    folder = write(tmp_path / "sweep", sweep_of(["vbpr"]), skip=("vbpr features=shuffle",))
    chosen = next(
        line
        for line in map(json.loads, (folder / "ledger.jsonl").read_text().splitlines())
        if line["event"] == "chosen" and line["cell"] == "vbpr features=gaussian"
    )
    append(folder, chosen | {"cell": "vbpr features=shuffle"})
    study = read(folder)
    assert [run.line["seed"] for run in study.cell("vbpr features=shuffle").runs] == list(SEEDS)


def test_a_curve_is_the_trials_own(folder):
    study = read(folder)
    for seed, run in zip(SEEDS, study.cell("vbpr features=real").runs, strict=True):
        epochs, values = curve(study, run)
        assert epochs == [1, 2, 3, 4]
        assert values == [e + (seed + 1) / 10 for e in epochs]


def test_costs_share_a_programs_time(folder):
    head, rows = prose.costs(read(folder))
    row = dict(zip(head, rows[0], strict=True))
    assert (row["trials"], row["s / trial"], row["s in all"]) == ("4", "4.00", "16.0")
    assert (row["peak MB"], row["device"]) == ("1,000", "cpu")


class Reader(html.parser.HTMLParser):
    """Fails where an element is not closed in its order; keeps what the page would fetch."""

    VOID = ("meta",)

    def __init__(self):
        super().__init__()
        self.open, self.fetched, self.scripts, self.ids = [], [], 0, []

    def handle_starttag(self, tag, attrs):
        self.scripts += tag == "script" or any(name.startswith("on") for name, _ in attrs)
        self.fetched += [v for k, v in attrs if k in ("src", "href", "xlink:href", "action")]
        self.ids += [v for k, v in attrs if k == "id"]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_well_formed_and_needs_nothing(written):
    text = written[".html"]
    reader = Reader()
    reader.feed(text)
    assert reader.open == []
    assert reader.scripts == 0
    assert all(target.startswith("#") for target in reader.fetched)
    assert {target[1:] for target in reader.fetched} <= set(reader.ids)
    assert len(reader.ids) == len(set(reader.ids))
    assert "url(http" not in text
    assert "@import" not in text
    ElementTree.fromstring(text.removeprefix("<!doctype html>\n"))
    assert re.findall(r"https?://[^\"' <]+", text) == [
        url for _ in range(text.count("<svg")) for url in (plots.SVG, plots.XLINK)
    ]
    assert text.count("python scripts/report.py --sweep=") == 1 + text.count("<section>")


def test_one_drawing_serves_light_and_dark(written):
    text = written[".html"]
    drawings = re.findall(r"<svg.*?</svg>", text, flags=re.S)
    # Two metrics, two axes of two models (of the third one value was tried), three groups' curves,
    # two scatters.
    assert len(drawings) == 2 + 4 + 3 + 2
    for drawing in drawings:
        assert set(re.findall(r"(?:fill|stroke): (#\w+)", drawing)) <= set()
        assert "currentColor" in drawing
        assert "<text" in drawing
    assert "prefers-color-scheme: dark" in text
    for variable in set(re.findall(r"var\((--\w+)\)", text)):
        assert text.count(f"{variable}: #") == 2, variable


def test_numbers_agree_in_all_files(folder, written):
    study = read(folder)
    found = stats.summaries(study)
    table = list(csv.DictReader(written[".csv"].splitlines()))
    kinds = [row["kind"] for row in table]
    assert kinds.count("seed") == 7 * 3 * (1 + 5)
    assert kinds.count("summary") == len(found)
    assert kinds.count("comparison") == len(stats.compare(study))
    for row in (row for row in table if row["kind"] == "summary"):
        one = found[row["cell"], row["metric"]]
        text = f"{float(row['value']):.4f} ± {float(row['sd']):.4f}"
        interval = f"{float(row['low']):.4f} – {float(row['high']):.4f}"
        assert text == f"{one.mean:.4f} ± {one.sd:.4f}"
        for kind in (".html", ".md"):
            assert text in written[kind]
            assert interval in written[kind]
        assert text.replace("±", r"$\pm$") in written[".tex"]
        assert interval.replace("–", "--") in written[".tex"]
    of_pop = [row for row in table if row["kind"] == "seed" and row["cell"] == "pop"]
    seeds = [float(row["value"]) for row in of_pop if row["metric"] == "ndcg@20"]
    assert statistics.mean(seeds) == pytest.approx(found["pop", "ndcg@20"].mean, abs=1e-6)


def test_tables_have_as_many_cells_in_every_row(written):
    rows = [line for line in written[".tex"].splitlines() if re.match(r".* & .*\\\\$", line)]
    body = [line for line in rows if "multicolumn" not in line]
    assert len(body) == 1 + 7
    assert {len(re.split(r"(?<!\\)&", line)) for line in body} == {4 + 2 * 3}
    assert written[".tex"].count(r"\textbf{") == 3
    for block in re.findall(r"(?:^\|.*\n)+", written[".md"], flags=re.M):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1


def test_names_are_text_in_every_format(written):
    assert "a<b" not in written[".html"]
    assert "<b>a&lt;b&amp;c_d</b>" in written[".html"]
    assert "a&lt;b&amp;c\\_d" in written[".md"]
    assert "a<b" not in written[".md"]
    assert r"a\textless{}b\&c\_d" in written[".tex"]
    assert ODD not in written[".tex"]
    cells = {row["cell"] for row in csv.DictReader(written[".csv"].splitlines())}
    assert f"{ODD} features=real" in cells


@pytest.mark.slow
def test_drawings_take_dollars_as_they_are(tmp_path):
    folder = write(tmp_path / "sweep", sweep_of(["a$b$"]))
    text = page.write(folder, tmp_path)[0].read_text()
    assert re.search(r"<text[^>]*>a\$b\$</text>", text)


@pytest.mark.slow
def test_values_of_any_type_make_an_axis(tmp_path):
    sweep = sweep_of([])
    tune = {"lr": [1e-4, 1e-1], "optimizer": ["adam", "sgd", "lion"], "cutoffs": [[5], [5, 20]]}
    base = config("auto") | {"optimizer": "adam", "cutoffs": [5]}
    sweep["models"]["vbpr"] = {"config": base, "tune": tune, "compare": {}}
    folder = write(tmp_path / "sweep", sweep)
    values = [(1e-4, "adam", [5]), (1e-1, "sgd", [5]), (1e-1, "adam", [5, 20])]
    for n, (lr, optimizer, cutoffs) in enumerate(values):
        point = {"lr": lr, "optimizer": optimizer, "cutoffs": cutoffs}
        line = {"event": "done", "trial": f"t{n}", "cell": "vbpr", "point": point, "seed": 0}
        line |= {"valid": n / 10, "best_epoch": 1, "epochs": 1, "pack": "p", "place": 0, "of": 1}
        append(folder, line | {"timing": {"total_s": 1.0, "epoch_s": None}})
    study = read(folder)
    drawn = plots.sensitivity(study, "vbpr", "optimizer")
    assert drawn.index(">adam</text>") < drawn.index(">sgd</text>")  # as the sweep has them
    for key, shown in (("optimizer", "sgd"), ("cutoffs", "[5, 20]"), ("lr", "0.0001")):
        assert f">{shown}</text>" in plots.sensitivity(study, "vbpr", key)


def test_names_beside_a_panel_never_overlap():
    rng = np.random.default_rng(0)
    for wanted in (np.sort(rng.uniform(0, 1, 9)), np.full(9, 0.99), np.zeros(9), np.array([0.5])):
        placed = plots._apart(wanted.tolist(), 0.1)
        assert np.diff(placed).min(initial=1) >= 0.1 - 1e-9
        assert 0 <= placed[0] <= placed[-1] <= 1
    assert plots._apart([0.2, 0.8], 0.1) == [0.2, 0.8]


def test_what_cannot_be_reported_is_said_in_a_sentence(folder, tmp_path):
    with pytest.raises(InputError, match=r"has no sweep\.json"):
        read(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()
    with pytest.raises(InputError, match="compared at such a level; did you mean 'gaussian'"):
        read(folder, "gausian")
    with pytest.raises(InputError, match="such a level; there are gaussian, real, shuffle"):
        read(folder, "w2v")
    sweep = sweep_of(["vbpr"])
    empty = write(tmp_path / "empty", sweep, skip=cells_of(sweep))
    with pytest.raises(InputError, match=r"nothing of .* is tested yet"):
        read(empty)
    broken = write(tmp_path / "broken", sweep)
    next((broken / "runs").glob("*/per_user.npz")).write_bytes(b"no")
    with pytest.raises(InputError, match=r"per_user\.npz is missing or damaged"):
        read(broken)
    (broken / "sweep.json").write_text("[]")
    with pytest.raises(InputError, match=r"sweep\.json is not what"):
        read(broken)


@pytest.mark.slow
def test_the_script_says_how_it_was_called(folder, tmp_path):
    flags = (f"--sweep={folder}", f"--out={tmp_path}/o u", "--reference=shuffle")
    done = scripting.script("report.py", *flags)
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "o u" / "report.html").read_text()
    command = f"--sweep={folder} --out=&#x27;{tmp_path}/o u&#x27; --reference=shuffle"
    assert f"python scripts/report.py {command}" in text
    assert "shuffle (reference)" in text
    assert not (folder / "report.html").exists()
