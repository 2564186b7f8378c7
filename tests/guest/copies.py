"""Copies in a guest through the kernel's dmaengine API: the module ``dmacopy`` and its counts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vdcm.environment import Environment
from vdcm.testing import GuestError, Machine, build_module

MODULE = "dmacopy.ko"
_RESULT = "/sys/kernel/debug/dmacopy/result"


@dataclass(frozen=True)
class Counts:
    """What came of a run: copies, except for the last three (``dmacopy.h``)."""

    submitted: int
    done: int
    wrong: int
    failed: int
    refused: int
    lost: int
    late: int
    stray: int
    bytes: int
    nanoseconds: int

    def flawless(self, copies: int) -> bool:
        """All of that many copies were carried out, and every byte is right."""
        flaws = self.wrong, self.failed, self.refused, self.lost, self.late, self.stray
        return not any(flaws) and self.submitted == self.done == copies

    def __str__(self) -> str:
        rate = self.done * 10**9 // max(1, self.nanoseconds)
        return f"{self.done} copies ({self.bytes} bytes), {rate} a second"


def dmacopy(environment: Environment, folder: Path) -> dict[str, Path]:
    """``files`` for a Machine that is to copy: the module, built in ``folder``."""
    return {MODULE: build_module(environment, Path(__file__).with_name("dmacopy"), folder)}


def insmod(parameters: dict[str, int | str]) -> str:
    """The command that runs the module: ``main.c`` has the parameters."""
    return " ".join([f"insmod /{MODULE}", *(f"{key}={value}" for key, value in parameters.items())])


def copy(
    machine: Machine, *, limit: float = 60.0, before: str = "", **parameters: int | str
) -> Counts:
    """One run, for at most ``limit`` seconds; the module is gone afterwards. What its command
    begins with is ``before``.

    Raises GuestError if there was no run, or if a lost copy keeps the module.
    """
    machine.check(before + insmod(parameters), limit)
    return _end(machine)


def begin(machine: Machine, **parameters: int | str) -> None:
    """Begin a run, for ``abandon`` to end; it may not have come to its first copy yet."""
    machine.check(f"{insmod(parameters)} >/run/dmacopy 2>&1 &")


def abandon(machine: Machine, *, limit: float = 30.0) -> Counts:
    """Wait at most ``limit`` seconds for the end of a run that has ``begun``. Copies that are lost
    must be so for good, because the device has been reset or has aborted them: the module goes.
    """
    machine.check(f"until [ -e {_RESULT} ]; do usleep 20000; done; cat /run/dmacopy", limit)
    return _end(machine, "echo 1 >/sys/module/dmacopy/parameters/abandon; ")


def _end(machine: Machine, before: str = "") -> Counts:
    try:
        words = machine.check(f"cat {_RESULT}").split()
        return Counts(**dict(zip(words[::2], map(int, words[1::2]), strict=True)))
    finally:
        gone = machine.run(f"{before}rmmod dmacopy")
        if gone.status:
            raise GuestError(f"{gone.output}\n{machine.check('dmesg | grep dmacopy:')}")
