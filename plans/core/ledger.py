"""What jobs have done to a store, so that none does it twice: kept in the store, never a sample ID in it. Which samples
were removed is in `plans.core.withdrawn`.

The ledger is an attribute of the store's root group. It changes in the transaction that it tells of, and it stays
when history is expired.
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
    What jobs have done to a store.

    Attributes
    ----------
    sources
        For each batch (`Vcz.identity`) the states of it (`Vcz.stamp`) that have come in.
    steps
        Digests of other steps that were done; see `step_digest`.
    pending
        Batches whose append has begun, and their states, in their order: on plain Zarr it may be stopped half-way.
    """

    sources: Mapping[str, Sequence[str]] = field(default_factory=dict)
    steps: Sequence[str] = ()
    pending: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, vcz: Vcz) -> "Ledger":
        """
        Read the ledger of a store; an empty one where there is none.

        Raises
        ------
        DamagedStoreError
            If it is none of ours.
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
        """Whether this state of a batch has come in; `entirely`, with those of its samples that were there already."""
        states = (source.stamp,) if entirely else (source.stamp, _partly(source.stamp))
        return any(state in self.sources.get(source.identity, ()) for state in states)

    def knows(self, source: Batch) -> bool:
        """Whether some state of a batch has come in."""
        return source.identity in self.sources

    def begun(self, sources: Sequence[Batch], partly: Collection[str] = ()) -> "Ledger":
        """The ledger while batches are coming in, those of some identities without samples that are there already."""
        return replace(
            self, pending={s.identity: _partly(s.stamp) if s.identity in partly else s.stamp for s in sources}
        )

    def with_sources(self, sources: Sequence[Batch], partly: Collection[str] = ()) -> "Ledger":
        """The ledger with batches that have come in."""
        return self.begun(sources, partly).completed()

    def completed(self) -> "Ledger":
        """The ledger once what was pending has turned out to be in, in the states that it had then."""
        known = dict(self.sources)
        for batch, stamp in self.pending.items():
            known[batch] = [*known.get(batch, ()), stamp]
        return replace(self, sources=known, pending={})

    def with_step(self, digest: str) -> "Ledger":
        """The ledger with a step that was done."""
        return replace(self, steps=list(dict.fromkeys([*self.steps, digest])))

    def edit(self, zarr_format: int) -> SetAttribute:
        """What writes the ledger to its store."""
        value: dict[str, Any] = {"sources": dict(self.sources)}
        if self.steps:
            value["steps"] = list(self.steps)
        if self.pending:
            value["pending"] = dict(self.pending)
        return SetAttribute(ATTRIBUTE, value, zarr_format)


def _partly(stamp: str) -> str:
    """The state of a batch that has come in without samples that the store had: an update still brings these."""
    return f"{stamp} new samples only"


def step_digest(said: Any) -> str:
    """Return a digest of what a job file says of a step, and of the files that it names."""
    return hashlib.blake2b(json.dumps(said, sort_keys=True, default=str).encode(), digest_size=12).hexdigest()


def removal_digest(samples: Sequence[str]) -> str:
    """
    A digest of a list of samples, independent of its order.

    It outlives the samples, in the id of a job, so it is slow to compute on purpose (scrypt, some 50 ms): to find out
    by trial whether one person was removed takes that long for each guess at the whole list.
    """
    return slow_digest("\n".join(sorted(set(samples))))


def slow_digest(text: str) -> str:
    """A digest of what may name samples, slow to compute on purpose; see `removal_digest`."""
    content = text.encode(errors="surrogatepass")
    return hashlib.scrypt(content, salt=b"vczstore removal", n=2**14, r=8, p=1, dklen=16).hex()
