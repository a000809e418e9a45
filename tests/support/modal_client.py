"""Fixtures that restrict Modal's client to the servers of `tests.support.fake_modal`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.support.fake_modal import FakeModal


@pytest.fixture(autouse=True)
def no_token(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Hide the Modal account of the user running the tests, except from tests marked ``real_modal``."""
    if "real_modal" in request.keywords:
        return
    monkeypatch.setattr("modal.config._user_config", {})
    for name in [name for name in os.environ if name.startswith("MODAL_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("MODAL_SERVER_URL", "http://127.0.0.1:9")  # a port without a server


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., FakeModal]]:
    """Return a function that starts the servers and points the client to them."""
    import modal

    servers: list[FakeModal] = []

    def start(*args: Any, **options: Any) -> FakeModal:
        servers.append(FakeModal(*args, **options).__enter__())
        for name, value in servers[0].variables.items():
            monkeypatch.setenv(name, value)
        return servers[0]

    yield start
    if servers:
        modal.Client.from_env().close()
        servers[0].__exit__()
