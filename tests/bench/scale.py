"""Many VDEVs of one daemon: what starting one costs, what an idle one holds, and what is left.

    ci/bench scale [--vdevs 1024] [--type dsa-1dwq]

Each VDEV gets a client that makes it work and waits for its interrupt.
Prints each figure with its aim; all of them go to ``build/bench/scale.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from vdcm.client import Client, Irq, Region
from vdcm.control import ControlClient
from vdcm.serving import raise_descriptor_limit

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests" / rung) for rung in ("unit", "wire")]  # the driver of the DSA
OUTPUT = ROOT / "build" / "bench" / "scale.json"
IDLE_SECONDS = 5.0
DEADLINE = 60.0


class Card:
    """PCIe-IDIO-16: the host side changes an input."""

    parent = "idio16"

    def __init__(self, path: Path) -> None:
        self.client = Client(path)
        (self.line,) = self.client.irq_enable(Irq.INTX)

    def work(self, control: ControlClient, name: str) -> None:
        """Until the interrupt is here and acknowledged."""
        self.client.read(Region.BAR2, 2, 1)  # enables it
        control.call("set", name=name, values={"inputs": 1})
        self.line.wait(DEADLINE)
        assert self.client.read(Region.BAR2, 6, 1) & 4
        self.client.write(Region.BAR2, 1, 1, 0)


class Accelerator:
    """DSA: one work queue, direct portals; the guest submits a move with an interrupt."""

    parent = "dsa"

    def __init__(self, path: Path) -> None:
        from dsa_client import DsaClient

        self.dsa = DsaClient(path, arena=1 << 16)
        self.client = self.dsa.client
        self.dsa.start()
        self.dsa.enable_interrupts()
        self.source, self.target = self.dsa.memory.put(b"x" * 64), self.dsa.memory.take(64)

    def work(self, _control: ControlClient, _name: str) -> None:
        """Until the completion record and the interrupt are here."""
        from dsa_client import INTERRUPT, MOVE

        move = {"source": self.source, "destination": self.target, "size": 64, "handle": 1}
        assert self.dsa.run(0, MOVE, INTERRUPT, **move).status == 1
        self.dsa.events[1].wait(DEADLINE)
        assert self.dsa.memory.read(self.target, 64) == b"x" * 64


KINDS: dict[str, tuple[type[Card] | type[Accelerator], dict[str, Any]]] = {
    "pcie-idio-16": (Card, {}),
    "dsa-1dwq": (Accelerator, {"portals": "direct"}),
}


class Process:
    """What the kernel says of the daemon."""

    def __init__(self, pid: int) -> None:
        self._folder = Path(f"/proc/{pid}")

    @property
    def memory(self) -> int:
        """Bytes resident."""
        return int((self._folder / "statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")

    @property
    def descriptors(self) -> int:
        return len(list((self._folder / "fd").iterdir()))

    def idle_cpu(self) -> float:
        """Percent of a core over some seconds."""
        before = self._ticks()
        time.sleep(IDLE_SECONDS)
        return (self._ticks() - before) / os.sysconf("SC_CLK_TCK") / IDLE_SECONDS * 100

    def _ticks(self) -> int:
        fields = (self._folder / "stat").read_text().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])


@contextmanager
def daemon(folder: Path, count: int) -> Iterator[subprocess.Popen[bytes]]:
    """``vdcm serve`` with a DSA that has ``count`` dedicated work queues."""
    document = {
        "parents": {"dsa": {"model": "dsa", "dwqs": count, "ims": 2 * count}},
        "control": "control",
    }
    (folder / "scale.yaml").write_text(yaml.safe_dump(document))
    command = [sys.executable, "-m", "vdcm", "serve", str(folder / "scale.yaml")]
    process = subprocess.Popen(
        [*command, "--state", str(folder / "state"), "--log-level", "warning"],
        stdout=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + DEADLINE
        while not (folder / "control").exists():
            if process.poll() is not None or time.monotonic() > deadline:
                sys.exit("the daemon did not start")
            time.sleep(0.02)
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(DEADLINE)


def timed(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def measure(count: int, kind: str, folder: Path) -> dict[str, Any]:
    names = [f"v{number}" for number in range(count)]
    driver, properties = KINDS[kind]
    same = {"type": kind, "parents": [driver.parent], "properties": properties}
    definitions = [{**same, "name": n, "socket": str(folder / n)} for n in names]
    found: dict[str, Any] = {"type": kind, "vdevs": count}
    with daemon(folder, count) as process, ControlClient(folder / "control", DEADLINE) as control:
        kernel = Process(process.pid)
        found["define_ms"] = (
            timed(lambda: control.call("define", definitions=definitions)) / count * 1e3
        )
        control.call("start", name=names[0])  # what is made once for all is made now
        first = driver(folder / names[0])
        first.work(control, names[0])
        first.client.close()
        control.call("stop", name=names[0])
        descriptors, memory = kernel.descriptors, kernel.memory
        starts = [timed(lambda n=n: control.call("start", name=n)) * 1e3 for n in names]  # type: ignore[misc]
        tenth = max(1, count // 10)
        found["start_ms_p50"] = statistics.median(starts)
        found["start_ms_p50_first_tenth"] = statistics.median(starts[:tenth])
        found["start_ms_p50_last_tenth"] = statistics.median(starts[-tenth:])
        found["idle_kib_each"] = (kernel.memory - memory) / count / 1024
        found["idle_cpu_percent"] = kernel.idle_cpu()
        found["list_ms"] = timed(lambda: control.call("list")) * 1e3

        drivers = [driver(folder / name) for name in names]
        works = [
            timed(lambda n=n, d=d: d.work(control, n)) * 1e6  # type: ignore[misc]
            for n, d in zip(names, drivers, strict=True)
        ]
        found["work_us_p50"] = statistics.median(works)
        found["attached_kib_each"] = (kernel.memory - memory) / count / 1024
        found["attached_descriptors_each"] = (kernel.descriptors - descriptors) / count
        found["attached_idle_cpu_percent"] = kernel.idle_cpu()
        for one in drivers:
            one.client.close()

        found["stop_ms_p50"] = statistics.median(
            [timed(lambda n=n: control.call("stop", name=n)) * 1e3 for n in names]  # type: ignore[misc]
        )
        found["descriptors_left"] = kernel.descriptors - descriptors
        found["sockets_left"] = len([name for name in names if (folder / name).exists()])
    return found


AIMS = {
    "start_ms_p50": 5.0,
    "idle_kib_each": 256.0,
    "idle_cpu_percent": 2.0,
    "descriptors_left": 0.0,
    "sockets_left": 0.0,
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Many VDEVs of one daemon.")
    parser.add_argument("--vdevs", type=int, default=1024)
    parser.add_argument("--type", default="dsa-1dwq", choices=sorted(KINDS))
    options = parser.parse_args()
    raise_descriptor_limit()
    with TemporaryDirectory(prefix="vdcm-") as folder:
        found = measure(options.vdevs, options.type, Path(folder))
    for key, value in found.items():
        aim = f"  (aim: at most {AIMS[key]:g})" if key in AIMS else ""
        print(
            f"{key:28} {value:.2f}{aim}" if isinstance(value, float) else f"{key:28} {value}{aim}"
        )
    OUTPUT.parent.mkdir(parents=True, exist_ok=True)
    OUTPUT.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
