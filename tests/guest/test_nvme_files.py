"""File systems on virtual NVMe disks; reboots, removal, kills, and stores that are full or gone."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.guest import disk, fio
from tests.guest.disk import DRIVER, Disk, NvmeLab
from vdcm.environment import Environment
from vdcm.testing import Machine, Server, vfio_user

MODES = ("shadow", "direct")
SIZE = 64 << 20
MKFS = "/bin/mke2fs -q -F -t ext4"  # busybox has one, too
WAYS = ("reboot -f", "echo b >/proc/sysrq-trigger", "echo c >/proc/sysrq-trigger", "")
LOAD = fio.Job(4096, 16, 2, 512)

Serve = Callable[..., Server]
Boot = Callable[..., Machine]


@pytest.fixture(params=MODES)
def drive(request: pytest.FixtureRequest, nvme_lab: NvmeLab) -> Disk:
    disk.load(nvme_lab.machine)
    return nvme_lab.disk(request.param)


def make(machine: Machine, path: str) -> None:
    """A file system with files in it, all synchronised; their sums are kept in it."""
    machine.check("umount /mnt 2>/dev/null; mkdir -p /mnt")
    machine.check(f"{MKFS} {path} && mount -t ext4 {path} /mnt", timeout=60)
    machine.check(
        "cd /mnt; for n in 1 2 3 4; do mkdir d$n; "
        "dd if=/dev/urandom of=d$n/large bs=64k count=$((8 * n)) conv=fsync 2>/dev/null; "
        "for m in 1 2 3 4 5 6 7 8; do head -c $((n * m * 500)) /dev/urandom >d$n/small$m; done; "
        "done; sha256sum d*/* >sums; sync",
        timeout=60,
    )


def whole(machine: Machine, path: str) -> None:
    """The files of ``make`` are all there, read from the disk, and the file system is in order."""
    machine.check("umount /mnt 2>/dev/null; echo 3 >/proc/sys/vm/drop_caches; mkdir -p /mnt")
    machine.check(f"mount -t ext4 {path} /mnt && cd /mnt && sha256sum -c -s sums", timeout=60)
    assert machine.check("wc -l </mnt/sums").strip() == "36"
    machine.check(f"umount /mnt && e2fsck -f -n {path}", timeout=60)


def test_a_file_system(drive: Disk) -> None:
    make(drive.machine, drive.wait())
    whole(drive.machine, drive.wait())
    # Room that is free again goes back to the store.
    drive.machine.check(f"mount -o discard {drive.wait()} /mnt; rm -r /mnt/d*; fstrim -v /mnt")
    drive.machine.check(f"umount /mnt && e2fsck -f -n {drive.wait()}", timeout=60)


def test_files_survive_resets_while_they_are_written(drive: Disk) -> None:
    machine = drive.machine
    make(machine, drive.wait())
    machine.check(
        "(dd if=/dev/urandom of=/more bs=1M count=6; cp /more /mnt; sync; echo done >/more.done) "
        ">/dev/null 2>&1 & sleep 0.5"
    )
    for path in (f"class/nvme/{drive.controller}/reset_controller",) * 2:
        machine.check(f"echo 1 >/sys/{path}; sleep 0.3")
    machine.check(f"echo 1 >/sys/bus/pci/devices/{drive.address}/reset")
    machine.check("until [ -e /more.done ]; do usleep 50000; done; rm /more.done", timeout=60)
    machine.check("echo 3 >/proc/sys/vm/drop_caches; cmp /more /mnt/more")
    whole(machine, drive.wait())


@pytest.mark.timeout(240)
def test_reboots_under_load(nvme_lab: NvmeLab) -> None:
    """Each way, with both VDEVs at work; the files are as they were."""
    server, machine = nvme_lab.server, nvme_lab.machine
    disk.load(machine)
    files, busy = (nvme_lab.disk(mode) for mode in MODES)
    make(machine, files.wait())
    machine.check("umount /mnt")
    for index, how in enumerate(WAYS):
        command = fio.prepare(machine, busy.wait(), [LOAD], time_based=1, runtime=3600)
        machine.check(f"{command} >/dev/null 2>&1 & sleep 1")
        if index == 2:  # with a file being written
            machine.check(f"mount {files.wait()} /mnt; cat /dev/urandom >/mnt/more & sleep 0.2")
        resets = server.show("direct")["counters"]["resets"]
        machine.reboot(how)
        assert server.show("direct")["counters"]["resets"] > resets
        # That of the firmware, which looks for something to boot from.
        assert all(len(server.show(mode)["queues"]) <= 1 for mode in MODES)
        disk.load(machine)
        machine.check(f"mkdir -p /mnt; mount {files.wait()} /mnt; rm -f /mnt/more; umount /mnt")
        whole(machine, files.wait())


def test_removal_under_load(drive: Disk) -> None:
    """Unbound, and removed from the bus: QEMU 11.1 can do no more (README, Limits).
    Programs see its end at once, nothing hangs, the disk is as it was."""
    machine, path = drive.machine, drive.wait()
    make(machine, path)
    machine.check("umount /mnt")
    away = (
        (f"echo {drive.address} >{DRIVER}/unbind", f"echo {drive.address} >{DRIVER}/bind"),
        (
            f"echo 1 >/sys/bus/pci/devices/{drive.address}/remove",
            "echo 1 >/sys/bus/pci/rescan",
        ),
    )
    for go, come in away:
        machine.check(
            f"(dd if={drive.wait()} of=/dev/null bs=4k iflag=direct; touch /ended) >/said 2>&1 & "
            "sleep 0.5"
        )
        machine.check(go)
        machine.check("until [ -e /ended ]; do usleep 50000; done; rm /ended", timeout=30)
        assert f"{SIZE // 4096}+0 records" not in machine.check("cat /said")
        assert drive.server.show(drive.name)["queues"] == []
        machine.check(come)
        whole(machine, drive.wait())


def own_guest(
    serve: Serve, boot: Boot, environment: Environment, store: Path, **more: Any
) -> tuple[Server, Machine]:
    """A server and a guest, with VDEV ``disk0`` in the file ``store``, and those of ``more``."""
    parents: dict[str, Any] = {
        "nvme0": {"model": "nvme", "store": f"file:{store}", "size": "128M"},
        "nvme1": {"model": "nvme", "store": "ram:64M"},
    }
    vdevs = {"disk0": {"type": "nvme", "parent": "nvme0", "size": "96M"}, **more}
    server = serve(vdevs, parents)
    devices = [argument for name in vdevs for argument in vfio_user(server.socket(name))]
    machine = boot(devices, cpus=2, **disk.machine_options(environment))
    disk.load(machine)
    return server, machine


@pytest.mark.timeout(240)
def test_the_server_is_killed_after_a_flush(
    serve: Serve, boot: Boot, environment: Environment, tmp_path: Path
) -> None:
    """What fsync has returned from is in the file, whatever was under way at the time."""
    server, machine = own_guest(serve, boot, environment, tmp_path / "store.img")
    lab = NvmeLab(server, machine, tmp_path / "store.img", ("disk0",))
    make(machine, lab.disk("disk0").wait())
    machine.check("cat /dev/urandom >/mnt/more 2>/dev/null & sleep 0.5")
    server.kill()
    machine.stop()
    server.start()
    machine.start()
    disk.load(machine)
    path = lab.disk("disk0").wait()
    machine.check(f"mkdir -p /mnt; mount -t ext4 {path} /mnt; rm -f /mnt/more; umount /mnt")
    whole(machine, path)


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=24M", "none", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"only root can mount a small file system: {done.stderr}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.timeout(240)
def test_a_store_that_is_full_cut_short_or_deleted(
    serve: Serve, boot: Boot, environment: Environment, small: Path
) -> None:
    """The guest hears of errors, and goes on; the other disk does not hear of anything."""
    store = small / "store.img"
    server, machine = own_guest(
        *(serve, boot, environment, store), disk1={"type": "nvme", "parent": "nvme1", "size": "32M"}
    )
    lab = NvmeLab(server, machine, store, ("disk0", "disk1"))
    full, other = lab.disk("disk0"), lab.disk("disk1")
    make(machine, other.wait())
    machine.check("umount /mnt")
    path = full.wait()
    kept = disk.write(machine, path, 0, 8)
    said = machine.run(f"dd if=/dev/urandom of={path} bs=1M seek=8 count=64 oflag=direct 2>&1", 60)
    assert said.status and "No space left on device" in said.output
    assert disk.read(machine, path, 8) == kept
    refused = machine.run(f"nvme format /dev/{full.controller}n1 -l 1 -f", 60)
    assert (refused.status == 0) == (server.show("disk0")["namespaces"][0]["block_size"] == 4096)
    whole(machine, other.wait())

    os.truncate(store, 1 << 20)
    machine.check(f"dd if={full.wait()} bs=1M count=8 iflag=direct 2>/dev/null | wc -c")
    store.unlink()
    written = disk.write(machine, full.wait(), 0, 8)
    assert disk.read(machine, full.wait(), 8) == written
    whole(machine, other.wait())
    assert "blocked for more" not in machine.check("dmesg")
