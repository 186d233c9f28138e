"""Several processes that encode one catalogue: the bytes of one, a sentence for every fault."""

import os
import signal
import socket

import psutil
import pytest
from support import worlds
from support.launching import finished, mpirun, start, together, until

from mmjax import store
from mmjax.data import dataset

pytestmark = pytest.mark.slow

# Counts letters of the titles, slowly; items called Marlow 47 cannot be read.
LETTERS = """
import time

import numpy as np
from mmjax.encoders.core import Batch, Tower


def load(*, layers: tuple = ("vowels",), pause: float = PAUSE):
    def batches(texts, size):
        for start in range(0, len(texts), size):
            rows = np.arange(start, min(start + size, len(texts)))
            bad = {int(row): "a boot" for row in rows if "Marlow 47," in texts[row]}
            rows = np.array([row for row in rows if row not in bad], int)
            counts = np.zeros((size, 8), np.float32)
            for line, row in enumerate(rows):
                counts[line] = [texts[row].count(letter) for letter in "aeio1234"]
            time.sleep(pause)
            yield Batch(rows, (counts,), bad)

    def encode(params, counts):
        parts = {"vowels": counts[:, :4], "digits": counts[:, 4:]}
        return tuple(params * parts[layer] for layer in layers)

    widths = {layer: 4 for layer in layers}
    return Tower("text", widths, np.float32(2), batches, encode, {"encoder": "letters"})
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return worlds.small(tmp_path_factory.mktemp("data") / "small", users=203, items=101)


@pytest.fixture(autouse=True)
def outside(tmp_path, monkeypatch):
    """The encoder, where the scripts find it."""
    (tmp_path / "outside").mkdir()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return slow(tmp_path, 0)


def slow(tmp_path, seconds):
    text = LETTERS.replace("PAUSE", str(seconds))
    (tmp_path / "outside" / "letters.py").write_text(text)


def command(folder, out, *more):
    job = ("--encoder=outside.letters", "--batch=4", "--chunk_rows=8", "--fields=title")
    return ["scripts/extract.py", f"--dataset={folder}", f"--out={out}", *job, *more]


def workers(out):
    """The processes that fill it, without their launcher."""
    words = f"--out={out}"
    mine = [one for one in psutil.process_iter(["cmdline"]) if words in (one.info["cmdline"] or [])]
    return [one.pid for one in mine if not any("local.py" in word for word in one.cmdline())]


def contents(folder):
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.parametrize(("count", "devices"), [(2, 2), (3, 1)])
def test_the_bytes_of_one_process(count, devices, folder, tmp_path):
    more = ("--layers=vowels,digits", "--export_folders")
    assert finished(start(*command(folder, tmp_path / "one", *more)))[0] == 0
    code, said = finished(together(count, command(folder, tmp_path / "many", *more), devices))
    assert code == 0, said
    one = contents(tmp_path / "one")
    assert contents(tmp_path / "many") == one
    assert {"vowels/manifest.json", "digits/manifest.json", "vowels/failures.jsonl"} <= one.keys()
    assert said.count("101 items x 4 + 4") == 1  # one process speaks
    titles, failed = dataset.load(folder).titles, one["vowels/failures.jsonl"].count(b"a boot")
    assert failed == sum("Marlow 47," in title for title in titles) > 0
    assert f"encoded {sum(map(bool, titles))} in" in said
    again = finished(together(count, command(folder, tmp_path / "many", *more), devices))
    assert again[0] == 0
    assert "complete already" in again[1]


def test_open_mpi(folder, tmp_path):
    done = mpirun(command(folder, tmp_path / "two"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert finished(start(*command(folder, tmp_path / "one")))[0] == 0
    assert contents(tmp_path / "two") == contents(tmp_path / "one")


def test_what_one_cannot_read_stops_all(folder, tmp_path):
    """With a sentence in each; what the others wrote stays, and is gone on with."""
    stop = command(folder, tmp_path / "out", "--on_error=stop")
    code, said = finished(together(2, stop))
    assert code == 2, said
    assert said.count("cannot be read (a boot)") == 2
    kept = list((tmp_path / "out" / "parts").iterdir())
    assert kept
    assert finished(together(2, command(folder, tmp_path / "out")))[0] == 0
    assert finished(start(*command(folder, tmp_path / "one")))[0] == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "one")


@pytest.mark.parametrize(("count", "victims"), [(1, "all"), (2, "all"), (2, "the last")])
def test_sigterm_keeps_whole_chunks(count, victims, folder, tmp_path):
    """Told to one of two, both end so."""
    slow(tmp_path, 0.3)
    run = together(count, command(folder, tmp_path / "out"))
    until(lambda: len(list(tmp_path.glob("out/parts/*.json"))) > 1)
    if victims == "all":
        run.send_signal(signal.SIGTERM)  # to the launcher, which passes it on
    else:
        os.kill(workers(tmp_path / "out")[-1], signal.SIGTERM)
    code, said = finished(run)
    assert code == 75, said
    assert "whole chunks" in said
    assert "the same command goes on" in said
    kept = {path.name: path.read_bytes() for path in tmp_path.glob("out/parts/*.json")}
    assert 1 < len(kept) < 13
    slow(tmp_path, 0)
    assert finished(start(*command(folder, tmp_path / "out")))[0] == 0
    assert finished(start(*command(folder, tmp_path / "one")))[0] == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "one")


def test_a_killed_process_ends_the_others_and_costs_nothing(folder, tmp_path):
    slow(tmp_path, 0.3)
    run = together(2, command(folder, tmp_path / "out"))
    until(lambda: len(list(tmp_path.glob("out/parts/*.json"))) > 2)
    os.kill(workers(tmp_path / "out")[-1], signal.SIGKILL)
    code, said = finished(run, 120)
    assert code not in (0, 75), said
    slow(tmp_path, 0)
    assert finished(together(2, command(folder, tmp_path / "out")))[0] == 0
    assert finished(start(*command(folder, tmp_path / "one")))[0] == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "one")


def test_a_host_that_sees_other_data(folder, tmp_path):
    other = worlds.small(tmp_path / "other", users=203, items=102)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        where = f"--coordinator=127.0.0.1:{probe.getsockname()[1]}"
    both = [
        start(*command(seen, tmp_path / "out"), where, "--processes=2", f"--process={n}")
        for n, seen in enumerate((folder, other))
    ]
    for code, said in map(finished, both):
        assert code == 2, said
        assert "was begun with shape [101, 4], not [102, 4]" in said
    with pytest.raises(ValueError, match=r"missing|no store|not"):
        store.open_store(tmp_path / "out")
