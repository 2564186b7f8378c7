"""Linux's own nvme driver binds to virtual NVMe controllers, in both doorbell modes."""

from __future__ import annotations

import hashlib

import pytest

from tests.guest import disk
from tests.guest.disk import Disk, NvmeLab

MODES = ("shadow", "direct")


@pytest.fixture(params=MODES)
def drive(request: pytest.FixtureRequest, nvme_lab: NvmeLab) -> Disk:
    nvme_lab.machine.check("modprobe nvme")
    return nvme_lab.disk(request.param)


def test_the_driver_binds(drive: Disk) -> None:
    path = drive.wait()
    shown = drive.server.show(drive.name)
    assert drive.attribute("model") == "vdcm NVMe controller"
    assert drive.attribute("serial") == shown["namespaces"][0]["uuid"].replace("-", "")[:20]
    sectors = int(drive.machine.check(f"cat /sys/block/{path[5:]}/size"))
    assert sectors * 512 == 64 << 20
    # An I/O queue for each CPU, which are ADIs of the parent.
    assert len(shown["queues"]) == 2
    assert drive.machine.check(f"cat /sys/block/{path[5:]}/wwid").strip() == (
        f"uuid.{shown['namespaces'][0]['uuid']}"
    )


def test_what_is_written_is_read(drive: Disk, nvme_lab: NvmeLab) -> None:
    path, machine = drive.wait(), drive.machine
    seed = MODES.index(drive.name)
    written = disk.write(machine, path, seed, 8)
    for bs in ("4k", "128k", "1M"):
        assert disk.read(machine, path, 8, bs) == written
    # It is where the table of the store says, and nothing else is.
    place = drive.server.show(drive.name)["namespaces"][0]
    with nvme_lab.store.open("rb") as file:
        file.seek((1 << 20) + place["offset"])
        assert hashlib.sha256(file.read(8 << 20)).hexdigest() == written


def test_direct_io_past_the_cache(drive: Disk) -> None:
    path, machine = drive.wait(), drive.machine
    machine.check("test -f /d || dd if=/dev/urandom of=/d bs=1M count=2 2>/dev/null")
    for bs in ("4k", "64k", "1M"):
        machine.check(f"dd if=/d of={path} bs={bs} oflag=direct conv=fsync 2>&1", timeout=60)
        count = (2 << 20) // {"4k": 4 << 10, "64k": 64 << 10, "1M": 1 << 20}[bs]
        found = machine.check(
            f"dd if={path} bs={bs} count={count} iflag=direct 2>/dev/null | sha256sum", timeout=60
        )
        assert found.split()[0] == machine.check("sha256sum < /d").split()[0]


def test_the_driver_resets_the_controller(drive: Disk) -> None:
    path, machine = drive.wait(), drive.machine
    written = disk.write(machine, path, 7, 2)
    machine.check(f"echo 1 > /sys/class/nvme/{drive.controller}/reset_controller")
    assert disk.read(machine, drive.wait(), 2) == written


def test_the_function_is_reset_under_the_driver(drive: Disk) -> None:
    path, machine = drive.wait(), drive.machine
    written = disk.write(machine, path, 7, 2)
    machine.check(f"echo 1 > /sys/bus/pci/devices/{drive.address}/reset")
    assert disk.read(machine, drive.wait(), 2) == written


def test_the_driver_is_unbound_and_bound(drive: Disk) -> None:
    path, machine = drive.wait(), drive.machine
    written = disk.write(machine, path, 7, 2)
    machine.check(f"echo {drive.address} > {disk.DRIVER}/unbind")
    assert drive.server.show(drive.name)["queues"] == []
    machine.check(f"echo {drive.address} > {disk.DRIVER}/bind")
    assert disk.read(machine, drive.wait(), 2) == written
