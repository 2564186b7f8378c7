"""Linux's own nvme in a guest: its controllers and disks, by sysfs, busybox, nvme-cli and fio."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from vdcm.environment import Environment
from vdcm.testing import Machine, Server

NVME = "1af4:10f0"
MODULES = ("nvme", "ext4", "crc32c_generic")  # for Machine(modules=…)
TOOLS = ("e2fsck", "fio", "mke2fs", "nvme")
# nvme-cli maps the registers, which Linux allows only so while a driver has them.
KERNEL_ARGUMENTS = "iomem=relaxed"
SECONDS = 20.0  # a limit, not an expectation
DRIVER = "/sys/bus/pci/drivers/nvme"


def machine_options(environment: Environment) -> dict[str, Any]:
    """What a Machine needs for all that is done here."""
    return {
        "modules": MODULES,
        "tools": TOOLS,
        "files": {"etc/mke2fs.conf": environment.guest_root / "etc/mke2fs.conf"},
        "kernel_arguments": KERNEL_ARGUMENTS,
    }


def load(machine: Machine) -> None:
    """Linux's nvme and ext4, and the checksum that ext4 asks the kernel for."""
    machine.check("modprobe nvme; modprobe crc32c_generic; modprobe ext4")


class Disk:
    """The guest's end of VDEV ``name``, whose function is ``address`` in the guest."""

    def __init__(self, server: Server, machine: Machine, name: str, address: str) -> None:
        self.server = server
        self.machine = machine
        self.name = name
        self.address = address

    @property
    def controller(self) -> str:
        """The name that Linux gave it; empty while there is none."""
        found = self.machine.run(f"ls /sys/bus/pci/devices/{self.address}/nvme 2>/dev/null")
        return found.output.strip()

    def attribute(self, name: str) -> str:
        """Of the controller."""
        return self.machine.check(f"cat /sys/class/nvme/{self.controller}/{name}").strip()

    @property
    def block(self) -> str:
        """The block device of its first namespace; empty while there is none."""
        found = self.machine.run(f"ls /sys/bus/pci/devices/{self.address}/nvme/*/ 2>/dev/null")
        names = [
            word for word in found.output.split() if word.startswith("nvme") and "n" in word[4:]
        ]
        return names[0].replace("c", "") if names else ""

    def wait(self) -> str:
        """The path of its disk, once it is there and its controller is live."""
        deadline = time.monotonic() + SECONDS
        while True:
            if self.controller and self.attribute("state") == "live" and self.block:
                path = f"/dev/{self.block}"
                if not self.machine.run(f"test -b {path}").status:
                    return path
            assert time.monotonic() < deadline, f"no disk\n{self.log()}"
            time.sleep(0.05)

    def log(self) -> str:
        return self.machine.check("dmesg | grep -i nvme || true")


class NvmeLab:
    """A server and a guest with ``vdevs``, in the order of QEMU's arguments. In the shared one they
    are of one parent whose ``store`` is a file, and each is called after its doorbells."""

    VDEVS = ("shadow", "direct")

    def __init__(
        self, server: Server, machine: Machine, store: Path, vdevs: tuple[str, ...] = VDEVS
    ) -> None:
        self.server = server
        self.machine = machine
        self.store = store
        self.vdevs = vdevs

    def disk(self, name: str) -> Disk:
        addresses = self.machine.check(f"lspci -D -n -d {NVME} | cut -d' ' -f1").split()
        assert len(addresses) == len(self.vdevs), self.machine.check("lspci -nn")
        address = addresses[self.vdevs.index(name)]
        return Disk(self.server, self.machine, name, address)


def write(machine: Machine, path: str, seed: int, mebibytes: int, options: str = "") -> str:
    """Fill the beginning of a disk with pseudo-random bytes and bring them there; their sum."""
    machine.check(
        f"test -f /r{seed} || dd if=/dev/urandom of=/r{seed} bs=1M count={mebibytes} 2>/dev/null"
    )
    machine.check(f"dd if=/r{seed} of={path} bs=128k conv=fsync {options} 2>&1", timeout=60)
    return machine.check(f"sha256sum < /r{seed}").split()[0]


def read(machine: Machine, path: str, mebibytes: int, bs: str = "128k") -> str:
    """The sum of the beginning of a disk, from the disk itself."""
    machine.check("echo 3 > /proc/sys/vm/drop_caches")
    size = {"4k": 4 << 10, "128k": 128 << 10, "1M": 1 << 20}[bs]
    count = (mebibytes << 20) // size
    found = machine.check(f"dd if={path} bs={bs} count={count} 2>/dev/null | sha256sum", timeout=60)
    return found.split()[0]
