"""Lists of samples as users write them: quoted, with more columns, in another Unicode form. No sample is overlooked."""

from __future__ import annotations

import json
import re
import unicodedata
from pathlib import Path

import pysam
import pysam.bcftools
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st

import vczstore
from tests.support import cohort
from tests.support.command_line import fails, run
from tests.support.ways import WRITTEN, Way
from vczstore.configuration.lists import read_lines
from vczstore.errors import OptionError, SampleError
from vczstore.vcz.sample_ids import looking_alike, normal

NFD = unicodedata.normalize("NFD", "Zoé_Müller")
NFC = unicodedata.normalize("NFC", NFD)
SAMPLES = ("SAMP_ALPHA", "SAMP_BETA", NFD)

OTHERWISE = {
    "with a date": "SAMP_ALPHA,2026-01-01",
    "with a word": "SAMP_ALPHA;withdrawn",
    "in quotes": '"SAMP_ALPHA"',
    "in typographic quotes": "\u201cSAMP_ALPHA\u201d",
    "family and individual": "SAMP_ALPHA SAMP_ALPHA",
    "zero-width space": "\u200bSAMP_ALPHA",
    "byte order mark": "SAMP_ALPHA\ufeff",
    "another Unicode form": NFC,
}


LISTS = (
    "B\nA\n",
    "B\r\nA",
    "\n\nA\n\n",
    "#B\nA\n",
    "A\t1\n",
    "A 1\n",
    "A,B\n",
    "A\x85B\n",
    "A\u2028B\nA\x1cB\nA\x0bB\nA\x0cB\nA\n",
)


@pytest.mark.parametrize("text", LISTS, ids=repr)
def test_a_list_is_read_as_bcftools_reads_it(text: str, tmp_path: Path) -> None:
    """Every line is one ID, verbatim: there are no comments and no columns."""
    names, vcf = tmp_path / "names", tmp_path / "in.vcf"
    names.write_text(text, newline="")
    columns = "CHROM POS ID REF ALT QUAL FILTER INFO FORMAT A B #B".replace(" ", "\t")
    vcf.write_text(f"##fileformat=VCFv4.3\n##contig=<ID=1>\n#{columns}\n")
    ids = [line for _, line in read_lines("export", names)]
    try:
        header = pysam.bcftools.view("-h", "-S", str(names), str(vcf)).splitlines()[-1]
    except pysam.SamtoolsError:
        assert not {*ids} <= {"A", "B", "#B"}
    else:
        assert ids == header.split("\t")[9:]


@pytest.mark.slow
@pytest.mark.parametrize("operation", ["remove", "verify-removal", "export", "rename-samples", "job"])
def test_every_list_is_read_by_the_same_rules(operation: str, tmp_path: Path) -> None:
    """Errors are reported alike; a byte order mark, blank lines and spaces around an ID are ignored."""
    store = Way("format3", "cubed").make(tmp_path, cohort.some_arrays(4, SAMPLES))
    names = tmp_path / "names"
    (tmp_path / "job.yaml").write_text(f"store: {store}\nsteps: [{{remove: {{samples-file: names}}}}]\n")
    commands = {
        "remove": (store, "-S", names),
        "verify-removal": (store, "-S", names),
        "export": (store, tmp_path / "out.vcz", "-S", names),
        "rename-samples": (store, names),
    }
    command = ("run", tmp_path / "job.yaml") if operation == "job" else (operation, *commands[operation])
    reported_by = "remove" if operation == "job" else operation
    names.write_bytes(b"SAMP_BETA\n\xff\n")
    assert f"{reported_by}: {names}:2: is no UTF-8 text; save it as UTF-8; expected" in fails(*command, status=2)
    new = "\tNEW" if operation == "rename-samples" else ""
    names.write_bytes(f"\ufeff\r\n SAMP_BETA{new} \r\n\r\n".encode())
    run(*command, status=int(operation == "verify-removal"))


@pytest.fixture(params=WRITTEN)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return Way(request.param, "cubed").make(tmp_path, cohort.some_arrays(10, SAMPLES))


@pytest.mark.parametrize("line", OTHERWISE.values(), ids=OTHERWISE)
def test_a_sample_in_another_spelling_is_not_erased(line: str, store: Path) -> None:
    verdict = vczstore.verify_removal(store, [line])
    assert not verdict.erased
    assert any("1 line of the list is in sample_id now in another spelling" in reason for reason in verdict.reasons)


@pytest.mark.parametrize("line", OTHERWISE.values(), ids=OTHERWISE)
def test_a_job_does_not_skip_a_sample_in_another_spelling(line: str, store: Path, tmp_path: Path) -> None:
    (tmp_path / "withdrawn.txt").write_text(f"{line}\n", encoding="utf-8")
    (tmp_path / "job.yaml").write_text(
        f"store: {store.name}\nsteps: [{{remove: {{samples-file: withdrawn.txt, missing-ok: true}}}}]\n"
    )
    before = cohort.digest(store)
    error = fails("run", tmp_path / "job.yaml")
    assert re.search("has 1 of the sample IDs in another spelling .*; nothing was removed", error)
    assert cohort.digest(store) == before


@pytest.mark.parametrize("line", [*OTHERWISE.values(), "samp_alpha"], ids=[*OTHERWISE, "another case"])
def test_an_export_does_not_include_a_sample_in_another_spelling(line: str, tmp_path: Path) -> None:
    """The list names the samples to leave out."""
    store = Way("format3", "cubed").make(tmp_path, cohort.some_arrays(4, SAMPLES))
    (tmp_path / "out").write_text(f"{line}\n", encoding="utf-8")
    error = fails("export", store, tmp_path / "out.vcz", "-S", f"^{tmp_path / 'out'}")
    assert "has 1 of the sample IDs in another spelling" in error
    assert not (tmp_path / "out.vcz").exists()


@pytest.mark.slow
def test_letters_of_another_case(tmp_path: Path) -> None:
    """IDs that differ in case may be different samples; an ID that was removed before is not matched to another one."""
    store = Way("format3", "cubed").make(tmp_path, cohort.some_arrays(4, ["SAMP_ALPHA", "samp_alpha", "B"]))
    names, job = tmp_path / "names", tmp_path / "job.yaml"
    names.write_text("samp_alpha\n")
    job.write_text(f"store: {store.name}\nsteps: [{{remove: {{samples-file: names, missing-ok: true}}}}]\n")
    run("run", job)
    assert "SAMP_ALPHA" in run("samples", store).stdout
    run("run", job)
    run("export", store, tmp_path / "out.vcz", "-S", f"^{names}")
    assert zarr.open_group(tmp_path / "out.vcz", mode="r")["sample_id"][:].tolist() == ["SAMP_ALPHA", "B"]
    names.write_text("b\n")
    before = cohort.digest(store)
    assert "has 1 of the sample IDs in another spelling (quotes, columns, case," in fails("run", job)
    assert cohort.digest(store) == before


def test_ids_with_spaces_around_them(tmp_path: Path) -> None:
    """Lines of a list are stripped, and must not select another sample."""
    store = Way("format3", "cubed").make(tmp_path, cohort.some_arrays(4, ["a b", "a b ", "B"]))
    (tmp_path / "names").write_text("a b \n")
    before = cohort.digest(store)
    message = r"in addition to the samples named, .* has 1 with the same ID and spaces around it; nothing was written"
    assert re.search(message, fails("remove", store, "-S", tmp_path / "names"))
    assert re.search(message, fails("export", store, tmp_path / "out.vcz", "-S", f"^{tmp_path / 'names'}"))
    assert cohort.digest(store) == before
    vczstore.remove(store, ["a b", "a b "])
    assert run("samples", store).stdout.split() == ["B"]


def test_a_list_in_utf_16_without_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "names").write_bytes("A\nB\n".encode("utf-16-le"))
    with pytest.raises(OptionError, match=r"names:1: has a NUL character; save it as UTF-8"):
        read_lines("remove", tmp_path / "names")


@pytest.mark.parametrize("sample", ['"S1"', "S1 ", "S1\u200b"])
@pytest.mark.slow
def test_ids_that_the_store_has_in_another_spelling(sample: str, tmp_path: Path) -> None:
    store = Way("format3", "cubed").make(tmp_path, cohort.some_arrays(10, [sample, "S2"]))
    assert not vczstore.verify_removal(store, ["S1"]).erased
    vczstore.remove(store, sample)
    assert vczstore.verify_removal(store, ["S1"]).erased


@pytest.mark.slow
def test_remove_suggests_the_similar_sample(store: Path) -> None:
    before = cohort.digest(store)
    with pytest.raises(SampleError, match=re.escape(f"perhaps {ascii(NFD)[1:-1]} is meant")):
        vczstore.remove(store, NFC)
    with pytest.raises(SampleError, match="perhaps SAMP_BETA is meant"):
        vczstore.remove(store, ['"SAMP_BETA"'])
    assert cohort.digest(store) == before
    vczstore.remove(store, NFD)


def test_a_removed_sample_is_erased_in_every_spelling(store: Path) -> None:
    vczstore.remove(store, ["SAMP_ALPHA", NFD], purge=True)
    assert vczstore.verify_removal(store, ["SAMP_ALPHA", '"SAMP_ALPHA"', NFC]).erased


def test_letters_of_another_case_may_be_another_sample(store: Path) -> None:
    verdict = vczstore.verify_removal(store, ["samp_alpha"])
    assert any("letters of another case" in text for text in verdict.not_checked)


def test_tabs_are_not_taken_for_part_of_an_id(store: Path) -> None:
    with pytest.raises(SampleError, match="a line of the list has a tab"):
        vczstore.verify_removal(store, ["SAMP_ALPHA\t2026-01-01"], report=store.parent / "reports" / "today")
    assert not (store.parent / "reports").exists(), "no empty folder of a report is left"


names = st.lists(st.sampled_from(["A", "A ", " A", "A\x1c", "a", "", NFC, NFD, f"{NFD} "]), unique=True)


@given(samples=names, others=names)
def test_ids_that_look_alike_are_those_of_one_normal_form(samples: list[str], others: list[str]) -> None:
    all_ids = [*others, *samples]
    pairs = {(a, b) for a in samples for b in all_ids if a != b and normal(a) == normal(b)}
    alike = looking_alike(samples, all_ids)
    assert set(alike.items()) <= pairs
    assert bool(alike) == bool(pairs)


@pytest.mark.slow
@pytest.mark.parametrize(
    "incoming", [["NEW", NFC], ["SAMP_BETA "], ["\u00a0SAMP_BETA"], [f" {NFC}"], ["NEW", "NEW "]], ids=ascii
)
def test_samples_that_look_alike_are_not_appended(incoming: list[str], tmp_path: Path) -> None:
    store = Way("format3", "cubed").make(tmp_path, cohort.some_arrays(10, SAMPLES))
    cohort.write_vcz(tmp_path / "batch.vcz", cohort.some_arrays(10, incoming))
    before = cohort.digest(store)
    message = r"which looks like .* but for spaces around it or in another Unicode form; write both in the same"
    with pytest.raises(SampleError, match=message):
        vczstore.append(store, tmp_path / "batch.vcz", impl="zarr")
    assert cohort.digest(store) == before
    with pytest.raises(SampleError, match="has no sample"):
        vczstore.update(store, tmp_path / "batch.vcz", impl="zarr")
    assert cohort.digest(store) == before
    if incoming == ["NEW", "NEW "]:
        with pytest.raises(SampleError, match=message):
            vczstore.init(tmp_path / "new.vcz", tmp_path / "batch.vcz")
        assert not (tmp_path / "new.vcz").exists()


@pytest.mark.slow
@pytest.mark.parametrize("removed", ["S1", "S1 "], ids=repr)
def test_removed_samples_do_not_come_back_with_spaces_around_them(removed: str, tmp_path: Path) -> None:
    store = Way("format3", "cubed").make(tmp_path, cohort.some_arrays(4, [removed, "S2"]))
    vczstore.remove(store, [removed], impl="zarr")
    before = cohort.digest(store)
    for number, sample in enumerate(["S1", "S1 ", " S1"]):
        cohort.write_vcz(tmp_path / f"{number}.vcz", cohort.some_arrays(4, [sample]))
        with pytest.raises(SampleError, match=r"was removed from .* before"):
            vczstore.append(store, tmp_path / f"{number}.vcz", impl="zarr")
        assert cohort.digest(store) == before
    vczstore.append(store, tmp_path / "2.vcz", allow_returning=True, impl="zarr")
    assert zarr.open_group(store, mode="r")["sample_id"][:].tolist() == ["", "S2", " S1"]
    vczstore.remove(store, [" S1"], impl="zarr")
    with pytest.raises(SampleError, match=r"was removed from .* before"):
        vczstore.append(store, tmp_path / "0.vcz", impl="zarr")


def test_another_sample_may_have_the_id_without_spaces(tmp_path: Path) -> None:
    store = Way("icechunk", "cubed").make(tmp_path, cohort.some_arrays(4, ["S1 ", "S1", "S2"]))
    vczstore.remove(store, ["S1 "], impl="zarr")
    vczstore.copy_store_to_icechunk(store, tmp_path / "copy.icechunk")
    assert run("samples", tmp_path / "copy.icechunk").stdout.split() == ["S1", "S2"]


@pytest.mark.slow
def test_a_job_says_how_many_ids_it_did_not_find(store: Path, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(
        f"store: {store.name}\nsteps: [{{remove: {{samples: [NOBODY, SAMP_BETA], missing-ok: true}}}}]\n"
    )
    note = "remove: 1 of 2 sample IDs is not in the store"
    assert note in run("plan", tmp_path / "job.yaml").stdout
    assert json.loads(run("run", tmp_path / "job.yaml", "--json").stdout)["notes"] == [note]
    done = run("run", tmp_path / "job.yaml").stdout
    assert "remove: 2 of 2 sample IDs are not in the store" in done
    assert "already applied" in done


def test_zarr_reads_the_forms_that_are_tested(tmp_path: Path) -> None:
    """An independent reader sees the IDs verbatim, in NFD."""
    cohort.write_vcz(tmp_path / "store", cohort.some_arrays(10, SAMPLES))
    assert list(zarr.open_group(tmp_path / "store", mode="r")["sample_id"][:]) == list(SAMPLES)
