"""Create the data of the example: a cohort on Icechunk, an inbox with two batches, a list of withdrawn samples."""

import shutil
import sys
from pathlib import Path

import vczstore
from vczstore.cli.demo import make_vcz


def main(folder: Path) -> None:
    """Create all data in a folder, which is deleted first."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "inbox").mkdir(parents=True)
    make_vcz(folder / "cohort.vcz", ["ana", "ben", "cho"])
    vczstore.copy_store_to_icechunk(folder / "cohort.vcz", folder / "cohort.icechunk")
    make_vcz(folder / "inbox" / "batch-1.vcz", ["dai", "eva"])
    make_vcz(folder / "inbox" / "batch-2.vcz", ["fay"])
    (folder / "withdrawn.txt").write_text("ben\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "data")
