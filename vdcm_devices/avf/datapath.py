"""What the control path asks of a data path: the interface between the two, and no data path.

One ``DataPath`` is behind each ADI. All calls come from the event loop. Numbers of queues are of
the VSI, from 0; a message is one of the ADI's, by its place in the list: message ``n`` is vector
``n + 1`` of the function.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from vdcm import Adi, Report


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
    ``learn``, without ``check_source``: other unicast addresses that it sends from, and that no VSI
    has, are behind it, until they are not seen for 300 s.
    """

    mac: bytes
    addresses: frozenset[bytes] = frozenset()
    vlans: frozenset[int] | None = frozenset()
    all_unicast: bool = False
    all_multicast: bool = False
    check_source: bool = True
    learn: bool = False


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


class DataPath(Protocol):
    """The queues and the port of one VSI.

    The host driver makes it with its ADI and closes it when C no longer knows the ADI. A report of
    C's (``vdcm_services.report``) says that the driver has broken a queue: the function is reset.
    """

    capture_dropped: int
    """Frames that were not captured for want of room."""

    def attach(self, pages: memoryview) -> None:
        """Before anything else. ``pages``: BAR0 up to 0x4000, of which 0x0000, 0x2000 and 0x3000
        are direct pages."""

    def configure_tx(self, queue: TxQueue) -> None:
        """Take its settings; it is not enabled."""

    def configure_rx(self, queue: RxQueue) -> None:
        """Take its settings; it is not enabled."""

    def enable(self, tx: int, rx: int) -> None:
        """Begin with the queues of the bit masks, all of them configured, at descriptor 0.

        Their tails may have been stored already, and count: Linux's driver gives receive buffers
        before, and after a reset it may send before. Those of a time before the reset are gone.
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
        """Down: nothing is received, what is sent is discarded, what was learnt forgotten."""

    def learnt(self) -> dict[bytes, float]:
        """Addresses behind it (256 at most), the one seen last first: seconds since it sent."""

    def statistics(self) -> Statistics:
        """The counters now."""

    def set_capture(self, on: bool) -> None:
        """Keep what is sent and received from now on, for ``captured``; or no longer."""

    def captured(self) -> bytes:
        """Take some records of a pcap file, and ``capture_dropped``; empty: there are none."""

    def explain(self, report: Report) -> str:
        """A report of its C, in words."""

    def reset(self) -> None:
        """The function is being reset: as it was made, but attached; the counters stay."""

    def close(self) -> None:
        """Give everything back. Twice is harmless."""


MakeDataPath = Callable[[Adi], DataPath]
"""Makes the one of an ADI, which has as many messages as queue pairs, and adds its queues to
``adi.path``. They run while the ADI is enabled: as long as one of its queues is."""
