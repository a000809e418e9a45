"""Estimate the time of running a job, and its cost where there are list prices.

An estimate, not a quotation. ``prices.json`` has list prices of one region, each with its date and the vendor's page;
free tiers, discounts, taxes, storage and traffic are left out. Speeds were measured on one machine, or are assumed
where ``prices.json`` says so.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib.resources import files
from math import ceil
from typing import Any

from vczstore.errors import OptionError
from vczstore.sizes import human_size
from vczstore.vcf.files import SUFFIXES

GIB = 2**30
WITHOUT_CONVERSION = "without the conversion of VCF files"


@dataclass(frozen=True)
class Estimate:
    """
    The estimated time and cost of a job.

    Attributes
    ----------
    seconds
        Time from start to end.
    dollars
        Cost in US dollars at list prices; None if there are none.
    parts
        The summands of the two, by names that end in ``_seconds`` and in ``_dollars``.
    date
        The date (YYYY-MM-DD) of the oldest price, or of the oldest measurement if there are no prices.
    assumptions
        The assumptions of the estimate, a line each.
    """

    seconds: float
    dollars: float | None
    parts: dict[str, float]
    date: str
    assumptions: list[str]

    def as_dict(self) -> dict[str, Any]:
        """Return a dict for JSON."""
        return asdict(self)


def estimate(steps: Sequence[Mapping[str, Any]], executor: str, *, workers: int, remote: bool) -> Estimate:
    """
    Estimate the time and cost of running steps one after the other.

    All tasks of a step are assumed to take the same time, so that 5 tasks on 2 workers take as long as 3 on 1.

    Parameters
    ----------
    steps
        Steps of a report, each with ``tasks``, ``encoded_chunks``, ``decoded_chunks``, ``bytes_written`` (decoded),
        ``projected_mem`` (in bytes), ``get_requests`` and ``put_requests``, and optionally ``sources``, their labels.
    executor
        Its name. One that is not in ``prices.json`` has no price and no start-up time.
    workers
        The number of tasks that run concurrently.
    remote
        Whether the store is in an object store, where requests take time and cost money.

    Raises
    ------
    OptionError
        If there is no worker.

    Examples
    --------
    >>> step = {"tasks": 4, "encoded_chunks": 0, "decoded_chunks": 8, "bytes_written": 320_000_000,
    ...         "projected_mem": 500_000_000, "get_requests": 8, "put_requests": 8}
    >>> round(estimate([step], "threads", workers=2, remote=False).seconds, 2)
    2.01
    """
    if workers < 1:
        raise OptionError(f"estimate: {workers} workers are too few; give at least 1")
    data = _data()
    engine = data["executors"].get(executor)
    workers = 1 if executor == "single-threaded" else workers
    start, overhead, min_memory = (
        (engine["start_seconds"], engine["task_seconds"], engine["min_memory"]) if engine else (0.0, 0.0, 0)
    )
    elapsed: dict[str, float] = {}
    amounts: dict[str, float] = {}
    for step in steps:
        tasks = step["tasks"]
        if not tasks:
            continue
        elapsed["start_seconds"] = start
        work = _work(step, data["throughput"], overhead, remote)
        waves = ceil(tasks / workers)
        for name, seconds in work.items():
            elapsed[name] = elapsed.get(name, 0.0) + seconds * waves / tasks
        busy = sum(work.values())
        for unit, amount in {
            "vCPU-second": busy,
            "core-second": busy,
            "GiB-second": busy * max(step["projected_mem"], min_memory) / GIB,
            "invocation": tasks,
            "get": step["get_requests"] if remote else 0,
            "put": step["put_requests"] if remote else 0,
        }.items():
            amounts[unit] = amounts.get(unit, 0.0) + amount
    names = [] if engine is None or not engine["prices"] else engine["prices"] + data["storage"][engine["storage"]]
    prices = {name: data["prices"][name] for name in names}
    costs = {f"{name}_dollars": amounts.get(p["unit"], 0.0) * p["price"] / p["per"] for name, p in prices.items()}
    dates = [p["date"] for p in prices.values()] or [t["date"] for t in data["throughput"].values()]
    return Estimate(
        seconds=sum(elapsed.values()),
        dollars=sum(costs.values()) if prices else None,
        parts=elapsed | costs,
        date=min(dates),
        assumptions=[
            *_speeds(data["throughput"], workers, remote),
            *([WITHOUT_CONVERSION] if any(map(_has_vcf, steps)) else []),
            *_start(executor, engine),
            *(_prices(data, engine, min_memory) if prices else []),
            *(_requests(data, amounts, engine) if remote else []),
        ],
    )


@cache
def _data() -> dict[str, Any]:
    data: dict[str, Any] = json.loads(files("vczstore.jobs").joinpath("prices.json").read_text(encoding="utf-8"))
    return data


def _has_vcf(step: Mapping[str, Any]) -> bool:
    """Whether a source of a step is a VCF or BCF file, by its label."""
    return any(source.partition("?")[0].lower().endswith(SUFFIXES) for source in step.get("sources", ()))


def _work(step: Mapping[str, Any], speeds: Mapping[str, Any], overhead: float, remote: bool) -> dict[str, float]:
    """Return the seconds for which workers are busy with a step, summed over workers, by kind of work."""
    chunks = step["encoded_chunks"] + step["decoded_chunks"]
    copied = step["bytes_written"] * step["encoded_chunks"] / chunks if chunks else 0.0
    requests = step["get_requests"] + step["put_requests"] if remote else 0
    return {
        "tasks_seconds": step["tasks"] * overhead,
        "copy_seconds": copied / speeds["copied"]["value"],
        "encode_seconds": (step["bytes_written"] - copied) / speeds["encoded"]["value"],
        "requests_seconds": requests / speeds["request"]["value"],
    }


def _speeds(speeds: Mapping[str, Any], workers: int, remote: bool) -> list[str]:
    lines = [
        f"{workers:,} task{'s run' if workers > 1 else ' runs'} at once, with a core for each, all of a step alike",
        f"chunks are copied at {human_size(speeds['copied']['value'])} and re-encoded at "
        f"{human_size(speeds['encoded']['value'])} (decoded) a second and core",
    ]
    if remote:
        lines.append(f"{speeds['request']['value']} requests a second and worker; bandwidth is no limit")
    return lines


def _start(executor: str, engine: Mapping[str, Any] | None) -> list[str]:
    if engine is None:
        return [f"the executor {executor[:40]!r} is not in the price list: no dollars, and no time to start it"]
    lines = []
    if engine["start_seconds"]:
        lines.append(f"{executor} takes {engine['start_seconds']:g} s to start ({engine['measured']})")
    if not engine["prices"]:
        lines.append(f"{executor} runs on this machine, which has no list price")
    return lines


def _prices(data: Mapping[str, Any], engine: Mapping[str, Any], min_memory: int) -> list[str]:
    regions, sources = (sorted({data["prices"][n][key] for n in engine["prices"]}) for key in ("region", "source"))
    return [
        f"list prices of region {', '.join(regions)}; no free tier, discount, storage or traffic; "
        f"see {', '.join(sources)}",
        f"a worker has the memory that its tasks are projected to need, {human_size(min_memory)} at least, "
        "and nothing is retried",
    ]


def _requests(data: Mapping[str, Any], amounts: Mapping[str, float], engine: Mapping[str, Any] | None) -> list[str]:
    """Describe the cost of requests at each vendor, since the store's may differ from the executor's."""
    costs = {
        vendor: sum(
            amounts.get(p["unit"], 0.0) * p["price"] / p["per"] for p in (data["prices"][name] for name in names)
        )
        for vendor, names in data["storage"].items()
    }
    listed = ", ".join(f"${dollars:,.4f} on {vendor}" for vendor, dollars in costs.items())
    counted = (
        "not in the dollars" if not engine or not engine["prices"] else f"those of {engine['storage']} are counted"
    )
    return [f"requests cost {listed}; {counted}"]
