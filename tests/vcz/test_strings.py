"""Strings of every Zarr dtype: an ID is the same ID in every encoding."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zarr
from click.testing import CliRunner

import vczstore
from tests.support import cohort
from tests.support.covering import in_turn
from tests.support.ways import WRITTEN
from vczstore.cli.main import main
from vczstore.errors import NotAStoreError, SampleError
from vczstore.vcz.arrays import read_strings
from vczstore.vcz.strings import as_stored, as_text

pytestmark = pytest.mark.filterwarnings("ignore::zarr.errors.UnstableSpecificationWarning")

FORMS: dict[str, tuple[object, Callable[[str], object]]] = {
    "bytes": ("S8", str.encode),
    "text": ("U8", str),
    "bytes of any length": ("variable_length_bytes", str.encode),
}
"""A dtype, and the conversion of a string to it; zarr-python writes the last one in format 3 only."""


def stored_as(store: Path, name: str, dtype: object, values: np.ndarray) -> None:
    """Rewrite an array of a VCZ with another dtype, using zarr-python only."""
    group = zarr.open_group(store, mode="a")
    old = group[name]
    assert isinstance(old, zarr.Array)
    options = (
        {"attributes": dict(old.attrs)}
        if old.metadata.zarr_format == 2
        else {"dimension_names": old.metadata.dimension_names}
    )
    chunks = old.chunks
    del group[name]
    group.create_array(name, shape=values.shape, dtype=dtype, chunks=chunks, **options)[...] = values


def in_form(store: Path, form: str, *names: str) -> None:
    """Rewrite string arrays in one of `FORMS`."""
    dtype, convert = FORMS[form]
    for name in names:
        texts = as_text(np.asarray(zarr.open_array(store / name)[...]))
        values = np.array([convert(t) for t in texts.ravel()], dtype=object).reshape(texts.shape)
        stored_as(store, name, dtype, values if dtype == "variable_length_bytes" else values.astype(str(dtype)))


def make(
    folder: Path, form: str, kind: str, *, names: tuple[str, ...] = ("sample_id",)
) -> tuple[Path, Path, list[str]]:
    """Write a store of seven samples and a batch of four, with strings in this form; also return the store's IDs."""
    if form == "bytes of any length" and kind == "format2":
        pytest.skip("zarr-python does not write these")
    zarr_format = 2 if kind == "format2" else 3
    ids = [*cohort.ids(0, 6), "Zoë12"]
    cohort.write_vcz(folder / "store.vcz", cohort.some_arrays(10, ids), zarr_format=zarr_format)
    cohort.write_vcz(folder / "batch.vcz", cohort.some_arrays(10, cohort.ids(7, 4), seed=1), zarr_format=zarr_format)
    for store in (folder / "store.vcz", folder / "batch.vcz"):
        in_form(store, form, *names)
    if kind == "icechunk":
        vczstore.copy_store_to_icechunk(folder / "store.vcz", folder / "store.icechunk", impl="zarr")
        return folder / "store.icechunk", folder / "batch.vcz", ids
    return folder / "store.vcz", folder / "batch.vcz", ids


def stored_ids(store: Path, kind: str) -> list[object]:
    group = zarr.open_group(cohort.icechunk_store(store) if kind == "icechunk" else store, mode="r")
    return list(np.asarray(group["sample_id"][...]).tolist())  # type: ignore[index,call-overload]


@in_turn(form=list(FORMS), kind=WRITTEN)
@pytest.mark.slow
def test_an_id_is_found_in_every_form(tmp_path: Path, form: str, kind: str) -> None:
    store, batch, ids = make(tmp_path, form, kind)
    convert = FORMS[form][1]

    vczstore.append(store, batch)
    all_ids = [*ids, *cohort.ids(7, 4)]
    assert stored_ids(store, kind) == [convert(sample) for sample in all_ids]
    with pytest.raises(SampleError, match=r"all 4 samples of .* already"):
        vczstore.append(store, batch)
    assert vczstore.update(store, batch).counts["samples updated"] == 4
    vczstore.remove(store, ["S0002", "Zoë12"])
    remaining = ["" if sample in ("S0002", "Zoë12") else sample for sample in all_ids]
    assert stored_ids(store, kind) == [convert(sample) for sample in remaining]
    assert (vczstore.info(store).samples, vczstore.info(store).removed_samples) == (9, 2)
    if kind == "icechunk":
        vczstore.purge(store)
    assert vczstore.verify_removal(store, ["S0002", "Zoë12"]).reasons == ()
    assert "1 ID is in sample_id now" in "; ".join(vczstore.verify_removal(store, ["S0003"]).reasons)
    vczstore.compact(store)
    assert stored_ids(store, kind) == [convert(sample) for sample in remaining if sample]
    assert vczstore.verify(store).errors == []


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.slow
def test_a_job_with_missing_ok_removes_the_samples_present(tmp_path: Path, form: str) -> None:
    store, _, ids = make(tmp_path, form, "format3")
    (tmp_path / "withdrawn.txt").write_text("S0001\nS9999\n")
    (tmp_path / "job.yaml").write_text(
        "store: store.vcz\nsteps:\n- remove: {samples-file: withdrawn.txt, missing-ok: true}\n"
    )
    done = CliRunner().invoke(main, ["run", str(tmp_path / "job.yaml")])
    assert done.exit_code == 0, done.output
    convert = FORMS[form][1]
    assert stored_ids(store, "format3") == [convert("" if sample == "S0001" else sample) for sample in ids]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.slow
def test_contigs_and_alleles_match_in_every_form(tmp_path: Path, form: str) -> None:
    """Two sources that differ only in the dtype of their strings share all contigs and variants."""
    _, batch, _ = make(tmp_path, form, "format3", names=("contig_id", "filter_id", "variant_allele"))
    cohort.write_vcz(tmp_path / "plain.vcz", cohort.some_arrays(10, cohort.ids(20, 2)))
    out = tmp_path / "out.vcz"
    vczstore.create(out, batch, tmp_path / "plain.vcz")
    sites = cohort.read_vcz(out)
    assert sites["contig_id"].tolist() == ["chr1", "chrX"]
    assert sites["filter_id"].tolist() == ["PASS", "q10"]
    plain = cohort.read_vcz(tmp_path / "plain.vcz")
    assert sites["variant_allele"].tolist() == plain["variant_allele"].tolist()

    in_form(batch, "text", "sample_id")
    in_form(tmp_path / "plain.vcz", "text", "sample_id")
    vczstore.append(tmp_path / "plain.vcz", batch)
    assert stored_ids(tmp_path / "plain.vcz", "format3") == [*cohort.ids(20, 2), *cohort.ids(7, 4)]


@pytest.mark.parametrize("form", FORMS)
def test_new_alleles_are_written_in_the_store_s_form(tmp_path: Path, form: str) -> None:
    """The store's alleles match the batch's, which are text. Fixed-width bytes become text."""
    arrays = cohort.some_arrays(4, cohort.ids(0, 3))
    names = ("sample_id", "contig_id", "variant_contig", "variant_position", "variant_allele", "call_genotype")
    old = {name: arrays[name] for name in names}
    new = {**old, "sample_id": np.array(cohort.ids(3, 3), dtype=object)}
    new["variant_allele"] = old["variant_allele"].copy()
    new["variant_allele"][0, 1] = "ACGT"
    cohort.write_vcz(tmp_path / "store.vcz", old)
    cohort.write_vcz(tmp_path / "batch.vcz", new)
    in_form(tmp_path / "store.vcz", form, "variant_allele", "contig_id")
    vczstore.append(tmp_path / "store.vcz", tmp_path / "batch.vcz", harmonise=True, allow_new_alleles=True)
    alleles = cohort.read_vcz(tmp_path / "store.vcz")["variant_allele"]
    convert = str if form == "bytes" else FORMS[form][1]
    assert alleles[0].tolist() == [convert(a) for a in (*old["variant_allele"][0], "ACGT")]
    assert alleles[1].tolist() == [convert(a) for a in (*old["variant_allele"][1], "")]


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.slow
def test_ids_that_are_integers_are_found_and_cannot_be_blanked(tmp_path: Path, zarr_format: int) -> None:
    store, batch = tmp_path / "store.vcz", tmp_path / "batch.vcz"
    for path, start, n in ((store, 0, 7), (batch, 7, 4)):
        cohort.write_vcz(path, cohort.some_arrays(10, cohort.ids(start, n), seed=n), zarr_format=zarr_format)
        stored_as(path, "sample_id", "i8", np.arange(1000 + start, 1000 + start + n))
    vczstore.append(store, batch)
    with pytest.raises(SampleError, match=r"all 4 samples of .* already"):
        vczstore.append(store, batch)
    assert vczstore.update(store, batch).counts["samples updated"] == 4
    assert "1 ID is in sample_id now" in vczstore.verify_removal(store, ["1003"]).reasons[-1]
    assert any("sample_id: has dtype int64" in str(damage) for damage in vczstore.verify(store).errors)

    before = cohort.digest(store)
    done = CliRunner().invoke(main, ["remove", str(store), "1003"])
    assert done.exit_code == 1
    assert done.output == (
        f"Error: remove: sample_id of {store} has dtype int64, in which the ID of a removed sample cannot be empty; "
        "write it as strings first\n"
    )
    assert cohort.digest(store) == before
    assert vczstore.compact(store).counts == {"samples dropped": 0, "samples kept": 11}
    assert cohort.digest(store) == before


def test_ids_that_are_floats_are_refused(tmp_path: Path) -> None:
    store = tmp_path / "store.vcz"
    cohort.write_vcz(store, cohort.some_arrays(4, cohort.ids(0, 2)))
    stored_as(store, "sample_id", "f8", np.array([1.5, 2.5]))
    with pytest.raises(NotAStoreError, match="sample_id has dtype float64, not strings"):
        vczstore.info(store)


def test_bytes_that_are_not_utf8_are_named(tmp_path: Path) -> None:
    store = tmp_path / "store.vcz"
    cohort.write_vcz(store, cohort.some_arrays(4, cohort.ids(0, 2)))
    stored_as(store, "sample_id", "S4", np.array([b"S1", b"\xe9t\xe9"]))
    done = CliRunner().invoke(main, ["remove", str(store), "S1"])
    assert done.exit_code == 1
    assert f"{store}: sample_id cannot be decoded ('utf-8' codec can't decode byte 0xe9" in done.output
    assert len(done.output.splitlines()) == 1


def test_strings_fit_or_are_refused() -> None:
    texts = np.array([["A", "<DEL>"], ["é", ""]], dtype=object)
    for dtype in ("S5", "U5", object):
        stored = as_stored(texts, np.dtype(dtype))
        assert stored.dtype == np.dtype(dtype)
        assert as_text(stored).tolist() == texts.tolist()
    for dtype in ("S4", "U4"):
        with pytest.raises(ValueError, match="length 5 does not fit"):
            as_stored(texts, np.dtype(dtype))
    with pytest.raises(ValueError, match="length 2 does not fit"):
        as_stored(texts[1], np.dtype("S1"))  # two bytes in UTF-8


@pytest.mark.slow
def test_a_region_of_bytes_is_read_as_text(tmp_path: Path) -> None:
    cohort.write_vcz(tmp_path / "a.vcz", cohort.some_arrays(4, cohort.ids(0, 5)))
    in_form(tmp_path / "a.vcz", "bytes", "sample_id")
    array = zarr.open_array(tmp_path / "a.vcz" / "sample_id")
    assert read_strings(array, (slice(1, 3),)).tolist() == ["S0001", "S0002"]


@pytest.mark.parametrize("form", ["bytes", "bytes of any length"])
@pytest.mark.parametrize("side", ["store", "batch"])
@pytest.mark.slow
def test_bytes_and_text_are_not_mixed_in_one_array(tmp_path: Path, form: str, side: str) -> None:
    """NumPy would write the text ``b'S0007'``: either the whole array becomes text, or the batch is refused."""
    store, batch, ids = make(tmp_path, form, "format3")
    in_form(batch if side == "store" else store, "text", "sample_id")
    before = cohort.digest(store)
    done = CliRunner().invoke(main, ["append", str(store), str(batch)])
    if done.exit_code == 0:
        assert stored_ids(store, "format3") == [*ids, *cohort.ids(7, 4)]
        return
    assert done.exit_code == 1
    assert done.output.startswith("Error: append: sample_id of ")
    assert len(done.output.splitlines()) == 1
    assert cohort.digest(store) == before


@pytest.mark.slow
def test_fixed_length_bytes_are_appended_to_variable_length_bytes(tmp_path: Path) -> None:
    store, batch, ids = make(tmp_path, "bytes of any length", "format3")
    encoded = np.array([sample.encode() for sample in cohort.ids(7, 4)])
    stored_as(batch, "sample_id", "S8", encoded)
    vczstore.append(store, batch)
    assert stored_ids(store, "format3") == [sample.encode() for sample in (*ids, *cohort.ids(7, 4))]
