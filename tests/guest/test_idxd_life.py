"""The rough life of a DSA under Linux's own idxd: taken away, reset and halted in mid-work.

What Linux 6.1 does of its own and what it leaves to an administrator is in docs/dsa.md.
VDCM_SOAK in the environment (``ci/test --soak``) asks for more of it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from tests.guest import idxd
from tests.guest.copies import Counts, abandon, begin, copy
from vdcm.testing import GuestError, address_of, bars_of
from vdcm_devices.dsa.codes import Command, CommandError, DeviceState

pytestmark = pytest.mark.timeout(180)

THREADS = 16
ENTRIES = 32
SIZE = 16384
SLOW = 300_000  # bytes a second: what is in flight takes its time
STATUS, CMD, CMDSTATUS = 0x90, 0xA0, 0xA8
SWERROR = 0xC0
ILLEGAL, BATCH_FAILED = 0x10, 0x05
ROUNDS = 20 if "VDCM_SOAK" in os.environ else 6
FREE = 0x9FD00  # 768 bytes of the firmware's data area, which Linux leaves alone


class Dsa:
    """``dsa0`` of the shared guest, and what its server says of it."""

    def __init__(self, lab: idxd.IdxdLab) -> None:
        self.machine, self.server = lab.machine, lab.server
        self.device = idxd.IdxdDevice(lab.machine)
        self.address = address_of(lab.machine, idxd.DSA)
        self.bars: Mapping[int, int] = bars_of(lab.machine, self.address)

    def up(self) -> None:
        """Configure both dedicated work queues, and enable all."""
        for number in range(2):
            self.device.configure(number, engine=number, group_id=number, size=ENTRIES)
        self.device.enable()
        for number in range(2):
            self.device.enable_wq(number)

    def copies_well(self) -> None:
        assert copy(self.machine, threads=THREADS, copies=400, max_size=SIZE).flawless(400)

    def counters(self, number: int = 0) -> dict[str, int]:
        """Of the ADI behind a work queue, since the server has been started."""
        counters: dict[str, int] = self.server.show("dsa0")["adis"][number]["counters"]
        return counters

    def begin_slowly(self, **parameters: int | str) -> Mapping[str, int]:
        """Copies that are all in flight when this returns; the counters as they were before."""
        self.server.set("dsa0", rate=SLOW)
        before = self.counters()
        begin(
            self.machine,
            **{
                "threads": THREADS,
                "copies": THREADS,
                "min_size": SIZE,
                "max_size": SIZE,
                "timeout": 2,
                "device": self.address,
                **parameters,
            },
        )
        self.server.wait_for(
            "all are in flight",
            lambda: self.counters()["accepted"] >= before["accepted"] + THREADS,
        )
        return before

    def fate(self, before: Mapping[str, int]) -> dict[str, int]:
        """What has become of the descriptors that were accepted since then."""
        now = self.counters()
        names = ("accepted", "succeeded", "failed", "aborted")
        return {name: now[name] - before[name] for name in names}

    def sysfs(self, action: str) -> None:
        """``unbind`` or ``bind`` the PCI driver, or ``reset`` the function."""
        path = "devices" if action == "reset" else "drivers/idxd"
        if action == "reset":
            self.machine.check(f"echo 1 >/sys/bus/pci/{path}/{self.address}/reset")
        else:
            self.machine.check(f"echo {self.address} >/sys/bus/pci/{path}/{action}")

    def said(self) -> str:
        """What the kernel has logged since the last call."""
        return self.machine.check("dmesg -c")

    # By hand, past the driver.

    def read(self, offset: int, bits: int = 32) -> int:
        return int(self.machine.check(f"devmem {self.bars[0] + offset:#x} {bits}"), 16)

    def command(self, code: int, operand: int = 0) -> int:
        """An administrative command; CMDSTATUS when it has ended."""
        self.machine.check(
            f"devmem {self.bars[0] + CMD:#x} 32 {code << 20 | operand:#x}\n"
            f"until [ $(($(devmem {self.bars[0] + CMDSTATUS:#x} 32) >> 31)) = 0 ]; do :; done"
        )
        return self.read(CMDSTATUS)


@pytest.fixture
def dsa(idxd_lab: idxd.IdxdLab) -> Iterator[Dsa]:
    """Enabled, with two work queues; the driver is fresh, and is taken away again."""
    idxd.load(idxd_lab.machine)
    dsa = Dsa(idxd_lab)
    dsa.up()
    dsa.said()
    yield dsa
    dsa.server.set("dsa0", rate=0)
    idxd.unload(idxd_lab.machine)


def until_said(dsa: Dsa, what: str) -> str:
    """What the kernel has logged up to a line with ``what``, for which this waits."""
    dsa.machine.check(f"until dmesg | grep -qF '{what}'; do usleep 20000; done")
    return dsa.said()


def descriptor(
    operation: int, flags: int = 0, *, completion: int = 0, source: int = 0, size: int = 0
) -> list[int]:
    """The words of a descriptor without a PASID (8.1)."""
    return [(operation << 24 | flags) << 32, completion, source, 0, size, 0, 0, 0]


def resources(parents: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What of each parent is in use."""
    return [parent["driver"]["resources"] for parent in parents if parent["driver"]]


def ended(dsa: Dsa, before: Mapping[str, int]) -> tuple[Counts, dict[str, int]]:
    """What the callers and the device say of a run that has been disturbed: nothing is wrong or
    unaccounted for. A caller may miss the interrupt of a copy that has been carried out."""
    dsa.server.set("dsa0", rate=0)
    counts, fate = abandon(dsa.machine), dsa.fate(before)
    assert fate["accepted"] == fate["succeeded"] + fate["aborted"], fate
    assert (counts.wrong, counts.failed, counts.late, counts.stray) == (0, 0, 0, 0)
    assert counts.done + counts.lost == counts.submitted
    assert counts.lost >= fate["aborted"]
    return counts, fate


def test_the_function_is_reset_in_mid_work(dsa: Dsa) -> None:
    """The driver is not told. What was in flight is gone, what comes then is ignored, until an
    administrator has disabled and configured the device anew."""
    before = dsa.begin_slowly()
    dsa.sysfs("reset")
    _, fate = ended(dsa, before)
    assert fate["aborted"] > 0
    assert dsa.device.get("state") == "enabled", "the driver thinks so"
    dsa.device.disable()
    dsa.up()
    dsa.copies_well()
    assert "halted" not in dsa.said()


@pytest.mark.parametrize("what", ["wq", "device"])
def test_what_is_disabled_in_mid_work_is_drained(dsa: Dsa, what: str) -> None:
    """Nobody has the channel any more, or else Linux would use freed memory."""
    before = dsa.begin_slowly(leave=1, timeout=10)
    if what == "wq":
        dsa.device.disable_wq()
    else:
        dsa.device.disable()
    fate = dsa.fate(before)
    assert fate == {"accepted": THREADS, "succeeded": THREADS, "failed": 0, "aborted": 0}
    counts, _ = ended(dsa, before)
    assert counts.submitted == THREADS
    if what == "device":
        dsa.up()
    else:
        assert dsa.device.get("wq0.0/state") == "disabled"
        dsa.device.disable()
        dsa.up()
    dsa.copies_well()


@pytest.mark.parametrize(
    ("code", "operand"), [(Command.ABORT_WQ, 1), (Command.ABORT_ALL, 0), (Command.RESET_WQ, 1)]
)
def test_what_is_aborted_is_told_by_the_command_only(dsa: Dsa, code: int, operand: int) -> None:
    """No completion record (3.15). Past the driver, whose callers wait in vain."""
    before = dsa.begin_slowly()
    assert dsa.command(code, operand) == CommandError.SUCCESS
    fate = dsa.fate(before)
    assert fate["aborted"] > 0
    counts, fate = ended(dsa, before)
    if code != Command.RESET_WQ:
        assert fate["accepted"] == counts.submitted
        dsa.copies_well()
    dsa.device.disable()
    dsa.up()
    dsa.copies_well()


def test_the_driver_comes_and_goes(dsa: Dsa) -> None:
    held = dsa.server.parents()
    for again in range(ROUNDS):
        assert copy(dsa.machine, threads=THREADS, copies=50, max_size=SIZE).flawless(50)
        if again % 2:
            idxd.unload(dsa.machine)
            idxd.load(dsa.machine)
        else:
            dsa.device.disable()
            dsa.sysfs("unbind")
            dsa.sysfs("bind")
        dsa.up()
    assert resources(dsa.server.parents()) == resources(held)
    messages = [len(adi["messages"]) for adi in dsa.server.show("dsa0")["adis"]]
    assert max(messages) <= 3, "one for each MSI-X entry that a handle was asked for"
    dsa.copies_well()


# Halt (5.7).


def test_a_halt_that_needs_a_software_reset(dsa: Dsa) -> None:
    """Linux sees it and wants to send Reset Device, but sends a halted device no command at all.
    So its work queues have to go first, then the command comes by hand."""
    before = dsa.begin_slowly()
    dsa.server.set("dsa0", halt="software")
    assert dsa.server.show("dsa0")["properties"]["halt"] == "software"
    _, fate = ended(dsa, before)
    assert fate["aborted"] > 0
    assert dsa.read(STATUS) == DeviceState.HALT
    assert dsa.device.get("state") == "disabled"
    assert "Device is HALTED!" in dsa.said()
    for number in range(2):
        dsa.device.disable_wq(number)
    assert dsa.command(Command.RESET_DEVICE) == CommandError.SUCCESS
    assert dsa.read(STATUS) == DeviceState.DISABLED
    assert dsa.server.show("dsa0")["properties"]["halt"] == "no"
    dsa.device.disable()
    dsa.up()
    dsa.copies_well()


def test_a_halt_that_needs_a_function_level_reset(dsa: Dsa) -> None:
    """Without enabled work queues, an administrator can give the device a reset and a new start."""
    for number in range(2):
        dsa.device.disable_wq(number)
    dsa.server.set("dsa0", halt="function")
    until_said(dsa, "idxd halted, need FLR")
    assert dsa.read(STATUS) == DeviceState.HALT | 1 << 2
    assert dsa.command(Command.RESET_DEVICE) == CommandError.HALTED
    dsa.device.disable()
    dsa.sysfs("unbind")
    dsa.sysfs("reset")
    assert dsa.read(STATUS) == DeviceState.DISABLED
    dsa.sysfs("bind")
    dsa.up()
    dsa.copies_well()


def test_a_halt_with_work_queues_that_needs_a_function_level_reset(dsa: Dsa) -> None:
    """Linux 6.1 unmaps the portals and refuses copies; to unbind such a work queue would hang. What
    is left is to reboot."""
    before = dsa.begin_slowly()
    dsa.server.set("dsa0", halt="function")
    until_said(dsa, "idxd halted, need FLR")
    _, fate = ended(dsa, before)
    assert fate["aborted"] > 0
    dsa.machine.reboot()
    idxd.load(dsa.machine)
    dsa.up()
    dsa.copies_well()


# Errors.


def test_errors_that_only_swerror_tells(dsa: Dsa) -> None:
    """A batch of bad descriptors without completion records: the first is recorded, Overflow tells
    of the others, and the driver reports and clears it all."""
    listed, record = FREE, FREE + 0x200
    bad = descriptor(operation=0x3F)
    words = [(listed + 64 * i + 8 * k, word) for i in range(4) for k, word in enumerate(bad)]
    words += [(record + 8 * k, 0) for k in range(4)]
    batch = descriptor(operation=1, flags=0x0C, completion=record, source=listed, size=4)
    words += [(dsa.bars[2] + 8 * k, word) for k, word in enumerate(batch)]
    for _ in range(2):
        dsa.machine.check("\n".join(f"devmem {at:#x} 64 {word:#x}" for at, word in words))
        log = until_said(dsa, "err[0]: ")
        (first,) = re.findall(r"err\[0\]: (\S+)", log)
        # Valid, Overflow; of a descriptor, of WQ 0, in a batch; privileged, with information.
        assert int(first, 16) == 0x3F << 32 | ILLEGAL << 8 | 0b1101_1111
        assert int(dsa.machine.check(f"devmem {record:#x} 64"), 16) & 0xFF == BATCH_FAILED
        assert dsa.read(SWERROR, 64) & 3 == 0, "cleared"
        dsa.copies_well()


def test_a_command_error_that_the_driver_shows(dsa: Dsa) -> None:
    device = dsa.device
    device.disable_wq(1)
    device.disable()
    device.configure(0, priority=0)
    device.enable()
    with pytest.raises(GuestError, match="No such device or address"):
        device.enable_wq(0)
    assert int(device.get("cmd_status"), 16) == CommandError.WQ_PRIORITY
    device.disable()
    device.configure(0)
    device.enable()
    device.enable_wq(0)
    dsa.copies_well()


def test_wrong_commands_beside_the_driver(dsa: Dsa) -> None:
    for code, operand, error in (
        (0x1F, 0, CommandError.COMMAND),
        (Command.ENABLE_DEVICE, 0, CommandError.DEVICE_NOT_DISABLED),
        (Command.ENABLE_WQ, 3, CommandError.WQ_INDEX),
        (Command.ENABLE_WQ, 0, CommandError.WQ_NOT_DISABLED),
        (Command.DRAIN_WQ, 1 << 2, CommandError.WQ_NOT_ENABLED),
        (Command.ENABLE_WQ, 1 << 8, CommandError.RESERVED),
        (Command.REQUEST_INTERRUPT_HANDLE, 4, CommandError.INTERRUPT_INDEX),
    ):
        assert dsa.command(code, operand) == error
    dsa.copies_well()
