"""Measure one sweep against a training process for each point.

scripts/sweep.py trains a grid of ten points in one process, against a scripts/train.py for each
point, one after the other; both as a user starts them.

This file is also the sweep's config: --config=scripts/benchmark/sweeps.py:MODEL, with the rates and
weights of Ducho meets Elliot, evaluated every tenth epoch.
"""

import json
import runpy
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

SCRIPTS = Path(__file__).resolve().parents[1]
OPTIONS = {"freedom": {"trainable_features": False}}
LOOP = {"batch_size": 2048, "eval_every": 10, "patience": 0, "cutoffs": (20,)}


def get_config(model: str) -> Any:
    from configs import common
    from configs.sweeps.ducho_elliot import RATES, WEIGHTS

    grid = {"lr": RATES, "model": {"l_w": WEIGHTS}}
    study = common.study(f"{model}:elliot", grid, **LOOP)
    study["config"]["model"] |= OPTIONS.get(model, {})
    return common.sweep({model: study}, compare={})


def write_world(folder: Path, shape: tuple[int, int, int], widths: list[int]) -> None:
    """Write a prepared world with random features.

    The first of the features is `visual`.
    """
    from benchmark import recommenders
    from mmjax import store
    from mmjax.data import dataset

    data, _, _ = recommenders.setting(*shape, [], "bprmf")
    folder.mkdir()
    dataset.save(data, folder)
    rng = np.random.default_rng(0)
    for name, width in zip(("visual", "textual", "third", "fourth"), widths, strict=False):
        rows = rng.standard_normal((data.n_items, width), np.float32)
        url = str(folder / "features" / name)
        store.write_array(url, rows, item_ids=data.item_ids, encoder="random")


def commands(model: str, folder: Path, epochs: int, mesh: str) -> tuple[list[str], list[list[str]]]:
    """Return the command of the sweep, and those of its points."""
    from mmjax.sweep import space

    data = folder / "data"
    sweep = [f"--config={Path(__file__).resolve()}:{model}", f"--workdir={folder / model}-sweep"]
    sweep += [f"--config.models.{model}.config.epochs={epochs}", f"--config.dataset={data}"]
    sweep += [f"--config.models.{model}.config.mesh={mesh}"]
    options = {f"model.{name}": value for name, value in OPTIONS.get(model, {}).items()}
    fixed = {"dataset": data, "epochs": epochs, "mesh": "data=1", "seed": 0, **LOOP, **options}
    point_commands = []
    (cell,) = space.cells(get_config(model).to_dict())
    for number, point in enumerate(space.grid(cell)):
        command = [f"--config={SCRIPTS.parent / 'configs' / model}.py:elliot"]
        command += [f"--config.{key}={value}" for key, value in (fixed | point).items()]
        point_commands.append([*command, f"--workdir={folder / model}-{number}"])
    return sweep, point_commands


def measure(side: str, model: str, folder: Path, epochs: int, devices: int) -> dict[str, Any]:
    """Measure one side of a model's sweep.

    The side `together` is sweep.py in this process, `apart` ten processes of train.py.
    """
    mesh = f"trial={devices}" if devices > 1 else "data=1"
    sweep, point_commands = commands(model, folder, epochs, mesh)
    if side == "together":
        return _timed_sweep(sweep, folder / f"{model}-sweep")
    seconds, epoch_s, valid = [], [], []
    for command in point_commands:
        begin = time.perf_counter()
        run = [sys.executable, str(SCRIPTS / "train.py"), *command]
        subprocess.run(run, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        seconds.append(time.perf_counter() - begin)
        results = json.loads(Path(command[-1].split("=")[1], "results.json").read_text())
        epoch_s.append(results["timing"]["epoch_s"])
        valid.append(results["valid"]["recall@20"])
    return {"wall_s": sum(seconds), "epoch_s": sum(epoch_s), "valid": valid}


def _timed_sweep(arguments: list[str], workdir: Path) -> dict[str, Any]:
    """Run sweep.py by its own main and time its parts.

    The times are taken around its functions.
    """
    from mmjax.sweep import batching, final_test, worker
    from mmjax.training import fit

    spent: dict[str, float] = {}
    inside: dict[str, Any] = {}

    def count(owner: Any, name: str) -> None:
        inner: Callable = getattr(owner, name)

        def counted(*args: Any, **kwargs: Any) -> Any:
            begin = time.perf_counter()
            out = inner(*args, **kwargs)
            spent[name] = spent.get(name, 0.0) + time.perf_counter() - begin
            if name == "fit":
                inside.update(args[-1])
            return out

        setattr(owner, name, counted)

    count(fit, "fit")
    count(batching.Packer, "build")
    count(final_test, "read_test")
    count(worker, "run")
    sys.argv = [str(SCRIPTS / "sweep.py"), *arguments]
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        if end.code:
            raise
    work = sum(inside["epoch_s"]) + sum(inside["eval_s"]) + inside["compile_s"]
    work += spent["build"] + spent["read_test"]
    lines = [json.loads(line) for line in (workdir / "ledger.jsonl").read_text().splitlines()]
    done = sorted((line for line in lines if line["event"] == "done"), key=lambda x: x["place"])
    return {
        "epoch_s": float(np.median(inside["epoch_s"][1:] or inside["epoch_s"])),
        "overhead": 1 - work / spent["run"],
        "valid": [line["valid"] for line in done],
    }
