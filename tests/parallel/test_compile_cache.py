"""Compiled programs are kept for the next start, and no epoch makes new ones."""

import json

import jax
import jax.numpy as jnp
import pytest
from support import worlds
from support.scripting import script

from configs import bprmf
from mmjax.parallel import compile_cache
from mmjax.training import train


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return worlds.small(tmp_path_factory.mktemp("data") / "small")


@pytest.fixture
def nothing_kept(tmp_path):
    before = jax.config.jax_compilation_cache_dir
    compile_cache.keep(tmp_path / "programs")
    yield
    compile_cache.keep(before)


@pytest.mark.usefixtures("nothing_kept")
def test_counts_programs():
    function = jax.jit(lambda x: x * 3 + jnp.sin(x))
    with compile_cache.Count() as count:
        function(2.0)
        first = count.programs
        function(3.0)
        assert count.programs == first >= 1
        function(jnp.ones(3))
    assert count.programs > first
    function(jnp.ones(4))
    assert count.from_cache == 0


@pytest.mark.slow
def test_more_epochs_compile_no_more(folder, tmp_path):
    def programs(epochs, name):
        made = bprmf.get_config().to_dict() | {"dataset": str(folder), "epochs": epochs}
        made |= {"batch_size": 512, "cutoffs": (10, 20), "mesh": "data=1", "patience": 0}
        return train.run(made, tmp_path / name)["compiled"]["programs"]

    programs(3, "warm")
    assert programs(3, "short") == programs(9, "long")


@pytest.mark.slow
def test_a_second_start_finds_the_programs(folder, tmp_path):
    def start(name):
        flags = [f"--config.dataset={folder}", "--config.epochs=2", "--config.batch_size=512"]
        cache, workdir = f"--compile_cache={tmp_path / 'cache'}", f"--workdir={tmp_path / name}"
        ended = script("train.py", "--config=configs/bprmf.py", *flags, cache, workdir)
        assert ended.returncode == 0, ended.stderr
        return json.loads((tmp_path / name / "results.json").read_text())

    first, second = start("first"), start("second")
    assert first["compiled"]["from_cache"] < first["compiled"]["programs"]
    assert second["compiled"]["from_cache"] == second["compiled"]["programs"]
    assert second["test"] == first["test"]
