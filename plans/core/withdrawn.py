"""
Hashes of the IDs of samples removed from a store, so that no such sample is added again by mistake.

They are kept in an attribute of the root group, and keyed (see `vczstore.stores.withdrawal_key`): without the key, the
IDs cannot be guessed from the hashes. Hashing takes a microsecond, so that batches of any size can be checked; the
protection comes from the key, not from a slow hash.
"""

import hashlib
import unicodedata
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from plans.core.model import Plan, were, with_notes
from vczstore.errors import DamagedStoreError, SampleError, StorageError, UnsuitableError
from vczstore.stores.base import Store
from vczstore.stores.edits import MetadataEdit, SetAttribute
from vczstore.stores.withdrawal_key import VARIABLE, CreateKey, KeyPlace, from_environment, new_key
from vczstore.vcz import vcf_headers
from vczstore.vcz.model import Vcz, listing

ATTRIBUTE = "vczstore_withdrawn"


@dataclass(frozen=True)
class Withdrawn:
    """
    The removed samples of a store.

    Attributes
    ----------
    store
        The store.
    label
        The name of the store in messages.
    place
        The location of its key alongside the store; None if there is no such location.
    check
        A digest of the key, to recognise it; empty if there are no hashes yet.
    hashes
        The hashes of the IDs.
    stored_key
        The key, if it has to be kept in the store itself; else None.
    """

    store: Store = field(repr=False)
    label: str
    place: KeyPlace | None
    check: str = ""
    hashes: frozenset[str] = frozenset()
    stored_key: str | None = field(default=None, repr=False)

    @classmethod
    def of(cls, store: Store, vcz: Vcz) -> "Withdrawn":
        """
        Read the attribute of a store; the key is read lazily.

        Raises
        ------
        DamagedStoreError
            If the attribute is malformed.
        """
        value = vcz.attributes.get(ATTRIBUTE, {})
        hashes = value.get("hashes", []) if isinstance(value, dict) else None
        stored_key = value.get("key") if isinstance(value, dict) else None
        if not isinstance(hashes, list) or not isinstance(stored_key, str | None):
            raise DamagedStoreError(
                f"{vcz.label}: the root attribute {ATTRIBUTE} is no list of removed samples; restore it from a copy"
            )
        check = str(value.get("check", ""))
        return cls(store, vcz.label, KeyPlace.of(store), check, frozenset(map(str, hashes)), stored_key)

    @cached_property
    def _key(self) -> str:
        """
        The key of the existing hashes, or a new key if there are none.

        Raises
        ------
        StorageError
            If there are hashes whose key is not found.
        """
        for find in (from_environment, lambda: self.stored_key, lambda: self._key_beside, lambda: new_key(self.store)):
            if (key := find()) is not None and (not self.hashes or _check(key) == self.check):
                return key
        where = f" in {self.place}, nor" if self.place is not None else ""
        raise StorageError(
            f"{self.label} keeps hashes of {len(self.hashes):,} removed samples, and their key is not{where} in "
            f"{VARIABLE}, so whether one of them comes back cannot be seen; put the key there, or if it is lost, "
            f"delete the root attribute {ATTRIBUTE}, and with it what is known of these samples"
        )

    @cached_property
    def _key_beside(self) -> str | None:
        return None if self.place is None else self.place.read()

    def among(self, samples: Iterable[str], *, exactly: bool = False) -> list[str]:
        """
        The given samples that were removed, in their order, regardless of Unicode normalization.

        Unless `exactly`, surrounding spaces are ignored, too. Use `exactly` for earlier states of the store, in which
        IDs that differ only in spaces are distinct samples.
        """
        if not self.hashes:
            return []
        key, hashes_of = _derived(self._key), _exact if exactly else _hashes
        return [sample for sample in samples if not self.hashes.isdisjoint(hashes_of(key, sample))]

    def with_samples(self, samples: Iterable[str], stays: Collection[str]) -> "Withdrawn":
        """Add removed samples; `stays` are the IDs that remain in the store."""
        key = _derived(self._key)
        stored_key = self.stored_key
        if self.place is None and from_environment() != self._key:
            stored_key = self._key
        hashes = self.hashes.union(*(_new_hashes(key, sample, stays) for sample in samples))
        return replace(self, check=_check(self._key), hashes=hashes, stored_key=stored_key)

    def without_samples(self, samples: Iterable[str]) -> "Withdrawn":
        """Delete the hashes of samples that were added again."""
        key = _derived(self._key)
        readmitted = (digest for sample in samples for digest in _hashes(key, sample))
        return replace(self, hashes=self.hashes.difference(readmitted))

    def merged_with(self, other: "Withdrawn", operation: str) -> "Withdrawn":
        """
        Add the removed samples of another state or store.

        Raises
        ------
        SampleError
            If both have hashes, with different keys: hashes cannot be converted to another key.
        """
        if not self.hashes or not other.hashes:
            return self if self.hashes else replace(other, store=self.store, label=self.label, place=self.place)
        if self.check != other.check:
            raise SampleError(
                f"{operation}: {self.label} and what it is to become keep hashes of {len(self.hashes):,} and "
                f"{len(other.hashes):,} removed samples, made with different keys, so that they cannot be kept "
                "together; nothing was done, write it to a path of its own (export, copy-store-to-icechunk)"
            )
        return replace(self, hashes=self.hashes | other.hashes, stored_key=self.stored_key or other.stored_key)

    @property
    def value(self) -> dict[str, Any]:
        """The value of the attribute; empty if no sample was ever removed."""
        value: dict[str, Any] = {"check": self.check, "hashes": sorted(self.hashes)} if self.check else {}
        return value if self.stored_key is None else {**value, "key": self.stored_key}

    def recorded_in(self, vcz: Vcz) -> tuple[Vcz, SetAttribute]:
        """The VCZ with the new attribute, and the edit that writes it."""
        value = self.value
        attributes = {**vcz.attributes, ATTRIBUTE: value}
        return replace(vcz, attributes=attributes), SetAttribute(ATTRIBUTE, value, vcz.zarr_format)

    def key_edits(self) -> tuple[MetadataEdit, ...]:
        """The edit that writes the key alongside the store; empty if it is there already, or kept elsewhere."""
        if self.place is None or self.stored_key is not None or from_environment() == self._key:
            return ()
        return () if self._key_beside == self._key else (CreateKey(self.place, self._key),)


def _derived(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def _check(key: str) -> str:
    return hashlib.blake2b(b"check", key=_derived(key), person=b"withdrawal key", digest_size=8).hexdigest()


def _hash(key: bytes, sample: str, person: bytes = b"withdrawn sample") -> str:
    text = unicodedata.normalize("NFC", sample).encode()
    return hashlib.blake2b(text, key=key, person=person, digest_size=12).hexdigest()


_BARE = b"without spaces"
"""Personalisation of the hash of an ID stripped of spaces, to distinguish it from that of a sample with the bare ID."""


def _exact(key: bytes, sample: str) -> set[str]:
    return {_hash(key, sample)}


def _new_hashes(key: bytes, sample: str, stays: Collection[str]) -> set[str]:
    """The hashes to store for a removed ID: its own, and that of the bare ID unless another sample has that ID."""
    bare = sample.strip()
    return _exact(key, sample) if bare == sample or bare in stays else {*_exact(key, sample), _hash(key, bare, _BARE)}


def _hashes(key: bytes, sample: str) -> set[str]:
    """All hashes that may be stored for an ID, or for one that differs only in surrounding spaces."""
    bare = sample.strip()
    return {_hash(key, sample), _hash(key, bare), _hash(key, bare, _BARE)}


def recording_removal(plan: Plan, before: Vcz, samples: Sequence[str]) -> Plan:
    """The plan of a removal, with the hashes written first, so that an interrupted removal is known."""
    stays = set(before.sample_ids.tolist()).difference(samples)
    withdrawn = Withdrawn.of(plan.store, before).with_samples(samples, stays)
    after, edit = withdrawn.recorded_in(plan.after)
    note = f"the key of removed samples is kept in the store itself; to keep it elsewhere, set {VARIABLE}"
    plan = replace(plan, preparations=(*withdrawn.key_edits(), edit, *plan.preparations), after=after)
    return with_notes(plan, "" if withdrawn.stored_key is None else note)


def copying_key(plan: Plan, origin: Store, vcz: Vcz) -> Plan:
    """
    The plan of a copy of `origin`, which also copies the key alongside that store.

    Raises
    ------
    UnsuitableError
        If there is another key at the destination.
    """
    withdrawn, place = Withdrawn.of(origin, vcz), KeyPlace.of(plan.store)
    if not withdrawn.hashes or withdrawn.place is None or place is None:
        return plan
    key = withdrawn.place.read()
    if key is None or _check(key) != withdrawn.check or (existing := place.read()) == key:
        return plan
    if existing is not None:
        raise UnsuitableError(
            f"{plan.operation}: {place} is the key of another store's withdrawn samples, and {vcz.label} has its own; "
            "choose another path, or if that store is gone, delete the file"
        )
    return replace(plan, preparations=(CreateKey(place, key), *plan.preparations))


def overwriting(plan: Plan, before: Vcz, copied: Vcz) -> Plan:
    """
    The plan of a copy that replaces the store `before`: it keeps its hashes, and drops header lines with removed IDs.

    Raises
    ------
    SampleError
        If removed samples are in the copy.
    """
    withdrawn = Withdrawn.of(plan.store, before)
    if not withdrawn.hashes:
        return plan
    way_out = "copy to another path, or delete the repository first"
    returning_samples(plan.operation, plan.store, before, copied.sample_ids.tolist(), allow=False, way_out=way_out)
    present = {*copied.sample_ids.tolist()}
    removed = withdrawn.among({*vcf_headers.words(copied.attributes)} - present)
    header = vcf_headers.without(copied.attributes, removed, present) if removed else {}
    after, _ = withdrawn.merged_with(Withdrawn.of(plan.store, copied), plan.operation).recorded_in(plan.after)
    after = replace(after, attributes={**after.attributes, **header})
    edits = [SetAttribute(name, after.attributes[name], before.zarr_format) for name in (ATTRIBUTE, *header)]
    return replace(plan.recording((), tuple(edits)), after=after)


def returning_samples(
    operation: str, store: Store, vcz: Vcz, samples: Iterable[str], *, allow: bool, way_out: str
) -> list[str]:
    """
    The incoming samples that were removed before.

    Raises
    ------
    SampleError
        If there are any, and they are not allowed. The IDs are only in the hint, which jobs leave out.
    """
    returning = Withdrawn.of(store, vcz).among(samples)
    if returning and not allow:
        raise SampleError(
            f"{operation}: {len(returning):,} of the incoming samples {were(len(returning))} removed "
            f"from {vcz.label} before; {way_out}",
            f"removed were {listing(returning)}",
        )
    return returning


def readmitting(plan: Plan, before: Vcz, returning: Sequence[str]) -> Plan:
    """The plan, with the hashes of returning samples deleted and the samples counted."""
    if not returning:
        return plan
    after, edit = Withdrawn.of(plan.store, before).without_samples(returning).recorded_in(plan.after)
    counts = {**plan.counts, "samples returning": len(returning)}
    return replace(plan.recording((), (edit,)), after=after, counts=counts)


LEFT_OUT = "samples left out as removed before"
"""Key of `Plan.counts`."""


def counting_left_out(plan: Plan, before: Sequence[Vcz], after: Sequence[Vcz]) -> Plan:
    """The plan, with the number of samples that `without_returning` has dropped from its sources."""
    n = sum(source.n_samples for source in before) - sum(source.n_samples for source in after)
    return replace(plan, counts={**plan.counts, LEFT_OUT: n}) if n else plan


def without_returning(store: Store, vcz: Vcz, sources: Sequence[Vcz]) -> list[Vcz]:
    """The sources without samples that were removed from the store; sources that become empty are dropped."""
    withdrawn, result = Withdrawn.of(store, vcz), list[Vcz]()
    for source in sources:
        ids = source.sample_ids.tolist()
        returning = set(withdrawn.among(ids))
        rest = np.flatnonzero([sample not in returning for sample in ids])
        if len(rest) or not returning:
            result.append(source.select(rest) if returning else source)
    return result
