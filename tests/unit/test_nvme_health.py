"""What SMART counts lasts as long as the disk does (NVM Express 1.4, 5.14.1.2)."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Any

import pytest
from nvme_vdev import Machine

from vdcm.errors import VdcmError
from vdcm.parent import build
from vdcm_devices.nvme import Nvme

NAMES = {
    32: "read",
    48: "written",
    64: "reads",
    80: "writes",
    112: "cycles",
    144: "unsafe",
    160: "media",
    176: "errors",
}


def parent(path: Path) -> Nvme:
    return build(Nvme, "nvme0", {"store": f"file:{path}", "size": "4M"})


def health(nvme: Machine) -> dict[str, int]:
    data = nvme.log(2, 512)
    return {name: int.from_bytes(data[at : at + 16], "little") for at, name in NAMES.items()}


def work(nvme: Machine) -> None:
    """Two writes, three reads, and a command that there is not."""
    nvme.enable()
    queue = nvme.create_queue(1)
    for _ in range(2):
        nvme.write(queue, 0, bytes(4096))
    for _ in range(3):
        nvme.read(queue, 0, 8)
    assert nvme.io(queue, 0x7F).status == 0x001


ONCE = {"read": 1, "written": 1, "reads": 3, "writes": 2, "media": 0, "errors": 1}


@pytest.mark.parametrize("clean", [False, True])
def test_counts_are_found_again(tmp_path: Path, clean: bool) -> None:
    path = tmp_path / "store.img"
    for life in range(1, 4):
        owner = parent(path)
        nvme = Machine(owner, "a")
        work(nvme)
        expected = {name: number * life for name, number in ONCE.items()}
        expected.update(read=-(-life * 3 * 4096 // 512_000), written=1)
        unsafe = 0 if clean else life - 1
        assert health(nvme) == {**expected, "cycles": life, "unsafe": unsafe}
        # The error log's numbers go on, too (5.14.1.1).
        assert int.from_bytes(nvme.log(1, 64)[:8], "little") == life
        if clean:
            nvme.shut_down()
        nvme.close()
        owner.close()


def test_a_server_that_is_killed_is_an_unsafe_shutdown(tmp_path: Path) -> None:
    path, copy = tmp_path / "store.img", tmp_path / "copy.img"
    owner = parent(path)
    nvme = Machine(owner, "a")
    work(nvme)
    shutil.copy(path, copy)  # what the table says at this moment
    nvme.shut_down()
    shutil.copy(path, tmp_path / "after.img")
    nvme.close()
    owner.close()
    for name, unsafe in (("copy.img", 1), ("after.img", 0)):
        owner = parent(tmp_path / name)
        nvme = Machine(owner, "a")
        nvme.enable()
        assert health(nvme)["unsafe"] == unsafe
        nvme.shut_down()
        nvme.close()
        owner.close()


def test_who_comes_after_an_undefined_one_begins_at_nothing(tmp_path: Path) -> None:
    owner = parent(tmp_path / "store.img")
    nvme = Machine(owner, "a")
    work(nvme)
    nvme.close()
    owner.forget("a")
    nvme = Machine(owner, "a")
    nvme.enable()
    assert health(nvme) == {**dict.fromkeys(NAMES.values(), 0), "cycles": 1}
    nvme.close()
    owner.close()


def test_a_guest_that_is_never_quiet_does_not_fill_the_server(tmp_path: Path) -> None:
    """Each shutdown has the counts written, but never more than two at a time."""

    async def run() -> None:
        owner = parent(tmp_path / "store.img")
        nvme = Machine(owner, "a")
        store, asked = owner.driver.store, 0
        start = store.jobs.start

        def counted(work: Any, done: Any) -> None:
            nonlocal asked
            asked += 1
            start(work, done)

        store.jobs.start = counted  # type: ignore[method-assign]
        for number in range(500):
            store.keep("a", {"errors": number})
        assert asked == 1
        while store._keeping:
            await asyncio.sleep(0.001)
        assert asked == 2
        nvme.close()
        owner.close()

    asyncio.run(run())
    owner = parent(tmp_path / "store.img")
    assert owner.driver.store.slices.counts["a"]["power_cycles"] == 1
    owner.close()


def test_counts_that_cannot_be_are_refused(tmp_path: Path) -> None:
    for wrong in ({"a": {"errors": -1}}, {"a": {"errors": "1"}}, {"a": 1}, []):
        path = tmp_path / "store.img"
        path.unlink(missing_ok=True)
        owner = parent(path)
        owner.driver.store.slices.counts = wrong  # type: ignore[assignment]
        owner.driver.store.slices.save()
        owner.close()
        with pytest.raises(VdcmError, match="its table is damaged"):
            parent(path)
