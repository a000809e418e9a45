"""A local Azure Blob Storage: Azurite, Microsoft's emulator, installed from npm and run as a subprocess."""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from tests.support.paths import ROOT

AZURITE = "azurite@3.35.0"
CACHE = ROOT / "build" / "azurite"
ACCOUNT = "devstoreaccount1"
CREDENTIALS = {
    "AZURE_STORAGE_ACCOUNT_NAME": ACCOUNT,
    # Azurite's well-known key
    "AZURE_STORAGE_ACCOUNT_KEY": "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsu"
    "Fq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==",
}


@dataclass(frozen=True)
class AzureServer:
    """The endpoint of a running Azurite."""

    endpoint: str

    @property
    def options(self) -> dict[str, Any]:
        """Storage options to connect to the server."""
        return {"endpoint": self.endpoint, "account": ACCOUNT}

    def url(self, container: str) -> str:
        """Create a container; return its URL."""
        headers = {"x-ms-date": formatdate(usegmt=True), "x-ms-version": "2021-08-06"}
        canonical_headers = "".join(f"{name}:{value}\n" for name, value in headers.items())
        string_to_sign = "PUT" + "\n" * 12 + canonical_headers + f"/{ACCOUNT}/{ACCOUNT}/{container}\nrestype:container"
        key = base64.b64decode(CREDENTIALS["AZURE_STORAGE_ACCOUNT_KEY"])
        signature = base64.b64encode(hmac.digest(key, string_to_sign.encode(), hashlib.sha256)).decode()
        headers["Authorization"] = f"SharedKey {ACCOUNT}:{signature}"
        address = f"{self.endpoint}/{container}?restype=container"
        urllib.request.urlopen(urllib.request.Request(address, method="PUT", headers=headers)).close()
        return f"az://{container}"


def _install() -> Path:
    """Install Azurite into `CACHE`, once for all workers; return the path of its blob server script."""
    script = CACHE / AZURITE / "node_modules" / "azurite" / "dist" / "src" / "blob" / "main.js"
    CACHE.mkdir(parents=True, exist_ok=True)
    with FileLock(CACHE / "lock"):
        if not (CACHE / AZURITE / "ready").exists():
            command = [
                "npm",
                "install",
                "--prefix",
                str(CACHE / AZURITE),
                "--no-fund",
                "--no-audit",
                "--silent",
                AZURITE,
            ]
            subprocess.run(command, check=True)
            (CACHE / AZURITE / "ready").touch()
    return script


@pytest.fixture(scope="session")
def azurite() -> Iterator[AzureServer]:
    """A server for the whole session. Tests use `azure_server`, which also sets credentials in the environment."""
    if shutil.which("npm") is None and "CI" not in os.environ:
        pytest.skip("needs node and npm")
    script = _install()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    flags = ["--inMemoryPersistence", "--silent", "--skipApiVersionCheck", "--disableTelemetry"]
    command = ["node", str(script), "--blobHost", "127.0.0.1", "--blobPort", str(port), *flags]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            deadline = time.monotonic() + 60
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port), 1).close()
                    break
                except OSError:
                    assert process.poll() is None
                    assert time.monotonic() < deadline, "Azurite does not start"
                    time.sleep(0.05)
            yield AzureServer(f"http://127.0.0.1:{port}/{ACCOUNT}")
        finally:
            process.kill()


@pytest.fixture
def azure_server(azurite: AzureServer, monkeypatch: pytest.MonkeyPatch) -> AzureServer:
    """A running server, and credentials for it in the environment."""
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    return azurite
