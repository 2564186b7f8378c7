"""fio verifies: all block sizes and depths, both doorbell modes, on one, two and four CPUs; resets
under its load. All combinations of them with ``ci/test --soak``."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.guest import disk, fio
from tests.guest.disk import Disk, NvmeLab
from tests.guest.fio import BLOCK_SIZES, DEPTHS, Job
from vdcm.environment import Environment
from vdcm.testing import Machine, Server, vfio_user

MODES = ("shadow", "direct")
SOAK = "VDCM_SOAK" in os.environ
pytestmark = pytest.mark.timeout(7200 if SOAK else 240)


def jobs(threads: int, depths: int) -> list[Job]:
    """With every block size ``depths`` depths, so that all depths are among them."""
    if SOAK:
        return [Job(*each, threads, 512) for each in itertools.product(BLOCK_SIZES, DEPTHS)]
    found = []
    for index, size in enumerate(BLOCK_SIZES):
        for more in range(depths):
            found.append(Job(size, DEPTHS[(3 * index + 2 * more) % len(DEPTHS)], threads))
    return found


@pytest.mark.parametrize("mode", MODES)
def test_two_cpus(nvme_lab: NvmeLab, mode: str) -> None:
    nvme_lab.machine.check("modprobe nvme")
    path = nvme_lab.disk(mode).wait()
    fio.verify(nvme_lab.machine, path, jobs(2, depths=1), timeout=6000 if SOAK else 200)


@pytest.mark.parametrize("cpus", [1, 4])
def test_other_numbers_of_cpus(
    serve: Callable[..., Server],
    boot: Callable[..., Machine],
    environment: Environment,
    tmp_path: Path,
    cpus: int,
) -> None:
    server = serve(
        {name: {"type": "nvme", "size": "128M", "doorbells": name} for name in MODES},
        {"nvme0": {"model": "nvme", "store": f"file:{tmp_path / 'store.img'}", "size": "512M"}},
    )
    devices = [argument for name in MODES for argument in vfio_user(server.socket(name))]
    machine = boot(devices, cpus=cpus, **disk.machine_options(environment))
    lab = NvmeLab(server, machine, tmp_path / "store.img")
    machine.check("modprobe nvme")
    chosen = jobs(cpus, depths=1)
    for index, mode in enumerate(MODES):
        path = lab.disk(mode).wait()
        assert len(server.show(mode)["queues"]) == cpus
        some = chosen if SOAK else chosen[index::2]
        fio.verify(machine, path, some, timeout=6000 if SOAK else 200)


RESETS = 40 if SOAK else 6


def reset(drive: Disk, number: int) -> None:
    """By one of the ways that there are, the driver's and the function's."""
    ways = (
        f"/sys/class/nvme/{drive.controller}/reset_controller",
        f"/sys/bus/pci/devices/{drive.address}/reset",
    )
    drive.machine.check(f"echo 1 > {ways[number % 2]}", timeout=60)


@pytest.mark.parametrize("mode", MODES)
def test_resets_under_load(nvme_lab: NvmeLab, mode: str) -> None:
    """The driver recovers from each: fio hears of no error, and finds all that it wrote."""
    machine = nvme_lab.machine
    machine.check("modprobe nvme")
    drive = nvme_lab.disk(mode)
    command = fio.prepare(
        machine, drive.wait(), [Job(4096, 16, 2, 512)], loops=1000, time_based=1, runtime=3600
    )
    machine.check(f"({command} >/fio.said 2>&1; echo $? >/fio.status) & sleep 1")
    try:
        for number in range(RESETS):
            reset(drive, number)
            drive.wait()
            goes_on(drive)
    finally:
        machine.check("killall -INT fio; until [ -e /fio.status ]; do usleep 50000; done", 60)
    # 128: it was asked to end, and nothing worse.
    assert machine.check("cat /fio.status /fio.said; rm /fio.status").split()[0] == "128"
    fio.result(machine)
    kernel = machine.check("dmesg")
    assert "I/O error" not in kernel and "blocked for more" not in kernel


def goes_on(drive: Disk) -> None:
    enough = sectors(drive) + 200
    drive.server.wait_for("it goes on", lambda: sectors(drive) > enough)


def sectors(drive: Disk) -> int:
    """Read and written so far, by the guest's own count."""
    counts = drive.machine.check(f"cat /sys/block/{drive.block}/stat").split()
    return int(counts[2]) + int(counts[6])
