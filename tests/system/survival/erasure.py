"""
Erasure: withdraw samples from stores of several layouts, and search every remaining byte for them.

The search is independent of ``vczstore verify-removal``, whose verdict is checked too. It looks for the sample IDs,
and for a value unique to these samples, in the raw and the decompressed bytes (zstd, gzip, Blosc) of every object, and
in every array of every snapshot listed by icechunk. As a control, it must find them before the withdrawal.
"""

from __future__ import annotations

import gzip
import re
import signal
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import icechunk
import numpy as np
import zarr
from click.testing import CliRunner
from numcodecs import Blosc, blosc, zstd

import vczstore
from tests.support import cohort
from tests.system.survival import Tally, forks
from tests.system.survival.kills import VARIANTS_CHUNK, Point, read, run, some_arrays
from vczstore.cli.main import main

WITHDRAWN = ["WITHDRAWN-ada", "WITHDRAWN-bob"]
SENTINEL = np.float32(1234567.125)
"""A likelihood unique to withdrawn samples."""
HEADER = 39
"""Length in bytes of the header before the Zstandard frame in Icechunk's metadata files."""


def _with_sentinel(samples: list[str], seed: int) -> dict[str, np.ndarray]:
    arrays = some_arrays(samples, seed=seed)
    arrays["call_GL"][:, [sample in WITHDRAWN for sample in samples]] = SENTINEL
    return arrays


OLD = _with_sentinel(["S0000", WITHDRAWN[0], "S0002", "S0003", "S0004"], 0)
BATCH = _with_sentinel(["S0005", "S0006", WITHDRAWN[1], "S0008"], 1)


@dataclass(frozen=True)
class Layout:
    """The layout of a store, and its history before the withdrawal."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    icechunk: bool = False
    killed: bool = False
    """Whether an append of the batch was killed, on plain Zarr while a file was half written, and then completed."""


LAYOUTS = (
    Layout("format 2, Blosc", {"zarr_format": 2, "compressors": Blosc(), "consolidated": True}),
    Layout("format 3, Zstandard", {"compressors": zarr.codecs.ZstdCodec()}),
    Layout("format 3, gzip", {"compressors": zarr.codecs.GzipCodec()}),
    Layout("format 3, uncompressed", {"compressors": None}),
    Layout("format 3, sharded", {"shards": (1, 2)}),
    Layout("format 3, killed", killed=True),
    Layout("Icechunk, Blosc", {"compressors": zarr.codecs.BloscCodec()}, icechunk=True),
    Layout("Icechunk, Zstandard", {"compressors": zarr.codecs.ZstdCodec()}, icechunk=True),
    Layout("Icechunk, killed", icechunk=True, killed=True),
)


# ---- the search -----------------------------------------------------------------------------


def _decoded(data: bytes) -> Iterator[bytes]:
    """Yield an object's bytes, and everything that decompresses: all of it, all after a header, or embedded frames."""
    yield data
    with suppress(OSError, EOFError, zlib.error):
        yield gzip.decompress(data)
    if len(data) > 16 and int.from_bytes(data[12:16], "little") == len(data):  # else Blosc reads out of bounds
        with suppress(RuntimeError, ValueError):
            yield bytes(blosc.decompress(data))
    for whole in (data, data[HEADER:]):
        with suppress(RuntimeError, ValueError):
            content = bytes(zstd.decompress(whole))
            yield content
            yield from _frames_in(content)
    yield from _frames_in(data)


def _frames_in(data: bytes) -> Iterator[bytes]:
    """Yield the content of Zstandard frames at any offset; a frame may end up to 63 bytes before the next one."""
    starts = [match.start() for match in re.finditer(re.escape(b"\x28\xb5\x2f\xfd"), data)]
    for start, stop in pairwise([*starts, len(data)]):
        for end in range(stop, max(start, stop - 64), -1):
            with suppress(RuntimeError, ValueError):
                yield bytes(zstd.decompress(data[start:end]))
                break


def objects_with_withdrawn(store: Path) -> tuple[int, list[str]]:
    """Number of objects in a store and its sidecar files, and the paths of those that contain withdrawn data."""
    needles = [sample.encode() for sample in WITHDRAWN] + [SENTINEL.tobytes() * 3]
    files = sorted(path for path in store.rglob("*") if path.is_file())
    files += sorted(path for path in store.parent.glob(f".{store.name}*") if path.is_file())
    paths = [
        str(path.relative_to(store.parent))
        for path in files
        if any(needle in text for text in _decoded(path.read_bytes()) for needle in needles)
        or any(sample in str(path) for sample in WITHDRAWN)
    ]
    return len(files), paths


def snapshots_with_withdrawn(store: Path) -> list[str]:
    """IDs of the snapshots of a repository in which data of withdrawn samples can be read."""
    repository = icechunk.Repository.open(icechunk.local_filesystem_storage(str(store)))
    heads = [{"branch": name} for name in repository.list_branches()]
    heads += [{"tag": name} for name in repository.list_tags()]
    snapshots = []
    for snapshot in {str(info.id) for head in heads for info in repository.ancestry(**head)}:
        try:
            group = zarr.open_group(repository.readonly_session(snapshot_id=snapshot).store, mode="r")
        except zarr.errors.GroupNotFoundError:
            continue  # the initial snapshot is empty
        for _, array in group.arrays():
            values = np.asarray(array[...])
            if values.dtype.kind in "OT":
                is_there = np.isin(values.astype(object), WITHDRAWN).any()
            else:
                is_there = values.dtype.kind == "f" and (values == SENTINEL).any()
            if is_there:
                snapshots.append(snapshot)
                break
    return snapshots


# ---- withdrawals ----------------------------------------------------------------------------


def withdraw(layout: Layout) -> Tally:
    """Withdraw samples from one store; the tally counts the objects searched, and lists those with withdrawn data."""
    with TemporaryDirectory(prefix="vczstore-erasure-") as name:
        folder = Path(name)
        store, options = folder / "store.vcz", {"variants_chunk": VARIANTS_CHUNK, **layout.options}
        (cohort.write_icechunk if layout.icechunk else cohort.write_vcz)(store, OLD, **options)
        cohort.write_vcz(folder / "batch.vcz", BATCH, **options)
        failures = []
        if layout.killed:
            _kill_an_append(folder)
        _vczstore("append", store, folder / "batch.vcz")
        _, before = objects_with_withdrawn(store)
        if not any("sample_id" in path or "manifests" in path for path in before) or len(before) < 3:
            failures.append(f"the search is blind: before the withdrawal it finds {before}")
        tags = []
        if layout.icechunk:
            _vczstore("tag", store, "release-1")
            tags = ["--tags", "delete"]
        _vczstore("remove", store, *WITHDRAWN, "--purge", *tags)
        n, paths = objects_with_withdrawn(store)
        failures += [f"{path} holds something of them" for path in paths]
        if layout.icechunk:
            failures += [f"snapshot {snapshot} has them" for snapshot in snapshots_with_withdrawn(store)]
        verdict = vczstore.verify_removal(store, WITHDRAWN)
        if verdict.erased == bool(paths):
            failures.append(f"verify-removal says {'erased' if verdict.erased else verdict.reasons}, which is not so")
        expected = cohort.expected_remove(cohort.expected_append(OLD, BATCH), WITHDRAWN)
        try:
            cohort.assert_same(read(store) or {}, expected)
        except AssertionError:
            failures.append("the other samples have changed")
        return Tally(n, tuple(f"{layout.name}: {failure}" for failure in failures))


def _vczstore(*arguments: object) -> None:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == 0, (result.output, result.exception)


def _kill_an_append(folder: Path) -> None:
    """
    Kill an append after it has written data of withdrawn samples, and before these are visible in the store.

    On plain Zarr, this is while a file is half written; on Icechunk, when the commit lock is taken, because Python
    writes no other file.
    """
    store, hit = folder / "store.vcz", folder / "hit.json"
    trap = {"roots": [str(folder)], "watched": str(store), "folder": str(folder)}
    is_plain = (store / "zarr.json").exists()
    for nth in range(8 if is_plain else 1, 200, 2):
        point = Point("driver", "write", nth, 0.0, signal.SIGKILL, False)
        hit.unlink(missing_ok=True)
        run(folder, ["append", "store.vcz", "batch.vcz"], {**trap, "trigger": asdict(point)}, forks.shared())
        assert hit.exists()
        if not is_plain or list(folder.rglob("*.partial")):
            break
    hit.unlink()


def search(report: Callable[[Layout, Tally], None] | None = None) -> Tally:
    """Withdraw samples from a store of each layout; call `report` after each."""
    total = Tally(0)
    for layout in LAYOUTS:
        tally = withdraw(layout)
        if report is not None:
            report(layout, tally)
        total += tally
    return total
