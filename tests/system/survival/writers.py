"""Writers at once: every commit lands, each once, whoever else commits to the same Icechunk repository meanwhile."""

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

CONFLICT, AGAIN = 4, 0
"""The status of who has lost to others too often, and how often its command is then run again: it is retried itself."""
BATCH = 2
"""Samples that each writer appends."""


@dataclass(frozen=True)
class Place:
    """A repository: how the command line calls it, and how icechunk does."""

    url: str
    options: tuple[str, ...]
    storage: Callable[[], icechunk.Storage]

    @property
    def repository(self) -> icechunk.Repository:
        """Reopened."""
        return icechunk.Repository.open(self.storage())


@dataclass(frozen=True)
class Writer:
    """What one of them does, as the command line has it."""

    name: str
    command: tuple[str, ...]
    operation: str


@contextlib.contextmanager
def local(folder: Path) -> Iterator[Callable[[str], Place]]:
    """Repositories in a folder."""

    def place(name: str) -> Place:
        return Place(str(folder / name), (), lambda: icechunk.local_filesystem_storage(str(folder / name)))

    yield place


@contextlib.contextmanager
def at_moto(folder: Path) -> Iterator[Callable[[str], Place]]:
    """Repositories in a bucket."""
    with s3.serve() as server:
        bucket = server.url("writers").removeprefix("s3://")

        def place(name: str) -> Place:
            said = (f"endpoint={server.endpoint}", "region=us-east-1")
            options = tuple(word for option in said for word in ("--storage-option", option))
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


def at_once(place: Place, writers: list[Writer], environment: Mapping[str, str]) -> dict[str, tuple[int, str]]:
    """Run all of them, and say how each has ended."""
    running = {writer: _start(place, writer, environment) for writer in writers}
    ended = {writer.name: _wait(process) for writer, process in running.items()}
    for _ in range(AGAIN):
        lost = [writer for writer in writers if ended[writer.name][0] == CONFLICT]
        ended |= {writer.name: _wait(_start(place, writer, environment)) for writer in lost}
    return ended


def _wait(process: subprocess.Popen[str]) -> tuple[int, str]:
    try:
        said, _ = process.communicate(timeout=2 * PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        return -9, f"it takes more than {2 * PATIENCE:.0f} s: {process.communicate()[0]}"
    return process.returncode, said


def _start(place: Place, writer: Writer, environment: Mapping[str, str]) -> subprocess.Popen[str]:
    operation, *arguments = writer.command
    command = [forks.program("vczstore"), operation, place.url, *arguments, *place.options]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, **environment}
    )


# ---- what they do ---------------------------------------------------------------------------


def appending(folder: Path, n: int, seed: int) -> tuple[list[Writer], dict[str, dict[str, np.ndarray]]]:
    """Writers that append a batch each; and the batches by writer."""
    batches = {f"W{i}": some_arrays([f"W{i}-{j}" for j in range(BATCH)], seed=seed + i) for i in range(n)}
    for name, arrays in batches.items():
        cohort.write_vcz(folder / f"{name}.vcz", arrays, variants_chunk=VARIANTS_CHUNK)
    return [Writer(name, ("append", str(folder / f"{name}.vcz")), "append") for name in batches], batches


REMOVING = Writer("removing", ("remove", *GONE), "remove")
RECOMPUTING = Writer("recomputing", ("recompute", "--fields", "AN"), "recompute")


def one_round(where: str, n: int, seed: int, *, mixed: bool) -> Tally:
    """
    Writers at once on a new repository.

    Parameters
    ----------
    where
        One of `PLACES`.
    n
        How many append.
    seed
        What their batches are made from, and the order in which they are started.
    mixed
        Whether one removes and one recomputes besides.
    """
    environment = s3.CREDENTIALS if where == "moto" else {}
    with TemporaryDirectory(prefix="vczstore-writers-") as name, PLACES[where](Path(name)) as places:
        folder, place = Path(name), places(f"store-{seed}")
        cohort.write_icechunk(folder / "template", OLD, variants_chunk=VARIANTS_CHUNK)
        _move(folder / "template", place)
        writers, batches = appending(folder, n, seed)
        writers += [REMOVING, RECOMPUTING] * mixed
        random.Random(seed).shuffle(writers)
        ended = at_once(place, writers, environment)
        wrong = [f"{name} ended with {status}: {said[-300:]!r}" for name, (status, said) in ended.items() if status]
        wrong += _lost(place, writers, batches)
        what = f"{len(writers)} writers on {where}{', mixed' if mixed else ''}, seed {seed}"
        return Tally(len(writers), tuple(f"{what}: {one}" for one in wrong))


def _move(template: Path, place: Place) -> None:
    """Put the files of a repository where it is to be."""
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


def _lost(place: Place, writers: list[Writer], batches: dict[str, dict[str, np.ndarray]]) -> list[str]:
    """What of the writers' work is not there, or there twice, or not as it should be."""
    wrong = []
    repository = place.repository
    history = list(repository.ancestry(branch="main"))
    done = Counter(str(info.metadata["vczstore"]["operation"]) for info in history[:-2])
    if (planned := Counter(writer.operation for writer in writers)) != done:
        wrong.append(f"commits are {dict(done)}, {dict(planned)} were to be made")
    found = cohort.read_vcz(repository.readonly_session("main").store)
    came = found["sample_id"].tolist()[len(OLD["sample_id"]) :]
    order = [str(sample).partition("-")[0] for sample in came[::BATCH]]
    if sorted(order) != sorted(batches):
        return [*wrong, f"samples that came are {came}"]
    model = cohort.expected_append(OLD, *(batches[name] for name in order))
    if REMOVING in writers:
        model = cohort.expected_remove(model, GONE)
    computed = found.pop("variant_AN", None)
    try:
        cohort.assert_same(found, model)
    except AssertionError as error:
        wrong.append(f"the store is not what they make of it: {' '.join(str(error).split())[:200]}")
    if RECOMPUTING in writers:
        (then,) = [info.id for info in history if "recompute" in info.message] or [history[0].id]
        genotypes = cohort.read_vcz(repository.readonly_session(snapshot_id=then).store)["call_genotype"]
        if computed is None or not np.array_equal(computed, (genotypes >= 0).sum(axis=(1, 2))):
            wrong.append("AN is not that of the samples that were there when it was computed")
    return wrong


def run(n: int, seed: int, *, told: Callable[[str, Tally], None] | None = None) -> Tally:
    """
    Rounds of writers, in turn in a folder and in a bucket, all appending and mixed, until so many commits were tried.

    Parameters
    ----------
    n
        How many commits.
    seed
        The first round's; the next one's is one more.
    told
        Told of each round.
    """
    total = Tally(0)
    rounds = [("local", 6, False), ("local", 3, True), ("moto", 4, False), ("moto", 2, True)]
    while total.tried < n:
        where, appends, mixed = rounds[seed % len(rounds)]
        one = one_round(where, appends, seed, mixed=mixed)
        if told is not None:
            told(where, one)
        total, seed = total + one, seed + 1
    return total
