"""
The samples that were removed from a store, so that none comes in again by mistake.

A store keeps hashes of their IDs in an attribute of its root group. They are keyed (see
`vczstore.stores.withdrawal_key`): who has the store without its key cannot find out by trial whose they are. A hash
takes a microsecond, so that a batch of any size is looked up at once; what makes guessing hopeless is the key.
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
from vczstore.stores.edits import Edit, SetAttribute
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
        Which store.
    label
        How messages call it.
    place
        Where its key lies; None if there is no such place.
    check
        What tells its key from others; empty if there are no hashes yet.
    hashes
        Of the IDs.
    inside
        The key itself, where there is no place for it but the store.
    """

    store: Store = field(repr=False)
    label: str
    place: KeyPlace | None
    check: str = ""
    hashes: frozenset[str] = frozenset()
    inside: str | None = field(default=None, repr=False)

    @classmethod
    def of(cls, store: Store, vcz: Vcz) -> "Withdrawn":
        """
        Read what a store keeps; its key is not looked for yet.

        Raises
        ------
        DamagedStoreError
            If it is none of ours.
        """
        value = vcz.attributes.get(ATTRIBUTE, {})
        hashes = value.get("hashes", []) if isinstance(value, dict) else None
        inside = value.get("key") if isinstance(value, dict) else None
        if not isinstance(hashes, list) or not isinstance(inside, str | None):
            raise DamagedStoreError(
                f"{vcz.label}: the root attribute {ATTRIBUTE} is no list of removed samples; restore it from a copy"
            )
        check = str(value.get("check", ""))
        return cls(store, vcz.label, KeyPlace.of(store), check, frozenset(map(str, hashes)), inside)

    @cached_property
    def _key(self) -> str:
        """
        The key of the hashes, or of those to come.

        Raises
        ------
        StorageError
            If there are hashes, and their key is in none of its places.
        """
        for find in (from_environment, lambda: self.inside, lambda: self._beside, lambda: new_key(self.store)):
            if (key := find()) is not None and (not self.hashes or _check(key) == self.check):
                return key
        where = f" in {self.place}, nor" if self.place is not None else ""
        raise StorageError(
            f"{self.label} keeps hashes of {len(self.hashes):,} removed samples, and their key is not{where} in "
            f"{VARIABLE}, so whether one of them comes back cannot be seen; put the key there, or if it is lost, "
            f"delete the root attribute {ATTRIBUTE}, and with it what is known of these samples"
        )

    @cached_property
    def _beside(self) -> str | None:
        return None if self.place is None else self.place.read()

    def among(self, samples: Iterable[str], *, exactly: bool = False) -> list[str]:
        """
        Those of some samples that were removed, in another Unicode form, too.

        Unless `exactly`, an ID that differs from a removed one in spaces around it is taken for that one. In an earlier
        state of the store they are two samples.
        """
        if not self.hashes:
            return []
        key, hashes_of = _derived(self._key), _exact if exactly else _hashes
        return [sample for sample in samples if not self.hashes.isdisjoint(hashes_of(key, sample))]

    def with_samples(self, samples: Iterable[str], stays: Collection[str]) -> "Withdrawn":
        """The same, with samples that are removed, where others stay."""
        key = _derived(self._key)
        inside = self.inside
        if self.place is None and from_environment() != self._key:
            inside = self._key
        hashes = self.hashes.union(*(_noted(key, sample, stays) for sample in samples))
        return replace(self, check=_check(self._key), hashes=hashes, inside=inside)

    def without(self, samples: Iterable[str]) -> "Withdrawn":
        """The same, without samples that are there again."""
        key = _derived(self._key)
        return replace(self, hashes=self.hashes.difference(one for sample in samples for one in _hashes(key, sample)))

    def together_with(self, other: "Withdrawn", operation: str) -> "Withdrawn":
        """
        The same, with the removed samples of another state or store.

        Raises
        ------
        SampleError
            If these are hashed with another key, since hashes cannot be turned into those of another.
        """
        if not self.hashes or not other.hashes:
            return self if self.hashes else replace(other, store=self.store, label=self.label, place=self.place)
        if self.check != other.check:
            raise SampleError(
                f"{operation}: {self.label} and what it is to become keep hashes of {len(self.hashes):,} and "
                f"{len(other.hashes):,} removed samples, made with different keys, so that they cannot be kept "
                "together; nothing was done, write it to a path of its own (export, copy-store-to-icechunk)"
            )
        return replace(self, hashes=self.hashes | other.hashes, inside=self.inside or other.inside)

    @property
    def value(self) -> dict[str, Any]:
        """What the attribute says; nothing if no sample was ever removed."""
        value: dict[str, Any] = {"check": self.check, "hashes": sorted(self.hashes)} if self.check else {}
        return value if self.inside is None else {**value, "key": self.inside}

    def noted(self, vcz: Vcz) -> tuple[Vcz, SetAttribute]:
        """The store as it will be, and what writes it."""
        value = self.value
        attributes = {**vcz.attributes, ATTRIBUTE: value}
        return replace(vcz, attributes=attributes), SetAttribute(ATTRIBUTE, value, vcz.zarr_format)

    def key_edits(self) -> tuple[Edit, ...]:
        """What puts the key beside the store, where it is not yet."""
        if self.place is None or self.inside is not None or from_environment() == self._key:
            return ()
        return () if self._beside == self._key else (CreateKey(self.place, self._key),)


def _derived(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def _check(key: str) -> str:
    return hashlib.blake2b(b"check", key=_derived(key), person=b"withdrawal key", digest_size=8).hexdigest()


def _hash(key: bytes, sample: str, person: bytes = b"withdrawn sample") -> str:
    text = unicodedata.normalize("NFC", sample).encode()
    return hashlib.blake2b(text, key=key, person=person, digest_size=12).hexdigest()


_BARE = b"without spaces"
"""Tells the hash of an ID from which spaces were taken from that of a sample that has this ID."""


def _exact(key: bytes, sample: str) -> set[str]:
    return {_hash(key, sample)}


def _noted(key: bytes, sample: str, stays: Collection[str]) -> set[str]:
    """Of an ID, and without spaces around it, so that it does not come back so, unless another sample has that ID."""
    bare = sample.strip()
    return _exact(key, sample) if bare == sample or bare in stays else {*_exact(key, sample), _hash(key, bare, _BARE)}


def _hashes(key: bytes, sample: str) -> set[str]:
    """All that an ID, or one that differs in spaces around it, may be known by."""
    bare = sample.strip()
    return {_hash(key, sample), _hash(key, bare), _hash(key, bare, _BARE)}


def withdrawing(plan: Plan, before: Vcz, samples: Sequence[str]) -> Plan:
    """A removal that the store remembers: first of all, so that one that is stopped is known."""
    stays = set(before.sample_ids.tolist()).difference(samples)
    withdrawn = Withdrawn.of(plan.store, before).with_samples(samples, stays)
    after, edit = withdrawn.noted(plan.after)
    where = f"the key of removed samples is kept in the store itself; to keep it elsewhere, set {VARIABLE}"
    plan = replace(plan, preparations=(*withdrawn.key_edits(), edit, *plan.preparations), after=after)
    return with_notes(plan, "" if withdrawn.inside is None else where)


def keeping_key(plan: Plan, origin: Store, vcz: Vcz) -> Plan:
    """
    The copy of a store, with the key that lies beside that one.

    Raises
    ------
    UnsuitableError
        If another key lies where this one is to be.
    """
    withdrawn, place = Withdrawn.of(origin, vcz), KeyPlace.of(plan.store)
    if not withdrawn.hashes or withdrawn.place is None or place is None:
        return plan
    key = withdrawn.place.read()
    if key is None or _check(key) != withdrawn.check or (there := place.read()) == key:
        return plan
    if there is not None:
        raise UnsuitableError(
            f"{plan.operation}: {place} is the key of another store's withdrawn samples, and {vcz.label} has its own; "
            "choose another path, or if that store is gone, delete the file"
        )
    return replace(plan, preparations=(CreateKey(place, key), *plan.preparations))


def overwriting(plan: Plan, before: Vcz, copied: Vcz) -> Plan:
    """
    A copy that takes the place of a store, whose removed samples it remembers, without header lines that name them.

    Raises
    ------
    SampleError
        If some of these are in the copy.
    """
    withdrawn = Withdrawn.of(plan.store, before)
    if not withdrawn.hashes:
        return plan
    way_out = "copy to another path, or delete the repository first"
    come_back(plan.operation, plan.store, before, copied.sample_ids.tolist(), allow=False, way_out=way_out)
    present = {*copied.sample_ids.tolist()}
    gone = withdrawn.among({*vcf_headers.words(copied.attributes)} - present)
    header = vcf_headers.without(copied.attributes, gone, present) if gone else {}
    after, _ = withdrawn.together_with(Withdrawn.of(plan.store, copied), plan.operation).noted(plan.after)
    after = replace(after, attributes={**after.attributes, **header})
    edits = [SetAttribute(name, after.attributes[name], before.zarr_format) for name in (ATTRIBUTE, *header)]
    return replace(plan.recording((), tuple(edits)), after=after)


def come_back(
    operation: str, store: Store, vcz: Vcz, samples: Iterable[str], *, allow: bool, way_out: str
) -> list[str]:
    """
    Those of the samples that come in that were removed before.

    Raises
    ------
    SampleError
        Saying how many they are, if they are not allowed; jobs leave out which ones.
    """
    back = Withdrawn.of(store, vcz).among(samples)
    if back and not allow:
        raise SampleError(
            f"{operation}: {len(back):,} of the samples that come in {were(len(back))} removed "
            f"from {vcz.label} before; {way_out}",
            f"removed were {listing(back)}",
        )
    return back


def readmitting(plan: Plan, before: Vcz, back: Sequence[str]) -> Plan:
    """A plan by which samples come in that were removed `before`; they count as removed no longer."""
    if not back:
        return plan
    after, edit = Withdrawn.of(plan.store, before).without(back).noted(plan.after)
    return replace(plan.recording((), (edit,)), after=after, counts={**plan.counts, "samples returning": len(back)})


LEFT_OUT = "samples left out as removed before"
"""What a plan counts."""


def counting_left_out(plan: Plan, before: Sequence[Vcz], after: Sequence[Vcz]) -> Plan:
    """A plan that says how many samples of its sources `without_returning` has left out."""
    n = sum(source.n_samples for source in before) - sum(source.n_samples for source in after)
    return replace(plan, counts={**plan.counts, LEFT_OUT: n}) if n else plan


def without_returning(store: Store, vcz: Vcz, sources: Sequence[Vcz]) -> list[Vcz]:
    """Sources without the samples that were removed from the store; one of which nothing is left is left out."""
    withdrawn, left = Withdrawn.of(store, vcz), list[Vcz]()
    for source in sources:
        ids = source.sample_ids.tolist()
        back = set(withdrawn.among(ids))
        rest = np.flatnonzero([sample not in back for sample in ids])
        if len(rest) or not back:
            left.append(source.select(rest) if back else source)
    return left
