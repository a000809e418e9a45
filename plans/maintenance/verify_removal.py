"""
Verify a removal: read every object of a store, to show that no trace of the removed samples is left.

What is checked:

- IDs of four bytes and more: searched for in the key and the bytes of every object, in the compressed data in it, and
  in the strings of the present state; encoded as UTF-8, with JSON escapes, and as UTF-32 (NumPy's fixed-width strings).
  An occurrence within the ID of another sample of the store is no finding.
- Shorter IDs: compared with whole sample IDs only, in every reachable snapshot. "1" is also a contig name, and occurs
  in most objects by chance.
- Values: at the positions of all removed samples, every array is missing.
- History, on Icechunk: no reachable snapshot has the samples, and there are no unreferenced objects.
"""

import hashlib
import json
import re
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from zarr.types import AnyArray

from plans.core.chunk_grid import chunk_regions
from vczstore.errors import DamagedStoreError, NotAStoreError, SampleError, StaleError
from vczstore.reports import page
from vczstore.sizes import human_size
from vczstore.stores.base import Location, Store
from vczstore.stores.leftovers import half_written, leftovers
from vczstore.stores.listing import Objects
from vczstore.stores.locations import folder_of
from vczstore.vcz import arrays, encoded_chunks, pipeline, vcf_headers
from vczstore.vcz.frames import contents
from vczstore.vcz.missing import is_missing
from vczstore.vcz.model import REMOVED, SAMPLE_ID, Vcz, listing, samples_axis
from vczstore.vcz.sample_ids import spellings, spelt_otherwise

SHORT = 4
"""IDs with fewer bytes are not searched for in the bytes of objects."""

MANY = 50
"""With fewer distinct prefixes of IDs than this, data are searched for each prefix before the full pattern."""

SHOWN = 10
"""Maximum number of places to list for each kind of finding."""
LONGEST = 1000
"""IDs are cut to this many characters for the search: compiling a pattern of a million takes seconds."""


@dataclass(frozen=True)
class Verification:
    """
    The result of verifying a removal. It never contains a sample ID.

    Attributes
    ----------
    store, backend
        Label of the store, and its storage backend.
    reasons
        Why the samples are not erased; empty if they are.
    not_checked
        What was not checked, or cannot be.
    figures
        Counts of what was checked and found, by name.
    digest
        SHA-256 over a line ``KEY<tab>SIZE<tab>SHA-256<newline>`` for each object, sorted by key.
    snapshot
        The present snapshot of the store; None on plain Zarr.
    started, seconds
        Start as an ISO time, and elapsed time.
    versions
        Versions of vczstore and of packages that it depends on.
    """

    store: str
    backend: str
    reasons: tuple[str, ...]
    not_checked: tuple[str, ...]
    figures: Mapping[str, int | float]
    digest: str
    snapshot: str | None
    started: str
    seconds: float
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def erased(self) -> bool:
        """Whether no trace of the samples was found."""
        return not self.reasons

    @property
    def verdict(self) -> str:
        return "erased" if self.erased else "not erased"

    def as_dict(self) -> dict[str, Any]:
        values = asdict(self)
        return {"verdict": self.verdict, "sha256": values.pop("digest"), **values}

    @property
    def ok(self) -> bool:
        return self.erased

    def lines(self) -> list[str]:
        figures = {n: f"{v:,}" if isinstance(v, int) else f"{v:.2g}" for n, v in self.figures.items()}
        return [
            f"verify-removal {self.store}: {self.verdict}",
            *(f"  found        {reason}" for reason in self.reasons),
            *(f"  not checked  {what}" for what in self.not_checked),
            *(f"  {name:<46} {value}" for name, value in figures.items()),  # aligned for any figure
            f"  sha256       {self.digest}",
        ]


def verify(
    url: Location, store: Store, samples: Sequence[str], options: Mapping[str, Any], report: Path | None
) -> Verification:
    """
    Read all objects of a store, and search for traces of removed samples.

    Parameters
    ----------
    url, store, options
        Path or URL of the store, the store opened, and its storage options.
    samples
        The sample IDs to search for. They are not stored anywhere.
    report
        Folder for ``report.json`` and ``report.html``; None for no report.

    Raises
    ------
    SampleError
        If there are no IDs, or one contains a tab.
    DamagedStoreError
        If a chunk cannot be decoded.
    StaleError
        If the store changes while it is read.
    """
    began, started = time.perf_counter(), datetime.now(UTC).isoformat(timespec="seconds")
    ids = frozenset(samples) - {REMOVED}
    if not ids:
        raise SampleError("verify-removal: no samples named; give a file of sample IDs with --samples-file")
    place = store.place if store.group else url
    objects = Objects.at(place, options)
    vcz = store.open()
    if any("\t" in sample for sample in ids):
        raise SampleError("verify-removal: a line of the list has a tab; give one sample ID in a line, nothing else")
    look = _Look(ids, _Needles(frozenset[str]().union(*map(spellings, ids)) - {REMOVED}, vcz.sample_ids.tolist()))
    sizes = objects.sizes()
    digest = look.at_objects(objects, sizes)
    look.at_leftovers(place)
    try:
        look.at_present(vcz)
    except pipeline.DamagedChunkError as error:
        raise DamagedStoreError(f"verify-removal: {error}; restore it, or remove the array that it is of") from error
    if store.history.is_kept:
        look.at_history(store, sizes)
    else:
        look.at_grid(vcz, sizes)
    if store.open().state != vcz.state or objects.sizes() != sizes:
        raise StaleError(f"verify-removal: {store.label} was changed while it was read; run it again")
    result = Verification(
        store=look.shown(store.label),
        backend=store.backend,
        reasons=tuple(look.reasons),
        not_checked=tuple(look.not_checked),
        figures=look.figures,
        digest=digest,
        snapshot=vcz.snapshot,
        started=started,
        seconds=round(time.perf_counter() - began, 3),
        versions={package: version(package) for package in ("vczstore", "icechunk", "numcodecs", "numpy", "zarr")},
    )
    if report is not None:
        figures = {name: _shown(name, n) for name, n in result.figures.items()}
        page.write(report, result.as_dict(), "verification.html.j2", found=result, figures=figures)
    return result


@dataclass
class _Look:
    """Collects findings and figures while objects and states of the store are searched."""

    ids: frozenset[str]
    needles: "_Needles"
    reasons: list[str] = field(default_factory=list)
    not_checked: list[str] = field(default_factory=list)
    figures: dict[str, int | float] = field(default_factory=dict)

    def shown(self, text: str) -> str:
        """Return a text for the report, or a placeholder if it contains an ID."""
        return "(a name that holds an ID)" if self.needles.count(text.encode(errors="surrogateescape")) else text

    def at_objects(self, objects: Objects, sizes: Mapping[str, int]) -> str:
        """Search every object, and return the digest over all of them."""
        digest, holding = hashlib.sha256(), dict[str, None]()
        hidden = versions = searched = 0
        for key, data, object_version in objects.read(sizes):
            digest.update(f"{key}\t{len(data)}\t{hashlib.sha256(data).hexdigest()}\n".encode(errors="surrogateescape"))
            versions += object_version is not None
            hidden += self.needles.count(key.encode(errors="surrogateescape")) > 0
            for text in contents(data):
                searched += len(text)
                if self.needles.count(text):
                    holding[key] = None
        by_chance = self.needles.expected(searched)
        self.figures |= {
            "IDs": len(self.ids),
            "IDs too short to look for in bytes": len(self.ids) - self.needles.n_ids,
            "objects read": len(sizes),
            "bytes read": sum(sizes.values()),
            "bytes searched, decompressed ones included": searched,
            "findings to be expected by chance": by_chance,
            "objects that hold an ID": len(holding),
        }
        if holding:
            chance = f"; by chance alone, {by_chance:.2g} findings are to be expected" if by_chance > 0.01 else ""
            self.reasons.append(
                f"{_n(holding, 'object', 'holds', 'hold')} an ID: {_places(map(self.shown, holding))}{chance}"
            )
        if hidden:
            self.reasons.append(f"an ID is part of the keys of {_n(hidden, 'object')}")
        if self.needles.n_ids < len(self.ids):
            self.not_checked.append(
                f"{_n(len(self.ids) - self.needles.n_ids, 'ID')} of fewer than {SHORT} bytes: looked for as whole "
                "sample IDs, not in the bytes of objects, where they are by chance"
            )
        self.at_versions(objects.kind, versions)
        return digest.hexdigest()

    def at_leftovers(self, url: Location) -> None:
        """Report partial files of killed processes, and leftovers of an interrupted replacement of the folder."""
        path = folder_of(url)
        n = 0 if path is None else sum(1 for _ in half_written(path))
        if n:
            self.reasons.append(
                f"{_n(n, 'file', 'is', 'are')} half written, left by a process that was killed, or goes on; "
                f"vczstore purge {self.shown(str(url))}"
            )
        if path is not None and leftovers(path):
            self.reasons.append(
                "a run that was stopped, or goes on, has left files next to the store; "
                f"vczstore repair {self.shown(str(url))}"
            )

    def at_versions(self, kind: str | None, versions: int) -> None:
        """Report old versions of objects that were deleted or replaced, and storage that cannot be checked."""
        if kind in ("s3", "az") and versions:
            self.reasons.append(
                f"the bucket keeps old versions of objects ({_n(versions, 'object')} here have one): what was deleted "
                "or replaced can be read by its version; delete the versions that are not current"
            )
        elif kind is not None and kind != "s3":
            # S3 reports a version ID where versioning is on; a generation on Google Cloud does not imply old versions
            self.not_checked.append(
                "old versions of objects, and objects deleted softly: the object store does not list them"
            )
        if kind is not None:
            # obstore uploads objects over 5 MB in parts, and cannot list incomplete multipart uploads
            self.not_checked.append(
                "uploads in parts that were begun and never completed: they are no objects; a lifecycle rule of the "
                "bucket can end them, which deletes their parts"
            )
        self.not_checked.append(
            "backups, replicas and copies elsewhere, and what storage itself keeps of deleted files"
        )
        self.not_checked.append("the spelling of the IDs: one that the store never had is not found, either")

    def at_present(self, vcz: Vcz) -> None:
        """Search the present state: sample IDs, strings, VCF headers, and the values of removed samples."""
        names = [name for name, array in (*vcz.arrays.items(), *vcz.inner.items()) if self._in_strings(array)]
        if names:
            self.reasons.append(f"an ID is in the strings of {_n(names, 'array')}: {_places(map(self.shown, names))}")
        if headers := vcf_headers.without(vcz.attributes, self.ids, frozenset(vcz.sample_ids.tolist()) - self.ids):
            self.reasons.append(
                f"lines of the VCF's header name the samples, in the {_s(headers, 'attribute', 'attributes')} "
                f"{_places(map(self.shown, headers))}; vczstore repair {self.shown(vcz.label)} drops those of samples "
                "that the store knows to be removed"
            )
        if left := len(self.ids.intersection(vcz.sample_ids.tolist())):
            self.reasons.append(
                f"{_n(left, 'ID', 'is', 'are')} in {SAMPLE_ID} now; vczstore remove {self.shown(vcz.label)}"
            )
        self._at_other_spellings(vcz.sample_ids[vcz.sample_ids != REMOVED].tolist())
        if vcz.out_of_reach:
            self.reasons.append(
                f"values cannot be assigned to samples in {_places(map(self.shown, vcz.out_of_reach))}: "
                f"{_s(vcz.out_of_reach, 'it has', 'they have')} no samples dimension, or "
                f"{_s(vcz.out_of_reach, 'lies', 'lie')} in a group within the store; vczstore verify "
                f"{self.shown(vcz.label)} gives details"
            )
        removed = np.flatnonzero(vcz.sample_ids == REMOVED)
        values, wrong = 0, Counter[str]()
        for name, array in vcz.samples_arrays.items():
            if name != SAMPLE_ID:
                for block in _values_at(array, removed):
                    values += block.size
                    wrong[name] += int(np.count_nonzero(~is_missing(name, array, block)))
        affected = [name for name in wrong if wrong[name]]
        if affected:
            self.reasons.append(
                f"removed samples have {_n(wrong.total(), 'value')} that {_s(wrong.total(), 'is', 'are')} not missing, "
                f"in {_places(map(self.shown, affected))}; vczstore repair {self.shown(vcz.label)} makes them missing, "
                "where there is such a value"
            )
        self.figures |= {
            "removed samples": len(removed),
            "arrays with a samples dimension": len(vcz.samples_arrays),
            "values of removed samples": values,
            "values of removed samples that are not missing": wrong.total(),
        }

    def _at_other_spellings(self, samples: Sequence[str]) -> None:
        """Report samples of the store whose IDs differ from listed ones only in spelling or case."""
        others = self.ids.difference(samples)
        if respelt := spelt_otherwise(others, samples):
            self.reasons.append(
                f"{_n(respelt, 'line')} of the list {_s(respelt, 'is', 'are')} in {SAMPLE_ID} now in another spelling "
                "(quotes, columns, invisible characters, Unicode form); write the IDs as vczstore samples does"
            )
        if cases := {other.casefold() for other in others}.intersection(map(str.casefold, samples)):
            self.not_checked.append(
                f"{_n(cases, 'ID')} that {_s(cases, 'is', 'are')} in {SAMPLE_ID} in letters of another case: whether "
                "the same sample is meant"
            )

    def _in_strings(self, array: AnyArray) -> bool:
        """Whether an ID occurs in the decoded values of an array of strings."""
        if array.dtype.kind not in "OTUS":
            return False
        for region in chunk_regions(array, {}):
            texts = arrays.read(array, region).ravel().tolist()
            if self.needles.count(b"\0".join(t if isinstance(t, bytes) else str(t).encode() for t in texts)):
                return True
        return False

    def _is_in(self, store: Store, snapshot: str) -> bool:
        """Whether a snapshot has a sample with one of the IDs, in any spelling."""
        try:
            samples = store.open(snapshot).sample_ids.tolist()
        except NotAStoreError:
            return False  # the first snapshot of a repository is empty, and groups are created later
        return not self.ids.isdisjoint(samples) or bool(spelt_otherwise(self.ids, {*samples} - {REMOVED}))

    def at_history(self, store: Store, sizes: Mapping[str, int]) -> None:
        """Check the sample IDs of every reachable snapshot, and look for unreferenced objects."""
        snapshots = store.history.reachable()
        folders: dict[str, set[str]] = {"snapshots": set(), "manifests": set()}
        for key in sizes:
            folder, _, name = key.partition("/")
            folders.get(folder, set()).add(name)
        unreferenced = store.history.unreachable(snapshots, folders)
        with_ids = [s for s in snapshots if any(self._is_in(other, s) for other in store.sharing_history())]
        label = self.shown(store.label)
        if with_ids:
            self.reasons.append(
                f"{_n(with_ids, 'snapshot', 'has', 'have')} the samples: {_places(with_ids)}; vczstore purge {label}"
            )
        if any(unreferenced.values()):
            counts = ", ".join(_n(n, what) for what, n in unreferenced.items() if n)
            self.reasons.append(f"there are unreferenced objects: {counts}; vczstore purge {label}")
        self.figures |= {
            "snapshots that can be reached": len(snapshots),
            **{f"{what}s, unreferenced": n for what, n in unreferenced.items()},
        }

    def at_grid(self, vcz: Vcz, sizes: Mapping[str, int]) -> None:
        """On plain Zarr, count chunks outside the grids of arrays, and objects that belong to no array."""
        outside = foreign = 0
        for key in sizes:
            head, _, name = key.partition("/")
            if key in _DOCUMENTS or name in _DOCUMENTS:
                continue
            array = vcz.arrays.get(head)
            coords = None if array is None else encoded_chunks.coords_of(array, key)
            if array is None or coords is None:
                foreign += 1
            else:
                outside += any(i >= n for i, n in zip(coords, arrays.grid_of(array), strict=True))
        if outside:
            self.reasons.append(
                f"{_n(outside, 'chunk', 'lies', 'lie')} outside the shapes of the arrays, as a stopped "
                "append leaves them; run it again to complete it, or delete them"
            )
        if foreign:
            self.not_checked.append(
                f"{_n(foreign, 'object', 'belongs', 'belong')} to no array; their bytes were searched"
            )
        self.figures |= {"chunks outside the arrays": outside, "objects that belong to no array": foreign}


_DOCUMENTS = {"zarr.json", ".zarray", ".zattrs", ".zgroup", ".zmetadata"}


@dataclass(frozen=True)
class _Needles:
    """The encoded IDs to search for; `others` are the sample IDs of the store, which may contain them."""

    ids: frozenset[str]
    others: Sequence[str]

    @cached_property
    def long(self) -> list[str]:
        """The IDs of at least `SHORT` bytes."""
        return [sample for sample in self.ids if len(sample.encode()) >= SHORT]

    @property
    def n_ids(self) -> int:
        """The number of IDs that are searched for in bytes."""
        return len(self.long)

    @cached_property
    def forms(self) -> dict[bytes, list[tuple[int, bytes]]]:
        """Each encoded ID, with the offsets at which encoded IDs of other samples contain it, which are no findings."""
        cut = {sample[:LONGEST] for sample in self.long}
        contained: dict[bytes, list[tuple[int, bytes]]] = {form: [] for sample in cut for form in _forms(sample)}
        if not contained:
            return contained
        pattern = re.compile(_any_of(set(contained)))
        for other in set(self.others) - self.ids:
            for form in _forms(other):
                for start, needle in _matches(pattern, form):
                    contained[needle].append((start, form))
        return contained

    @cached_property
    def pattern(self) -> re.Pattern[bytes] | None:
        """One pattern that matches any encoded ID; None if there are none."""
        return re.compile(_any_of(set(self.forms))) if self.forms else None

    @cached_property
    def heads(self) -> set[bytes]:
        """Encoded prefixes of the IDs. A search that finds none of them is ten times as fast as the pattern."""
        return {head for sample in self.long for head in _forms(sample[:SHORT])}

    def count(self, data: bytes) -> int:
        """Count the occurrences of IDs in some bytes, except those within the ID of another sample."""
        if self.pattern is None or (len(self.heads) < MANY and not any(head in data for head in self.heads)):
            return 0
        return sum(
            not any(at >= start and data.startswith(other, at - start) for start, other in self.forms[needle])
            for at, needle in _matches(self.pattern, data)
        )

    def expected(self, searched: int) -> float:
        """Return the expected number of occurrences in random data of `searched` bytes."""
        return sum(searched * 256.0 ** -len(form) for form in self.forms)


def _forms(sample: str) -> set[bytes]:
    """Return an ID encoded as UTF-8, with JSON escapes, and as UTF-32."""
    return {sample.encode(), json.dumps(sample)[1:-1].encode(), sample.encode("utf-32-le")}


def _matches(pattern: re.Pattern[bytes], data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the offset and bytes of each match of a pattern, overlapping ones too."""
    match = pattern.search(data)
    while match:
        yield match.start(), match[0]
        match = pattern.search(data, match.start() + 1)


def _any_of(words: set[bytes]) -> bytes:
    """
    Return a pattern for any of some words, longest match first, as a trie: its speed does not depend on their number.

    >>> _any_of({b"NA1", b"NA12", b"NA7"})
    b'NA(?:1(?:2|)|7)'
    """
    first, last = min(words), max(words)
    head = first[: next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))]
    tails = {word[len(head) :] for word in words}
    if len(tails) == 1:
        return re.escape(head)
    firsts = sorted({tail[:1] for tail in tails if tail})
    branches = [_any_of({tail for tail in tails if tail[:1] == first}) for first in firsts]
    return re.escape(head) + b"(?:" + b"|".join([*branches, *([b""] if b"" in tails else [])]) + b")"


def _values_at(array: AnyArray, positions: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the values of some samples, chunk by chunk."""
    axis = samples_axis(array)
    assert axis is not None
    cut, positions = arrays.cuts(array)[axis], positions[positions < array.shape[axis]]
    for column in np.unique(cut.of(positions)).tolist():
        here = positions[cut.of(positions) == column]
        within = range(cut.start(column), cut.stop(column))
        for region in chunk_regions(array, {axis: within}):
            yield np.take(arrays.read(array, region), here - within.start, axis=axis)


# ---- words ----------------------------------------------------------------------------------


def _n(what: int | Sized, noun: str, *verb: str) -> str:
    """Format a number with its noun, and the singular or plural of a verb."""
    n = what if isinstance(what, int) else len(what)
    return f"{n:,} {noun}{'s' * (n != 1)}" + (f" {_s(n, *verb)}" if verb else "")


def _s(what: int | Sized, one: str, many: str) -> str:
    return one if (what if isinstance(what, int) else len(what)) == 1 else many


def _places(names: Iterable[str]) -> str:
    return listing(list(names), limit=SHOWN)


def _shown(name: str, figure: int | float) -> str:
    """Format a figure for the report."""
    if "bytes " in name and "ID" not in name:
        return human_size(figure)
    return f"{figure:,}" if isinstance(figure, int) else f"{figure:.2g}"
