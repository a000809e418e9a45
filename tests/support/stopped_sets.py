"""Interrupt the edit of a set of stores between two parts."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from vczstore.errors import Interrupted
from vczstore.stores.icechunk_history import IcechunkHistory


def stop_between_parts(monkeypatch: pytest.MonkeyPatch, call: Callable[[], object]) -> None:
    """Interrupt a call right before the second part becomes visible, in a set of Icechunk repositories."""
    publish, labels = IcechunkHistory.publish, list[str]()

    def stop(self: IcechunkHistory, *arguments: str) -> None:
        labels.append(self.label)
        if len(labels) == 2:
            raise KeyboardInterrupt
        publish(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(IcechunkHistory, "publish", stop)
        with pytest.raises(Interrupted, match="is done in chr1, and not in chr2"):
            call()
