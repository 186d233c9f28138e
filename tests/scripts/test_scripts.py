"""The scripts as a user calls them: from nothing to a table, and one sentence for each fault."""

import json
import os
import shutil

import numpy as np
import pytest
from support import forks, worlds

from mmjax import store
from mmjax.core import files
from mmjax.data import dataset

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def scripts():
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    with forks.Scripts(environment) as started:
        yield started


@pytest.fixture(scope="module")
def home(scripts, tmp_path_factory):
    """A prepared world with images, two stores and a finished run; the way there is a test too."""
    home = tmp_path_factory.mktemp("home")

    def must(script, *arguments):
        done = scripts(script, *arguments)
        assert done.code == 0, done.err
        assert "Traceback" not in done.err
        assert "arning" not in done.err
        return done.out

    world = home / "world"
    sizes = ("--users=80", "--items=60", "--interactions=1500", "--seed=1")
    said = must("prepare", "--source=world", *sizes, f"--out={world}")
    assert "items without image  1" in said
    for encoder, name in (("plain_image", "visual"), ("plain_text", "textual")):
        out = world / "features" / name
        said = must("extract", f"--dataset={world}", f"--encoder={encoder}", f"--out={out}")
        assert "59 present, 1 absent (1 listed in failures.jsonl)" in said
    for name in ("mostpop", "vbpr"):
        train = ["--config.epochs=3", "--config.cutoffs=(10,20)", f"--workdir={home / name}"]
        said = must("train", f"--config=configs/{name}.py", f"--config.dataset={world}", *train)
        assert f"{name} on world, protocol strict" in said
    return home


def test_from_nothing_to_a_table(scripts, home):
    results = files.read_json(home / "vbpr" / "results.json")
    assert results["epochs"] == 3
    assert results["config"]["cutoffs"] == [10, 20]
    done = scripts("evaluate", f"--workdir={home / 'vbpr'}", f"--json={home / 'again.json'}")
    assert done.code == 0, done.err
    assert files.read_json(home / "again.json") == results["test"]
    assert done.out.split()[:2] == ["@10", "@20"]
    other = ("--protocol=mmrec", "--cutoffs=5", "--split=valid")
    done = scripts("evaluate", f"--workdir={home / 'vbpr'}", *other)
    assert done.code == 0, done.err
    assert done.out.split()[0] == "@5"
    done = scripts("report", home / "mostpop", home / "vbpr", f"--out={home / 'table'}")
    assert done.code == 0, done.err
    assert [line.split()[1] for line in done.out.splitlines()[2:4]] == ["mostpop", "vbpr"]
    assert {path.name for path in (home / "table").iterdir()} == {
        "table.csv",
        "table.md",
        "table.png",
    }
    again = ("--config=configs/mostpop.py", f"--config.dataset={home / 'world'}")
    again += ("--config.epochs=3", "--config.cutoffs=(10,20)", f"--workdir={home / 'mostpop'}")
    done = scripts("train", *again)
    assert done.code == 0
    assert "is finished already" in done.out


@pytest.fixture(scope="module")
def faulty(home):
    """Beside the home, one of every fault."""
    world = home / "world"
    shutil.copytree(world, home / "damaged")
    first = next(path for path in dataset.load(home / "damaged").images if path)
    with open(first, "wb") as image:
        image.write(b"\x89PNG and no more")
    bare = shutil.copytree(world, home / "bare", ignore=shutil.ignore_patterns("features"))
    lines = (bare / "items.jsonl").read_text().splitlines()
    swapped = shutil.copytree(bare, home / "swapped")
    (swapped / "items.jsonl").write_text("\n".join([lines[1], lines[0], *lines[2:]]) + "\n")
    ids = dataset.load(world).item_ids
    store.write_array(home / "other", np.ones((60, 4), np.float32), item_ids=ids[::-1])
    worlds.small(home / "fewer", users=80, items=50, interactions=1000)
    unfinished = home / "unfinished"
    shutil.copytree(world / "features" / "visual", unfinished)
    manifest = files.read_json(unfinished / "manifest.json")
    files.write_json(unfinished / "manifest.json", manifest | {"complete": False})
    corrupt = shutil.copytree(world / "features" / "visual", home / "corrupt")
    (chunk,) = (path for path in (corrupt / "features" / "c").rglob("*") if path.is_file())
    chunk.write_bytes(chunk.read_bytes()[:-9])
    features = np.ones((60, 4), np.float32)
    np.save(home / "fewer.npy", features[:50])
    features[7, 1] = np.nan
    np.save(home / "nan.npy", features)
    pairs = "".join(f"{u},{i},5\n" for u in range(6) for i in range(8))
    (home / "log.csv").write_text("user,item,rating\n" + pairs)
    (home / "good.csv").write_text("user,item,rating\n" + pairs.replace("3,4,5", "3,4,good"))
    (home / "cold.csv").write_text("user,item,rating\n" + pairs + "lone,0,5\n")
    (home / "items.csv").write_text("item,title\n0,a\n1,b\n0,c\n")
    for name in ("train", "val"):
        (home / "elliot").mkdir(exist_ok=True)
        (home / "elliot" / f"{name}.tsv").write_text("1\t2\t5\n")
    shutil.copytree(home / "vbpr", home / "killed")
    (home / "killed" / "results.json").unlink()
    shutil.rmtree(home / "killed" / "checkpoints")
    (home / "file").write_text("mine")
    return home


TRAIN = "--config=configs/vbpr.py --config.dataset=HOME/world --workdir=HOME/new"
MORE = "--source=interactions --out=HOME/new --raw=HOME"
FAULTS = {
    # the command line
    "config key": ("train", f"{TRAIN} --config.epoch=3", "epoch", "epochs"),
    "model option": ("train", f"{TRAIN} --config.model.dmi=3", "dmi", "dim"),
    "config value": ("train", f"{TRAIN} --config.epochs=many", "config.epochs", "many"),
    "config file": ("train", f"{TRAIN} --config=configs/vpbr.py", "configs/vpbr.py"),
    "preset": ("train", f"{TRAIN.replace('.py', '.py:mmrecc')}", "mmrecc", "elliot, mmrec"),
    "no workdir": ("train", TRAIN.rsplit(" ", 1)[0], "--workdir is missing"),
    "no config": ("train", "--workdir=HOME/new", "--config is missing"),
    "no dataset": ("train", "--config=configs/vbpr.py --workdir=HOME/new", "--config.dataset"),
    "unknown flag": ("train", f"{TRAIN} --wrkdir=x", "wrkdir", "workdir"),
    "a stray word": ("train", f"{TRAIN} epochs=3", "'epochs=3'"),
    "a stray word to extract": ("extract", "--dataset HOME/world plain_image", "'plain_image'"),
    "no encoder": ("extract", "--dataset=HOME/world --out=HOME/new", "give one of --encoder"),
    "no place": ("extract", "--dataset=HOME/world --encoder=plain_image", "--out is missing"),
    "no inputs": ("extract", "--encoder=plain_image --out=HOME/new", "give --dataset, or"),
    "three numbers": (
        "extract",
        "--dataset=HOME/world --encoder=plain_image --out=HOME/new --mean=1,2",
        "--mean takes 3 numbers",
    ),
    "modality": (
        "extract",
        "--dataset=HOME/world --encoder=clip --weights=x --out=HOME/new --modality=pictures",
        "modality 'pictures' is none of visual, textual",
    ),
    "no flag at all": ("evaluate", "", "--workdir is missing"),
    "action": ("store", "--store=HOME/new --action=shw", "shw", "show"),
    # the config
    "recommender": ("train", f"{TRAIN} --config.recommender=vbrp", "'vbrp'", "'vbpr'"),
    "model choice": ("train", f"{TRAIN} --config.model.ranking_loss=hinge", "hinge", "softplus"),
    "protocol": ("train", f"{TRAIN} --config.protocol=strickt", "strickt", "strict, mmrec"),
    "metric": ("train", f"{TRAIN} --config.metric=recall@30", "recall@30"),
    "optimizer": ("train", f"{TRAIN} --config.optimizer=adamm()", "adamm"),
    "mesh": ("train", f"{TRAIN} --config.mesh=data=99", "data=99", "does not fit"),
    # a workdir that is taken
    "another config": (
        "train",
        f"{TRAIN.replace('new', 'vbpr')} --config.epochs=9 --config.cutoffs=(10,20)",
        "HOME/vbpr belongs to another config: epochs is 3 there and 9 here",
    ),
    "a file as workdir": ("train", TRAIN.replace("new", "file"), "HOME/file"),
    # datasets and features
    "no such dataset": ("train", TRAIN.replace("world", "wrld"), "HOME/wrld", "prepare.py"),
    "items in another order": ("train", TRAIN.replace("world", "swapped"), "HOME/swapped"),
    "no features": ("train", TRAIN.replace("world", "bare"), "HOME/bare/features", "extract.py"),
    "features of another dataset": (
        "train",
        f"{TRAIN} --config.features=visual=HOME/other",
        "HOME/other holds 60 items of another dataset",
    ),
    "item count mismatch": (
        "train",
        f"{TRAIN} --config.features=visual=HOME/fewer/features/visual",
        "HOME/fewer/features/visual holds 50 items but the dataset has 60",
    ),
    "unfinished store": (
        "train",
        f"{TRAIN} --config.features=visual=HOME/unfinished",
        "the store HOME/unfinished is unfinished; run the command",
    ),
    "corrupt store": (
        "train",
        f"{TRAIN} --config.features=visual=HOME/corrupt",
        "HOME/corrupt: chunk features/c/0/0 (rows 0 to 59) is corrupt",
    ),
    "no store": ("train", f"{TRAIN} --config.features=visual=HOME/nothing", "HOME/nothing"),
    "nan features": (
        "store",
        "--action=import_npy --file=HOME/nan.npy --store=HOME/new --dataset=HOME/world",
        "(row 7) hold a NaN",
    ),
    "rows of an array": (
        "store",
        "--action=import_npy --file=HOME/fewer.npy --store=HOME/new --dataset=HOME/world",
        "HOME/fewer.npy has 50 rows but the dataset 60 items",
    ),
    "no array": (
        "store",
        "--action=import_npy --file=HOME/no.npy --store=HOME/new --dataset=HOME/world",
        "HOME/no.npy is missing",
    ),
    "a store that is none": ("store", "--store=HOME/world", "no store at HOME/world"),
    # extraction
    "unreadable image": (
        "extract",
        "--dataset=HOME/damaged --encoder=plain_image --out=HOME/new --on_error=stop",
        "HOME/damaged/images/",
        "--on_error=skip",
    ),
    "encoder": (
        "extract",
        "--dataset=HOME/world --encoder=plain_imag --out=HOME/new",
        "plain_imag",
        "did you mean plain_image",
    ),
    "a store that is there": (
        "extract",
        "--dataset=HOME/world --encoder=plain_text --out=HOME/world/features/visual",
        "HOME/world/features/visual was begun with encoder 'plain_image', not 'plain_text'",
        "--overwrite",
    ),
    # raw data
    "missing file": (
        "prepare",
        "--source=elliot --raw=HOME/elliot --out=HOME/new",
        "HOME/elliot/test.tsv is missing",
    ),
    "missing column": ("prepare", f"{MORE}/log.csv --user_column=customer", "log.csv", "customer"),
    "rating": ("prepare", f"{MORE}/good.csv --rating_column=rating", "row 30", "'good'"),
    "duplicate item": (
        "prepare",
        f"{MORE}/log.csv --items_file=HOME/items.csv",
        "items.csv",
        "'0'",
    ),
    "empty after k-core": ("prepare", f"{MORE}/log.csv --k_core=9", "0 in the 9-core", "loosen"),
    "user without train items": ("prepare", f"{MORE}/cold.csv", "'lone'", "--cold_users"),
    "a folder of something else": (
        "prepare",
        "--source=world --out=HOME/elliot --overwrite",
        "HOME/elliot holds files but no prepared dataset",
    ),
    "out below a file": ("prepare", "--source=world --out=HOME/file/new", "HOME/file/new"),
    # evaluation and report
    "no run": ("evaluate", "--workdir=HOME/world", "HOME/world is no run of train.py"),
    "no checkpoint": ("evaluate", "--workdir=HOME/killed", "HOME/killed has no checkpoint"),
    "cutoffs": ("evaluate", "--workdir=HOME/vbpr --cutoffs=10,ten", "'ten'"),
    "protocol of evaluate": ("evaluate", "--workdir=HOME/vbpr --protocol=elliott", "elliott"),
    "threshold": ("evaluate", "--workdir=HOME/vbpr --threshold=9", "rating >= 9"),
    "no runs": ("report", "", "no run is named"),
    "unfinished run": ("report", "HOME/vbpr HOME/killed", "HOME/killed has no results.json"),
    "column": ("report", "HOME/vbpr --columns=recal@20", "recal@20", "recall@20"),
}


def state(home):
    """Every file with its size and time of change, and every folder."""
    return {
        str(path.relative_to(home)): path.is_file() and path.stat()[6:9:2]
        for path in home.rglob("*")
        if path.name != "__pycache__"
    }


@pytest.mark.parametrize("fault", FAULTS)
def test_one_sentence_and_nothing_half_written(scripts, faulty, fault):
    script, words, *messages = FAULTS[fault]
    before = state(faulty)
    done = scripts(script, *words.replace("HOME", str(faulty)).split())
    said = done.err
    assert done.code == 2, said
    assert said.startswith("error: "), said
    assert len(said.splitlines()) == 1, said
    assert len(said) < 500, said
    for message in messages:
        assert message.replace("HOME", str(faulty)) in said
    assert state(faulty) == before


def test_a_mended_command_goes_through(scripts, faulty):
    """What a fault left behind does not stand in the way of the same command without it."""
    out = faulty / "mended"
    extract = (f"--dataset={faulty / 'damaged'}", "--encoder=plain_image", f"--out={out}")
    assert scripts("extract", *extract, "--on_error=stop").code == 2
    done = scripts("extract", *extract)
    assert done.code == 0, done.err
    assert "58 present, 2 absent (2 listed in failures.jsonl)" in done.out
    ids = dataset.load(faulty / "world").item_ids
    assert store.open_store(out, n_items=len(ids)).manifest["complete"]
    workdir = faulty / "mended-run"
    train = ["--config=configs/vbpr.py", f"--config.dataset={faulty / 'world'}"]
    train += ["--config.epochs=1", f"--workdir={workdir}"]
    assert scripts("train", *train, "--config.features=visual=/nowhere").code == 2
    done = scripts("train", *train)
    assert done.code == 0, done.err
    assert json.loads((workdir / "results.json").read_text())["epochs"] == 1


def test_the_benchmark_measures_models_and_a_graph(scripts, tmp_path):
    """How fast is not asked here; that each number is there, and is one, is."""
    shape = ("--users=80", "--items=60", "--interactions=900", "--widths=8,6", "--batch_size=64")
    kept = tmp_path / "kept.json"
    common = (*shape, "--repeats=1", f"--json={kept}")
    done = scripts("benchmark", "models", "--models=freedom", "--torch=false", *common)
    assert done.code == 0, done.err
    (row,) = files.read_json(kept)["rows"]
    assert min(row[f"{kind}_s"] for kind in ("epoch", "eval", "build", "compile")) > 0
    assert min(row[f"peak_{kind}_s"] for kind in ("flop", "bytes")) > 1e6
    assert row["step_flop"] > 2 * 2 * 60 * 8 * 64  # at least F W of one modality, and its gradient
    assert "| freedom | mmjax |" in done.out
    assert scripts("benchmark", "graph", *common).code == 0
    (row,) = files.read_json(kept)["rows"]
    assert min(row["graph_s"], row["product_s"]) > 0


def test_a_table_of_recommenders_and_what_it_repeats(scripts, home, tmp_path):
    """Every point is tried once; the same command again reads what is there and says the same."""
    out = tmp_path / "table"
    command = ("compare", f"--dataset={home / 'world'}", f"--out={out}", "--models=itemknn,vbpr")
    command += ("--seeds=2", "--epochs=4", "--patience=1")
    done = scripts(*command)
    assert done.code == 0, done.err
    itemknn, vbpr = files.read_json(out / "table.json")
    assert itemknn["seeds"] == 1
    assert vbpr["seeds"] == len(vbpr["best_epochs"]) == 2
    assert vbpr["features"] == ["textual", "visual"]
    for row, model in ((itemknn, "itemknn"), (vbpr, "vbpr")):
        lines = (out / model / "tuning.jsonl").read_text().splitlines()
        tried = [json.loads(line) for line in lines]
        assert len({json.dumps(one["point"]) for one in tried}) == 6
        best = max(tried, key=lambda one: one["valid"])["point"]
        assert (row["options"] | {"lr": row["lr"]}).items() >= best.items()
        runs = [
            files.read_json(out / model / f"seed{n}" / "results.json") for n in range(row["seeds"])
        ]
        assert row["test"]["recall@20"][0] == pytest.approx(
            np.mean([run["test"]["recall@20"] for run in runs])
        )
    table = (out / "table.md").read_bytes()
    again = scripts(*command)
    assert again.code == 0, again.err
    assert (out / "table.md").read_bytes() == table
    assert "epoch" not in again.err  # nothing was trained
