"""Errors before the first write leave every byte unchanged; later errors leave the old samples visible."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import icechunk
import numpy as np
import pytest
import zarr

import vczstore
from tests.support import cohort, forks
from tests.support.covering import in_pairs, in_turn
from tests.support.permissions import LIMITED, permit, without_root
from tests.support.refusals import complain, mentions
from tests.support.small_stores import (
    FIELDS,
    KINDS,
    N_NEW,
    N_OLD,
    N_VARIANTS,
    NEW,
    OLD,
    Change,
    altered,
    batch,
    edit,
    head,
    put,
    read,
    repository,
    resize,
    some_arrays,
    store,
    templates,
    truncate,
    unchanged,
)
from vczstore.errors import (
    DamagedStoreError,
    IncompatibleError,
    MemoryLimitError,
    NotAStoreError,
    OptionError,
    SampleError,
    StaleError,
    StorageError,
    TagError,
    VczstoreError,
)

__all__ = ["batch", "repository", "store", "templates"]  # fixtures

IMPLS = ("zarr", "cubed", "xarray")


def holds_old_samples(path: Path, old: dict[str, np.ndarray], *, but: Sequence[str] = ()) -> None:
    """Assert that a reader sees `old`, up to the number of samples in ``sample_id``; do not compare arrays in `but`."""
    arrays = read(path)
    n = len(arrays["sample_id"])
    assert n == len(old["sample_id"])
    axes = {name: cohort.DIMENSIONS[name] for name in arrays}
    cut = {
        name: values[(slice(None),) * axes[name].index("samples") + (slice(n),)] if "samples" in axes[name] else values
        for name, values in arrays.items()
    }
    cohort.assert_same(*({k: v for k, v in side.items() if k not in but} for side in (cut, old)))


@pytest.fixture
def plain(templates: Path, tmp_path: Path) -> Path:
    return shutil.copytree(templates / "format3", tmp_path / "store.vcz")


# ---- changes to a store or a batch ----------------------------------------------------------


def drop(name: str) -> Change:
    def change(group: zarr.Group) -> None:
        del group[name]

    return change


def resize_all(dimension: str, n: int) -> Change:
    """Resize all arrays with a dimension consistently."""

    def change(group: zarr.Group) -> None:
        for name, array in group.arrays():
            if dimension in cohort.DIMENSIONS[name]:
                shape = zip(cohort.DIMENSIONS[name], array.shape, strict=True)
                array.resize(tuple(n if d == dimension else m for d, m in shape))

    return change


def attributes(**values: Any) -> Change:
    return lambda group: group.attrs.update(values)


def both(*changes: Change) -> Change:
    def change(group: zarr.Group) -> None:
        for part in changes:
            part(group)

    return change


# ---- incompatible metadata and sample IDs ---------------------------------------------------


@dataclass(frozen=True)
class Case:
    """An incompatible store and batch. In `words`, ``{store}`` and ``{batch}`` stand for the paths."""

    id: str
    error: type[VczstoreError]
    words: tuple[str, ...]
    store: Change | None = None
    batch: Change | None = None


METADATA = [
    Case(
        "sample present",
        SampleError,
        ("{batch}", "{store}", r"already: S0003;"),
        batch=put("sample_id", altered(NEW["sample_id"], (1, "S0003"))),
    ),
    Case(
        "sample twice within a source",
        SampleError,
        ("{batch}", "S0009", "twice"),
        batch=put("sample_id", altered(NEW["sample_id"], (0, "S0009"))),
    ),
    Case(
        "source with removed samples",
        SampleError,
        ("{batch}", "removed", "without them"),
        batch=put("sample_id", altered(NEW["sample_id"], (2, ""))),
    ),
    Case(
        "source without samples", SampleError, ("{batch}", "no samples", "leave it out"), batch=resize_all("samples", 0)
    ),
    Case(
        "contig_id",
        IncompatibleError,
        ("{batch}", "contig_id", "chr7", "chrX", "same contig_id"),
        batch=put("contig_id", altered(NEW["contig_id"], (1, "chr7"))),
    ),
    Case(
        "contig_id longer",
        IncompatibleError,
        ("{batch}", "contig_id", "chrY", "same contig_id"),
        batch=put("contig_id", np.array(["chr1", "chrX", "chrY"], object)),
    ),
    Case(
        "contig_id shorter",
        IncompatibleError,
        ("{batch}", "contig_id", "chrX", "same contig_id"),
        batch=put("contig_id", np.array(["chr1"], object)),
    ),
    Case(
        "filter_id",
        IncompatibleError,
        ("{batch}", "filter_id", "s50", "q10", "same filter_id"),
        batch=put("filter_id", altered(NEW["filter_id"], (1, "s50"))),
    ),
    Case(
        "number of variants",
        IncompatibleError,
        ("{batch}", r"\b9 variants", r"\b10\b", "same variants"),
        batch=resize_all("variants", 9),
    ),
    Case(
        "no variant_allele in the source",
        IncompatibleError,
        ("{batch}", "variant_allele"),
        batch=drop("variant_allele"),
    ),
    Case(
        "no variant_contig in the store", IncompatibleError, ("{store}", "variant_contig"), store=drop("variant_contig")
    ),
    Case(
        "field of the store only",
        IncompatibleError,
        ("{batch}", "lacks call_DP", "store has", "--drop-field DP"),
        batch=drop("call_DP"),
    ),
    Case(
        "field of the source only",
        IncompatibleError,
        ("{batch}", "has call_DP", "store lacks", "--add-field DP", "--drop-field DP"),
        store=drop("call_DP"),
    ),
    Case(
        "dimensions swapped",
        IncompatibleError,
        ("{batch}", "call_DP", r"'samples', 'variants'", r"'variants', 'samples'", "--drop-field DP"),
        batch=put("call_DP", NEW["call_DP"].T, ("samples", "variants")),
    ),
    Case(
        "dimension name",
        IncompatibleError,
        ("{batch}", "call_AD", "'alleles'", "'alt_alleles'", "--drop-field AD"),
        batch=put("call_AD", NEW["call_AD"], ("variants", "samples", "alt_alleles")),
    ),
    Case(
        "int8 for bool",
        IncompatibleError,
        ("{batch}", "call_genotype_phased", "int8", "bool", "--drop-field genotype_phased"),
        batch=put("call_genotype_phased", NEW["call_genotype_phased"].astype("i1")),
    ),
    Case(
        "bool for int8",
        IncompatibleError,
        ("{batch}", "call_genotype", "bool", "int8", "--drop-field genotype"),
        batch=put("call_genotype", NEW["call_genotype"] > 0),
    ),
    Case(
        "int for float",
        IncompatibleError,
        ("{batch}", "call_GL", "int32", "float32", "--drop-field GL"),
        batch=put("call_GL", np.zeros(NEW["call_GL"].shape, "i4")),
    ),
    Case(
        "string for int",
        IncompatibleError,
        ("{batch}", "call_DP", "int16", "--drop-field DP"),
        batch=put("call_DP", NEW["call_DP"].astype("U4")),
    ),
    Case(
        "vcf_zarr_version",
        IncompatibleError,
        ("{batch}", "vcf_zarr_version", r"0\.3", r"0\.4", "convert"),
        batch=attributes(vcf_zarr_version="0.3"),
    ),
    *(
        case
        for side in ("store", "batch")
        for own in [OLD if side == "store" else NEW]
        for n in [len(own["sample_id"])]
        for case in [
            Case(
                f"{side} damaged in samples",
                DamagedStoreError,
                (f"{{{side}}}", "damaged", "call_DP has 2 samples", f"sample_id has {n}", "; "),
                **{side: resize("call_DP", N_VARIANTS, 2)},
            ),
            Case(
                f"{side} damaged in variants",
                DamagedStoreError,
                (f"{{{side}}}", "damaged", "call_DP has 9", "variant_position has 10", "restore"),
                **{side: resize("call_DP", 9, n)},
            ),
            Case(
                f"{side} damaged in alleles",
                DamagedStoreError,
                (f"{{{side}}}", "damaged", "variant_allele has 9", "variant_position has 10", "restore"),
                **{side: resize("variant_allele", 9, 2)},
            ),
            # an interrupted append extends arrays in order of their names, so it cannot have left this state
            Case(
                f"{side} ahead in one array",
                DamagedStoreError,
                (f"{{{side}}}", "damaged", "call_DP has 11 samples", f"sample_id has {n}", "; "),
                **{side: resize("call_DP", N_VARIANTS, 11)},
            ),
            Case(
                f"{side} with a matrix of samples",
                DamagedStoreError,
                (f"{{{side}}}", "kinship", "two samples dimensions", "move it out of the store, or delete it"),
                **{side: put("kinship", np.zeros((n, n), "f4"), ("samples", "samples"))},
            ),
            Case(
                f"{side} without sample_id",
                NotAStoreError,
                (f"{{{side}}}", "not a VCZ", "sample_id", "vcf2zarr"),
                **{side: drop("sample_id")},
            ),
            Case(
                f"{side} without variant_position",
                NotAStoreError,
                (f"{{{side}}}", "not a VCZ", "variant_position", "vcf2zarr"),
                **{side: drop("variant_position")},
            ),
            Case(
                f"{side} with unnamed dimensions",
                NotAStoreError,
                (f"{{{side}}}", "not a VCZ", "sample_id", "'people'", "'samples'"),
                **{side: put("sample_id", own["sample_id"], ("people",))},
            ),
            Case(
                f"{side} with broken sample_id",
                DamagedStoreError,
                (f"{{{side}}}", "sample_id"),
                **{side: truncate("sample_id", 0)},
            ),
            Case(
                f"{side} with broken contig_id",
                DamagedStoreError,
                (f"{{{side}}}", "contig_id"),
                **{side: truncate("contig_id", 0)},
            ),
        ]
    ),
]


@pytest.mark.slow
@in_turn(store=KINDS, case={case.id: case for case in METADATA}, indirect=["store"])
def test_metadata(store: Path, batch: Path, case: Case) -> None:
    for path, change in ((store, case.store), (batch, case.batch)):
        if change is not None:
            edit(path, change)
    words = [word.format(store=re.escape(str(store)), batch=re.escape(str(batch))) for word in case.words]
    if case.error is not NotAStoreError and "broken" not in case.id:
        words.append("^append: ")
    with unchanged(store, batch):
        complain(case.error, words, lambda: vczstore.append(store, batch, impl="zarr"))


@pytest.mark.slow
def test_sample_in_two_sources(store: Path, batch: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.vcz"
    cohort.write_vcz(other, some_arrays(["S0100", "S0008", "S0010"], seed=2))
    words = ("^append: ", "2 of the samples", str(other), str(batch), "S0008, S0010", "leave them out")
    with unchanged(store, batch, other):
        complain(SampleError, words, lambda: vczstore.append(store, batch, other))


@pytest.mark.slow
def test_a_batch_that_is_already_appended(store: Path, batch: Path) -> None:
    """After a killed run there may be nothing left to do; the message must not advise to remove the samples."""
    vczstore.append(store, batch, impl="zarr")
    words = (f"^append: all {N_NEW} samples", str(batch), str(store), "appended before", "nothing left to do")
    with unchanged(store, batch):
        message = complain(SampleError, words, lambda: vczstore.append(store, batch))
        assert "remove" not in message


@pytest.mark.slow
def test_later_source_is_incompatible(store: Path, batch: Path, tmp_path: Path) -> None:
    """All sources are checked before the first is written."""
    other = tmp_path / "other.vcz"
    cohort.write_vcz(other, some_arrays(["S0100"], seed=2))
    edit(other, put("variant_position", altered(NEW["variant_position"], (9, 1234))))
    with unchanged(store, batch, other):
        complain(IncompatibleError, (str(other), "1234"), lambda: vczstore.append(store, batch, other, impl="zarr"))


def test_no_sources(store: Path) -> None:
    with unchanged(store):
        complain(VczstoreError, ("^append: ", "no sources", "name"), lambda: vczstore.append(store))


@pytest.mark.parametrize("spelling", ["path", "detour", "link"])
def test_source_is_the_store(store: Path, tmp_path: Path, spelling: str) -> None:
    """The message must not advise to remove the samples that are in the store already."""
    source = {"path": store, "detour": tmp_path / ".." / tmp_path.name / "store.vcz", "link": tmp_path / "link.vcz"}
    if spelling == "link":
        source["link"].symlink_to(store)
    with unchanged(store):
        words = ("^append: ", str(store), "same|itself")
        complain(VczstoreError, words, lambda: vczstore.append(store, source[spelling]))


# ---- incompatible data ----------------------------------------------------------------------


def site(arrays: dict[str, np.ndarray], row: int) -> str:
    """A variant as ``chrom:pos REF/ALT``, the format of messages."""
    contig = OLD["contig_id"][arrays["variant_contig"][row]]
    ref, alt = arrays["variant_allele"][row]
    return f"{contig}:{arrays['variant_position'][row]} {ref}/{alt}"


VARIANTS: dict[str, tuple[int, dict[str, dict[Any, Any]]]] = {
    "contig": (9, {"variant_contig": {9: 0}}),
    "position": (6, {"variant_position": {6: 71}}),
    "allele": (8, {"variant_allele": {(8, 1): "TTT"}}),
    "the first row of a chunk": (4, {"variant_position": {4: 49}}),
    "several in several chunks": (
        5,
        {"variant_allele": {(5, 0): "GC"}, "variant_position": {8: 91, 9: 102}, "variant_contig": {9: 0}},
    ),
    "several in one row": (
        7,
        {"variant_allele": {(7, 0): "GC"}, "variant_position": {7: 79}, "variant_contig": {9: 0}},
    ),
}
"""The row of the first variant that differs, and the changed values of the batch."""


@pytest.mark.slow
@in_pairs(store=KINDS, impl=IMPLS, case=VARIANTS, indirect=["store"])
def test_variants_differ(store: Path, batch: Path, impl: str, case: tuple[int, dict[str, dict[Any, Any]]]) -> None:
    first, differences = case
    changed = {**NEW, **{name: altered(NEW[name], *items.items()) for name, items in differences.items()}}
    assert changed["variant_contig"][9] != OLD["variant_contig"][9] or "variant_contig" not in differences
    for name in differences:
        edit(batch, put(name, changed[name]))
    # the message has both variants in full, not as prefixes of longer words
    words = [
        "^append: ",
        str(batch),
        *(rf"\b{re.escape(site(arrays, first))}(?!\w)" for arrays in (OLD, changed)),
        "same variants",
    ]
    with unchanged(store, batch):
        complain(IncompatibleError, words, lambda: vczstore.append(store, batch, impl=impl, executor="threads"))


WIDE = np.pad(NEW["variant_allele"], ((0, 0), (0, 2)), constant_values="")
SAME: dict[str, tuple[Change | None, Change]] = {
    "wider in the source": (drop("call_AD"), both(drop("call_AD"), put("variant_allele", WIDE))),
    "wider in the store": (both(drop("call_AD"), put("variant_allele", WIDE)), drop("call_AD")),
    "other chunks": (
        None,
        both(*(put(n, NEW[n], chunks=(3, *NEW[n].shape[1:])) for n in FIELDS if n.startswith("variant_"))),
    ),
    "larger chunks": (
        None,
        both(*(put(n, NEW[n], chunks=(99, *NEW[n].shape[1:])) for n in FIELDS if n.startswith("variant_"))),
    ),
    "other codecs": (None, both(*(put(n, NEW[n], compressors=None) for n in FIELDS if n.startswith("variant_")))),
    "other dtypes": (
        None,
        both(
            put("variant_allele", NEW["variant_allele"].astype("U1")),
            put("variant_contig", NEW["variant_contig"].astype("i8")),
        ),
    ),
    "sharded": (
        None,
        both(*(put(n, NEW[n], shards=(8, *NEW[n].shape[1:])) for n in FIELDS if n.startswith("variant_"))),
    ),
}


@pytest.mark.slow
@in_pairs(store=KINDS, change=SAME, impl=("zarr", "cubed"), indirect=["store"])
def test_same_variants_with_different_encoding(
    store: Path, batch: Path, impl: str, change: tuple[Change | None, Change]
) -> None:
    """Impl xarray is not tested, because it compares variants with the same tasks as cubed."""
    change_store, change_batch = change
    if change_store is not None:
        edit(store, change_store)
    edit(batch, change_batch)
    expected = cohort.expected_append(read(store), read(batch))
    vczstore.append(store, batch, impl=impl)
    cohort.assert_same(read(store), expected)


WIDER: dict[str, tuple[str, Change | None, Change]] = {
    "large int": ("call_DP", None, put("call_DP", altered(NEW["call_DP"].astype("i8"), ((6, 3), 40000)))),
    "small int": ("call_DP", None, put("call_DP", altered(NEW["call_DP"].astype("i4"), ((9, 0), -32769)))),
    "unsigned": ("call_genotype", None, put("call_genotype", np.full(NEW["call_genotype"].shape, 255, "u1"))),
    "string": ("call_FC", None, put("call_FC", altered(NEW["call_FC"].astype(object), ((7, 2, 1), "ACGT")))),
    "fixed string": ("call_FC", None, put("call_FC", altered(NEW["call_FC"].astype("U3"), ((4, 0, 0), "GT")))),
    # truncated IDs could become equal
    "sample_id": (
        "sample_id",
        put("sample_id", OLD["sample_id"].astype("U5")),
        put("sample_id", altered(NEW["sample_id"], (1, "S0008-longer"))),
    ),
}


@in_pairs(store=KINDS, impl=IMPLS, case=WIDER, indirect=["store"])
@pytest.mark.slow
def test_value_that_does_not_fit_widens_the_store(
    store: Path, batch: Path, impl: str, case: tuple[str, Change | None, Change]
) -> None:
    name, change_store, change_batch = case
    if change_store is not None:
        edit(store, change_store)
    edit(batch, change_batch)
    axis = cohort.DIMENSIONS[name].index("samples")
    expected = [read(vcz)[name].astype(object) for vcz in (store, batch)]
    vczstore.append(store, batch, impl=impl)
    np.testing.assert_array_equal(read(store)[name].astype(object), np.concatenate(expected, axis=axis))


# ---- not a store ----------------------------------------------------------------------------


def _nothing(path: Path) -> None:
    """Leave the path missing."""


def _text(path: Path) -> None:
    path.write_text("not a Zarr\n")


def _empty(path: Path) -> None:
    path.mkdir()


def _folder(path: Path) -> None:
    path.mkdir()
    (path / "notes.txt").write_text("not a Zarr\n")
    (path / "call_DP").mkdir()


def _array(path: Path) -> None:
    zarr.create_array(path, shape=(3,), dtype="i4")


PLACES: dict[str, tuple[Callable[[Path], None], str]] = {
    "no such path": (_nothing, "no such file"),
    "text file": (_text, "no Zarr group"),
    "empty folder": (_empty, "no Zarr group"),
    "some folder": (_folder, "no Zarr group"),
    "an array": (_array, "no Zarr group"),
}
CALLS: dict[str, Callable[[Path, Path], object]] = {
    "append to it": vczstore.append,
    "append it": lambda path, other: vczstore.append(other, path),
    "remove": lambda path, other: vczstore.remove(path, "S0001"),
    "tags": lambda path, other: vczstore.tags(path),
    "info": lambda path, other: vczstore.info(path),
    "copy": lambda path, other: vczstore.copy_store_to_icechunk(path, path.parent / "new"),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize(("make", "words"), PLACES.values(), ids=PLACES)
def test_not_a_store(plain: Path, tmp_path: Path, make: Callable[[Path], None], words: str, call: Any) -> None:
    path = tmp_path / "place"
    make(path)
    with unchanged(plain, tmp_path):
        error = VczstoreError if call is CALLS["tags"] and path.exists() else NotAStoreError
        message = complain(error, (str(path),), lambda: call(path, plain))
        assert words in message or error is VczstoreError
    assert not (tmp_path / "new").exists()


def test_path_below_a_file(plain: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder\n")
    with unchanged(plain):
        complain(NotAStoreError, ("file/place",), lambda: vczstore.append(plain, tmp_path / "file" / "place"))


BROKEN = {
    "truncated": lambda text: text[: len(text) // 2],
    "empty": lambda text: b"",
    "binary": lambda text: b"\xff\xfe\x00" * 20,
    "list": lambda text: b"[1, 2]",
    "null": lambda text: b"null",
    "without a key": lambda text: text.replace(b'"node_type"', b'"kind"').replace(b'"dtype"', b'"kind"'),
}


DOCUMENTS = [(3, "zarr.json"), (3, "call_DP/zarr.json"), (2, ".zgroup"), (2, "call_DP/.zarray"), (2, "call_DP/.zattrs")]
BREAKABLE = [
    pytest.param(*document, damage, id=f"{document[1]}-{name}")
    for document in DOCUMENTS
    for name, damage in BROKEN.items()
    if name != "without a key" or document[1] not in (".zgroup", "call_DP/.zattrs")  # which have neither of the keys
]


@pytest.mark.parametrize(("zarr_format", "document", "damage"), BREAKABLE)
def test_broken_metadata(
    plain: Path, tmp_path: Path, zarr_format: int, document: str, damage: Callable[[bytes], bytes]
) -> None:
    """The message names the array with the broken metadata, in the store or in a source."""
    broken = tmp_path / "broken.vcz"
    cohort.write_vcz(broken, NEW, zarr_format=zarr_format)
    text = (broken / document).read_bytes()
    assert damage(text) != text
    (broken / document).write_bytes(damage(text))
    words = [str(broken), *(["call_DP"] if "call_DP" in document else [])]
    with unchanged(plain, broken):
        complain(VczstoreError, words, lambda: vczstore.append(plain, broken))
        complain(VczstoreError, words, lambda: vczstore.remove(broken, "S0008"))


@pytest.fixture(scope="session")
def warm(templates: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Import all modules that operations need, because other users may lack permission to read them."""
    folder = tmp_path_factory.mktemp("warm")
    for kind in KINDS:
        store = shutil.copytree(templates / kind, folder / kind)
        vczstore.append(store, templates / "batch", impl="zarr")
        vczstore.remove(store, "S0001", impl="zarr")


@pytest.fixture
def reachable(warm: None) -> Iterator[Path]:
    """A folder that all users may enter, unlike pytest's own folders."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)
        permit(Path(folder), 0o755, 0o644)


@pytest.mark.slow
@pytest.mark.parametrize("side", ["store", "batch"])
@pytest.mark.parametrize(
    ("kind", "file"),
    [("format3", "."), ("format3", "zarr.json"), ("format3", "call_DP/zarr.json"), ("icechunk", ".")],
)
def test_no_permission_to_read(templates: Path, reachable: Path, kind: str, file: str, side: str) -> None:
    paths = {"store": reachable / "store.vcz", "batch": reachable / "batch.vcz"}
    shutil.copytree(templates / (kind if side == "store" else "format3"), paths["store"])
    shutil.copytree(templates / (kind if side == "batch" else "batch"), paths["batch"])
    permit(reachable, 0o777, 0o666)  # locking a store requires write permission
    before = cohort.digest(reachable)
    denied = paths[side] / file
    denied.chmod(0)
    with without_root():
        words = (str(paths[side]), "(?i)permission")
        complain(VczstoreError, words, lambda: vczstore.append(paths["store"], paths["batch"], impl="zarr"))
    denied.chmod(0o755)
    assert cohort.digest(reachable) == before


NEEDS_TO_READ: dict[str, Callable[[Path, Path], object]] = {
    **CALLS,
    "normalise it": lambda path, other: vczstore.normalise(other, path, path.parent / "new"),
    "normalise to it": lambda path, other: vczstore.normalise(path, other, path.parent / "new"),
    "create": lambda path, other: vczstore.create(path.parent / "new", path),
    "update": vczstore.update,
    "recompute": lambda path, other: vczstore.recompute(path),
    "compact": lambda path, other: vczstore.compact(path),
    "compact as a copy": lambda path, other: vczstore.compact(path, path.parent / "new"),
    "copy over it": lambda path, other: vczstore.copy_store_to_icechunk(other, path, overwrite=True),
    "purge": lambda path, other: vczstore.purge(path),
    "gc": lambda path, other: vczstore.gc(path),
    "verify": lambda path, other: vczstore.verify(path),
    "repair": lambda path, other: vczstore.repair(path),
    "tag": lambda path, other: vczstore.tag(path, "release-1"),
    "delete tag": lambda path, other: vczstore.delete_tag(path, "release-1"),
    "diff": lambda path, other: vczstore.diff(other, path),
    "export": lambda path, other: vczstore.export(path, path.parent / "new"),
    "restore": lambda path, other: vczstore.restore(path, "main"),
    "samples": lambda path, other: vczstore.samples(path),
    "log": lambda path, other: list(vczstore.log(path)),
}


@pytest.mark.parametrize("call", NEEDS_TO_READ.values(), ids=NEEDS_TO_READ)
def test_a_link_to_itself(plain: Path, tmp_path: Path, call: Any) -> None:
    path = tmp_path / "loop"
    path.symlink_to(path)
    with unchanged(plain):
        complain(VczstoreError, (str(path),), lambda: call(path, plain))
    assert path.is_symlink()
    assert not (tmp_path / "new").exists()


@in_turn(kind=("format3", "icechunk"), call=NEEDS_TO_READ)
def test_no_permission_to_read_the_store(templates: Path, reachable: Path, kind: str, call: Any) -> None:
    path = shutil.copytree(templates / kind, reachable / "store.vcz")
    other = shutil.copytree(templates / "batch", reachable / "batch.vcz")
    permit(reachable, 0o777, 0o666)
    before = cohort.digest(reachable)
    path.chmod(0)
    with without_root():
        complain(VczstoreError, (str(path), "(?i)permission|cannot"), lambda: call(path, other))
    path.chmod(0o755)
    assert cohort.digest(reachable) == before


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("operation", ["append", "remove"])
@pytest.mark.slow
def test_no_permission_to_write(templates: Path, reachable: Path, kind: str, operation: str) -> None:
    store = shutil.copytree(templates / kind, reachable / "store.vcz")
    batch = shutil.copytree(templates / "batch", reachable / "batch.vcz")
    permit(reachable, 0o555, 0o444)
    calls = {
        "append": lambda: vczstore.append(store, batch, impl="zarr"),
        "remove": lambda: vczstore.remove(store, "S0001", impl="zarr"),
    }
    with unchanged(store, batch), without_root():
        complain(StorageError, (str(store), "(?i)permission"), calls[operation])
        if kind == "icechunk":
            time.sleep(1)  # Icechunk's other threads may still be writing; they must fail while root is dropped, too
    holds_old_samples(store, OLD)


# ---- remove ---------------------------------------------------------------------------------

UNKNOWN: dict[str, tuple[list[str], tuple[str, ...]]] = {
    "some unknown": (["S0001", "unknown-1", "S0002", "unknown-2"], ("unknown-1", "unknown-2", "nothing was removed")),
    "all unknown": ([f"X{i}" for i in range(30)], tuple(rf"\bX{i}\b" for i in range(30))),
    "none": ([], ("no samples named", "give")),
    # the empty ID of removed samples is not a sample
    "removed ID": ([""], ("''|\"\"|empty", "nothing was removed|removed")),
    "removed ID among others": (["S0001", ""], ("''|\"\"|empty", "nothing was removed|removed")),
    "removed before": (["S0004"], ("S0004", "nothing was removed")),
    "line break": (["S0001\n"], (r"S0001\\n", "nothing was removed")),
}


@pytest.mark.slow
@pytest.mark.parametrize(("samples", "words"), UNKNOWN.values(), ids=UNKNOWN)
def test_remove_unknown_samples(store: Path, samples: list[str], words: tuple[str, ...]) -> None:
    vczstore.remove(store, "S0004", impl="zarr")
    with unchanged(store):
        complain(SampleError, ("^remove: ", *words), lambda: vczstore.remove(store, samples))
        complain(SampleError, ("^remove: ", *words), lambda: vczstore.plan("remove", store, samples))


@pytest.mark.parametrize("shape", [(N_VARIANTS, 2), (9, N_OLD), (N_VARIANTS, 11)])
def test_remove_from_damaged_store(store: Path, shape: tuple[int, int]) -> None:
    edit(store, resize("call_DP", *shape))
    with unchanged(store):
        complain(DamagedStoreError, ("^remove: ", str(store), "call_DP", "; "), lambda: vczstore.remove(store, "S0001"))


# ---- tags, info, copy -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "call",
    [lambda s: vczstore.tag(s, "v1"), vczstore.tags, lambda s: vczstore.delete_tag(s, "v1")],
    ids=["create", "list", "delete"],
)
def test_tags_of_plain_zarr(plain: Path, call: Callable[[Path], object]) -> None:
    """The message has the command that converts the store to one with tags."""
    with unchanged(plain):
        words = ("^tag: ", "plain Zarr", f"vczstore copy-store-to-icechunk {plain}")
        complain(TagError, words, lambda: call(plain))


def test_tag_names_are_unique(repository: Path) -> None:
    snapshot = vczstore.tag(repository, "v1")
    assert snapshot == head(repository)
    vczstore.tag(repository, "old")
    vczstore.delete_tag(repository, "old")
    with unchanged(repository):
        complain(
            TagError, ("^tag: ", "'v1'", "exists", snapshot, "another name"), lambda: vczstore.tag(repository, "v1")
        )
        words = ("^tag: ", "'old'", "deleted", "another name")
        complain(TagError, words, lambda: vczstore.tag(repository, "old"))
        words = ("^tag: ", str(repository), "'nope'", "vczstore tag")
        complain(TagError, words, lambda: vczstore.delete_tag(repository, "nope"))
        complain(TagError, ("^tag: ", str(repository), "'old'"), lambda: vczstore.delete_tag(repository, "old"))
    assert vczstore.tags(repository) == {"v1": snapshot}


@pytest.mark.parametrize("name", ["", "a/b", "a\nb", "\x1b[31m"])
def test_tag_names(repository: Path, name: str) -> None:
    with unchanged(repository):
        complain(TagError, ("^tag: ", re.escape(repr(name)), "use"), lambda: vczstore.tag(repository, name))


def test_info_at(repository: Path) -> None:
    vczstore.tag(repository, "v1")
    vczstore.tag(repository, "gone")
    vczstore.delete_tag(repository, "gone")
    for at in ("nope", "gone", "ZZZZZZZZZZZZZZZZZZZ0"):
        with unchanged(repository):
            complain(TagError, (str(repository), at, "vczstore tag"), lambda at=at: vczstore.info(repository, at=at))
    assert vczstore.info(repository, at="v1").samples == N_OLD


def test_info_of_plain_zarr_at(plain: Path) -> None:
    words = ("plain Zarr", "v1", "copy-store-to-icechunk")
    complain(VczstoreError, words, lambda: vczstore.info(plain, at="v1"))


def test_copy_onto_a_repository(plain: Path, templates: Path, tmp_path: Path) -> None:
    target = shutil.copytree(templates / "icechunk", tmp_path / "target")
    for dry_run in (False, True):
        with unchanged(plain, target):
            words = ("^copy-store-to-icechunk: ", str(target), "holds", "--overwrite")
            complain(
                OptionError,
                words,
                lambda dry_run=dry_run: vczstore.copy_store_to_icechunk(plain, target, dry_run=dry_run),
            )


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("target_kind", ["folder", "file", "plain store"])
def test_copy_onto_something_else(plain: Path, batch: Path, tmp_path: Path, target_kind: str, overwrite: bool) -> None:
    """``--overwrite`` replaces only repositories."""
    target = batch if target_kind == "plain store" else tmp_path / "target"
    if target_kind != "plain store":
        (_folder if target_kind == "folder" else _text)(target)
    before = cohort.digest(tmp_path)
    words = ("^copy-store-to-icechunk: ", str(target), "exists", "choose")
    complain(OptionError, words, lambda: vczstore.copy_store_to_icechunk(plain, target, overwrite=overwrite))
    assert cohort.digest(tmp_path) == before


@pytest.mark.parametrize("overwrite", [False, True])
def test_copy_of_a_damaged_store(plain: Path, templates: Path, tmp_path: Path, overwrite: bool) -> None:
    edit(plain, resize("call_DP", N_VARIANTS, 2))
    target = tmp_path / "target"
    if overwrite:
        shutil.copytree(templates / "icechunk", target)
    with unchanged(plain, target):
        words = ("^copy-store-to-icechunk: ", str(plain), "call_DP")
        complain(DamagedStoreError, words, lambda: vczstore.copy_store_to_icechunk(plain, target, overwrite=overwrite))
    assert target.exists() == overwrite


# ---- options --------------------------------------------------------------------------------

OPTIONS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "backend": ({"backend_storage": "tape"}, ("'tape'", "zarr, obstore, fsspec, icechunk")),
    "impl": ({"impl": "fortran"}, ("'fortran'", "cubed, zarr, xarray")),
    "executor": ({"executor": "ray"}, ("'ray'", "single-threaded, threads, processes")),
    "max_workers": ({"max_workers": 0}, (r"\b0 workers", "at least 1")),
    "size": ({"allowed_mem": "lots"}, ("'lots'", "2GB")),
    "negative size": ({"allowed_mem": -5}, ("'-5'", "2GB")),
    "reserved size": ({"reserved_mem": "a few MB"}, ("'a few MB'", "2GB")),
    "less than Python takes": ({"allowed_mem": "100MB"}, ("100,000,000", "300,000,000", "600,000,000")),
    "storage options of a path": ({"storage_options": {"region": "eu"}}, ("local store takes no storage options",)),
    "storage options of zarr": ({"storage_options": {"region": "eu"}, "backend_storage": "zarr"}, ("storage options",)),
    "wrong backend": ({"backend_storage": "icechunk"}, ("no Icechunk repository", "copy-store-to-icechunk")),
}


@pytest.mark.parametrize(("options", "words"), OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("operation", ["append", "remove"])
def test_options(plain: Path, batch: Path, operation: str, options: dict[str, Any], words: tuple[str, ...]) -> None:
    calls = {
        "append": lambda: vczstore.append(plain, batch, **options),
        "remove": lambda: vczstore.remove(plain, "S0001", **options),
    }
    with unchanged(plain, batch):
        complain(VczstoreError, words, calls[operation])


def test_url_without_backend() -> None:
    complain(
        OptionError,
        ("s3://bucket/a.vcz", "--backend-storage"),
        lambda: vczstore.info("s3://bucket/a.vcz", backend_storage="zarr"),
    )


@pytest.mark.parametrize("path", [7, None, [1], b"store.vcz"])
def test_an_argument_that_is_not_a_store(plain: Path, path: Any) -> None:
    complain(OptionError, (type(path).__name__, "path"), lambda: vczstore.append(path, plain))
    complain(OptionError, (type(path).__name__, "path"), lambda: vczstore.append(plain, path))


@pytest.mark.parametrize("impl", ["cubed", "xarray"])
@pytest.mark.parametrize("backend", ["Zarr", "Icechunk"])
def test_processes_and_memory(batch: Path, impl: str, backend: str) -> None:
    """Refused, because other processes would write to a copy of the store."""
    memory: Any = zarr.storage.MemoryStore()
    cohort.write_vcz(memory, OLD)
    if backend == "Icechunk":
        plain, memory = memory, icechunk.Repository.create(icechunk.in_memory_storage())
        session = memory.writable_session("main")
        cohort.write_vcz(session.store, cohort.read_vcz(plain))
        session.commit("made by the test")
    words = ("^append: ", "memory", "threads")
    options = {"impl": impl, "executor": "processes", "max_workers": 1}
    complain(OptionError, words, lambda: vczstore.append(memory, batch, **options))
    session_store = memory.readonly_session("main").store if backend == "Icechunk" else memory
    cohort.assert_same(cohort.read_vcz(session_store), OLD)


@pytest.mark.slow
def test_source_in_memory_and_processes(plain: Path) -> None:
    """A source in memory may be pickled to the workers, or refused, but must not be read as empty."""
    memory = zarr.storage.MemoryStore()
    cohort.write_vcz(memory, NEW)
    with suppress(OptionError):
        vczstore.append(plain, memory, executor="processes", max_workers=1)
    refused = len(read(plain)["sample_id"]) == N_OLD
    cohort.assert_same(read(plain), OLD if refused else cohort.expected_append(OLD, NEW))


@pytest.fixture(scope="session")
def large_chunks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store, a repository and a batch, with chunks of up to 8 MB and a partial last chunk."""
    folder = tmp_path_factory.mktemp("large")
    for name, n, start in (("store.vcz", 900, 0), ("batch.vcz", 60, 900)):
        arrays = cohort.make_arrays(N_VARIANTS, cohort.ids(start, n))
        arrays = {
            field: arrays[field]
            for field in FIELDS
            if "samples" not in cohort.DIMENSIONS[field] or field == "sample_id"
        }
        arrays = {k: np.concatenate([v] * 200) if k.startswith("variant_") else v for k, v in arrays.items()}
        arrays["call_AD"] = np.arange(200 * N_VARIANTS * n * 2, dtype="i4").reshape(-1, n, 2) % 100
        cohort.write_vcz(folder / name, arrays, variants_chunk=1000, samples_chunk=1000)
    vczstore.copy_store_to_icechunk(folder / "store.vcz", folder / "icechunk", impl="zarr")
    return folder


@in_pairs(kind=KINDS, operation=("append", "remove"), impl=("cubed", "xarray"))
def test_too_little_memory(large_chunks: Path, tmp_path: Path, kind: str, operation: str, impl: str) -> None:
    """The message says how much memory is needed, and that amount is sufficient."""
    store = shutil.copytree(large_chunks / ("icechunk" if kind == "icechunk" else "store.vcz"), tmp_path / "store.vcz")
    batch = large_chunks / "batch.vcz"

    def call(allowed: str, **options: Any) -> vczstore.Result:
        if operation == "append":
            return vczstore.append(store, batch, impl=impl, allowed_mem=allowed, **options)
        return vczstore.remove(store, ["S0007", "S0123"], impl=impl, allowed_mem=allowed, **options)

    with unchanged(store, batch):
        words = (f"^{operation}: ", r"needs \d+MB", "310MB are allowed", "--allowed-mem")
        message = complain(MemoryLimitError, words, lambda: call("310MB"))
    needed = re.search(r"--allowed-mem (\w+)", message)
    assert needed
    if impl == "cubed":  # with xarray, rechunking may need more
        assert call(needed[1]).committed


def test_too_little_memory_in_a_dry_run(large_chunks: Path) -> None:
    """A dry run also checks the memory."""
    store, batch = large_chunks / "store.vcz", large_chunks / "batch.vcz"
    words = ("^append: ", r"needs \d+MB", "--allowed-mem")
    complain(MemoryLimitError, words, lambda: vczstore.append(store, batch, allowed_mem="310MB", dry_run=True))


# ---- stale plans ----------------------------------------------------------------------------


CHANGES: dict[str, Callable[[Path, Path], object]] = {
    "append": lambda store, other: vczstore.append(store, other, impl="zarr"),
    "remove": lambda store, other: vczstore.remove(store, "S0003", impl="zarr"),
}


@in_pairs(store=KINDS, operation=("append", "remove"), change=CHANGES, impl=("zarr", "cubed"), indirect=["store"])
def test_stale_plan(store: Path, batch: Path, tmp_path: Path, operation: str, change: Any, impl: str) -> None:
    other = tmp_path / "other.vcz"
    cohort.write_vcz(other, some_arrays(["S0100", "S0101"], seed=2))
    plan = vczstore.plan("append", store, batch) if operation == "append" else vczstore.plan("remove", store, "S0001")
    change(store, other)
    with unchanged(store, batch):
        complain(StaleError, (str(store), "changed", "again"), lambda: vczstore.run(plan, impl=impl))


@pytest.mark.slow
def test_run_a_plan_again(store: Path, batch: Path) -> None:
    plan = vczstore.plan("append", store, batch)
    vczstore.run(plan, impl="zarr")
    with unchanged(store):
        complain(StaleError, (str(store), "changed"), lambda: vczstore.run(plan, impl="zarr"))


@in_turn(impl=("cubed", "xarray"), during=("checking", "writing"))
@pytest.mark.slow
def test_concurrent_commit(repository: Path, batch: Path, impl: str, during: str) -> None:
    """Of two concurrent operations on a repository, one commits and the other one fails."""
    done: list[str | None] = []

    def progress(what: str, *_: int) -> None:
        if what == during and not done:
            done.append(vczstore.remove(repository, "S0003", impl="zarr").snapshot)

    words = (str(repository), "changed", "again")
    complain(StaleError, words, lambda: vczstore.append(repository, batch, impl=impl, progress=progress, max_retries=0))
    assert head(repository) == done[0]
    cohort.assert_same(read(repository), cohort.expected_remove(OLD, ["S0003"]))
    vczstore.append(repository, batch, impl=impl)
    cohort.assert_same(read(repository), cohort.expected_append(cohort.expected_remove(OLD, ["S0003"]), NEW))


# ---- faults during a run --------------------------------------------------------------------

FAULTS: dict[str, tuple[str, str, tuple[int, ...]]] = {
    "source": ("batch", "call_DP", (1, 0)),
    "strings of the source": ("batch", "call_FT", (2, 1)),
    "variants of the source": ("batch", "variant_position", (1,)),
    "ragged column of the store": ("store", "call_DP", (1, 2)),
}


@in_pairs(store=KINDS, fault=FAULTS, impl=IMPLS, indirect=["store"])
@pytest.mark.slow
def test_truncated_chunk(store: Path, batch: Path, impl: str, fault: tuple[str, str, tuple[int, ...]]) -> None:
    """The message names the array with the broken chunk, because a store may have hundreds of arrays."""
    side, field, coords = fault
    broken = store if side == "store" else batch
    edit(broken, truncate(field, *coords))
    snapshot = head(store)
    message = complain(VczstoreError, ("^append: ",), lambda: vczstore.append(store, batch, impl=impl))
    assert head(store) == snapshot
    if side == "store":
        edit(store, drop(field))  # so that the other arrays can be read
        holds_old_samples(store, {k: v for k, v in OLD.items() if k != field})
    else:
        holds_old_samples(store, OLD)
        # once the source is repaired, a rerun completes the append
        shutil.rmtree(batch)
        cohort.write_vcz(batch, NEW)
        vczstore.append(store, batch, impl=impl)
        cohort.assert_same(read(store), cohort.expected_append(OLD, NEW))
    if impl != "xarray":  # xarray reads the chunks itself
        mentions(message, (field, str(broken)))


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.slow
def test_truncated_chunk_of_removed_samples(store: Path, impl: str) -> None:
    edit(store, truncate("call_FT", 1, 1))
    snapshot = head(store)
    message = complain(VczstoreError, ("^remove: ",), lambda: vczstore.remove(store, "S0004", impl=impl))
    assert head(store) == snapshot
    edit(store, drop("call_FT"))
    if snapshot:
        holds_old_samples(store, {k: v for k, v in OLD.items() if k != "call_FT"})
    assert list(read(store)["sample_id"]) == list(OLD["sample_id"])
    if impl != "xarray":
        mentions(message, ("call_FT", str(store)))


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("format3", ["--impl", "zarr"]),
        ("format3", ["--executor", "threads"]),
        ("format3", ["--executor", "processes", "--max-workers", "1"]),
        ("icechunk", []),
    ],
    ids=["zarr", "cubed", "processes", "icechunk"],
)
@pytest.mark.slow
def test_disk_full(tmp_path: Path, kind: str, options: list[str]) -> None:
    """One line, status 1, the old samples; and once there is space, a rerun completes the append."""
    fields = [*(f for f in FIELDS if not f.startswith("call_")), "call_GL", "call_DP"]
    old, new = (cohort.make_arrays(400, cohort.ids(*r), seed=r[0]) for r in ((0, 20), (20, 16)))
    old, new = ({k: arrays[k] for k in fields} for arrays in (old, new))
    store, clean, batch = (tmp_path / f"{name}.vcz" for name in ("store", "clean", "batch"))
    layout = {"variants_chunk": 400, "samples_chunk": 16}
    cohort.write_vcz(clean, old, **layout)
    cohort.write_vcz(batch, new, **layout)
    if kind == "icechunk":
        vczstore.copy_store_to_icechunk(clean, store, impl="zarr")
    else:
        shutil.copytree(clean, store)
    snapshot = head(store)
    command = ["append", str(store), str(batch), *options]
    program = [forks.program("python"), "-c", LIMITED.format(limit=30_000)]
    full = subprocess.run([*program, *command], capture_output=True, text=True, check=False, timeout=60)
    assert full.returncode == 1, full.stderr
    assert full.stdout == ""
    lines = full.stderr.splitlines()
    assert len(lines) == 1, full.stderr
    assert re.match(r"Error: append: .*store\.vcz.*(too large|Errno 27|os error 27)", lines[0])
    assert head(store) == snapshot
    holds_old_samples(store, old)
    vczstore.append(store, batch, impl="zarr")
    cohort.assert_same(read(store), cohort.expected_append(old, new))
    if kind == "format3":  # no half-written files are left
        vczstore.append(clean, batch, impl="zarr")
        assert cohort.digest(store).keys() == cohort.digest(clean).keys()


# ---- interrupted operations -----------------------------------------------------------------


EDITED = tuple(n for n in FIELDS if not n.startswith("call_") or n in ("call_genotype", "call_GL", "call_FT"))
"""Fewer arrays than in `FIELDS`, because each has its own edit, and all edits are alike."""


@dataclass(frozen=True)
class Stopped:
    """A kind of plain store, and the implementation used to rerun an interrupted append."""

    zarr_format: int
    consolidated: bool = False
    impl: str = "zarr"
    first: bool = False
    """Whether the store has no samples yet, so that the append creates arrays."""

    @property
    def id(self) -> str:
        flags = ["-consolidated" * self.consolidated, "-first" * self.first]
        return f"format{self.zarr_format}{''.join(flags)}-{self.impl}"

    def make(self, folder: Path) -> tuple[Path, list[Path], dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Write a store and two sources; return their paths, and the arrays before and after the append."""
        whole, *batches = (
            {name: arrays[name] for name in EDITED}
            for arrays in (OLD, NEW, some_arrays(cohort.ids(N_OLD + N_NEW, 3), seed=2))
        )
        old = whole
        if self.first:
            own = [n for n in EDITED if "samples" not in cohort.DIMENSIONS[n]]
            old = {**{n: OLD[n] for n in own}, "sample_id": OLD["sample_id"][:0]}
        layout = {"zarr_format": self.zarr_format, "consolidated": self.consolidated}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # consolidated metadata are not yet specified for format 3
            cohort.write_vcz(folder / "template.vcz", old, **layout)
        sources = [folder / f"batch{i}.vcz" for i in range(2)]
        for path, arrays in zip(sources, batches, strict=True):
            cohort.write_vcz(path, arrays)
        if self.first:
            empty = {
                n: NEW[n].take(range(0), axis=cohort.DIMENSIONS[n].index("samples")) for n in EDITED if n not in own
            }
            return folder / "template.vcz", sources, old, cohort.expected_append({**old, **empty}, *batches)
        return folder / "template.vcz", sources, old, cohort.expected_append(old, *batches)


STOPPED = [
    Stopped(3, impl="xarray"),
    Stopped(3, consolidated=True),
    Stopped(2, impl="cubed", consolidated=True),
    Stopped(3, first=True),
]


def run_until(store: Path, sources: Sequence[Path], *, writes: int | None = None, edits: int = 0) -> int:
    """Imitate an interrupted append: do some of the writes and some of the edits. Return the total number of edits."""
    plan = vczstore.plan("append", store, *sources)
    local = zarr.storage.LocalStore(store)
    for step in plan.preparations:
        step.apply(local)
    for write in plan.writes[:writes]:
        write.by_zarr(local)
    for step in plan.edits[:edits]:
        step.apply(local)
    return len(plan.edits)


def consolidated_samples(store: Path) -> dict[str, int]:
    """The number of samples in each array, according to the consolidated metadata."""
    group = zarr.open_group(store, mode="r", use_consolidated=True)
    axes = {name: cohort.DIMENSIONS[name] for name, _ in group.arrays()}
    return {n: group[n].shape[dims.index("samples")] for n, dims in axes.items() if "samples" in dims}


@pytest.mark.parametrize("stopped", STOPPED, ids=lambda stopped: stopped.id)
@pytest.mark.slow
def test_append_stopped_after_each_edit(tmp_path: Path, stopped: Stopped) -> None:
    """
    Until sample_id is extended, readers see the old samples; a rerun completes the append from any point.

    One kind of store is stopped after each edit; the others after every third, and before and after the last.
    """
    template, sources, old, expected = stopped.make(tmp_path)
    n_new = len(expected["sample_id"])
    step = 1 if stopped == Stopped(3, consolidated=True) else 3
    k, n_edits = 0, 1
    while k <= n_edits:
        store = shutil.copytree(template, tmp_path / f"store{k}.vcz")
        n_edits = run_until(store, sources, edits=k)
        names = set(read(store)) if not stopped.first else None
        if len(read(store)["sample_id"]) == n_new:
            assert k >= n_edits - 1  # sample_id is extended last, followed only by the consolidated metadata
            cohort.assert_same(read(store), expected)
        else:
            holds_old_samples(store, old if not stopped.first else _with_fields_of(store, old))
            if stopped.consolidated:
                assert set(consolidated_samples(store).values()) == {len(old["sample_id"])}, k
            if names is not None:
                assert names == set(old)
            result = vczstore.append(store, *sources, impl=stopped.impl)
            assert result.counts == {"sources": 2, "samples added": n_new - len(old["sample_id"])}
            cohort.assert_same(read(store), expected)
        if stopped.consolidated and k != n_edits - 1:  # see test_append_stopped_before_consolidating
            assert set(consolidated_samples(store).values()) == {n_new}, k
        k = min(k + step, n_edits - 1) if k < n_edits - 1 else k + 1
    assert n_edits >= len([n for n in EDITED if "samples" in cohort.DIMENSIONS[n]])


def _with_fields_of(store: Path, old: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Add the fields that an interrupted append has created in a store without samples, with no samples, to `old`."""
    arrays = read(store)
    new = {n: v.take(range(0), axis=cohort.DIMENSIONS[n].index("samples")) for n, v in arrays.items() if n not in old}
    return {**old, **new}


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.slow
def test_append_stopped_while_writing(tmp_path: Path, impl: str) -> None:
    template, sources, old, expected = Stopped(3).make(tmp_path)
    for j in (1, 5):
        store = shutil.copytree(template, tmp_path / f"store{j}.vcz")
        run_until(store, sources, writes=j)
        holds_old_samples(store, old)
        vczstore.append(store, *sources, impl=impl)
        cohort.assert_same(read(store), expected)


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.slow
def test_append_stopped_before_consolidating(tmp_path: Path, zarr_format: int) -> None:
    """The consolidated metadata are stale after the samples have become visible; a rerun updates them."""
    template, sources, _, expected = Stopped(zarr_format, consolidated=True).make(tmp_path)
    n_edits = run_until(shutil.copytree(template, tmp_path / "count.vcz"), sources)
    store = shutil.copytree(template, tmp_path / "store.vcz")
    run_until(store, sources, edits=n_edits - 1)
    with suppress(SampleError):  # because the samples are already in the store
        vczstore.append(store, *sources, impl="zarr")
    cohort.assert_same(read(store), expected)
    assert set(consolidated_samples(store).values()) == {len(expected["sample_id"])}


@pytest.mark.slow
def test_other_operations_on_a_stopped_append(tmp_path: Path) -> None:
    """Other edits are refused, but `info` works."""
    template, sources, _, _ = Stopped(3).make(tmp_path)
    store = shutil.copytree(template, tmp_path / "store.vcz")
    run_until(store, sources, edits=3)
    words = ("damaged", "samples", "run that append again")
    calls: dict[str, Callable[[], object]] = {
        "remove": lambda: vczstore.remove(store, "S0001"),
        "append": lambda: vczstore.append(store, sources[0]),
        "copy-store-to-icechunk": lambda: vczstore.copy_store_to_icechunk(store, tmp_path / "new"),
    }
    with unchanged(store, *sources):
        for operation, call in calls.items():
            complain(DamagedStoreError, (f"^{operation}: ", *words), call)
        assert vczstore.info(store).samples == N_OLD


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.slow
def test_another_append_on_a_stopped_one(tmp_path: Path, impl: str) -> None:
    """The same number of other samples: either refused, or without any data of the interrupted append."""
    template, sources, old, _ = Stopped(3).make(tmp_path)
    store = shutil.copytree(template, tmp_path / "store.vcz")
    run_until(store, sources, edits=3)
    arrays = some_arrays([f"T{i}" for i in range(N_NEW + 3)], seed=9)
    other = {name: arrays[name] for name in EDITED}
    cohort.write_vcz(tmp_path / "other.vcz", other)
    try:
        vczstore.append(store, tmp_path / "other.vcz", impl=impl)
    except DamagedStoreError:
        holds_old_samples(store, old)
        return
    cohort.assert_same(read(store), cohort.expected_append(old, other))


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.slow
def test_remove_stopped(plain: Path, impl: str) -> None:
    """IDs are erased last, so an interrupted removal can be rerun with the same samples."""
    samples = ["S0001", "S0005", "S0006"]
    plan = vczstore.plan("remove", plain, samples)
    for write in plan.writes[:3]:
        write.by_zarr(zarr.storage.LocalStore(plain))
    assert list(read(plain)["sample_id"]) == list(OLD["sample_id"])
    vczstore.remove(plain, samples, impl=impl)
    cohort.assert_same(read(plain), cohort.expected_remove(OLD, samples))


@pytest.mark.slow
def test_remove_stopped_while_erasing_ids(plain: Path) -> None:
    """sample_id has chunks of three IDs, of which only some may have been written."""
    samples = ["S0001", "S0005"]
    plan = vczstore.plan("remove", plain, samples)
    for write in plan.writes:
        write.by_zarr(zarr.storage.LocalStore(plain))
    edit(plain, lambda group: group["sample_id"].set_basic_selection(1, ""))
    with suppress(SampleError):  # the message may name the remaining samples
        vczstore.remove(plain, samples)
    left = [sample for sample in samples if sample in read(plain)["sample_id"]]
    if left:
        vczstore.remove(plain, left)
    cohort.assert_same(read(plain), cohort.expected_remove(OLD, samples))
