"""The messages of virtchnl 1.1, declared: fields, lengths, and what is answered.

A message is a head, and may go on with as many elements as a field of its head says. Where the
structure of the C binding holds one element already, drivers send one more than they count
(``spare``), newer ones only as many as they count: both are right. All is little-endian.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from struct import Struct
from typing import Any, Final

from vdcm_devices.avf.codes import Opcode, Status


class Refused(Exception):
    """A message is answered with ``status``; the text says why."""

    def __init__(self, status: Status, why: str) -> None:
        super().__init__(why)
        self.status = status


class Layout:
    """Fields in the notation ``name:code``, with the codes of ``struct``; a code alone is padding.

    ``Layout("major:I minor:I")`` is two words of 32 bits.
    """

    def __init__(self, text: str) -> None:
        parts = [part.rpartition(":") for part in text.split()]
        self.names: Final = tuple(name for name, _, _ in parts if name)
        self._struct: Final = Struct("<" + "".join(code for _, _, code in parts))
        self.size: Final = self._struct.size

    def unpack(self, data: bytes, offset: int = 0) -> dict[str, Any]:
        return dict(zip(self.names, self._struct.unpack_from(data, offset), strict=True))

    def pack(self, **values: Any) -> bytes:
        """All fields by name."""
        if values.keys() != set(self.names):
            raise ValueError(f"fields {', '.join(values)}, not {', '.join(self.names)}")
        return self._struct.pack(*(values[name] for name in self.names))


@dataclass(frozen=True)
class Parsed:
    """A message whose lengths are right. ``tail``: the elements as bytes."""

    head: Mapping[str, Any]
    elements: Sequence[Mapping[str, Any]]
    tail: bytes

    def __getitem__(self, name: str) -> Any:
        return self.head[name]


@dataclass(frozen=True)
class Message:
    """``count`` is the field of the head that counts the elements; ``spare``: as above.

    ``early``: it may come before the driver has asked for resources.
    """

    opcode: Opcode
    head: Layout = Layout("")  # noqa: RUF009  # it is immutable
    element: Layout | None = None
    count: str = ""
    spare: bool = False
    early: bool = False

    def parse(self, data: bytes) -> Parsed:
        """Refused if the length is not what the head says."""
        if len(data) < self.head.size:
            self._wrong_length(len(data), self.head.size)
        head = self.head.unpack(data)
        size, elements = self.head.size, []
        if self.element is not None:
            count, each = head[self.count], self.element.size
            if not count:
                raise Refused(Status.LENGTH, f"{self.opcode.name} has no element")
            size += count * each
            if len(data) not in ((size, size + each) if self.spare else (size,)):
                self._wrong_length(len(data), size)
            if self.element.names:
                elements = [
                    self.element.unpack(data, self.head.size + i * each) for i in range(count)
                ]
        elif len(data) != size:
            self._wrong_length(len(data), size)
        return Parsed(head, elements, data[self.head.size : size])

    def _wrong_length(self, found: int, right: int) -> None:
        raise Refused(Status.LENGTH, f"{self.opcode.name} of {found} bytes, not {right}")


VERSION: Final = Layout("major:I minor:I")
RESOURCE: Final = Layout(
    "vsis:H pairs:H vectors:H max_mtu:H capabilities:I key_size:I lut_size:I "
    "vsi_id:H vsi_pairs:H vsi_type:I qset:H mac:6s"
)
TX_QUEUE: Final = "vsi_id:H queue:H length:H headwb:H address:Q headwb_address:Q"
RX_QUEUE: Final = (
    "rx_vsi_id:H rx_queue:H rx_length:I header_size:H split:H buffer_size:I max_frame:I "
    "crc_disable:B rxdid:B flags:B 1x rx_address:Q split_position:I 4x"
)
QUEUE_SELECT: Final = Layout("vsi_id:H 2x rx_queues:I tx_queues:I")
ADDRESS_LIST: Final = Layout("vsi_id:H count:H")
ADDRESS: Final = Layout("address:6s type:B 1x")
VLAN_LIST: Final = Layout("vsi_id:H count:H")
VLAN: Final = Layout("vlan:H")
VLAN_LIST_V2: Final = Layout("vsi_id:H count:H 4x")
VLAN_V2: Final = Layout(
    "inner_tci:H inner_mask:H inner_tpid:H 2x outer_tci:H outer_mask:H outer_tpid:H 2x 16x"
)
VLAN_SETTING: Final = Layout("outer:I inner:I vsi_id:H 6x")
VLAN_CAPABILITIES: Final = Layout(
    "filter_outer:I filter_inner:I filter_ethertype:I max_filters:H 2x "
    "strip_outer:I strip_inner:I insert_outer:I insert_inner:I ethertype:I match:B 3x"
)
EVENT_LINK: Final = Layout("event:I speed:I up:B 3x severity:i")
HENA: Final = Layout("hena:Q")
RXDIDS: Final = Layout("supported:Q")
STATISTICS: Final = Layout(
    "rx_bytes:Q rx_unicast:Q rx_multicast:Q rx_broadcast:Q rx_discards:Q rx_unknown_protocol:Q "
    "tx_bytes:Q tx_unicast:Q tx_multicast:Q tx_broadcast:Q tx_discards:Q tx_errors:Q"
)
LUT: Final = Layout("vsi_id:H count:H")
BYTE: Final = Layout("1x")

_DECLARED = (
    Message(Opcode.VERSION, VERSION, early=True),
    Message(Opcode.RESET_VF, early=True),
    Message(Opcode.GET_VF_RESOURCES, Layout("capabilities:I"), early=True),
    Message(Opcode.CONFIG_TX_QUEUE, Layout(TX_QUEUE)),
    Message(Opcode.CONFIG_RX_QUEUE, Layout(RX_QUEUE)),
    Message(
        Opcode.CONFIG_VSI_QUEUES,
        Layout("vsi_id:H count:H 4x"),
        Layout(f"{TX_QUEUE} {RX_QUEUE}"),
        "count",
        spare=True,
    ),
    Message(
        Opcode.CONFIG_IRQ_MAP,
        Layout("count:H"),
        Layout("vsi_id:H vector:H rx_queues:H tx_queues:H rx_itr:H tx_itr:H"),
        "count",
        spare=True,
    ),
    Message(Opcode.ENABLE_QUEUES, QUEUE_SELECT),
    Message(Opcode.DISABLE_QUEUES, QUEUE_SELECT),
    Message(Opcode.ADD_ETH_ADDR, ADDRESS_LIST, ADDRESS, "count", spare=True),
    Message(Opcode.DEL_ETH_ADDR, ADDRESS_LIST, ADDRESS, "count", spare=True),
    Message(Opcode.ADD_VLAN, VLAN_LIST, VLAN, "count", spare=True),
    Message(Opcode.DEL_VLAN, VLAN_LIST, VLAN, "count", spare=True),
    Message(Opcode.CONFIG_PROMISCUOUS_MODE, Layout("vsi_id:H flags:H")),
    Message(Opcode.GET_STATS, QUEUE_SELECT),
    Message(Opcode.CONFIG_RSS_KEY, LUT, BYTE, "count", spare=True),
    Message(Opcode.CONFIG_RSS_LUT, LUT, BYTE, "count", spare=True),
    Message(Opcode.GET_RSS_HENA_CAPS),
    Message(Opcode.SET_RSS_HENA, HENA),
    Message(Opcode.ENABLE_VLAN_STRIPPING),
    Message(Opcode.DISABLE_VLAN_STRIPPING),
    Message(Opcode.REQUEST_QUEUES, Layout("pairs:H")),
    Message(Opcode.GET_OFFLOAD_VLAN_V2_CAPS),
    Message(Opcode.ADD_VLAN_V2, VLAN_LIST_V2, VLAN_V2, "count"),
    Message(Opcode.DEL_VLAN_V2, VLAN_LIST_V2, VLAN_V2, "count"),
    Message(Opcode.ENABLE_VLAN_STRIPPING_V2, VLAN_SETTING),
    Message(Opcode.DISABLE_VLAN_STRIPPING_V2, VLAN_SETTING),
    Message(Opcode.ENABLE_VLAN_INSERTION_V2, VLAN_SETTING),
    Message(Opcode.DISABLE_VLAN_INSERTION_V2, VLAN_SETTING),
    Message(Opcode.GET_SUPPORTED_RXDIDS),
)
MESSAGES: Final[Mapping[int, Message]] = {message.opcode: message for message in _DECLARED}
"""What a driver may send, by opcode."""
NO_CAPABILITIES: Final = Message(Opcode.GET_VF_RESOURCES, early=True)
"""As a driver of virtchnl 1.0 asks."""
