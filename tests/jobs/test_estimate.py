"""Estimates of time and cost, against values computed by hand."""

from __future__ import annotations

import datetime
import json
import re
from importlib.resources import files
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

import executors
from vczstore.errors import OptionError
from vczstore.jobs.estimate import Estimate, estimate

DATA = json.loads(files("vczstore.jobs").joinpath("prices.json").read_text(encoding="utf-8"))
PRICED = ("lithops-aws-lambda", "lithops-gcp-cloudrun", "modal")
GIB = 2**30


def step(**changes: int) -> dict[str, int]:
    """A step of 10 tasks that copies 4 chunks of 400 MB in total, and re-encodes 8 chunks of 800 MB."""
    default = {
        "tasks": 10,
        "encoded_chunks": 4,
        "decoded_chunks": 8,
        "bytes_written": 1_200_000_000,
        "projected_mem": 4 * GIB,
        "get_requests": 2_000,
        "put_requests": 1_000,
    }
    return default | changes


def test_local_by_hand() -> None:
    """400 MB at 400 MB/s and 800 MB at 80 MB/s are 1 s and 10 s; 10 tasks of 5 ms; 4 workers need 3 waves of 10."""
    result = estimate([step()], "threads", workers=4, remote=False)
    assert result.dollars is None
    assert result.parts == pytest.approx(
        {
            "start_seconds": 0,
            "copy_seconds": 1 * 0.3,
            "encode_seconds": 10 * 0.3,
            "tasks_seconds": 0.05 * 0.3,
            "requests_seconds": 0,
        }
    )
    assert result.seconds == pytest.approx(3.315)
    assert any("no list price" in a for a in result.assumptions)


def test_max_workers_does_not_matter_for_one_thread() -> None:
    single = estimate([step()], "single-threaded", workers=1, remote=False)
    assert single == estimate([step()], "single-threaded", workers=8, remote=False)
    assert single.seconds == pytest.approx(11.05)


def test_processes_start_once_for_all_steps() -> None:
    two = estimate([step(), step()], "processes", workers=10, remote=False)
    assert two.seconds == pytest.approx(1.2 + 2 * 1.105)


@pytest.mark.parametrize(
    ("executor", "task_seconds", "dollars"),
    [
        # busy: 11 s of work, 3,000 requests at 20 a second = 150 s, 10 tasks; memory 4 GiB
        ("lithops-aws-lambda", 0.2, 163 * 4 * 0.0000166667 + 10 * 2e-7 + 2_000 * 4e-7 + 1_000 * 5e-6),
        ("lithops-gcp-cloudrun", 0.2, 163 * (0.000024 + 4 * 0.0000025) + 10 * 4e-7 + 2_000 * 4e-7 + 1_000 * 5e-6),
        ("modal", 0.1, 162 * (0.0000131 + 4 * 0.00000222) + 2_000 * 4e-7 + 1_000 * 5e-6),
    ],
)
def test_cloud_by_hand(executor: str, task_seconds: float, dollars: float) -> None:
    result = estimate([step()], executor, workers=10, remote=True)
    assert result.dollars == pytest.approx(dollars, rel=1e-9)
    start = DATA["executors"][executor]["start_seconds"]
    assert result.seconds == pytest.approx(start + (161 + 10 * task_seconds) / 10)


def test_lambda_needs_1769_mib_for_a_vcpu() -> None:
    small = estimate([step(projected_mem=1)], "lithops-aws-lambda", workers=10, remote=False)
    assert small.parts["lambda_memory_dollars"] == pytest.approx(13 * 1769 / 1024 * 0.0000166667)
    assert small.parts["s3_put_dollars"] == 0


def test_costs_of_requests_of_a_local_executor() -> None:
    result = estimate([step()], "threads", workers=2, remote=True)
    assert result.dollars is None
    # 2,000 GETs and 1,000 PUTs: 0.0008 + 0.005, twice; on Azure 0.001 + 0.0065
    (line,) = [a for a in result.assumptions if "requests cost" in a]
    assert line == (
        "requests cost $0.0058 on S3, $0.0058 on Google Cloud Storage, $0.0075 on Azure Blob Storage; "
        "not in the dollars"
    )


def test_an_unknown_executor_has_no_dollars() -> None:
    result = estimate([step()], "spark", workers=10, remote=True)
    assert result.dollars is None
    assert result.seconds == pytest.approx(16.1)
    assert any("'spark' is not in the price list" in a for a in result.assumptions)


@pytest.mark.parametrize("steps", [[], [step(tasks=0)]])
def test_nothing_to_do_costs_nothing(steps: list[dict[str, int]]) -> None:
    result = estimate(steps, "modal", workers=1, remote=True)
    assert (result.seconds, result.dollars) == (0, 0)


def test_a_step_without_chunks() -> None:
    result = estimate([step(encoded_chunks=0, decoded_chunks=0, bytes_written=0)], "threads", workers=1, remote=False)
    assert result.seconds == pytest.approx(0.05)


@pytest.mark.parametrize("workers", [0, -1])
def test_too_few_workers(workers: int) -> None:
    with pytest.raises(OptionError, match=f"^estimate: {workers} workers are too few; give at least 1$"):
        estimate([], "threads", workers=workers, remote=False)


# ---- properties -----------------------------------------------------------------------------

COUNT = st.integers(0, 10**6)
STEPS = st.lists(
    st.fixed_dictionaries(
        {
            "tasks": st.integers(0, 10**5),
            "encoded_chunks": COUNT,
            "decoded_chunks": COUNT,
            "bytes_written": st.integers(0, 10**15),
            "projected_mem": st.integers(0, 2**40),
            "get_requests": COUNT,
            "put_requests": COUNT,
        }
    ),
    max_size=4,
)
EXECUTOR = st.sampled_from([*DATA["executors"], "unknown"])
WORKERS = st.integers(1, 10_000)
SLACK = 1 + 1e-9


@given(STEPS, EXECUTOR, WORKERS, st.booleans())
@pytest.mark.slow
def test_the_parts_add_up(steps: list[dict[str, int]], executor: str, workers: int, remote: bool) -> None:
    result = estimate(steps, executor, workers=workers, remote=remote)
    assert all(part >= 0 for part in result.parts.values())
    assert sum(v for k, v in result.parts.items() if k.endswith("_seconds")) == pytest.approx(result.seconds)
    dollars = [v for k, v in result.parts.items() if k.endswith("_dollars")]
    assert len(dollars) + len([k for k in result.parts if k.endswith("_seconds")]) == len(result.parts)
    assert (result.dollars is None) == (executor not in PRICED)
    assert sum(dollars) == pytest.approx(result.dollars or 0)
    assert json.loads(json.dumps(result.as_dict())) == result.as_dict()


@given(STEPS, EXECUTOR, WORKERS, st.sampled_from(["bytes_written", "projected_mem", "get_requests", "put_requests"]))
@pytest.mark.slow
def test_more_work_never_costs_less(steps: list[dict[str, int]], executor: str, workers: int, field: str) -> None:
    less = estimate(steps, executor, workers=workers, remote=True)
    more = estimate([s | {field: s[field] * 2 + 1} for s in steps], executor, workers=workers, remote=True)
    assert more.seconds * SLACK >= less.seconds
    assert (more.dollars or 0) * SLACK >= (less.dollars or 0)
    longer = estimate([*steps, step()], executor, workers=workers, remote=True)
    assert longer.seconds > less.seconds


@given(STEPS, EXECUTOR, WORKERS, st.integers(1, 100))
def test_more_workers_are_never_slower_or_more_expensive(
    steps: list[dict[str, int]], executor: str, workers: int, more: int
) -> None:
    few = estimate(steps, executor, workers=workers, remote=False)
    many = estimate(steps, executor, workers=workers + more, remote=False)
    assert many.seconds <= few.seconds * SLACK
    assert many.dollars == few.dollars


def test_an_estimate_is_frozen() -> None:
    result = Estimate(1.0, None, {}, "2026-01-01", [])
    with pytest.raises(AttributeError):
        result.seconds = 2.0  # type: ignore[misc]


# ---- the price list -------------------------------------------------------------------------


@pytest.mark.parametrize("name", DATA["prices"])
def test_every_price_has_date_and_source(name: str) -> None:
    entry = DATA["prices"][name]
    assert set(entry) - {"note"} == {"price", "per", "unit", "currency", "region", "date", "source"}
    assert entry["price"] > 0
    assert entry["per"] in (1, 1_000, 10_000, 1_000_000)
    assert entry["currency"] == "USD"
    assert datetime.date.fromisoformat(entry["date"]) > datetime.date(2026, 1, 1)
    url = urlsplit(entry["source"])
    assert url.scheme == "https"
    assert re.search(r"(^|\.)(amazon|google|modal|microsoft)\.com$", url.netloc)


@pytest.mark.parametrize("section", ["executors", "throughput"])
def test_every_speed_has_date_and_method(section: str) -> None:
    for entry in DATA[section].values():
        assert datetime.date.fromisoformat(entry["date"])
        assert len(entry["measured"]) > 10


def test_the_list_is_complete_without_unused_prices() -> None:
    local = {"lithops-localhost" if name == "lithops" else name for name in executors.NAMES}
    assert local | set(PRICED) <= set(DATA["executors"])
    used = [name for engine in DATA["executors"].values() for name in engine["prices"]]
    used += [name for names in DATA["storage"].values() for name in names]
    assert sorted(used) == sorted(DATA["prices"])


def test_the_date_is_that_of_the_oldest_price() -> None:
    assert estimate([step()], "modal", workers=1, remote=True).date == "2026-06-27"
