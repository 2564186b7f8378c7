"""Linux's own idxd driver binds to software DSAs, and MOVDIR64B where the CPU lacks it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.guest import idxd
from vdcm.testing import GuestError, Machine

HELPER = "/sys/module/movdir64b/parameters"
# The driver's own values of cmd_status (Linux, include/uapi/linux/idxd.h).
NO_GROUP = "0x80030000"
NO_SHARED_WQS = "0x800c0000"
ADDRESSES = ("0000:00:01.0", "0000:00:02.0")
FIRST = {"dsa0"} | {f"{kind}0.{n}" for kind in ("wq", "engine", "group") for n in range(3)}
SECOND = {"dsa1", "wq1.0", "engine1.0", "group1.0"}
DISABLED = ["disabled"] * 3


@pytest.fixture
def lacking(idxd_lab: idxd.IdxdLab) -> Machine:
    """The shared guest without any driver, if its CPU lacks the instruction."""
    if idxd.has_movdir64b(idxd_lab.machine):
        pytest.skip("the CPU has MOVDIR64B")
    idxd.unload(idxd_lab.machine)
    return idxd_lab.machine


def test_movdir64b_is_carried_out_in_all_its_forms(lacking: Machine) -> None:
    result = lacking.run("insmod /movdir64b.ko selftest=1")
    assert result.status == 0, lacking.check("dmesg | grep movdir64b:")
    passed, refused = (int(lacking.check(f"cat {HELPER}/{name}")) for name in ("passed", "refused"))
    assert passed > 400
    assert refused == 6  # forms whose addresses are not to be used; what is illegal does not count
    lacking.check("rmmod movdir64b")


def test_idxd_needs_the_helper_and_does_not_outlive_it(lacking: Machine) -> None:
    """The feature is there while the helper is, and no longer."""
    assert "No such device" in lacking.run("modprobe idxd").output
    for _ in range(2):
        idxd.load(lacking)
        assert not idxd.has_movdir64b(lacking)  # user space has none
        idxd.unload(lacking)
        assert "No such device" in lacking.run("modprobe idxd").output


class Bus:
    """What the guest's files say of its DSAs; the driver is loaded."""

    def __init__(self, lab: idxd.IdxdLab) -> None:
        self.machine, self.server, self.states = lab.machine, lab.server, lab.states
        self.first, self.second = idxd.IdxdDevice(lab.machine, 0), idxd.IdxdDevice(lab.machine, 1)

    def devices(self) -> set[str]:
        return set(self.machine.check(f"ls {idxd.DEVICES}").split())

    def channels(self) -> set[str]:
        """The PCI devices that have channels of the kernel's dmaengine."""
        links = self.machine.check("cd /sys/class/dma; ls | xargs -r -n 1 readlink").split()
        return {link.split("/")[-3] for link in links}


@pytest.fixture
def bus(idxd_lab: idxd.IdxdLab) -> Iterator[Bus]:
    """A driver that has just been loaded, and knows of nothing that was configured before."""
    idxd.load(idxd_lab.machine)
    yield Bus(idxd_lab)
    idxd.unload(idxd_lab.machine)


def device_register(bus: Bus, device: idxd.IdxdDevice, name: str) -> int:
    """What the driver has read last of a 64-bit register, from the trace."""
    lines = [line for line in bus.server.trace(device.name) if f" {name} = " in line]
    return int(lines[-1].split(" = ")[1].split()[0], 16)


def test_both_vdevs_are_on_the_bus_with_all_their_parts(bus: Bus) -> None:
    assert bus.devices() == FIRST | SECOND
    for device, wqs, size in ((bus.first, 3, 128), (bus.second, 1, 32)):
        found = {
            name: device.get(name)
            for name in ("state", "configurable", "max_work_queues", "max_engines", "max_groups")
        }
        assert found == {
            "state": "disabled",
            "configurable": "1",
            "max_work_queues": str(wqs),
            "max_engines": str(wqs),
            "max_groups": str(wqs),
        }
        assert device.get("max_work_queues_size") == str(size)
        assert device.get("max_transfer_size") == str(1 << 31)
        assert int(device.get("gen_cap"), 16) == device_register(bus, device, "GENCAP")
        assert set(device.get("errors").split()) == {f"0x{0:016x}"}
    assert "Unable to turn on user SVA" in bus.machine.check("dmesg"), "there is an IOMMU now"


def test_a_work_queue_is_configured_enabled_and_disabled(bus: Bus) -> None:
    first = bus.first
    wq = first.configure(1, size=20, priority=9, engine=2, group_id=1, max_transfer_size=65536)
    first.enable()
    assert (first.get("state"), first.get("cmd_status")) == ("enabled", "0x0")
    assert (bus.states("dsa0"), bus.channels()) == (DISABLED, set())

    first.enable_wq(1)
    assert (first.get(f"{wq}/state"), first.get("cmd_status")) == ("enabled", "0x0")
    assert bus.states("dsa0") == ["disabled", "enabled", "disabled"]
    assert bus.channels() == {ADDRESSES[0]}
    found = {name: first.get(f"{wq}/{name}") for name in ("mode", "type", "name", "size")}
    assert found == {"mode": "dedicated", "type": "kernel", "name": "copies", "size": "20"}
    assert first.get("group0.1/work_queues") == wq
    assert first.get("group0.1/engines") == "engine0.2"

    first.disable_wq(1)
    assert (first.get(f"{wq}/state"), first.get("cmd_status")) == ("disabled", "0x0")
    assert (bus.states("dsa0"), bus.channels()) == (DISABLED, set())
    first.disable()
    assert (first.get("state"), first.get("cmd_status")) == ("disabled", "0x0")
    assert first.get(f"{wq}/size") == "0"  # and nothing is left of the configuration


def test_both_vdevs_work_at_once_and_one_goes_without_the_other(bus: Bus) -> None:
    for device in (bus.first, bus.second):
        device.configure()
        device.enable()
        device.enable_wq()
    assert bus.channels() == set(ADDRESSES)
    assert bus.states("dsa0") == ["enabled", "disabled", "disabled"]
    bus.first.disable()
    assert bus.channels() == {ADDRESSES[1]}
    assert (bus.states("dsa0"), bus.states("dsa1")) == (DISABLED, ["enabled"])
    assert bus.second.get("wq1.0/state") == "enabled"


def test_unbind_and_bind_again(bus: Bus) -> None:
    """The PCI device is taken from the driver and given back. The device is disabled before:
    Linux 6.1 looks at work queues that it has freed if it is not."""
    for _ in range(2):
        bus.first.configure()
        bus.first.enable()
        bus.first.enable_wq()
        bus.first.disable()
        bus.machine.check(f"echo {ADDRESSES[0]} >/sys/bus/pci/drivers/idxd/unbind")
        assert bus.devices() == SECOND
        bus.machine.check(f"echo {ADDRESSES[0]} >/sys/bus/pci/drivers/idxd/bind")
        assert bus.devices() == FIRST | SECOND


def test_the_driver_is_removed_with_work_queues_enabled(bus: Bus) -> None:
    for device in (bus.first, bus.second):
        device.configure()
        device.enable()
        device.enable_wq()
    idxd.unload(bus.machine)
    assert (bus.states("dsa0"), bus.states("dsa1")) == (DISABLED, ["disabled"])
    assert bus.channels() == set()
    idxd.load(bus.machine)
    assert bus.devices() == FIRST | SECOND
    bus.first.configure()
    bus.first.enable()
    bus.first.enable_wq()
    assert bus.channels() == {ADDRESSES[0]}


def test_what_cannot_be_is_refused_and_leaves_the_device_usable(bus: Bus) -> None:
    first = bus.first
    # Shared work queues need PASIDs, and those an IOMMU that the guest has not.
    first.configure(2, mode="shared", threshold=8)
    with pytest.raises(GuestError, match="No such device or address"):
        first.enable()
    assert (first.get("cmd_status"), first.get("state")) == (NO_SHARED_WQS, "disabled")
    first.set("wq0.2/size", 0)
    first.set("wq0.2/group_id", -1)
    first.set("wq0.2/type", "none")
    # More entries than there are left.
    first.configure(0, size=128)
    with pytest.raises(GuestError, match="Invalid argument"):
        first.set("wq0.1/size", 1)
    first.configure(0)
    first.enable()
    with pytest.raises(GuestError, match="No such device or address"):
        first.enable_wq(1)
    assert first.get("cmd_status") == NO_GROUP
    first.enable_wq(0)
    assert first.get("cmd_status") == "0x0"
    assert bus.states("dsa0") == ["enabled", "disabled", "disabled"]
