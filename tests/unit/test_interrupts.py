"""Interrupts without a socket: who masks, what becomes pending, what is delivered once."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vdcm.errors import DeclarationError, VdcmError
from vdcm.interrupts import Interrupts
from vdcm.protocol import Irq
from vdcm.registers import RegisterSpace
from vdcm.transport import IrqAction


class Client:
    """Counts what is signalled."""

    def __init__(self, interrupts: Interrupts) -> None:
        self.interrupts = interrupts
        self.signals: list[tuple[Irq, int]] = []
        interrupts.attach(self)

    def trigger(self, kind: Irq, vector: int) -> bool:
        self.signals.append((kind, vector))
        return True

    def eventfd(self, kind: Irq, vector: int) -> int:
        raise AssertionError(f"no message of an ADI is connected to {kind.name} {vector}")

    def do(self, kind: Irq, action: IrqAction, start: int = 0, count: int = 1) -> None:
        self.interrupts.irqs_changed(kind, action, start, count)

    def take(self) -> list[tuple[Irq, int]]:
        taken, self.signals = self.signals, []
        return taken


def table(interrupts: Interrupts) -> RegisterSpace:
    space = RegisterSpace("BAR0", 0x1000)
    assert interrupts.msix is not None
    space.place(0, interrupts.msix.table)
    space.place(0x800, interrupts.msix.pending_bits)
    return space


@pytest.mark.conformance("R4.4.2-3")
def test_a_bound_vector_is_signalled() -> None:
    interrupts = Interrupts(msix=4)
    client = Client(interrupts)
    client.do(Irq.MSIX, IrqAction.BOUND, 0, 4)
    interrupts.signal(2)
    assert client.take() == [(Irq.MSIX, 2)]
    assert interrupts.delivered == 1


def test_without_eventfd_it_is_pending_and_comes_once_when_bound() -> None:
    interrupts = Interrupts(msix=4)
    client = Client(interrupts)
    interrupts.set_enabled(Irq.MSIX, enabled=True)
    space = table(interrupts)
    interrupts.signal(3)
    interrupts.signal(3)
    assert client.take() == []
    assert space.read(0x800, 8) == 1 << 3
    client.do(Irq.MSIX, IrqAction.BOUND, 0, 4)
    assert client.take() == [(Irq.MSIX, 3)]
    assert space.read(0x800, 8) == 0


def test_the_guest_masks_a_vector_in_the_table() -> None:
    interrupts = Interrupts(msix=2)
    client = Client(interrupts)
    space = table(interrupts)
    assert space.read(0x1C, 4) == 1  # masked after reset
    client.do(Irq.MSIX, IrqAction.BOUND, 0, 2)
    assert space.read(0x1C, 4) == 0  # binding unmasks, as VFIO in the kernel does
    space.write(0x1C, 4, 1)
    interrupts.signal(1)
    interrupts.signal(0)
    assert client.take() == [(Irq.MSIX, 0)]
    space.write(0x1C, 4, 0)
    assert client.take() == [(Irq.MSIX, 1)]


def test_the_function_mask_holds_all_vectors_back() -> None:
    interrupts = Interrupts(msix=2)
    client = Client(interrupts)
    client.do(Irq.MSIX, IrqAction.BOUND, 0, 2)
    interrupts.set_enabled(Irq.MSIX, enabled=True, all_masked=True)
    interrupts.signal(0)
    interrupts.signal(1)
    assert client.take() == []
    interrupts.set_enabled(Irq.MSIX, enabled=True)
    assert client.take() == [(Irq.MSIX, 0), (Irq.MSIX, 1)]


def test_the_client_masks_by_set_irqs() -> None:
    interrupts = Interrupts(msi=2)
    client = Client(interrupts)
    client.do(Irq.MSI, IrqAction.BOUND, 0, 2)
    client.do(Irq.MSI, IrqAction.MASKED, 1)
    interrupts.signal(1)
    assert client.take() == []
    client.do(Irq.MSI, IrqAction.UNMASKED, 1)
    assert client.take() == [(Irq.MSI, 1)]


def test_msi_masks_by_bit_and_wraps_at_its_count() -> None:
    interrupts = Interrupts(msi=4)
    client = Client(interrupts)
    client.do(Irq.MSI, IrqAction.BOUND, 0, 4)
    interrupts.set_guest_masks(Irq.MSI, 0b0010)
    interrupts.signal(1)
    assert interrupts.pending(Irq.MSI) == {1}
    interrupts.set_guest_masks(Irq.MSI, 0)
    assert client.take() == [(Irq.MSI, 1)]


def test_the_line_is_level_triggered() -> None:
    interrupts = Interrupts(intx=1)
    client = Client(interrupts)
    client.do(Irq.INTX, IrqAction.BOUND)
    interrupts.set_line(True)
    assert client.take() == [(Irq.INTX, 0)]
    interrupts.set_line(True)
    assert client.take() == []  # still asserted, still masked until the client has served it
    client.do(Irq.INTX, IrqAction.UNMASKED)
    assert client.take() == [(Irq.INTX, 0)]  # nobody lowered it
    interrupts.set_line(False)
    client.do(Irq.INTX, IrqAction.UNMASKED)
    assert client.take() == []


def test_interrupt_disable_holds_the_line_back() -> None:
    interrupts = Interrupts(intx=1)
    client = Client(interrupts)
    client.do(Irq.INTX, IrqAction.BOUND)
    interrupts.set_enabled(Irq.INTX, enabled=False, all_masked=True)
    interrupts.set_line(True)
    assert client.take() == []
    interrupts.set_enabled(Irq.INTX, enabled=True)
    assert client.take() == [(Irq.INTX, 0)]


def test_a_rising_line_is_a_message_where_msi_is_in_use() -> None:
    interrupts = Interrupts(intx=1, msi=1)
    client = Client(interrupts)
    client.do(Irq.MSI, IrqAction.BOUND)
    for _ in range(2):
        interrupts.set_line(True)
        interrupts.set_line(False)
    assert client.take() == [(Irq.MSI, 0)] * 2


def test_a_new_client_starts_without_the_old_ones_eventfds() -> None:
    interrupts = Interrupts(msix=1)
    Client(interrupts).do(Irq.MSIX, IrqAction.BOUND)
    interrupts.detach()
    interrupts.set_enabled(Irq.MSIX, enabled=True)
    interrupts.signal(0)
    client = Client(interrupts)
    assert client.take() == []
    client.do(Irq.MSIX, IrqAction.BOUND)
    assert client.take() == [(Irq.MSIX, 0)]


def test_reset_forgets_what_is_pending_and_keeps_the_eventfds() -> None:
    interrupts = Interrupts(intx=1, msix=1)
    client = Client(interrupts)
    client.do(Irq.MSIX, IrqAction.BOUND)
    client.do(Irq.MSIX, IrqAction.MASKED)
    interrupts.signal(0)
    interrupts.reset()
    client.do(Irq.MSIX, IrqAction.UNMASKED)
    assert client.take() == []
    interrupts.signal(0)
    assert client.take() == [(Irq.MSIX, 0)]


def test_what_does_not_exist_is_refused() -> None:
    with pytest.raises(VdcmError, match="out of range"):
        Interrupts(msix=2).signal(2)
    with pytest.raises(DeclarationError, match="0 to 2048"):
        Interrupts(msix=2049)


@given(st.lists(st.tuples(st.sampled_from(["signal", "mask", "unmask"]), st.integers(0, 3))))
def test_no_signal_is_lost_and_none_comes_twice(steps: list[tuple[str, int]]) -> None:
    """Reference: a vector delivers at once, or once when its mask goes."""
    interrupts = Interrupts(msix=4)
    client = Client(interrupts)
    client.do(Irq.MSIX, IrqAction.BOUND, 0, 4)
    masked: set[int] = set()
    pending: set[int] = set()
    for verb, vector in steps:
        expected: list[tuple[Irq, int]] = []
        if verb == "signal":
            interrupts.signal(vector)
            if vector in masked:
                pending.add(vector)
            else:
                expected = [(Irq.MSIX, vector)]
        elif verb == "mask":
            client.do(Irq.MSIX, IrqAction.MASKED, vector)
            masked.add(vector)
        else:
            client.do(Irq.MSIX, IrqAction.UNMASKED, vector)
            masked.discard(vector)
            expected = [(Irq.MSIX, vector)] if vector in pending else []
            pending.discard(vector)
        assert client.take() == expected
        assert interrupts.pending(Irq.MSIX) == pending
