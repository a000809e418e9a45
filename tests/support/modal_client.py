"""A client of Modal that reaches the servers of `tests.support.fake_modal` alone."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.support.fake_modal import FakeModal


@pytest.fixture(autouse=True)
def no_token(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Whoever runs the tests: no test reaches an account, but for the one that asks for it."""
    if "real_modal" in request.keywords:
        return
    monkeypatch.setattr("modal.config._user_config", {})
    for name in [name for name in os.environ if name.startswith("MODAL_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("MODAL_SERVER_URL", "http://127.0.0.1:9")  # a port without a server


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., FakeModal]]:
    """Starts the servers, which the client then talks to."""
    import modal

    begun: list[FakeModal] = []

    def start(*args: Any, **options: Any) -> FakeModal:
        begun.append(FakeModal(*args, **options).__enter__())
        for name, value in begun[0].variables.items():
            monkeypatch.setenv(name, value)
        return begun[0]

    yield start
    if begun:
        modal.Client.from_env().close()
        begun[0].__exit__()
