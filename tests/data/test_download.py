"""Fetching from a server that misbehaves in every way it can: it ends, and says why."""

import email.utils
import gzip
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from support.serving import (
    body,
    cut,
    page,
    picture,
    ranged,
    redirect,
    serve,
    status,
    trickle,
    unannounced,
)

from mmjax.core.errors import InputError
from mmjax.data.download import fetch as download
from mmjax.data.download.fetch import Patience, count_reasons, fetch_all, fetch_large
from mmjax.data.download.images import image_fault

ROOT = Path(__file__).resolve().parents[2]
QUICK = Patience(tries=3, wait_s=0.001, longest_wait_s=0.3, stall_s=0.3, total_s=0.3)
PATIENT = Patience(tries=3, wait_s=0.001, stall_s=30, total_s=30)  # for a busy machine
IMAGE = picture()


def fetch(server, folder, names, patience=PATIENT, **options):
    jobs = [(server.url(f"/{name}"), folder / name) for name in names]
    failed = fetch_all(jobs, check=image_fault, patience=patience, **options)
    return {path.name: reason for path, reason in failed.items()}


def test_many_at_once_and_none_twice(tmp_path):
    with serve() as server:
        names = [f"{n}.png" for n in range(60)]
        pictures = {name: picture((n + 2, 5)) for n, name in enumerate(names)}
        server.routes = {f"/{name}": body(content) for name, content in pictures.items()}
        (tmp_path / "7.png").write_bytes(b"here already")
        assert fetch(server, tmp_path, names, connections=7) == {}
        assert "/7.png" not in server.asked
        assert all(len(asked) == 1 for asked in server.asked.values())
        pictures["7.png"] = b"here already"
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == pictures
        assert fetch(server, tmp_path, names) == {}
        assert len(server.asked) == 59


# What a server does -> how often it is asked, and what is said at the end ("" where it works out).
ANSWERS = {
    "missing": (status(404), 1, "HTTP 404"),
    "forbidden": (status(403), 1, "HTTP 403"),
    "gone": (status(410), 1, "HTTP 410"),
    "busy once": ([status(429), body(IMAGE)], 2, ""),
    "broken once": ([status(500), body(IMAGE)], 2, ""),
    "broken": (status(500), 3, "HTTP 500"),
    "busy": (status(503, Retry_After=0), 3, "HTTP 503"),
    "cut once": ([cut(IMAGE, 20), body(IMAGE)], 2, ""),
    "cut": (cut(IMAGE, 20), 3, "truncated"),
    "cut unannounced": (unannounced(IMAGE[:-40]), 1, "no image"),
    "whole unannounced": (unannounced(IMAGE), 1, ""),
    "page": (page(), 1, "a page, no image"),
    "empty": (body(b""), 1, "no image"),
    "moved": ([redirect("/x.png"), body(IMAGE)], 2, ""),
    "moved in a circle": (redirect("/x.png"), 5, "redirect loop"),
    "moved nowhere": (status(302), 1, "HTTP 302"),
    "moved to a file": (redirect("file:///etc/hostname"), 1, "HTTP 302"),
    "moved to FTP": (redirect("ftp://127.0.0.1/x.png"), 1, "bad URL"),
    "no HTTP": (lambda handler: handler.wfile.write(b"hello\r\n"), 3, "connection lost"),
    "hung up": (lambda handler: None, 3, "connection lost"),
    "announced giant": (cut(bytes(10**6), 5), 1, "larger than 50,000 bytes"),
    "giant": (unannounced(IMAGE * 1000), 1, "larger than 50,000 bytes"),
}


@pytest.mark.parametrize("case", ANSWERS)
def test_answers(tmp_path, case):
    answers, asked, reason = ANSWERS[case]
    with serve(x_png=answers) as server:
        failed = fetch(server, tmp_path, ["x.png"], most_bytes=50_000)
        assert failed == ({"x.png": reason} if reason else {})
        assert len(server.asked["/x.png"]) == asked
    assert [path.name for path in tmp_path.iterdir()] == ([] if reason else ["x.png"])
    if not reason:
        assert (tmp_path / "x.png").read_bytes() == IMAGE


SLOW = {
    "body drop by drop": trickle(b"\r\n"),
    "headers drop by drop": trickle(b"X-Y: "),
    "header after header": trickle(b"", b"X-Y: z\r\n", every_s=0.1),
    "silent after the headers": trickle(b"Content-Length: 9\r\n\r\n", b""),
    "silent": trickle(b"", b""),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", SLOW)
def test_slow_answers_end(tmp_path, case):
    with serve(x_png=SLOW[case]) as server:
        assert fetch(server, tmp_path, ["x.png"], QUICK) == {"x.png": "too slow"}
        assert len(server.asked["/x.png"]) == 3
    assert not list(tmp_path.iterdir())


def test_redirects_that_never_repeat_end(tmp_path):
    with serve() as server:
        server.routes = {f"/{n}": redirect(f"/{n + 1}") for n in range(100)}
        assert fetch(server, tmp_path, ["0"]) == {"0": "redirect loop"}
        assert len(server.asked) == 11


def test_waits_as_long_as_the_server_asks(tmp_path):
    date = email.utils.formatdate(time.time() + 60, usegmt=True)
    for asked in (60, date):  # and no longer than longest_wait_s
        with serve(x_png=[status(429, Retry_After=asked), body(IMAGE)]) as server:
            (tmp_path / "x.png").unlink(missing_ok=True)
            assert fetch(server, tmp_path, ["x.png"], QUICK) == {}
            first, second = (when for when, _ in server.asked["/x.png"])
            assert second - first >= 0.29
    patience = Patience(wait_s=1, longest_wait_s=10)
    for tries, low, high in ((1, 0.5, 1.5), (3, 2, 6), (9, 10, 10)):
        assert all(low <= patience.pause(tries, 0) <= high for _ in range(20))
    assert patience.pause(1, 7) == 7
    assert len({patience.pause(1, 0) for _ in range(20)}) > 1  # not all at the same moment


@pytest.mark.parametrize(
    "url", ["nan", "", "file:///etc/hostname", "ftp://127.0.0.1/x", "http://[", "http:///x"]
)
def test_what_is_no_url(tmp_path, url):
    assert fetch_all([(url, tmp_path / "x")]) == {tmp_path / "x": "bad URL"}


def test_spaces_and_letters_in_a_url(tmp_path):
    with serve() as server:
        server.routes = {"/a%20b%C3%A9%2B+.png": body(IMAGE)}
        assert fetch(server, tmp_path, ["a bé%2B+.png"]) == {}


def test_no_network_is_told_at_once(tmp_path):
    with socket.socket() as bound:  # bound, but nobody listens
        bound.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{bound.getsockname()[1]}/"
        jobs = [(f"{url}{n}", tmp_path / str(n)) for n in range(100)]
        few = fetch_all(jobs[:3], patience=QUICK)
        assert few == dict.fromkeys((path for _, path in jobs[:3]), "no connection")
        with pytest.raises(InputError, match="none of the first 40 images could be reached; check"):
            fetch_all(jobs, what="images", patience=QUICK)


def test_a_disk_that_cannot_be_written_ends_all(tmp_path):
    (tmp_path / "file").write_text("")
    with serve(x_png=body(IMAGE)) as server:
        jobs = [(server.url("/x.png"), tmp_path / "file" / str(n)) for n in range(30)]
        with pytest.raises(InputError, match=r"file/.* cannot be written"):
            fetch_all(jobs)
        with pytest.raises(InputError, match=r"file cannot be written|x\.gz cannot be written"):
            fetch_large(server.url("/x.png"), tmp_path / "file" / "x.gz")


def test_what_counts_as_an_image():
    for kind in ("PNG", "JPEG", "GIF", "WEBP", "BMP"):
        assert image_fault(picture((40, 30), kind)) == "", kind
    assert image_fault(picture((200, 200), "JPEG")[:-200]) == "no image"  # its header is whole
    assert image_fault(picture((1, 1), "GIF")) == "a single pixel"
    assert image_fault(b"\n <HTML>") == "a page, no image"
    assert image_fault(b"<svg xmlns='http://www.w3.org/2000/svg'/>") == "no image"
    giant = picture((9000, 1), "BMP")
    giant = giant[:22] + (9000).to_bytes(4, "little") + giant[26:]  # 9000 x 9000, it says
    assert image_fault(giant) == "more than 50,000,000 pixels"


def test_reasons_are_counted():
    assert count_reasons(["a", "b", "a"]) == "2 a, 1 b"


# ---- large files ----

DUMP = gzip.compress(np.random.default_rng(0).bytes(300_000))


def large(server, folder, patience=PATIENT):
    fetch_large(server.url("/x.gz"), folder / "x.gz", patience=patience)
    assert [path.name for path in folder.iterdir()] == ["x.gz"]
    assert (folder / "x.gz").read_bytes() == DUMP
    return [headers.get("Range") for _, headers in server.asked["/x.gz"]]


def test_a_large_file_goes_on_where_the_connection_broke(tmp_path):
    with serve(x_gz=ranged(DUMP, most=70_000, tag='"a"')) as server:  # five times, more than tries
        ranges = large(server, tmp_path)
        starts = [69_999, 139_998, 209_997, 279_996]  # each asks for one byte again
        assert ranges == [None, *(f"bytes={start}-" for start in starts)]
        large(server, tmp_path)
        assert len(server.asked["/x.gz"]) == 5  # it is there


def test_a_large_file_starts_afresh_without_ranges(tmp_path):
    with serve(x_gz=[cut(DUMP, 1000), status(500), body(DUMP)]) as server:
        assert large(server, tmp_path) == [None, "bytes=999-", "bytes=999-"]


def test_a_large_file_starts_afresh_where_it_changed(tmp_path):
    other = ranged(DUMP[::-1], most=5000, tag='"old"')
    with serve(x_gz=[other, ranged(DUMP, tag='"new"')]) as server:
        assert large(server, tmp_path) == [None, "bytes=4999-"]
        assert server.asked["/x.gz"][1][1]["If-Range"] == '"old"'


@pytest.mark.parametrize("length", [len(DUMP), len(DUMP) - 1, 1])
def test_a_part_of_any_length_goes_on(tmp_path, length):
    (tmp_path / "x.gz.part").write_bytes(DUMP[:length])
    with serve(x_gz=ranged(DUMP)) as server:
        large(server, tmp_path)


def test_a_part_that_cannot_be_continued_starts_afresh(tmp_path):
    part = tmp_path / "x.gz.part"
    part.write_bytes(b"longer" * 100_000)
    with serve(x_gz=ranged(DUMP)) as server:  # answers 416
        assert len(large(server, tmp_path)) == 2
    (tmp_path / "x.gz").unlink()
    part.write_bytes(b"other")

    def astray(handler):
        handler.begin(206, Content_Range=f"bytes 9-{len(DUMP)}/{len(DUMP)}", Content_Length=9)

    with serve(x_gz=[astray, ranged(DUMP)]) as server:
        assert large(server, tmp_path) == ["bytes=4-", None]


def test_a_large_file_that_cannot_be_had(tmp_path):
    path = tmp_path / "deep" / "x.gz"
    for answer, reason, asked in (
        (status(404), "HTTP 404", 1),
        (status(500), "HTTP 500", 3),
        (cut(DUMP, 0), "truncated", 3),
        (page(), "not gzipped", 1),
    ):
        with serve(x_gz=answer) as server:
            with pytest.raises(InputError, match=rf"/x\.gz: {reason}; check the address and"):
                fetch_large(server.url("/x.gz"), path, patience=PATIENT)
            assert len(server.asked["/x.gz"]) == asked
        assert not path.exists()
    for answer, reason in ((page(), "a page, no data"), (unannounced(b""), "empty")):
        with serve(x_csv=answer) as server, pytest.raises(InputError, match=reason):
            fetch_large(server.url("/x.csv"), tmp_path / "x.csv", patience=PATIENT)
    assert not list(tmp_path.glob("*.csv*"))


def test_progress_of_a_large_file_renews_the_tries_but_silence_does_not(tmp_path):
    with serve(x_gz=[ranged(DUMP, most=9000), *[ranged(DUMP, most=1)] * 9]) as server:
        with pytest.raises(InputError, match="truncated"):
            fetch_large(server.url("/x.gz"), tmp_path / "x.gz", patience=PATIENT)
        assert len(server.asked["/x.gz"]) == 1 + 3 - 1
    assert (tmp_path / "x.gz.part").read_bytes() == DUMP[:9000]


KILLED = """
import sys
from pathlib import Path
from mmjax.data.download.fetch import fetch_large
fetch_large(sys.argv[1], Path(sys.argv[2]))
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_fetch_goes_on(tmp_path, how):
    part = tmp_path / "x.gz.part"
    with serve(x_gz=[ranged(DUMP, most=200_000, stall=True), ranged(DUMP)]) as server:
        command = [sys.executable, "-c", KILLED, server.url("/x.gz"), str(tmp_path / "x.gz")]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
        while not part.exists() or part.stat().st_size < 100_000:
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(how)
        assert process.wait() != 0
        assert not (tmp_path / "x.gz").exists()
        have = part.stat().st_size
        assert large(server, tmp_path) == [None, f"bytes={have - 1}-"]


def test_ctrl_c_does_not_wait_for_the_threads(tmp_path, monkeypatch):
    """The first result comes with a KeyboardInterrupt, as if the user pressed it just then."""

    class Interrupted(download.Progress):
        def add(self, count, say=""):
            raise KeyboardInterrupt

    monkeypatch.setattr(download, "Progress", Interrupted)
    running = threading.active_count()
    slow = trickle(b"Content-Length: 9\r\n\r\n", b"")
    with serve(good_png=body(IMAGE), slow_png=slow, more_png=body(IMAGE)) as server:
        begin = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            fetch(server, tmp_path, ["good.png", "slow.png", "more.png"], connections=1)
        assert time.monotonic() - begin < 20  # the slow one would have been given 30 s
    while threading.active_count() > running:  # ends of itself, as the slow one hangs up
        time.sleep(0.01)
    assert "/more.png" not in server.asked
    assert [path.name for path in tmp_path.iterdir()] == ["good.png"]
