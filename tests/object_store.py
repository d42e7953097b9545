"""A real S3 endpoint over HTTP (moto's server), and a proxy before it that loses requests and replies on purpose."""

import asyncio
import http.client
import logging
import re
import secrets
import socket
import struct
import sys
import threading
import urllib.request
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import pytest

from dist_trainer.adapters.storage import Storage


@pytest.fixture(scope="module")
def s3_endpoint() -> Iterator[str]:
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line per request
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


def stop_fsspec_threads() -> None:
    """End the event loop that fsspec keeps for the life of a process, and the threads it looks up hosts on."""
    from fsspec import asyn

    loop, thread = asyn.loop[0], asyn.iothread[0]
    if loop is not None and thread is not None:
        asyncio.run_coroutine_threadsafe(loop.shutdown_default_executor(), loop).result(timeout=10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(timeout=10)
        loop.close()
        asyn.loop[0] = asyn.iothread[0] = None


@pytest.fixture
def bucket(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of a new, empty bucket; the environment leads to the endpoint, as a user's would."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_endpoint)
    name = f"bucket-{secrets.token_hex(4)}"
    request = urllib.request.Request(f"{s3_endpoint}/{name}", method="PUT")
    urllib.request.urlopen(request).close()
    return f"s3://{name}"


@pytest.fixture
def open_storage() -> Iterator[Callable[..., Storage]]:
    """`Storage(...)`, closed with its threads when the test ends."""
    opened: list[Storage] = []

    def open_one(url: object, **options: object) -> Storage:
        opened.append(Storage(str(url), **{"retry_delays_s": (0.01, 0.01, 0.01), **options}))
        return opened[-1]

    yield open_one
    for storage in opened:
        storage.close()
    stop_fsspec_threads()


Fault = int | float | str


class FaultyProxy(ThreadingHTTPServer):
    """Passes requests on to `target`, except that each PUT first takes the next of `faults`:

    a status to answer with, "lose request", "lose reply", "hang" (the connection stays open, and no answer ever
    comes), a float (seconds that the answer is late), or "pass". Of an object whose name has a key of `faults_at`
    in it, the faults there are taken: the next of a list, or the same one every time. `watch(reached)` is called
    before each request of any kind is passed on, and again once the store has it. A new object is missing from so
    many listings as `hide_for` says of its name.
    """

    daemon_threads = False

    def __init__(self, target: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.target = urlsplit(target).netloc
        self.faults: deque[Fault] = deque()
        self.faults_at: dict[str, Fault | list[Fault]] = {}
        self.watch: Callable[[bool], None] = lambda reached: None
        self.hide_for: Callable[[str], int] = lambda name: 0
        self.closing = threading.Event()
        self._hidden: dict[str, int] = {}  # object -> how many more listings

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def next_fault(self, path: str) -> Fault:
        for part, faults in self.faults_at.items():
            if part in path:
                return faults if not isinstance(faults, list) else faults.pop(0) if faults else "pass"
        return self.faults.popleft() if self.faults else "pass"

    def put(self, path: str) -> None:
        """Note a new object."""
        name = unquote(path).lstrip("/").partition("/")[2]
        self._hidden[name] = self.hide_for(name)

    def as_before(self, listing: bytes) -> bytes:
        """The listing without what is hidden from it yet."""
        hidden, shown = set(), set()
        for key, left in self._hidden.items():
            (hidden if left else shown).add(key)

        def lacks(match: "re.Match[bytes]") -> bytes:
            key = unquote(match[2].decode())
            mine = {each for each in hidden if each == key or (key.endswith("/") and each.startswith(key))}
            if not mine or any(key.endswith("/") and each.startswith(key) for each in shown):
                return match[0]
            self._hidden.update({each: self._hidden[each] - 1 for each in mine})
            return b""

        entry = rb"(?s)<(Contents|CommonPrefixes)>.*?<(?:Key|Prefix)>(.*?)</(?:Key|Prefix)>.*?</\1>"
        return re.sub(entry, lacks, listing)

    def handle_error(self, *args: object) -> None:
        """A client that was killed is no error of ours."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(*args)  # type: ignore[arg-type]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FaultyProxy

    def log_message(self, *args: object) -> None:
        """Quiet."""

    def handle_any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.close_connection = True
        fault = self.server.next_fault(self.path) if self.command == "PUT" else "pass"
        if isinstance(fault, int):
            return self._answer(fault, {}, b"")
        if fault == "lose request":
            return self._reset()
        if fault == "hang":
            self.server.closing.wait()
            return self._reset()
        self.server.watch(False)
        status, headers, content = self._ask_store(body)
        self.server.watch(True)
        if isinstance(fault, float):
            self.server.closing.wait(fault)
        if fault == "lose reply":
            return self._reset()
        return self._answer(status, headers, content)

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = handle_any

    def _ask_store(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection(self.server.target, timeout=20)
        connection.request(self.command, self.path, body, dict(self.headers))
        reply = connection.getresponse()
        content = reply.read()
        connection.close()
        if self.command == "PUT" and reply.status == 200:
            self.server.put(urlsplit(self.path).path)
        if self.command == "GET" and "list-type=2" in self.path:
            content = self.server.as_before(content)
        return reply.status, dict(reply.headers), content

    def _answer(self, status: int, headers: dict[str, str], content: bytes) -> None:
        self.send_response(status)
        if self.command != "HEAD":
            headers["Content-Length"] = str(len(content))
        for name, value in headers.items():
            if name.lower() not in ("transfer-encoding", "connection", "date", "server"):
                self.send_header(name, value)
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(content)

    def _reset(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.rfile.close()


@contextmanager
def faulty_proxy(target: str) -> Iterator[FaultyProxy]:
    proxy = FaultyProxy(target)
    thread = threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield proxy
    finally:
        proxy.closing.set()
        proxy.shutdown()
        thread.join()
        proxy.server_close()
