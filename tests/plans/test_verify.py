"""`verify`: valid stores have no errors, each kind of damage is located, and nothing is written."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import zarr
from click.testing import CliRunner
from zarr.codecs import Crc32cCodec, GzipCodec

import vczstore
from plans.maintenance.verify import Verified
from tests.support import cohort, vcf
from tests.support.small_stores import repository_of
from tests.support.ways import Way
from vczstore.cli import main
from vczstore.errors import DamagedStoreError, MemoryLimitError, NotAStoreError, OptionError

FIELDS = (
    *("sample_id", "sample_sex", "contig_id", "filter_id", "variant_contig", "variant_position", "variant_allele"),
    *("call_genotype", "call_genotype_mask", "call_DP", "call_AD", "call_GL", "call_FT", "call_FC"),
)
"""Fields that cover each kind of dtype and rank, to save time."""

type Where = tuple[str | None, str | None]


def some_arrays(n: int = 7, *, first: int = 0, seed: int = 0) -> dict[str, np.ndarray]:
    """Return arrays with 10 variants, five on each of two contigs, which match INDEX in chunks of 4."""
    all_arrays = cohort.make_arrays(10, cohort.ids(first, n), seed=seed)
    arrays = {name: all_arrays[name] for name in FIELDS}
    arrays["variant_contig"] = np.repeat(np.array([0, 1], dtype="i1"), 5)
    return arrays


INDEX = np.array([[0, 0, 10, 40, 40, 4], [1, 0, 50, 50, 50, 1], [1, 1, 60, 80, 80, 3], [2, 1, 90, 100, 100, 2]])
"""The region index of `some_arrays`, with variants of one base: chunk, contig, start, end, max end, records."""


def add_index(store: Path, index: np.ndarray) -> None:
    group = zarr.open_group(store, mode="r+")
    v3 = group.metadata.zarr_format == 3
    for name, values, dims in (
        ("variant_length", np.ones(10, "i4"), ["variants"]),
        ("region_index", index.astype("i4"), ["region_index_values", "region_index_fields"]),
    ):
        named = {"dimension_names": dims} if v3 else {"attributes": {"_ARRAY_DIMENSIONS": dims}}
        chunks = (4,) if name == "variant_length" else values.shape
        group.create_array(name, shape=values.shape, dtype="i4", chunks=chunks, **named)[...] = values


def look(store: Path, **options: object) -> Verified:
    """Return the result of `verify`, after checking that Cubed and zarr-python agree and that nothing is written."""
    before = cohort.digest(store)
    result = vczstore.verify(store, **options)
    assert vczstore.verify(store, impl="zarr", **options) == result
    assert cohort.digest(store) == before
    assert result.ok is not bool(result.errors)
    for damage in result.errors:
        assert "\n" not in str(damage)
        assert "S00" not in str(damage)  # the prefix of sample IDs
    return result


def places(result: Verified) -> list[Where]:
    return [(damage.array, damage.chunk) for damage in result.errors]


def found(store: Path, **options: object) -> list[Where]:
    """Return the locations of the errors in a store."""
    return places(look(store, **options))


def files(store: Path) -> int:
    documents = {"zarr.json", ".zarray", ".zattrs", ".zgroup", ".zmetadata"}
    return sum(path.is_file() and path.name not in documents for path in store.rglob("*"))


# ---- valid stores ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["format2", "format3", "icechunk"])
@pytest.mark.filterwarnings("ignore:Consolidated metadata")
@pytest.mark.slow
def test_valid_stores(tmp_path: Path, kind: str) -> None:
    """Stores are valid at first and after every operation. Absent chunks are counted."""
    arrays, batch = some_arrays(), some_arrays(4, first=7, seed=1)
    arrays["call_DP"][:4, 3:6] = 0
    store = Way(kind, "cubed").make(tmp_path, arrays, skip_empty=True, consolidated=kind != "icechunk")
    cohort.write_vcz(tmp_path / "batch.vcz", batch)
    if kind == "icechunk":
        cohort.write_vcz(tmp_path / "plain.vcz", arrays, skip_empty=True)
    stored = files(tmp_path / "plain.vcz" if kind == "icechunk" else store)
    counts = vczstore.verify(store, executor="processes" if kind == "icechunk" else "threads", max_workers=1)
    # 3 rows of 3 columns of 7 call arrays, 3 columns of 2 sample arrays, 3 rows of 3 variant arrays, 2 tables
    assert (counts.chunks, counts.absent) == (stored, 7 * 9 + 2 * 3 + 3 * 3 + 2 - stored)
    assert counts.ok
    assert counts.absent
    vczstore.remove(store, ["S0001", "S0005"])
    vczstore.append(store, tmp_path / "batch.vcz")
    assert found(store) == []
    vczstore.compact(store)
    result = look(store)
    assert (result.ok, result.outside) == (True, {})


def test_quick(tmp_path: Path) -> None:
    """Only the chunks of sample IDs are read."""
    cohort.write_vcz(tmp_path / "store.vcz", some_arrays())
    for path in tmp_path.glob("store.vcz/[cv]*/c/**/*"):
        if path.is_file():
            path.write_bytes(b"broken")
    result = vczstore.verify(tmp_path / "store.vcz", quick=True)
    assert (result.ok, result.quick, result.chunks, result.absent) == (True, True, None, None)
    zarr.open_array(tmp_path / "store.vcz" / "call_DP", mode="r+").resize((10, 8))
    assert found(tmp_path / "store.vcz", quick=True) == [("call_DP", None)]


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.slow
def test_stores_of_bio2zarr(tmp_path: Path, zarr_format: int) -> None:
    """Converted stores are valid, with a region index of several chunks and contigs."""
    path = vcf.write_vcf(tmp_path / "calls.vcf.gz", vcf.EXAMPLES["calls"].make())
    store = vcf.to_vcz(path, tmp_path / "store.vcz", zarr_format, 16, 7)
    assert zarr.open_array(store / "region_index", mode="r").shape[0] > 4
    assert found(store) == []


# ---- interrupted appends --------------------------------------------------------------------


@pytest.mark.slow
def test_stopped_append(tmp_path: Path) -> None:
    """Chunks outside the grid are reported, but only arrays that disagree are errors. The same append repairs both."""
    store, batch = tmp_path / "store.vcz", tmp_path / "batch.vcz"
    cohort.write_vcz(store, some_arrays())
    cohort.write_vcz(batch, some_arrays(5, first=7, seed=1))
    plan, place = vczstore.plan("append", store, batch), zarr.storage.LocalStore(store)
    for write in plan.writes:
        write.by_zarr(place)
    result = look(store)
    assert result.ok
    # with 12 samples instead of 7, each call array has 3 chunks more (one column), and each sample array has one
    calls = {name: 3 for name in FIELDS if name.startswith("call_")}
    assert result.outside == {**calls, "sample_id": 1, "sample_sex": 1}
    for edit in plan.edits[:2]:
        edit.apply(place)
    changed = {edit.path for edit in plan.edits[:2]}
    errors = vczstore.verify(store).errors
    assert {error.array for error in errors} == changed
    assert all("12 samples, sample_id has 7; " in e.what and "run that append again" in e.what for e in errors)
    vczstore.append(store, batch)
    result = look(store)
    assert (result.ok, result.outside) == (True, {})


# ---- errors ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Broken:
    """A change to a store, the expected locations of the errors, and a pattern for their messages."""

    do: Callable[[Path], object]
    where: Sequence[Where]
    words: str
    quick: bool = False
    """Whether the error lies in metadata or sample IDs, so that --quick finds it."""


def cut(name: str, chunk: str, keep: slice = slice(-4)) -> Callable[[Path], object]:
    def do(store: Path) -> None:
        path = store / name / "c" / chunk
        path.write_bytes(path.read_bytes()[keep])

    return do


def put(name: str, at: object, value: object) -> Callable[[Path], object]:
    def do(store: Path) -> None:
        zarr.open_array(store / name, mode="r+")[at] = value

    return do


def document(name: str, **changes: object) -> Callable[[Path], object]:
    def do(store: Path) -> None:
        path = store / name / "zarr.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return do


def unreadable(store: Path) -> None:
    path = store / "call_AD" / "c" / "0" / "1" / "0"
    path.unlink()
    path.symlink_to(path)


def wrong_dtype(store: Path) -> None:
    group = zarr.open_group(store, mode="r+")
    dims = cohort.DIMENSIONS["call_genotype_mask"]
    del group["call_genotype_mask"]
    group.create_array("call_genotype_mask", shape=(10, 7, 2), chunks=(4, 3, 2), dtype="f4", dimension_names=dims)


def blank_id_only(store: Path) -> None:
    """Blank an ID but leave a value of its sample, like a tool that looks only at IDs."""
    put("sample_id", 4, "")(store)
    for name in FIELDS:
        if name.startswith(("call_", "sample_sex")) and name != "call_DP":
            values = zarr.open_array(store / name, mode="r+")
            expected = cohort.expected_remove(some_arrays(), ["S0004"])[name]
            values[...] = expected
    put("call_DP", (slice(None), 4), [-1] * 9 + [77])(store)


BROKEN: dict[str, Broken] = {
    "cut off": Broken(cut("call_GL", "1/1/0"), [("call_GL", "c/1/1/0")], "is cut off: it has"),
    "strings cut off": Broken(cut("call_FT", "2/0"), [("call_FT", "c/2/0")], "is cut off"),
    "emptied": Broken(cut("call_DP", "0/2", slice(0)), [("call_DP", "c/0/2")], "it has 0 bytes"),
    "headless": Broken(cut("call_DP", "0/2", slice(1, None)), [("call_DP", "c/0/2")], "cut off|too long|decoded"),
    "a table": Broken(cut("contig_id", "0"), [("contig_id", "c/0")], "cut off"),
    "positions": Broken(cut("variant_position", "1"), [("variant_position", "c/1")], "cut off"),
    "unreadable": Broken(unreadable, [("call_AD", "c/0/1/0")], r"cannot be read \(.*symbolic links"),
    "two chunks": Broken(
        lambda store: [cut("call_DP", "1/0")(store), cut("call_AD", "2/1/0")(store)],
        [("call_AD", "c/2/1/0"), ("call_DP", "c/1/0")],
        "cut off",
    ),
    "an ID twice": Broken(put("sample_id", 5, "S0002"), [("sample_id", None)], r"at 5 \(as at 2\)", quick=True),
    "sample IDs cut off": Broken(
        cut("sample_id", "1"), [("sample_id", None), ("sample_id", "c/1")], "cannot be decoded|cut off"
    ),
    "genotypes": Broken(
        put("call_genotype", (9, 6, 1), 2),
        [("call_genotype", "c/2/2/0")],
        "variant 9 has allele 2 in the genotype of sample 6, there are 2 alleles; ",
    ),
    "a removed sample's value": Broken(blank_id_only, [("call_DP", "c/2/1")], "removed samples, at 4;"),
    "too few samples": Broken(
        lambda store: zarr.open_array(store / "call_DP", mode="r+").resize((10, 6)),
        [("call_DP", None)],
        "has 6 samples, sample_id has 7",
        quick=True,
    ),
    "too many variants": Broken(
        lambda store: zarr.open_array(store / "call_DP", mode="r+").resize((12, 7)),
        [("call_DP", None)],
        "has 12 variants, variant_position has 10",
        quick=True,
    ),
    "alleles": Broken(
        lambda store: zarr.open_array(store / "call_AD", mode="r+").resize((10, 7, 3)),
        [("call_AD", None)],
        "has 3 alleles, variant_allele has 2",
        quick=True,
    ),
    "dtype": Broken(wrong_dtype, [("call_genotype_mask", None)], "has dtype float32", quick=True),
    "no names": Broken(
        document("call_DP", dimension_names=None), [("call_DP", None)], "dimensions without a name", quick=True
    ),
    "names": Broken(
        document("call_DP", dimension_names=["samples", "variants"]),
        [("call_DP", None)] * 3,
        "has (7|10) (samples|variants)|in VCF Zarr they are",
        quick=True,
    ),
    "one name twice": Broken(
        document("call_FC", dimension_names=["variants", "samples", "samples"]),
        [("call_FC", None)] * 2,
        "one of them twice|has 2 samples",
        quick=True,
    ),
    "unsorted": Broken(
        put("variant_position", slice(1, 3), [30, 20]),
        [("variant_position", "c/0")],
        "variant 2 at 20 comes after 30",
    ),
    "unsorted where tasks meet": Broken(
        put("variant_position", 8, 75),
        [("region_index", None), ("variant_position", "c/2")],
        "variant 8 at 75 comes after 80|chunk 2",
    ),
    "a contig begins again": Broken(
        put("variant_contig", slice(8, 10), 0),
        [("region_index", None), ("variant_contig", None)],
        "contig 0 begins again at variant 8|chunk 2",
    ),
    "no such contig": Broken(
        put("variant_contig", 9, 2),
        [("region_index", None), ("variant_contig", "c/2")],
        "variant 9 is on contig 2|chunk 2",
    ),
    **{
        f"index, {column}": Broken(
            put("region_index", (2, j), 7), [("region_index", None)] * (2 if j == 0 else 1), "chunk [17]"
        )
        for j, column in enumerate(("chunk", "contig", "start", "end", "max end", "records"))
    },
}


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("template") / "store.vcz"
    cohort.write_vcz(store, some_arrays())
    add_index(store, INDEX)
    assert found(store) == []
    return store


@pytest.mark.slow
@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN)
def test_damage(template: Path, tmp_path: Path, broken: Broken) -> None:
    store = shutil.copytree(template, tmp_path / "store.vcz")
    broken.do(store)
    result = look(store)
    assert places(result) == broken.where
    for damage in result.errors:
        assert re.search(broken.words, damage.what), damage.what
    assert bool(found(store, quick=True)) is (broken.quick or broken.where[0] == ("sample_id", None))


ALLELES = [["A"], ["A", "."], ["A", "0"], [".", "T"], ["A", "C"], ["A", "C", "<*>"], ["A", "C", "G", "T"]]
"""Alleles of variants. An absent ALT is no allele; an absent REF is allele 0 all the same."""


def write_genotypes(store: Path, *, seed: int, invalid: float) -> tuple[np.ndarray, np.ndarray]:
    """Write genotypes, of which some are `invalid`, in chunks unlike those of alleles; return both arrays."""
    rng = np.random.default_rng(seed)
    rows = [ALLELES[i] for i in rng.integers(0, len(ALLELES), 50)]
    alleles = np.array([row + [""] * (4 - len(row)) for row in rows], dtype=object)
    ends = np.array([1 if row[1:] in ([], ["."], ["0"]) else len(row) for row in rows])[:, np.newaxis, np.newaxis]
    genotype = np.minimum(rng.integers(-2, 4, (50, 9, 2)), ends - 1)
    is_invalid = rng.random(genotype.shape) < invalid
    genotype = np.where(is_invalid, np.where(rng.random(genotype.shape) < 0.2, -3, ends), genotype).astype("i1")
    cohort.write_vcz(
        store,
        {
            "sample_id": np.array(cohort.ids(0, 9), dtype=object),
            "contig_id": np.array(["chr1"], dtype=object),
            "variant_contig": np.zeros(50, "i1"),
            "variant_position": np.arange(50, dtype="i4"),
        },
    )
    group = zarr.open_group(store, mode="r+")
    for name, values, chunks, dims in (
        ("variant_allele", alleles, (7, 3), ["variants", "alleles"]),
        ("call_genotype", genotype, (11, 4, 2), ["variants", "samples", "ploidy"]),
    ):
        kind = "string" if values.dtype == object else values.dtype
        array = group.create_array(name, shape=values.shape, dtype=kind, chunks=chunks, dimension_names=dims)
        array[...] = values
    return genotype, ends[:, 0, 0]


@pytest.mark.parametrize("invalid", [0, 0.01, 0.3])
def test_alleles_that_a_variant_does_not_have(tmp_path: Path, invalid: float) -> None:
    """Each genotype is compared with the alleles of its variant; the first error of each chunk is reported."""
    genotype, n_alleles = write_genotypes(tmp_path / "store.vcz", seed=1, invalid=invalid)
    expected = {}
    for row, sample, i in np.argwhere(genotype > -9).tolist():
        value, n = int(genotype[row, sample, i]), int(n_alleles[row])
        key, first = f"c/{row // 11}/{sample // 4}/0", (row, value, sample, n)
        if not -2 <= value < n and first[0] < expected.get(key, (99,))[0]:
            expected[key] = first
    pattern = r"variant (\d+) has allele (-?\d+) in the genotype of sample (\d+), there (?:is|are) (\d+) alleles?; "
    errors = vczstore.verify(tmp_path / "store.vcz", impl="zarr").errors
    matches = {error.chunk: re.match(pattern, error.what) for error in errors}
    assert {chunk: tuple(map(int, match.groups())) for chunk, match in matches.items() if match} == expected
    assert bool(expected) is bool(invalid)


@pytest.mark.slow
def test_alleles_that_cannot_be_decoded(tmp_path: Path) -> None:
    """Genotypes are compared with the width of `variant_allele` where its chunk is broken. Cubed reads as zarr does."""
    store = tmp_path / "store.vcz"
    write_genotypes(store, seed=2, invalid=0.05)
    before = look(store).errors
    cut("variant_allele", "1/0")(store)  # rows 7 to 13, of two chunk rows of genotypes
    zarr.open_array(store / "call_genotype", mode="r+")[7:14, 0] = 4
    after = found(store)
    assert ("variant_allele", "c/1/0") in after
    assert {("call_genotype", "c/0/0/0"), ("call_genotype", "c/1/0/0")} <= {*after}
    assert {(e.array, e.chunk) for e in before if e.chunk and e.chunk[2] in "234"} <= {*after}


def test_an_appended_genotype_with_an_allele_that_is_not_there(tmp_path: Path) -> None:
    """`append` copies it unchanged; another variant of the store has as many alleles."""
    store, batch = tmp_path / "store.vcz", tmp_path / "batch.vcz"
    write_genotypes(store, seed=3, invalid=0)
    alleles = zarr.open_array(store / "variant_allele", mode="r")[...]
    shutil.copytree(store, batch)
    put("sample_id", slice(None), np.array(cohort.ids(9, 9), dtype=object))(batch)
    row = next(i for i, texts in enumerate(alleles.tolist()) if texts == ["A", "C", "", ""])
    put("call_genotype", (row, 2), [0, 2])(batch)
    assert vczstore.verify(store, impl="zarr").ok
    vczstore.append(store, batch, impl="zarr")
    (error,) = vczstore.verify(store, impl="zarr").errors
    assert error.what.startswith(f"variant {row} has allele 2 in the genotype of sample 11, there are 2 alleles; ")


@pytest.mark.slow
@pytest.mark.parametrize("codec", ["gzip", "crc32c"])
def test_flipped_bits(tmp_path: Path, codec: str) -> None:
    """In chunks with a checksum, any flipped bit is detected, and no other chunk is reported."""
    store = tmp_path / "store.vcz"
    cohort.write_vcz(store, some_arrays(), compressors={"gzip": GzipCodec(), "crc32c": [Crc32cCodec()]}[codec])
    rng = np.random.default_rng(0)
    chunks = [path for path in sorted(store.rglob("*")) if path.is_file() and path.name != "zarr.json"]
    flipped = []
    for path in rng.choice(np.array(chunks, dtype=object), 20, replace=False):
        value = bytearray(path.read_bytes())
        value[rng.integers(10 if codec == "gzip" else 0, len(value))] ^= 1 << rng.integers(8)  # no checksum of headers
        path.write_bytes(value)
        name, _, chunk = path.relative_to(store).as_posix().partition("/")
        flipped.append((name, chunk))
    assert sorted(set(found(store)) - {("sample_id", None)}) == sorted(flipped)


@pytest.mark.slow
def test_shards(tmp_path: Path) -> None:
    store = tmp_path / "store.vcz"
    cohort.write_vcz(store, some_arrays(), shards=(2, 2))
    assert found(store) == []
    cut("call_GL", "0/1/0")(store)
    assert found(store) == [("call_GL", "c/0/1/0")]


@pytest.mark.slow
@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.filterwarnings("ignore:Consolidated metadata")
def test_consolidated_metadata(tmp_path: Path, zarr_format: int) -> None:
    store = tmp_path / "store.vcz"
    cohort.write_vcz(store, some_arrays(), zarr_format=zarr_format, consolidated=True)
    name = "zarr.json" if zarr_format == 3 else ".zmetadata"
    stale = (store / name).read_text()
    group = zarr.open_group(store, mode="r+", use_consolidated=False)
    group["call_DP"].attrs["description"] = "Depth"
    del group["call_FT"]
    group.create_array("call_GQ", data=group["call_DP"][...], **_names(zarr_format))
    (store / name).write_text(stale)
    assert found(store, quick=True) == [(name, None) for name in ("call_DP", "call_FT", "call_GQ")]
    if zarr_format == 2:
        (store / ".zmetadata").write_text(stale.replace("tests", "others"))
        assert (None, None) in found(store, quick=True)
        (store / ".zmetadata").write_text("{")
        (damage,) = vczstore.verify(store, quick=True).errors
        assert str(damage).startswith("the store: consolidated metadata cannot be read")


def _names(zarr_format: int) -> dict[str, object]:
    names = ["variants", "samples"]
    return {"dimension_names": names} if zarr_format == 3 else {"attributes": {"_ARRAY_DIMENSIONS": names}}


def test_icechunk(tmp_path: Path) -> None:
    """Truncated chunks, and lost or truncated objects of a repository."""
    arrays = cohort.make_arrays(200, cohort.ids(0, 7))
    arrays = {name: arrays[name] for name in ("sample_id", "variant_position", "call_GL")}
    store = Way("icechunk", "cubed").make(tmp_path, arrays, variants_chunk=100)
    repository = repository_of(store)
    session = repository.writable_session("main")

    from zarr.core.buffer import default_buffer_prototype

    async def truncate() -> None:
        value = await session.store.get("call_GL/c/1/2/0", default_buffer_prototype())
        await session.store.set("call_GL/c/1/2/0", value[:-4])

    asyncio.run(truncate())
    session.commit("truncated by the test")
    assert found(store) == [("call_GL", "c/1/2/0")]
    lost, shorter = sorted((store / "chunks").iterdir(), key=lambda path: path.stat().st_size)[-2:]
    lost.unlink()
    shorter.write_bytes(shorter.read_bytes()[:100])
    result = vczstore.verify(store)
    assert len(result.errors) == 3
    assert {damage.array for damage in result.errors} == {"call_GL"}
    assert sum("cannot be read" in damage.what for damage in result.errors) >= 1


# ---- command line and errors ----------------------------------------------------------------


@pytest.mark.slow
def test_command(template: Path, tmp_path: Path) -> None:
    store = shutil.copytree(template, tmp_path / "store.vcz")

    def run(*arguments: object, status: int) -> str:
        result = CliRunner().invoke(main.main, ["verify", *map(str, arguments)])
        assert result.exit_code == status, result.output
        assert ("checking" in result.stderr) is ("-P" in arguments)
        return result.stdout

    assert re.match(
        rf"verify {store}: consistent; looked at all of 16 arrays, \d+ chunks stored, 0 absent", run(store, status=0)
    )
    assert "metadata and sample IDs" in run(store, "--quick", status=0)
    assert json.loads(run(store, "--json", "-P", "--max-workers", 2, status=0))["ok"] is True
    cut("call_GL", "1/1/0")(store)
    cut("call_DP", "0/0")(store)
    (store / "call_DP" / "c" / "7").mkdir()
    (store / "call_DP" / "c" / "7" / "0").write_bytes(b"")
    head, *lines = run(store, status=1).splitlines()
    assert head.startswith(f"verify {store}: 2 errors;")
    assert [line.split(":")[0].split() for line in lines] == [
        ["call_DP"],
        ["error", "call_DP", "c/0/0"],
        ["error", "call_GL", "c/1/1/0"],
    ]
    document = json.loads(run(store, "--json", "--executor", "single-threaded", status=1))
    assert document["ok"] is False
    assert document["outside"] == {"call_DP": 1}
    assert [(d["array"], d["chunk"]) for d in document["errors"]] == [("call_DP", "c/0/0"), ("call_GL", "c/1/1/0")]
    assert run(store, "--quick", status=0)


@pytest.mark.slow
def test_stores_that_cannot_be_verified(template: Path, tmp_path: Path) -> None:
    store = shutil.copytree(template, tmp_path / "store.vcz")
    with pytest.raises(MemoryLimitError, match=r"^verify: .*--allowed-mem"):
        vczstore.verify(store, allowed_mem=300_001_500, reserved_mem=300_000_000)
    memory = zarr.storage.MemoryStore()
    cohort.write_vcz(memory, some_arrays())
    assert vczstore.verify(memory).ok
    with pytest.raises(OptionError, match=r"^verify: .*memory"):
        vczstore.verify(memory, executor="processes")
    with pytest.raises(NotAStoreError):
        vczstore.verify(tmp_path)
    (store / "call_DP" / "zarr.json").write_text("{")
    with pytest.raises(DamagedStoreError, match="metadata of call_DP cannot be read"):
        vczstore.verify(store)
