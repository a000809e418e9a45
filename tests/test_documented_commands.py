"""The commands of the documentation, word for word, in the folder that it speaks of; vcztools shows what they did."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import warnings
from collections.abc import Sequence
from contextlib import chdir
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests import vcf

SAMPLES = ("NA00001", "NA00002", "NA00003")
RECORDS = """\
20	14370	rs6054257	G	A	29	PASS	AF=0.5;DP=14	GT:DP:GQ:HQ	0|0:1:48:51,51	1|0:8:48:51,51	1/1:5:43:51,51
20	17330	.	T	A	3	q10	DP=11	GT:DP:GQ:HQ	0|0:3:49:58,50	0|1:5:3:65,3	0/0:3:41:7,7
20	1110696	rs6040355	A	G,T	67	PASS	DP=10	GT:DP:GQ:HQ	1|2:6:21:23,27	2|1:0:2:18,2	2/2:4:35:1,1
20	1230237	.	T	.	47	PASS	DP=13	GT:DP:GQ:HQ	0|0:7:54:56,60	0|0:4:48:51,51	./.:2:61:2,2
X	10	.	AC	A	10	PASS	.	GT	0	0/1	0|1
"""
HEADER = """\
##fileformat=VCFv4.3
##FILTER=<ID=PASS,Description="All filters passed">
##FILTER=<ID=q10,Description="Quality below 10">
##INFO=<ID=AF,Number=A,Type=Float,Description="Allele frequency">
##INFO=<ID=DP,Number=1,Type=Integer,Description="Depth">
##FORMAT=<ID=GT,Number=1,Type=String,Description="Genotype">
##FORMAT=<ID=DP,Number=1,Type=Integer,Description="Depth">
##FORMAT=<ID=GQ,Number=1,Type=Integer,Description="Quality">
##FORMAT=<ID=HQ,Number=2,Type=Integer,Description="Haplotype quality">
##contig=<ID=20>
##contig=<ID=X>
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the VCF, and ``data`` with the two parts of it as bio2zarr converts them."""
    folder = tmp_path_factory.mktemp("documented")
    (folder / "data").mkdir()
    columns = ["#CHROM", "POS", "ID", "REF", "ALT", "QUAL", "FILTER", "INFO", "FORMAT", *SAMPLES]
    whole = vcf.write_vcf(folder / "sample.vcf.gz", HEADER + "\t".join(columns) + "\n" + RECORDS)
    for i, samples in enumerate([SAMPLES[:2], SAMPLES[2:]], start=1):
        part = vcf.split_by_samples(whole, samples, folder / f"sample-part{i}.vcf.gz")
        vcf.to_vcz(part, folder / "data" / f"sample-part{i}.vcf.vcz", 2, None, None)
    return folder


def run(folder: Path, command: str) -> str:
    """Run a command in a folder, with the programs of this environment; returns what it prints, which is no error."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    # as in a user's shell: it is for the command to keep icechunk quiet
    environment = {name: value for name, value in os.environ.items() if name != "ICECHUNK_LOG"} | {"PATH": path}
    done = subprocess.run(
        shlex.split(command), cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def show(folder: Path, command: str) -> str:
    """The same of vcztools, in this process: it is the judge, not the judged."""
    from vcztools.cli import vcztools_main

    program, *arguments = shlex.split(command)
    assert program == "vcztools"
    with chdir(folder), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # vcztools' own affair
        done = CliRunner().invoke(vcztools_main, arguments)
    assert done.exit_code == 0, done.output
    return done.stdout


def assert_shown(folder: Path, original: Path, samples: Sequence[str], backend: str) -> None:
    """``vcztools query -l`` and ``vcztools view`` show these samples, with what bcftools shows of them."""
    assert show(folder, f"vcztools query -l data/store.vcz{backend}").split() == list(samples)
    absent = [sample for sample in SAMPLES if sample not in samples]
    judged = vcf.bcftools_records(original / "sample.vcf.gz", without=absent)
    assert vcf.records(show(folder, f"vcztools view data/store.vcz{backend}")) == judged


FIRST, APPENDED, REMOVED = SAMPLES[:2], SAMPLES, (SAMPLES[0], SAMPLES[2])
DOCUMENTED = {
    "default": [
        ("cp -r data/sample-part1.vcf.vcz data/store.vcz", FIRST),
        ("vczstore append data/store.vcz data/sample-part2.vcf.vcz", APPENDED),
        ("vczstore remove data/store.vcz NA00002", REMOVED),
    ],
    "cubed": [
        ("cp -r data/sample-part1.vcf.vcz data/store.vcz", FIRST),
        ("vczstore append --impl cubed data/store.vcz data/sample-part2.vcf.vcz", APPENDED),
        ("vczstore remove --impl cubed data/store.vcz NA00002", REMOVED),
    ],
    "icechunk": [
        ("vczstore copy-store-to-icechunk data/sample-part1.vcf.vcz data/store.vcz", FIRST),
        ("vczstore append data/store.vcz data/sample-part2.vcf.vcz --zarr-backend-storage icechunk", APPENDED),
        ("vczstore remove data/store.vcz NA00002 --zarr-backend-storage icechunk", REMOVED),
    ],
}
"""Each command, and the samples that are in the store after it; they are those before the next."""


@pytest.mark.slow
@pytest.mark.parametrize("which", DOCUMENTED)
def test_commands(made: Path, tmp_path: Path, which: str) -> None:
    shutil.copytree(made / "data", tmp_path / "data")
    backend = " --backend-storage icechunk" if which == "icechunk" else ""
    for command, samples in DOCUMENTED[which]:
        printed = run(tmp_path, command)
        program, name, *_ = command.split()
        assert printed.startswith(f"{name} data/store.vcz: " if program == "vczstore" else "")
        assert_shown(tmp_path, made, samples, backend)
