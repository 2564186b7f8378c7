"""fio in a guest: random reads and writes, all that was written read again and compared."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from vdcm.testing import Machine

BLOCK_SIZES = tuple(512 << shift for shift in range(12))
DEPTHS = tuple(1 << shift for shift in range(7))
_LARGEST = 16 << 20  # bytes that a job works on
_COMMON = {
    "ioengine": "libaio",
    "direct": 1,
    "thread": 1,
    "rw": "randrw",
    "verify": "crc32c",
    "verify_fatal": 1,
    "group_reporting": 1,
}


@dataclass(frozen=True)
class Job:
    """About ``count`` blocks of ``size`` bytes, ``depth`` of them under way; ``threads`` of this
    kind, each with blocks of its own."""

    size: int
    depth: int
    threads: int = 1
    count: int = 64

    def section(self, number: int) -> str:
        region = max(4096, min(self.size * self.count, _LARGEST // self.threads))
        options = {
            "stonewall": 1,
            "bs": self.size,
            "iodepth": self.depth,
            "numjobs": self.threads,
            "size": region,
            "offset_increment": region,
        }
        return "\n".join([f"[job{number}]", *_lines(options)])


def _lines(options: dict[str, Any]) -> list[str]:
    return [f"{name}={value}" for name, value in options.items()]


def prepare(machine: Machine, path: str, jobs: Iterable[Job], **options: Any) -> str:
    """Have the guest ready for a command, which is returned: the jobs on the disk ``path``, one
    after the other. ``options``: more of fio's, for all of them."""
    sections = [job.section(number) for number, job in enumerate(jobs)]
    common = "\n".join(["[global]", *_lines({**_COMMON, "filename": path, **options})])
    text = base64.b64encode("\n".join([common, *sections, ""]).encode()).decode()
    machine.check(f"rm -f /fio.out; echo {text} | base64 -d > /fio.in")
    return "fio --output-format=json --output=/fio.out /fio.in"


def result(machine: Machine) -> list[dict[str, Any]]:
    """What has come of the jobs; an error in one of them is a failure."""
    text = machine.check("cat /fio.out")
    loaded: list[dict[str, Any]] = json.loads(text[text.index("{") :])["jobs"]
    for job in loaded:
        assert job["error"] == 0, text
        assert job["write"]["total_ios"] and job["read"]["total_ios"], text
    return loaded


def verify(
    machine: Machine, path: str, jobs: Iterable[Job], timeout: float, **options: Any
) -> None:
    """Run the jobs; each has read again all that it wrote, and found it."""
    wanted = list(jobs)
    done = machine.run(prepare(machine, path, wanted, **options), timeout)
    assert done.status == 0, f"{done.output}\n{machine.check('cat /fio.out; dmesg | tail -20')}"
    assert len(result(machine)) == len(wanted)
