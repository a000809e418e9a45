"""Rules of the code base: imports between packages, use of private interfaces, and commands in README and guide."""

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
"""Private modules of other libraries, and our modules that may import them."""


def _imports(path: Path, *, for_types: bool) -> set[str]:
    """Names of the modules imported in a file, also within functions; with `for_types`, also under TYPE_CHECKING."""
    tree = ast.parse(path.read_text())
    skipped = set()
    if not for_types:
        for node in ast.walk(tree):
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                skipped |= set(ast.walk(node))
    names = set()
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def _within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


@pytest.mark.slow
def test_import_contracts() -> None:
    """Imports between packages follow the contracts in ``pyproject.toml``, which also forbid cycles."""
    command = [Path(sys.executable).parent / "lint-imports", "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert " 0 broken." in done.stdout


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_private_interfaces_are_used_only_where_allowed(path: Path) -> None:
    module = str(path.relative_to(ROOT))
    imported = _imports(path, for_types=False)
    for package, allowed in PRIVATE.items():
        used = any(_within(name, package) for name in imported)
        assert not used or module in allowed, package


def test_choices_are_valid_options() -> None:
    """The API accepts all choices of the command line."""
    from vczstore.execution.options import Options

    for backend in BACKENDS:
        Options(backend_storage=backend)
    for impl in IMPLS:
        Options(impl=impl)
    for name in executors.NAMES:
        Options(executor=name)
    assert tuple(FIELDS) == INFO_FIELDS


def test_the_readme_and_ci_have_the_same_commands() -> None:
    readme, ci = (ROOT / "README.md").read_text(), (ROOT / ".ci" / "run").read_text()
    assert "pip install -q uv && uv run vczstore demo\n" in readme
    assert "pip install -q uv && uv run pytest\n" in readme
    assert "pip install -q uv && uv run pytest\n" in ci


def test_commands_of_0_1_0_in_the_guide_are_tested() -> None:
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


def test_the_packages_contain_no_test_code() -> None:
    assert not [p for p in MODULES if "pytest" in p.read_text()]


@pytest.mark.slow
def test_no_test_imports_from_a_test() -> None:
    """Shared test code must be public, and in tests/support or a package of tests/system without tests."""
    for path in TESTS:
        imported = {name for name in _imports(path, for_types=True) if _within(name, "tests")}
        assert not {name for name in imported if re.search(r"\.(test_\w+|conftest)(\.|$)", name)}, path
        names = {name.rpartition(".")[2] for name in imported}
        assert not {name for name in names if name.startswith("_")}, path
        used = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Attribute)]
        used = [n for n in used if isinstance(n.value, ast.Name) and n.value.id in names]
        assert not {n.attr for n in used if n.attr.startswith("_") and not n.attr.startswith("__")}, path


def test_folders_of_tests_mirror_the_packages() -> None:
    """The only other folder is tests/system, for tests of the whole."""
    folders = {path.parent.relative_to(ROOT / "tests") for path in TESTS if path.name.startswith("test_")}
    packages = {path.parent.relative_to(ROOT) for path in MODULES}
    mirrored = {Path(*folder.parts[1:]) if folder.parts[0] == "vczstore" else folder for folder in packages}
    assert folders <= mirrored - {Path()} | {Path("system")}
