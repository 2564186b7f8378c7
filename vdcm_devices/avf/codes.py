"""Numbers of the Adaptive Virtual Function: virtchnl 1.1, and its admin queues."""

from enum import IntEnum, IntFlag


class Opcode(IntEnum):
    """Messages of virtchnl, and the event that the device sends by itself."""

    VERSION = 1
    RESET_VF = 2
    GET_VF_RESOURCES = 3
    CONFIG_TX_QUEUE = 4
    CONFIG_RX_QUEUE = 5
    CONFIG_VSI_QUEUES = 6
    CONFIG_IRQ_MAP = 7
    ENABLE_QUEUES = 8
    DISABLE_QUEUES = 9
    ADD_ETH_ADDR = 10
    DEL_ETH_ADDR = 11
    ADD_VLAN = 12
    DEL_VLAN = 13
    CONFIG_PROMISCUOUS_MODE = 14
    GET_STATS = 15
    EVENT = 17
    CONFIG_RSS_KEY = 23
    CONFIG_RSS_LUT = 24
    GET_RSS_HENA_CAPS = 25
    SET_RSS_HENA = 26
    ENABLE_VLAN_STRIPPING = 27
    DISABLE_VLAN_STRIPPING = 28
    REQUEST_QUEUES = 29
    GET_OFFLOAD_VLAN_V2_CAPS = 51
    ADD_VLAN_V2 = 52
    DEL_VLAN_V2 = 53
    ENABLE_VLAN_STRIPPING_V2 = 54
    DISABLE_VLAN_STRIPPING_V2 = 55
    ENABLE_VLAN_INSERTION_V2 = 56
    DISABLE_VLAN_INSERTION_V2 = 57
    GET_SUPPORTED_RXDIDS = 63


class Status(IntEnum):
    """What a message is answered with."""

    SUCCESS = 0
    PARAMETER = -5
    NO_MEMORY = -18
    LENGTH = -38  # "opcode mismatch": the message's length is not its opcode's
    NOT_SUPPORTED = -64


class Capability(IntFlag):
    """What a driver asks for and a function offers, in GET_VF_RESOURCES."""

    L2 = 1 << 0
    RSS_AQ = 1 << 3
    RSS_REGISTERS = 1 << 4
    WRITE_BACK_ON_ITR = 1 << 5
    REQUEST_QUEUES = 1 << 6
    ADVANCED_LINK_SPEED = 1 << 7
    CRC = 1 << 10
    VLAN_V2 = 1 << 15
    VLAN = 1 << 16
    RSS_PF = 1 << 19
    FLEXIBLE_RX_DESCRIPTORS = 1 << 26


class VlanSupport(IntFlag):
    """Bits of the VLAN capabilities, version 2, and of the settings that go with them."""

    ETHERTYPE_8100 = 1 << 0
    TAG_IN_L2TAG1 = 1 << 8
    TOGGLE = 1 << 31


class Promiscuous(IntFlag):
    UNICAST = 1
    MULTICAST = 2


class Event(IntEnum):
    LINK_CHANGE = 1
    RESET_IMPENDING = 2


class ResetState(IntEnum):
    """VFGEN_RSTAT.VFR_STATE."""

    IN_PROGRESS = 0
    COMPLETED = 1
    ACTIVE = 2


class AdminOpcode(IntEnum):
    QUEUE_SHUTDOWN = 0x0003
    SEND_TO_PF = 0x0801
    SEND_TO_VF = 0x0802


class AdminFlag(IntFlag):
    """Of an admin queue's descriptor."""

    DONE = 1 << 0
    COMPLETED = 1 << 1
    ERROR = 1 << 2
    LARGE_BUFFER = 1 << 9
    READ = 1 << 10
    BUFFER = 1 << 12
    NO_INTERRUPT = 1 << 13


class AdminError(IntEnum):
    """``retval`` of an admin queue's descriptor."""

    OK = 0
    INVALID = 14
    NOT_IMPLEMENTED = 17
    BAD_ADDRESS = 20


VSI_SRIOV = 6
"""The type of a virtual function's VSI."""
PRIMARY = 1
"""The type of an address that the driver calls its own."""
SEVERITY_INFO = 0
SEVERITY_CERTAIN_DOOM = 255
ETHERTYPE_VLAN = 0x8100
RXDID_32_BYTE_BASE = 1
"""The receive descriptor of 32 bytes that needs no negotiation."""
