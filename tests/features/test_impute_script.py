"""scripts/impute.py as a user calls it: to a store a recommender trains on, and every fault."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support import forks, worlds

from mmjax import store
from mmjax.core.errors import InputError
from mmjax.data import dataset

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def scripts():
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    with forks.Scripts(environment) as started:
        yield started


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A world of 60 items, a third of them without visual features, a sixth without textual."""
    home = tmp_path_factory.mktemp("home")
    world = worlds.small(home / "world", users=80, items=60, interactions=1500)
    data = dataset.load(world)
    for name, every in (("visual", 3), ("textual", 6)):
        url = world / "features" / name
        rows = store.open_store(url).read()[0]
        absent = np.arange(data.n_items) % every == 0
        store.write_array(
            home / name, rows, item_ids=data.item_ids, present=~absent, encoder="truth"
        )
    ids = data.item_ids[::-1]
    store.write_array(home / "foreign", np.ones((data.n_items, 4), "f"), item_ids=ids)
    return home


def words(home, *more, out="new", features="visual"):
    here = (f"--dataset={home / 'world'}", f"--features={home / features}")
    return (*here, *((f"--out={home / out}",) if out else ()), *more)


def test_from_a_store_with_gaps_to_a_trained_recommender(scripts, home):
    done = scripts(
        "impute", *words(home, "--method=feat_prop", "--top_k=5", "--homophily", out="filled")
    )
    assert done.code == 0, done.err
    assert "arning" not in done.err
    before, said, after = done.out.splitlines()
    assert before.startswith(f"{home / 'visual'}: feature homophily 0.")
    assert before.endswith("over 40 present items")
    assert "0 masked, 20 imputed by feat_prop top_k=5 layers=20, 0 still absent" in said
    assert after.startswith(f"{home / 'filled'}: feature homophily 0.")
    train = ["--config=configs/vbpr.py", f"--config.dataset={home / 'world'}"]
    train += [f"--config.features=visual={home / 'filled'}", "--config.epochs=1"]
    done = scripts("train", *train, f"--workdir={home / 'run'}")
    assert done.code == 0, done.err


def test_masking_and_the_other_modality(scripts, home):
    more = ("--method=ae", "--epochs=2", f"--other={home / 'textual'}", "--mask=0.5")
    done = scripts("impute", *words(home, *more, "--mask_seed=42", out="from_text"))
    assert done.code == 0, done.err
    # 20 + 20 absent now; some of these have no textual features either.
    assert "20 masked, " in done.out
    assert "ae epochs=2 lr=0.01 batch=32 l1=0.0001 seed=0" in done.out
    assert "loss" in done.err
    said = store.open_store(home / "from_text").manifest["settings"]["imputed"]
    assert said["mask_rate"] == 0.5
    assert said["other_hash"] == store.open_store(home / "textual").manifest["content_hash"]


def test_homophily_alone_writes_nothing(scripts, home):
    before = sorted(home.iterdir())
    done = scripts("impute", *words(home, "--homophily", "--top_k=3", out=None))
    assert done.code == 0, done.err
    assert len(done.out.splitlines()) == 1
    assert sorted(home.iterdir()) == before
    done = scripts("impute", *words(home, "--homophily", "--top_k=3", "--method=mean", out="m"))
    assert done.code == 0, done.err  # the mean has no top_k, the homophily has


FAULTS = {
    "no method": ("", "--method is missing"),
    "no out": ("--method=mean --out=", "--out is missing"),
    "unknown method": ("--method=median", "'median'", "zeros, random, mean"),
    "an option of another method": ("--method=mean --layers=3", "mean has no option 'layers'"),
    "rate": ("--method=mean --mask=1", "in [0, 1), not 1"),
    "no other": ("--method=ae", "--other=STORE"),
    "store of another dataset": ("--method=gae --other=HOME/foreign", "HOME/foreign holds 60"),
    "features of another dataset": ("--method=zeros --features=HOME/foreign", "HOME/foreign"),
    "homophily of another dataset": ("--homophily --features=HOME/foreign --out=", "HOME/foreign"),
    "a store that is there": ("--method=mean --out=HOME/textual", "HOME/textual exists already"),
    "onto itself": ("--method=mean --out=HOME/visual --overwrite", "HOME/visual is the store"),
    "no store": ("--method=mean --features=HOME/nothing", "there is no store at HOME/nothing"),
    "top_k": ("--method=heat --top_k=0", "top_k is at least 1, not 0"),
    "top_k of homophily": ("--method=mean --homophily --top_k=0", "top_k is at least 1, not 0"),
    "unknown flag": ("--method=mean --topk=3", "topk"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_one_sentence_and_nothing_half_written(scripts, home, fault):
    flags, *messages = FAULTS[fault]
    before = sorted(home.iterdir())
    done = scripts("impute", *words(home, *flags.replace("HOME", str(home)).split()))
    assert done.code == 2, done.err
    assert done.err.startswith("error: "), done.err
    assert len(done.err.splitlines()) == 1, done.err
    for message in messages:
        assert message.replace("HOME", str(home)) in done.err
    assert sorted(home.iterdir()) == before


def test_a_kill_leaves_no_store_that_opens_and_an_old_one_as_it_was(home):
    root = Path(__file__).resolve().parents[2]
    old = shutil.copytree(home / "textual", home / "old")
    content = store.open_store(old).manifest
    endless = ("--method=ae", "--epochs=100000000", f"--other={home / 'textual'}", "--overwrite")
    for out in ("killed", "old"):
        command = [sys.executable, str(root / "scripts/impute.py"), *words(home, *endless, out=out)]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as running:
            assert running.stderr.readline().startswith("ae 1/100000000 loss")
            running.send_signal(signal.SIGKILL)
    with pytest.raises(InputError, match="there is no store"):
        store.open_store(home / "killed")
    assert store.open_store(old).manifest == content
    store.open_store(old).verify()
