"""A local S3 server with conditional writes: moto, run as a subprocess."""

from __future__ import annotations

import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import icechunk
import pytest
from obstore.store import S3Store

SERVER = """
import sys, threading
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import make_server

moto, one_at_a_time = DomainDispatcherApplication(create_backend_app), threading.Lock()

def app(environ, start_response):
    # moto does not check a condition and write atomically
    with one_at_a_time:
        return moto(environ, start_response)

server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=MotoRequestHandler)
threading.Thread(target=server.serve_forever, daemon=True).start()
print(server.port, flush=True)
sys.stdin.read()  # until the test process exits
"""
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "the-test-key", "AWS_SECRET_ACCESS_KEY": "the-test-secret"}


@dataclass(frozen=True)
class S3Server:
    """The endpoint of a running server."""

    endpoint: str

    @property
    def options(self) -> dict[str, Any]:
        """Storage options to connect to the server, for obstore and for Icechunk."""
        return {"endpoint": self.endpoint, "region": "us-east-1"}

    def url(self, bucket: str) -> str:
        """Create a bucket unless it exists; return its URL."""
        request = urllib.request.Request(f"{self.endpoint}/{bucket}", method="PUT")
        urllib.request.urlopen(request).close()
        return f"s3://{bucket}"

    def objects(self, url: str) -> S3Store:
        """The objects below a URL."""
        bucket, _, prefix = url.removeprefix("s3://").partition("/")
        http = {"allow_http": True}
        return S3Store(bucket, prefix=prefix or None, endpoint=self.endpoint, region="us-east-1", client_options=http)

    def storage(self, url: str) -> icechunk.Storage:
        """The storage of an Icechunk repository at a URL."""
        bucket, _, prefix = url.removeprefix("s3://").partition("/")
        access = {"endpoint_url": self.endpoint, "region": "us-east-1", "allow_http": True, "force_path_style": True}
        return icechunk.s3_storage(bucket=bucket, prefix=prefix, from_env=True, **access)


@contextmanager
def serve() -> Iterator[S3Server]:
    """Run an empty server on a free port."""
    command = [sys.executable, "-c", SERVER]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        try:
            yield S3Server(f"http://127.0.0.1:{port}")
        finally:
            process.kill()


@pytest.fixture(scope="session")
def moto() -> Iterator[S3Server]:
    """A server for the whole session. Tests use `s3_server`, which also sets credentials in the environment."""
    with serve() as server:
        yield server


@pytest.fixture
def s3_server(moto: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """A running server, and credentials for it in the environment."""
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    return moto


def variables(server: S3Server) -> dict[str, str]:
    """Environment variables with which a process can open the server's buckets by URL alone."""
    location = {"AWS_ENDPOINT_URL": server.endpoint, "AWS_REGION": "us-east-1", "AWS_ALLOW_HTTP": "true"}
    return {**CREDENTIALS, **location}
