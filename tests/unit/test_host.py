"""The host driver: each row of Table 4-1, on ADIs of a small device with C of its own."""

from __future__ import annotations

import gc
import json
import mmap
import os
import time
from collections.abc import Callable, Iterator

import pytest
from probe_driver import ProbeDriver

from vdcm import dma
from vdcm.adi import Adi, AdiState
from vdcm.errors import DmaError, ResourceError, StateError, VdcmError
from vdcm.parent import build
from vdcm.pasid import PASIDS
from vdcm.properties import PropertyError
from vdcm_devices.avf import Avf
from vdcm_devices.dsa import Dsa
from vdcm_devices.nvme import Nvme

PAGE = mmap.PAGESIZE


@pytest.fixture
def driver() -> Iterator[ProbeDriver]:
    made = ProbeDriver("probe0")
    yield made
    made.close()


class Memory:
    """An address space of some pages, with a PASID."""

    def __init__(self, pages: int = 4) -> None:
        fd = os.memfd_create("memory")
        os.ftruncate(fd, pages * PAGE)
        self.space = dma.PassThrough(fd, pages * PAGE)
        os.close(fd)
        self.pasid = PASIDS.allocate(self.space)

    def close(self) -> None:
        PASIDS.release(self.pasid)


@pytest.fixture
def memory() -> Iterator[Memory]:
    made = Memory()
    yield made
    made.close()


def wait_until(condition: Callable[[], bool], driver: ProbeDriver) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        for sweep in driver._sweeps:
            sweep.look()
        time.sleep(0.001)


def enabled(driver: ProbeDriver, memory: Memory, kind: str = "small", **settings: int) -> Adi:
    adi = driver.allocate(kind, "vdev0")
    driver.configure(adi, **settings)
    driver.set_pasid(adi, memory.pasid)
    driver.set_bus_master(adi, True)
    driver.enable(adi)
    return adi


@pytest.mark.conformance("R2.5.1-2", "R2.5.1-13", "R2.8-19", "R4.1-1", "R4.1-3")
def test_capabilities(driver: ProbeDriver) -> None:
    found = driver.capabilities()
    assert (found.pasid_bits, found.ims, found.channel) == (20, 16, True)
    assert (found.ats, found.pri) == (True, True)
    assert found.page_sizes == (4096,) and found.system_page_size == 4096


@pytest.mark.conformance("R2.1-2", "R2.1-3", "R4.1-4", "R4.4-4")
def test_types_and_how_many_there_can_be(driver: ProbeDriver) -> None:
    assert set(driver.adi_types) == {"small", "large", "shared"}
    assert [driver.maximum(kind) for kind in driver.adi_types] == [8, 2, 1000]
    driver.allocate("large", "a")
    driver.allocate("small", "a")
    assert [driver.available(kind) for kind in driver.adi_types] == [4, 1, 1000]
    assert driver.available("large", "small") == 1
    assert driver.available("small", "small", "small") == 1
    assert [driver.maximum(kind) for kind in driver.adi_types] == [8, 2, 1000]


@pytest.mark.conformance("R2.1-3", "R4.1-5")
def test_requirements_of_each_type(driver: ProbeDriver) -> None:
    assert driver.requirements("large") == {"slots": 3, "buffers": 1, "ims": 2}
    assert driver.requirements("shared") == {"shares": 1}
    with pytest.raises(VdcmError, match=r"probe0 has no ADI type huge \(known: large, shared, sm"):
        driver.requirements("huge")


@pytest.mark.conformance("R4.1-6")
def test_generations(driver: ProbeDriver) -> None:
    assert driver.generation == "2"
    driver.set_generation("1")
    adi = driver.allocate("small", "a")
    driver.set_generation("1")
    with pytest.raises(StateError, match="has 1 ADIs; changing the generation needs it to have no"):
        driver.set_generation("2")
    driver.release(adi)
    with pytest.raises(VdcmError, match=r"has no generation 3 \(known: 2, 1\)"):
        driver.set_generation("3")


@pytest.mark.conformance("R2.1-1", "R4.1-7")
def test_allocation_fails_with_the_reason_and_takes_nothing(driver: ProbeDriver) -> None:
    adis = [driver.allocate("large", f"v{i}") for i in range(2)]
    before = driver.describe()["resources"]
    with pytest.raises(ResourceError, match="no large left for v2: 6 of 8 slots are in use and 3"):
        driver.allocate("large", "v2")
    assert driver.describe()["resources"] == before
    driver.release(adis[0])
    driver.allocate("large", "v2")


def test_interrupt_messages_are_a_resource() -> None:
    driver = ProbeDriver("probe0", messages=2)
    driver.allocate("small", "a")
    assert (driver.maximum("large"), driver.available("large")) == (1, 0)
    with pytest.raises(ResourceError, match="has no large left for b: 1 of 2 ims are in use and 2"):
        driver.allocate("large", "b")
    driver.close()


def test_an_allocation_that_the_device_refuses_gives_all_back(
    driver: ProbeDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_adi: Adi) -> None:
        raise VdcmError("no memory")

    before = driver.describe()["resources"]
    monkeypatch.setattr(driver, "on_allocate", refuse)
    with pytest.raises(VdcmError, match="no memory"):
        driver.allocate("large", "a")
    assert driver.describe()["resources"] == before
    assert not driver.adis


@pytest.mark.conformance("R2.1-1", "R2.2-4", "R2.2-8", "R4.1-7")
def test_the_life_of_an_adi(driver: ProbeDriver, memory: Memory) -> None:
    adi = driver.allocate("small", "vdev0")
    assert adi.state is AdiState.ALLOCATED
    with pytest.raises(StateError, match=r"probe0/small0 has no PASID; enabling needs one"):
        driver.enable(adi)
    driver.set_pasid(adi, memory.pasid)
    driver.enable(adi)
    for what, call in (
        ("enable", lambda: driver.enable(adi)),
        ("configure", lambda: driver.configure(adi, cost=1)),
        ("change the PASID", lambda: driver.set_pasid(adi, None)),
        ("save", lambda: driver.save(adi)),
        ("resume", lambda: driver.resume(adi)),
        ("restore", lambda: driver.restore(adi, b"")),
    ):
        with pytest.raises(StateError, match=rf"is enabled; to {what} it has to be"):
            call()
    driver.disable(adi)
    assert adi.state is AdiState.ALLOCATED
    driver.release(adi)
    driver.release(adi)
    with pytest.raises(StateError, match="is released; to enable"):
        driver.enable(adi)


def test_an_adi_of_another_driver_is_refused(driver: ProbeDriver) -> None:
    other = ProbeDriver("probe1")
    adi = other.allocate("small", "a")
    with pytest.raises(VdcmError, match="probe1/small0 is not an ADI of probe0"):
        driver.reset(adi)
    other.close()


@pytest.mark.conformance("R2.1-5", "R2.3-6")
def test_a_shared_kind_needs_no_pasid_before(driver: ProbeDriver) -> None:
    """2.3: the PASID comes with the work."""
    driver.enable(driver.allocate("shared", "a"))


@pytest.mark.conformance("R2.2-3")
def test_nothing_is_enabled_before_the_pasid_capability(
    driver: ProbeDriver, memory: Memory
) -> None:
    adi = driver.allocate("small", "a")
    driver.set_pasid(adi, memory.pasid)
    driver.function.reset()
    with pytest.raises(StateError, match="the PASID capability is off"):
        driver.enable(adi)


@pytest.mark.conformance("R2.2-5", "R2.2-8", "R4.1-2")
def test_configured_work_is_done_in_its_own_memory(driver: ProbeDriver, memory: Memory) -> None:
    adi = enabled(driver, memory, address=PAGE - 2, length=4, marker=0x5A)
    adi.resource.ring()
    wait_until(lambda: adi.resource.done == 1, driver)
    assert memory.space.read(PAGE - 3, 6) == b"\0ZZZZ\0"
    assert driver.counters(adi)["done"] == 1


def test_without_bus_master_no_memory(driver: ProbeDriver, memory: Memory) -> None:
    adi = enabled(driver, memory, length=4, marker=1)
    driver.set_bus_master(adi, False)
    adi.resource.ring()
    wait_until(lambda: adi.resource.device.errors == 1, driver)
    assert memory.space.read(0, 4) == bytes(4)


@pytest.mark.conformance("R2.2-9", "R2.2-10", "R4.1-8")
def test_pasids_primary_and_secondary(driver: ProbeDriver, memory: Memory) -> None:
    other = Memory()
    adi = driver.allocate("small", "a")
    driver.set_pasid(adi, memory.pasid, other.pasid)
    driver.configure(adi, length=1, marker=9, pasid=0x8000_0001)
    driver.set_bus_master(adi, True)
    driver.enable(adi)
    adi.resource.ring()
    wait_until(lambda: adi.resource.done == 1, driver)
    assert (memory.space.read(0, 1), other.space.read(0, 1)) == (b"\0", b"\x09")
    driver.disable(adi)
    with pytest.raises(DmaError, match="stands for no address space"):
        driver.set_pasid(adi, 0xFFFFF)
    assert adi.pasid == memory.pasid
    driver.release(adi)
    other.close()


@pytest.mark.conformance("R2.6-1", "R2.7-1", "R2.7-2", "R4.1-7")
def test_reset_discards_the_work_of_one_adi_only(driver: ProbeDriver, memory: Memory) -> None:
    first, second = (enabled(driver, memory, cost=1 << 16) for _ in range(2))
    second.resource.ring(50)
    driver.set_qos(first, rate=1)  # so that it has work left
    first.resource.ring(50)
    wait_until(lambda: first.resource.device.accepted == 50, driver)
    driver.reset(first)
    assert first.state is AdiState.ALLOCATED and not first.settings
    assert first.resource.device.aborted > 0
    wait_until(lambda: second.resource.done == 50, driver)
    assert (second.state, second.resource.device.aborted) == (AdiState.ENABLED, 0)
    assert (first.pasid, first.rate) == (memory.pasid, 1)  # the host's assignment


@pytest.mark.conformance("R2.7-10", "R2.7-12")
def test_reset_of_the_function_leaves_no_adi_configured(
    driver: ProbeDriver, memory: Memory
) -> None:
    adis = [enabled(driver, memory) for _ in range(3)]
    driver.reset_function()
    assert {adi.state for adi in adis} == {AdiState.ALLOCATED}
    assert driver.function.pasid_enabled and driver.function.memory_enabled
    driver.enable(adis[0])


@pytest.mark.conformance("R2.7-15", "R4.1-7")
def test_drain_finishes_what_was_accepted(driver: ProbeDriver, memory: Memory) -> None:
    adi = enabled(driver, memory, cost=1 << 16)
    adi.resource.ring(1000)
    done: list[int] = []
    wait_until(lambda: adi.resource.device.accepted == 1000, driver)
    driver.drain(adi, lambda: done.append(adi.resource.done))
    driver.drain(adi, lambda: done.append(adi.resource.done))
    assert adi.state is AdiState.DRAINING
    wait_until(lambda: len(done) == 2, driver)
    assert done == [1000, 1000]
    adi.resource.ring()
    wait_until(lambda: adi.resource.done == 1001, driver)


@pytest.mark.conformance("R4.1-7")
@pytest.mark.parametrize("how", ["abort", "reset", "disable", "release"])
def test_what_ends_an_adi_ends_its_drain(driver: ProbeDriver, memory: Memory, how: str) -> None:
    adi = enabled(driver, memory, cost=1 << 16)
    driver.set_qos(adi, rate=1)
    adi.resource.ring(50)
    wait_until(lambda: adi.resource.device.accepted == 50, driver)
    done: list[bool] = []
    driver.drain(adi, lambda: done.append(True))
    getattr(driver, how)(adi)
    wait_until(lambda: done == [True], driver)


@pytest.mark.conformance("R2.5.1-5", "R4.1-2", "R4.1-9")
def test_messages_come_and_go(driver: ProbeDriver) -> None:
    adi = driver.allocate("small", "a")
    free = driver.ims.free
    entry = driver.allocate_message(adi)
    assert adi.messages[-1] is entry and driver.ims.free == free - 1
    driver.release_message(adi, entry)
    assert driver.ims.free == free
    with pytest.raises(VdcmError, match="has no message"):
        driver.release_message(adi, entry)


@pytest.mark.conformance("R4.1-10")
def test_the_channel_is_opened_for_each_guest(driver: ProbeDriver) -> None:
    assert not driver.channel_enabled("vdev0")
    driver.enable_channel("vdev0")
    assert driver.channel_enabled("vdev0") and not driver.channel_enabled("vdev1")
    driver.disable_channel("vdev0")
    assert not driver.channel_enabled("vdev0")


@pytest.mark.conformance("R2.6-8", "R4.1-11")
def test_qos_is_set_or_refused(driver: ProbeDriver) -> None:
    adi = driver.allocate("small", "a")
    driver.set_qos(adi, weight=7, rate=1000)
    driver.set_qos(adi, weight=9)
    assert (adi.weight, adi.rate) == (9, 1000)
    with pytest.raises(VdcmError, match="a weight is 1 to 255"):
        driver.set_qos(adi, weight=0)
    assert (adi.weight, adi.rate) == (9, 1000)


def test_qos_of_a_vdev_is_that_of_all_its_adis(driver: ProbeDriver) -> None:
    driver.set_vdev_qos("a", weight=7, rate=1000)  # there is none
    first, second, other = (driver.allocate("small", owner) for owner in "aab")
    group = first.path.group
    assert group is not None and group is second.path.group is not other.path.group
    assert (group.weight, group.rate) == (16, 0)
    driver.set_vdev_qos("a", weight=7, rate=1000)
    with pytest.raises(VdcmError, match="a weight is 1 to 255"):
        driver.set_vdev_qos("a", weight=256, rate=0)
    assert (group.weight, group.rate) == (7, 1000)
    driver.release(first)
    assert driver.allocate("small", "a").path.group is group
    for adi in [adi for adi in driver.adis.values() if adi.owner == "a"]:
        driver.release(adi)
    assert driver.allocate("small", "a").path.group is not group


@pytest.mark.conformance("R2.7-14", "R4.1-12")
def test_suspend_save_restore_resume(driver: ProbeDriver, memory: Memory) -> None:
    """Accepted work moves to an ADI of another parent, and nothing is done twice or lost."""
    adi = enabled(driver, memory, cost=1 << 16)
    driver.set_qos(adi, rate=1)
    adi.resource.ring(50)
    wait_until(lambda: adi.resource.device.accepted == 50, driver)
    driver.suspend(adi)
    done = adi.resource.done
    state = driver.save(adi)
    other = ProbeDriver("probe1")
    heir = other.allocate("small", "vdev0")
    other.set_pasid(heir, memory.pasid)
    other.restore(heir, state)
    assert heir.state is AdiState.SUSPENDED and heir.settings == adi.settings
    assert heir.resource.done == done
    other.resume(heir)
    wait_until(lambda: heir.resource.done == 50, other)
    driver.resume(adi)
    assert adi.state is AdiState.ENABLED
    other.close()


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"type": "large"},
        {"generation": "1"},
        {"device": "?"},
        {"device": "QUJD"},
        {"settings": 5},
        {"settings": {"speed": 1}},
        None,
    ],
)
def test_what_is_no_state_is_refused(driver: ProbeDriver, change: dict[str, object] | None) -> None:
    adi = driver.allocate("small", "a")
    state = driver.save(adi)
    bad = b"\xff" if change is None else json.dumps({**json.loads(state), **change}).encode()
    with pytest.raises(VdcmError, match="probe0/small0"):
        driver.restore(adi, bad)
    driver.restore(adi, state)


def test_adis_are_spread_over_the_workers(memory: Memory) -> None:
    driver = ProbeDriver("probe0", workers=2)
    adis = [enabled(driver, memory) for _ in range(4)]
    assert [len(sweep) for sweep in driver._sweeps] == [2, 2]
    for adi in adis:
        adi.resource.ring(3)
    wait_until(lambda: all(adi.resource.done == 3 for adi in adis), driver)
    driver.close()
    driver.close()


def test_the_longest_nap_of_its_sweeps(memory: Memory) -> None:
    driver = ProbeDriver("probe0")
    driver.wake_us = 300
    assert enabled(driver, memory).path.sweep.longest_nap(10**9) == 300_000
    driver.close()


@pytest.mark.parametrize("model", [Avf, Dsa, Nvme])
def test_a_parent_says_how_long_its_sweeps_nap(model: type[Avf | Dsa | Nvme]) -> None:
    for properties, wake_us in (({}, 20_000), ({"wake_us": 50}, 50), ({"wake_us": 10**6}, 10**6)):
        parent = build(model, "parent0", properties)
        assert parent.driver is not None and parent.driver.wake_us == wake_us
        parent.close()
    for wrong in (49, 10**6 + 1):
        with pytest.raises(PropertyError, match="wake_us"):
            build(model, "parent0", {"wake_us": wrong})


def test_closing_gives_descriptors_and_threads_back(memory: Memory) -> None:
    def held() -> tuple[int, int]:
        gc.collect()  # what other tests have left
        return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))  # noqa: PTH208

    before = held()
    for _ in range(5):
        driver = ProbeDriver("probe0")
        for _ in range(5):
            enabled(driver, memory).resource.ring(10)
        driver.close()
    assert held() == before
