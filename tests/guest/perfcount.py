"""Event counters of the guest's PMUs, while a command runs: the program ``perfcount``."""

from __future__ import annotations

from vdcm.testing import Machine

PMUS = "/sys/bus/event_source/devices"
_OUTPUT = "/run/perfcount"


def pmus(machine: Machine) -> set[str]:
    """Names of all PMUs that there are."""
    return set(machine.check(f"ls {PMUS}").split())


def formats(machine: Machine, pmu: str) -> dict[str, str]:
    """What the parts of an event's configuration are called, and where they are."""
    lines = machine.check(f"cd {PMUS}/{pmu}/format && grep . *").split()
    return dict(line.split(":", 1) for line in lines)


def counting(machine: Machine, pmu: str, *events: tuple[int, int]) -> str:
    """The beginning of a command that counts ``events`` while the rest of it runs, each a
    configuration and the second one of its filters; ``counted`` has the numbers then."""
    kind = machine.check(f"cat {PMUS}/{pmu}/type").strip()
    configured = " ".join(f"{config:#x}:{filters:#x}" for config, filters in events)
    return f"/perfcount {_OUTPUT} {kind} {configured} -- "


def counted(machine: Machine) -> list[int]:
    return [int(line) for line in machine.check(f"cat {_OUTPUT}").split()]
