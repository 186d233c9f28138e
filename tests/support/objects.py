"""An S3-compatible store on this machine (moto), behind a proxy that fails as a test says."""

import contextlib
import http.client
import itertools
import logging
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

BUCKET = "bucket"
KEYS = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_REGION": "us-east-1",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


class Proxy(ThreadingHTTPServer):
    """Passes requests on to the store; `fail(method, path)` may name a status to answer instead."""

    daemon_threads = True
    request_queue_size = 100

    def __init__(self, port):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.store, self.failed = port, 0
        self.fail = lambda method, path: None

    def handle_error(self, request, client_address):
        pass


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def _pass_on(self):
        server, length = self.server, int(self.headers.get("Content-Length", 0))
        body = self.rfile.read(length)
        status = server.fail(self.command, self.path)
        if status is not None:
            server.failed += 1
            kind = {403: "AccessDenied", 503: "SlowDown"}[status]
            answer = f"<Error><Code>{kind}</Code><Message>{kind}</Message></Error>".encode()
            self._answer(status, {"Content-Type": "application/xml"}, answer)
            return
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", server.store)) as store:
            store.request(self.command, self.path, body, dict(self.headers))
            found = store.getresponse()
            self._answer(found.status, dict(found.getheaders()), found.read())

    def _answer(self, status, headers, body):
        self.send_response_only(status)
        for name, value in headers.items():
            if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                self.send_header(name, value)
        length = headers.get("Content-Length", "0") if self.command == "HEAD" else len(body)
        if status not in (204, 304):
            self.send_header("Content-Length", str(length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _pass_on

    def log_message(self, *args):
        pass


class Objects:
    """An empty bucket: `new` names places in it, `proxy` makes it fail."""

    def __init__(self, proxy):
        self.proxy, self._count = proxy, itertools.count()

    def new(self):
        """A URL that nobody has used."""
        return f"s3://{BUCKET}/{next(self._count)}"

    @contextlib.contextmanager
    def failing(self, fail):
        """Answers a request with the status that `fail(method, path)` names, if it names one."""
        self.proxy.fail, self.proxy.failed = fail, 0
        try:
            yield self.proxy
        finally:
            self.proxy.fail = lambda method, path: None


@contextlib.contextmanager
def serving():
    """A running store, in whose environment this program and its children are from now on."""
    server = pytest.importorskip("moto.server").ThreadedMotoServer(port=0, verbose=False)
    session = pytest.importorskip("botocore.session")
    pytest.importorskip("s3fs")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server.start()
    _, port = server.get_host_and_port()
    proxy = Proxy(port)
    thread = threading.Thread(target=proxy.serve_forever, args=(0.01,))
    thread.start()
    os.environ |= KEYS | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{proxy.server_port}"}
    try:
        client = session.get_session().create_client("s3")
        client.create_bucket(Bucket=BUCKET)
        client.close()
        yield Objects(proxy)
    finally:
        proxy.shutdown()
        thread.join()
        proxy.server_close()
        server.stop()
