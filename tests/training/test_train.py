"""The loop: results, early stopping, kill and resume bit for bit, and refusals."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from support import worlds
from support.fitting import fit, same

from configs import bprmf, itemknn, lightgcn, vbpr
from mmjax import store
from mmjax.core import files
from mmjax.core.errors import InputError
from mmjax.data import dataset
from mmjax.report import runs
from mmjax.training import early_stopping, ensemble, experiment, optimizer, train
from mmjax.training.checkpoint import Checkpoints

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return worlds.small(tmp_path_factory.mktemp("data") / "small")


def config(module, folder, **change):
    made = module.get_config("")
    made.update({"dataset": str(folder), "epochs": 6, "batch_size": 512, "mesh": "data=1"})
    made.update({"cutoffs": (10, 20), "lr": 1e-2, **change})
    return made


def trained(workdir):
    """The best parameters in a run's last checkpoint, as host arrays by path."""
    checkpoints = Checkpoints(workdir / "checkpoints")
    step, progress = checkpoints.latest()
    config = files.read_json(workdir / "config.json")
    data = dataset.load(config["dataset"])
    trials = experiment.trials(config | {"mesh": "data=1"}, data, experiment.features(config, data))
    state = trials.init()
    tree = checkpoints.load(step, {"state": state, "best": early_stopping.weights(state)})
    checkpoints.close()
    return jax.tree.map(np.asarray, tree), progress


def test_a_run_and_what_it_writes(folder, tmp_path):
    results = train.run(config(vbpr, folder), tmp_path / "run")
    assert results == files.read_json(tmp_path / "run" / "results.json")
    assert results["recommender"] == "vbpr"
    assert results["epochs"] == 6
    assert 1 <= results["best_epoch"] <= 6
    for split in ("valid", "test"):
        assert set(results[split]) >= {"recall@20", "ndcg@10", "gini@20", "efd@10", "hr@20"}
        assert all(np.isfinite(v) for v in results[split].values())
    assert set(results["timing"]) == {"compile_s", "epoch_s", "eval_s", "total_s"}
    assert results["memory"]["peak_rss_mb"] > 0
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2, 3, 4, 5, 6]
    values = [json.loads(line)["valid/recall@20"] for line in lines]
    assert results["best_epoch"] == 1 + int(np.argmax(values))
    assert results["valid"]["recall@20"] == pytest.approx(max(values), abs=1e-6)
    users = np.load(tmp_path / "run" / "per_user.npz")
    assert users["test/recall@20"].mean() == pytest.approx(results["test"]["recall@20"], abs=1e-5)
    assert len(list((tmp_path / "run" / "tensorboard").iterdir())) == 1
    again = train.evaluate(tmp_path / "run", "test", {})
    assert again.rounded() == results["test"]
    assert "vbpr on small" in runs.card(results)
    assert train.run(config(vbpr, folder), tmp_path / "run") == results  # finished: nothing to do


def test_trials_together_keep_the_best_epochs_that_each_has_alone(folder, tmp_path):
    """Three learning rates as one program: each trial stops, and is best, as it is alone."""
    made = config(bprmf, folder, epochs=12, patience=2)
    points = [{"lr": rate} for rate in (0.05, 0.0, 0.003)]
    together, progress, _ = fit(made, points, tmp_path / "together")
    assert progress["best_epoch"][1] == 1  # nothing moves, so nothing improves on the first
    assert early_stopping.finished(progress, made)[1]
    assert len(set(progress["best_epoch"])) > 1
    for trial, point in enumerate(points):
        alone, own, _ = fit(made, [point], tmp_path / f"alone-{trial}")
        assert own["best_epoch"][0] == progress["best_epoch"][trial]
        assert own["best"][0] == progress["best"][trial]
        same(ensemble.pick(together, trial), ensemble.pick(alone, 0))


def test_a_trial_that_is_not_active_stays_as_it_is(folder):
    made = config(bprmf, folder)
    trials = experiment.trials(made, dataset.load(folder), {}, [{"lr": 0.05}, {"seed": 7}])
    begin = jax.device_get(trials.init())
    after, losses = trials.epoch()(*trials.arguments(trials.init(), [True, False]))
    same(ensemble.pick(after, 1), ensemble.pick(begin, 1))
    assert np.all(losses[0])
    assert not np.any(losses[1])


def test_a_trial_that_diverges_ends_alone(folder, tmp_path):
    """The other goes on as if it were not there; its own best is from before."""
    made = config(bprmf, folder)
    points = [{"lr": 0.01}, {"lr": 1e30}]
    together, progress, _ = fit(made, points, tmp_path / "together")
    alone, own, _ = fit(made, points[:1], tmp_path / "alone")
    assert progress["diverged"] == [0, 1]
    assert early_stopping.finished(progress, made) == [False, True]
    assert progress["best"] == [own["best"][0], None]  # it was never ranked
    same(ensemble.pick(together, 0), ensemble.pick(alone, 0))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(together["params"]))
    with pytest.raises(InputError, match="lower the rate"):
        fit(made, points[1:] * 2, tmp_path / "none")


def test_the_last_trial_diverges_after_the_other_has_stopped(folder, tmp_path):
    """Nobody is left to train or to rank; both have their best."""
    made = config(bprmf, folder, epochs=40, patience=2, lr_decay=(1e6, 1.0))
    _, progress, _ = fit(made, [{"lr": 0.0}, {"lr": 1e-4}], tmp_path)
    assert progress["best_epoch"][0] == 1
    assert progress["diverged"][0] == 0
    assert 3 < progress["diverged"][1] == progress["epoch"] < 10
    assert progress["best"][1] is not None


def test_the_best_epoch_is_kept_and_patience_ends_the_run(folder, tmp_path):
    results = train.run(config(bprmf, folder, epochs=60, patience=3, lr=0.05), tmp_path / "run")
    assert results["epochs"] == results["best_epoch"] + 3 < 60


def test_a_recommender_without_training(folder, tmp_path):
    results = train.run(config(itemknn, folder), tmp_path / "run")
    assert results["epochs"] == 0
    assert results["timing"]["epoch_s"] is None
    assert results["test"]["recall@20"] > 0.1
    assert train.evaluate(tmp_path / "run", "test", {}).rounded() == results["test"]


def test_eight_devices_train_as_one(folder, tmp_path):
    """Sums over a sharded batch are added in another order, so equal to rounding only."""
    one = train.run(config(lightgcn, folder), tmp_path / "one")
    many = train.run(config(lightgcn, folder, mesh="data=8"), tmp_path / "many")
    losses = [
        [json.loads(x)["loss"] for x in (tmp_path / run / "metrics.jsonl").read_text().splitlines()]
        for run in ("one", "many")
    ]
    np.testing.assert_allclose(*losses, rtol=1e-5)
    assert many["test"]["recall@20"] == pytest.approx(one["test"]["recall@20"], abs=5e-3)


@pytest.mark.parametrize("name", ["lightgcn", "vbpr"])
def test_killed_at_random_moments_it_ends_as_if_undisturbed(name, folder, tmp_path):
    command = [sys.executable, str(ROOT / "scripts/train.py"), f"--config={ROOT}/configs/{name}.py"]
    command += [f"--config.dataset={folder}", "--config.epochs=40", "--config.patience=0"]
    command += ["--config.batch_size=512", "--config.checkpoint_seconds=0"]
    environment = os.environ | {"XLA_FLAGS": ""}

    def start(run):
        whole = [*command, f"--workdir={tmp_path}/{run}"]
        return subprocess.Popen(whole, env=environment, stdout=subprocess.PIPE, text=True)

    output, _ = start("whole").communicate()
    assert "resumed" not in output
    rng, log = np.random.default_rng(), tmp_path / "killed" / "metrics.jsonl"
    for epochs in (3, 15):  # once it has come so far, after a random while, without warning
        process = start("killed")
        while process.poll() is None and not (
            log.exists() and len(log.read_text().splitlines()) >= epochs
        ):
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.05))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    output, _ = start("killed").communicate()
    assert "resumed" in output
    results = [files.read_json(tmp_path / run / "results.json") for run in ("whole", "killed")]
    for key in ("valid", "test", "best_epoch", "epochs"):
        assert results[0][key] == results[1][key]
    whole, killed = (trained(tmp_path / run) for run in ("whole", "killed"))
    same(killed[0], whole[0])
    assert killed[1] == whole[1]
    lines = log.read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == list(range(1, 41))


def test_a_loss_that_is_not_finite_names_its_step(folder, tmp_path):
    with pytest.raises(InputError, match=r"the loss is (nan|inf) at step \d+ of \d+ of epoch \d+"):
        train.run(config(vbpr, folder, lr=1e30), tmp_path / "run")
    assert not (tmp_path / "run" / "results.json").exists()


def test_a_run_goes_on_where_its_data_was_moved(folder, tmp_path):
    """Content counts, not the path; nor how often it is saved."""
    results = train.run(config(itemknn, folder), tmp_path / "run")
    shutil.copytree(folder, tmp_path / "moved")
    moved = config(itemknn, tmp_path / "moved", checkpoint_seconds=1.0)
    assert train.run(moved, tmp_path / "run") == results


def test_a_workdir_of_another_config_is_refused(folder, tmp_path):
    train.run(config(itemknn, folder), tmp_path / "run")
    with pytest.raises(InputError, match=r"another config: model\.neighbours is 200 there and 7"):
        train.run(config(itemknn, folder, model={"neighbours": 7}), tmp_path / "run")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": "visual"}, "is not NAME=STORE"),
        ({"features": "visual=/nowhere"}, "/nowhere"),
        ({"protocol": "strickt"}, "no protocol 'strickt'"),
        ({"recommender": "vpbr"}, "did you mean 'vbpr'"),
        ({"optimizer": "adamm()"}, "is not a list of optax transformations"),
        ({"optimizer": "adam(1e-3"}, "is not a list of optax transformations"),
        ({"sampler": "user"}, "did you mean 'users'"),
        ({"mesh": "data=99"}, "does not fit 8 cpu devices"),
        ({"mesh": "dta=2"}, "is not AXIS=SIZE"),
        ({"metric": "recall@21"}, "metric 'recall@21' is not measured"),
        ({"cutoffs": (0, 20)}, "cutoffs"),
        ({"epochs": -1}, "epochs"),
        ({"batch_size": 0}, "batch_size"),
        ({"dataset": ""}, "give --config.dataset"),
        ({"dataset": "/nowhere"}, "not a prepared dataset"),
    ],
)
def test_bad_configs_end_before_anything_is_written(folder, tmp_path, change, message):
    with pytest.raises(InputError, match=message):
        train.run(config(vbpr, folder, **change), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_features_of_another_catalogue_are_refused(folder, tmp_path):
    other = worlds.small(tmp_path / "other", items=90)
    url = other / "features" / "visual"
    with pytest.raises(InputError, match="90"):
        train.run(config(vbpr, folder, features=f"visual={url}"), tmp_path / "run")


def test_features_with_nan_never_become_a_store(folder, tmp_path):
    rows = np.zeros((100, 4), np.float32)
    rows[7, 2] = np.nan
    ids = dataset.load(folder).item_ids
    with pytest.raises(InputError, match="row 7"):
        store.write_array(str(tmp_path / "nan"), rows, item_ids=ids, encoder="test")


def test_any_optax_chain():
    chain = optimizer.parse("clip_by_global_norm(1.0), scale_by_adam(b1=0.8)")
    state = chain.init({"w": np.ones(3, np.float32)})
    updates, _ = chain.update({"w": np.full(3, 100, np.float32)}, state)
    assert np.isfinite(updates["w"]).all()
    with pytest.raises(InputError, match="optax"):
        optimizer.parse("__import__('os').system('true')")
