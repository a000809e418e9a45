"""The rules of the house: who may import whom, who may touch private interfaces, and that the README is true."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import executors
from plans.variants.info_fields import FIELDS
from tests.support.paths import ROOT
from vczstore.choices import BACKENDS, IMPLS, INFO_FIELDS

TESTS = sorted((ROOT / "tests").rglob("*.py"))
MODULES = sorted(p for package in ("vczstore", "plans", "executors") for p in (ROOT / package).rglob("*.py"))

PRIVATE = {
    "zarr.core": {
        f"vczstore/vcz/{name}.py" for name in ("arrays", "metadata", "pipeline", "rectilinear", "zarr_objects")
    },
    "zarr.codecs._v2": {"vczstore/vcz/pipeline.py"},
    "cubed.core": {"plans/core/cubed_backend.py"},
    "cubed.primitive": {"plans/core/cubed_backend.py"},
    "cubed.storage": {"plans/core/cubed_backend.py"},
    "cubed.runtime": {"executors/factory.py", "executors/lithops.py", "executors/local.py"},
}
"""Private interfaces of other libraries, and the modules that may use each."""


def _imports(path: Path, *, for_types: bool) -> set[str]:
    """The modules that a file imports, at any depth; those for type checkers only if asked for."""
    tree = ast.parse(path.read_text())
    skipped = set()
    if not for_types:
        for node in ast.walk(tree):
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                skipped |= set(ast.walk(node))
    found = set()
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def _within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


@pytest.mark.slow
def test_imports_point_one_way() -> None:
    """As the contracts in ``pyproject.toml`` say, which also refuse circles."""
    command = [Path(sys.executable).parent / "lint-imports", "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert " 0 broken." in done.stdout


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_private_interfaces_stay_behind_one_module(path: Path) -> None:
    where = str(path.relative_to(ROOT))
    imported = _imports(path, for_types=False)
    for package, allowed in PRIVATE.items():
        used = any(_within(name, package) for name in imported)
        assert not used or where in allowed, package


def test_choices_are_what_there_is() -> None:
    """The command line offers what the API takes."""
    from vczstore.execution.options import Options

    for backend in BACKENDS:
        Options(backend_storage=backend)
    for impl in IMPLS:
        Options(impl=impl)
    for name in executors.NAMES:
        Options(executor=name)
    assert tuple(FIELDS) == INFO_FIELDS


def test_the_readme_and_ci_name_the_same_commands() -> None:
    readme, ci = (ROOT / "README.md").read_text(), (ROOT / ".ci" / "run").read_text()
    assert "pip install -q uv && uv run vczstore demo\n" in readme
    assert "pip install -q uv && uv run pytest\n" in readme
    assert "pip install -q uv && uv run pytest\n" in ci


def test_the_guide_shows_commands_whose_results_are_judged() -> None:
    source = (ROOT / "tests" / "system" / "test_documented_commands.py").read_text()
    page = (ROOT / "examples" / "guide" / "howto-from-0.1.0.md").read_text()
    shown = re.findall(r"^vczstore (?:append|remove|copy-store-to-icechunk) .*$", page, flags=re.MULTILINE)
    assert len(shown) == 7
    assert all(command in source for command in shown)


@pytest.mark.slow
def test_the_walkthrough_runs(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, ROOT / "examples" / "walkthrough.py", tmp_path / "data"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "samples of release-1: ana cho dai eva fay\n" in done.stdout
    assert "2 sources, 3 samples added" in done.stdout
    assert done.stderr == ""


def test_nothing_of_a_test_or_benchmark_is_in_the_packages() -> None:
    assert not [p for p in MODULES if "pytest" in p.read_text()]


@pytest.mark.slow
def test_no_test_imports_from_a_test() -> None:
    """What several tests use is public, in tests/support or in a package of tests/system that holds no tests."""
    for path in TESTS:
        imported = {name for name in _imports(path, for_types=True) if _within(name, "tests")}
        assert not {name for name in imported if re.search(r"\.(test_\w+|conftest)(\.|$)", name)}, path
        names = {name.rpartition(".")[2] for name in imported}
        assert not {name for name in names if name.startswith("_")}, path
        used = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Attribute)]
        used = [n for n in used if isinstance(n.value, ast.Name) and n.value.id in names]
        assert not {n.attr for n in used if n.attr.startswith("_") and not n.attr.startswith("__")}, path


def test_tests_lie_where_what_they_test_lies() -> None:
    """Folders of tests are those of the tree, and that of the suites over the whole."""
    folders = {path.parent.relative_to(ROOT / "tests") for path in TESTS if path.name.startswith("test_")}
    packages = {path.parent.relative_to(ROOT) for path in MODULES}
    mirrored = {Path(*folder.parts[1:]) if folder.parts[0] == "vczstore" else folder for folder in packages}
    assert folders <= mirrored - {Path()} | {Path("system")}
