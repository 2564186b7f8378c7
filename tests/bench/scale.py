"""Many VDEVs of one daemon at once, each with a client that works: time, memory, CPU, leftovers.

    ci/bench scale [--counts 1,64,256,1024] [--seconds S]

Each VDEV is a ``dsa-1dwq`` with direct portals of one ``vdcm serve``. They are defined in one call
and started one by one over the control socket; then each gets a client that configures and enables
its work queue, submits work, sees it completed and gets its MSI-X interrupt; then, with all of them
connected, each does so once more. What is left after all have been stopped is counted. All samples
go to ``build/bench/scale.json``.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from dsa_client import INTERRUPT, NOOP, DsaClient

from tests.bench.common import Daemon, daemon, keep, percentile, steal_seconds
from vdcm.control import ControlClient
from vdcm.serving import raise_descriptor_limit

ARENA = 16 << 10  # bytes of guest memory of each client
HANDLE = 1  # of the work queue's interrupt: vector 0 is the device's


def parents(count: int) -> str:
    """A definition file whose parent has as many work queues as there are VDEVs."""
    return f"parents:\n  dsa0: {{model: dsa, dwqs: {count}, swqs: 0, ims: {2 * count}}}\n"


def definition(folder: Path, name: str) -> dict[str, Any]:
    """One VDEV."""
    return {
        "name": name,
        "parent": "dsa0",
        "type": "dsa-1dwq",
        "properties": {"portals": "direct"},
        "socket": str(folder / f"{name}.sock"),
    }


def work(dsa: DsaClient) -> None:
    """One descriptor, checked: its completion record and its interrupt."""
    done = dsa.run(0, NOOP, INTERRUPT, handle=HANDLE)
    assert done.status == 1, f"{dsa.client.path}: completion status {done.status:#x}"
    assert dsa.events[HANDLE].wait(20.0) == 1, f"{dsa.client.path}: not one interrupt"


def connect(path: Path) -> DsaClient:
    """A client whose work queue is enabled and has worked."""
    dsa = DsaClient(path, ARENA)
    dsa.start()
    dsa.enable_interrupts()
    work(dsa)
    return dsa


def timed(calls: list[Callable[[], Any]]) -> tuple[list[Any], list[float]]:
    """What each call returns, and its milliseconds."""
    results, times = [], []
    for call in calls:
        start = time.perf_counter()
        results.append(call())
        times.append((time.perf_counter() - start) * 1000)
    return results, times


def measure(count: int, seconds: float) -> dict[str, Any]:
    """All figures of one daemon with ``count`` VDEVs: times in ms, memory in bytes."""
    with TemporaryDirectory(prefix="vdcm-bench-") as name:
        folder = Path(name)
        with daemon(folder, parents(count)) as server, server.connect() as control:
            return measure_daemon(server, control, count, seconds)


def measure_daemon(
    server: Daemon, control: ControlClient, count: int, seconds: float
) -> dict[str, Any]:
    names = [f"v{index}" for index in range(count)]
    definitions = [definition(server.folder, name) for name in names]
    _, define = timed([lambda: control.call("define", definitions=definitions)])
    # What is made once, for the first VDEV and the first client, is not the others' cost.
    control.call("start", name="v0")
    connect(server.folder / "v0.sock").client.close()
    control.call("stop", name="v0")

    def state() -> dict[str, Any]:
        (kind,) = (one for one in control.call("types") if one["type"] == "dsa-1dwq")
        return {
            "descriptors": server.descriptors,
            "threads": server.threads,
            "available": kind["available"],
            "memory": server.memory,
        }

    result: dict[str, Any] = {"count": count, "define": define[0] / count, "before": state()}
    _, result["start"] = timed([lambda n=n: control.call("start", name=n) for n in names])
    result["started"] = {**state(), "cpu": server.cpu_share(seconds)}
    clients, result["connect"] = timed(
        [lambda n=n: connect(server.folder / f"{n}.sock") for n in names]
    )
    result["connected"] = {**state(), "cpu": server.cpu_share(seconds)}
    _, result["work"] = timed([lambda dsa=dsa: work(dsa) for dsa in clients])
    for dsa in clients:
        dsa.client.close()
    _, result["stop"] = timed([lambda n=n: control.call("stop", name=n) for n in names])
    result["after"] = state()
    return result


def table(results: list[dict[str, Any]]) -> str:
    """One column for each number of VDEVs."""

    def each(result: dict[str, Any], when: str) -> str:
        """Memory of one, KiB: without what is shared with the client, and with it."""
        before, then = result["before"]["memory"], result[when]["memory"]
        own, both = ((then[key] - before[key]) / result["count"] / 1024 for key in ("own", "sum"))
        return f"{own:.1f} ({both:.1f})"

    def times(key: str) -> Callable[[dict[str, Any]], str]:
        return lambda r: f"{median(r[key]):.2f} / {percentile(r[key], 0.99):.2f}"

    def growth(result: dict[str, Any]) -> str:
        first, last = result["start"][:100], result["start"][-100:]
        return f"{median(first):.2f} / {median(last):.2f}"

    def left(key: str) -> Callable[[dict[str, Any]], str]:
        return lambda r: " / ".join(
            str(r[when][key]) for when in ("before", "started", "connected", "after")
        )

    rows: list[tuple[str, Callable[[dict[str, Any]], str]]] = [
        ("define a VDEV, ms", lambda r: f"{r['define']:.2f}"),
        ("start a VDEV, ms, p50 / p99", times("start")),
        ("- the first 100 / the last 100, p50", growth),
        ("connect a client, all of its set-up, ms, p50 / p99", times("connect")),
        ("work and interrupt, all connected, ms, p50 / p99", times("work")),
        ("stop a VDEV, ms, p50 / p99", times("stop")),
        ("memory of a VDEV without client, KiB (with shared)", lambda r: each(r, "started")),
        ("memory of a VDEV with client, KiB (with shared)", lambda r: each(r, "connected")),
        ("CPU of the daemon, without clients", lambda r: f"{r['started']['cpu']:.2%}"),
        ("CPU of the daemon, with clients", lambda r: f"{r['connected']['cpu']:.2%}"),
        ("descriptors before / started / connected / after", left("descriptors")),
        ("threads", left("threads")),
        ("work queues to be had", left("available")),
    ]
    lines = [
        f"| VDEVs | {' | '.join(str(result['count']) for result in results)} |",
        f"|---{'|---' * len(results)}|",
    ]
    for title, cell in rows:
        lines.append(f"| {title} | {' | '.join(cell(result) for result in results)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser("ci/bench scale", description=__doc__.split("\n\n")[0])
    parser.add_argument("--counts", default="1,64,256,1024")
    parser.add_argument("--seconds", type=float, default=5.0, help="to look at idle CPU time")
    options = parser.parse_args()
    raise_descriptor_limit()
    steal = steal_seconds()
    results = [measure(int(count), options.seconds) for count in options.counts.split(",")]
    steal = steal_seconds() - steal
    path = keep("scale", {"steal_seconds": steal, "results": results})
    print(table(results))
    print(f"steal time {steal:.1f} s; all samples in {path}")


if __name__ == "__main__":
    main()
