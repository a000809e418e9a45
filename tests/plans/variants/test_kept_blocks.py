"""Reference blocks that a store keeps: they supply calls at later variants, and are removed with their sample."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import vczstore
from plans.schema import keep_blocks
from plans.variants import reference_blocks
from plans.variants.kept_blocks import BLOCKS, FIELDS, LOOKED_UP, RUNS
from tests.support import cohort, gvcf, vcf
from tests.support.command_line import fails, run
from tests.support.killed import killed
from tests.support.one_sample_vcfs import calls_of
from tests.support.small_stores import unchanged
from tests.support.ways import Way

pytestmark = pytest.mark.slow

KINDS = ("format2", "format3", "flexible", "icechunk")
GVCF: dict[str, Any] = {"harmonise": True, "gvcf": True}
INSERT = {**GVCF, "new_variants": "insert"}
KEEP = {**GVCF, "keep_blocks": True}
FROM_BLOCKS = ("call_genotype", "call_genotype_phased", "call_GQ", "call_DP")
FIELDS_OF_BLOCK = "GT:DP:GQ"
A = (
    f"1 1000 A <NON_REF> 1099 {FIELDS_OF_BLOCK} 0/0:30:50",
    "1 1100 A C,<NON_REF> . GT:DP:GQ 0/1:31:99",
    f"1 1101 G <NON_REF> 1400 {FIELDS_OF_BLOCK} 0/0:77:9",
    "1 1401 ACG A,<NON_REF> . GT:DP:GQ 0/1:34:40",
    f"1 1404 T <NON_REF> 2000 {FIELDS_OF_BLOCK} 0/0:35:19",
    f"2 1000 T <NON_REF> 2000 {FIELDS_OF_BLOCK} 0/0:36:20",
    f"X 1000 T <NON_REF> 2000 {FIELDS_OF_BLOCK} 0:37:19",
)
B = (
    f"1 1000 A <NON_REF> 1049 {FIELDS_OF_BLOCK} 0/0:5:40",
    "1 1050 C T,<NON_REF> . GT:DP:GQ 1/1:6:50",
    f"1 1051 A <NON_REF> 1401 {FIELDS_OF_BLOCK} 0/0:7:41",
    "1 1402 C T,<NON_REF> . GT:DP:GQ 0/1:6:50",
    "1 1500 A T,<NON_REF> . GT:DP:GQ 0|1:6:50",
    "2 1500 A T,<NON_REF> . GT:DP:GQ 0|1:6:50",
    "X 1200 A T,<NON_REF> . GT:DP:GQ 1:6:50",
)
C = ("1 1300 G T,<NON_REF> . GT:DP:GQ 0/1:16:51", f"1 1301 G <NON_REF> 1600 {FIELDS_OF_BLOCK} 0/0:17:52")
PLAIN = ("1 1100 A C . GT:DP:GQ 0/1:31:99",)


def sources(folder: Path, *, zarr_format: int = 3, **batches: tuple[str, ...]) -> list[Path]:
    return [gvcf.make(folder, name, gvcf.text([name], *records), zarr_format) for name, records in batches.items()]


def create(folder: Path, name: str, kind: str, *over: Path) -> Path:
    store = folder / name
    backend = "icechunk" if kind == "icechunk" else None
    grid = "flexible" if kind == "flexible" else "regular"
    vczstore.create(
        store, *over, gvcf=True, variants_chunk=3, samples_chunk=2, sample_grid=grid, backend_storage=backend
    )
    if kind == "format2":
        as_format_2(store)
    return store


def as_format_2(store: Path) -> None:
    """Rewrite a store in format 2, with consolidated metadata."""
    before = zarr.open_group(store.rename(store.with_name(f"{store.name}.format3")), mode="r")
    group = zarr.create_group(store, zarr_format=2, attributes=dict(before.attrs))
    for name, array in before.arrays():
        attributes = {"_ARRAY_DIMENSIONS": list(array.metadata.dimension_names)}
        layout = {"shape": array.shape, "dtype": array.dtype, "chunks": array.chunks, "fill_value": array.fill_value}
        group.create_array(name, **layout, attributes=attributes)[...] = array[...]
    zarr.consolidate_metadata(store, zarr_format=2)


def start(folder: Path, kind: str, *paths: Path) -> Path:
    """Create a store over the variants of the first gVCF, which keeps the blocks of all gVCFs."""
    store = create(folder, "store", kind, paths[0])
    vczstore.append(store, *paths, **KEEP, new_variants="drop")
    return store


def read(store: Path, kind: str) -> dict[str, np.ndarray]:
    return Way(kind, "cubed").read(store)


def count_calls(arrays: dict[str, np.ndarray]) -> Counter[Any]:
    """Count the calls of each sample at each variant, in fields that blocks supply; the order of ALTs is ignored."""
    counts: Counter[Any] = Counter()
    for i, row in enumerate(arrays["variant_allele"].tolist()):
        alleles = [a for a in row if a]
        contig = arrays["contig_id"][arrays["variant_contig"][i]]
        site = (contig, int(arrays["variant_position"][i]), alleles[0], frozenset(alleles[1:]))
        for j, sample in enumerate(arrays["sample_id"].tolist()):
            genotype, *others = (arrays[name][i, j].tolist() for name in FROM_BLOCKS)
            counts[site, sample, tuple(alleles[a] if a >= 0 else a for a in genotype), *others] += 1
    return counts


dimensions = cohort.more_arrays(gvcf.DIMENSIONS)


def test_one_sample_in_chunks_of_a_thousand(tmp_path: Path) -> None:
    """In a store as `create` makes it, reads are bounded by the samples that exist, so the usual memory is enough."""
    for name, position in (("A", 1100), ("B", 1050)):
        call = f"1 {position} A C,<NON_REF> . GT:DP:GQ:PL 0/1:31:99:9,0,9,9,9,9"
        block = f"1 {position + 1} A <NON_REF> 1400 GT:DP:GQ:PL 0/0:77:9:0,9,9"
        vcf.write_vcf(tmp_path / f"{name}.vcf.gz", gvcf.text([name], call, block))
    store = tmp_path / "store"
    vczstore.create(store, tmp_path / "A.vcf.gz", gvcf=True)
    vczstore.append(store, tmp_path / "A.vcf.gz", **KEEP)
    result = vczstore.append(store, tmp_path / "B.vcf.gz", **INSERT)
    assert result.counts["variants inserted"] == 1


def test_a_copy_with_new_variants(tmp_path: Path) -> None:
    """The copy keeps the blocks like the store, and later insertions have the same result in both."""
    first, *others, later = sources(tmp_path, A=A, B=B, C=C, D=B, E=C)
    store = start(tmp_path, kind := "flexible", first)
    out = tmp_path / "out"
    with unchanged(store):
        vczstore.append(store, *others, **INSERT, output=out)
    vczstore.append(store, *others, **INSERT)
    cohort.assert_same(cohort.read_vcz(out), read(store, kind))
    for place in (out, store):
        vczstore.append(place, later, **INSERT)
    cohort.assert_same(cohort.read_vcz(out), read(store, kind))


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of three records of a sample, and of two runs, so that both arrays become longer."""
    for name, n in (("MIN_ROWS", 3), ("CELLS", 6), ("RUNS_CHUNK", 2)):
        monkeypatch.setattr(keep_blocks, name, n)


# ---- calls from kept blocks -----------------------------------------------------------------


@settings(
    max_examples=4,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
)
@given(data=st.data())
def test_calls_are_those_of_a_store_created_with_all(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Batches in any order, with blocks that overlap, samples without a call, and lengths by sample."""
    folder, kind = tmp_path_factory.mktemp("law"), data.draw(st.sampled_from(KINDS))
    min_gq, absent = data.draw(st.sampled_from([None, None, 30])), data.draw(st.sampled_from(["missing", "reference"]))
    paths, with_length = [], data.draw(st.booleans())
    for i, n in enumerate(data.draw(st.sampled_from([(1, 1), (2, 1), (1, 1, 3)]))):
        records = data.draw(gvcf.some_records(n, with_length=with_length))
        if any(len(r.alleles) > len(r.seen) for r in records):
            arrays = gvcf.arrays_of([f"s{i}{j}" for j in range(n)], records, by_length=with_length)
            chunk = data.draw(st.sampled_from([1, 2, 5]))
            cohort.write_vcz(
                folder / f"{i}.vcz", arrays, variants_chunk=chunk, zarr_format=2 if kind == "format2" else 3
            )
            paths.append(folder / f"{i}.vcz")
    if not paths:
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference_blocks, "SLAB_CALLS", data.draw(st.sampled_from([1, 4, 2**14])))
        for name, n in (("MIN_ROWS", data.draw(st.integers(1, 4))), ("CELLS", 1), ("RUNS_CHUNK", 2)):
            patch.setattr(keep_blocks, name, n)
        options = {"min_gq": min_gq, "absent": absent}
        model = create(folder, "every", kind, *paths)
        vczstore.append(model, *paths, **GVCF, **options)
        store = create(folder, "one", kind, paths[0])
        vczstore.append(store, paths[0], **KEEP, **options)
        for path in data.draw(st.permutations(paths[1:])):
            vczstore.append(store, path, **INSERT, **options)
    assert count_calls(read(store, kind)) == count_calls(read(model, kind))


@pytest.mark.parametrize(("kind", "at_once"), [("format3", LOOKED_UP), ("icechunk", 1)])
def test_bcftools_merge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, at_once: int) -> None:
    """Including a lookup of the calls of one variant at a time."""
    monkeypatch.setattr("plans.variants.kept_blocks.LOOKED_UP", at_once)
    paths = sources(tmp_path, a=A, b=B, c=C)
    store = start(tmp_path, kind, paths[0])
    for path in paths[1:]:
        vczstore.append(store, path, **INSERT)
    text = vcf.vcztools_view(store, icechunk=kind == "icechunk")
    ours = dict(zip(gvcf.sites(store, icechunk=kind == "icechunk"), calls_of(text), strict=True))
    theirs = gvcf.merged(tmp_path, "a", "b", "c")
    assert len(ours) == 8
    assert ours == theirs
    assert ours["1 1300 G T"]["a:DP"] == "77"
    assert "a:GT" not in ours["1 1402 C T"]  # within the deletion
    assert ours["X 1200 A T"]["a:GT"] == "0"


@pytest.mark.usefixtures("small_chunks")
def test_a_store_keeps_the_blocks_of_later_gvcfs(tmp_path: Path) -> None:
    """Even if they are appended without the flag; samples of other sources have no blocks."""
    paths = sources(tmp_path, a=A, c=C, plain=PLAIN, b=B)
    store = start(tmp_path, kind := "icechunk", paths[0])
    vczstore.append(store, paths[1], **GVCF, new_variants="drop")
    vczstore.append(store, paths[2], harmonise=True)
    vczstore.append(store, paths[3], **INSERT)
    arrays = read(store, kind)
    (row,) = np.flatnonzero((arrays["variant_position"] == 1500) & (arrays["variant_contig"] == 0))
    assert arrays["call_DP"][row].tolist() == [35, 17, -1, 6]
    assert arrays["call_genotype"][row].tolist() == [[0, 0], [0, 0], [-1, -1], [0, 1]]
    assert (arrays[BLOCKS][2] < 0).all()
    assert vczstore.verify(store).ok


@pytest.mark.parametrize("kind", ["format2", "flexible"])
def test_a_store_begins_to_keep_blocks(tmp_path: Path, kind: str) -> None:
    """The samples that are already in the store have no blocks."""
    paths = sources(tmp_path, a=A, c=C, b=B)
    store = create(tmp_path, "store", kind, paths[0])
    vczstore.append(store, paths[0], **GVCF)
    vczstore.append(store, paths[1], **KEEP, new_variants="drop")
    vczstore.append(store, paths[2], **INSERT)
    arrays = read(store, kind)
    (row,) = np.flatnonzero((arrays["variant_position"] == 1500) & (arrays["variant_contig"] == 0))
    assert arrays["call_genotype"][row].tolist() == [[-1, -1], [0, 0], [0, 1]]
    assert arrays["call_genotype_mask"][row].tolist() == [[True, True], [False, False], [False, False]]


def test_a_minimum_quality_that_is_given_later(tmp_path: Path) -> None:
    paths = sources(tmp_path, a=A, b=B)
    store = start(tmp_path, "format3", paths[0])
    vczstore.append(store, paths[1], **INSERT, min_gq=20)
    arrays = read(store, "format3")
    depths = {
        (int(c), int(p)): int(d)
        for c, p, d in zip(arrays["variant_contig"], arrays["variant_position"], arrays["call_DP"][:, 0], strict=True)
    }
    assert (depths[0, 1050], depths[0, 1500], depths[1, 1500]) == (30, -1, 36)


def test_two_stores_that_keep_blocks(tmp_path: Path) -> None:
    """Appended together, each supplies calls at the variants of the other; values that do not fit widen the store."""
    deep = (*A[:4], f"1 1404 T <NON_REF> 2000 {FIELDS_OF_BLOCK} 0/0:300:99", *A[5:])
    paths = sources(tmp_path, a=deep, b=B, c=C)
    kept = []
    for name, path in (("x", paths[0]), ("y", paths[1])):
        kept.append(create(tmp_path, name, "format3", path))
        vczstore.append(kept[-1], path, **KEEP)
    group = zarr.open_group(kept[0], use_consolidated=False)
    narrow = group["call_DP"][...].astype("i1")  # the depths at its variants
    group.create_array("call_DP", data=narrow, chunks=(3, 2), dimension_names=["variants", "samples"], overwrite=True)
    store = create(tmp_path, "store", "format3", paths[2])
    vczstore.append(store, paths[2], **KEEP)
    shutil.copytree(store, tmp_path / "model")
    assert read(store, "format3")["call_DP"].dtype == "i1"
    vczstore.append(store, *kept, harmonise=True, new_variants="insert")
    vczstore.append(tmp_path / "model", *paths[:2], **INSERT)
    ours, model = read(store, "format3"), read(tmp_path / "model", "format3")
    assert count_calls(ours) == count_calls(model)
    assert ours["call_DP"].dtype == "i2"
    assert 300 in ours["call_DP"]
    vczstore.normalise(store, kept[0], tmp_path / "x.normalised.vcz", new_variants="drop")
    assert 300 in read(tmp_path / "x.normalised.vcz", "format3")["call_DP"]


def test_blocks_whose_values_do_not_fit_the_store(tmp_path: Path) -> None:
    """Inserted variants widen its arrays before anything is written."""
    paths = sources(tmp_path, a=A, b=B)
    store = start(tmp_path, "format3", paths[0])
    array = zarr.open_array(store / BLOCKS, mode="r+")
    array[0, 0, FIELDS.index("DP")] = 70_000
    vczstore.append(store, paths[1], **INSERT)
    arrays = read(store, "format3")
    assert (arrays["call_DP"].dtype, arrays["call_DP"].max()) == ("i4", 70_000)


def test_another_store_accepts_kept_blocks(tmp_path: Path) -> None:
    """Its contig table may differ; a store that keeps no blocks accepts the source only if they are dropped."""
    paths = sources(tmp_path, a=A, b=B)
    ours = start(tmp_path, "format3", paths[0])
    text = gvcf.text(["x"], "X 1000 T C . GT:DP:GQ 0/1:1:2", "1 1100 A C . GT:DP:GQ 0/1:1:2")
    text = text.replace("<ID=1,", "<ID=?,").replace("<ID=X,", "<ID=1,").replace("<ID=?,", "<ID=X,")
    other = tmp_path / "other"
    vczstore.create(other, gvcf.make(tmp_path, "x", text))
    vczstore.append(other, ours, harmonise=True, new_variants="drop")
    vczstore.append(other, paths[1], **INSERT)
    arrays = read(other, "format3")
    contigs = arrays["contig_id"][arrays["variant_contig"]].tolist()
    depths = dict(
        zip(zip(contigs, arrays["variant_position"].tolist(), strict=True), arrays["call_DP"][:, 0], strict=True)
    )
    assert (depths["1", 1050], depths["1", 1500], depths["X", 1200]) == (30, 35, 37)
    keeps_none = create(tmp_path, "none", "format3", paths[0])
    vczstore.append(keeps_none, paths[1], **GVCF, new_variants="drop")
    with unchanged(keeps_none):
        stderr = fails("append", "--harmonise", keeps_none, ours)
    assert f"has {BLOCKS} and {RUNS}" in stderr.replace(", ", " and ")
    assert f"--drop-field {BLOCKS}" in stderr
    run("append", "--harmonise", "--drop-field", BLOCKS, keeps_none, ours)
    assert BLOCKS not in read(keeps_none, "format3")


@pytest.mark.parametrize(("kind", "is_normalised"), [("format3", True), ("icechunk", False)])
def test_another_store_without_some_of_its_variants(tmp_path: Path, kind: str, is_normalised: bool) -> None:
    """A call that was left out is missing, not reference, when its variant is inserted later."""
    records = (
        B[1],
        "1 1100 A C,<NON_REF> . GT:DP:GQ 0/1:6:50",
        f"1 1101 A <NON_REF> 1401 {FIELDS_OF_BLOCK} 0/0:7:41",
        B[3],
    )
    paths = sources(tmp_path, a=A, b=records, c=C)
    ours, theirs = start(tmp_path, kind, paths[0]), create(tmp_path, "theirs", kind, paths[1])
    vczstore.append(theirs, paths[1], **KEEP)
    if is_normalised:
        vczstore.normalise(ours, theirs, tmp_path / "b.normalised.vcz", new_variants="drop")
        vczstore.append(ours, tmp_path / "b.normalised.vcz")
    else:
        vczstore.append(ours, theirs, harmonise=True, new_variants="drop")
    again = gvcf.make(tmp_path, "d", gvcf.text(["d"], *records))
    vczstore.append(ours, again, paths[2], **INSERT, absent="reference")
    arrays = read(ours, kind)
    genotypes = dict(zip(arrays["variant_position"].tolist(), arrays["call_genotype"][:, 1].tolist(), strict=True))
    assert (genotypes[1050], genotypes[1402], genotypes[1300]) == ([-1, -1], [-1, -1], [0, 0])


def test_a_normalised_gvcf_has_its_blocks(tmp_path: Path) -> None:
    paths = sources(tmp_path, a=A, c=C, b=B)
    store = start(tmp_path, "format3", paths[0])
    vczstore.normalise(store, paths[1], tmp_path / "c.normalised.vcz", gvcf=True, new_variants="drop")
    vczstore.append(store, tmp_path / "c.normalised.vcz")
    vczstore.append(store, paths[2], **INSERT)
    arrays = read(store, "format3")
    assert arrays["call_DP"][arrays["variant_position"] == 1500][0].tolist() == [35, 17, 6]


def test_a_job_keeps_blocks(tmp_path: Path) -> None:
    paths = sources(tmp_path, a=A, b=B)
    store = create(tmp_path, "store", "icechunk", paths[0])
    for path in paths:
        step = f"append: {{source: {path}, harmonise: {{gvcf: true, keep-blocks: true, new-variants: insert}}}}"
        (tmp_path / "job.yaml").write_text(f"store: {store}\nsteps: [{{{step}}}]\n")
        vczstore.run_job(tmp_path / "job.yaml")
    model = create(tmp_path, "model", "format3", *paths)
    vczstore.append(model, *paths, **GVCF)
    assert count_calls(read(store, "icechunk")) == count_calls(read(model, "format3"))


# ---- blocks of removed and updated samples --------------------------------------------------


SECRET = "2 4000 A <NON_REF> 31321 GT:DP:GQ 0/0:12345:77"
"""A block that no other sample has."""
NUMBERS = (31321, 12345)


def secretive(folder: Path, kind: str) -> Path:
    """Create a store of three samples, of which the second has the block SECRET."""
    zarr_format = 2 if kind == "format2" else 3
    return start(folder, kind, *sources(folder, zarr_format=zarr_format, a=A, secret=(*A[:6], SECRET, *A[6:]), b=B))


def chunks(store: Path) -> Iterator[np.ndarray]:
    """Yield every chunk of the two arrays on plain Zarr, decoded, including chunks beyond the edge."""
    for name, dtype in ((BLOCKS, "<i4"), (RUNS, "<i8")):
        for path in (store / name).rglob("*"):
            if path.is_file() and path.name not in ("zarr.json", ".zarray", ".zattrs"):
                yield np.frombuffer(numcodecs.Blosc().decode(path.read_bytes()), dtype)


def holds(store: Path, kind: str) -> bool:
    """Whether any of NUMBERS is in the arrays of blocks, or in any of their files on plain Zarr."""
    arrays = read(store, kind)
    parts = [arrays[BLOCKS], arrays[RUNS], *(chunks(store) if kind != "icechunk" else ())]
    return any(np.isin(NUMBERS, values).any() for values in parts)


@pytest.mark.parametrize("kind", ["format2", "flexible", "icechunk"])
def test_a_removed_sample_has_no_blocks(tmp_path: Path, kind: str) -> None:
    store = secretive(tmp_path, kind)
    before = read(store, kind)
    assert holds(store, kind)
    vczstore.remove(store, ["secret"])
    after = read(store, kind)
    assert not holds(store, kind)
    for name in (BLOCKS, RUNS):
        assert (after[name][1] == -1).all()
        assert (np.delete(after[name], 1, axis=0) == np.delete(before[name], 1, axis=0)).all()
    assert vczstore.verify(store).ok
    vczstore.purge(store)
    report = vczstore.verify_removal(store, ["secret"])
    assert report.erased, report.reasons
    # it has no calls at variants that are inserted later, for any value of `absent`
    (path,) = sources(tmp_path, late=("2 4100 A T,<NON_REF> . GT:DP:GQ 0|1:6:50",))
    vczstore.append(store, path, **INSERT, absent="reference")
    row = read(store, kind)["variant_position"].tolist().index(4100)
    assert read(store, kind)["call_genotype"][row].tolist() == [[0, 0], [-1, -1], [0, 0], [0, 1]]
    assert read(store, kind)["call_DP"][row].tolist() == [-1, -1, -1, 6]


@pytest.mark.parametrize("kind", ["format2", "icechunk"])
def test_compaction_drops_the_blocks_of_removed_samples(tmp_path: Path, kind: str) -> None:
    store = secretive(tmp_path, kind)
    before = read(store, kind)
    vczstore.remove(store, ["secret"])
    vczstore.compact(store)
    after = read(store, kind)
    assert not holds(store, kind)
    for name in (BLOCKS, RUNS):
        assert (after[name] == before[name][[0, 2]]).all()


@pytest.mark.parametrize(("kind", "name"), [("format2", BLOCKS), ("flexible", RUNS)])
def test_leftover_blocks_of_a_removed_sample_are_found(tmp_path: Path, kind: str, name: str) -> None:
    store = secretive(tmp_path, kind)
    before = read(store, kind)[name]
    vczstore.remove(store, ["secret"])
    array = zarr.open_array(store / name, mode="r+")
    row = int(np.flatnonzero((before[1] > 0).any(axis=1))[-1])
    array[1, row] = before[1, row]
    report = vczstore.verify_removal(store, ["secret"])
    assert not report.erased
    assert name in " ".join(report.reasons)
    assert not vczstore.verify(store).ok
    vczstore.repair(store)
    assert (read(store, kind)[name][1] < 0).all()
    assert vczstore.verify_removal(store, ["secret"]).erased


def test_an_update_replaces_blocks(tmp_path: Path) -> None:
    """Blocks of the earlier calls are dropped; a normalised gVCF has blocks of its own."""
    store = secretive(tmp_path, kind := "flexible")
    plain = gvcf.make(tmp_path, "plain", gvcf.text(["secret"], *PLAIN))
    vczstore.normalise(store, plain, tmp_path / "plain.normalised.vcz")
    vczstore.update(store, tmp_path / "plain.normalised.vcz")
    assert not holds(store, kind)
    assert (read(store, kind)[BLOCKS][1] < 0).all()
    again = gvcf.make(tmp_path, "again", gvcf.text(["secret"], *A[:6], SECRET, *A[6:]))
    vczstore.normalise(store, again, tmp_path / "again.normalised.vcz", gvcf=True)
    vczstore.update(store, tmp_path / "again.normalised.vcz")
    assert holds(store, kind)


@pytest.mark.parametrize(
    ("kind", "name", "row", "field", "value", "words"),
    [
        ("format3", BLOCKS, 2, 0, 999, "record 2 of sample 1, from 999 to 1400, is out of order"),
        ("flexible", BLOCKS, 4, 1, 7, "record 4 of sample 1, from 1404 to 7, is out of order"),
        ("format2", BLOCKS, 0, 0, 1001, "record 0 of sample 1, from 1001 to 1099, is out of order"),
        ("format3", RUNS, 0, 1, 20_000, "run 0 of sample 1 has the rows 0 to 19999, which are not there"),
    ],
)
def test_verify_finds_blocks_that_are_out_of_order(
    tmp_path: Path, kind: str, name: str, row: int, field: int, value: int, words: str
) -> None:
    store = secretive(tmp_path, kind)
    assert vczstore.verify(store).ok
    zarr.open_array(store / name, mode="r+")[1, row, field] = value
    (error,) = vczstore.verify(store).errors
    assert error.array == name
    assert words in error.what


def test_an_update_inserts_variants(tmp_path: Path) -> None:
    """Other samples get calls from their blocks there, and the updated sample has its new blocks."""
    (tmp_path / "again").mkdir()
    paths = sources(tmp_path, a=A, c=C)
    again = gvcf.make(tmp_path / "again", "c", gvcf.text(["c"], *B))
    late = gvcf.make(tmp_path, "late", gvcf.text(["late"], "1 1030 A T,<NON_REF> . GT:DP:GQ 0|1:6:50"))
    store = start(tmp_path, kind := "format2", *paths)
    vczstore.update(store, again, **INSERT)
    vczstore.append(store, late, **INSERT)
    model = create(tmp_path, "model", kind, paths[0], again, late)
    vczstore.append(model, paths[0], again, late, **GVCF)
    assert count_calls(read(store, kind)) == count_calls(read(model, kind))
    assert vczstore.verify(store).ok


def test_another_sample_grid(tmp_path: Path) -> None:
    """The arrays of blocks are chunked like other arrays, and removed samples leave nothing in either grid."""
    store = secretive(tmp_path, "format3")
    before = read(store, "format3")
    for grid in ("flexible", "regular"):
        vczstore.regrid(store, sample_grid=grid, samples_chunk=1 if grid == "regular" else None)
        for name in (BLOCKS, RUNS):
            assert (read(store, "format3")[name] == before[name]).all()
    assert zarr.open_array(store / BLOCKS).chunks[0] == 1
    vczstore.regrid(store, sample_grid="flexible")
    vczstore.remove(store, ["secret"])
    vczstore.compact(store)
    assert not holds(store, "format3")
    assert vczstore.verify_removal(store, ["secret"]).erased


def test_an_export_of_regions_has_no_blocks(tmp_path: Path) -> None:
    """Blocks would reveal calls outside of the regions; the omission is reported, with or without variants there."""
    store = start(tmp_path, "format3", *sources(tmp_path, A=A, B=B))
    vczstore.export(store, tmp_path / "whole")
    assert {BLOCKS, RUNS} <= {*zarr.open_consolidated(tmp_path / "whole")}
    for regions in ("1:1-1200", "2:1-5", "1,2,X"):
        out = tmp_path / regions
        assert "reference blocks are left out" in run("export", store, out, "-r", regions).stdout
        assert {*zarr.open_consolidated(tmp_path / "whole")} - {*zarr.open_consolidated(out)} == {BLOCKS, RUNS}
        assert not (out / BLOCKS).exists()
        assert not (out / RUNS).exists()
        assert vczstore.verify(out).ok


def test_blocks_are_kept_when_samples_are_renamed_and_stores_copied(tmp_path: Path) -> None:
    store = secretive(tmp_path, "format3")
    (tmp_path / "names.txt").write_text("secret\tother\n")
    vczstore.rename_samples(store, tmp_path / "names.txt")
    before = read(store, "format3")
    vczstore.copy_store_to_icechunk(store, tmp_path / "copy")
    after = read(tmp_path / "copy", "icechunk")
    for name in (BLOCKS, RUNS):
        assert (after[name] == before[name]).all()
    (path,) = sources(tmp_path, late=("2 4100 A T,<NON_REF> . GT:DP:GQ 0|1:6:50",))
    vczstore.append(tmp_path / "copy", path, **INSERT)
    after = read(tmp_path / "copy", "icechunk")
    assert after["call_DP"][after["variant_position"] == 4100].tolist() == [[-1, 12345, -1, 6]]
    assert BLOCKS in run("info", tmp_path / "copy").stdout


@pytest.mark.parametrize(
    ("kind", "new_variants"),
    [("format2", "drop"), ("flexible", "insert"), ("icechunk", "insert")],
)
@pytest.mark.usefixtures("small_chunks")
def test_later_gvcfs_with_more_records(tmp_path: Path, kind: str, new_variants: str) -> None:
    """Other samples are padded with fill, even if an interrupted append left data beyond the edge on plain Zarr."""
    paths = sources(tmp_path, c=C, d=C, a=A)
    store = start(tmp_path, kind, *paths[:2])
    before = read(store, kind)
    for name in (BLOCKS, RUNS) if kind != "icechunk" else ():
        (document,) = (path for key in ("zarr.json", ".zarray") if (path := store / name / key).exists())
        text, array = document.read_text(), zarr.open_array(store / name, mode="r+")
        edge = array.shape[1]
        array.resize((2, 3 * edge, array.shape[2]))
        array[:, edge:] = 7
        document.write_text(text)
    vczstore.append(store, paths[2], **GVCF, new_variants=new_variants)
    after = read(store, kind)
    for name in (BLOCKS, RUNS):
        edge = before[name].shape[1]
        assert after[name].shape[1] > edge
        assert (after[name][:2, :edge] == before[name]).all()
        assert (after[name][:2, edge:] == -2).all()


# ---- killed operations, and refusals --------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Object at .*partial is not recognized")
@pytest.mark.parametrize(("kind", "insert"), [("format2", False), ("format3", True)])
@pytest.mark.usefixtures("small_chunks")
def test_killed(tmp_path: Path, kind: str, insert: bool) -> None:
    """Readers see the old samples, or all of the new ones; the same append completes it, with the same blocks."""
    paths = sources(tmp_path, c=C, a=A)
    store = start(tmp_path, kind, paths[0])
    store.rename(tmp_path / "template.vcz")
    options = {**GVCF, "new_variants": "insert" if insert else "drop", "impl": "zarr"}
    code = f"import vczstore\nvczstore.append(store, {str(paths[1])!r}, **{options!r})"
    kill_points = {"step": 97} if insert else {"step": 5, "last": 30}  # chunks are written as in any append
    *copies, whole = killed(tmp_path / "template.vcz", tmp_path / "killed", code, **kill_points)
    model = read(whole, kind)
    assert len(copies) > 4
    for copy in copies:
        contents = read(copy, kind)
        if contents["sample_id"].tolist() == ["c"] or not insert:
            exec(code, {"store": copy})
            contents = read(copy, kind)
        assert sorted(contents) == sorted(model)
        assert all((contents[name] == model[name]).all() for name in (BLOCKS, RUNS, *FROM_BLOCKS))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--harmonise", "--keep-blocks"), "append: --keep-blocks needs --gvcf"),
        (("--keep-blocks", "--gvcf"), "--gvcf and --keep-blocks need --harmonise"),
    ],
)
def test_options_that_do_not_go_together(tmp_path: Path, options: Sequence[str], words: str) -> None:
    assert words in run("append", *options, tmp_path / "store.vcz", tmp_path / "a.vcz", status=2).stderr


def test_blocks_that_cannot_be_kept_are_refused(tmp_path: Path) -> None:
    path, wide = sources(tmp_path, a=A, wide=("1 1000 A C,<NON_REF> . GT:DP " + "/".join("0" * 15) + ":3",))
    store = create(tmp_path, "store", "format3", path)
    arguments = ("append", "--harmonise", "--gvcf", "--keep-blocks", "--new-variants", "drop", store)
    shutil.copytree(path, tmp_path / "floats.vcz")
    group = zarr.open_group(tmp_path / "floats.vcz", use_consolidated=False)
    depths = read(path, "format3")["call_DP"].astype("f4")
    group.create_array("call_DP", data=depths, dimension_names=["variants", "samples"], overwrite=True)
    with unchanged(store):
        assert "call_DP of " in (stderr := fails(*arguments, tmp_path / "floats.vcz"))
        assert "has dtype float32, and kept reference blocks have integers" in stderr
        assert "has ploidy 15, and reference blocks are kept of genotypes of up to 14" in fails(*arguments, wide)


def test_a_record_takes_few_bytes(tmp_path: Path) -> None:
    """Blocks of random lengths, back to back, with GQ in bands of ten."""
    n, rng = 2**13, np.random.default_rng(1)
    starts = np.cumsum(rng.integers(1, 120, n))
    alleles = np.broadcast_to(np.array(["A", "<NON_REF>"], dtype=object), (n, 2))
    arrays = {
        "sample_id": np.array(["a"], dtype=object),
        "contig_id": np.array(["1"], dtype=object),
        "variant_contig": np.zeros(n, "i1"),
        "variant_position": starts.astype("i4"),
        "variant_allele": alleles,
        "variant_END": np.append(starts[1:] - 1, starts[-1]).astype("i4"),
        "call_genotype": np.zeros((n, 1, 2), "i1"),
        "call_GQ": rng.integers(0, 10, (n, 1)).astype("i1") * 10,
        "call_DP": rng.poisson(30, (n, 1)).astype("i2"),
    }
    cohort.write_vcz(tmp_path / "a.vcz", arrays, variants_chunk=1000)
    store = start(tmp_path, "format3", tmp_path / "a.vcz")
    files = [path for name in (BLOCKS, RUNS) for path in (store / name).rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 5 * n
    assert read(store, "format3")[BLOCKS].shape == (1, n, len(FIELDS))


def test_the_layout_of_kept_blocks(tmp_path: Path) -> None:
    """As documented: the records of each sample in order."""
    store = start(tmp_path, "format3", *sources(tmp_path, a=A))
    arrays = read(store, "format3")
    start_at, end, variant_end, genotype, quality, depth = np.moveaxis(arrays[BLOCKS][0, : len(A)], 1, 0).tolist()
    assert zarr.open_array(store / BLOCKS).attrs["fields"] == list(FIELDS)
    assert start_at == [1000, 1100, 1101, 1401, 1404, 1000, 1000]
    assert end == [1099, 1100, 1400, 1403, 2000, 2000, 2000]
    assert variant_end == [-1, 1100, -1, 1403, -1, -1, -1]
    assert (genotype[0], quality[:2], depth[:2]) == (10, [50, 99], [30, 31])
    assert (arrays[BLOCKS][0, len(A) :] == -2).all()
