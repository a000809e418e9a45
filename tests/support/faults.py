"""A proxy before an HTTP server that fails where it is told to: it answers with errors, stalls, or hangs up."""

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
"""A status; or a connection that is reset, that stays silent, or that is reset once the server has done its work."""
type Plan = Callable[[int, str, str], Fault]
"""What happens to a request, by its number (from 0 on), method and path."""


def never(_number: int, _method: str, _path: str) -> Fault:
    """No fault at all."""
    return None


@dataclass
class Proxy:
    """Where it listens, what it does to requests, and what it has seen."""

    endpoint: str
    plan: Plan = never
    seen: int = 0
    faults: int = 0
    ignored: frozenset[str] = frozenset()
    """Headers, in small letters, that the server does not get to see."""
    over: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def follow(self, plan: Plan) -> None:
        """Restart the count, and follow another plan."""
        with self.lock:
            self.plan, self.seen, self.faults = plan, 0, 0

    def fault(self, method: str, path: str) -> Fault:
        with self.lock:
            found = self.plan(self.seen, method, path)
            self.seen += 1
            self.faults += found is not None
            return found


@contextmanager
def before(endpoint: str) -> Iterator[Proxy]:
    """A proxy before a server."""
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
            found = server.getresponse()
            answered = [(k, v) for k, v in found.getheaders() if k.lower() not in ("connection", "transfer-encoding")]
            content = found.read()
            server.close()
            return found.status, answered, content

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
            # with nothing to linger for, what the other side gets is a reset
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            self.connection.close()

        def finish(self) -> None:
            with suppress(OSError):  # hung up before
                super().finish()

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128

        def handle_error(self, *_: object) -> None:
            """A client that hangs up is no news."""

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
