"""What header and capabilities have in common, and how capabilities are placed and linked.

Sections are those of the PCI Express Base Specification 5.0.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from functools import cache
from typing import TYPE_CHECKING, ClassVar, Final

from vdcm.errors import DeclarationError
from vdcm.registers import Access, Field, Register, RegisterMap

if TYPE_CHECKING:
    from vdcm.pci.config import ConfigSpace
    from vdcm.pci.header import BarLayout


class ConfigPart(RegisterMap):
    """A block of configuration registers. ``config`` is set when it becomes part of a space.

    A part whose changes matter to the VDEV overrides ``state`` and ``notify``, and calls
    ``publish`` from the write handlers of the registers that make up the state.
    """

    config: ConfigSpace

    def state(self) -> object:
        """What the owner wants to know, comparable."""
        return None

    def notify(self) -> None:
        """Tell the owner that ``state`` has changed."""

    def attach(self, config: ConfigSpace) -> None:
        """Make it part of ``config``."""
        self.config = config
        self._published = self.state()

    def publish(self) -> None:
        """Notify if the state is not the one published last."""
        state = self.state()
        if state != self._published:
            self._published = state
            self.notify()


class Capability(ConfigPart, ABC):
    """A block that is found by walking a chain. ``offset`` is its place, once it has one.

    ``at`` asks for a place; without it the first free one is taken. ``data`` are read-only bytes
    after its registers.
    """

    capability_id: ClassVar[int]
    repeatable: ClassVar[bool] = False
    """A function may have more than one."""
    begin: ClassVar[int]
    end: ClassVar[int]

    def __init__(self, *, at: int | None = None, data: bytes = b"") -> None:
        super().__init__()
        self.at: Final = at
        self.offset = 0
        self.payload: Final = _read_only_bytes(data) if data else None
        self.length: Final = self.size + len(data)
        """Bytes it takes."""

    @abstractmethod
    def link(self, following: int) -> None:
        """Fill the header in: the id, and the next capability's offset or 0."""

    def check_bars(self, bars: Mapping[int, BarLayout]) -> None:
        """Raise DeclarationError if it refers to BARs that are not so."""


class StandardCapability(Capability):
    """A capability in the chain from 0x40 to 0xff (7.5.1.1.11).

    A new kind is a subclass with ``capability_id`` (8 bits) and registers from byte 2 on.
    """

    begin = 0x40
    end = 0x100

    ID = Register(0x0, 8, Access.RO)
    NEXT = Register(0x1, 8, Access.RO)

    def link(self, following: int) -> None:
        self.ID.preset(self.capability_id)
        self.NEXT.preset(following)


class ExtendedCapability(Capability):
    """A capability in the chain from 0x100 to 0xfff (7.6.3).

    A new kind is a subclass with ``capability_id`` (16 bits), ``version`` and registers from byte 4
    on.
    """

    version: ClassVar[int] = 1
    begin = 0x100
    end = 0x1000

    HEADER = Register(
        0x0,
        32,
        Access.RO,
        fields={"ID": Field(0, 16), "VERSION": Field(16, 4), "NEXT": Field(20, 12)},
    )

    def link(self, following: int) -> None:
        self.HEADER.preset(ID=self.capability_id, VERSION=self.version, NEXT=following)


def place_chain(capabilities: Iterable[Capability], begin: int, end: int) -> list[Capability]:
    """Give each capability its offset, first those that ask for one, and link them.

    Returns them in the order of the chain: ascending, so that it cannot loop. Raises
    DeclarationError for a place that cannot be.
    """
    chain: list[Capability] = []
    for capability in sorted(capabilities, key=lambda c: c.at is None):
        name, size = type(capability).__name__, _room(capability)
        offset = begin if capability.at is None else capability.at
        for other in chain:
            if other.offset < offset + size and offset < other.offset + _room(other):
                if capability.at is not None:
                    raise DeclarationError(
                        f"{name} of {size} bytes at {offset:#x} overlaps "
                        f"{type(other).__name__} at {other.offset:#x}"
                    )
                offset = other.offset + _room(other)
        if offset % 4 or offset < begin or offset + size > end:
            raise DeclarationError(
                f"{name} of {size} bytes at {offset:#x}: a capability of its kind lies "
                f"between {begin:#x} and {end - 1:#x}, at a multiple of 4"
            )
        capability.offset = offset
        chain.append(capability)
        chain.sort(key=lambda c: c.offset)
    offsets = [capability.offset for capability in chain]
    for capability, following in zip(chain, [*offsets[1:], 0], strict=False):
        capability.link(following)
    return chain


def _room(capability: Capability) -> int:
    """Bytes up to where the next one can be: capabilities begin at multiples of four."""
    return -(-capability.length // 4) * 4


class _Bytes(RegisterMap):
    """Bytes after a capability's registers; their number is the subclass's."""

    DATA = Register(0, 8, Access.RO, count=1)


@cache
def _bytes_class(length: int) -> type[_Bytes]:
    """Made once for all of a length: a class stays for good, whoever made it."""

    class Bytes(_Bytes):
        DATA = Register(0, 8, Access.RO, count=length)

    return Bytes


def _read_only_bytes(data: bytes) -> RegisterMap:
    registers = _bytes_class(len(data))()
    for register, byte in zip(registers.DATA, data, strict=True):
        register.preset(byte)
    return registers
