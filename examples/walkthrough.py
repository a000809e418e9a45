"""First steps with vczstore in Python: plan, inspect, run, and read the result with xarray.

Run it with:  uv run python examples/walkthrough.py
"""

import shutil
import sys
from pathlib import Path

import icechunk
import xarray as xr

import vczstore
from vczstore.cli.demo import make_vcz


def main(folder: Path) -> None:
    """Create a cohort and two batches in a folder, append the batches, remove a sample and tag a release."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    make_vcz(folder / "cohort.vcz", ["ana", "ben", "cho"])
    make_vcz(folder / "batch-1.vcz", ["dai", "eva"])
    make_vcz(folder / "batch-2.vcz", ["fay"])

    # In an Icechunk repository each operation is one commit, which readers see as a whole or not at all.
    store = folder / "cohort.icechunk"
    vczstore.copy_store_to_icechunk(folder / "cohort.vcz", store)

    # A plan is an object: inspect it, then run it on any executor. Both batches are appended in one commit.
    plan = vczstore.plan("append", store, folder / "batch-1.vcz", folder / "batch-2.vcz")
    print(plan)
    print(f"{plan.tasks} tasks, the largest projected to need {plan.projected_mem / 1e6:.0f} MB")
    result = vczstore.run(plan, executor="threads")
    print(f"committed {result.snapshot} in {result.seconds:.2f} s")

    # A participant withdraws. Remove the sample, then tag the release.
    vczstore.remove(store, "ben")
    vczstore.tag(store, "release-1")

    # Zarr readers can read the release.
    repository = icechunk.Repository.open(icechunk.local_filesystem_storage(str(store)))
    release = xr.open_zarr(repository.readonly_session(tag="release-1").store, consolidated=False)
    samples = release["sample_id"].values
    print("samples of release-1:", " ".join(s for s in samples if s))
    calls = release["call_genotype"].isel(samples=samples != "")
    print(f"alternate alleles in {calls.sizes['variants']} variants: {int((calls > 0).sum())}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "data")
