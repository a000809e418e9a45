"""Property tests of the pure functions that plan chunks and tasks, over many shapes."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plans.core.chunk_grid import MIN_TASKS, TASK_BYTES, TASK_CHUNKS, Columns, block_of, whole_columns
from plans.core.compatibility import rows_per_task
from plans.core.memory import SLACK, WORKING_COPIES, Memory
from vczstore.errors import MemoryLimitError
from vczstore.vcz.cuts import Cuts, Width


@st.composite
def widths(draw: st.DrawFn, length: int) -> Width:
    """Chunks of equal or individual widths; the last one may extend beyond the axis."""
    if draw(st.booleans()):
        return draw(st.integers(1, 5))
    drawn = []
    while sum(drawn) < length:
        drawn.append(draw(st.integers(1, 5)))
    return tuple(drawn)


def _spans(length: int, width: Width) -> list[tuple[int, int]]:
    """Return the start and end of each chunk, by summation."""
    spans, start, i = [], 0, 0
    while start < length:
        stop = start + (width if isinstance(width, int) else width[i])
        spans.append((start, min(length, stop)))
        start, i = stop, i + 1
    return spans


@given(st.data(), st.integers(1, 20))
def test_cuts(data: st.DataObject, length: int) -> None:
    """`Cuts` agrees with summation, position by position."""
    width = data.draw(widths(length))
    cuts, spans = Cuts(length, width), _spans(length, width)
    assert cuts.n == len(spans)
    assert [(s.start, s.stop) for s in cuts.spans()] == spans
    assert cuts.lengths == tuple(stop - start for start, stop in spans)
    owner = [i for i, (start, stop) in enumerate(spans) for _ in range(start, stop)]
    assert cuts.of(np.arange(length)).tolist() == owner
    assert [int(cuts.of(p)) for p in range(length)] == owner
    for i, (start, stop) in enumerate(spans):
        assert (cuts.start(i), cuts.stop(i)) == (start, stop)
        assert cuts.encoded(i) == (width if isinstance(width, int) else width[i])
    first, last = sorted(data.draw(st.tuples(st.integers(0, length), st.integers(0, length))))
    within = [(max(first, a), min(last, b)) for a, b in spans if max(first, a) < min(last, b)]
    assert [(s.start, s.stop) for s in cuts.spans(first, last)] == within
    borders = [0, *np.cumsum([cuts.encoded(i) for i in range(cuts.n)]).tolist()]
    assert cuts.border(first) == max(b for b in borders if b <= first)
    assert cuts.is_even == (length in borders)
    assert cuts.widest == max(cuts.encoded(i) for i in range(cuts.n))


def test_an_axis_without_elements_has_no_chunks() -> None:
    for width in (3, (3, 1)):
        assert (Cuts(0, width).n, Cuts(0, width).lengths, Cuts(0, width).is_even) == (0, (), True)


@st.composite
def columns(draw: st.DrawFn) -> Columns:
    shape = tuple(draw(st.lists(st.integers(1, 13), min_size=1, max_size=3)))
    chunks = tuple(draw(widths(n)) for n in shape)
    axis = draw(st.sampled_from([None, *range(len(shape))]))
    chosen: tuple[int, ...] = ()
    if axis is not None:
        n = len(_spans(shape[axis], chunks[axis]))
        chosen = tuple(sorted(draw(st.sets(st.integers(0, n - 1), min_size=1))))
    block = tuple(draw(st.integers(1, 4)) for _ in shape)
    return Columns(shape, chunks, axis, chosen, block)


@settings(deadline=None)
@given(columns())
@pytest.mark.slow
def test_blocks_cover_the_columns_once(c: Columns) -> None:
    """Every element of the chosen columns is in exactly one region of one block; no other element is in any."""
    array_counts = np.zeros(c.array_shape, int)
    block_counts = np.zeros(c.shape, int)
    lengths = [[c.block_lengths([n] * len(c.shape))[i] for n in range(len(b))] for i, b in enumerate(c.blocks)]
    starts = [np.concatenate([[0], np.cumsum(axis_lengths)]) for axis_lengths in lengths]
    for index in np.ndindex(*(len(b) for b in c.blocks)):
        for here, there in c.regions(index):
            assert [s.stop - s.start for s in here] == [s.stop - s.start for s in there]
            array_counts[there] += 1
            block_counts[
                tuple(
                    slice(starts[i][n] + s.start, starts[i][n] + s.stop)
                    for i, (n, s) in enumerate(zip(index, here, strict=True))
                )
            ] += 1
    expected = np.zeros(c.array_shape, int)
    for _, coords in c.coords([range(n) for n in c.grid]):
        spans = zip(coords, c.array_shape, c.chunks, strict=True)
        expected[tuple(slice(*_spans(n, w)[i]) for i, n, w in spans)] += 1
    np.testing.assert_array_equal(array_counts, expected)
    assert array_counts.max() == 1
    assert (block_counts == 1).all()


@pytest.mark.slow
@given(columns())
def test_blocks_are_what_cubed_expects(c: Columns) -> None:
    """Blocks are regular, cover all elements and chunks, and there are as many tasks as blocks."""
    for i, width in enumerate(c.chunks):
        assert sum(c.blocks[i]) >= c.shape[i]
        assert sum(c.blocks[i]) == c.shape[i] or not isinstance(width, int)
        assert all(c.block_lengths([n] * len(c.shape))[i] <= longest for n, longest in enumerate(c.blocks[i]))
    assert all(len(set(b[:-1])) <= 1 for b in c.blocks)
    assert tuple(len(b) for b in c.blocks) == c.block_grid
    assert tuple(b[0] for b in c.blocks) == c.block_shape


@pytest.mark.slow
@given(columns())
def test_cells_of_a_region(c: Columns) -> None:
    """The chunks of a block can be derived from the region that Cubed writes it to."""
    for index in np.ndindex(*(len(b) for b in c.blocks)):
        region = tuple(slice(sum(b[:i]), sum(b[: i + 1])) for i, b in zip(index, c.blocks, strict=True))
        assert c.cells_of(region) == c.cells(index)


@given(columns())
@pytest.mark.slow
def test_positions(c: Columns) -> None:
    """`positions` agrees with the runs along the axis of the columns."""
    if c.axis is not None:
        runs = [there[c.axis] for _, there in c.runs([range(n) for n in c.grid])]
        assert c.positions().tolist() == [i for run in runs for i in range(run.start, run.stop)]


@given(
    st.lists(st.integers(1, 10**7), min_size=1, max_size=4),
    st.integers(1, 10**9),
    st.integers(1, 10**11),
    st.none() | st.lists(st.integers(1, 100), min_size=4, max_size=4),
    st.integers(0, 10**10),
)
def test_a_task_fits(shape: list[int], chunk_bytes: int, room: int, prefer: list[int] | None, least: int) -> None:
    """A block lies within the grid, and fits into memory unless a single chunk does not."""
    prefer = None if prefer is None else prefer[: len(shape)]
    block = block_of(shape, chunk_bytes, room, prefer=prefer, least=least)
    assert all(1 <= b <= n for b, n in zip(block, shape, strict=True))
    assert math.prod(block) * chunk_bytes <= max(room, chunk_bytes)


@pytest.mark.slow
@given(
    st.lists(st.integers(1, 5000), min_size=1, max_size=3),
    st.integers(1, 10**7),
    st.integers(10**7, 10**10),
    st.integers(10**6, 10**10),
    st.floats(0, 8),
)
def test_a_task_is_large_enough(
    shape: list[int], chunk_bytes: int, free: int, task_bytes: int, decoding: float
) -> None:
    """A task fits into memory, and has at least a third of the desired bytes if memory and array allow it."""
    memory = Memory(allowed=300_000_000 + free + SLACK, reserved=300_000_000, task_bytes=task_bytes)

    def extra(block: tuple[int, ...]) -> int:
        return int(decoding * chunk_bytes * math.prod(block))

    try:
        block = memory.fit("test", shape, chunk_bytes, extra)
    except MemoryLimitError:
        assert WORKING_COPIES * chunk_bytes + extra((1,)) > free
        return
    assert WORKING_COPIES * chunk_bytes * math.prod(block) + extra(block) <= free
    possible = min(free / (WORKING_COPIES + decoding), TASK_CHUNKS * chunk_bytes, math.prod(shape) * chunk_bytes)
    assert math.prod(block) * chunk_bytes > min(task_bytes, possible) / 3 - chunk_bytes


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=3), st.integers(1, 10**7))
def test_local_workers_all_have_something_to_do(shape: list[int], chunk_bytes: int) -> None:
    block = Memory().fit("test", shape, chunk_bytes, lambda block: 0)
    assert math.prod(block) == 1 or math.prod(block) <= math.prod(shape) / MIN_TASKS
    assert math.prod(block) * chunk_bytes <= TASK_BYTES


@given(
    st.integers(1, 10**5), st.integers(1, 10**6), st.integers(10**6, 10**10), st.integers(0, 10**10), st.floats(0, 8)
)
def test_a_scan_task_is_large_enough(n: int, n_bytes: int, free: int, task_bytes: int, each: float) -> None:
    memory = Memory(allowed=300_000_000 + free + SLACK, reserved=300_000_000, task_bytes=task_bytes)
    count = rows_per_task(memory, n, 1, n_bytes, lambda count: int(each * n_bytes * count))
    assert 1 <= count <= n
    assert count == 1 or int(each * n_bytes * count) <= free
    possible = min(task_bytes, n * n_bytes, free / each if each else math.inf)
    assert count * n_bytes >= possible - 2 * n_bytes


@pytest.mark.slow
@given(st.integers(1, 10**6), st.integers(1, 50), st.floats(0, 4))
def test_a_block_that_fits_is_not_refused_by_cubed(chunk_bytes: int, n: int, decoding: float) -> None:
    """Cubed projects a few bytes more than the blocks; a block that just fits must leave room for them."""
    free = WORKING_COPIES * chunk_bytes * n + int(decoding * chunk_bytes * n) + SLACK
    memory = Memory(allowed=300_000_000 + free, reserved=300_000_000)
    block = memory.fit("test", (1000,), chunk_bytes, lambda b: int(decoding * chunk_bytes * b[0]))
    needed = WORKING_COPIES * block[0] * chunk_bytes + int(decoding * chunk_bytes * block[0])
    assert needed <= free - SLACK


def test_a_chunk_that_does_not_fit_is_refused() -> None:
    memory = Memory(allowed=301_000_000, reserved=300_000_000)
    with pytest.raises(MemoryLimitError, match="test: a task needs 305MB of memory, and 301MB are allowed"):
        memory.fit("test", (5, 5), 1_000_000, lambda block: 999_000)


@st.composite
def moves(draw: st.DrawFn) -> tuple[list[int], list[int], Cuts, Cuts]:
    """Samples of a source and their destinations in a store: in order, in shuffled whole columns, or arbitrary."""
    n_source = draw(st.integers(1, 25))
    width = draw(st.integers(1, 6))
    theirs = Cuts(n_source, draw(st.one_of(st.just(width), widths(n_source))))
    chosen = list(range(draw(st.integers(0, n_source - 1)), n_source))
    order = draw(st.sampled_from(["as it is", "columns", "any"]))
    if order == "any":
        chosen = draw(st.permutations(chosen))
    elif order == "columns":
        columns = [list(range(*span)) for span in _spans(n_source, theirs.width)]
        chosen = [i for column in draw(st.permutations(columns)) for i in column]
    start = draw(st.integers(0, 3 * width))
    n_target = start + len(chosen) + draw(st.integers(0, 5))
    to = list(range(start, start + len(chosen)))
    if order == "any":
        to = sorted(draw(st.lists(st.integers(0, n_target - 1), min_size=len(to), max_size=len(to), unique=True)))
    return chosen, to, theirs, Cuts(n_target, draw(st.one_of(st.just(width), widths(n_target))))


@pytest.mark.slow
@given(moves())
def test_whole_columns(case: tuple[list[int], list[int], Cuts, Cuts]) -> None:
    """Exactly the columns that can be copied: whole source columns, in order, of the same encoded width."""
    chosen, to, source, target = case
    copied = dict(zip(*reversed(whole_columns(np.array(chosen), np.array(to), source, target)), strict=True))
    owner: list[int | None] = [None] * target.length
    for theirs, ours in zip(chosen, to, strict=True):
        owner[ours] = theirs
    columns = [list(range(*span)) for span in _spans(source.length, source.width)]
    expected = {}
    for column, span in enumerate(_spans(target.length, target.width)):
        samples = owner[slice(*span)]
        if samples in columns and source.encoded(columns.index(samples)) == target.encoded(column):
            expected[column] = columns.index(samples)
    assert copied == expected


def test_no_samples_make_no_columns() -> None:
    assert whole_columns(np.empty(0, "i8"), np.empty(0, "i8"), Cuts(5, 2), Cuts(9, 2)) == ((), ())
