"""What it costs to be watched: scrapes and ``top`` of many VDEVs, and accesses meanwhile.

    ci/bench observe [--counts 1,64,1024] [--seconds S] [--rounds N]

Each VDEV is a ``dsa-1dwq`` of one ``vdcm serve --metrics``. One more, a card, has a client that
reads a register without end: with nobody watching, with a scrape each second, and with a snapshot
each second, as ``top`` takes it; in turns. Then ``vdcm top --once`` is run, with its interval of
0.1 s. All samples go to ``build/bench/observe.json``.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any
from urllib.request import urlopen

from tests.bench.common import keep, percentile, steal_seconds
from vdcm import snapshot
from vdcm.client import Client
from vdcm.control import ControlClient
from vdcm.serving import raise_descriptor_limit
from vdcm.testing import Server


def definition(count: int) -> tuple[dict[str, Any], dict[str, Any]]:
    vdevs: dict[str, Any] = {
        f"work{number}": {"type": "dsa-1dwq", "parent": "dsa0", "portals": "direct"}
        for number in range(count)
    }
    parents = {"dsa0": {"model": "dsa", "dwqs": count, "swqs": 0, "ims": 2 * count}}
    return {"card": {"type": "pcie-idio-16"}, **vdevs}, parents


def each_second(act: Callable[[], object], over: Any, times: Any) -> None:
    """In a process of its own: what it does there takes no time from the client's."""
    while not over.is_set():
        start = time.monotonic()
        act()
        times.put(1000 * (time.monotonic() - start))
        over.wait(max(0.0, start + 1.0 - time.monotonic()))
    times.put(None)


def reads(client: Client, seconds: float) -> list[int]:
    """ns of each."""
    found = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        start = time.perf_counter_ns()
        client.config.read(0, 4)
        found.append(time.perf_counter_ns() - start)
    return found


def python_ms(server: Server) -> float:
    """CPU time of the event loop's thread so far (proc(5), schedstat)."""
    text = Path(f"/proc/{server.pid}/task/{server.pid}/schedstat").read_text()
    return int(text.split()[0]) / 1e6


def spent(act: Callable[[], object], server: Server) -> tuple[float, float]:
    """ms that it takes, and of Python's CPU time in the server."""
    start, before = time.monotonic(), python_ms(server)
    act()
    return 1000 * (time.monotonic() - start), python_ms(server) - before


def watched(act: Callable[[], object], client: Client, seconds: float) -> dict[str, Any]:
    """A client's reads while something looks at the server each second."""
    over, times = multiprocessing.Event(), multiprocessing.Queue()
    process = multiprocessing.Process(target=each_second, args=(act, over, times))
    process.start()
    times.get()  # the first, which makes what is made once
    found = {"read_ns": reads(client, seconds), "ms": []}
    over.set()
    while (ms := times.get()) is not None:
        found["ms"].append(ms)
    process.join()
    return found


def measure(count: int, seconds: float, rounds: int) -> dict[str, Any]:
    os.environ["VDCM_METRICS"] = "0"
    vdevs, parents = definition(count)
    with (
        TemporaryDirectory() as folder,
        Server(Path(folder), vdevs, parents, trace=False) as server,
        Client(server.folder / "card.sock") as client,
    ):
        found = re.search(r"metrics on (http://\S+)", server.log)
        assert found is not None, server.log
        url = found[1]

        def scrape() -> int:
            with urlopen(url) as answer:
                return len(answer.read())

        def look() -> None:
            with ControlClient(server.control) as control:
                snapshot.read(lambda skip: control.call("counters", skip=skip))

        def once() -> None:
            command = [sys.executable, "-m", "vdcm", "top", "--once", "--interval", "0.1"]
            subprocess.run(
                [*command, "--control", str(server.control)],
                stdout=subprocess.DEVNULL,
                check=True,
            )

        result: dict[str, Any] = {"count": count, "bytes": scrape(), "rounds": []}
        for _ in range(rounds):
            result["rounds"].append(
                {
                    "alone": {"read_ns": reads(client, seconds), "ms": []},
                    "scrape": watched(scrape, client, seconds),
                    "top": watched(look, client, seconds),
                    "scrape_ms": spent(scrape, server),
                    "look_ms": spent(look, server),
                    "once_ms": spent(once, server),
                }
            )
        return result


def table(results: list[dict[str, Any]]) -> str:
    """A line for each number of VDEVs and each watcher; reads in µs, medians over the rounds."""
    lines = [
        "| VDEVs | watched by | it takes, ms | reads p50 | p99 | p99.9 | longest, ms |",
        "|---|---|---|---|---|---|---|",
    ]
    for result in results:
        for name in ("alone", "scrape", "top"):
            rounds = [one[name] for one in result["rounds"]]
            times = [ms for one in rounds for ms in one["ms"]]
            us = [
                median(percentile(one["read_ns"], part) / 1e3 for one in rounds)
                for part in (0.5, 0.99, 0.999)
            ]
            longest = median(max(one["read_ns"]) / 1e6 for one in rounds)
            takes = f"{median(times):.1f}" if times else "-"
            lines.append(
                f"| {result['count']} | {name} | {takes} | {us[0]:.1f} | {us[1]:.0f} | "
                f"{us[2]:.0f} | {longest:.1f} |"
            )
    return "\n".join(lines)


def costs(results: list[dict[str, Any]]) -> str:
    """One at a time: a scrape, a snapshot, and a whole ``vdcm top --once``; CPU is the server's."""
    lines = [
        "| VDEVs | scrape, KiB | it takes, ms (CPU) | snapshot, ms (CPU) | top --once, s (CPU) |",
        "|---|---|---|---|---|",
    ]
    for result in results:
        cells = []
        for name, unit in (("scrape_ms", 1), ("look_ms", 1), ("once_ms", 1000)):
            took, cpu = (
                median(one[name][part] / unit for one in result["rounds"]) for part in (0, 1)
            )
            digits = 2 if unit == 1000 else 0
            cells.append(f"{took:.{digits}f} ({cpu:.{digits}f})")
        lines.append(f"| {result['count']} | {result['bytes'] / 1024:.0f} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser("ci/bench observe", description=__doc__.split("\n\n")[0])
    parser.add_argument("--counts", default="1,64,1024")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    raise_descriptor_limit()
    steal = steal_seconds()
    counts = [int(count) for count in options.counts.split(",")]
    results = [measure(count, options.seconds, options.rounds) for count in counts]
    steal = steal_seconds() - steal
    path = keep("observe", {"steal_seconds": steal, "results": results})
    print(table(results))
    print(costs(results))
    print(f"steal time {steal:.1f} s; all samples in {path}")


if __name__ == "__main__":
    main()
