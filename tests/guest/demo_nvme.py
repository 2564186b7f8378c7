"""The demo's fourth part: Linux's own nvme in the guest, with a file system on a virtual disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.guest import disk
from vdcm.environment import Environment
from vdcm.testing import Machine, Server

NAME = "disk0"
VDEVS = {NAME: {"type": "nvme", "parent": "disks", "size": "256M"}}
SIZE = 16 << 20  # bytes of the file that is written
TOOLS = ("mke2fs", "nvme")
Say = Callable[[str, str], None]
Expect = Callable[[str, object, object], None]


def parents(folder: Path) -> dict[str, dict[str, Any]]:
    """For the Server: a store in ``folder``."""
    return {"disks": {"model": "nvme", "store": f"file:{store(folder)}", "size": "1G"}}


def store(folder: Path) -> Path:
    return folder / "disks.img"


def files(environment: Environment) -> dict[str, Path]:
    """For the Machine: what mke2fs reads."""
    files: dict[str, Path] = disk.machine_options(environment)["files"]
    return files


def show_file_system(server: Server, machine: Machine, say: Say, expect: Expect) -> None:
    """Made, mounted, written, mounted again and read."""
    disk.load(machine)
    path = disk.NvmeLab(server, machine, store(server.folder), (NAME,)).disk(NAME).wait()

    def do(command: str) -> str:
        said = machine.check(command, timeout=60).strip()
        say("guest", f"# {command}\n{said}".strip())
        return said

    do("nvme list-subsys")
    do(f"/bin/mke2fs -q -t ext4 {path} && mkdir /mnt && mount -t ext4 {path} /mnt")
    written = do(f"head -c {SIZE} /dev/urandom >/mnt/data && sync && sha256sum /mnt/data")
    do("umount /mnt && echo 3 >/proc/sys/vm/drop_caches")
    found = do(f"mount -t ext4 {path} /mnt && sha256sum /mnt/data && umount /mnt")
    expect("what is read", found, written)
    queues = server.show(NAME)["queues"]
    file = store(server.folder)
    say(
        "vdcm",
        f"{NAME}: {len(queues)} queue pairs, as many as CPUs; {file.name} is "
        f"{file.stat().st_size >> 20} MiB long, {file.stat().st_blocks >> 11} of them written",
    )
