"""The guide: generated pages are up to date, links are valid, and the site can be built."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import reference
from tests.support.paths import GUIDE, ROOT

GENERATED = {"reference-commands.md": reference.commands, "reference-python.md": reference.python}


@pytest.mark.parametrize("name", GENERATED)
def test_generated_pages_are_fresh(name: str) -> None:
    """If not: ``REGENERATE=1 uv run pytest -n 0 tests/system/test_guide.py -k fresh``."""
    generated = GENERATED[name]()
    if os.environ.get("REGENERATE"):
        (GUIDE / name).write_text(generated)
    assert (GUIDE / name).read_text() == generated


def test_the_readme_is_short_and_its_links_are_valid() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 150
    local = [link for link in re.findall(r"\]\(([^)]+)\)", text) if "://" not in link]
    assert local
    assert [link for link in local if not (ROOT / link.partition("#")[0]).exists()] == []


def test_files_named_in_pages_exist() -> None:
    """Pages refer to files of the repository as inline code, because the site does not contain them."""
    for page in [ROOT / "README.md", *GUIDE.glob("*.md")]:
        named = re.findall(r"`((?:tests|examples|plans|executors|vczstore)/[\w./-]+)`", page.read_text())
        assert [path for path in named if not (ROOT / path).exists()] == [], page.name


def test_jobs_name_their_tags_by_a_variable() -> None:
    """A job that changes the store is refused if its tag exists, so a constant name is good for one night only."""
    tags = [tag for page in GUIDE.glob("howto-*.md") for tag in re.findall(r"^  - tag: (.*)$", page.read_text(), re.M)]
    assert len(tags) >= 4
    assert [tag for tag in tags if "${RELEASE:-" not in tag] == []


def test_no_file_says_to_install_the_other_package() -> None:
    """``vczstore`` on PyPI is another package, the first release."""
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    kept = [ROOT / name for name in tracked if not name.startswith("tests/") and (ROOT / name).suffix != ".lock"]
    pattern = re.compile(r"pip install (-\S+ )*['\"]?vczstore")
    names = [path.name for path in kept if path.is_file() and pattern.search(path.read_text(errors="ignore"))]
    assert names == ["install.md"]  # which warns against it


@pytest.mark.slow
def test_the_site_can_be_built(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-f", ROOT / "examples" / "mkdocs.yml"]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(
        [*command, "-d", tmp_path / "site"], env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert (tmp_path / "site" / "reference-jobs.html").exists()
