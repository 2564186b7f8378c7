"""Stores that cannot be had, and that fail: said where it happens, and nobody else's concern."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from loop_device import loop_device
from nvme_client import NvmeClient
from nvme_host import FLUSH, WRITE_ZEROES, NvmeFailure

from vdcm.testing import Server, ServerError

MIB = 1 << 20
CAPACITY_EXCEEDED = 0x081


def serving(folder: Path, store: Path) -> Server:
    """Two parents, ``full`` in the file and ``other`` in memory, each with a VDEV."""
    parents = {
        "full": {"model": "nvme", "store": f"file:{store}", "size": "64M"},
        "other": {"model": "nvme", "store": "ram:64M"},
    }
    vdevs = {name: {"type": "nvme", "parent": name, "size": "32M"} for name in parents}
    return Server(folder, vdevs, parents, trace=False)


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB, which can be made read-only."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=8M", "none", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"only root can mount a small file system: {done.stderr}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def started(server: Server, name: str) -> NvmeClient:
    nvme = NvmeClient(server.socket(name))
    nvme.start()
    return nvme


def test_a_full_file_system(tmp_path: Path, small: Path) -> None:
    store = small / "store.img"
    data = os.urandom(128 << 10)
    with (
        serving(tmp_path, store) as server,
        started(server, "full") as full,
        started(server, "other") as other,
    ):
        written = 0
        with pytest.raises(NvmeFailure) as refused:
            for block in range(0, 32 * MIB // 512, 256):
                with full.borrowed():
                    full.write(full.queue, block, data)
                written += 1
        assert refused.value.status == CAPACITY_EXCEEDED
        assert 6 * MIB < written * len(data) < 8 * MIB
        for block in range(written):
            with full.borrowed():
                assert full.read(full.queue, 256 * block, 256) == data
        with full.borrowed():  # what has a place already
            full.write(full.queue, 0, data[::-1])
            assert full.read(full.queue, 0, 256) == data[::-1]
        assert full.io(full.queue, FLUSH).status == 0
        other.write(other.queue, 0, data)
        assert other.read(other.queue, 0, 256) == data

        # What is given back has room for others.
        assert (
            full.io(full.queue, WRITE_ZEROES, cdw10=0, cdw12=1 << 25 | 4095).status == 0
        )  # Deallocate
        with full.borrowed():
            full.write(full.queue, 256 * written, data)


def test_a_file_that_is_deleted_or_cut_short_while_it_is_used(tmp_path: Path) -> None:
    store = tmp_path / "store.img"
    data = os.urandom(128 << 10)
    with (
        serving(tmp_path, store) as server,
        started(server, "full") as nvme,
    ):
        nvme.write(nvme.queue, 0, data)
        os.truncate(store, 0)
        assert nvme.read(nvme.queue, 0, 256) == bytes(len(data))
        nvme.write(nvme.queue, 0, data)
        store.unlink()
        assert nvme.read(nvme.queue, 0, 256) == data
        assert nvme.io(nvme.queue, FLUSH).status == 0


def refused(folder: Path, store: Path) -> str:
    """What a server says that ends because it cannot have this store."""
    with pytest.raises(ServerError) as caught:
        serving(folder, store).start()
    assert "Traceback" not in str(caught.value)
    return " ".join(str(caught.value).split())


def test_a_file_that_another_server_uses(tmp_path: Path) -> None:
    store = tmp_path / "store.img"
    with (
        serving(tmp_path, store) as server,
        started(server, "full") as nvme,
    ):
        assert f"{store} is in use by another server" in refused(tmp_path / "second", store)
        nvme.write(nvme.queue, 0, bytes(512))


def test_a_file_that_may_not_be_written(tmp_path: Path, small: Path) -> None:
    store = small / "store.img"
    store.write_bytes(bytes(4 * MIB))
    subprocess.run(["mount", "-o", "remount,ro", str(small)], check=True)
    said = refused(tmp_path / "second", store)
    assert f"{store} cannot be opened: Read-only file system" in said


def test_a_block_device_as_store(tmp_path: Path) -> None:
    file = tmp_path / "device.img"
    with file.open("wb") as made:
        made.truncate(32 * MIB)
    data = os.urandom(128 << 10)
    with loop_device(file) as device:
        vdevs = {name: {"type": "nvme", "size": "8M"} for name in ("disk0", "disk1")}
        parents = {"nvme0": {"model": "nvme", "store": f"device:{device}"}}
        with Server(tmp_path, vdevs, parents, trace=False) as server:
            for shutdown in (False, True):
                with started(server, "disk0") as nvme, started(server, "disk1") as other:
                    assert nvme.namespace_blocks() == 8 * MIB // 512
                    nvme.write(nvme.queue, 1000, data)
                    other.write(other.queue, 1000, data[::-1])
                    assert nvme.io(nvme.queue, FLUSH).status == 0
                    assert data in file.read_bytes()
                    if shutdown:
                        nvme.shut_down()
                    else:
                        server.kill()
                        server.start()
                with started(server, "disk0") as nvme:
                    assert nvme.read(nvme.queue, 1000, 256) == data
        parents["nvme0"]["size"] = "64M"
        with pytest.raises(ServerError, match="do not fit"):
            Server(tmp_path / "larger", vdevs, parents, trace=False).start()
