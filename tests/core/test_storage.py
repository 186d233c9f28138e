"""Datasets, stores and workdirs at URLs: the same numbers as in folders, and the same safety."""

import itertools
import signal
import subprocess

import numpy as np
import pytest
from support import worlds
from support.launching import finished, start, together, until
from support.scripting import script

from configs import freedom
from configs import vbpr as vbpr_config
from mmjax import store
from mmjax.core import files, storage
from mmjax.core.errors import InputError
from mmjax.data import dataset
from mmjax.encoders.inputs import images
from mmjax.features import expressions
from mmjax.report import runs
from mmjax.training import train

VBPR = ("scripts/train.py", "--config=configs/vbpr.py", "--config.mesh=data=-1")
VBPR += ("--config.batch_size=512", "--config.lr=0.01", "--config.patience=0")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return worlds.small(tmp_path_factory.mktemp("data") / "small")


@pytest.fixture(scope="module")
def url(folder, bucket):
    """The same world in the bucket."""
    place = bucket.new()
    files.copy(folder, storage.path(place), last="dataset.json")
    return place


def config(module, data, **change):
    made = module.get_config("")
    made.update({"dataset": str(data), "epochs": 4, "batch_size": 512, "mesh": "data=2"})
    return made.update({"lr": 1e-2, "checkpoint_seconds": 0, **change}) or made


def numbers(results):
    return {split: results[split] for split in ("valid", "test")}


def same_users(one, other):
    """The per-user values of two workdirs are equal."""
    found = []
    for workdir in (one, other):
        with storage.open_file(f"{workdir}/per_user.npz") as file, np.load(file) as arrays:
            found.append(dict(arrays))
    assert found[0].keys() == found[1].keys()
    for name, values in found[0].items():
        np.testing.assert_array_equal(values, found[1][name])


@pytest.mark.slow
@pytest.mark.parametrize("module", [vbpr_config, freedom])
def test_a_run_is_what_it_is_in_folders(module, folder, url, bucket, tmp_path):
    local = train.run(config(module, folder), tmp_path / "run")
    workdir = bucket.new()
    found = train.run(config(module, url), workdir)
    assert numbers(found) == numbers(local)
    same_users(workdir, tmp_path / "run")
    assert found == files.read_json(f"{workdir}/results.json")
    lines = files.read_bytes(f"{workdir}/metrics.jsonl").decode().splitlines()
    assert len(lines) == 4
    assert any(storage.path(f"{workdir}/tensorboard").iterdir())
    again = train.evaluate(workdir, "test", {})
    assert again.rounded() == local["test"]
    runs.write(runs.load([workdir, workdir]), workdir)
    assert files.exists(f"{workdir}/table.png")


@pytest.mark.slow
def test_graphs_and_derived_stores_are_kept_there(url, bucket, tmp_path):
    train.run(config(freedom, url, epochs=1), bucket.new())
    graphs = [path.name for path in storage.path(f"{url}/derived").glob("neighbours-*.npz")]
    assert len(graphs) == 2
    data, stores = dataset.load(url), expressions.named("", url)
    assert list(stores) == ["visual", "textual"]
    place = storage.path(f"{url}/derived/stores")
    made = [expressions.resolve("v=visual~shuffle(seed=3)", stores, data, place) for _ in range(2)]
    assert made[0] == made[1]
    local = expressions.resolve("v=visual~shuffle(seed=3)", stores, data, tmp_path)
    one, other = (store.open_store(text.partition("=")[2]) for text in (made[0], local))
    np.testing.assert_array_equal(one.read()[0], other.read()[0])
    assert one.manifest["content_hash"] == other.manifest["content_hash"]


@pytest.mark.slow
def test_the_scripts_end_to_end(bucket):
    """prepare -> extract -> train -> evaluate -> report, every folder a URL."""
    data, run = bucket.new(), bucket.new()
    small = ("--users=120", "--items=60", "--interactions=2400", "--source=world")
    steps = [
        ("prepare.py", *small, f"--out={data}"),
        ("extract.py", f"--dataset={data}", "--encoder=plain_image", "--out", f"{data}/features/v"),
        ("extract.py", f"--dataset={data}", "--encoder=plain_text", "--out", f"{data}/features/t"),
        (*VBPR[0:1], *VBPR[1:], f"--config.dataset={data}", "--config.epochs=2", "--workdir", run),
        ("evaluate.py", f"--workdir={run}", f"--json={run}/again.json"),
        ("report.py", run),
    ]
    for name, *arguments in steps:
        done = script(name.removeprefix("scripts/"), *arguments)
        assert done.returncode == 0, done.stderr
    test = files.read_json(f"{run}/results.json")["test"]
    assert files.read_json(f"{run}/again.json") == test
    opened = dataset.load(data)
    assert images.read(opened.images[0], 10**6).size[0] > 0
    refused = script("prepare.py", *small, f"--out={data}")
    assert refused.returncode == 2
    assert "exists already" in refused.stderr
    replaced = script("prepare.py", *small, f"--out={data}", "--seed=5", "--overwrite")
    assert replaced.returncode == 0, replaced.stderr
    assert not files.exists(f"{data}/features/v")  # of the items of before


@pytest.mark.slow
def test_killed_at_any_moment_it_ends_as_undisturbed(folder, bucket, tmp_path):
    """SIGKILL while it trains and saves; then SIGTERM, which saves; then to the end."""
    command = (*VBPR, f"--config.dataset={folder}", "--config.epochs=40")
    command += ("--config.checkpoint_seconds=0.2",)
    code, said = finished(start(*command, f"--workdir={tmp_path}/run"))
    assert code == 0, said
    run = bucket.new()
    steps = storage.path(run) / "checkpoints"

    def saved():
        return files.exists(steps) and any(steps.glob("*/checkpoint.json"))

    for wait in (0.0, 0.3):
        process = start(*command, f"--workdir={run}")
        until(lambda process=process: saved() or process.poll() is not None)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(wait)
        process.kill()
        process.communicate()
    process = start(*command, f"--workdir={run}")
    resumed, first = (line for line in itertools.islice(process.stdout, 2))
    assert "resumed s3://" in resumed
    assert first.startswith("epoch")
    process.send_signal(signal.SIGTERM)
    code, said = finished(process)
    assert code == 75, said
    code, said = finished(start(*command, f"--workdir={run}"))
    assert code == 0, said
    assert numbers(files.read_json(f"{run}/results.json")) == numbers(
        files.read_json(tmp_path / "run/results.json")
    )
    same_users(run, tmp_path / "run")
    lines = files.read_bytes(f"{run}/metrics.jsonl").decode().splitlines()
    assert len(lines) == 40


@pytest.mark.slow
def test_two_processes_and_another_mesh(folder, url, bucket, tmp_path):
    """Two processes write one run's checkpoints; SIGTERM; one process of two devices goes on."""
    change = ("--config.mesh=data=1,model=2", "--config.epochs=20")
    command = (*VBPR, f"--config.dataset={url}", *change, "--config.checkpoint_seconds=0.5")
    run = bucket.new()
    process = together(2, (*command, f"--workdir={run}"))
    steps = storage.path(run) / "checkpoints"
    until(lambda: any(steps.glob("*/checkpoint.json")) or process.poll() is not None)
    process.send_signal(signal.SIGTERM)
    code, said = finished(process)
    assert code == 75, said
    process = together(1, (*command, f"--workdir={run}"), devices=2)
    code, said = finished(process)
    assert code == 0, said
    assert "resumed s3://" in said
    command = (*VBPR, f"--config.dataset={folder}", *change)
    code, said = finished(together(1, (*command, f"--workdir={tmp_path}/run"), devices=2))
    assert code == 0, said
    found, local = (files.read_json(f"{at}/results.json") for at in (run, tmp_path / "run"))
    for split, values in numbers(local).items():
        for name, value in values.items():
            assert found[split][name] == pytest.approx(value, abs=1e-6)


@pytest.mark.slow
def test_errors_now_and_then_change_nothing(folder, url, bucket, tmp_path):
    local = train.run(config(vbpr_config, folder), tmp_path / "run")
    turns, data = itertools.count(), dataset.load(folder)
    with bucket.failing(lambda *_: 503 if next(turns) % 9 == 0 else None) as proxy:
        found = train.run(config(vbpr_config, url), bucket.new())
        place = bucket.new()
        rows = np.arange(data.n_items * 3, dtype=np.float32).reshape(-1, 3)
        store.write_array(place, rows, item_ids=data.item_ids, chunk_rows=7)
        np.testing.assert_array_equal(store.open_store(place).read()[0], rows)
    assert proxy.failed > 5
    assert numbers(found) == numbers(local)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["PUT", "GET"])
def test_without_permission(method, folder, url, bucket):
    """One sentence, exit status 2, nothing half-written."""
    run = bucket.new()
    data = url if method == "GET" else folder
    with bucket.failing(lambda asked, path: 403 if asked == method else None):
        code, said = finished(
            start(*VBPR, f"--config.dataset={data}", "--config.epochs=1", f"--workdir={run}")
        )
    assert code == 2, said
    assert said.splitlines()[-1].startswith("error: s3://")
    assert "check the URL, your credentials" in said
    assert not files.exists(f"{run}/results.json")


def test_places_that_are_not_there(folder, bucket, monkeypatch):
    with pytest.raises(InputError, match="s3://nobodys/data is not a prepared dataset"):
        dataset.load("s3://nobodys/data")
    with pytest.raises(InputError, match="cannot be written"):
        train.run(config(vbpr_config, folder, epochs=1), "s3://nobodys/run")
    with pytest.raises(InputError, match=r"only gs:// and s3:// URLs can be read and written"):
        dataset.load("hdfs://cluster/data")
    monkeypatch.setattr(storage.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="gs://a/b needs the package gcsfs: pip install gcsfs"):
        dataset.load("gs://a/b")


@pytest.mark.slow
def test_where_a_file_system_is_needed(url, bucket):
    """Else a folder called "s3:" would appear."""
    with pytest.raises(InputError, match="s3://a/b must be on a file system here, not a URL"):
        storage.local("s3://a/b")
    opened = store.open_store(f"{url}/features/visual")
    with pytest.raises(InputError, match="must be on a file system"):
        store.export_npy(opened, f"{url}/visual.npy")
    place = bucket.new()
    store.export_folder(opened, place)
    assert len(list(storage.path(place).iterdir())) == opened.shape[0]
