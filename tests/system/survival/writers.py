"""Concurrent writers: every commit to an Icechunk repository must land exactly once."""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import icechunk
import numpy as np

from tests.support import cohort, forks, s3
from tests.system.survival import Tally
from tests.system.survival.kills import GONE, OLD, PATIENCE, VARIANTS_CHUNK, some_arrays

CONFLICT, RERUNS = 4, 0
"""Exit status after too many conflicts, and number of reruns: none, because the command itself retries."""
BATCH = 2
"""Number of samples that each writer appends."""


@dataclass(frozen=True)
class Place:
    """A repository: URL and options for the command line, and storage for icechunk."""

    url: str
    options: tuple[str, ...]
    storage: Callable[[], icechunk.Storage]

    @property
    def repository(self) -> icechunk.Repository:
        """The repository, opened again on each access."""
        return icechunk.Repository.open(self.storage())


@dataclass(frozen=True)
class Writer:
    """A writer's command line without the store, and the name of the operation in the commit's metadata."""

    name: str
    command: tuple[str, ...]
    operation: str


@contextlib.contextmanager
def local(folder: Path) -> Iterator[Callable[[str], Place]]:
    """Return a function from names to repositories in a folder."""

    def place(name: str) -> Place:
        return Place(str(folder / name), (), lambda: icechunk.local_filesystem_storage(str(folder / name)))

    yield place


@contextlib.contextmanager
def at_moto(folder: Path) -> Iterator[Callable[[str], Place]]:
    """Return a function from names to repositories in a bucket."""
    with s3.serve() as server:
        bucket = server.url("writers").removeprefix("s3://")

        def place(name: str) -> Place:
            settings = (f"endpoint={server.endpoint}", "region=us-east-1")
            options = tuple(word for setting in settings for word in ("--storage-option", setting))
            return Place(
                f"s3://{bucket}/{name}",
                options,
                lambda: icechunk.s3_storage(
                    bucket=bucket,
                    prefix=name,
                    endpoint_url=server.endpoint,
                    region="us-east-1",
                    allow_http=True,
                    force_path_style=True,
                    access_key_id=s3.CREDENTIALS["AWS_ACCESS_KEY_ID"],
                    secret_access_key=s3.CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
                ),
            )

        yield place


PLACES = {"local": local, "moto": at_moto}


def run_concurrently(place: Place, writers: list[Writer], environment: Mapping[str, str]) -> dict[str, tuple[int, str]]:
    """Run all writers concurrently; return the exit status and the output of each by name."""
    running = {writer: _start(place, writer, environment) for writer in writers}
    ended = {writer.name: _wait(process) for writer, process in running.items()}
    for _ in range(RERUNS):
        lost = [writer for writer in writers if ended[writer.name][0] == CONFLICT]
        ended |= {writer.name: _wait(_start(place, writer, environment)) for writer in lost}
    return ended


def _wait(process: subprocess.Popen[str]) -> tuple[int, str]:
    try:
        output, _ = process.communicate(timeout=2 * PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        return -9, f"it takes more than {2 * PATIENCE:.0f} s: {process.communicate()[0]}"
    return process.returncode, output


def _start(place: Place, writer: Writer, environment: Mapping[str, str]) -> subprocess.Popen[str]:
    operation, *arguments = writer.command
    command = [forks.program("vczstore"), operation, place.url, *arguments, *place.options]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, **environment}
    )


# ---- rounds ---------------------------------------------------------------------------------


def appending(folder: Path, n: int, seed: int) -> tuple[list[Writer], dict[str, dict[str, np.ndarray]]]:
    """Return `n` writers that append a batch each, and the arrays of the batches by writer."""
    batches = {f"W{i}": some_arrays([f"W{i}-{j}" for j in range(BATCH)], seed=seed + i) for i in range(n)}
    for name, arrays in batches.items():
        cohort.write_vcz(folder / f"{name}.vcz", arrays, variants_chunk=VARIANTS_CHUNK)
    return [Writer(name, ("append", str(folder / f"{name}.vcz")), "append") for name in batches], batches


REMOVING = Writer("removing", ("remove", *GONE), "remove")
RECOMPUTING = Writer("recomputing", ("recompute", "--fields", "AN"), "recompute")


def one_round(where: str, n: int, seed: int, *, mixed: bool) -> Tally:
    """
    Run concurrent writers on a new repository.

    Parameters
    ----------
    where
        A key of `PLACES`.
    n
        Number of writers that append.
    seed
        Seed of their batches and of their starting order.
    mixed
        Whether to add a writer that removes samples and one that recomputes a field.
    """
    environment = s3.CREDENTIALS if where == "moto" else {}
    with TemporaryDirectory(prefix="vczstore-writers-") as name, PLACES[where](Path(name)) as places:
        folder, place = Path(name), places(f"store-{seed}")
        cohort.write_icechunk(folder / "template", OLD, variants_chunk=VARIANTS_CHUNK)
        _move(folder / "template", place)
        writers, batches = appending(folder, n, seed)
        writers += [REMOVING, RECOMPUTING] * mixed
        random.Random(seed).shuffle(writers)
        ended = run_concurrently(place, writers, environment)
        problems = [f"{name} ended with {status}: {out[-300:]!r}" for name, (status, out) in ended.items() if status]
        problems += _problems(place, writers, batches)
        description = f"{len(writers)} writers on {where}{', mixed' if mixed else ''}, seed {seed}"
        return Tally(len(writers), tuple(f"{description}: {problem}" for problem in problems))


def _move(template: Path, place: Place) -> None:
    """Move the files of a local repository to their place: a path, or objects in a bucket."""
    if not place.options:
        template.rename(place.url)
        return
    from obstore import put
    from obstore.store import S3Store

    bucket, _, prefix = place.url.removeprefix("s3://").partition("/")
    endpoint = next(word for word in place.options if word.startswith("endpoint=")).partition("=")[2]
    store = S3Store(
        bucket,
        prefix=prefix,
        endpoint=endpoint,
        region="us-east-1",
        client_options={"allow_http": True},
        access_key_id=s3.CREDENTIALS["AWS_ACCESS_KEY_ID"],
        secret_access_key=s3.CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
    )
    for path in template.rglob("*"):
        if path.is_file():
            put(store, path.relative_to(template).as_posix(), path.read_bytes())


def _problems(place: Place, writers: list[Writer], batches: dict[str, dict[str, np.ndarray]]) -> list[str]:
    """Return the problems of the final store: lost or repeated commits, and wrong values."""
    problems = []
    repository = place.repository
    history = list(repository.ancestry(branch="main"))
    done = Counter(str(info.metadata["vczstore"]["operation"]) for info in history[:-2])
    if (planned := Counter(writer.operation for writer in writers)) != done:
        problems.append(f"commits are {dict(done)}, {dict(planned)} were to be made")
    arrays = cohort.read_vcz(repository.readonly_session("main").store)
    appended = arrays["sample_id"].tolist()[len(OLD["sample_id"]) :]
    order = [str(sample).partition("-")[0] for sample in appended[::BATCH]]
    if sorted(order) != sorted(batches):
        return [*problems, f"samples that came are {appended}"]
    model = cohort.expected_append(OLD, *(batches[name] for name in order))
    if REMOVING in writers:
        model = cohort.expected_remove(model, GONE)
    computed = arrays.pop("variant_AN", None)
    try:
        cohort.assert_same(arrays, model)
    except AssertionError as error:
        problems.append(f"the store is not what they make of it: {' '.join(str(error).split())[:200]}")
    if RECOMPUTING in writers:
        (snapshot,) = [info.id for info in history if "recompute" in info.message] or [history[0].id]
        genotypes = cohort.read_vcz(repository.readonly_session(snapshot_id=snapshot).store)["call_genotype"]
        if computed is None or not np.array_equal(computed, (genotypes >= 0).sum(axis=(1, 2))):
            problems.append("AN is not that of the samples that were there when it was computed")
    return problems


def run(n: int, seed: int, *, report: Callable[[str, Tally], None] | None = None) -> Tally:
    """
    Run rounds of writers, alternating between folder and bucket and between appends and mixed operations.

    Parameters
    ----------
    n
        Minimum number of commits.
    seed
        Seed of the first round, incremented for each further round.
    report
        Called after each round.
    """
    total = Tally(0)
    rounds = [("local", 6, False), ("local", 3, True), ("moto", 4, False), ("moto", 2, True)]
    while total.tried < n:
        where, appends, mixed = rounds[seed % len(rounds)]
        tally = one_round(where, appends, seed, mixed=mixed)
        if report is not None:
            report(where, tally)
        total, seed = total + tally, seed + 1
    return total
