"""The demo's third part: Linux's own idxd in the guest drives a software DSA."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.guest import idxd
from tests.guest.copies import copy, dmacopy
from vdcm.environment import Environment
from vdcm.testing import Machine, Server

NAME = "copy0"
VDEVS = {NAME: {"type": "dsa-1dwq"}}
COPIES, THREADS, LARGEST = 4000, 16, 16384
Say = Callable[[str, str], None]
Expect = Callable[[str, object, object], None]
COMMANDS = (
    "accel-config config-wq dsa0/wq0.0 --group-id=0 --mode=dedicated --wq-size=32 --priority=10 "
    "--type=kernel --name=copies",
    "accel-config config-engine dsa0/engine0.0 --group-id=0",
    "accel-config enable-device dsa0",
    "accel-config enable-wq dsa0/wq0.0",
    "accel-config list",
)


def files(environment: Environment, folder: Path) -> dict[str, Path]:
    """For the Machine: the modules of ours, built in ``folder``."""
    return {**idxd.movdir64b(environment, folder), **dmacopy(environment, folder)}


def show_driver(server: Server, machine: Machine, say: Say, expect: Expect) -> None:
    """Load it, configure it and enable it, as a user does."""
    if not idxd.has_movdir64b(machine):
        say("guest", f"# insmod {idxd.MOVDIR64B}, since this CPU lacks the instruction")
    idxd.load(machine)
    say("guest", "# modprobe idxd")
    for command in COMMANDS:
        say("guest", f"# {command}\n{machine.check(command).strip()}")
    state = server.show(NAME)["work_queues"][0]["state"]
    expect("the work queue that was enabled", state, "enabled")
    say("vdcm", f"{NAME}: work queue 0 is {state}")


def show_copies(server: Server, machine: Machine, say: Say, expect: Expect) -> None:
    """Copies by the kernel's dmaengine, every byte compared in the guest."""
    before = server.show(NAME)
    say("guest", f"# insmod dmacopy.ko threads={THREADS} copies={COPIES} max_size={LARGEST}")
    counts = copy(machine, threads=THREADS, copies=COPIES, max_size=LARGEST)
    say("guest", f"{counts}; {counts.wrong} wrong, {counts.lost} lost, {counts.failed} failed")
    expect("every copy is right", counts.flawless(COPIES), True)
    shown = server.show(NAME)
    work = shown["adis"][0]["counters"]
    expect("descriptors that vdcm has carried out", work["succeeded"], COPIES)
    messages, interrupts = (
        shown["counters"][name] - before["counters"][name] for name in ("messages", "interrupts")
    )
    say(
        "vdcm",
        f"{work['accepted']} descriptors accepted, {work['succeeded']} succeeded, "
        f"{work['bytes']} bytes; {messages} messages, {interrupts} interrupts",
    )
