"""``vdcm.testing`` in a guest: the documentation's example, kernels of a user's own, and faults
that Linux's drivers meet."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from testing_examples import EXAMPLES, run_example

from tests.guest import disk
from tests.guest.lab import OPTIONS
from vdcm.environment import Environment
from vdcm.errors import PrerequisiteError
from vdcm.testing import GuestDevice, GuestError, Host, Machine, Served, prepared, vfio_user
from vdcm.testing.initramfs import CpioWriter
from vdcm.testing.plugin import Boot

SOON = 30.0


@pytest.mark.usefixtures("vdcm_environment")
def test_the_example_of_the_documentation(tmp_path: Path) -> None:
    (name,) = [name for name, code in EXAMPLES.items() if "boot" in code]
    assert "1 passed" in run_example(tmp_path, name)


# What guests are booted with


def test_an_initrd_of_the_users_own(
    vdcm_environment: Environment, host: Host, tmp_path: Path
) -> None:
    """Compressed, and with nothing in it that we could use."""
    own = CpioWriter()
    own.folder("dev")
    own.device("dev/console", 5, 1)
    own.file("usr/share/mine", b"this is mine")
    initrd = tmp_path / "initrd.gz"
    initrd.write_bytes(gzip.compress(own.archive()))
    card = host.serve("pcie-idio-16")
    environment = prepared(initrd=initrd, kernel=vdcm_environment.kernel)
    with Machine(environment, log_dir=tmp_path, devices=vfio_user(card.path)) as guest:
        assert guest.check("cat /usr/share/mine") == "this is mine"
        device = GuestDevice(guest, "494F:0DC8")
        device.enable()
        assert card.vdev.bus_master
        assert device.bars.keys() == {2}


def test_what_is_not_there_is_said(vdcm_environment: Environment, tmp_path: Path) -> None:
    with pytest.raises(PrerequisiteError, match="is not there"):
        prepared(kernel=tmp_path / "nothing")
    assert prepared().kernel == vdcm_environment.kernel


def test_a_kernel_whose_modules_are_elsewhere(
    vdcm_environment: Environment, tmp_path: Path
) -> None:
    kernel, modules = vdcm_environment.kernel, vdcm_environment.modules
    environment = prepared(kernel=kernel, modules=modules)
    assert environment.kernel_release == vdcm_environment.kernel_release
    with Machine(environment, log_dir=tmp_path, modules=["uio"]) as guest:
        guest.check("modprobe uio")
    with pytest.raises(GuestError, match="not started"):
        guest.check("true")


# Faults


def test_the_driver_of_a_card_whose_bits_are_stuck(host: Host, boot: Boot) -> None:
    card = host.serve("pcie-idio-16", inputs=0)
    guest = boot(vfio_user(card.path), **OPTIONS)
    guest.check("modprobe gpio-pci-idio-16")
    chip = f"$(gpiodetect | grep {GuestDevice(guest, '494f:0dc8').address} | cut -d' ' -f1)"
    read = f"gpioget {chip} 16 17 18 19 || gpioget --numeric -c {chip} 16 17 18 19"
    with card.faults.stuck("IN_LOW", 1) as stuck:
        assert guest.check(read).split() == ["1"] * 4
        assert stuck.hits
    assert guest.check(read).split() == ["0"] * 4
    card.faults.remove()
    assert guest.check(read).split() == ["1"] * 4  # all ones, and nobody minds
    assert "vfio_user" not in guest.check("dmesg")


@pytest.fixture
def nvme_guest(
    host: Host, boot: Boot, vdcm_environment: Environment
) -> Iterator[tuple[Served[Any], Machine]]:
    """Linux's nvme has bound to a disk whose doorbells are intercepted."""
    parent = host.parent("nvme", store="ram:64M")
    served = host.serve("nvme", "disk0", parent, size="32M", doorbells="shadow")
    guest = boot(vfio_user(served.path), cpus=2, **disk.machine_options(vdcm_environment))
    guest.check("modprobe nvme; until [ -b /dev/nvme0n1 ]; do usleep 20000; done")
    yield served, guest


def test_linux_nvme_when_an_interrupt_is_lost_and_memory_fails(
    nvme_guest: tuple[Served[Any], Machine],
) -> None:
    served, guest = nvme_guest
    faults = served.faults
    # The driver finds what is complete when its command times out, and polls.
    guest.check("echo 1000 >/sys/class/block/nvme0n1/queue/io_timeout")
    read = "dd if=/dev/nvme0n1 of=/dev/null bs=4096 count=1 iflag=direct 2>&1"
    guest.check(read)
    lost = faults.lose_interrupts(times=None)
    guest.check(read, SOON)
    assert lost.hits
    assert "polled" in guest.check("dmesg")
    lost.clear()
    with faults.dma(access="write") as failed:
        guest.check(read, SOON)  # a data transfer error, after which the driver tries again
        assert failed.hits == 1
