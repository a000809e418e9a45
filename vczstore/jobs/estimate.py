"""What running a plan is likely to take: seconds, and dollars where there is a list price.

An estimate, not a quotation. The prices of ``prices.json`` are list prices of one region, each with the day on which it
was written down and the vendor's page; free tiers, discounts, taxes, storage and traffic are left out. Speeds were
measured on one machine, or are assumed where ``prices.json`` says so.
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

GIB = 2**30


@dataclass(frozen=True)
class Estimate:
    """
    What a job is likely to take.

    Attributes
    ----------
    seconds
        From start to end. # s
    dollars
        At list prices, None where there is none. # USD
    parts
        What the two are the sums of: names that end in ``_seconds`` # s, and in ``_dollars`` # USD.
    date
        Of the oldest price, or of the measurements where there are no prices. # YYYY-MM-DD
    assumptions
        What has to hold for it, for people.
    """

    seconds: float
    dollars: float | None
    parts: dict[str, float]
    date: str
    assumptions: list[str]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def estimate(steps: Sequence[Mapping[str, Any]], executor: str, *, workers: int, remote: bool) -> Estimate:
    """
    Estimate what running steps one after the other takes.

    Tasks of a step are taken to be of one size, so that 5 tasks on 2 workers take as long as 3 tasks on 1.

    Parameters
    ----------
    steps
        As in a report: of each, ``tasks`` # 1, ``encoded_chunks`` and ``decoded_chunks`` # 1, ``bytes_written``
        # decoded bytes, ``projected_mem`` # bytes, ``get_requests`` and ``put_requests`` # 1.
    executor
        Its name. One that ``prices.json`` does not know has no price and starts at once.
    workers
        How many tasks run at once. # 1
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
    known = _data()
    engine = known["executors"].get(executor)
    workers = 1 if executor == "single-threaded" else workers
    start, overhead, least = (
        (engine["start_seconds"], engine["task_seconds"], engine["min_memory"]) if engine else (0.0, 0.0, 0)
    )
    elapsed: dict[str, float] = {}
    amounts: dict[str, float] = {}
    for step in steps:
        tasks = step["tasks"]
        if not tasks:
            continue
        elapsed["start_seconds"] = start
        work = _work(step, known["throughput"], overhead, remote)
        waves = ceil(tasks / workers)
        for name, seconds in work.items():
            elapsed[name] = elapsed.get(name, 0.0) + seconds * waves / tasks
        busy = sum(work.values())
        for unit, amount in {
            "vCPU-second": busy,
            "core-second": busy,
            "GiB-second": busy * max(step["projected_mem"], least) / GIB,
            "invocation": tasks,
            "get": step["get_requests"] if remote else 0,
            "put": step["put_requests"] if remote else 0,
        }.items():
            amounts[unit] = amounts.get(unit, 0.0) + amount
    names = [] if engine is None or not engine["prices"] else engine["prices"] + known["storage"][engine["storage"]]
    prices = {name: known["prices"][name] for name in names}
    paid = {f"{name}_dollars": amounts.get(p["unit"], 0.0) * p["price"] / p["per"] for name, p in prices.items()}
    dates = [p["date"] for p in prices.values()] or [t["date"] for t in known["throughput"].values()]
    return Estimate(
        seconds=sum(elapsed.values()),
        dollars=sum(paid.values()) if prices else None,
        parts=elapsed | paid,
        date=min(dates),
        assumptions=[
            *_speeds(known["throughput"], workers, remote),
            *_start(executor, engine),
            *(_prices(known, engine, least) if prices else []),
            *(_requests(known, amounts, engine) if remote else []),
        ],
    )


@cache
def _data() -> dict[str, Any]:
    data: dict[str, Any] = json.loads(files("vczstore.jobs").joinpath("prices.json").read_text(encoding="utf-8"))
    return data


def _work(step: Mapping[str, Any], speeds: Mapping[str, Any], overhead: float, remote: bool) -> dict[str, float]:
    """Seconds that workers are busy with a step, all of them together."""
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


def _prices(known: Mapping[str, Any], engine: Mapping[str, Any], least: int) -> list[str]:
    regions, sources = (sorted({known["prices"][n][key] for n in engine["prices"]}) for key in ("region", "source"))
    return [
        f"list prices of region {', '.join(regions)}; no free tier, discount, storage or traffic; "
        f"see {', '.join(sources)}",
        f"a worker has the memory that its tasks are projected to need, {human_size(least)} at least, "
        "and nothing is tried again",
    ]


def _requests(known: Mapping[str, Any], amounts: Mapping[str, float], engine: Mapping[str, Any] | None) -> list[str]:
    """What the requests cost at each vendor, as the store may be at another than the executor."""
    costs = {
        vendor: sum(
            amounts.get(p["unit"], 0.0) * p["price"] / p["per"] for p in (known["prices"][name] for name in names)
        )
        for vendor, names in known["storage"].items()
    }
    listed = ", ".join(f"${dollars:,.4f} on {vendor}" for vendor, dollars in costs.items())
    counted = (
        "not in the dollars" if not engine or not engine["prices"] else f"those of {engine['storage']} are counted"
    )
    return [f"requests cost {listed}; {counted}"]
