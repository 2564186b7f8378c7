"""Sessions of Linux's own drivers, recorded in a guest, and replayed: the same comes of them.

VDCM_SOAK in the environment (``ci/test --soak``) asks for 20 replays of each.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.guest import copies, disk, gpio, idxd, nic
from tests.guest.lab import CARD
from vdcm.environment import Environment
from vdcm.testing import Machine, Server, address_of, vfio_user
from vdcm.testing.plugin import Replay, Running

pytestmark = pytest.mark.timeout(600)  # several drivers are brought up, and slowly

RUNS = 20 if "VDCM_SOAK" in os.environ else 3
VDEVS: dict[str, dict[str, Any]] = {
    "gpio0": {"type": "pcie-idio-16"},
    "dsa0": {"type": "dsa-1dwq"},
    "disk0": {"type": "nvme", "size": "64M"},
    "nic0": {"type": "avf", "mac": "02:00:00:00:00:01"},
}


@pytest.fixture(scope="module")
def records(
    environment: Environment,
    idxd_options: dict[str, Any],
    tmp_path_factory: pytest.TempPathFactory,
    vdcm_running: Running[Any],
) -> Iterator[dict[str, Path]]:
    """A boot in which each device is brought up, and does something."""
    folder = tmp_path_factory.mktemp("recorded")
    server = Server(folder / "server", VDEVS, trace=False)
    disks = disk.machine_options(environment)
    machine = Machine(
        environment,
        log_dir=folder,
        cpus=2,
        modules=(*idxd.MODULES, *disk.MODULES, *nic.MODULES, "gpio-pci-idio-16"),
        tools=(*idxd.TOOLS, *disk.TOOLS, *nic.TOOLS, *gpio.TOOLS),
        files={**idxd_options["files"], **disks["files"]},
        kernel_arguments=disks["kernel_arguments"],
        devices=[argument for name in VDEVS for argument in vfio_user(server.socket(name))],
    )
    with vdcm_running(server):
        with ExitStack() as stack:
            files = {name: stack.enter_context(server.record(name)) for name in VDEVS}
            with vdcm_running(machine):
                drive(server, machine)
        yield files


def drive(server: Server, machine: Machine) -> None:
    machine.check("modprobe gpio-pci-idio-16")
    card = gpio.Gpio(machine, address_of(machine, CARD))
    card.set({1: 1, 3: 1})
    server.set("gpio0", inputs=0x0055)
    assert card.get([16, 17]) == [1, 0]

    idxd.load(machine)
    dsa = idxd.IdxdDevice(machine)
    dsa.configure()
    dsa.enable()
    dsa.enable_wq()
    assert copies.copy(machine, size=4096, count=100).flawless(100)
    dsa.disable()

    disk.load(machine)
    path = disk.Disk(server, machine, "disk0", address_of(machine, disk.NVME)).wait()
    machine.check(f"/bin/mke2fs -q -t ext4 {path} && mkdir /mnt && mount -t ext4 {path} /mnt", 60)
    machine.check("dd if=/dev/urandom of=/mnt/file bs=64k count=32 2>&1 && umount /mnt", 60)
    machine.check(f"mount -t ext4 {path} /mnt && sha256sum /mnt/file && umount /mnt", 60)

    card0 = nic.Nic(server, machine, "nic0")
    card0.load()
    card0.up()
    card0.ip("addr add 192.0.2.1/24 dev @")
    machine.run("ping -c 2 -W 1 192.0.2.9")
    card0.down()


@pytest.mark.parametrize("name", VDEVS)
def test_a_replay_is_identical(name: str, records: dict[str, Path], replay: Replay) -> None:
    first = replay(records[name])
    for _ in range(RUNS - 1):
        assert replay(records[name]) == first
    print(name, records[name].stat().st_size, "bytes", first.good, dict(first.counts))
