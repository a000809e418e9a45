"""Arrays that hold samples but have no samples dimension are refused, not skipped silently."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import zarr

import vczstore
from tests.support import cohort
from tests.support.covering import in_turn
from tests.support.extra_arrays import N_SAMPLES, N_VARIANTS, make, put, refused
from tests.support.ways import WRITTEN
from vczstore.errors import DamagedStoreError
from vczstore.vcz.model import Vcz

DP = np.arange(N_VARIANTS * N_SAMPLES, dtype="i2").reshape(N_VARIANTS, N_SAMPLES) + 100
NAMES: dict[str, tuple[str, tuple[str | None, ...] | None]] = {
    "another name": ("call_DP", ("variants", "not_samples")),
    "no name": ("call_DP", ("variants", None)),
    "no names": ("call_DP", None),
    "known for something else": ("call_DP", ("variants", "filters")),
    "no prefix, singular": ("dosage", ("variants", "sample")),
    "no prefix, unknown name": ("dosage", ("variants", "people")),
    "no prefix, no names": ("dosage", None),
    "no prefix, a name of another length": ("dosage", ("variants", "alleles")),
    "one axis": ("sample_sex", ("individuals",)),
    "an INFO field's name": ("variant_calls", ("variants", "Samples")),
}
"""Name of an array of samples, and its dimension names."""


@in_turn(case=list(NAMES), zarr_format=(2, 3, 3))
@pytest.mark.slow
def test_an_array_without_a_samples_dimension_is_named(tmp_path: Path, case: str, zarr_format: int) -> None:
    name, dims = NAMES[case]
    store = make(tmp_path / "store.vcz", zarr_format=zarr_format)
    put(store, name, DP[0] if name == "sample_sex" else DP, dims, zarr_format)
    batch = make(tmp_path / "batch.vcz", zarr_format=zarr_format, start=10)

    refused(store, name, "remove", str(store), "S0001")
    refused(store, name, "append", str(store), str(batch))
    refused(store, name, "compact", str(store))
    errors = [error.what for error in vczstore.verify(store, quick=True).errors if error.array == name]
    assert any("seems to hold samples" in message for message in errors)
    report = vczstore.verify_removal(store, ["S9999"])
    assert not report.erased
    assert name in report.reasons[0]


@pytest.mark.parametrize("kind", WRITTEN)
@pytest.mark.slow
def test_every_operation_on_samples_refuses(tmp_path: Path, kind: str) -> None:
    zarr_format = 2 if kind == "format2" else 3
    plain = make(tmp_path / "plain.vcz", zarr_format=zarr_format)
    put(plain, "call_DP", DP, ("variants", "not_samples"), zarr_format)
    store, flags = plain, []
    if kind == "icechunk":
        store, flags = tmp_path / "store.icechunk", ["--backend-storage", "icechunk"]
        vczstore.copy_store_to_icechunk(plain, store)
    batch, recalled = make(tmp_path / "batch.vcz", start=10), make(tmp_path / "recalled.vcz")
    refused(store, "call_DP", "remove", str(store), "S0001", *flags)
    refused(store, "call_DP", "append", str(store), str(batch), *flags)
    refused(store, "call_DP", "append", str(store), str(batch), "--harmonise", *flags)
    refused(store, "call_DP", "update", str(store), str(recalled), *flags)
    refused(store, "call_DP", "compact", str(store), *flags)
    if kind != "icechunk":
        refused(store, "call_DP", "compact", str(store), "--output", str(tmp_path / "out.vcz"))
        assert not (tmp_path / "out.vcz").exists()
    (tmp_path / "job.yaml").write_text(f"store: {store}\nsteps:\n- remove: {{samples: [S0001], missing-ok: true}}\n")
    refused(store, "call_DP", "run", str(tmp_path / "job.yaml"))
    assert not vczstore.verify_removal(store, ["S0001"]).erased


@pytest.mark.slow
@pytest.mark.parametrize("zarr_format", [2, 3])
def test_a_source_that_would_leave_samples_behind_is_refused(tmp_path: Path, zarr_format: int) -> None:
    store = make(tmp_path / "store.vcz", zarr_format=zarr_format, start=10)
    batch = make(tmp_path / "batch.vcz", zarr_format=zarr_format)
    put(batch, "call_DP", DP, None, zarr_format)
    recalled = make(tmp_path / "recalled.vcz", start=10)
    put(recalled, "call_DP", DP, ("variants", "sample"), 3)
    refused(store, "call_DP", "append", str(store), str(batch))
    refused(store, "call_DP", "append", str(store), str(batch), "--harmonise")
    refused(store, "call_DP", "update", str(store), str(recalled))
    refused(batch, "call_DP", "normalise", str(store), str(batch), str(tmp_path / "out.vcz"))


@pytest.mark.slow
def test_arrays_that_match_the_number_of_samples_by_chance_are_left_alone(tmp_path: Path) -> None:
    """The numbers of variants, alleles, contigs, filters and components equal the number of samples."""
    n = 2
    arrays = cohort.make_arrays(n, cohort.ids(0, n))
    cohort.write_vcz(tmp_path / "store.vcz", arrays)
    cohort.write_vcz(tmp_path / "batch.vcz", cohort.make_arrays(n, cohort.ids(5, n), seed=1))
    two = np.arange(n * n).reshape(n, n)
    for name, values, dims in (
        ("contig_length", two[0], ("contigs",)),
        ("filter_description", two[0], ("filters",)),
        ("variant_filter", two > 0, ("variants", "filters")),
        ("variant_FD", two, ("variants", "INFO_FD_dim")),
        ("variant_AF", two, ("variants", "alt_alleles")),
        ("variant_unnamed", two, None),
        ("region_index", two, None),
        ("ld", two, ("variants", "alleles")),
        ("chosen", two[0], ("variants",)),
        ("by_ploidy", two, ("variants", "ploidy")),
    ):
        for store in ("store.vcz", "batch.vcz"):
            put(tmp_path / store, name, values, dims, 3)
    for store in ("store.vcz", "batch.vcz"):
        put(tmp_path / store, "loadings", np.ones((n, 4)), ("variants", "components"), 3)
    vczstore.append(tmp_path / "store.vcz", tmp_path / "batch.vcz")
    vczstore.remove(tmp_path / "store.vcz", [cohort.ids(0, 1)[0]])
    vczstore.compact(tmp_path / "store.vcz")
    assert cohort.read_vcz(tmp_path / "store.vcz")["sample_id"].tolist() == ["S0001", "S0005", "S0006"]
    with_four = make(tmp_path / "four.vcz", n=4)  # as many samples as components
    put(with_four, "loadings", np.ones((N_VARIANTS, 4)), ("variants", "components"), 3)
    vczstore.remove(with_four, ["S0001"])
    assert cohort.read_vcz(with_four)["sample_id"].tolist() == ["S0000", "", "S0002", "S0003"]


def test_named_dimensions_are_no_samples_for_their_length_alone(tmp_path: Path) -> None:
    """An append must not make the store refuse all edits when the number of samples reaches the length of an axis."""
    store = make(tmp_path / "store.vcz", n=2)
    put(store, "extra_plain", np.arange(51).reshape(17, 3), ("foo", "bar"), 3)
    put(store, "pedigree", np.arange(3), ("families",), 3)
    vczstore.append(store, make(tmp_path / "batch.vcz", n=1, start=10))
    vczstore.remove(store, ["S0000"])
    after = cohort.read_vcz(store)
    assert after["sample_id"].tolist() == ["", "S0001", "S0010"]
    assert (after["extra_plain"] == np.arange(51).reshape(17, 3)).all()
    put(store, "sample_sex", np.arange(3), ("families",), 3)
    put(store, "weights", np.arange(51).reshape(17, 3), ("foo", None), 3)
    put(store, "dosage", np.ones((N_VARIANTS, 3)), ("variants", "bar_of_dosage"), 3)
    assert set(Vcz.read(zarr.storage.LocalStore(store), "store").out_of_reach) == {"sample_sex", "weights", "dosage"}


@pytest.mark.slow
def test_one_sample_does_not_make_every_axis_of_one_a_samples_axis(tmp_path: Path) -> None:
    store = make(tmp_path / "store.vcz", n=1)
    put(store, "release", np.array([7]), None, 3)
    vczstore.append(store, make(tmp_path / "batch.vcz", start=10))
    put(store := make(tmp_path / "other.vcz", n=1), "dosage", DP[:, :1], ("variants", None), 3)
    with pytest.raises(DamagedStoreError, match="dosage has dimensions without a name"):
        vczstore.remove(store, ["S0000"])


def test_arrays_of_samples_in_a_store_without_samples(tmp_path: Path) -> None:
    """In a store without samples, arrays of samples are recognised by name, not by length."""
    store = tmp_path / "store.vcz"
    vczstore.create(store, make(tmp_path / "batch.vcz"))
    put(store, "notes", np.zeros(0), None, 3)
    assert Vcz.read(zarr.storage.LocalStore(store), "store").out_of_reach == {}
    put(store, "call_DP", np.zeros((N_VARIANTS, 0), "i2"), ("variants", "not_samples"), 3)
    refused(store, "call_DP", "append", str(store), str(tmp_path / "batch.vcz"))


@pytest.mark.slow
def test_operations_that_read_no_samples_still_work(tmp_path: Path) -> None:
    """A copy contains the array verbatim, a new store does not need it, and `recompute` reads only genotypes."""
    store = make(tmp_path / "store.vcz")
    put(store, "call_DP", DP, ("variants", "not_samples"), 3)
    vczstore.copy_store_to_icechunk(store, tmp_path / "copy")
    assert (cohort.read_vcz(cohort.icechunk_store(tmp_path / "copy"))["call_DP"] == DP).all()
    assert vczstore.create(tmp_path / "new.vcz", store).counts["variants"] == N_VARIANTS
    vczstore.recompute(store, fields=["AN"])
