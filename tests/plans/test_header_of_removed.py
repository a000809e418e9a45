"""Remove, repair, rename-samples and restore drop lines of the VCF header that name removed samples."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import zarr

import vczstore
from tests.support import cohort
from tests.support.command_line import run
from tests.support.small_stores import edit, repository_of
from tests.support.ways import WRITTEN, Way
from vczstore.vcz import vcf_headers
from vczstore.vcz.frames import contents

GONE, LEFT = "HG00096", ["HG00097", "HG000961", "HG00099"]
KEPT = [
    "##fileformat=VCFv4.3",
    "##reference=file:///ref/hg38.fa",
    f"##SAMPLE=<ID={LEFT[0]},Sex=F>",
    f"##SAMPLE=<ID={LEFT[1]},Sex=F>",
    f'##UnifiedGenotyper="analysis_type=UnifiedGenotyper input_file=[/bam/{LEFT[1]}.bam]"',
    '##INFO=<ID=AC,Number=A,Type=Integer,Description="Allele count">',
]
NAMING = [
    f"##SAMPLE=<ID={GONE},Sex=F>",
    f"##PEDIGREE=<ID={LEFT[0]},Father={GONE}>",
    f"##bcftools_mergeCommand=merge {LEFT[0]}.vcf.gz /in/{GONE}_1.vcf.gz",
    f'##HaplotypeCaller="analysis_type=HaplotypeCaller input_file=[/bam/{LEFT[0]}.bam, /bam/{GONE}.bam]"',
    f'##GATKCommandLine.SelectVariants=<ID=SelectVariants,CommandLineOptions="sample_name=[{GONE}]">',
    f"##batch=made of x{GONE}y",
]
COLUMNS = ["#CHROM", "POS", "ID", "REF", "ALT", "QUAL", "FILTER", "INFO", "FORMAT"]


def attributes(*lines: str, samples: list[str]) -> dict[str, Any]:
    text = "\n".join([*lines, "\t".join([*COLUMNS, *samples])]) + "\n"
    pairs = [[*line[2:].split("=", 1)] for line in lines]
    return {"vcf_header": text, "vcf_meta_information": pairs, "source": "bio2zarr", "original_header": text}


BEFORE = attributes(*KEPT, *NAMING, samples=[GONE, *LEFT])
AFTER = attributes(*KEPT, samples=LEFT)


def holding(folder: Path, text: str) -> list[str]:
    """Return the paths of the files that contain a text, compressed ones included."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return [str(path) for path in files if any(text.encode() in content for content in contents(path.read_bytes()))]


OTHERS = [LEFT[0], "HG00098", LEFT[2]]
"""Sample IDs that do not contain each other."""


def of_others(value: Any) -> Any:
    return json.loads(json.dumps(value).replace(LEFT[1], OTHERS[1]))


@pytest.mark.slow
@pytest.mark.parametrize("kind", WRITTEN)
def test_removed(kind: str, tmp_path: Path) -> None:
    """No object contains the ID; a header that still names the sample is reported by verify, and repaired."""
    arrays, store = cohort.some_arrays(4, [GONE, *OTHERS]), tmp_path / "store"
    plain = tmp_path / "plain" if kind == "icechunk" else store
    cohort.write_vcz(plain, arrays, zarr_format=2 if kind == "format2" else 3)
    before, after = of_others(BEFORE), of_others(AFTER)
    zarr.open_group(plain).attrs.update(before)
    if kind == "icechunk":
        vczstore.copy_store_to_icechunk(plain, store)
    elif kind == "format2":
        zarr.consolidate_metadata(store)

    def now() -> dict[str, Any]:
        found = dict(zarr.open_group(cohort.icechunk_store(store) if kind == "icechunk" else store, mode="r").attrs)
        return {name: found[name] for name in after}

    assert holding(store, GONE)
    run("remove", store, GONE, "--purge")
    assert now() == after
    assert holding(store, GONE) == []
    if kind == "icechunk":
        repository = repository_of(store)
        session = repository.writable_session("main")
        zarr.open_group(session.store).attrs.update(before)
        session.commit("as an older version left it")
    else:
        zarr.open_group(store, use_consolidated=False).attrs.update(before)
    found = vczstore.verify_removal(store, [GONE])
    assert [reason for reason in found.reasons if reason.startswith("lines of the VCF's header name the samples")]
    assert "drop" in run("repair", store, "--dry-run").stdout
    assert now() == before
    assert "lines of the VCF's header that name removed samples, in" in run("repair", store).stdout
    assert now() == after
    vczstore.purge(store)
    assert holding(store, GONE) == []
    assert vczstore.verify_removal(store, [GONE]).erased
    assert "nothing to repair" in run("repair", store).stdout


def header_of(kind: str, store: Path) -> dict[str, Any]:
    attrs = dict(zarr.open_group(cohort.icechunk_store(store) if kind == "icechunk" else store, mode="r").attrs)
    return {name: attrs[name] for name in AFTER}


@pytest.mark.slow
@pytest.mark.parametrize("kind", WRITTEN)
def test_renamed(kind: str, tmp_path: Path) -> None:
    """On a store that an earlier version renamed, renaming by the same file again drops the lines."""
    store = Way(kind, "cubed").make(tmp_path, cohort.some_arrays(4, [GONE, *OTHERS]))
    edit(store, lambda group: group.attrs.update(of_others(BEFORE)))
    pairs = tmp_path / "new-ids.tsv"
    pairs.write_text(f"{GONE}\tNA1\n")
    assert vczstore.rename_samples(store, pairs).counts == {"samples renamed": 1}
    assert header_of(kind, store) == of_others(AFTER)
    if kind != "icechunk":
        assert holding(store, GONE) == []
    edit(store, lambda group: group.attrs.update(of_others(BEFORE)))
    again = vczstore.rename_samples(store, pairs)
    assert again.counts == {"samples renamed": 0, "samples renamed before": 1}
    assert header_of(kind, store) == of_others(AFTER)
    assert vczstore.verify_removal(store, [GONE]).erased == (kind != "icechunk")


@pytest.mark.slow
@pytest.mark.parametrize("how", ["remove", "rename"])
def test_restored(how: str, tmp_path: Path) -> None:
    """The header of an earlier state names the sample, also as a parent; only its other lines are restored."""
    file_lines, naming = ["##source=caller-1", "##fileDate=20260101"], [*NAMING, f"##source=caller of {GONE}"]
    kept = attributes(*KEPT, *file_lines, samples=OTHERS)
    store = Way("icechunk", "cubed").make(tmp_path, cohort.some_arrays(4, OTHERS))
    before = attributes(*KEPT, *file_lines, *naming, samples=[*OTHERS, GONE])
    edit(store, lambda group: group.attrs.update(of_others(before)))
    vczstore.tag(store, "v1")
    cohort.write_vcz(tmp_path / "batch.vcz", cohort.some_arrays(4, [GONE]))
    vczstore.append(store, tmp_path / "batch.vcz")
    with_lines = header_of("icechunk", store)
    edit(store, lambda group: group.attrs.update(source="another program"))
    vczstore.restore(store, "v1")
    assert header_of("icechunk", store) == with_lines
    vczstore.append(store, tmp_path / "batch.vcz")
    if how == "remove":
        vczstore.remove(store, GONE)
    else:
        (tmp_path / "new-ids.tsv").write_text(f"{GONE}\tNA1\n")
        vczstore.rename_samples(store, tmp_path / "new-ids.tsv")
    edit(store, lambda group: group.attrs.update(of_others(attributes(*KEPT, "##source=caller-2", samples=OTHERS))))
    vczstore.restore(store, "v1")
    assert header_of("icechunk", store) == of_others(kept)
    assert list(vczstore.samples(store).ids) == OTHERS


def test_header_lines() -> None:
    for line in NAMING:
        edited = vcf_headers.without(attributes(*KEPT, line, samples=LEFT), [GONE], LEFT)
        assert edited == {name: AFTER[name] for name in ("vcf_header", "vcf_meta_information", "original_header")}, line
    assert vcf_headers.without(AFTER, [GONE], LEFT) == {}
    named = ["##individual=S1", "##reference=/data/S1/ref.fa", "##META=<ID=A,Values=[S1,S10]>"]
    kept = ["##reference=/data/S10/ref.fa", '##FORMAT=<ID=S1,Number=1,Type=Integer,Description="S1">']
    edited = vcf_headers.without(attributes(*named, *kept, samples=["S10"]), ["S1"], ["S10"])
    assert edited["vcf_header"] == attributes(*kept, samples=["S10"])["vcf_header"]
    # very short IDs
    short = ["##reference=1", "##SAMPLE=<ID=11>", "##bcftools_viewCommand=view chr1.vcf"]
    before = attributes(*short, "##SAMPLE=<ID=1>", "##mergeCommand=merge 1.vcf 2.vcf", samples=["1", "11"])
    expected = attributes(*short, samples=["11"])
    assert vcf_headers.without(before, ["1"], ["11"])["vcf_header"] == expected["vcf_header"]
    # as for exports
    text = vcf_headers.without_samples(BEFORE)["vcf_header"]
    assert text.splitlines() == [*KEPT[:2], KEPT[-1], NAMING[-1], "\t".join(COLUMNS[:8])]
    json.dumps(vcf_headers.without_samples(BEFORE))
