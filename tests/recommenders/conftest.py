"""The programs of a recommender are compiled once, although many tests build it."""

import jax
import pytest


@pytest.fixture(scope="module", autouse=True)
def compiled_once(tmp_path_factory):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.getbasetemp() / "programs"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    yield
    jax.config.update("jax_compilation_cache_dir", None)
