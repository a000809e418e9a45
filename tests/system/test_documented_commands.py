"""
Run every command and snippet of the README and the guide in order, in a folder with small VCFs.

Commands run as forks, see tests.support.forks.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import chdir
from pathlib import Path

import pytest
from click.testing import CliRunner
from filelock import FileLock

from tests.support import forks, gvcf, s3, vcf
from tests.support.paths import GUIDE, ROOT

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


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with test data, created once for all workers."""
    folder = tmp_path_factory.getbasetemp()
    folder = (folder.parent if os.environ.get("PYTEST_XDIST_WORKER") else folder) / "pages"
    with FileLock(f"{folder}.lock"):
        if not (folder / "ready").exists():
            _make(folder / "vcfs")
            _convert(folder / "converted")
            (folder / "ready").touch()
    return folder


@pytest.fixture
def vcfs(shared: Path) -> Path:
    """A folder with the VCF, and the subfolder ``data`` with VCZs of its two parts."""
    return shared / "vcfs"


def _make(folder: Path) -> None:
    (folder / "data").mkdir(parents=True)
    columns = ["#CHROM", "POS", "ID", "REF", "ALT", "QUAL", "FILTER", "INFO", "FORMAT", *SAMPLES]
    whole = vcf.write_vcf(folder / "sample.vcf.gz", HEADER + "\t".join(columns) + "\n" + RECORDS)
    for i, samples in enumerate([SAMPLES[:2], SAMPLES[2:]], start=1):
        part = vcf.split_by_samples(whole, samples, folder / f"sample-part{i}.vcf.gz")
        vcf.to_vcz(part, folder / "data" / f"sample-part{i}.vcf.vcz", 2, None, None)


def programs(folder: Path | None = None) -> dict[str, str]:
    """Environment variables with the programs of this environment, and before these those of a folder, in ``PATH``."""
    # as in a user's shell, where the command itself must keep icechunk quiet
    environment = {name: value for name, value in os.environ.items() if name != "ICECHUNK_LOG"}
    folders = [*([str(folder)] if folder else []), str(Path(sys.executable).parent), os.environ["PATH"]]
    return {**environment, "PATH": os.pathsep.join(folders)}


def run(folder: Path, command: str) -> str:
    """Run a command in a folder, assert that it succeeds without output on standard error; return its output."""
    environment, words = programs(forks.folder()), shlex.split(command)
    words[0] = shutil.which(words[0], path=environment["PATH"]) or words[0]
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def show(folder: Path, command: str) -> str:
    """Run vcztools in this process; return its output."""
    from vcztools.cli import vcztools_main

    program, *arguments = shlex.split(command)
    assert program == "vcztools"
    with chdir(folder), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings within vcztools
        result = CliRunner().invoke(vcztools_main, arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def assert_shown(folder: Path, original: Path, samples: Sequence[str], backend: str) -> None:
    """Assert that vcztools lists these samples, and shows the same records as bcftools for the original VCF."""
    assert show(folder, f"vcztools query -l data/store.vcz{backend}").split() == list(samples)
    absent = [sample for sample in SAMPLES if sample not in samples]
    expected = vcf.bcftools_records(original / "sample.vcf.gz", without=absent)
    assert vcf.records(show(folder, f"vcztools view data/store.vcz{backend}")) == expected


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
"""Commands in order, with the samples in the store after each."""


@pytest.mark.slow
@pytest.mark.parametrize("variant", DOCUMENTED)
def test_commands(vcfs: Path, tmp_path: Path, variant: str) -> None:
    shutil.copytree(vcfs / "data", tmp_path / "data")
    backend = " --backend-storage icechunk" if variant == "icechunk" else ""
    for command, samples in DOCUMENTED[variant]:
        printed = run(tmp_path, command)
        program, name, *_ = command.split()
        assert printed.startswith(f"{name} data/store.vcz: " if program == "vczstore" else "")
        assert_shown(tmp_path, vcfs, samples, backend)


# ---- pages ----------------------------------------------------------------------------------

SITES = (
    ("chr20", 14370, "G", "A"),
    ("chr20", 17330, "T", "A"),
    ("chr20", 1110696, "A", "G,T"),
    ("chrX", 2781479, "AC", "A"),
)
OTHER_SITES = (SITES[0], ("chr20", 1110696, "A", "T,G"), ("chr20", 1234567, "C", "T"), ("chrX", 2781479, "AC", "A,ACC"))
FILES = {
    "first": (SITES, ("NA00001", "NA00002", "NA00003")),
    "second": (SITES, ("NA00004", "NA00005")),
    "array": (OTHER_SITES, ("NA00006",)),
    "exome": (OTHER_SITES, ("NA00010",)),
    "batch-7": (SITES, ("NA00007",)),
    "batch-8": (SITES, ("NA00008", "NA00009")),
    "recalled": (SITES, ("NA00001",)),
}
"""The VCFs used in pages: sites and samples."""
GVCFS = {
    "mother": ("1 1000 A <NON_REF> 1999 GT:DP:GQ 0/0:30:40", "1 2000 C T,<NON_REF> . GT:DP:GQ 0/1:31:99"),
    "father": ("1 1500 G T,<NON_REF> . GT:DP:GQ 0/1:28:99", "1 1501 A <NON_REF> 2500 GT:DP:GQ 0/0:29:10"),
    "child": ("1 1000 A <NON_REF> 2600 GT:DP:GQ 0/0:33:50",),
}
"""The gVCFs used in pages: records for `tests.support.gvcf.text`."""
DEFINITIONS = """\
##fileformat=VCFv4.3
##FILTER=<ID=PASS,Description="All filters passed">
##INFO=<ID=AC,Number=A,Type=Integer,Description="Allele count">
##FORMAT=<ID=GT,Number=1,Type=String,Description="Genotype">
##FORMAT=<ID=AD,Number=R,Type=Integer,Description="Depth of each allele">
##FORMAT=<ID=DP,Number=1,Type=Integer,Description="Depth">
##contig=<ID=chr20,length=64444167>
##contig=<ID=chrX,length=156040895>
"""
FROM_VCF = ("README.md", "tutorial.md")
"""Pages that convert VCFs themselves."""
FROM_SCRATCH = (*FROM_VCF, "howto-append.md", "howto-sample-grid.md")
"""Pages that create their stores themselves; others find ``cohort.vcz`` and ``cohort.icechunk`` in the folder."""
IN_S3 = ("howto-object-storage.md",)
PAGES = [ROOT / "README.md", *sorted(GUIDE.glob("*.md"))]
COLLECT = (
    f"{sys.executable} -m pytest --collect-only -q -n 0 -p no:cacheprovider --rootdir {ROOT} -c {ROOT}/pyproject.toml"
)
INSTEAD = {
    "pip install -q uv && uv run vczstore demo": "vczstore demo",
    'uv run pytest -m "not slow"': f"{COLLECT} -m 'not slow' {ROOT}/tests/system/test_house.py",
    "REGENERATE=1 uv run pytest -n 0 -q tests/system/test_guide.py tests/jobs/test_jobfile.py -k fresh": (
        f"{COLLECT} {ROOT}/tests/system/test_guide.py {ROOT}/tests/jobs/test_jobfile.py -k fresh"
    ),
    "uv run python -m tests.system.survival": f"{sys.executable} -m tests.system.survival --help",
    "uv run python -m tests.benchmarks": f"{sys.executable} -m tests.benchmarks --help",
}
"""Replacements of commands that would run this test, take long or need the network."""


def blocks(page: Path) -> Iterator[tuple[str, str, str]]:
    """The fenced blocks of a page: language, title and text. Raise an error if a fence is not closed."""
    lines = iter(page.read_text().splitlines())
    for line in lines:
        if line.lstrip().startswith("```"):
            language, title = re.fullmatch(r'```(\w+)(?: title="([\w.-]+)")?', line).groups()  # type: ignore[union-attr]
            text: list[str] = []
            while (inner := next(lines)) != "```":
                text.append(inner)
            yield language, title or "", "\n".join(text) + "\n"


def _convert(folder: Path) -> None:
    """Write the VCFs used in pages, their VCZs, and stores of these."""
    import vczstore

    folder.mkdir()
    for seed, (name, (sites, samples)) in enumerate(FILES.items()):
        columns = ["#CHROM", "POS", "ID", "REF", "ALT", "QUAL", "FILTER", "INFO", "FORMAT", *samples]
        records = [
            "\t".join(
                [contig, str(position), ".", ref, alt, "50", "PASS", "AC=1", "GT:AD:DP", *_calls(alt, samples, seed)]
            )
            for contig, position, ref, alt in sites
        ]
        text = DEFINITIONS + "\n".join(["\t".join(columns), *records]) + "\n"
        vcf.to_vcz(vcf.write_vcf(folder / f"{name}.vcf.gz", text), folder / f"{name}.vcz", 3, None, None)
    for name, records in GVCFS.items():
        gvcf.make(folder, f"{name}.g", gvcf.text([name], *records), chunks=(1000, 1000))
    parts = folder / "first.vcz", folder / "second.vcz"
    for name, backend in (("cohort.vcz", "zarr"), ("cohort.icechunk", "icechunk")):
        vczstore.create(folder / name, *parts, backend_storage=backend)
        vczstore.append(folder / name, *parts)


def _calls(alt: str, samples: Sequence[str], seed: int) -> list[str]:
    n = alt.count(",") + 2
    depths = [[(seed + i + k) % 7 for k in range(n)] for i in range(len(samples))]
    return [f"0/{(seed + i) % n}:{','.join(map(str, d))}:{sum(d)}" for i, d in enumerate(depths)]


@pytest.fixture
def workplace(shared: Path, tmp_path: Path, page: Path) -> Iterator[tuple[Path, dict[str, str]]]:
    """The folder in which the commands of a page run, and their environment."""
    folder = tmp_path / "work"
    ignored = ["cohort.*"] * (page.name in FROM_SCRATCH) + ["*.vcz"] * (page.name in FROM_VCF)
    shutil.copytree(shared / "converted", folder, ignore=shutil.ignore_patterns(*ignored))
    shutil.copytree(shared / "vcfs" / "data", folder / "data")
    environment = programs(forks.folder())
    if page.name not in IN_S3:
        yield folder, environment
        return
    with s3.serve() as server:
        _upload(folder / "batch-7.vcz", server)
        endpoint = {"AWS_ENDPOINT_URL": server.endpoint, "AWS_ALLOW_HTTP": "true"}
        yield folder, {**environment, **s3.CREDENTIALS, **endpoint}


def _upload(store: Path, server: s3.S3Server) -> None:
    """Upload a VCZ to the bucket used in pages."""
    import obstore
    from obstore.store import S3Store

    server.url("bucket")
    keys = {name.lower(): value for name, value in s3.CREDENTIALS.items()}
    bucket = S3Store("bucket", endpoint=server.endpoint, client_options={"allow_http": True}, **keys)
    for path in store.rglob("*"):
        if path.is_file():
            obstore.put(bucket, str(path.relative_to(store.parent)), path)


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages(page: Path, workplace: tuple[Path, dict[str, str]]) -> None:
    folder, environment = workplace
    for language, title, text in blocks(page):
        match language:
            case "sh":
                _run_shell(text, folder, environment)
            case "python":
                _succeed(["python", "-c", text], folder, environment, text)
            case "yaml":
                _write_yaml(folder / title, text)
            case "text" | "mermaid":
                pass
            case other:
                raise AssertionError(f"{page.name}: a block of {other!r}, which no test runs")


def _run_shell(text: str, folder: Path, environment: dict[str, str]) -> None:
    """Run a block, without the lines that CI runs verbatim, and with the replacements in `INSTEAD`."""
    in_ci = [line.strip() for line in (ROOT / ".ci" / "run").read_text().splitlines()]
    remaining = []
    for line in text.splitlines():
        if line in INSTEAD:
            _succeed(shlex.split(INSTEAD[line]), folder, {**environment, "PYTHONPATH": str(ROOT)}, line)
        elif line not in in_ci:
            remaining.append(line)
    _succeed(["bash", "-euo", "pipefail", "-c", "\n".join(remaining)], folder, environment, text)


def _succeed(command: Sequence[str], folder: Path, environment: dict[str, str], shown: str) -> None:
    program, *arguments = command
    command = [shutil.which(program, path=environment["PATH"]) or program, *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{shown}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr, done.stderr


def _write_yaml(path: Path, text: str) -> None:
    """Write a job file or an executor file, under the name in its title, and load it."""
    from vczstore.configuration import executor_file
    from vczstore.jobs import model

    assert path.suffix == ".yaml", "a block of YAML needs the title of its file"
    path.write_text(text)
    if re.search("^steps:", text, flags=re.MULTILINE):
        assert model.load(str(path)).steps
    else:
        assert executor_file.load_executor(str(path)).name


def test_a_block_of_another_language_fails(tmp_path: Path) -> None:
    """Control of `test_pages`."""
    page = tmp_path / "page.md"
    page.write_text('```console\n$ x\n```\n\n```yaml title="a.yaml"\nname: threads\n```\n')
    assert list(blocks(page)) == [("console", "", "$ x\n"), ("yaml", "a.yaml", "name: threads\n")]
    with pytest.raises(AssertionError, match="a block of 'console'"):
        test_pages(page, (tmp_path, {}))
