"""Where the registers of a virtual DSA's ADIs are: its BARs, and who answers on which page."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from vdcm import BarKind, PagePolicy
from vdcm.parent import build
from vdcm_devices.dsa import Dsa
from vdcm_devices.dsa.portals import PAGE, PORTALS, Portal
from vdcm_devices.dsa.vdev import DsaVdev

PORTAL_BAR = 2


@pytest.fixture
def parent() -> Iterator[Dsa]:
    made = build(Dsa, "dsa0", {})
    yield made
    made.close()


def start(parent: Dsa, kind: str, **properties: object) -> DsaVdev:
    vdev = parent.create(kind, "vdev0", properties)
    assert isinstance(vdev, DsaVdev)
    return vdev


@pytest.mark.conformance("R2.4-1", "R2.4-2", "R2.4-3", "R2.8-15")
def test_each_adi_has_system_pages_of_its_own(parent: Dsa) -> None:
    """A work queue's direct portals: two pages side by side, two pages from the next ones."""
    vdev = start(parent, "dsa-2dwq-1swq", portals="direct")
    size = parent.driver.function.system_page_size
    direct = [p for p in vdev.bars[PORTAL_BAR].pages if p.policy is PagePolicy.DIRECT]
    assert len(direct) == len(vdev.adis) == 3
    assert all(p.offset % size == p.size % size == 0 for p in direct)
    assert [p.offset // (PORTALS * PAGE) for p in direct] == [0, 1, 2]
    for wq in range(3):
        pages = [vdev.portal_page(wq, portal) for portal in (Portal.UNLIMITED, Portal.LIMITED)]
        for number, page in enumerate(pages):
            assert page is not None and len(page) == size
            page[8] = 1 + 2 * wq + number  # not word 0, which would be a descriptor
            page.release()
    shared = [vdev.bars[PORTAL_BAR].view(p.offset, p.size) for p in direct]
    assert [[memory[8], memory[PAGE + 8]] for memory in shared] == [[1, 2], [3, 4], [5, 6]]
    for memory in shared:
        memory.release()
    vdev.close()


@pytest.mark.conformance("R2.4-5", "R2.4-6", "R4.4.1-2")
def test_configuration_and_portals_share_no_page(parent: Dsa) -> None:
    vdev = start(parent, "dsa-2dwq-1swq", portals="direct")
    registers, portals = vdev.bars[0], vdev.bars[PORTAL_BAR]
    assert registers.pages == (), "all of BAR0 is intercepted"
    policies = {p.policy for p in portals.pages}
    assert policies == {PagePolicy.DIRECT, PagePolicy.MEMORY}, "of which memory is the mailbox's"
    mailbox = vdev.channel.mailbox.registers.DATA.value
    assert portals.policy(mailbox, PAGE) is PagePolicy.MEMORY
    assert portals.policy(mailbox - PAGE, PAGE) is PagePolicy.INTERCEPTED
    vdev.close()


@pytest.mark.conformance("R2.4-7")
@pytest.mark.parametrize("portals", ["intercepted", "direct"])
def test_bars_can_lie_above_4_gib(parent: Dsa, portals: str) -> None:
    vdev = start(parent, "dsa-1dwq", portals=portals)
    kinds = {bar.layout.kind for bar in vdev.bars.values()}
    assert kinds == {BarKind.MEMORY64_PREFETCHABLE}
    vdev.close()
