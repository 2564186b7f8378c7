"""The devices of docs/mistakes.md: copies of those that are shipped, each with one mistake.

The page is the source: each of its sections has the mistake as a diff, what the guest says, and
what the trace says.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

from pages import ROOT

from tests.guest import idxd
from vdcm.testing import Machine, Server

PAGE: Final = ROOT / "docs/mistakes.md"
_CLASSES: Final = {"avf": "Avf", "dsa": "Dsa", "idio16": "Idio16Card", "nvme": "Nvme"}


@dataclass(frozen=True)
class Mistake:
    """A section of the page."""

    name: str
    file: str
    """Of the device model, such as ``nvme/vdev.py``."""
    hunks: list[tuple[str, str]]
    """What is there, and what is there instead."""
    guest: list[str]
    """What the guest's log has."""
    trace: list[str]
    """What the trace has."""

    @property
    def model(self) -> str:
        return self.file.partition("/")[0]

    def write(self, folder: Path) -> str:
        """Copy the model into package ``name`` below ``folder``, with the mistake; its entry
        point."""
        package, shipped = folder / self.name, f"vdcm_devices.{self.model}"
        shutil.copytree(
            ROOT / shipped.replace(".", "/"), package, ignore=shutil.ignore_patterns("*.[ch]", "_*")
        )
        shutil.copy(ROOT / shipped.replace(".", "/") / "__init__.py", package)
        file = folder / self.name / Path(self.file).name
        text = file.read_text()
        for right, wrong in self.hunks:
            assert text.count(right) == 1, f"{self.file} has not one\n{right}"
            text = text.replace(right, wrong)
        file.write_text(text)
        for source in package.glob("*.py"):
            text = source.read_text().replace(shipped, self.name)
            source.write_text(text.replace(f"{self.name}._fastpath", f"{shipped}._fastpath"))
        return f"{self.name}:{_CLASSES[self.model]}"


def _fenced(section: str, language: str) -> list[str]:
    found = re.findall(rf"^```{language}\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    return [line for block in found for line in block.splitlines()]


def _hunk(text: str) -> tuple[str, str]:
    right, wrong = (
        "".join(f"{line[1:]}\n" for line in text.splitlines() if line[0] in kinds)
        for kinds in (" -", " +")
    )
    return right, wrong


def _mistake(section: str) -> Mistake:
    title = section.partition("\n")[0]
    (diff,) = re.findall(r"^```diff\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    file, _, hunks = diff.partition("\n")
    return Mistake(
        re.sub(r"\W+", "_", title.lower()).strip("_"),
        file.removeprefix("--- vdcm_devices/"),
        [_hunk(hunk) for hunk in re.split(r"^@@\n", hunks, flags=re.MULTILINE) if hunk],
        _fenced(section, "console"),
        _fenced(section, "text"),
    )


def mistakes() -> dict[str, Mistake]:
    """Those of the page, by name: ``a_missing_interrupt``."""
    sections = re.split(r"^## ", PAGE.read_text(), flags=re.MULTILINE)[1:]
    found = [_mistake(section) for section in sections if "```diff" in section]
    return {mistake.name: mistake for mistake in found}


@cache  # a trace is looked at again and again while it grows
def alike(line: str) -> str:
    """Without what differs from guest to guest: addresses in it, data, identifiers, times, and what
    firmware has left in registers."""
    for pattern, instead in (
        (r"^(dma \w+ )0x[0-9a-f]+(\+0x[0-9a-f]+) .*", r"\1ADDRESS\2"),
        (r"\b[\d.]+(e-\d+)? s\b", "TIME"),
        (r"\w+→", "→"),
        (r"\b\d+ times", "SEVERAL times"),
        (r"\b(cid|I/O) \d+", r"\1 NUMBER"),
        (r"\bnvme\d+", "NVME"),
        (r"\b0000:00:\w\w\.0", "FUNCTION"),
        (r"^\[ *[0-9.]+\] ", ""),
    ):
        line = re.sub(pattern, instead, line)
    return line


def says(lines: list[str], excerpt: list[str]) -> bool:
    """``lines`` have those of ``excerpt``, one after the other; ``...`` stands for any others."""
    at, wanted = 0, [alike(line) for line in excerpt]
    found = [alike(line) for line in lines]
    while wanted:
        count = wanted.index("...") if "..." in wanted else len(wanted)
        block, wanted = wanted[:count], wanted[count + 1 :]
        starts = (n for n in range(at, len(found)) if found[n : n + count] == block)
        start = next(starts, None)
        if start is None:
            return False
        at = start + count
    return True


VDEVS: Final[Mapping[str, Mapping[str, Any]]] = {
    "avf": {"type": "avf"},
    "dsa": {"type": "dsa-1dwq"},
    "nvme": {"type": "nvme", "size": "16M"},
}
"""One of each shipped device that Linux's drivers meet here."""
DRIVERS: Final = {"avf": "iavf", "dsa": "idxd", "nvme": "nvme"}
IDENTITIES: Final = ("8086:1889", "8086:0b25", "1af4:10f0")


class Nursery:
    """A server with a VDEV of each mistake and of each model without one, and their guest.

    No driver is bound to begin with.
    """

    def __init__(self, server: Server, machine: Machine, planted: Mapping[str, Mistake]) -> None:
        self.server = server
        self.machine = machine
        self._models = {name: name for name in VDEVS}
        self._models |= {name: mistake.model for name, mistake in planted.items()}
        wanted = " ".join(f"-e {identity}" for identity in IDENTITIES)
        found = machine.check(f"lspci -D -n | grep {wanted} | cut -d' ' -f1").split()
        self._addresses = dict(zip(self._models, found, strict=True))
        self._accelerators = 0
        machine.check("echo 0 >/sys/bus/pci/drivers_autoprobe; modprobe nvme; modprobe iavf")
        idxd.load(machine)

    def bind(self, name: str) -> None:
        """Let Linux's driver have a VDEV, and use it a little; whatever comes of it, and whenever:
        what a command has to say is in the log."""
        model, address = self._models[name], self._addresses[name]
        bind = f"echo {address} >/sys/bus/pci/drivers/{DRIVERS[model]}/bind"
        if model == "dsa":
            self.machine.check(bind)
            device = idxd.IdxdDevice(self.machine, self._accelerators)
            self._accelerators += 1
            device.configure()
            # Later: the guest may have no time any more to say that it has heard this.
            bind = f"usleep 200000; echo {device.name} >{idxd.DRIVERS}/idxd/bind"
        elif model == "nvme":
            # Each rescan is some admin commands: all entries of their queues are used.
            rescan = f"/sys/bus/pci/devices/{address}/nvme/nvme*/rescan_controller"
            bind += "; for n in $(seq 60); do usleep 50000; "
            bind += f"for f in {rescan}; do [ -e $f ] && echo 1 >$f; done; done"
        self.machine.check(f"{{ {bind}; }} >/dev/null 2>/dev/kmsg &")

    def trace(self, name: str) -> list[str]:
        """Of a VDEV, hints among it."""
        return self.server.trace(name)

    def log(self) -> list[str]:
        """Of the guest's kernel."""
        return self.machine.check("dmesg").splitlines()

    def log_of(self, model: str) -> list[str]:
        """What of that is of the device without a mistake; its driver has had it first."""
        names = (self._addresses[model], f"{model}0")
        return [line for line in self.log() if any(name in line for name in names)]
