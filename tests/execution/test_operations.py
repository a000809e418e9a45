"""Each operation is declared once, and the interfaces derived from its declaration agree with it."""

from __future__ import annotations

from dataclasses import fields
from importlib.metadata import version
from inspect import cleandoc, get_annotations, signature
from pathlib import Path

import numpy as np
import pytest

import vczstore
from vczstore import api
from vczstore.declarations import declared
from vczstore.execution import operations
from vczstore.execution.options import GROUPS, Options

NAMES = operations.names()
Small = tuple[Path, Path, dict[str, np.ndarray], dict[str, np.ndarray]]
BY_HAND = {"tag"}
"""Operations with one command, but several hand-written functions."""


@pytest.mark.parametrize("name", NAMES)
def test_a_declaration_is_complete(name: str) -> None:
    operation = operations.find(name)
    assert operation.called == name, "a class is called like its module"
    assert operations.listed(name) == (operation.group, cleandoc(operation.__doc__ or "").partition("\n")[0])
    assert operation.group in operations.GROUPS.keys() - {"jobs", "other"}, "the help lists it in a group"
    assert set(operation.uses) <= GROUPS.keys()
    for field in fields(operation):
        declaration = declared(field)
        assert declaration.help.endswith((".", ")")), field.name
        has_values = declaration.examples or declaration.within or field.type is bool
        assert not declaration.job or not operation.is_step or has_values, field.name


@pytest.mark.parametrize("name", [name for name in NAMES if name not in BY_HAND])
def test_the_types_of_a_function_match_its_declaration(name: str) -> None:
    """The signatures seen by completion and type checkers are hand-written, without defaults and help."""
    operation, function = operations.find(name), api.FUNCTIONS[name.replace("-", "_")]
    written = get_annotations(function.__wrapped__)
    (keys,) = written["options"].__args__
    typed = {*written, *keys.__annotations__} - {"options", "return"}  # a TypedDict includes keys of its bases
    own = {field.name for field in fields(operation) if declared(field).python}
    shared = {field.name for field in fields(Options) if field.init}
    assert own <= typed
    assert typed - own <= {*shared, "dry_run"}
    assert ("dry_run" in typed) == bool(operation.dry_run)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in BY_HAND])
def test_flags_are_keyword_only(name: str) -> None:
    parameters = signature(getattr(vczstore, name.replace("-", "_"))).parameters.values()
    by_position = [p for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert not [p.name for p in by_position if p.default is True or p.default is False]


def test_operations_that_may_name_samples() -> None:
    """Digests of their options, in names of files, are slow to compute, so that IDs cannot be guessed by trial."""
    naming = {name for name in NAMES if object.__new__(operations.find(name)).names_samples}
    assert naming == {"export", "remove", "rename-samples", "verify-removal"}


@pytest.mark.slow
def test_a_notebook_shows_plans_and_results(small: Small, tmp_path: Path) -> None:
    store, batch = small[0].rename(tmp_path / "<b>.vcz"), small[1]
    plan = vczstore.plan("append", store, batch)
    for shown in (plan._repr_html_(), vczstore.run(plan)._repr_html_()):
        assert "<th>samples added</th>" in shown
        assert "&lt;b&gt;.vcz</caption>" in shown
        assert "<b>" not in shown


def test_the_version_is_that_of_the_package() -> None:
    assert vczstore.__version__ == version("vczstore")


def test_options_are_typed() -> None:
    assert api.StoreOptions.__annotations__.keys() == {field.name for field in fields(Options) if field.init}
