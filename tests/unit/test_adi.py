"""What Scalable IOV asks of ADIs, on those of a small device with C of its own (probe_device.c):
memory, messages and errors of each are its own, and a reset has an end.
"""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from probe import Probe
from probe_driver import ProbeDriver, ProbeVdev

from vdcm import dma
from vdcm.adi import Adi
from vdcm.pasid import PASIDS
from vdcm.protocol import Region
from vdcm.transport import GuestMemory

PAGE = mmap.PAGESIZE
INTERRUPTS = 0xFEE0_0000  # what is written here without a PASID is an interrupt message


@pytest.fixture
def driver() -> Iterator[ProbeDriver]:
    made = ProbeDriver("probe0")
    yield made
    made.close()


class Domain:
    """``size`` bytes of memory at ``base``, with a PASID."""

    def __init__(self, base: int = 0, size: int = PAGE) -> None:
        self.base, self.size = base, size
        self.memory = GuestMemory()
        fd = os.memfd_create("domain")
        os.ftruncate(fd, size)
        self.memory.map(base, size, fd)
        os.close(fd)
        self.space = dma.SecondLevel()
        self.space.attach(self.memory)
        self.pasid = PASIDS.allocate(self.space)

    @property
    def bytes(self) -> bytes:
        return self.space.read(self.base, self.size)

    def close(self) -> None:
        PASIDS.release(self.pasid)
        self.space.detach()


@pytest.fixture
def domain() -> Iterator[Domain]:
    made = Domain()
    yield made
    made.close()


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.001)


def enabled(driver: ProbeDriver, kind: str, domain: Domain | None, **settings: int) -> Adi:
    adi = driver.allocate(kind, "vdev0")
    driver.configure(adi, **settings)
    if domain is not None:
        driver.set_pasid(adi, domain.pasid)
    driver.set_bus_master(adi, True)
    driver.enable(adi)
    return adi


def work(adi: Adi, items: int = 1) -> None:
    """Have it do so many items, and wait for the end of them."""
    probe: Probe = adi.resource
    before = probe.done
    probe.ring(items)
    wait_until(lambda: probe.done == before + items)


def raised(*adis: Adi) -> list[list[int]]:
    return [[entry.raised for entry in adi.messages] for adi in adis]


# Memory: primary PASIDs, domains


@pytest.mark.conformance("R2.2-11", "R2.2-13", "R2.6-5")
def test_adis_of_one_vdev_in_domains_of_their_own(driver: ProbeDriver) -> None:
    """As for two processes in one guest."""
    domains = [Domain(), Domain()]
    adis = [
        enabled(driver, "small", domain, length=PAGE, marker=i)
        for i, domain in enumerate(domains, 1)
    ]
    for adi in adis:
        work(adi)
    assert [domain.bytes for domain in domains] == [b"\1" * PAGE, b"\2" * PAGE]
    for each in (*adis, *domains):
        driver.release(each) if isinstance(each, Adi) else each.close()


@pytest.mark.conformance("R2.2-12")
def test_adis_of_one_domain_share_its_pasid(driver: ProbeDriver, domain: Domain) -> None:
    first = enabled(driver, "small", domain, address=0, length=8, marker=1)
    second = enabled(driver, "large", domain, address=8, length=8, marker=2)
    assert first.pasid == second.pasid == domain.pasid
    work(first)
    work(second)
    assert domain.bytes[:16] == b"\1" * 8 + b"\2" * 8


@pytest.mark.conformance("R2.6-1", "R2.6-9")
def test_an_adi_in_error_costs_no_other_anything(driver: ProbeDriver, domain: Domain) -> None:
    faulty = enabled(driver, "small", domain, address=1 << 40, length=8)
    sound = enabled(driver, "small", domain, length=8, marker=7)
    faulty.resource.ring(100)
    work(sound, 100)
    wait_until(lambda: faulty.resource.done == 100)
    assert (faulty.resource.device.errors, sound.resource.device.errors) == (100, 0)
    assert raised(sound) == [[100]]
    assert domain.bytes[:9] == b"\7" * 8 + b"\0"


# Messages


@pytest.mark.conformance("R2.5-2", "R2.5-3", "R2.5.1-14", "R2.5.2-3")
def test_messages_of_adis_are_apart(driver: ProbeDriver, domain: Domain) -> None:
    adis = [enabled(driver, kind, domain) for kind in ("small", "small", "large")]
    for _ in range(2):  # shares of one queue
        share = enabled(driver, "shared", None)
        driver.allocate_message(share)
        share.resource.device.message = 0
        adis.append(share)
    entries = [entry for adi in adis for entry in adi.messages]
    assert len({entry.index for entry in entries}) == len(entries) == 6
    for adi in adis:
        before = raised(*adis)
        work(adi)
        before[adis.index(adi)][0] += 1
        assert raised(*adis) == before


@pytest.mark.conformance("R2.5-4", "R2.5-5")
def test_a_message_for_each_queue_or_none(domain: Domain) -> None:
    class TwoQueues(ProbeDriver):
        def on_allocate(self, adi: Adi) -> None:
            super().on_allocate(adi)
            self.second = Probe(adi.path, message=1)

    driver = TwoQueues("probe0")
    silent = enabled(driver, "shared", domain)
    assert silent.messages == []
    work(silent)
    adi = enabled(driver, "large", domain)
    work(adi, 3)
    driver.second.ring(5)
    wait_until(lambda: driver.second.done == 5)
    assert raised(adi) == [[3, 5]]
    driver.close()


@pytest.mark.conformance("R2.5-1")
def test_an_adi_interrupts_by_messages_alone(driver: ProbeDriver) -> None:
    class WithLine(ProbeVdev):
        intx = True

    vdev = WithLine("vdev0", [driver], ["small"])
    adi = vdev.adis[0]
    driver.enable(adi)
    work(adi)
    assert raised(adi) == [[0]], "the guest has not made the function a bus master"
    vdev.write(Region.CONFIG, 0x04, 2, 0x4)
    work(adi)
    assert raised(adi) == [[1]]
    vdev.write(Region.CONFIG, 0x04, 2, 0)
    work(adi)
    assert raised(adi) == [[1]]
    assert not vdev.interrupts.line
    assert vdev.read(Region.CONFIG, 0x06, 2) & 0x8 == 0, "Interrupt Status"
    vdev.close()


@pytest.mark.conformance("R2.2-7")
def test_a_message_needs_no_pasid(driver: ProbeDriver) -> None:
    adi = enabled(driver, "shared", None, length=1)
    driver.allocate_message(adi)
    adi.resource.device.message = 0
    work(adi)
    assert adi.resource.device.errors == 1, "memory is out of reach without one"
    assert raised(adi) == [[1]]


@pytest.mark.conformance("R2.5.2-2", "R2.5.2-4")
def test_a_dma_write_is_never_an_interrupt_message(driver: ProbeDriver) -> None:
    """Not even to the address that messages are written to."""
    domain = Domain(INTERRUPTS)
    victim = enabled(driver, "small", domain)
    entry = victim.messages[0]
    entry.program(INTERRUPTS + 0x10, 0x4041)
    attacker = enabled(driver, "shared", domain, address=INTERRUPTS, length=PAGE, marker=0x41)
    work(attacker)
    assert domain.bytes == b"\x41" * PAGE
    assert (entry.raised, entry.pending) == (0, False)
    assert (entry.address, entry.data, entry.masked) == (INTERRUPTS + 0x10, 0x4041, False)
    driver.close()
    domain.close()


@pytest.mark.conformance("R2.5.2-1", "R2.6-3")
@settings(max_examples=60, deadline=None)
@given(
    writes=st.lists(
        st.tuples(
            st.sampled_from([0, Region.CONFIG]),
            st.integers(0, 0x4000),
            st.sampled_from([1, 2, 4, 8]),
            st.integers(0, 2**64 - 1),
        ),
        max_size=30,
    )
)
def test_no_write_of_the_guest_reaches_messages_or_pasids(
    writes: list[tuple[int, int, int, int]],
) -> None:
    driver = ProbeDriver("probe0")
    vdev = ProbeVdev("vdev0", [driver], ["small", "large"])

    def held() -> list[Any]:
        entries = [entry for adi in vdev.adis for entry in adi.messages]
        return [
            [(e.index, e.address, e.data, e.masked, e.vector, e.raised) for e in entries],
            [(adi.pasid, adi.secondary_pasid, adi.weight, adi.rate) for adi in vdev.adis],
        ]

    before = held()
    for region, offset, width, value in writes:
        vdev.write(region, offset, width, value)
    assert held() == before
    vdev.close()
    driver.close()


# Reset


@pytest.mark.conformance("R2.7-5")
def test_nothing_is_written_once_a_reset_has_returned(driver: ProbeDriver) -> None:
    domain = Domain(size=1 << 20)
    adi = enabled(driver, "small", domain, length=domain.size, marker=0xEE, cost=domain.size)
    other = enabled(driver, "small", domain)
    for _ in range(20):
        adi.resource.ring(1000)
        done = adi.resource.done
        wait_until(lambda done=done: adi.resource.done > done)  # type: ignore[misc]
        driver.reset(adi)
        domain.space.write(0, bytes(domain.size))
        work(other, 3)  # the sweep has gone round meanwhile
        assert domain.bytes == bytes(domain.size)
        driver.configure(adi, length=domain.size, marker=0xEE, cost=domain.size)
        driver.enable(adi)
    driver.close()
    domain.close()


@pytest.mark.conformance("R2.7-2", "R2.7-7")
def test_all_interrupts_are_generated_once_a_reset_has_returned(
    driver: ProbeDriver, domain: Domain
) -> None:
    adi = enabled(driver, "small", domain, cost=1 << 12)
    other = enabled(driver, "small", domain)
    probe: Probe = adi.resource
    for _ in range(20):
        before = probe.done
        probe.ring(1000)
        wait_until(lambda before=before: probe.done > before)  # type: ignore[misc]
        driver.reset(adi)
        completed = probe.done - probe.device.aborted
        assert raised(adi) == [[completed]]
        work(other, 3)
        assert raised(adi) == [[completed]]
        driver.enable(adi)
