"""GPIO lines from inside the guest; the one place that knows both versions of gpiod's tools.

Version 1 (Debian 12, Ubuntu 24.04) takes the chip as first argument; version 2 (Debian 13) takes
it as an option, names values in words unless told otherwise and holds a line until it is ended.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vdcm.testing import GuestError, Machine

TOOLS = ("gpiodetect", "gpioget", "gpioinfo", "gpiomon", "gpioset")  # for Machine(tools=…)


@dataclass(frozen=True)
class Edge:
    """A change of an input that the guest saw."""

    line: int
    rising: bool


class Gpio:
    """The GPIO chip whose label contains ``label``, in a guest whose driver is loaded.

    Some drivers (gpio-pci-idio-16 among them) label their chip with the PCI address. That one also
    reports an edge for each watched line whenever any input has changed, as Linux 6.1 writes it.
    Raises GuestError if there is none.
    """

    def __init__(self, machine: Machine, label: str) -> None:
        self._machine = machine
        self._version = 1 if " v1." in machine.check("gpiodetect --version") else 2
        chips = machine.check("gpiodetect")
        found = [line.split()[0] for line in chips.splitlines() if label in line]
        if not found:
            raise GuestError(f"the guest has no GPIO chip {label}; gpiodetect says:\n{chips}")
        self.chip = found[0]
        self._chip = self.chip if self._version == 1 else f"-c {self.chip}"
        self._monitors = 0

    def get(self, lines: Sequence[int]) -> list[int]:
        """The values, 0 or 1, of these lines; they become inputs if the chip allows that."""
        numeric = "" if self._version == 1 else "--numeric"
        names = " ".join(map(str, lines))
        values = self._machine.check(f"gpioget {numeric} {self._chip} {names}").split()
        return [int(value) for value in values]

    def set(self, values: Mapping[int, int]) -> None:
        """Drive these lines; the value stays after the tool has ended, the chip being simple."""
        hold = "" if self._version == 1 else "--toggle 0"  # toggle after 0 s is: set and exit
        settings = " ".join(f"{line}={value}" for line, value in values.items())
        self._machine.check(f"gpioset {hold} {self._chip} {settings}")

    def watch(self, lines: Sequence[int], edges: int) -> Monitor:
        """Begin to watch for ``edges`` changes; returns when the kernel has the lines requested."""
        self._monitors += 1
        path = f"/tmp/gpiomon.{self.chip}.{self._monitors}"
        names = " ".join(map(str, lines))
        self._machine.check(
            f"gpiomon --num-events={edges} --format='%o %e' {self._chip} {names} "
            f">{path} 2>&1 & echo $! >{path}.pid"
        )
        # The tool says nothing when it is ready, but a requested line shows its consumer.
        self._machine.check(
            f"until gpioinfo {self._chip} | grep -q gpiomon; do "
            f"kill -0 $(cat {path}.pid) || {{ cat {path}; exit 1; }}; usleep 20000; done"
        )
        return Monitor(self._machine, path)


class Monitor:
    """A running ``Gpio.watch``."""

    def __init__(self, machine: Machine, path: str) -> None:
        self._machine = machine
        self._path = path

    def wait(self, timeout: float = 20.0) -> list[Edge]:
        """The edges, once all have been seen; those so far when ``timeout`` seconds are over."""
        tenths = max(1, round(timeout * 10))
        output = self._machine.check(
            f"pid=$(cat {self._path}.pid); for i in $(seq {tenths}); do "
            f"kill -0 $pid 2>/dev/null || break; usleep 100000; done; "
            # Its output is buffered until it ends.
            f"kill $pid 2>/dev/null; while kill -0 $pid 2>/dev/null; do usleep 10000; done; "
            f"cat {self._path}",
            timeout + 10,
        )
        edges = []
        for line in output.splitlines():
            offset, event = line.split()
            # A falling edge is 0 in version 1 and 2 in version 2; a rising one is 1 in both.
            edges.append(Edge(int(offset), event == "1"))
        return edges
