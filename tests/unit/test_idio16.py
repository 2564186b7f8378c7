"""The PCIe-IDIO-16 model: what its manual says of each byte, and its interrupt."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vdcm import PropertyError
from vdcm.protocol import Irq
from vdcm.transport import IrqAction
from vdcm_devices.idio16.vdev import Idio16

BAR, CONFIG = 2, 7
OUT_LOW, IN_LOW, IRQ_CONTROL, FILTER, OUT_HIGH, IN_HIGH, IRQ_STATUS = range(7)


@pytest.fixture
def card() -> Iterator[Idio16]:
    card = Idio16("card")
    yield card
    card.close()


def get(card: Idio16, offset: int, width: int = 1) -> int:
    return card.read(BAR, offset, width)


def put(card: Idio16, offset: int, value: int, width: int = 1) -> None:
    card.write(BAR, offset, width, value)


def test_it_is_the_card_that_linux_knows(card: Idio16) -> None:
    assert card.read(CONFIG, 0, 4) == 0x0DC8494F
    assert card.read(CONFIG, 0x18, 4) & 1  # BAR 2 is I/O
    card.write(CONFIG, 0x18, 4, 0xFFFFFFFF)
    assert card.read(CONFIG, 0x18, 4) == 0xFFFFFF01  # 256 bytes
    assert card.read(CONFIG, 0x3D, 1) == 1  # INTA#


def test_outputs_read_back(card: Idio16) -> None:
    put(card, OUT_LOW, 0xA5)
    put(card, OUT_HIGH, 0x5A)
    assert card.outputs == 0x5AA5
    assert (get(card, OUT_LOW), get(card, OUT_HIGH)) == (0xA5, 0x5A)


def test_inputs_are_the_hosts(card: Idio16) -> None:
    card.inputs = 0x1234
    put(card, IN_HIGH, 0xFF)
    put(card, IN_LOW, 0xFF)
    assert (get(card, IN_LOW), get(card, IN_HIGH)) == (0x34, 0x12)
    assert get(card, IRQ_STATUS) == 0
    with pytest.raises(PropertyError):
        card.inputs = 0x10000
    assert card.inputs == 0x1234


def test_a_change_interrupts_once_it_is_enabled(card: Idio16) -> None:
    card.inputs = 1
    assert not card.interrupts.line
    assert get(card, IRQ_CONTROL) == 0  # the read enables
    card.inputs = 1
    assert not card.interrupts.line  # no change
    card.inputs = 3
    assert card.interrupts.line
    assert get(card, IRQ_STATUS) == 0b101
    card.inputs = 0x0103
    assert get(card, IRQ_STATUS) == 0b111
    put(card, IN_LOW, 0)  # clears
    assert not card.interrupts.line
    assert get(card, IRQ_STATUS) == 0
    put(card, IRQ_CONTROL, 0)  # disables
    card.inputs = 0
    assert not card.interrupts.line


def test_the_line_is_signalled_until_it_is_cleared(card: Idio16) -> None:
    signals: list[tuple[Irq, int]] = []

    class Client:
        def trigger(self, kind: Irq, vector: int) -> bool:
            signals.append((kind, vector))
            return True

        def eventfd(self, kind: Irq, vector: int) -> int:
            raise AssertionError(f"no message of an ADI is connected to {kind.name} {vector}")

    card.interrupts.attach(Client())
    card.irqs_changed(Irq.INTX, IrqAction.BOUND, 0, 1)
    get(card, IRQ_CONTROL)
    card.inputs = 1
    card.irqs_changed(Irq.INTX, IrqAction.UNMASKED, 0, 1)
    assert signals == [(Irq.INTX, 0)] * 2
    put(card, IN_LOW, 0)
    card.irqs_changed(Irq.INTX, IrqAction.UNMASKED, 0, 1)
    assert signals == [(Irq.INTX, 0)] * 2


def test_filters_are_switched_by_access(card: Idio16) -> None:
    get(card, FILTER)
    assert card.filters
    put(card, FILTER, 0)
    assert not card.filters


def test_reset_keeps_what_comes_from_outside(card: Idio16) -> None:
    card.inputs = 0xFFFF
    get(card, IRQ_CONTROL)
    get(card, FILTER)
    card.inputs = 0x1234
    put(card, OUT_LOW, 0xFF)
    card.reset()
    assert (card.outputs, get(card, IRQ_STATUS), card.interrupts.line) == (0, 0, False)
    assert (card.filters, card.interrupt_enabled) == (False, False)
    assert (get(card, IN_LOW), get(card, IN_HIGH)) == (0x34, 0x12)
    get(card, IRQ_CONTROL)
    card.inputs = 0x1234
    assert not card.interrupts.line


def test_showing_the_card_touches_nothing(card: Idio16) -> None:
    card.registers.dump()
    card.describe()
    assert not card.interrupt_enabled and not card.filters


@given(st.lists(st.integers(0, 0xFFFF)))
def test_the_status_says_which_half_has_changed(levels: list[int]) -> None:
    card = Idio16("card")
    try:
        get(card, IRQ_CONTROL)
        before = changed = 0
        for level in levels:
            card.inputs = level
            changed |= before ^ level
            before = level
        expected = bool(changed & 0xFF) | bool(changed >> 8) << 1 | bool(changed) << 2
        assert get(card, IRQ_STATUS) == expected
        assert card.interrupts.line == bool(changed)
    finally:
        card.close()


def test_what_is_stored_is_described() -> None:
    card = Idio16("card")
    card.write(2, 0x0, 1, 0x5A)
    registers = {entry["name"]: entry["value"] for entry in card.describe()["registers"]}
    assert registers["OUT_LOW"] == 0x5A
    assert not card.interrupt_enabled  # reading IRQ_CONTROL would have enabled it
    card.close()
