"""Linux's own idxd driver in a guest: loaded, configured and taken away by sysfs.

The attributes are those of Linux, Documentation/ABI/stable/sysfs-driver-dma-idxd.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vdcm.environment import Environment
from vdcm.testing import Machine, Server, build_module

DSA = "8086:0b25"
MODULES = ("idxd",)  # for Machine(modules=…); idxd_bus comes with it
TOOLS = ("accel-config",)  # for Machine(tools=…)
MOVDIR64B = "movdir64b.ko"
DEVICES = "/sys/bus/dsa/devices"
DRIVERS = "/sys/bus/dsa/drivers"
# Of a work queue that the kernel's dmaengine uses; the first ones must come first.
KERNEL_WQ: Mapping[str, str | int] = {
    "group_id": 0,
    "mode": "dedicated",
    "size": 16,
    "priority": 10,
    "type": "kernel",
    "name": "copies",
}


def movdir64b(environment: Environment, folder: Path) -> dict[str, Path]:
    """``files`` for a Machine whose CPU may lack MOVDIR64B: the helper module, built in folder."""
    return {MOVDIR64B: build_module(environment, Path(__file__).with_name("movdir64b"), folder)}


def has_movdir64b(machine: Machine) -> bool:
    """The guest's CPU has the instruction, and needs no help."""
    return machine.run("grep -qw movdir64b /proc/cpuinfo").status == 0


def load(machine: Machine, parameters: str = "") -> None:
    """Load idxd with its ``parameters``, and before it what the CPU lacks. The guest's ``files``
    have ``movdir64b()``."""
    machine.check(
        "grep -qw movdir64b /proc/cpuinfo || [ -e /sys/module/movdir64b ] || "
        f"insmod /{MOVDIR64B}; modprobe idxd {parameters}"
    )


def unload(machine: Machine) -> None:
    """Take out again what ``load`` has loaded, if it has. Raises GuestError if it is in use."""
    loaded = ("idxd", "idxd_bus", "movdir64b")
    machine.check(" && ".join(f"{{ [ ! -e /sys/module/{m} ] || rmmod {m}; }}" for m in loaded))


def read(machine: Machine, path: str) -> str:
    """An attribute below ``/sys/bus/dsa/devices``, such as ``dsa0/wq0.0/state``."""
    return machine.check(f"cat {DEVICES}/{path}").strip()


@dataclass(frozen=True)
class IdxdLab:
    """The server and the guest that all tests of idxd share. Its VDEVs ``dsa0`` (two dedicated work
    queues and a share of a shared one) and ``dsa1`` (a dedicated one) are of one parent, and have
    these names in the guest, too; no driver is loaded to begin with."""

    server: Server
    machine: Machine

    def states(self, name: str) -> list[str]:
        """Of the work queues of a VDEV, as the server has them."""
        return [queue["state"] for queue in self.server.show(name)["work_queues"]]


class IdxdDevice:
    """The guest's DSA number ``index``, with idxd loaded: ``dsa0`` and its parts."""

    def __init__(self, machine: Machine, index: int = 0) -> None:
        self.machine = machine
        self.index = index
        self.name = f"dsa{index}"

    def wq(self, number: int) -> str:
        """The name of a work queue on the bus; ``part("wq", …)`` of others."""
        return self.part("wq", number)

    def part(self, kind: str, number: int) -> str:
        """The name of a ``wq``, an ``engine`` or a ``group``: ``wq0.1``."""
        return f"{kind}{self.index}.{number}"

    def get(self, attribute: str) -> str:
        """An attribute of the device, or of a part of it: ``wq0.0/state``."""
        return read(self.machine, f"{self.name}/{attribute}")

    def set(self, attribute: str, value: str | int) -> None:
        """Set one. Raises GuestError if the driver refuses the value."""
        self.machine.check(f"echo {value} >{DEVICES}/{self.name}/{attribute}")

    def configure(self, number: int = 0, *, engine: int = 0, **attributes: str | int) -> str:
        """A work queue of ``KERNEL_WQ`` changed by ``attributes``, with an engine in its group;
        the work queue's name. The device must be disabled."""
        name = self.wq(number)
        settings = {**KERNEL_WQ, **attributes}
        commands = [f"cd {DEVICES}/{self.name}"]
        commands += [f"echo {value} >{name}/{key}" for key, value in settings.items()]
        commands += [
            # Linux 6.8 and later; those before go by the type.
            f"if [ -e {name}/driver_name ]; then echo dmaengine >{name}/driver_name; fi",
            f"echo {settings['group_id']} >{self.part('engine', engine)}/group_id",
        ]
        self.machine.check(" && ".join(commands))
        return name

    def enable(self) -> None:
        """Bind the device to its driver, which enables it. Raises GuestError."""
        self.machine.check(f"echo {self.name} >{DRIVERS}/idxd/bind")

    def disable(self) -> None:
        """Unbind the device, and with it its work queues. Raises GuestError."""
        self.machine.check(f"echo {self.name} >{DRIVERS}/idxd/unbind")

    def enable_wq(self, number: int = 0, driver: str = "dmaengine") -> None:
        """Bind a work queue to its driver, which enables it. Raises GuestError."""
        self.machine.check(f"echo {self.wq(number)} >{DRIVERS}/{driver}/bind")

    def disable_wq(self, number: int = 0, driver: str = "dmaengine") -> None:
        """Unbind a work queue. Raises GuestError."""
        self.machine.check(f"echo {self.wq(number)} >{DRIVERS}/{driver}/unbind")
