"""accel-config, by which people configure a DSA, in the guest with Linux's own idxd; and lspci."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from tests.guest import golden, idxd

# cmd_status: the driver's own (Linux, include/uapi/linux/idxd.h), and the device's (table 5-8).
NO_USER_WQS = "0x80110000"
BLOCK_ON_FAULT = "0x25"
READ_BUFFERS = "0x18"
SAVED = "/tmp/saved.conf"


class Guest(idxd.IdxdLab):
    """The shared lab, and accel-config in its guest."""

    def accel(self, words: str) -> str:
        """What ``accel-config words`` prints, all of it; its status tells little."""
        return self.machine.run(f"accel-config {words}").output

    def listing(self, words: str = "") -> str:
        """What ``accel-config list words`` prints, without the number that the kernel assigns."""
        text = self.machine.check(f"accel-config list {words}")
        return re.sub(r'(?<="cdev_major":)\d+', "N", text)

    def compare(self, name: str, text: str) -> None:
        """``text`` of accel-config is that of the golden file."""
        version = re.split(r"[^\d.]", self.machine.check("accel-config --version"))[0]
        golden.compare_version(name, "accel-config", version, text)

    def configure(self, options: str = "") -> None:
        """Two work queues of the first device with an engine each, in a group each."""
        for number, size in enumerate((16, 32)):
            self.machine.check(
                f"accel-config config-wq dsa0/wq0.{number} --group-id={number} --mode=dedicated "
                f"--wq-size={size} --priority=10 --type=kernel --name=copies{number} {options} && "
                f"accel-config config-engine dsa0/engine0.{number} --group-id={number}"
            )

    def enable(self) -> None:
        """The device and what ``configure`` has configured."""
        assert self.accel("enable-device dsa0") == "enabled 1 device(s) out of 1\n"
        enabled = self.accel("enable-wq dsa0/wq0.0 dsa0/wq0.1")
        assert enabled == "enabled 2 wq(s) out of 2\n"

    def disable(self) -> None:
        """The device, and with it its work queues."""
        assert self.accel("disable-device dsa0") == "disabled 1 device(s) out of 1\n"


@pytest.fixture
def guest(idxd_lab: idxd.IdxdLab, request: pytest.FixtureRequest) -> Iterator[Guest]:
    """A driver that has just been loaded, with the parameters that the test asks for."""
    idxd.load(idxd_lab.machine, getattr(request, "param", ""))
    yield Guest(idxd_lab.server, idxd_lab.machine)
    idxd.unload(idxd_lab.machine)


# The driver lets traffic classes be written to a DSA of version 2 only on request.
overriding = pytest.mark.parametrize("guest", ["tc_override=1"], indirect=True)


def test_lspci_decodes_every_capability(guest: Guest) -> None:
    version = guest.machine.check("lspci --version").split()[-1]
    listing = guest.machine.check("lspci -vvv -d 8086:0b25")
    assert not golden.complaints(listing)
    golden.compare_version("dsa", "lspci", version, golden.unassigned(listing))


def test_list_of_devices_that_nobody_has_configured(guest: Guest) -> None:
    assert guest.listing() == "[\n]\n"
    guest.compare("dsa", guest.listing("-i"))


@overriding
def test_what_is_configured_enabled_saved_disabled_and_loaded(guest: Guest) -> None:
    guest.configure()
    group = "--read-buffers-reserved=8 --read-buffers-allowed=20 --traffic-class-b=3"
    guest.machine.check(f"accel-config config-group dsa0/group0.1 {group}")
    assert "enabled 0 device(s) out of 1" in guest.accel("enable-device dsa0")
    status = idxd.IdxdDevice(guest.machine).get("cmd_status")
    assert status == READ_BUFFERS, "group 0 may not have all, of which 8 are reserved"
    guest.machine.check("accel-config config-group dsa0/group0.0 --read-buffers-allowed=40")
    guest.enable()
    assert guest.states("dsa0") == ["enabled", "enabled", "disabled"]
    before = guest.listing()
    guest.compare("dsa-enabled", before)
    guest.machine.check(f"accel-config save-config -s {SAVED}")

    assert guest.accel("disable-wq dsa0/wq0.0") == "disabled 1 wq(s) out of 1\n"
    assert guest.states("dsa0") == ["disabled", "enabled", "disabled"]
    guest.disable()
    assert guest.states("dsa0") == ["disabled"] * 3
    assert guest.listing() == "[\n]\n"

    guest.machine.check(f"accel-config load-config -c {SAVED} -e")
    assert guest.listing() == before
    assert guest.states("dsa0") == ["enabled", "enabled", "disabled"]
    guest.disable()


def test_a_saved_configuration_without_traffic_classes(guest: Guest) -> None:
    """What a driver that was not asked to override them refuses, the device does not."""
    guest.configure()
    guest.enable()
    before = guest.listing()
    guest.machine.check(f"accel-config save-config -s {SAVED}")
    guest.disable()
    refused = guest.accel(f"load-config -c {SAVED} -e")
    assert "traffic_class_a attribute write failed: Operation not permitted" in refused
    guest.machine.check(f"sed -i /traffic_class/d {SAVED}")
    guest.machine.check(f"accel-config load-config -c {SAVED} -e")
    assert guest.listing() == before
    guest.disable()


def test_user_and_shared_work_queues_need_sva(guest: Guest) -> None:
    """The driver refuses them; the device has not been asked, and is as usable as before."""
    device = idxd.IdxdDevice(guest.machine)
    guest.configure("--type=user")
    assert guest.accel("enable-device dsa0") == "enabled 1 device(s) out of 1\n"
    assert "enabled 0 wq(s) out of 1" in guest.accel("enable-wq dsa0/wq0.0")
    assert device.get("cmd_status") == NO_USER_WQS
    assert "user: probe of wq0.0 failed with error -95" in guest.machine.check("dmesg | tail -3")
    guest.disable()

    guest.configure()
    shared = "--group-id=0 --mode=shared --wq-size=8 --threshold=4 --priority=1 --type=kernel"
    guest.machine.check(f"accel-config config-wq dsa0/wq0.2 {shared} --name=shared")
    assert "no shared wq support" in guest.accel("enable-device dsa0")
    assert guest.states("dsa0") == ["disabled"] * 3
    guest.machine.check("accel-config config-wq dsa0/wq0.2 --wq-size=0 --group-id=-1 --type=none")
    guest.enable()
    guest.disable()


def test_block_on_fault_is_refused_by_the_device(guest: Guest) -> None:
    guest.configure("--block-on-fault=1")
    guest.accel("enable-device dsa0")
    assert "enabled 0 wq(s) out of 1" in guest.accel("enable-wq dsa0/wq0.0")
    assert idxd.IdxdDevice(guest.machine).get("cmd_status") == BLOCK_ON_FAULT
    guest.disable()
    guest.configure()
    guest.enable()
    guest.disable()
