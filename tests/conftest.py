"""Eight CPU devices, strict JAX, and where the real data and the reference numbers lie."""

import atexit
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
# Eight devices that wait for each other in a collective must leave threads to those that compute.
os.environ.setdefault("NPROC", "16")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Workers, and the scripts that tests start, share what they compile: two thirds of a run's time.
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # workers inherit it
    _programs = tempfile.mkdtemp(prefix="mmjax-programs-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _programs
    atexit.register(shutil.rmtree, _programs, ignore_errors=True)

import jax
import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

jax.config.update("jax_numpy_rank_promotion", "raise")
# Started in the background, a suite ignores SIGINT, and so would the processes that it interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup() -> None:
    """Random checkpoints are the same whichever tests ran before."""
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call() -> None:
    pytest_fixture_setup()


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data beside the checkout; tests that need it skip when it is absent."""
    folder = Path(os.environ.get("MMJAX_SHARED_DIR", ROOT.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}")
    return folder


@pytest.fixture(scope="session")
def parity() -> Path:
    """The folder of MMRec's reference numbers."""
    folder = Path(os.environ.get("MMJAX_PARITY_DIR", ROOT.parent / "shared" / "parity"))
    if not folder.is_dir():
        pytest.skip(f"no reference numbers at {folder}")
    return folder


@pytest.fixture(scope="session")
def authors(parity) -> Path:
    """The folder of what other authors' code computed; MMJAX_AUTHORS_DIR names another."""
    folder = Path(os.environ.get("MMJAX_AUTHORS_DIR", parity / "authors"))
    if not folder.is_dir():
        pytest.skip(f"no reference numbers at {folder}")
    return folder


@pytest.fixture(scope="session")
def bucket():
    """A bucket of an S3-compatible store on this machine, see `objects`."""
    from support import objects

    with objects.serving() as found:
        yield found
