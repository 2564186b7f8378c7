"""What a device author writes: access kinds, fields and registers, and what cannot be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple, overload

from vdcm.errors import DeclarationError

if TYPE_CHECKING:
    from vdcm.registers.map import BoundRegister, RegisterMap


class Access(Enum):
    """What the guest may do with a bit. The device's side is never restricted."""

    RO = "read only"
    """Writes are ignored."""
    RW = "read, write"
    W1C = "read, write 1 to clear"
    """Writing 1 clears the bit, writing 0 leaves it."""
    WO = "write only"
    """Reads as 0. Holds what the last write to the register put there; a byte that write did not
    cover counts as 0, so that a command bit is never given twice."""
    RC = "read clears"
    """Reading the bit's byte clears it, writes are ignored."""


@dataclass(frozen=True, slots=True)
class Field:
    """Bits ``lsb`` to ``lsb + width - 1`` of a register.

    ``access`` defaults to the register's. ``reset`` is the field's value, not shifted. ``values``
    names the values, for dumps and traces. ``sticky`` bits survive ``reset(keep_sticky=True)``.
    """

    lsb: int
    width: int = 1
    access: Access | None = None
    reset: int = 0
    values: type[Enum] | Mapping[int, str] | None = None
    doc: str = ""
    sticky: bool = False

    @property
    def mask(self) -> int:
        return ((1 << self.width) - 1) << self.lsb

    def decode(self, register_value: int) -> int | str:
        """The field's value inside ``register_value``: its name if it has one, else the number."""
        value = (register_value & self.mask) >> self.lsb
        if self.values is None:
            return value
        if isinstance(self.values, Mapping):
            return self.values.get(value, value)
        return next((m.name for m in self.values if m.value == value), value)


def as_text(value: int | str) -> str:
    """A field's value in text: one too long for a count or a code is an address, or the like."""
    return f"{value:#x}" if isinstance(value, int) and value > 0xFFFF else f"{value}"


class Masks(NamedTuple):
    """A register's bits by what an access does to them."""

    readable: int
    rw: int
    w1c: int
    wo: int
    rc: int
    sticky: int


class Register:
    """One register, or an array of ``count`` registers every ``stride`` bytes.

    ``offset`` is in bytes from the start of the map, naturally aligned; ``width`` is 8, 16, 32 or
    64 bits. ``access`` holds for every bit, or with ``fields`` for every field that names none.
    ``reset`` is the whole value; with fields, give it here or in the fields, not in both. Bits that
    no field covers are reserved: they read 0 and ignore writes, unless ``reserved`` says otherwise.
    With ``count`` (even 1) it is an array: index it, and its handlers take the index first;
    ``stride`` defaults to the register's size. ``whole``: a write that does not cover all of it is
    ignored, as of a command that several accesses would tear. ``answered``: a write is a command
    that the device answers with an interrupt (for hints, vdcm/hints.py). What cannot be is refused
    when the map's class is made.
    """

    def __init__(
        self,
        offset: int,
        width: int,
        access: Access = Access.RW,
        reset: int = 0,
        *,
        doc: str = "",
        fields: Mapping[str, Field] | None = None,
        count: int | None = None,
        stride: int | None = None,
        reserved: Access = Access.RO,
        sticky: bool = False,
        whole: bool = False,
        answered: bool = False,
    ) -> None:
        self.name = ""
        self.offset = offset
        self.width = width
        self.access = access
        self.doc = doc
        self.fields = dict(fields or {})
        self.count = count
        self.reserved = reserved
        self.sticky = sticky
        self.whole = whole
        self.answered = answered
        self.size = width // 8
        self.full = (1 << max(width, 0)) - 1
        self.stride = self.size if stride is None else stride
        self._own_reset = reset
        self.reset = reset
        for field in self.fields.values():
            if field.lsb >= 0 and field.width > 0:  # others are refused by check()
                self.reset |= field.reset << field.lsb

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, instance: None, owner: type) -> Register: ...
    @overload
    def __get__(self, instance: RegisterMap, owner: type) -> BoundRegister: ...
    @overload
    def __get__(self, instance: object, owner: type) -> Register: ...
    def __get__(self, instance: object, owner: type) -> Register | BoundRegister:
        bind = getattr(instance, "_bind_register", None)  # a RegisterMap has it
        return self if bind is None else bind(self)

    def label(self, index: int | None) -> str:
        return self.name if index is None else f"{self.name}[{index}]"

    def masks(self) -> Masks:
        bits = dict.fromkeys(Access, 0)
        sticky = self.full if self.sticky else 0
        uncovered = self.full
        for field in self.fields.values():
            bits[field.access or self.access] |= field.mask
            sticky |= field.mask if field.sticky else 0
            uncovered &= ~field.mask
        hidden = 0
        if not self.fields:
            bits[self.access] = self.full
        elif self.reserved is Access.RO:
            hidden = uncovered
        else:
            bits[self.reserved] |= uncovered
        wo = bits[Access.WO]
        return Masks(
            readable=self.full & ~wo & ~hidden,
            rw=bits[Access.RW],
            w1c=bits[Access.W1C],
            wo=wo,
            rc=bits[Access.RC],
            sticky=sticky,
        )

    def check(self, place: str) -> None:
        """Raise DeclarationError, prefixed with ``place``, if this register cannot be."""

        def refuse(why: str) -> None:
            raise DeclarationError(f"{place}: {why}")

        if self.width not in (8, 16, 32, 64):
            refuse(f"a register is 8, 16, 32 or 64 bits wide, not {self.width}")
        if self.offset < 0 or self.offset % self.size:
            refuse(f"offset {self.offset:#x} is not a multiple of its size {self.size}")
        if self.count is not None and self.count < 1:
            refuse(f"an array has at least one element, not {self.count}")
        if self.stride < self.size or self.stride % self.size:
            refuse(f"stride {self.stride:#x} is not a positive multiple of its size {self.size}")
        taken = 0
        for name, field in self.fields.items():
            high = field.lsb + field.width - 1
            bits = f"field {name} (bits {high}:{field.lsb})"
            if not name.isidentifier() or name.startswith("_"):
                refuse(f"{name!r} cannot be a field's name")
            if field.lsb < 0 or field.width < 1 or high >= self.width:
                refuse(f"{bits} does not fit in {self.width} bits")
            if field.mask & taken:
                other = next(n for n, f in self.fields.items() if f.mask & field.mask)
                refuse(f"{bits} overlaps field {other}")
            if not 0 <= field.reset < 1 << field.width:
                refuse(f"{bits}: reset {field.reset:#x} does not fit")
            taken |= field.mask
        if not 0 <= self._own_reset <= self.full:
            refuse(f"reset {self._own_reset:#x} does not fit in {self.width} bits")
        if self._own_reset and any(f.reset for f in self.fields.values()):
            refuse("give the reset value in the register or in its fields, not in both")
        if self.fields and self.reserved is Access.RO and self.reset & ~taken:
            refuse(f"reset {self.reset:#x} sets reserved bits {self.reset & ~taken:#x}")
