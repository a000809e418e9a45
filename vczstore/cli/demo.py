"""A walk-through of vczstore on a small simulated cohort."""

import shlex
from collections.abc import Sequence
from itertools import chain, count
from pathlib import Path
from typing import Any

import click
import numpy as np
import zarr
from zarr.codecs import BloscCodec

N_VARIANTS, CHUNKS = 1000, {"variants": 500, "samples": 2}
FIRST = ["NA00001", "NA00002", "NA00003", "NA00004"]
BATCHES = [["NA00005", "NA00006"], ["NA00007", "NA00008", "NA00009"]]
REMOVED, TAG = "NA00002", "release-1"


def run(directory: str, *, err: bool = False) -> dict[str, Any]:
    """
    Make a cohort, edit it, and print each step with the command that a user would type for it.

    Parameters
    ----------
    directory
        Folder for the stores; a number is appended if it exists.
    err
        Whether to print on standard error.

    Returns
    -------
    dict
        The folder, and for each step the command and the samples before and after.
    """
    from vczstore import api
    from vczstore.stores.resolve import open_store

    folder = _unused(Path(directory))
    click.secho(f"A cohort of {len(FIRST)} samples, and two batches, in {folder}/", bold=True, err=err)
    cohort, store = folder / "cohort.vcz", folder / "cohort.icechunk"
    batches = [folder / f"batch-{i + 1}.vcz" for i in range(len(BATCHES))]
    for path, samples in zip([cohort, *batches], [FIRST, *BATCHES], strict=True):
        make_vcz(path, samples)
    steps: list[tuple[list[str], Any]] = [
        (["copy-store-to-icechunk", str(cohort), str(store)], lambda: api.copy_store_to_icechunk(cohort, store)),
        *((["append", str(store), str(batch)], lambda batch=batch: api.append(store, batch)) for batch in batches),
        (["remove", str(store), REMOVED], lambda: api.remove(store, REMOVED)),
        (["tag", str(store), TAG], lambda: api.tag(store, TAG)),
    ]
    summary: list[dict[str, Any]] = []
    before: list[str] = []
    for command, call in steps:
        call()
        after = [s for s in open_store(store).open().sample_ids if s]
        _show(command, before, after, err)
        summary.append({"command": shlex.join(["vczstore", *command]), "before": before, "after": after})
        before = after
    for text, at in (("\nThe release does not change", f" --at {TAG}"), ("Every step was one commit", "")):
        click.echo(f"{text}: {click.style(f'vczstore info {store}{at}', fg='cyan')}", err=err)
    return {"directory": str(folder), "steps": summary}


def _unused(path: Path) -> Path:
    others = (path.with_name(f"{path.name}-{n}") for n in count(2))
    return next(candidate for candidate in chain([path], others) if not candidate.exists())


def _show(command: Sequence[str], before: Sequence[str], after: Sequence[str], err: bool) -> None:
    click.echo(f"\n$ {click.style(shlex.join(['vczstore', *command]), fg='cyan')}", err=err)
    click.echo(f"  before  {' '.join(_name(s, s in after, 'red') for s in before) or 'no store'}", err=err)
    click.echo(f"  after   {' '.join(_name(s, s in before, 'green') for s in after)}", err=err)


def _name(sample: str, stays: bool, colour: str) -> str:
    return sample if stays else click.style(sample, fg=colour, bold=True)


def make_vcz(path: Path, samples: Sequence[str]) -> None:
    """
    Write a small VCZ in Zarr format 3, with the same variants each time.

    Parameters
    ----------
    path
        Path of the VCZ.
    samples
        The sample IDs, which seed the simulated genotypes.
    """
    sites = np.random.default_rng(0)
    frequency = sites.beta(0.5, 2, N_VARIANTS)
    reference = sites.choice(list("ACGT"), N_VARIANTS)
    alternate = np.array([{"A": "G", "C": "T", "G": "A", "T": "C"}[base] for base in reference])
    columns = [np.random.default_rng(int.from_bytes(sample.encode(), "big")) for sample in samples]
    genotype = np.stack([(rng.random((N_VARIANTS, 2)) < frequency[:, None]) for rng in columns], axis=1).astype("i1")
    depth = np.stack([rng.poisson(30, N_VARIANTS) for rng in columns], axis=1).astype("i1")
    fields: dict[str, tuple[np.ndarray, str]] = {
        "sample_id": (np.array(samples, dtype="T"), "samples"),
        "contig_id": (np.array(["chr1"], dtype="T"), "contigs"),
        "filter_id": (np.array(["PASS"], dtype="T"), "filters"),
        "variant_contig": (np.zeros(N_VARIANTS, "i1"), "variants"),
        "variant_position": (np.arange(1, N_VARIANTS + 1, dtype="i4") * 100, "variants"),
        "variant_allele": (np.stack([reference, alternate], axis=1).astype("T"), "variants alleles"),
        "variant_filter": (np.ones((N_VARIANTS, 1), bool), "variants filters"),
        "call_genotype": (genotype, "variants samples ploidy"),
        "call_genotype_phased": (np.ones(depth.shape, bool), "variants samples"),
        "call_genotype_mask": (genotype < 0, "variants samples ploidy"),
        "call_DP": (depth, "variants samples"),
    }
    root = zarr.create_group(path, attributes={"vcf_zarr_version": "0.4", "source": "vczstore demo"})
    for name, (values, dimensions) in fields.items():
        root.create_array(
            name,
            data=values,
            chunks=tuple(CHUNKS.get(*axis) for axis in zip(dimensions.split(), values.shape, strict=True)),
            dimension_names=dimensions.split(),
            compressors=BloscCodec(cname="zstd", clevel=7, shuffle="bitshuffle"),
        )
