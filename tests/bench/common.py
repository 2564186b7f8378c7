"""What the benchmarks have in common: C programs, a daemon to measure, what /proc says of it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from vdcm.control import ControlClient

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "bench"


def build_programs(libvfio_user: dict[str, str]) -> None:
    """Build the C of tests/bench against the libvfio-user that vdcm is built with."""
    environment = {**os.environ, **libvfio_user}
    for command in (
        ["cmake", "-S", str(ROOT), "-B", str(BUILD), "-DVDCM_BENCH=ON",
         "-DCMAKE_BUILD_TYPE=RelWithDebInfo", f"-DPython_EXECUTABLE={sys.executable}"],
        ["cmake", "--build", str(BUILD)],
    ):  # fmt: skip
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")


def keep(name: str, result: dict[str, Any]) -> Path:
    """Write all that was measured to ``build/bench/NAME.json``."""
    BUILD.mkdir(parents=True, exist_ok=True)
    path = BUILD / f"{name}.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    return path


def percentile(samples: Sequence[float], part: float) -> float:
    """The smallest sample that ``part`` (0 to 1) of them do not exceed."""
    ordered = sorted(samples)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))]


def steal_seconds() -> float:
    """CPU time that the hypervisor took from this machine so far (proc(5), /proc/stat)."""
    fields = Path("/proc/stat").read_text().splitlines()[0].split()
    return int(fields[8]) / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Daemon:
    """A ``vdcm serve`` of its own; ``folder`` is for sockets."""

    pid: int
    folder: Path
    control: Path

    def connect(self) -> ControlClient:
        return ControlClient(self.control, timeout=60.0)

    @property
    def descriptors(self) -> int:
        return len(list(Path(f"/proc/{self.pid}/fd").iterdir()))

    @property
    def threads(self) -> int:
        return len(list(Path(f"/proc/{self.pid}/task").iterdir()))

    @property
    def memory(self) -> dict[str, int]:
        """Resident bytes (proc(5), status): ``own``, ``shared`` with a client, and the ``sum``."""
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        status = dict(line.split(":", 1) for line in lines)
        own, shared = (int(status[key].split()[0]) << 10 for key in ("RssAnon", "RssShmem"))
        return {"own": own, "shared": shared, "sum": own + shared}

    @property
    def cpu_seconds(self) -> float:
        """On a CPU so far, all threads (proc(5), schedstat)."""
        tasks = Path(f"/proc/{self.pid}/task").iterdir()
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9

    def cpu_share(self, seconds: float) -> float:
        """Of one CPU, in the ``seconds`` from now on."""
        before, start = self.cpu_seconds, time.monotonic()
        time.sleep(seconds)
        return (self.cpu_seconds - before) / (time.monotonic() - start)


@contextmanager
def daemon(folder: Path, definition: str, cpu: int | None = None) -> Iterator[Daemon]:
    """Serve the text of a definition file, on one CPU if that is wanted; ended afterwards."""
    control = folder / "control.sock"
    (folder / "bench.yaml").write_text(definition)
    pinned = [] if cpu is None else ["taskset", "-c", str(cpu)]
    command = [sys.executable, "-m", "vdcm", "serve", str(folder / "bench.yaml")]
    options = ["--control", str(control), "--state", str(folder / "state"), "--log-level=error"]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified:
        notified.bind(str(folder / "notify.sock"))
        notified.settimeout(60)
        process = subprocess.Popen(
            [*pinned, *command, *options],
            env={**os.environ, "NOTIFY_SOCKET": str(folder / "notify.sock")},
            stdout=subprocess.DEVNULL,
        )
        try:
            notified.recv(100)  # READY=1
            yield Daemon(process.pid, folder, control)
        finally:
            process.terminate()
            process.wait(60)


def spent(server: int, qemu: int) -> dict[str, float]:
    """CPU seconds so far of two processes (proc(5), schedstat): ``loop`` and ``sweep`` of vdcm,
    ``vcpus`` and the rest of ``qemu``."""
    found = dict.fromkeys(("loop", "sweep", "vcpus", "qemu"), 0.0)
    for pid, names in (
        (server, {"vdcm-sweep": "sweep", "": "loop"}),
        (qemu, {"CPU ": "vcpus", "": "qemu"}),
    ):
        for task in Path(f"/proc/{pid}/task").iterdir():
            name = (task / "comm").read_text()
            part = next(part for prefix, part in names.items() if name.startswith(prefix))
            found[part] += int((task / "schedstat").read_text().split()[0]) / 1e9
    return found


def spread(samples: Sequence[float]) -> float:
    """From the least to the greatest, of the median."""
    return (max(samples) - min(samples)) / median(samples)


def about(samples: Sequence[float], digits: int = 0) -> str:
    """The median, ± half of the spread."""
    return f"{median(samples):.{digits}f} ±{spread(samples) / 2:.0%}"


def turns(titles: Iterable[str], number: int) -> list[str]:
    """In which order round ``number`` has them: forth and back, so that none is always first."""
    return list(titles)[:: 1 if number % 2 == 0 else -1]


def publish(document: str, key: str, text: str) -> None:
    """Put ``text`` into ``docs/DOCUMENT``, between the lines that name ``key``."""
    path = ROOT / "docs" / document
    begin, end = f"<!-- ci/bench {key} -->\n", f"<!-- end of {key} -->"
    before, found, rest = path.read_text().partition(begin)
    _, ended, after = rest.partition(end)
    if not found or not ended:
        sys.exit(f"{path} has no place for it: lines {begin.strip()} and {end}")
    path.write_text(f"{before}{begin}\n{text}\n\n{end}{after}")
