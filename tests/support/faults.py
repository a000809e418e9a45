"""A proxy in front of an HTTP server that injects faults: error statuses, stalls, and reset connections."""

from __future__ import annotations

import http.client
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal
from urllib.parse import urlsplit

type Fault = int | Literal["reset", "stall", "lost answer"] | None
"""An HTTP status; a reset; no answer at all; or a reset instead of the server's answer. None if there is no fault."""
type Plan = Callable[[int, str, str], Fault]
"""Returns the fault for a request, given its 0-based number, method and path."""


def never(_number: int, _method: str, _path: str) -> Fault:
    """Inject no faults."""
    return None


@dataclass
class Proxy:
    """Endpoint and fault plan of a running proxy, and its counts of requests and faults."""

    endpoint: str
    plan: Plan = never
    seen: int = 0
    faults: int = 0
    ignored: frozenset[str] = frozenset()
    """Lower-case names of headers that are not forwarded to the server."""
    over: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def follow(self, plan: Plan) -> None:
        """Switch to another plan, and reset the counts."""
        with self.lock:
            self.plan, self.seen, self.faults = plan, 0, 0

    def fault(self, method: str, path: str) -> Fault:
        """Return the fault for the next request, and count both."""
        with self.lock:
            fault = self.plan(self.seen, method, path)
            self.seen += 1
            self.faults += fault is not None
            return fault


@contextmanager
def before(endpoint: str) -> Iterator[Proxy]:
    """Run a proxy in front of the server at `endpoint`."""
    target = urlsplit(endpoint).netloc

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            match proxy.fault(self.command, self.path):
                case int(status):
                    self.answer(status, [], b"<Error><Code>InternalError</Code></Error>")
                case "reset":
                    self.hang_up()
                case "stall":
                    proxy.over.wait(60)
                    self.hang_up()
                case "lost answer":
                    self.forward(body)
                    self.hang_up()
                case _:
                    self.answer(*self.forward(body))

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_any

        def forward(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
            server = http.client.HTTPConnection(target, timeout=60)
            headers = {name: value for name, value in self.headers.items() if name.lower() not in proxy.ignored}
            server.request(self.command, self.path, body, headers)
            answer = server.getresponse()
            fields = [(k, v) for k, v in answer.getheaders() if k.lower() not in ("connection", "transfer-encoding")]
            content = answer.read()
            server.close()
            return answer.status, fields, content

        def answer(self, status: int, headers: list[tuple[str, str]], content: bytes) -> None:
            self.send_response_only(status)
            for name, value in headers:
                if name.lower() != "content-length" or self.command == "HEAD":
                    self.send_header(name, value)
            if self.command != "HEAD":
                self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def hang_up(self) -> None:
            self.close_connection = True
            # a linger time of 0 makes close() send a reset
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            self.connection.close()

        def finish(self) -> None:
            with suppress(OSError):  # after hang_up()
                super().finish()

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128

        def handle_error(self, *_: object) -> None:
            """Ignore errors, such as clients that close their connection."""

    with Server(("127.0.0.1", 0), Handler) as server:
        proxy = Proxy(f"http://127.0.0.1:{server.server_address[1]}")
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield proxy
        finally:
            proxy.over.set()
            server.shutdown()
            thread.join()
