"""Fields, dtypes and axes that differ between sources, or between sources and the store."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import yaml
import zarr
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

import vczstore
from plans.schema.layout import Form, Mismatch
from tests.support import cohort
from tests.support.one_sample_vcfs import (
    HEADER,
    KINDS,
    fix_widths,
    make,
    merged,
    opened,
    shown,
    start,
)
from vczstore.cli.main import main
from vczstore.errors import IncompatibleError, OptionError

# ---- a store without samples ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "harmonise", "order"), [("format3", False, "CBA"), ("format3", True, "BCA"), ("icechunk", False, "ACB")]
)
@pytest.mark.slow
def test_no_field_of_any_source_is_lost(tmp_path: Path, kind: str, harmonise: bool, order: str) -> None:
    """The first append to a store without samples adds the fields of all sources, as bcftools merge does."""
    a = make(tmp_path, "A", "GT:DP", "0/1:5", "0/0:6")
    b = make(tmp_path, "B", "GT:DP:PS", "0|1:7:3000000", "1/1:8:.")
    c = make(tmp_path, "C", "GT:GQ", "1/1:99", "./.:3")
    expected = merged(tmp_path, "A", "B", "C")
    assert expected[0]["B:PS"] == "3000000"
    store = start(tmp_path, kind, a, b)
    vczstore.append(store, *({"A": a, "B": b, "C": c}[name] for name in order), harmonise=harmonise)
    assert shown(store, kind) == expected
    assert vczstore.verify(store).errors == []


@pytest.mark.parametrize(("kind", "harmonise"), [("format3", True), ("icechunk", False)])
@pytest.mark.slow
def test_the_widest_form_of_all_sources_is_used(tmp_path: Path, kind: str, harmonise: bool) -> None:
    """Of dtypes, vectors, axes that converters drop, and ploidies; in any order of the sources."""
    a = make(tmp_path, "A", "GT:DP:XN:XF:PGT", "0/1:12:1,2:.5:a,b", "0/1:100:1,2:.25:a")
    b = make(tmp_path, "B", "GT:DP:XN:XF:PGT", "0/1:300:7:.5,.25:c", "0/1:70000:.:.:d")
    c = make(tmp_path, "C", "GT:DP:XN:XF:PGT", "1:3:1,2,3:.:.", "0:7:1,.,4:.5,.,.75:x,y,z")
    expected = merged(tmp_path, "A", "B", "C")
    all_metadata = []
    # each source comes first once, and last once
    for order in ([a, b, c], [b, c, a], [c, a, b]):
        store = start(tmp_path, kind, a, b)
        vczstore.append(store, *order, harmonise=harmonise)
        assert shown(store, kind) == expected
        root = opened(store, kind)
        all_metadata.append({name: array.metadata.to_dict() for name, array in root.arrays()})
        assert (root["call_DP"].dtype, root["call_XN"].shape[2], root["call_PGT"].shape[2]) == (np.int32, 3, 3)
        haploid = root["call_genotype"][:, order.index(c)]
        assert haploid.tolist() == [[1, -2], [0, -2]]
        assert root["call_genotype_mask"][:, order.index(c)].tolist() == [[False, True], [False, True]]
    assert all(metadata == all_metadata[0] for metadata in all_metadata)


# ---- a store with samples -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "impl", "harmonise"),
    [
        ("format3", "cubed", True),
        ("icechunk", "zarr", False),
        ("icechunk", "xarray", False),
    ],
)
@pytest.mark.slow
def test_a_later_batch_widens_the_store(tmp_path: Path, kind: str, impl: str, harmonise: bool) -> None:
    """
    A wider dtype, a longer vector, an axis that the store lacks, another ploidy: in one commit.

    Only the harmonised append has the reverse order.
    """
    a = make(tmp_path, "A", "GT:DP:XN:XF:PGT", "0/1:12:1:.5:a", "0/1:100:.:.:a")
    b = make(tmp_path, "B", "GT:DP:XN:XF:PGT", "0/1:300:7,8,9:.5,.25:c", "0/1:70000:.,2:.:d,e")
    c = make(tmp_path, "C", "GT:DP:XN:XF:PGT", "0/1/1:3:1:.:.", "0:7:1:.5,.,.75:x")
    expected = merged(tmp_path, "A", "B", "C")
    for order in ([a, b, c], [c, b, a])[harmonise : 1 + (impl == "cubed")]:
        store = start(tmp_path, kind, a)
        for source in order:
            vczstore.append(store, source, impl=impl, harmonise=harmonise)
            assert vczstore.verify(store).errors == []
        assert shown(store, kind) == expected
        root = opened(store, kind)
        assert (root["call_DP"].dtype, root["call_XN"].shape[2], root["call_genotype"].shape[2]) == (np.int32, 3, 3)
        assert [p.name for p in tmp_path.glob(".store-*")] == []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.slow
def test_a_dry_run_reports_what_is_widened_and_its_cost(tmp_path: Path, kind: str) -> None:
    a = make(tmp_path, "A", "GT:DP:XN", "0/1:12:1,2", "0/1:100:1,2")
    b = make(tmp_path, "B", "GT:DP:XN", "0/1:300:1,2,3", "0/1:7:1")
    store = start(tmp_path, kind, a)
    vczstore.append(store, a)
    before = cohort.digest(store)
    result = vczstore.append(store, b, dry_run=True)
    assert result.plan.notes["widened"] == "call_DP (int8 to int16); call_XN (FORMAT_XN_dim 2 to 3)"
    assert (result.counts["chunks re-encoded"], result.counts["bytes re-encoded"]) == (1, 4)
    assert cohort.digest(store) == before


@pytest.mark.slow
def test_wide_dtypes_of_small_values_widen_nothing(tmp_path: Path) -> None:
    """Values that a converter wrote as int64 are narrowed if they fit: the store's chunks stay unchanged."""
    a = make(tmp_path, "A", "GT:DP", "0/1:12", "0/1:100")
    b = make(tmp_path, "B", "GT:DP", "0/1:13", "0/1:.")
    group = zarr.open_group(b, mode="a")
    values = group["call_DP"][...].astype("i8")
    group.create_array("call_DP", data=values, dimension_names=["variants", "samples"], overwrite=True)
    store = start(tmp_path, "format3", a)
    vczstore.append(store, a)
    result = vczstore.append(store, b)
    assert "chunks re-encoded" not in result.counts
    assert opened(store, "format3")["call_DP"].dtype == np.int8
    assert opened(store, "format3")["call_DP"][...].tolist() == [[12, 13], [100, -1]]


@pytest.mark.slow
def test_a_step_of_a_job_widens_arrays_that_an_earlier_step_wrote(tmp_path: Path) -> None:
    """The second append re-encodes samples that the first one added, before anything is committed."""
    sources = [
        make(tmp_path, "A", "GT:DP", "0/1:12", "0/1:100"),
        make(tmp_path, "B", "GT:DP", "0/1:300", "0/1:."),
        make(tmp_path, "C", "GT:DP", "0/0:70000", "0/1:2"),
    ]
    expected = merged(tmp_path, "A", "B", "C")
    for kind in KINDS:
        store = start(tmp_path, kind, sources[0])
        steps = [{"append": {"source": str(source)}} for source in sources]
        (tmp_path / "job.yaml").write_text(yaml.safe_dump({"store": str(store), "steps": steps}))
        assert vczstore.run_job(tmp_path / "job.yaml").status == "done"
        assert shown(store, kind) == expected
        assert vczstore.run_job(tmp_path / "job.yaml").status == "nothing to do"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.slow
def test_an_unreadable_chunk_leaves_the_store_unchanged(tmp_path: Path, kind: str) -> None:
    """A chunk that cannot be decoded is detected when all others may be re-encoded already."""
    a = make(tmp_path, "A", "GT:DP", "0/1:12", "0/1:100")
    b = make(tmp_path, "B", "GT:DP", "0/1:300", "0/1:7")
    store = start(tmp_path, "format3", a)
    vczstore.append(store, a)
    chunk = store / "call_DP" / "c" / "0" / "0"
    frame = chunk.read_bytes()
    chunk.write_bytes(frame[:4] + bytes(4) + frame[8:])  # the decoded size in the header of Blosc
    if kind == "icechunk":
        vczstore.copy_store_to_icechunk(store, tmp_path / "repository")
        store = tmp_path / "repository"
    before = cohort.digest(store)
    with pytest.raises(vczstore.VczstoreError, match=r"^append: .*call_DP"):
        vczstore.append(store, b)
    assert kind == "icechunk" or cohort.digest(store) == before
    assert opened(store, kind)["sample_id"].shape == (1,)
    assert opened(store, kind)["call_DP"].dtype == np.int8
    assert [p.name for p in tmp_path.glob(".store-*compact*")] == []


@pytest.mark.slow
def test_plain_zarr_elsewhere_is_refused(tmp_path: Path) -> None:
    """There is no folder to exchange, and readers would see partly re-encoded arrays."""
    a = make(tmp_path, "A", "GT:DP", "0/1:12", "0/1:100")
    b = make(tmp_path, "B", "GT:DP", "0/1:300", "0/1:7")
    store = start(tmp_path, "format3", a)
    vczstore.append(store, a)
    memory = cohort.in_memory(store)
    before = {key: value.to_bytes() for key, value in memory._store_dict.items()}
    with pytest.raises(OptionError, match=r"^append: call_DP of .* re-encoded.*copy-store-to-icechunk"):
        vczstore.append(memory, b)
    assert {key: value.to_bytes() for key, value in memory._store_dict.items()} == before
    vczstore.copy_store_to_icechunk(memory, tmp_path / "repository")
    vczstore.append(tmp_path / "repository", b)
    assert shown(tmp_path / "repository", "icechunk") == merged(tmp_path, "A", "B")


# ---- fields that only one side has ----------------------------------------------------------


@pytest.mark.parametrize("harmonise", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.slow
def test_fields_that_one_side_lacks(tmp_path: Path, kind: str, harmonise: bool) -> None:
    """Refused, or dropped (and missing), or added, by the flags that the error message names."""
    a = make(tmp_path, "A", "GT:DP:GQ", "0/1:5:99", "0/1:7:98")
    b = make(tmp_path, "B", "GT:DP:PS:XN", "0|1:7:3000000:1,2", "0|1:8:3000000:.")
    store = start(tmp_path, kind, a)
    vczstore.append(store, a, make(tmp_path, "D", "GT", "0/0", "1/1"), make(tmp_path, "E", "GT", "./.", "1/1"))
    before = cohort.digest(store)
    with pytest.raises(IncompatibleError, match=r"--drop-field GQ.*--add-field PS --add-field XN") as error:
        vczstore.append(store, b, harmonise=harmonise)
    assert "\n" not in str(error.value)
    with pytest.raises(OptionError, match="neither the store nor a source has call_ZZ"):
        vczstore.append(store, b, harmonise=harmonise, drop_fields=["ZZ"])
    assert cohort.digest(store) == before
    expected = merged(tmp_path, "A", "D", "E", "B")
    result = vczstore.append(store, b, harmonise=harmonise, drop_fields=["GQ", "PS"], add_fields=["XN"])
    assert (result.counts["fields added"], result.counts["fields dropped"]) == (1, 2)
    assert shown(store, kind) == [{k: v for k, v in call.items() if k != "B:PS"} for call in expected]
    assert opened(store, kind)["call_XN"][0].tolist() == [[-1, -2], [-1, -2], [-1, -2], [1, 2]]
    assert vczstore.verify(store).errors == []


@pytest.mark.parametrize("harmonise", [False, True])
@pytest.mark.slow
def test_a_field_that_fits_is_added_and_reported(tmp_path: Path, harmonise: bool) -> None:
    """--drop-field applies only to fields that would be refused: a field that can be added is kept."""
    a, b = make(tmp_path, "A", "GT:DP", "0/1:5", "0/1:7"), make(tmp_path, "B", "GT:DP", "0/0:6", "0/1:8")
    store = start(tmp_path, "format3", a)
    vczstore.append(store, a)
    result = vczstore.append(store, b, harmonise=harmonise, drop_fields=["DP"])
    assert result.counts["fields kept (they fit)"] == 1
    assert result.plan.notes["kept"] == "call_DP, which can be added unchanged"
    assert shown(store, "format3") == merged(tmp_path, "A", "B")


@pytest.mark.slow
def test_flags_of_the_command_line_and_of_jobs(tmp_path: Path) -> None:
    a = make(tmp_path, "A", "GT:DP:GQ", "0/1:5:99", "0/1:7:98")
    b = make(tmp_path, "B", "GT:DP:PS", "0|1:7:3000000", "0|1:8:3000000")
    for number, harmonise in enumerate((False, True)):
        store = start(tmp_path, "icechunk", a)
        vczstore.append(store, a)
        flags = ["--drop-field", "GQ", "--add-field", "PS", *(["--harmonise"] if harmonise else [])]
        result = CliRunner().invoke(main, ["append", str(store), str(b), *flags])
        assert result.exit_code == 0, result.output
        assert shown(store, "icechunk") == merged(tmp_path, "A", "B")
        store = start(tmp_path, "icechunk", a)
        vczstore.append(store, a)
        step = {"source": str(b), "drop-fields": ["GQ"], "add-fields": ["PS"], "harmonise": harmonise}
        file = tmp_path / f"job-{number}.yaml"
        file.write_text(yaml.safe_dump({"store": str(store), "steps": [{"append": step}]}))
        vczstore.run_job(file)
        assert shown(store, "icechunk") == merged(tmp_path, "A", "B")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.slow
def test_incompatible_dtypes_are_refused_by_name(tmp_path: Path, kind: str) -> None:
    """A field is an integer in one header and a float in another; if it may be dropped, it is, in any order."""
    a = make(tmp_path, "A", "GT:GQ", "0/1:99", "0/1:98")
    c = make(tmp_path, "C", "GT:GQ", "0/1:3.5", "0/1:.", GQ=HEADER["GQ"].replace("Integer", "Float"))
    store = start(tmp_path, kind, a)
    before = cohort.digest(store)
    with pytest.raises(IncompatibleError, match=r"^append: call_GQ .*float32.*int8.*--drop-field GQ"):
        vczstore.append(store, a, c)
    assert cohort.digest(store) == before
    vczstore.append(store, c, a, drop_fields=["GQ"])
    assert "call_GQ" not in opened(store, kind)
    store = start(tmp_path, kind, a)
    vczstore.append(store, a)
    vczstore.append(store, c, drop_fields=["GQ"])
    assert opened(store, kind)["call_GQ"][...].tolist() == [[99, -1], [98, -1]]


# ---- fixed-width strings --------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.slow
def test_no_string_is_cut(tmp_path: Path, kind: str) -> None:
    """Alleles, filters and sample IDs that are longer than a store's fixed width."""
    a = make(tmp_path, "A", "GT:FT", "0/1:ok", "0/1:ok")
    b = make(tmp_path, "B0000001", "GT:FT", "0/1:verylong", "1/1:ok", alts=["ACGT,C", "TTTTT"])
    store = start(tmp_path, "format3", a)
    vczstore.append(store, a)
    fix_widths(store, "variant_allele", "call_FT", "sample_id")
    assert opened(store, "format3")["variant_allele"].dtype == "U1"
    if kind == "icechunk":
        vczstore.copy_store_to_icechunk(store, tmp_path / "repository")
        store = tmp_path / "repository"
    out = tmp_path / "normalised"
    vczstore.normalise(store, b, out, allow_new_alleles=True)
    assert opened(out, "format3")["variant_allele"][...].tolist() == [["A", "C", "ACGT"], ["A", "C", "TTTTT"]]
    vczstore.append(store, b, harmonise=True, allow_new_alleles=True)
    root = opened(store, kind)
    assert root["variant_allele"][...].tolist() == [["A", "C", "ACGT"], ["A", "C", "TTTTT"]]
    assert root["sample_id"][...].tolist() == ["A", "B0000001"]
    assert root["call_FT"][...].tolist() == [["ok", "verylong"], ["ok", "ok"]]
    assert root["call_genotype"][:, 1].tolist() == [[0, 2], [2, 2]]
    assert vczstore.verify(store).errors == []


# ---- forms ----------------------------------------------------------------------------------

DTYPES = ("i1", "i2", "i4", "u1", "f4", "f8", "bool", "U1", "U3", "T", "S2")
FORMS = st.builds(
    lambda dtype, more: Form(("variants", "samples", *(["d"] if more else [])), np.dtype(dtype), (0, 0, *more)),
    st.sampled_from(DTYPES),
    st.lists(st.integers(1, 4), max_size=1),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(FORMS, min_size=1, max_size=4))
@pytest.mark.slow
def test_forms_join_in_any_order(forms: list[Form]) -> None:
    """The result does not depend on the order; its dtype and lengths can hold the values of every form."""

    def join(ordered: list[Form]) -> Form | None:
        result = ordered[0]
        try:
            for form in ordered[1:]:
                result = result.joined(form)
        except Mismatch:
            return None
        return result

    joined = [join(list(order)) for order in permutations(forms)]
    assert all(candidate == joined[0] for candidate in joined)
    kinds = {form.dtype.kind for form in forms}
    assert (joined[0] is not None) == any(kinds <= set(group) for group in ("iu", "f", "b", "UTS"))
    if joined[0] is not None:
        assert len(joined[0].lengths) == max(len(form.lengths) for form in forms)
        assert joined[0].lengths[2:] == tuple({max([n for f in forms for n in f.lengths[2:]], default=0)} - {0})
        if kinds <= set("iu"):
            assert all(np.can_cast(form.dtype, joined[0].dtype, "safe") for form in forms)
