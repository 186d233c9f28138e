"""Fetch files over HTTP, with retries and resumption.

Many small files are fetched at once, large ones in pieces. Every fetch ends, whatever a server
does.

A failure that may pass (429, 5xx, no or a lost connection, silence, a body shorter than announced)
is tried again after a wait that doubles, with jitter, or as long as the server asks. Every other
failure is final. A file appears by rename when it is complete, so an interrupted run continues
where it stopped.
"""

import functools
import queue
import random
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from mmjax.core import files
from mmjax.core.errors import InputError
from mmjax.core.progress import Progress
from mmjax.data.download import http
from mmjax.data.download.http import UNREACHED, Fault

HOPELESS = 40  # if so many first files get no connection, there is no network
Result = TypeVar("Result")


@dataclass(frozen=True)
class Patience:
    """Limits on retries and waiting times."""

    tries: int = 5  # of a small file; of a large one, tries in a row without new bytes
    wait_s: float = 1.0  # before the second try; doubles
    longest_wait_s: float = 60.0  # even where a server asks for more
    stall_s: float = 30.0  # for a connection, for all headers, and for the next bytes
    total_s: float = 120.0  # for the body of a small file

    def pause(self, tries: int, asked_s: float) -> float:
        """Return the seconds to wait after so many tries."""
        drawn = self.wait_s * 2 ** (tries - 1) * random.uniform(0.5, 1.5)
        return min(self.longest_wait_s, max(drawn, asked_s))


def fetch_all(
    jobs: Sequence[tuple[str, Path]],
    *,
    what: str = "files",
    connections: int = 16,
    most_bytes: int = 20 << 20,
    check: Callable[[bytes], str] = lambda body: "",
    patience: Patience | None = None,
) -> dict[Path, str]:
    """Fetch missing small files over several connections at once.

    Args:
      jobs: (URL, the file to write) pairs; existing files are skipped.
      most_bytes: a longer body is a failure.
      check: returns what is wrong with a body, "" for nothing; a fault is final.

    Returns:
      Path -> reason in a few words, for each file that could not be fetched.

    Raises:
      InputError: a file cannot be written, or there seems to be no network at all.
    """
    patience = patience or Patience()
    todo: queue.SimpleQueue[tuple[str, Path]] = queue.SimpleQueue()
    results: queue.SimpleQueue[tuple[Path, str | Exception]] = queue.SimpleQueue()
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            try:
                url, path = todo.get_nowait()
            except queue.Empty:
                return
            attempt = functools.partial(_body, url, most_bytes, check, patience)
            try:
                files.write_bytes(path, _persist(attempt, patience, stop))
                results.put((path, ""))
            except Fault as fault:
                results.put((path, str(fault)))
            except Exception as error:  # raised again in the caller's thread, which ends the call
                results.put((path, error))

    missing = [(url, path) for url, path in jobs if not path.exists()]
    for job in missing:
        todo.put(job)
    # Daemons, so that Ctrl-C need not wait for them.
    threads = [
        threading.Thread(target=work, daemon=True) for _ in range(min(connections, len(missing)))
    ]
    failed: dict[Path, str] = {}
    try:
        for thread in threads:
            thread.start()
        with Progress(what, len(jobs), unit="file", done=len(jobs) - len(missing)) as progress:
            for count in range(1, len(missing) + 1):
                path, result = results.get()
                if isinstance(result, Exception):
                    raise result
                if result:
                    failed[path] = result
                progress.add(1, f"({len(failed):,} failed)" if failed else "")
                if count == HOPELESS and list(failed.values()) == [UNREACHED] * count:
                    raise InputError(
                        f"none of the first {count} {what} could be reached; check the network, "
                        "or leave --download out"
                    )
    finally:
        stop.set()
    for thread in threads:
        thread.join()
    return failed


def count_reasons(reasons: Iterable[str]) -> str:
    """Return reasons with counts, as in `3 HTTP 404, 1 truncated`.

    The most frequent comes first.
    """
    return ", ".join(f"{count:,} {reason}" for reason, count in Counter(reasons).most_common())


def fetch_large(url: str, path: Path, *, patience: Patience | None = None) -> None:
    """Fetch one large file by way of NAME.part.

    An existing file is not fetched. The part is continued by Range, in the next try and in the next
    run, if the server supports ranges and still has the same file (by its ETag or Last-Modified,
    kept in NAME.part.tag).

    Raises:
      InputError: the file cannot be fetched, is a page instead, or cannot be written.
    """
    if path.exists():
        return
    patience = patience or Patience()
    part, tag = path.with_name(f"{path.name}.part"), path.with_name(f"{path.name}.part.tag")
    attempt = functools.partial(_continue, url, part, tag, patience)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _persist(attempt, patience, threading.Event())
        with open(part, "rb") as content:
            fault = _not_data(path.name, content.read(1024))
        if fault:
            part.unlink()
        else:
            part.rename(path)
        tag.unlink(missing_ok=True)
    except Fault as lasting:
        fault = str(lasting)
    except OSError as error:
        raise InputError(f"{error.filename or path} cannot be written ({error.strerror})") from None
    if fault:
        raise InputError(f"{url}: {fault}; check the address and the network, then run it again")


def _persist(attempt: Callable[[], Result], patience: Patience, stop: threading.Event) -> Result:
    tries = 0
    while True:
        try:
            return attempt()
        except Fault as fault:
            tries = 1 if fault.advanced else tries + 1
            if not fault.passing or tries >= patience.tries:
                raise
            if stop.wait(patience.pause(tries, fault.asked_s)):
                raise


def _body(url: str, most_bytes: int, check: Callable[[bytes], str], patience: Patience) -> bytes:
    with http.get(url, stall_s=patience.stall_s) as response:
        received = http.chunks(response, most_bytes=most_bytes, total_s=patience.total_s)
        body = b"".join(received)
    fault = check(body)
    if fault:
        raise Fault(fault)
    return body


def _continue(url: str, part: Path, tag: Path, patience: Patience) -> None:
    """Append the bytes that the part lacks."""
    size = part.stat().st_size if part.exists() else 0
    start = max(0, size - 1)  # reads one byte again: servers refuse a range that would be empty
    headers = {}
    if start:
        headers["Range"] = f"bytes={start}-"
        if tag.exists():
            headers["If-Range"] = tag.read_text()
    try:
        answer = http.get(url, stall_s=patience.stall_s, headers=headers)
    except Fault as fault:
        if str(fault) != "HTTP 416":
            raise
        part.unlink()
        raise Fault("another file than before", passing=True) from None
    with answer as response:
        if response.status != 206:
            start = 0
        elif not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            part.unlink()
            raise Fault("another range than asked for", passing=True)
        _keep_tag(response, tag)
        announced = http.length(response)
        total = 0 if announced is None else max(1, (start + announced) >> 20)
        with (
            open(part, "r+b" if start else "wb") as out,
            Progress(part.stem, total, unit="megabyte", done=start >> 20) as progress,
        ):
            out.seek(start)
            try:
                for chunk in http.chunks(response):
                    out.write(chunk)
                    out.flush()  # so that a kill keeps what has arrived
                    advance = min(total, out.tell() >> 20) - progress.done
                    if advance > 0:
                        progress.add(advance)
            except Fault as fault:
                fault.advanced = out.tell() > size
                raise


def _keep_tag(response: http.Response, tag: Path) -> None:
    """Save the tag by which an unchanged file is recognized.

    It is the ETag or, if that is weak, Last-Modified. A weak ETag does not prove that single bytes
    are the same.
    """
    validator = response.headers.get("ETag", "")
    if not validator or validator.startswith("W/"):
        validator = response.headers.get("Last-Modified", "")
    if validator:
        tag.write_text(validator)
    else:
        tag.unlink(missing_ok=True)


def _not_data(name: str, head: bytes) -> str:
    if not head:
        return "empty"
    if name.endswith(".gz") and not head.startswith(b"\x1f\x8b"):
        return "not gzipped"
    return "a page, no data" if re.match(rb"\s*<(!doctype|html)", head, re.IGNORECASE) else ""
