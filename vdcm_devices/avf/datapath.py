"""What the control path asks of a data path: the interface between the two, and no data path.

One ``DataPath`` is behind each ADI. All calls come from the event loop. Numbers of queues are of
the VSI, from 0; a message is one of the ADI's, by its place in the list: message ``n`` is vector
``n + 1`` of the function.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Protocol

from vdcm import Adi, DmaError, Report

TX_DESCRIPTOR: Final = 16
RX_DESCRIPTOR: Final = 32
_DONE: Final = 0xF
"""Of a transmit descriptor that the device has taken: its type."""
_END, _REPORT = 1 << 4, 1 << 5
_DATA: Final = 0


@dataclass(frozen=True)
class TxQueue:
    """A transmit queue: ``length`` descriptors of 16 bytes (64 to 4096, a multiple of 8) at the
    guest's ``address``. ``message``: raised for it, None: none; ``itr``: 0 to 3, 3 is none."""

    index: int
    address: int
    length: int
    message: int | None = None
    itr: int = 3


@dataclass(frozen=True)
class RxQueue:
    """A receive queue: ``length`` descriptors of 32 bytes (64 to 4096, a multiple of 32), buffers
    of ``buffer_size`` bytes each, of which a frame of at most ``max_frame`` takes several.

    ``strip_crc`` is always true for Linux's driver: the length says nothing of a CRC."""

    index: int
    address: int
    length: int
    buffer_size: int
    max_frame: int
    message: int | None = None
    itr: int = 3
    strip_crc: bool = True


@dataclass(frozen=True)
class Filters:
    """What a VSI receives and may send.

    ``addresses``: unicast and multicast ones of 6 bytes; broadcast always is received. ``vlans``:
    VLAN IDs whose tagged frames are received beside those without a tag or with ID 0, and that may
    be sent; None: all. ``check_source``: frames are sent only from an own unicast address.
    """

    mac: bytes
    addresses: frozenset[bytes] = frozenset()
    vlans: frozenset[int] | None = frozenset()
    all_unicast: bool = False
    all_multicast: bool = False
    check_source: bool = True


@dataclass(frozen=True)
class Offloads:
    """``strip``: the tag (0x8100) of a received frame goes into L2TAG1 of its descriptor.
    ``insert``: what a transmit descriptor says in L2TAG1 becomes the frame's tag."""

    strip: bool = False
    insert: bool = True


@dataclass(frozen=True)
class Rss:
    """``key`` of 52 bytes, ``table`` of 64 queue numbers, ``types``: a bit for each packet type
    that is hashed (Toeplitz); 0: all goes to queue 0."""

    key: bytes
    table: bytes
    types: int


@dataclass
class Statistics:
    """Of a VSI since it is there, or was reset; ``rx`` is towards the guest."""

    rx_bytes: int = 0
    rx_unicast: int = 0
    rx_multicast: int = 0
    rx_broadcast: int = 0
    rx_discards: int = 0
    rx_unknown_protocol: int = 0
    tx_bytes: int = 0
    tx_unicast: int = 0
    tx_multicast: int = 0
    tx_broadcast: int = 0
    tx_discards: int = 0
    tx_errors: int = 0


class Guest(Protocol):
    """The VDEV, to a data path in Python."""

    def dma_read(self, iova: int, length: int) -> bytes: ...
    def dma_write(self, iova: int, data: bytes) -> None: ...
    def raise_message(self, message: int) -> None:
        """Vector ``message + 1``, when its interrupt control lets it."""

    def complain(self, why: str) -> None:
        """The driver has done something that it must not do."""


class DataPath(Protocol):
    """The queues and the port of one VSI.

    The host driver makes it with its ADI and closes it when C no longer knows the ADI. A report of
    C's (``vdcm_services.report``) says that the driver has broken a queue: the function is reset.
    """

    def attach(self, guest: Guest, pages: memoryview | None) -> None:
        """Before anything else. ``pages``: BAR0 up to 0x4000, of which 0x0000, 0x2000 and 0x3000
        are direct pages; None: they are intercepted, and stores come by ``tail``."""

    def configure_tx(self, queue: TxQueue) -> None:
        """Take its settings; it is not enabled."""

    def configure_rx(self, queue: RxQueue) -> None:
        """Take its settings; it is not enabled."""

    def enable(self, tx: int, rx: int) -> None:
        """Begin with the queues of the bit masks, all of them configured, at descriptor 0.

        Their tails may have been stored already, and count: Linux's driver gives receive buffers
        before, and after a reset it may send before.
        """

    def disable(self, tx: int, rx: int) -> None:
        """End with them: when it returns, nothing of theirs goes on, and their tails are 0."""

    def set_filters(self, filters: Filters) -> None:
        """From now on, in place of those before."""

    def set_offloads(self, offloads: Offloads) -> None:
        """From now on."""

    def set_rss(self, rss: Rss) -> None:
        """From now on."""

    def set_link(self, up: bool) -> None:
        """Down: nothing is received, and what is sent is discarded."""

    def tail(self, queue: int, value: int, *, transmit: bool) -> None:
        """The driver has stored into an intercepted tail register."""

    def statistics(self) -> Statistics:
        """The counters now."""

    def explain(self, report: Report) -> str:
        """A report of its C, in words."""

    def reset(self) -> None:
        """The function is being reset: as it was made, but attached; the counters stay."""

    def close(self) -> None:
        """Give everything back. Twice is harmless."""


MakeDataPath = Callable[[Adi], DataPath]
"""Makes the one of an ADI, which has as many messages as queue pairs; one in C adds its queues to
``adi.path``. They run while the ADI is enabled: as long as one of its queues is."""


@dataclass
class _Ring:
    queue: TxQueue
    head: int = 0


@dataclass
class NullDataPath:
    """No data path: what is sent goes nowhere and is counted as discarded, nothing is received.

    It takes transmit descriptors as they come, so that a driver does not find its queue stuck.
    """

    adi: Adi
    _guest: Guest | None = None
    _counted: Statistics = field(default_factory=Statistics)
    _settings: dict[int, TxQueue] = field(default_factory=dict)
    _rings: dict[int, _Ring] = field(default_factory=dict)
    _tails: dict[int, int] = field(default_factory=dict)

    def attach(self, guest: Guest, pages: memoryview | None) -> None:
        del pages
        self._guest = guest

    def configure_tx(self, queue: TxQueue) -> None:
        self._settings[queue.index] = queue

    def configure_rx(self, queue: RxQueue) -> None:
        """It receives nothing."""

    def enable(self, tx: int, rx: int) -> None:
        del rx
        for index, queue in self._settings.items():
            if tx >> index & 1:
                self._rings[index] = _Ring(queue)
                self._run(index)

    def disable(self, tx: int, rx: int) -> None:
        del rx
        for index in range(tx.bit_length()):
            if tx >> index & 1:
                self._rings.pop(index, None)
                self._tails.pop(index, None)

    def set_filters(self, filters: Filters) -> None:
        """Nothing passes."""

    def set_offloads(self, offloads: Offloads) -> None:
        """Nothing passes."""

    def set_rss(self, rss: Rss) -> None:
        """Nothing is received."""

    def set_link(self, up: bool) -> None:
        """Nothing passes either way."""

    def tail(self, queue: int, value: int, *, transmit: bool) -> None:
        if transmit:
            self._tails[queue] = value
            self._run(queue)

    def _run(self, queue: int) -> None:
        ring, value = self._rings.get(queue), self._tails.get(queue, 0)
        if ring is None or self._guest is None:
            return
        if value >= ring.queue.length:
            self._guest.complain(f"transmit queue {queue}: tail {value} of {ring.queue.length}")
            return
        try:
            reported = self._discard(self._guest, ring, value)
        except DmaError as error:
            del self._rings[queue]
            self._guest.complain(f"transmit queue {queue}: {error}")
            return
        if reported and ring.queue.message is not None:
            self._guest.raise_message(ring.queue.message)

    def _discard(self, guest: Guest, ring: _Ring, tail: int) -> bool:
        """Take all descriptors up to ``tail``; has any of them asked for a report?"""
        reported = False
        while ring.head != tail:
            at = ring.queue.address + TX_DESCRIPTOR * ring.head + 8
            word = int.from_bytes(guest.dma_read(at, 8), "little")
            ring.head = (ring.head + 1) % ring.queue.length
            if word & 0xF != _DATA:
                continue
            if word & _END:
                self._counted.tx_discards += 1
            if word & _REPORT:
                guest.dma_write(at, (word & ~0xF | _DONE).to_bytes(8, "little"))
                reported = True
        return reported

    def statistics(self) -> Statistics:
        return self._counted

    def explain(self, report: Report) -> str:
        return f"report {report.code}"  # it has no C

    def reset(self) -> None:
        self._rings.clear()
        self._tails.clear()
        self._settings.clear()

    def close(self) -> None:
        self._rings.clear()
        self._guest = None
