"""A web server on this machine that misbehaves as a test tells it to."""

import contextlib
import io
import os
import re
import threading
import time
from collections import defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from PIL import Image


class Server(ThreadingHTTPServer):
    """Answers each path by its routes, one after the other, the last for good; 404 elsewhere.

    routes: path -> an answer or a list of them; an answer is a function of the request handler.
    asked: path -> (time, headers) of every request so far.
    """

    daemon_threads = True
    request_queue_size = 100

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.routes, self.asked = {}, defaultdict(list)
        self.closing = threading.Event()

    def url(self, path):
        return f"http://127.0.0.1:{self.server_port}{path}"

    def handle_error(self, request, client_address):
        pass  # clients hang up on slow answers


@contextlib.contextmanager
def serve(**routes):
    """A running Server; keyword `a_png=...` becomes the route /a.png."""
    os.environ["no_proxy"] = "127.0.0.1"
    with Server() as server:
        for name, answers in routes.items():
            server.routes["/" + ".".join(name.rsplit("_", 1))] = answers
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.closing.set()
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        seen = server.asked[self.path]
        seen.append((time.monotonic(), dict(self.headers)))
        answers = server.routes.get(self.path, status(404))
        if isinstance(answers, list):
            answers = answers[min(len(seen), len(answers)) - 1]
        answers(self)

    def log_message(self, *args):
        pass

    def begin(self, code, **headers):
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()


def body(content, kind="image/png", **headers):
    """The content, as it should be."""

    def answer(handler):
        headers.setdefault("Content_Length", len(content))
        handler.begin(200, Content_Type=kind, **headers)
        handler.wfile.write(content)

    return answer


def status(code, **headers):
    return lambda handler: handler.begin(code, Content_Length=0, **headers)


def redirect(where, code=302):
    return status(code, Location=where)


def page():
    return body(b"<!DOCTYPE html><html>Are you a robot?</html>", "text/html")


def cut(content, at):
    """Announces all of the content and hangs up in the middle of it."""
    return body(content[:at], Content_Length=len(content))


def unannounced(content):
    """Without a length: the end of the connection is the end."""

    def answer(handler):
        handler.begin(200)
        handler.wfile.write(content)

    return answer


def trickle(head, drop=b"x", every_s=0.02):
    """Sends `head`, headers or part of them, then for ever a drop now and then, or nothing."""

    def answer(handler):
        handler.wfile.write(b"HTTP/1.0 200 OK\r\n" + head)
        while not handler.server.closing.wait(every_s):
            handler.wfile.write(drop)

    return answer


def ranged(content, *, most=None, tag="", stall=False):
    """Serves ranges, and at most `most` bytes of a request: then hangs up, or waits for ever."""

    def answer(handler):
        wanted = re.fullmatch(r"bytes=(\d+)-", handler.headers.get("Range", ""))
        same = handler.headers.get("If-Range", tag) == tag
        start = int(wanted[1]) if wanted and same else 0
        headers = {"ETag": tag} if tag else {}
        if start >= len(content):
            handler.begin(416, Content_Range=f"bytes */{len(content)}")
            return
        if wanted and same:
            headers["Content_Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        length = len(content) - start
        handler.begin(206 if wanted and same else 200, Content_Length=length, **headers)
        handler.wfile.write(content[start:][:most])
        if stall:
            handler.wfile.flush()
            handler.server.closing.wait()

    return answer


def picture(size=(8, 6), kind="PNG"):
    """The bytes of an image."""
    out = io.BytesIO()
    Image.linear_gradient("L").resize(size).convert("RGB").save(out, kind)
    return out.getvalue()
