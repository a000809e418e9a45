"""The ledger of a store: which batches and steps jobs have applied to it, so that none is applied twice.

It is an attribute of the root group, updated in the transaction that it records, and survives the expiry of history.
It never contains sample IDs. For removed samples see `plans.core.withdrawn`.
"""

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from vczstore.errors import DamagedStoreError
from vczstore.stores.edits import SetAttribute
from vczstore.vcz.model import Batch, Vcz

ATTRIBUTE = "vczstore_ledger"


@dataclass(frozen=True)
class Ledger:
    """
    Batches and steps that jobs have applied to a store.

    Attributes
    ----------
    sources
        For each batch (`Vcz.identity`) the states (`Vcz.stamp`) that were applied.
    steps
        Digests of other steps that were applied; see `step_digest`.
    pending
        Batches whose append has begun, in order, and their states: on plain Zarr it may be interrupted.
    """

    sources: Mapping[str, Sequence[str]] = field(default_factory=dict)
    steps: Sequence[str] = ()
    pending: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, vcz: Vcz) -> "Ledger":
        """
        Read the ledger of a store; empty if the store has none.

        Raises
        ------
        DamagedStoreError
            If the attribute is not a ledger.
        """
        value = vcz.attributes.get(ATTRIBUTE, {})
        try:
            return cls(
                {str(batch): [str(stamp) for stamp in stamps] for batch, stamps in value.get("sources", {}).items()},
                [str(digest) for digest in value.get("steps", [])],
                {str(batch): str(stamp) for batch, stamp in value.get("pending", {}).items()},
            )
        except (AttributeError, TypeError) as error:
            raise DamagedStoreError(
                f"{vcz.label}: the root attribute {ATTRIBUTE} is no ledger of jobs; delete it to begin a new one"
            ) from error

    def has(self, source: Batch, *, entirely: bool = False) -> bool:
        """Whether this state of a batch was applied; with `entirely`, not only the samples new to the store."""
        states = (source.stamp,) if entirely else (source.stamp, _partly(source.stamp))
        return any(state in self.sources.get(source.identity, ()) for state in states)

    def knows(self, source: Batch) -> bool:
        """Whether any state of a batch was applied."""
        return source.identity in self.sources

    def begun(self, sources: Sequence[Batch], partly: Collection[str] = ()) -> "Ledger":
        """The ledger with pending batches; of those with an identity in `partly` only the new samples are applied."""
        return replace(
            self, pending={s.identity: _partly(s.stamp) if s.identity in partly else s.stamp for s in sources}
        )

    def with_sources(self, sources: Sequence[Batch], partly: Collection[str] = ()) -> "Ledger":
        """The ledger with batches that were applied."""
        return self.begun(sources, partly).completed()

    def completed(self) -> "Ledger":
        """The ledger with the pending batches as applied, in their recorded states."""
        sources = dict(self.sources)
        for batch, stamp in self.pending.items():
            sources[batch] = [*sources.get(batch, ()), stamp]
        return replace(self, sources=sources, pending={})

    def with_step(self, digest: str) -> "Ledger":
        """The ledger with a step that was applied."""
        return replace(self, steps=list(dict.fromkeys([*self.steps, digest])))

    def edit(self, zarr_format: int) -> SetAttribute:
        """The edit that writes the ledger to the store."""
        value: dict[str, Any] = {"sources": dict(self.sources)}
        if self.steps:
            value["steps"] = list(self.steps)
        if self.pending:
            value["pending"] = dict(self.pending)
        return SetAttribute(ATTRIBUTE, value, zarr_format)


def _partly(stamp: str) -> str:
    """The recorded state of a batch whose new samples only were applied: an update still applies the others."""
    return f"{stamp} new samples only"


def step_digest(step: Any) -> str:
    """Return a digest of a step of a job file, and of the files that it names."""
    return quick_digest(json.dumps(step, sort_keys=True, default=str))


def quick_digest(text: str) -> str:
    """Return a digest of a text without sample IDs."""
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


def removal_digest(samples: Sequence[str]) -> str:
    """
    A digest of a set of samples.

    It outlives the samples, in the ID of a job, so it is deliberately slow to compute (scrypt, about 50 ms): each guess
    at the whole list of removed samples takes that long to test.
    """
    return slow_digest("\n".join(sorted(set(samples))))


def slow_digest(text: str) -> str:
    """A deliberately slow digest of a text that may contain sample IDs; see `removal_digest`."""
    content = text.encode(errors="surrogatepass")
    return hashlib.scrypt(content, salt=b"vczstore removal", n=2**14, r=8, p=1, dklen=16).hex()
