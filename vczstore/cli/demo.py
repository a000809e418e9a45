"""A walk-through of vczstore on a small simulated cohort."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import zarr
from zarr.codecs import BloscCodec

N_VARIANTS = 1000
FIRST, BATCHES = (
    ["NA00001", "NA00002", "NA00003", "NA00004"],
    [["NA00005", "NA00006"], ["NA00007", "NA00008", "NA00009"]],
)
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
        (
            ["copy-store-to-icechunk", str(cohort), str(store)],
            lambda: api.copy_store_to_icechunk(cohort, store),
        ),
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
    click.echo(
        f"\nThe release does not change: {click.style(f'vczstore info {store} --at {TAG}', fg='cyan')}",
        err=err,
    )
    click.echo(f"Every step was one commit: {click.style(f'vczstore info {store}', fg='cyan')}", err=err)
    return {"directory": str(folder), "steps": summary}


def _unused(path: Path) -> Path:
    candidate, n = path, 1
    while candidate.exists():
        n += 1
        candidate = path.with_name(f"{path.name}-{n}")
    return candidate


def _show(command: Sequence[str], before: Sequence[str], after: Sequence[str], err: bool) -> None:
    click.echo(f"\n$ {click.style(shlex.join(['vczstore', *command]), fg='cyan')}", err=err)
    click.echo(f"  before  {' '.join(_name(s, s in after, 'red') for s in before) or 'no store'}", err=err)
    click.echo(f"  after   {' '.join(_name(s, s in before, 'green') for s in after)}", err=err)


def _name(sample: str, stays: bool, colour: str) -> str:
    return sample if stays else click.style(sample, fg=colour, bold=True)


def make_vcz(
    path: Path, samples: Sequence[str], *, n_variants: int = N_VARIANTS, chunks: tuple[int, int] = (500, 2)
) -> None:
    """
    Write a small VCZ of simulated genotypes, with the same variants each time.

    Parameters
    ----------
    path
        Path of the VCZ, which is in Zarr format 3.
    samples
        The sample IDs, which seed the genotypes.
    n_variants
        Number of variants.
    chunks
        Chunk lengths along variants and samples.
    """
    sites = np.random.default_rng(0)
    frequency = sites.beta(0.5, 2, n_variants)
    reference = sites.choice(list("ACGT"), n_variants)
    alternate = np.array([{"A": "G", "C": "T", "G": "A", "T": "C"}[base] for base in reference])
    seeds = [int.from_bytes(s.encode(), "big") for s in samples]
    columns = [np.random.default_rng(seed) for seed in seeds]
    genotype = np.stack([(rng.random((n_variants, 2)) < frequency[:, None]) for rng in columns], axis=1).astype("i1")
    depth = np.stack([rng.poisson(30, n_variants) for rng in columns], axis=1).astype("i1")
    variants, by_sample = chunks
    fields: list[tuple[str, np.ndarray, tuple[int, ...], tuple[str, ...]]] = [
        ("sample_id", np.array(samples, dtype="T"), (by_sample,), ("samples",)),
        ("contig_id", np.array(["chr1"], dtype="T"), (1,), ("contigs",)),
        ("filter_id", np.array(["PASS"], dtype="T"), (1,), ("filters",)),
        ("variant_contig", np.zeros(n_variants, "i1"), (variants,), ("variants",)),
        ("variant_position", np.arange(1, n_variants + 1, dtype="i4") * 100, (variants,), ("variants",)),
        (
            "variant_allele",
            np.stack([reference, alternate], axis=1).astype("T"),
            (variants, 2),
            ("variants", "alleles"),
        ),
        ("variant_filter", np.ones((n_variants, 1), bool), (variants, 1), ("variants", "filters")),
        ("call_genotype", genotype, (variants, by_sample, 2), ("variants", "samples", "ploidy")),
        (
            "call_genotype_phased",
            np.ones(genotype.shape[:2], bool),
            (variants, by_sample),
            ("variants", "samples"),
        ),
        ("call_genotype_mask", genotype < 0, (variants, by_sample, 2), ("variants", "samples", "ploidy")),
        ("call_DP", depth, (variants, by_sample), ("variants", "samples")),
    ]
    root = zarr.create_group(path, attributes={"vcf_zarr_version": "0.4", "source": "vczstore demo"})
    for name, values, shape, dimensions in fields:
        array = root.create_array(
            name,
            shape=values.shape,
            dtype=values.dtype,
            chunks=shape,
            dimension_names=dimensions,
            compressors=BloscCodec(cname="zstd", clevel=7, shuffle="bitshuffle"),
        )
        array[...] = values
