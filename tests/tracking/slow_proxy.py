"""A proxy before an MLflow server that passes everything on, and answers batches of points late."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.error import HTTPError
from urllib.request import Request, urlopen


class SlowProxy:
    """`delay_s` is called with the number of the batch, counted from 1, and says how late its answer is."""

    def __init__(self, server_uri: str, delay_s: Callable[[int], float]) -> None:
        self.server_uri = server_uri
        self.delay_s = delay_s
        self.batches = 0
        self.uri = ""

    @contextmanager
    def serving(self) -> Iterator["SlowProxy"]:
        """Serve on a free port while the context lasts."""
        server = _Server(("127.0.0.1", 0), _Handler)
        server.proxy = self
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        self.uri = f"http://127.0.0.1:{server.server_address[1]}"
        try:
            yield self
        finally:
            server.shutdown()
            thread.join()
            server.server_close()


class _Server(ThreadingHTTPServer):
    proxy: SlowProxy


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_POST(self) -> None:
        request = Request(self._target(), self._body(), {"Content-Type": "application/json"})
        self._pass(request)

    def do_PUT(self) -> None:
        self._pass(Request(self._target(), self._body(), method="PUT"))

    def do_GET(self) -> None:
        self._pass(Request(self._target()))

    def _target(self) -> str:
        return self.server.proxy.server_uri + self.path

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers["Content-Length"]))

    def _pass(self, request: Request) -> None:
        try:
            with urlopen(request, timeout=30) as answer:
                status, content = answer.status, answer.read()
        except HTTPError as error:
            status, content = error.code, error.read()
        if self.path.endswith("log-batch"):
            self.server.proxy.batches += 1
            time.sleep(self.server.proxy.delay_s(self.server.proxy.batches))
        with suppress(BrokenPipeError, ConnectionResetError):  # the client gave up
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    def log_message(self, *arguments: object) -> None:
        pass
