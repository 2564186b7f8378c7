"""A VDEV without a socket: composition, states, resets, DMA, and what it tells of itself."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any, cast

import pytest
from small_model import Lamp

from vdcm import (
    Bar,
    BarKind,
    Capability,
    Identity,
    MaskableMsi,
    Msi,
    MsiX,
    PagePolicy,
    Pages,
    PciExpress,
    PowerManagement,
    ScalableIov,
    Vdev,
)
from vdcm.bars import PAGE
from vdcm.counters import CLIENT, Count, nothing
from vdcm.errors import DeclarationError, DmaError, StateError
from vdcm.pasid import PASIDS
from vdcm.protocol import Irq, Region
from vdcm.transport import GuestMemory, IrqAction, Session
from vdcm.vdev import VdevState

COMMAND, BUS_MASTER = 0x04, 0x4
RAM = 0x10000


OFFERED = (
    "it finds BAR0 of 0x4000 bytes (memory32); PowerManagement at 0x40, PciExpress at 0x48, "
    "MsiX at 0x84, MaskableMsi at 0x90; interrupts: 1 INTX, 2 MSI, 2 MSIX"
)


class Card(Vdev):
    identity = Identity(vendor=0x1234, device=0xCA4D, class_code=0xFF0000)
    intx = True

    def __init__(self, name: str) -> None:
        self.heard: list[str] = []
        self.fails = False
        pages = [Pages(PAGE, PAGE, PagePolicy.DIRECT)]
        super().__init__(
            name,
            bars=[Bar(0, 4 * PAGE, pages=pages)],
            capabilities=[
                MsiX(2, table_bar=0, table_offset=2 * PAGE, pba_bar=0, pba_offset=3 * PAGE),
                MaskableMsi(2),
            ],
        )

    def on_reset(self) -> None:
        self.heard.append(f"reset {self.state.value}")
        if self.fails:
            raise RuntimeError("a bug of the device model, as ordered")


def test_a_model_may_bring_its_own_pci_express() -> None:
    class Integrated(Vdev):
        identity = Card.identity

    own = PciExpress(integrated=True, at=0x80)
    card = Integrated("v", capabilities=[own])
    assert [type(c) for c in card.config.capabilities] == [PowerManagement, PciExpress]
    assert card.config.find(PciExpress) is own
    card.close()


class FakeSession:
    """What a VDEV uses of a session."""

    peer = 4711

    def __init__(self) -> None:
        self.memory = GuestMemory()
        self.signals: list[tuple[Irq, int]] = []
        self.observed = False
        fd = os.memfd_create("guest")
        os.ftruncate(fd, PAGE)
        self.memory.map(RAM, PAGE, fd)
        os.close(fd)

    def counters(self) -> dict[str, Count]:
        return {**nothing(CLIENT), "messages": 7}

    def observe(self, observed: bool) -> None:
        self.observed = observed

    def trigger(self, kind: Irq, vector: int) -> bool:
        self.signals.append((kind, vector))
        return True


@pytest.fixture
def card() -> Iterator[Card]:
    card = Card("card")
    yield card
    if card.session is not None:
        card.fails = False
        card.detached()
    card.close()


def attach(card: Card) -> FakeSession:
    session = FakeSession()
    card.attached(cast(Session, session))
    return session


def test_a_life(card: Card) -> None:
    assert card.state is VdevState.READY
    attach(card)
    assert (card.state, card.heard) == (VdevState.ATTACHED, [])
    card.reset()
    assert (card.state, card.heard) == (VdevState.ATTACHED, ["reset resetting"])
    card.detached()
    assert (card.state, card.heard) == (VdevState.READY, ["reset resetting"] * 2)
    card.reset()
    assert card.resets == 3
    card.close()
    card.close()
    assert card.state.value == "closed"


def test_calls_at_the_wrong_time(card: Card) -> None:
    attach(card)
    with pytest.raises(StateError, match="card is attached, a client needs it ready"):
        attach(card)
    with pytest.raises(StateError, match="card has a client: stop serving it first"):
        card.close()
    card.detached()
    card.close()
    with pytest.raises(StateError, match="card is closed"):
        card.reset()
    with pytest.raises(StateError, match="card is closed"):
        attach(card)


def test_a_reset_within_a_reset_is_refused(card: Card) -> None:
    card.on_reset = card.reset  # type: ignore[method-assign]
    with pytest.raises(StateError, match="card is resetting"):
        card.reset()
    assert card.state is VdevState.READY


def test_a_model_that_fails_to_reset_lets_go_of_its_client(card: Card) -> None:
    attach(card)
    card.fails = True
    with pytest.raises(RuntimeError):
        card.detached()
    assert card.state is VdevState.READY
    assert card.session is None
    assert card.address_space.ranges == []
    attach(card)


@pytest.mark.conformance("R2.2-5")
def test_dma_goes_through_the_pasid_and_needs_a_bus_master(card: Card) -> None:
    attach(card)
    with pytest.raises(DmaError, match=r"card: DMA while Bus Master Enable is 0.*pci_set_master"):
        card.dma_read(RAM, 1)
    card.write(Region.CONFIG, COMMAND, 2, BUS_MASTER)
    card.dma_write(RAM, b"ab")
    assert card.dma_read(RAM, 3) == b"ab\0"
    with pytest.raises(DmaError, match=f"PASID {card.pasid:#x}"):
        card.dma_read(0, 1)
    card.reset()
    with pytest.raises(DmaError, match="Bus Master"):
        card.dma_write(RAM, b"x")
    card.detached()
    card.write(Region.CONFIG, COMMAND, 2, BUS_MASTER)
    with pytest.raises(DmaError, match="no client"):
        card.dma_read(RAM, 1)


def test_pasids_are_given_back() -> None:
    before = len(PASIDS)
    cards = [Card(f"card{i}") for i in range(3)]
    assert len({card.pasid for card in cards}) == 3
    assert len(PASIDS) == before + 3
    for card in cards:
        card.close()
    assert len(PASIDS) == before


@pytest.mark.conformance("R4.4-1")
def test_msix_lies_in_the_bar_that_the_capability_names(card: Card) -> None:
    session = attach(card)
    at = 2 * PAGE + 16 + 12  # Vector Control of vector 1
    assert card.read(0, at, 4) == 1
    card.write(Region.CONFIG, COMMAND, 2, BUS_MASTER)
    card.irqs_changed(Irq.MSIX, IrqAction.BOUND, 0, 2)
    card.write(0, at, 4, 1)
    card.interrupts.signal(1)
    assert card.read(0, 3 * PAGE, 8) == 0b10
    card.write(0, at, 4, 0)
    assert session.signals == [(Irq.MSIX, 1)]
    assert card.read(0, 3 * PAGE, 8) == 0


@pytest.mark.parametrize("kind", [Irq.MSI, Irq.MSIX])
def test_a_reset_delivers_nothing(card: Card, kind: Irq) -> None:
    session = attach(card)
    card.write(Region.CONFIG, COMMAND, 2, BUS_MASTER)
    card.irqs_changed(kind, IrqAction.BOUND, 0, 2)
    capability = card.config.find(MaskableMsi if kind is Irq.MSI else MsiX)
    assert capability is not None
    if kind is Irq.MSI:
        card.write(Region.CONFIG, capability.offset + 0x10, 4, 0b11)
        card.write(Region.CONFIG, capability.offset + 2, 2, 0x11)
    else:
        card.write(Region.CONFIG, capability.offset + 2, 2, 0xC000)
    card.interrupts.signal(1)
    card.interrupts.signal(0)
    assert card.interrupts.pending(kind) == {0, 1}
    card.reset()
    assert session.signals == []
    assert card.interrupts.pending(kind) == frozenset()
    card.write(Region.CONFIG, COMMAND, 2, BUS_MASTER)
    card.interrupts.signal(1)
    assert session.signals == [(kind, 1)]


@pytest.mark.parametrize("kind", [Irq.MSI, Irq.MSIX])
def test_messages_need_a_bus_master(card: Card, kind: Irq) -> None:
    """They are writes of memory (PCIe 5.0, 7.5.1.1.3). What came up before waits, while it is
    masked; what comes up meanwhile is lost."""
    heard: list[str] = []
    card.observe(lambda event: heard.append(str(event)))
    session = attach(card)
    card.irqs_changed(kind, IrqAction.BOUND, 0, 2)
    card.interrupts.signal(0)
    assert heard[-1].startswith("interrupt 0 lost: Bus Master Enable is 0")
    card.write(Region.CONFIG, COMMAND, 2, BUS_MASTER)
    assert session.signals == []
    card.irqs_changed(kind, IrqAction.MASKED, 0, 2)
    card.interrupts.signal(1)
    card.write(Region.CONFIG, COMMAND, 2, 0)
    card.irqs_changed(kind, IrqAction.UNMASKED, 0, 2)
    assert (session.signals, card.interrupts.pending(kind)) == ([], {1})
    card.write(Region.CONFIG, COMMAND, 2, BUS_MASTER)
    assert (session.signals, card.interrupts.pending(kind)) == ([(kind, 1)], frozenset())


def test_the_line_needs_no_bus_master(card: Card) -> None:
    session = attach(card)
    card.irqs_changed(Irq.INTX, IrqAction.BOUND, 0, 1)
    card.interrupts.set_line(True)
    assert session.signals == [(Irq.INTX, 0)]


def test_function_level_reset_is_a_reset(card: Card) -> None:
    attach(card)
    card.write(0, PAGE, 4, 0xFFFF)
    card.write(Region.CONFIG, COMMAND, 2, BUS_MASTER)
    (express,) = (c for c in card.config.capabilities if c.capability_id == 0x10)
    card.write(Region.CONFIG, express.offset + 8, 2, 0x8000)
    assert card.resets == 1
    assert card.read(0, PAGE, 4) == 0
    assert card.read(Region.CONFIG, COMMAND, 2) == 0


def test_the_observer_sees_accesses_interrupts_resets_and_maps(card: Card) -> None:
    lines: list[str] = []
    card.observe(lambda event: lines.append(str(event)))
    session = attach(card)
    assert card.observed, "a session that begins asks"
    card.read(Region.CONFIG, 0, 2)
    card.write(Region.CONFIG, COMMAND, 2, BUS_MASTER)
    card.dma_changed(RAM, PAGE, mapped=True, shared=False)
    card.dma_changed(RAM, PAGE, mapped=False, shared=False)
    card.irqs_changed(Irq.MSIX, IrqAction.BOUND, 0, 2)
    card.interrupts.signal(1)
    card.reset()
    assert lines == [
        f"client {session.peer} attached",
        OFFERED,
        "config+0x00 VENDOR_ID = 0x1234 (read)",
        "config+0x04 COMMAND.BUS_MASTER 0→1 (write 0x4)",
        "dma map 0x10000+0x1000 not shared",
        "dma unmap 0x10000+0x1000",
        "MSIX 0..1 bound",
        "MSIX 1 delivered",
        "reset",
    ]
    session.observe(True)
    card.observe(None)
    assert not session.observed
    card.read(Region.CONFIG, 0, 2)
    assert len(lines) == 9


def test_it_describes_itself(card: Card) -> None:
    attach(card)
    told: dict[str, Any] = json.loads(json.dumps(card.describe()))
    assert told["name"] == "card"
    assert told["state"] == "attached"
    assert told["pci_id"] == "1234:ca4d"
    assert told["pasid"] == card.pasid
    assert told["bars"] == [
        {
            "index": 0,
            "size": 4 * PAGE,
            "kind": "memory32",
            "pages": [{"offset": PAGE, "size": PAGE, "policy": "direct"}],
        }
    ]
    assert told["vectors"] == {"intx": 1, "msi": 2, "msix": 2}
    assert told["dma"] == [{"iova": RAM, "size": PAGE, "shared": True}]
    assert told["counters"]["messages"] == 7


def test_properties_are_told_too() -> None:
    lamp = Lamp("lamp")
    assert lamp.describe()["properties"]["wiring"] == 1
    lamp.close()


@pytest.mark.conformance("R4.4-1")
def test_regions_are_the_bars_and_the_configuration_space(card: Card) -> None:
    bar, config = card.regions()
    assert (bar.index, bar.size) == (0, 4 * PAGE)
    assert (config.index, config.size) == (Region.CONFIG, 4096)
    assert card.vectors() == {Irq.INTX: 1, Irq.MSI: 2, Irq.MSIX: 2}


@pytest.mark.parametrize(
    ("bars", "capabilities"),
    [
        ([Bar(0, 0x1000), Bar(0, 0x1000)], []),
        ([Bar(0, 0x1000, BarKind.MEMORY64), Bar(1, 0x1000)], []),
        ([], [MsiX(1, table_bar=0, pba_bar=0, pba_offset=0x800)]),
        ([Bar(0, 64, BarKind.IO)], [MsiX(1, table_bar=0, pba_bar=0, pba_offset=0x20)]),
        ([Bar(0, 0x1000)], [MsiX(1, table_bar=0, pba_bar=0, pba_offset=8)]),
        ([Bar(0, 0x1000)], [Msi(), MaskableMsi()]),
    ],
)
def test_what_cannot_be_composed(bars: list[Bar], capabilities: list[Capability]) -> None:
    class Odd(Vdev):
        identity = Identity(vendor=1, device=1, class_code=0)

    before = len(PASIDS)
    with pytest.raises(DeclarationError):
        Odd("odd", bars, capabilities)
    assert len(PASIDS) == before


def test_what_config_space_refuses_is_seen_by_the_observer() -> None:
    class Plain(Vdev):
        identity = Identity(vendor=0x1234, device=0x0001, class_code=0xFF0000)

    capability = ScalableIov()
    vdev, lines = Plain("plain", capabilities=[capability]), []
    vdev.observe(lambda event: lines.append(str(event)))
    vdev.write(Region.CONFIG, capability.offset + 0x10, 4, 6)
    assert lines[-1].startswith("config refused: System Page Size 0x6: exactly one bit")
    vdev.close()
