"""The physical function's end of virtchnl: what each message of a driver does.

``on_OPCODE(message)`` returns what the answer carries, or raises Refused. What is not declared in
``messages.MESSAGES`` is answered with "not supported".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final, Protocol

from vdcm import DeclarationError, VdcmError
from vdcm_devices.avf.codes import (
    ETHERTYPE_VLAN,
    PRIMARY,
    RXDID_32_BYTE_BASE,
    SEVERITY_CERTAIN_DOOM,
    SEVERITY_INFO,
    VSI_SRIOV,
    Capability,
    Event,
    Opcode,
    Promiscuous,
    Status,
    VlanSupport,
)
from vdcm_devices.avf.datapath import RxQueue
from vdcm_devices.avf.messages import (
    EVENT_LINK,
    HENA,
    MESSAGES,
    NO_CAPABILITIES,
    RESOURCE,
    RXDIDS,
    STATISTICS,
    VERSION,
    VLAN_CAPABILITIES,
    Parsed,
    Refused,
)
from vdcm_devices.avf.registers import HKEY_SIZE, HLUT_SIZE
from vdcm_devices.avf.vsi import HASHED, MOST_FRAME, Vsi

OFFERED: Final = (
    Capability.L2
    | Capability.RSS_PF
    | Capability.RSS_REGISTERS
    | Capability.VLAN
    | Capability.VLAN_V2
    | Capability.REQUEST_QUEUES
    | Capability.ADVANCED_LINK_SPEED
    | Capability.FLEXIBLE_RX_DESCRIPTORS
)
WITHOUT_ASKING: Final = Capability.L2 | Capability.VLAN | Capability.RSS_PF
"""For a driver of virtchnl 1.0, which cannot ask."""
MAJOR: Final = 1
MINOR: Final = 1
_VLAN: Final = int(VlanSupport.ETHERTYPE_8100)
_VLAN_OFFLOAD: Final = int(
    VlanSupport.ETHERTYPE_8100 | VlanSupport.TAG_IN_L2TAG1 | VlanSupport.TOGGLE
)
_LEGACY_SPEEDS: Final = {
    2500: 1 << 0,
    100: 1 << 1,
    1000: 1 << 2,
    10000: 1 << 3,
    40000: 1 << 4,
    20000: 1 << 5,
    25000: 1 << 6,
    5000: 1 << 7,
}


class Function(Protocol):
    """What the messages are about: a VDEV."""

    @property
    def vsi(self) -> Vsi: ...
    @property
    def link(self) -> bool: ...
    @property
    def speed(self) -> int:
        """Mbit/s."""

    def send(self, opcode: int, status: int, data: bytes) -> None:
        """Give a message to the driver."""

    def driver_reset(self) -> None:
        """The driver asks for a reset of the function."""

    def grantable_pairs(self, wanted: int) -> int:
        """How many queue pairs it could have, if it wants so many."""

    def regroup(self, pairs: int) -> None:
        """Have so many queue pairs, and be reset."""

    def queues_changed(self) -> None:
        """The first queue has been enabled, or the last one disabled."""

    def complain(self, why: str) -> None:
        """The driver has done something that it must not do."""

    def trace(self, what: str) -> None:
        """For whoever watches."""


class Channel:
    """Answers messages for ``function``."""

    def __init__(self, function: Function) -> None:
        self._function: Final = function
        self.version = (MAJOR, MINOR)
        self.capabilities = Capability(0)
        self.active = False
        self.messages = 0
        self.refused = 0

    def forget(self) -> None:
        """The function has been reset. The version stays: a driver tells it once."""
        self.active = False
        self.capabilities = Capability(0)

    def receive(self, opcode: int, data: bytes) -> None:
        """A message has come: do it and answer."""
        self.messages += 1
        function = self._function
        try:
            message = MESSAGES.get(opcode)
            if message is None:
                status = Status.PARAMETER if opcode == Opcode.EVENT else Status.NOT_SUPPORTED
                raise Refused(status, f"message {opcode} is not one of a driver's")
            if opcode == Opcode.GET_VF_RESOURCES and self.version == (1, 0):
                message = NO_CAPABILITIES
            if not message.early and not self.active:
                raise Refused(Status.PARAMETER, f"{message.opcode.name} before GET_VF_RESOURCES")
            parsed = message.parse(data)
            self._check_vsi(parsed)
            answer = _HANDLERS[message.opcode](self, parsed)
        except Refused as error:
            self.refused += 1
            function.complain(str(error))
            function.send(opcode, error.status, b"")
            return
        function.trace(f"virtchnl {message.opcode.name} of {len(data)} bytes")
        if answer is not None:
            function.send(opcode, Status.SUCCESS, answer)
        if opcode == Opcode.ENABLE_QUEUES:
            self.tell_link()

    def _check_vsi(self, message: Parsed) -> None:
        for part in (message.head, *message.elements):
            for key in ("vsi_id", "rx_vsi_id"):
                if part.get(key, self._function.vsi.id) != self._function.vsi.id:
                    raise Refused(Status.PARAMETER, f"VSI {part[key]} is not the driver's")

    # Events.

    def tell_link(self) -> None:
        """LINK_CHANGE, with speed and state now."""
        if not self.active:
            return
        function = self._function
        advanced = Capability.ADVANCED_LINK_SPEED in self.capabilities
        speed = function.speed if advanced else _LEGACY_SPEEDS.get(function.speed, 0)
        self._event(Event.LINK_CHANGE, speed if function.link else 0, function.link, SEVERITY_INFO)

    def tell_reset(self) -> None:
        """RESET_IMPENDING."""
        if self.active:
            self._event(Event.RESET_IMPENDING, 0, False, SEVERITY_CERTAIN_DOOM)

    def _event(self, event: Event, speed: int, up: bool, severity: int) -> None:
        self._function.trace(f"virtchnl EVENT {event.name}")
        data = EVENT_LINK.pack(event=event, speed=speed, up=up, severity=severity)
        self._function.send(Opcode.EVENT, Status.SUCCESS, data)

    # Negotiation.

    def on_VERSION(self, message: Parsed) -> bytes:
        if message["major"] != MAJOR:
            raise Refused(Status.PARAMETER, f"virtchnl {message['major']}.{message['minor']}")
        self.version = (MAJOR, min(MINOR, message["minor"]))
        if not self.active:  # else it only wants to know whether somebody is there
            self._function.vsi.begin()
        return VERSION.pack(major=MAJOR, minor=self.version[1])

    def on_RESET_VF(self, _message: Parsed) -> None:
        self._function.driver_reset()  # which is the answer

    def on_GET_VF_RESOURCES(self, message: Parsed) -> bytes:
        vsi = self._function.vsi
        wanted = Capability(message.head.get("capabilities", WITHOUT_ASKING))
        granted = (wanted | Capability.L2) & OFFERED
        if Capability.VLAN_V2 in granted:
            granted &= ~Capability.VLAN
        if Capability.RSS_PF in granted:
            granted &= ~Capability.RSS_REGISTERS
        self.capabilities = granted
        self.active = True
        vsi.negotiated(granted)
        return RESOURCE.pack(
            vsis=1,
            pairs=vsi.pairs,
            vectors=vsi.pairs + 1,
            max_mtu=MOST_FRAME,
            capabilities=granted,
            key_size=HKEY_SIZE,
            lut_size=HLUT_SIZE,
            vsi_id=vsi.id,
            vsi_pairs=vsi.pairs,
            vsi_type=VSI_SRIOV,
            qset=0,
            mac=vsi.mac,
        )

    def on_GET_OFFLOAD_VLAN_V2_CAPS(self, _message: Parsed) -> bytes:
        self._need(Capability.VLAN_V2)
        return VLAN_CAPABILITIES.pack(
            filter_outer=0,
            filter_inner=_VLAN,
            filter_ethertype=_VLAN,
            max_filters=self._function.vsi.policy.max_vlans,
            strip_outer=0,
            strip_inner=_VLAN_OFFLOAD,
            insert_outer=0,
            insert_inner=_VLAN_OFFLOAD,
            ethertype=_VLAN,
            match=0,
        )

    def on_GET_SUPPORTED_RXDIDS(self, _message: Parsed) -> bytes:
        self._need(Capability.FLEXIBLE_RX_DESCRIPTORS)
        return RXDIDS.pack(supported=1 << RXDID_32_BYTE_BASE)

    def on_REQUEST_QUEUES(self, message: Parsed) -> bytes | None:
        self._need(Capability.REQUEST_QUEUES)
        wanted = message["pairs"]
        possible = self._function.grantable_pairs(wanted)
        if not wanted or possible < wanted:
            return possible.to_bytes(2, "little")
        self._function.regroup(wanted)  # which resets the function: that is the answer
        return None

    def _need(self, capability: Capability) -> None:
        if capability not in self.capabilities:
            name = capability.name
            raise Refused(Status.NOT_SUPPORTED, f"{name} has not been negotiated")

    # Queues.

    def on_CONFIG_TX_QUEUE(self, message: Parsed) -> bytes:
        vsi = self._function.vsi
        vsi.configure([vsi.tx_queue(message.head)], [])
        return b""

    def on_CONFIG_RX_QUEUE(self, message: Parsed) -> bytes:
        vsi = self._function.vsi
        vsi.configure([], [self._rx_queue(message.head)])
        return b""

    def on_CONFIG_VSI_QUEUES(self, message: Parsed) -> bytes:
        vsi = self._function.vsi
        for pair in message.elements:
            if pair["queue"] != pair["rx_queue"]:
                raise Refused(
                    Status.PARAMETER, f"a pair of queues {pair['queue']} and {pair['rx_queue']}"
                )
        tx = [vsi.tx_queue(pair) for pair in message.elements]
        vsi.configure(tx, [self._rx_queue(pair) for pair in message.elements])
        return b""

    def _rx_queue(self, settings: Mapping[str, Any]) -> RxQueue:
        negotiated = Capability.FLEXIBLE_RX_DESCRIPTORS in self.capabilities
        if negotiated and settings["rxdid"] != RXDID_32_BYTE_BASE:
            raise Refused(
                Status.PARAMETER, f"receive descriptors {settings['rxdid']} are not supported"
            )
        return self._function.vsi.rx_queue(settings)

    def on_CONFIG_IRQ_MAP(self, message: Parsed) -> bytes:
        vsi = self._function.vsi
        for vector in message.elements:
            vsi.check_vector(vector)
        for vector in message.elements:
            vsi.map_vector(vector)
        return b""

    def on_ENABLE_QUEUES(self, message: Parsed) -> bytes:
        vsi = self._function.vsi
        vsi.enable(*vsi.select(message.head))
        self._changed()
        return b""

    def on_DISABLE_QUEUES(self, message: Parsed) -> bytes:
        vsi = self._function.vsi
        vsi.disable(*vsi.select(message.head))
        self._changed()
        return b""

    def _changed(self) -> None:
        try:
            self._function.queues_changed()
        except VdcmError as error:  # the host holds the ADI
            raise Refused(Status.NO_MEMORY, str(error)) from error

    def on_GET_STATS(self, _message: Parsed) -> bytes:
        return STATISTICS.pack(**asdict(self._function.vsi.path.statistics()))

    # Filters.

    def on_ADD_ETH_ADDR(self, message: Parsed) -> bytes:
        self._function.vsi.add_addresses(
            [item["address"] for item in message.elements],
            [item["address"] for item in message.elements if item["type"] & 3 == PRIMARY],
        )
        return b""

    def on_DEL_ETH_ADDR(self, message: Parsed) -> bytes:
        self._function.vsi.remove_addresses(item["address"] for item in message.elements)
        return b""

    def on_ADD_VLAN(self, message: Parsed) -> bytes:
        self._need(Capability.VLAN)
        self._function.vsi.add_vlans(item["vlan"] for item in message.elements)
        return b""

    def on_DEL_VLAN(self, message: Parsed) -> bytes:
        self._need(Capability.VLAN)
        self._function.vsi.remove_vlans(item["vlan"] for item in message.elements)
        return b""

    def on_ADD_VLAN_V2(self, message: Parsed) -> bytes:
        self._function.vsi.add_vlans(self._inner_vlans(message))
        return b""

    def on_DEL_VLAN_V2(self, message: Parsed) -> bytes:
        self._function.vsi.remove_vlans(self._inner_vlans(message))
        return b""

    def _inner_vlans(self, message: Parsed) -> Sequence[int]:
        self._need(Capability.VLAN_V2)
        for item in message.elements:
            outer = item["outer_tci"] or item["outer_mask"] or item["outer_tpid"]
            if outer or item["inner_mask"] or item["inner_tpid"] != ETHERTYPE_VLAN:
                raise Refused(
                    Status.PARAMETER, f"a VLAN filter other than by inner ID of {ETHERTYPE_VLAN:#x}"
                )
        return [item["inner_tci"] for item in message.elements]

    def on_CONFIG_PROMISCUOUS_MODE(self, message: Parsed) -> bytes:
        """One that is not trusted is told so by nobody: the driver would try for ever."""
        if not self._function.vsi.set_promiscuous(message["flags"]):
            asked = " and ".join(str(flag.name).lower() for flag in Promiscuous(message["flags"]))
            self._function.complain(f"promiscuous ({asked}) without trust: set trust, if it may be")
        return b""

    # Offloads.

    def set_rss_by_registers(self, key: bytes, table: bytes, types: int) -> None:
        """A driver that has negotiated it has written HKEY, HLUT or HENA."""
        vsi = self._function.vsi
        try:
            self._need(Capability.RSS_REGISTERS)
            vsi.set_types(types)
            vsi.set_key(key)
            vsi.set_table(table)
        except Refused as error:
            self._function.complain(f"RSS by registers: {error}")

    def on_CONFIG_RSS_KEY(self, message: Parsed) -> bytes:
        self._need(Capability.RSS_PF)
        self._function.vsi.set_key(message.tail)
        return b""

    def on_CONFIG_RSS_LUT(self, message: Parsed) -> bytes:
        self._need(Capability.RSS_PF)
        self._function.vsi.set_table(message.tail)
        return b""

    def on_GET_RSS_HENA_CAPS(self, _message: Parsed) -> bytes:
        self._need(Capability.RSS_PF)
        return HENA.pack(hena=HASHED)

    def on_SET_RSS_HENA(self, message: Parsed) -> bytes:
        self._need(Capability.RSS_PF)
        self._function.vsi.set_types(message["hena"])
        return b""

    def on_ENABLE_VLAN_STRIPPING(self, _message: Parsed) -> bytes:
        self._need(Capability.VLAN)
        self._function.vsi.set_strip(True)
        return b""

    def on_DISABLE_VLAN_STRIPPING(self, _message: Parsed) -> bytes:
        self._need(Capability.VLAN)
        self._function.vsi.set_strip(False)
        return b""

    def on_ENABLE_VLAN_STRIPPING_V2(self, message: Parsed) -> bytes:
        return self._toggle(message, self._function.vsi.set_strip, True)

    def on_DISABLE_VLAN_STRIPPING_V2(self, message: Parsed) -> bytes:
        return self._toggle(message, self._function.vsi.set_strip, False)

    def on_ENABLE_VLAN_INSERTION_V2(self, message: Parsed) -> bytes:
        return self._toggle(message, self._function.vsi.set_insert, True)

    def on_DISABLE_VLAN_INSERTION_V2(self, message: Parsed) -> bytes:
        return self._toggle(message, self._function.vsi.set_insert, False)

    def _toggle(self, message: Parsed, change: Callable[[bool], None], on: bool) -> bytes:
        self._need(Capability.VLAN_V2)
        if message["outer"] or message["inner"] != _VLAN:
            raise Refused(
                Status.PARAMETER,
                f"VLAN offload of {message['outer']:#x} and {message['inner']:#x}: "
                "only the inner one of 0x8100 can be set",
            )
        change(on)
        return b""


def _handlers() -> dict[Opcode, Callable[[Channel, Parsed], bytes | None]]:
    """By name; each declared message has one, and each one a message."""
    found = {
        name.removeprefix("on_"): method
        for name, method in vars(Channel).items()
        if name.startswith("on_")
    }
    declared = {message.opcode.name: message.opcode for message in MESSAGES.values()}
    wrong = found.keys() ^ declared.keys()
    if wrong:
        raise DeclarationError(f"Channel: messages and handlers differ: {', '.join(sorted(wrong))}")
    return {declared[name]: method for name, method in found.items()}


_HANDLERS: Final = _handlers()
