"""A virtual station interface: queues, filters and offloads of one VDEV, and what it may have."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol

from vdcm_devices.avf.codes import Capability, Promiscuous, Status
from vdcm_devices.avf.datapath import DataPath, Filters, Offloads, Rss, RxQueue, TxQueue
from vdcm_devices.avf.messages import Refused
from vdcm_devices.avf.registers import HKEY_SIZE, HLUT_SIZE

BROADCAST: Final = b"\xff" * 6
MOST_ADDRESSES: Final = 64
"""Addresses of a VSI, its own and multicast ones included."""
MOST_FRAME: Final = 9728
TX_LENGTHS: Final = range(64, 4096 + 1, 8)
RX_LENGTHS: Final = range(64, 4096 + 1, 32)
BUFFER_SIZES: Final = range(1024, 16384, 128)
FRAMES: Final = range(64, MOST_FRAME + 1)
HASHED: Final = sum(1 << bit for bit in (31, 32, 33, 34, 35, 36, 41, 43, 44, 45, 46, 63))
"""Packet types that can be hashed: IPv4 and IPv6, each UDP, TCP, SCTP, other, fragments; and
Ethernet frames by their payload."""


@dataclass(frozen=True)
class Policy:
    """What the host lets a VDEV do.

    ``trust``: it may have other unicast addresses than its own, and be promiscuous; without
    ``check_source`` they may be behind it, too.
    ``max_vlans``: so many VLAN filters.
    """

    mac: bytes
    trust: bool = False
    check_source: bool = True
    max_vlans: int = 64


class Addresses(Protocol):
    """Who has which unicast address, among all VDEVs of a parent."""

    def is_taken(self, address: bytes) -> bool:
        """It is another one's, as the host has said."""


class Vsi:
    """The state of one VSI; what changes goes to its data path at once.

    ``pairs``: queue pairs, each with a message. Raises Refused for what the driver may not have.
    """

    def __init__(self, vsi_id: int, pairs: int, policy: Policy, addresses: Addresses) -> None:
        self.id: Final = vsi_id
        self.pairs: Final = pairs
        self.policy = policy
        self.mac = policy.mac
        """Its own address: the host's, or the one that a trusted driver has in its place."""
        self._addresses: Final = addresses
        self._path: DataPath | None = None
        self.tx: dict[int, TxQueue] = {}
        self.rx: dict[int, RxQueue] = {}
        self.tx_vectors: dict[int, tuple[int, int]] = {}
        self.rx_vectors: dict[int, tuple[int, int]] = {}
        self.tx_enabled = 0
        self.rx_enabled = 0
        self.others: set[bytes] = set()
        self.vlans: set[int] = set()
        self.filters_vlans = False
        self.promiscuous = Promiscuous(0)
        self.offloads = Offloads()
        self._said_strip = False
        self.rss = default_rss(pairs)

    @property
    def path(self) -> DataPath:
        assert self._path is not None
        return self._path

    def attach(self, path: DataPath) -> None:
        """What is behind it."""
        self._path = path
        self.apply()

    def reset(self) -> None:
        """No queue, no filters. What Linux's driver does not say again after a reset stays: its own
        address, promiscuous modes, VLAN offloads."""
        for queues in (self.tx, self.rx, self.tx_vectors, self.rx_vectors):
            queues.clear()
        self.tx_enabled = self.rx_enabled = 0
        self.others.clear()
        self.vlans.clear()
        self.filters_vlans = False
        self.rss = default_rss(self.pairs)
        self.path.reset()
        self.apply()

    def begin(self) -> None:
        """Another driver begins: as it was made."""
        self.mac = self.policy.mac
        self.promiscuous = Promiscuous(0)
        self._said_strip = False
        self.offloads = Offloads()
        self.reset()

    def negotiated(self, capabilities: Capability) -> None:
        """The driver filters VLANs, or it gets all."""
        self.filters_vlans = bool(capabilities & (Capability.VLAN | Capability.VLAN_V2))
        if not self._said_strip:
            self.offloads = replace(self.offloads, strip=Capability.VLAN in capabilities)
        self.apply()

    def apply(self) -> None:
        """Tell the data path all but the queues."""
        self._apply_filters()
        self.path.set_offloads(self.offloads)
        self.path.set_rss(self.rss)

    def set_policy(self, policy: Policy) -> None:
        """What the host allows from now on; what it no longer does, ends."""
        self.policy = policy
        if not policy.trust:
            self.mac = policy.mac
            self.others = {address for address in self.others if is_multicast(address)}
            self.promiscuous = Promiscuous(0)
        self._apply_filters()

    @property
    def filters(self) -> Filters:
        return Filters(
            mac=self.mac,
            addresses=frozenset({self.mac, *self.others}),
            vlans=frozenset(self.vlans) if self.filters_vlans else None,
            all_unicast=Promiscuous.UNICAST in self.promiscuous,
            all_multicast=Promiscuous.MULTICAST in self.promiscuous,
            check_source=self.policy.check_source,
            learn=self.policy.trust and not self.policy.check_source,
        )

    def _apply_filters(self) -> None:
        self.path.set_filters(self.filters)

    # Queues.

    def tx_queue(self, settings: Mapping[str, Any]) -> TxQueue:
        """What a message says of a transmit queue, checked."""
        index = self._queue(settings["queue"], self.tx_enabled)
        _check("ring length", settings["length"], TX_LENGTHS)
        _check_address(settings["address"])
        vector = self.tx_vectors.get(index, ())
        return TxQueue(index, settings["address"], settings["length"], *vector)

    def rx_queue(self, settings: Mapping[str, Any]) -> RxQueue:
        """What a message says of a receive queue, checked."""
        index = self._queue(settings["rx_queue"], self.rx_enabled)
        _check("ring length", settings["rx_length"], RX_LENGTHS)
        _check("buffer size", settings["buffer_size"], BUFFER_SIZES)
        _check("largest frame", settings["max_frame"], FRAMES)
        _check_address(settings["rx_address"])
        if settings["split"]:
            raise Refused(Status.PARAMETER, "headers are not split")
        return RxQueue(
            index,
            settings["rx_address"],
            settings["rx_length"],
            settings["buffer_size"],
            settings["max_frame"],
            *self.rx_vectors.get(index, ()),
        )

    def configure(self, tx: Iterable[TxQueue], rx: Iterable[RxQueue]) -> None:
        """Take queues that have been checked."""
        for queue in tx:
            self.tx[queue.index] = queue
            self.path.configure_tx(queue)
        for received in rx:
            self.rx[received.index] = received
            self.path.configure_rx(received)

    def _queue(self, index: int, enabled: int) -> int:
        if index >= self.pairs:
            raise Refused(Status.PARAMETER, f"queue {index} of {self.pairs}")
        if enabled >> index & 1:
            raise Refused(Status.PARAMETER, f"queue {index} is enabled: disable it first")
        return index

    def check_vector(self, settings: Mapping[str, Any]) -> None:
        """Refused unless ``map_vector`` could do it."""
        vector, tx, rx = settings["vector"], settings["tx_queues"], settings["rx_queues"]
        if vector > self.pairs:
            raise Refused(Status.PARAMETER, f"vector {vector} of {self.pairs + 1}")
        if (tx | rx) >> self.pairs or (not vector and tx | rx):
            raise Refused(
                Status.PARAMETER, f"vector {vector} for queues {tx:#x} and {rx:#x} of {self.pairs}"
            )
        _check("ITR index", settings["tx_itr"], range(4))
        _check("ITR index", settings["rx_itr"], range(4))
        if tx & self.tx_enabled or rx & self.rx_enabled:
            raise Refused(Status.PARAMETER, "a vector for queues that are enabled")

    def map_vector(self, settings: Mapping[str, Any]) -> None:
        """Queues of the masks raise the message of ``vector``, those not configured yet too."""
        message = settings["vector"] - 1
        tx, rx = _bits(settings["tx_queues"]), _bits(settings["rx_queues"])
        self.tx_vectors.update(dict.fromkeys(tx, (message, settings["tx_itr"])))
        self.rx_vectors.update(dict.fromkeys(rx, (message, settings["rx_itr"])))
        self.configure(
            [
                replace(self.tx[index], message=message, itr=settings["tx_itr"])
                for index in tx
                if index in self.tx
            ],
            [
                replace(self.rx[index], message=message, itr=settings["rx_itr"])
                for index in rx
                if index in self.rx
            ],
        )

    def select(self, settings: Mapping[str, Any]) -> tuple[int, int]:
        """The masks of a queue selection, transmit first."""
        tx, rx = settings["tx_queues"], settings["rx_queues"]
        if not tx | rx or (tx | rx) >> self.pairs:
            raise Refused(Status.PARAMETER, f"queues {tx:#x} and {rx:#x} of {self.pairs}")
        return tx, rx

    def enable(self, tx: int, rx: int) -> None:
        if tx & ~_mask(self.tx) or rx & ~_mask(self.rx):
            raise Refused(Status.PARAMETER, "queues to be enabled are not configured")
        self.path.enable(tx & ~self.tx_enabled, rx & ~self.rx_enabled)
        self.tx_enabled |= tx
        self.rx_enabled |= rx

    def disable(self, tx: int, rx: int) -> None:
        self.path.disable(tx & self.tx_enabled, rx & self.rx_enabled)
        self.tx_enabled &= ~tx
        self.rx_enabled &= ~rx

    # Filters: all of a message, or nothing.

    def add_addresses(self, addresses: Iterable[bytes], primary: Iterable[bytes] = ()) -> None:
        """``primary``: those of them that the driver calls its own; the last one counts."""
        new = set(addresses)
        for address in new:
            if not any(address) or address == BROADCAST:
                raise Refused(Status.PARAMETER, f"address {text(address)} cannot be had")
            if is_multicast(address) or address in (self.mac, self.policy.mac):
                continue
            if not self.policy.trust:
                raise Refused(
                    Status.PARAMETER,
                    f"address {text(address)} is not its own: set trust, if it may have others",
                )
            if self._addresses.is_taken(address):
                raise Refused(Status.PARAMETER, f"address {text(address)} is another VDEV's")
        own = next((mac for mac in reversed(list(primary)) if not is_multicast(mac)), self.mac)
        new = (self.others | new | {self.mac}) - {own}  # the driver removes the one before
        if len(new) >= MOST_ADDRESSES:
            raise Refused(Status.NO_MEMORY, f"more than {MOST_ADDRESSES} addresses")
        self.mac, self.others = own, new
        self._apply_filters()

    def remove_addresses(self, addresses: Iterable[bytes]) -> None:
        """Its own stays: Linux's driver removes and adds it."""
        gone = set(addresses)
        unknown = gone - self.others - {self.mac, self.policy.mac, BROADCAST}
        if unknown:
            raise Refused(Status.PARAMETER, f"address {text(min(unknown))} has not been added")
        self.others -= gone
        self._apply_filters()

    def add_vlans(self, vlans: Iterable[int]) -> None:
        new = set(vlans)
        for vlan in new:
            _check("VLAN", vlan, range(4095))
        new |= self.vlans
        if len(new - {0}) > self.policy.max_vlans:
            raise Refused(Status.NO_MEMORY, f"more than {self.policy.max_vlans} VLANs")
        self.vlans = new
        self._apply_filters()

    def remove_vlans(self, vlans: Iterable[int]) -> None:
        gone = set(vlans)
        for vlan in gone:
            _check("VLAN", vlan, range(4095))
        self.vlans -= gone
        self._apply_filters()

    def set_promiscuous(self, flags: int) -> bool:
        """False: it is not trusted, and stays as it is."""
        if flags & ~sum(Promiscuous):
            raise Refused(Status.PARAMETER, f"promiscuous flags {flags:#x}")
        if flags and not self.policy.trust:
            return False
        self.promiscuous = Promiscuous(flags)
        self._apply_filters()
        return True

    # Offloads.

    def set_strip(self, on: bool) -> None:
        self._said_strip = True
        self.offloads = replace(self.offloads, strip=on)
        self.path.set_offloads(self.offloads)

    def set_insert(self, on: bool) -> None:
        self.offloads = replace(self.offloads, insert=on)
        self.path.set_offloads(self.offloads)

    def set_key(self, key: bytes) -> None:
        if len(key) != HKEY_SIZE:
            raise Refused(Status.PARAMETER, f"an RSS key of {len(key)} bytes, not {HKEY_SIZE}")
        self._set_rss(replace(self.rss, key=key))

    def set_table(self, table: bytes) -> None:
        if len(table) != HLUT_SIZE:
            raise Refused(Status.PARAMETER, f"an RSS table of {len(table)}, not {HLUT_SIZE}")
        if max(table) >= self.pairs:
            raise Refused(Status.PARAMETER, f"an RSS table with queue {max(table)} of {self.pairs}")
        self._set_rss(replace(self.rss, table=table))

    def set_types(self, types: int) -> None:
        if types & ~HASHED:
            raise Refused(Status.PARAMETER, f"packet types {types & ~HASHED:#x} are not hashed")
        self._set_rss(replace(self.rss, types=types))

    def _set_rss(self, rss: Rss) -> None:
        self.rss = rss
        self.path.set_rss(rss)

    def describe(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "id": self.id,
            "mac": text(self.mac),
            "queue_pairs": self.pairs,
            "max_frame": max((queue.max_frame for queue in self.rx.values()), default=0),
            "tx_enabled": _bits(self.tx_enabled),
            "rx_enabled": _bits(self.rx_enabled),
            "addresses": sorted(map(text, self.others)),
            "learnt": {text(mac): int(age) for mac, age in self.path.learnt().items()},
            "vlans": sorted(self.vlans) if self.filters_vlans else "all",
            "promiscuous": [flag.name.lower() for flag in self.promiscuous if flag.name],
            "rss_queues": sorted(set(self.rss.table)),
            "strip_vlan": self.offloads.strip,
            "insert_vlan": self.offloads.insert,
        }


def default_rss(pairs: int) -> Rss:
    """Before the driver says otherwise. Linux's never says which types are to be hashed."""
    return Rss(bytes(HKEY_SIZE), bytes(i % pairs for i in range(HLUT_SIZE)), HASHED)


def is_multicast(address: bytes) -> bool:
    return bool(address[0] & 1)


def text(address: bytes) -> str:
    """An address as people write it."""
    return address.hex(":")


def _bits(mask: int) -> list[int]:
    return [bit for bit in range(mask.bit_length()) if mask >> bit & 1]


def _mask(queues: Iterable[int]) -> int:
    return sum(1 << index for index in queues)


def _check(what: str, value: int, allowed: range) -> None:
    if value not in allowed:
        step = f" in steps of {allowed.step}" if allowed.step > 1 else ""
        last = allowed[-1]
        raise Refused(Status.PARAMETER, f"{what} {value}, not {allowed.start} to {last}{step}")


def _check_address(address: int) -> None:
    if not address or address % 128:
        raise Refused(Status.PARAMETER, f"ring address {address:#x} is not a multiple of 128")
