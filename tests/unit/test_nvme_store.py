"""The store of an NVMe parent: what there may be, who has which part of it, and for how long."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nvme_host import FORMAT
from nvme_vdev import Machine

from vdcm.definition import load
from vdcm.errors import DefinitionError, ResourceError, VdcmError
from vdcm.manager import Manager
from vdcm.parent import build
from vdcm.properties import PropertyError
from vdcm.store import Store as Definitions
from vdcm_devices.nvme import Nvme
from vdcm_devices.nvme.jobs import Jobs
from vdcm_devices.nvme.sizes import parse_size, say_size
from vdcm_devices.nvme.slices import ALIGNMENT, TABLE_SIZE, UNIT, Slices

MIB = 1 << 20


def parent(store: str, **properties: Any) -> Nvme:
    return build(Nvme, "nvme0", {"store": store, **properties})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.img"


@pytest.fixture
def table(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    os.ftruncate(fd, TABLE_SIZE)
    yield fd
    os.close(fd)


# Sizes


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4096", 4096),
        (4096, 4096),
        ("1K", 1024),
        ("512M", 512 * MIB),
        ("3GiB", 3 << 30),
        ("2t", 2 << 40),
    ],
)
def test_sizes(text: object, size: int) -> None:
    assert parse_size(text) == size
    assert parse_size(say_size(size)) == size


@pytest.mark.parametrize(
    "text", ["", "M", "1.5G", "-1", -1, "1P", "9" * 30, 1 << 70, None, True, 1.0]
)
def test_no_sizes(text: object) -> None:
    with pytest.raises(ValueError, match="a size"):
        parse_size(text)


# What a definition may say


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("store: 5", "store takes text, not 5: write it in quotes"),
        ("store: tape:/dev/st0", "store takes ram:SIZE, file:PATH or device:PATH"),
        ("store: 'ram:'", "store takes ram:SIZE, file:PATH or device:PATH"),
        ("store: ram:lots", "store: ram: takes a size such as"),
        ("store: ram:0", "takes a size above 0"),
        ("store: file:disk.img", "the whole path, beginning with /"),
        ("store: file:/nowhere/at/all.img", "there is no folder /nowhere/at"),
        ("store: file:/tmp", "/tmp is no file"),
        ("store: device:/dev/null", "/dev/null is no block device"),
        ("size: 5000", "size takes a multiple of 4096, not 5000"),
        ("size: huge", "size takes a size such as"),
    ],
)
def test_a_wrong_parent_is_said_with_its_line(tmp_path: Path, line: str, said: str) -> None:
    file = tmp_path / "vdcm.yaml"
    file.write_text(f"parents:\n  nvme0:\n    model: nvme\n    {line}\nvdevs: {{}}\n")
    with pytest.raises(DefinitionError, match=re.escape(said)) as caught:
        load(file)
    assert (caught.value.line, caught.value.file) == (4, file)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("size: 1000", "size takes a multiple of 4096"),
        ("size: 0", "size takes 4K or more"),
        ("block_size: 1024", "block_size takes 512 or 4096, not 1024"),
        ("queues: 65", "queues takes 1 to 64"),
        ("queues: 0", "queues takes 1 to 64"),
        ("doorbells: fast", "doorbells takes shadow or direct"),
        ("namespaces: 0", "namespaces takes 1 to"),
    ],
)
def test_a_wrong_vdev_is_said_with_its_line(tmp_path: Path, line: str, said: str) -> None:
    file = tmp_path / "vdcm.yaml"
    file.write_text(f"vdevs:\n  disk0:\n    type: nvme\n    {line}\n")
    with pytest.raises(DefinitionError, match=re.escape(said)) as caught:
        load(file)
    assert caught.value.line == 4


def test_sizes_are_numbers_or_text(tmp_path: Path) -> None:
    file = tmp_path / "vdcm.yaml"
    file.write_text("vdevs:\n  a: {type: nvme, size: 8192}\n  b: {type: nvme, size: 8K}\n")
    assert [vdev.properties["size"] for vdev in load(file).vdevs] == [8192, "8K"]


# Files


def test_a_file_is_made_as_a_hole_and_its_data_is_found_again(path: Path) -> None:
    first = parent(f"file:{path}", size="1G")
    assert path.stat().st_size == (1 << 30) + TABLE_SIZE
    assert path.stat().st_blocks * 512 < 4 * MIB
    machines = [Machine(first, name, size="64M", namespaces=2) for name in ("a", "b")]
    facts = [machine.vdev.facts() for machine in machines]
    machines[1].enable()
    machines[1].expect(FORMAT, nsid=2, cdw10=1)
    places = [
        one["offset"] for machine in machines for one in machine.vdev.all_namespaces.describe()
    ]
    assert places == [0, 64 * MIB, 128 * MIB, 192 * MIB]
    for machine in machines:
        machine.close()
    first.close()
    # By name, whoever comes first.
    second = parent(f"file:{path}")
    again = [Machine(second, name, size="64M", namespaces=2) for name in ("b", "a")][::-1]
    assert [machine.vdev.facts() for machine in again] == facts
    assert [
        one["offset"] for machine in again for one in machine.vdev.all_namespaces.describe()
    ] == places
    again[1].enable()
    assert [again[1].identify(0, nsid)[26] for nsid in (1, 2)] == [0, 1]
    for machine in again:
        machine.close()
    second.close()


def test_a_file_belongs_to_one_parent(path: Path) -> None:
    first = parent(f"file:{path}", size="1M")
    with pytest.raises(VdcmError, match="is in use by another server or parent"):
        parent(f"file:{path}")
    first.close()
    parent(f"file:{path}").close()


@pytest.mark.parametrize(
    ("size", "content", "said"),
    [
        ("", None, "is not there: say how large it is to be with size:"),
        ("", b"", "which is too small: say how large with size:"),
        ("", b"\0" * TABLE_SIZE, "which is too small"),
        ("1M", b"important" * 1000, "holds something else, which would be lost"),
    ],
)
def test_a_file_that_cannot_be_a_store(
    path: Path, size: str, content: bytes | None, said: str
) -> None:
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(VdcmError, match=said):
        parent(f"file:{path}", size=size)
    if content is not None:
        assert path.read_bytes()[: len(content)] == content


def test_a_file_of_zeros_is_taken_and_grows(path: Path) -> None:
    path.write_bytes(bytes(TABLE_SIZE + 8 * MIB))
    first = parent(f"file:{path}")
    assert first.driver.store.slices.room == 8 * MIB
    first.close()
    second = parent(f"file:{path}", size="16M")
    assert second.driver.store.slices.room == 16 * MIB
    second.close()


# Slices


def test_there_is_only_so_much() -> None:
    owner = parent("ram:4M")
    first = owner.create("nvme", "a", {"size": "3M"})
    with pytest.raises(ResourceError, match="has no 2M in one piece left for b"):
        owner.create("nvme", "b", {"size": "2M"})
    with pytest.raises(ResourceError, match="has no 1M in one piece left for b"):
        owner.create("nvme", "b", {"size": "1M", "namespaces": 2})
    second = owner.create("nvme", "b", {"size": "1M"})
    for vdev in (first, second):
        vdev.close()
    assert not owner.driver.adis
    # Who was stopped keeps what it has.
    with pytest.raises(ResourceError):
        owner.create("nvme", "c", {"size": "1M"})
    owner.forget("a")
    third = owner.create("nvme", "c", {"size": "2M"})
    third.close()
    owner.close()


def test_another_size_is_refused() -> None:
    owner = parent("ram:16M")
    owner.create("nvme", "a", {"size": "4M"}).close()
    with pytest.raises(VdcmError, match="a has 1 of 4M in ram:16M and is now to have 1 of 8M"):
        owner.create("nvme", "a", {"size": "8M"})
    with pytest.raises(VdcmError, match="is now to have 2 of 4M"):
        owner.create("nvme", "a", {"size": "4M", "namespaces": 2})
    owner.create("nvme", "a", {"size": 4 * MIB}).close()
    owner.close()


@settings(max_examples=100)
@given(
    wishes=st.lists(
        st.tuples(st.sampled_from("abcdef"), st.integers(1, 3), st.integers(1, 2000)), max_size=30
    )
)
def test_slices_never_overlap(wishes: list[tuple[str, int, int]]) -> None:
    """Each wish makes a VDEV's slices, or, if it has some, gives them back."""
    slices = Slices("store", 12 * MIB)
    for owner, count, pages in wishes:
        if slices.of(owner):
            for one in slices.give_up(owner):
                slices.remove(one)
            continue
        try:
            slices.have(owner, count, pages * UNIT, 9)
        except ResourceError:
            assert not slices.of(owner)
            assert sum(one.bytes for one in slices) + count * pages * UNIT > 0
        end = 0
        for one in slices:
            assert one.offset >= end and one.offset % ALIGNMENT == 0
            end = one.offset + one.bytes
        assert end <= slices.room


def test_the_table_survives_a_torn_write(table: int) -> None:
    slices = Slices("store", 64 * MIB, table)
    slices.have("a", 1, MIB, 9)
    before = [one.uuid for one in slices]
    slices.have("b", 1, MIB, 12)
    after = [one.uuid for one in slices]
    assert [one.uuid for one in Slices("store", 64 * MIB, table)] == after
    # The copy that was written last is the third: at the second half.
    for at in range(0, 200, 7):
        whole = os.pread(table, 200, TABLE_SIZE // 2)
        os.pwrite(table, bytes([whole[at] ^ 0x55]), TABLE_SIZE // 2 + at)
        assert [one.uuid for one in Slices("store", 64 * MIB, table)] == before
        os.pwrite(table, whole, TABLE_SIZE // 2)
    again = Slices("store", 64 * MIB, table)
    again.have("c", 1, MIB, 9)
    assert len(list(Slices("store", 64 * MIB, table))) == 3


@pytest.mark.parametrize(
    ("change", "value"),
    [
        ("offset", 1),
        ("offset", -ALIGNMENT),
        ("offset", 64 * MIB),
        ("bytes", 100),
        ("bytes", 1 << 70),
        ("block_shift", 10),
        ("owner", None),
        ("uuid", "x"),
        ("erase", 1),
        ("number", "1"),
        ("other", 1),
    ],
)
def test_a_damaged_table_is_refused(table: int, change: str, value: object) -> None:
    slices = Slices("store", 64 * MIB, table)
    one = slices.have("a", 1, MIB, 9)[0]
    setattr(one, change, value)
    if change == "other":
        slices._slices = [*slices, *slices]  # two of one place
    slices.save()
    with pytest.raises(VdcmError, match="its table is damaged"):
        Slices("store", 64 * MIB, table)


def test_a_smaller_store_is_refused(path: Path) -> None:
    owner = parent(f"file:{path}", size="8M")
    owner.create("nvme", "a", {"size": "8M"}).close()
    owner.close()
    with pytest.raises(VdcmError, match="beyond the store"):
        parent(f"file:{path}", size="4M")


# What is given back is erased


def test_what_was_undefined_is_zeros_for_the_next(path: Path) -> None:
    owner = parent(f"file:{path}", size="4M")
    owner.create("nvme", "a", {"size": "4M"}).close()
    with path.open("r+b") as file:
        file.seek(TABLE_SIZE)
        file.write(b"secret" * 1000)
    owner.forget("a")
    assert not any(path.read_bytes()[TABLE_SIZE:])
    assert owner.driver.store.slices.free == 4 * MIB
    owner.close()


def test_erasing_goes_on_where_the_server_ended(path: Path, table: int) -> None:
    slices = Slices("store", 4 * MIB, table)
    slices.have("a", 1, MIB, 9)
    slices.have("b", 1, MIB, 9)[0].erase = True  # in the middle of a format
    slices.give_up("a")
    slices.save()
    os.ftruncate(table, TABLE_SIZE + 4 * MIB)
    os.pwrite(table, b"\xff" * 2 * MIB, TABLE_SIZE)
    owner = parent(f"file:{path}")
    assert [one.owner for one in owner.driver.store.slices] == ["b"]
    machine = Machine(owner, "b", size="1M")
    assert machine.vdev.all_namespaces[1].ready
    machine.close()
    assert not any(path.read_bytes()[TABLE_SIZE:])
    owner.close()
    assert not any(one.erase for one in Slices("store", 4 * MIB, table))


def test_undefining_frees_and_stopping_does_not(tmp_path: Path) -> None:
    async def run() -> None:
        manager = Manager(Definitions(tmp_path / "state"))
        file = tmp_path / "vdcm.yaml"
        file.write_text("parents:\n  n: {model: nvme, store: 'ram:8M'}\nvdevs: {c: {type: nvme}}\n")
        manager.adopt(load(file))
        for name in ("a", "b"):
            socket = str(tmp_path / f"{name}.sock")
            properties = {"size": "4M"}
            manager.define(
                [
                    {
                        "name": name,
                        "type": "nvme",
                        "parent": "n",
                        "socket": socket,
                        "properties": properties,
                    }
                ]
            )
            manager.start(name)
        store = manager.parents["n"].driver.store  # type: ignore[union-attr]
        manager.stop("a")
        assert store.slices.free == 0
        manager.undefine("b")  # while it is started: it goes when it is stopped
        assert store.slices.free == 0
        manager.stop("b")
        manager.undefine("a")
        while store.slices.free < 8 * MIB:
            await asyncio.sleep(0.01)
        manager.close()

    asyncio.run(run())


def test_format_beside_the_event_loop() -> None:
    async def run() -> None:
        nvme = Machine()
        nvme.enable()
        cid = nvme.submit(nvme.admin_queue, FORMAT, nsid=1, cdw10=1)
        # Until it is done there is no namespace, but all else goes on.
        assert not nvme.completed(nvme.admin_queue, cid)
        assert nvme.admin(FORMAT, nsid=1).status == 0x082
        while not nvme.completed(nvme.admin_queue, cid):
            await asyncio.sleep(0.001)
        assert nvme.wait(nvme.admin_queue, cid).status == 0
        assert nvme.identify(0, 1)[26] == 1
        # Nobody is told after a reset, and it is formatted all the same.
        nvme.submit(nvme.admin_queue, FORMAT, nsid=1)
        nvme.disable()
        nvme.enable()
        while not nvme.vdev.all_namespaces[1].ready:
            await asyncio.sleep(0.001)
        assert nvme.identify(0, 1)[26] == 0
        # Nor is anything left of it when the VDEV is closed.
        nvme.submit(nvme.admin_queue, FORMAT, nsid=1)
        nvme.close()
        await asyncio.sleep(0.05)

    asyncio.run(run())


@pytest.mark.parametrize("saves", [0, 1])
def test_a_table_that_cannot_be_written_while_a_namespace_is_formatted(
    path: Path, saves: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``saves``: those that succeed before one that does not. Before the erasing all is as it was;
    after it there is no namespace until it is formatted again."""
    owner = parent(f"file:{path}", size="4M")
    nvme = Machine(owner, "a")
    nvme.enable()
    queue = nvme.create_queue(1)
    nvme.write(queue, 0, b"x" * 512)
    left, pwritev = saves, os.pwritev

    def full(fd: int, data: list[bytes], at: int, flags: int) -> int:
        nonlocal left
        left -= 1
        return pwritev(fd, data if left >= 0 else [data[0][:20]], at, flags)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwritev", full)
        assert nvme.admin(FORMAT, nsid=1, cdw10=1).status == 0x006
    assert nvme.vdev.all_namespaces[1].ready == (saves == 0)
    if saves == 0:
        assert nvme.identify(0, 1)[26] == 0
        assert nvme.read(queue, 0, 1) == b"x" * 512
    # What a restart would find.
    with path.open("r+b") as file:
        kept = [(one.block_shift, one.erase) for one in Slices("store", 4 * MIB, file.fileno())]
    assert kept == [(9, False) if saves == 0 else (12, True)]
    assert nvme.admin(FORMAT, nsid=1, cdw10=1).status == 0
    nvme.block_size = 4096
    assert nvme.read(queue, 0, 1) == bytes(4096)
    nvme.close()
    owner.close()


def test_shutdown_beside_the_event_loop() -> None:
    async def run() -> None:
        nvme = Machine()
        nvme.enable()
        nvme.set_register(0x14, nvme.register(0x14) | 1 << 14)
        assert nvme.register(0x1C) >> 2 & 3 == 1
        while nvme.register(0x1C) >> 2 & 3 != 2:
            await asyncio.sleep(0.001)
        nvme.close()

    asyncio.run(run())


def test_jobs_say_what_went_wrong() -> None:
    jobs = Jobs()
    heard: list[str] = []

    def fail() -> None:
        raise VdcmError("as ordered")

    jobs.start(fail, lambda error: heard.append(str(error)))
    jobs.start(lambda: None, lambda error: heard.append(str(error)))
    assert heard == ["as ordered", "None"]
    jobs.close()
    jobs.start(fail, lambda error: heard.append(str(error)))
    assert len(heard) == 2


def test_properties_are_checked_when_they_are_set() -> None:
    with pytest.raises(PropertyError, match="block_size takes 512 or 4096"):
        parent("ram:1M").create("nvme", "a", {"size": "1M", "block_size": 2048})
