"""Send one HTTP request; every failure is a Fault.

A Fault says whether another try may help.
"""

import contextlib
import email.utils
import functools
import http.client
import re
import socket
import ssl
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from typing import Any

import mmjax

PASSING = (408, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524)
UNREACHED = "no connection"
Response = http.client.HTTPResponse


class Fault(Exception):
    """Failure of one try.

    `passing` says whether it may pass. `asked_s` is the number of seconds that the server asks to
    wait. `advanced` says whether the try brought new bytes.
    """

    def __init__(self, reason: str, *, passing: bool = False, asked_s: float = 0):
        super().__init__(reason)
        self.passing, self.asked_s, self.advanced = passing, asked_s, False


def get(url: str, *, stall_s: float, headers: Mapping[str, str] | None = None) -> Response:
    """Send a GET request and return the response.

    At most ten redirects are followed. The caller closes the response.

    Args:
      stall_s: seconds for the connection, for all headers, and later for the next bytes.

    Raises:
      Fault: there is no successful response.
    """
    with _faults():
        # Spaces and the like are escaped as browsers do; existing escapes stay.
        escaped = urllib.parse.quote(url.strip(), safe="%/:=&?~#+!$,;'@()*[]")
        sent = {"User-Agent": f"mmjax/{mmjax.__version__}", **(headers or {})}
        return _opener().open(urllib.request.Request(escaped, headers=sent), timeout=stall_s)


def length(response: Response) -> int | None:
    """Return the announced number of bytes of the body, else None."""
    announced = response.headers.get("Content-Length", "")
    return int(announced) if _is_count(announced) else None


def chunks(
    response: Response,
    *,
    most_bytes: int | None = None,
    total_s: float | None = None,
) -> Iterator[bytes]:
    """Yield the body as it arrives.

    Raises:
      Fault: it is longer than `most_bytes`, takes longer than `total_s`, breaks off, or is
        shorter than announced.
    """
    announced, received, begin = length(response), 0, time.monotonic()
    while True:
        with _faults():
            # Returns what has arrived, so a slow trickle cannot block here.
            chunk = response.read1(1 << 16)
        if not chunk:
            break
        received += len(chunk)
        if most_bytes is not None and max(received, announced or 0) > most_bytes:
            raise Fault(f"larger than {most_bytes:,} bytes")
        if total_s is not None and time.monotonic() - begin > total_s:
            raise Fault("too slow", passing=True)
        yield chunk
    if announced is not None and received != announced:
        raise Fault("truncated", passing=True)


@contextlib.contextmanager
def _faults() -> Iterator[None]:
    """Turn exceptions of urllib and http.client into Fault."""
    try:
        yield
    except urllib.error.HTTPError as error:
        with contextlib.closing(error):
            looped = _Handler.inf_msg in str(error.msg)
            raise Fault(
                "redirect loop" if looped else f"HTTP {error.code}",
                passing=error.code in PASSING,
                asked_s=_asked(error.headers.get("Retry-After", "")),
            ) from None
    except urllib.error.URLError as error:
        if isinstance(error.reason, ssl.SSLCertVerificationError):
            raise Fault("untrusted certificate") from None
        if isinstance(error.reason, OSError):
            raise Fault(UNREACHED, passing=True) from None
        raise Fault("bad URL") from None
    except (http.client.InvalidURL, ValueError):
        raise Fault("bad URL") from None
    except TimeoutError:
        raise Fault("too slow", passing=True) from None
    except (http.client.HTTPException, OSError):
        raise Fault("connection lost", passing=True) from None


def _asked(header: str) -> float:
    """Return the seconds that a Retry-After header asks for.

    The header holds seconds or a date.
    """
    if _is_count(header):
        return float(header)
    with contextlib.suppress(TypeError, ValueError, OverflowError):
        return max(0.0, email.utils.parsedate_to_datetime(header).timestamp() - time.time())
    return 0.0


def _is_count(text: str) -> bool:
    return re.fullmatch(r"\d{1,18}", text, re.ASCII) is not None


class _Timely(http.client.HTTPConnection):
    """Connection whose response headers must arrive within the time-out.

    Otherwise the time-out would apply to each read.
    """

    def getresponse(self) -> Response:
        connection, late = self.sock, threading.Event()

        def hang_up() -> None:
            late.set()
            with contextlib.suppress(OSError):  # the server closed it first
                # Not TLS's own method, which takes the connection apart while it is read.
                socket.socket.shutdown(connection, socket.SHUT_RDWR)

        assert self.timeout is not None
        alarm = threading.Timer(self.timeout, hang_up)
        alarm.daemon = True
        alarm.start()
        try:
            response = super().getresponse()
        except (http.client.HTTPException, OSError):
            if late.is_set():
                raise TimeoutError from None
            raise
        finally:
            alarm.cancel()
        if late.is_set():  # http.client accepts headers that break off
            response.close()
            raise TimeoutError
        return response


class _Plain(_Timely, http.client.HTTPConnection):
    pass


class _Secure(_Timely, http.client.HTTPSConnection):
    pass


class _Handler(urllib.request.HTTPRedirectHandler, urllib.request.AbstractHTTPHandler):
    """Handler for HTTP and HTTPS with redirects, without files and FTP."""

    http_request = https_request = urllib.request.AbstractHTTPHandler.do_request_

    def http_open(self, req: urllib.request.Request) -> Response:
        return self.do_open(_Plain, req)

    def https_open(self, req: urllib.request.Request) -> Response:
        return self.do_open(_Secure, req, context=_context())

    def redirect_request(self, req: urllib.request.Request, fp: Any, *told: Any) -> Any:
        fp.close()  # its body is not needed, however long
        return super().redirect_request(req, fp, *told)


@functools.cache
def _context() -> ssl.SSLContext:
    return ssl.create_default_context()  # slow, so one is shared


@functools.cache
def _opener() -> urllib.request.OpenerDirector:
    """Return an opener that uses the environment's proxies."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        _Handler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.UnknownHandler(),
    ):
        opener.add_handler(handler)
    return opener
