"""What faults mean, and when they hit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from vdcm.errors import VdcmError
from vdcm.protocol import Region
from vdcm.vdev import Vdev

ALWAYS: Final = (1 << 64) - 1
"""``times`` of a fault that does not end by itself."""


class Place(NamedTuple):
    """Bits of a region: those of ``mask`` in the ``width`` bytes at ``offset``.

    ``region`` is a BAR's number, or ``Region.CONFIG``.
    """

    region: int
    offset: int
    width: int
    mask: int

    @property
    def lowest(self) -> int:
        """The number of the lowest bit of ``mask``."""
        return (self.mask & -self.mask).bit_length() - 1

    @classmethod
    def of_register(cls, vdev: Vdev, name: str) -> Place:
        """``STATUS``, ``STATUS.READY``, ``BAR2:DATA[3]``, ``config:COMMAND.MEMORY``.

        BARs come first; VdcmError if there is no such register or field, or if several have it.
        """
        where, colon, register_name = name.rpartition(":")
        register_name, _, field_name = register_name.partition(".")
        spaces = {index: bar.space for index, bar in vdev.bars.items()}
        named = {index: f"BAR{index}" for index in spaces}
        spaces[Region.CONFIG], named[Region.CONFIG] = vdev.config.space, "config"
        found = [
            (region, offset, register)
            for region, space in spaces.items()
            if not colon or named[region].lower() == where.lower()
            for offset, register in space.find(register_name)
        ]
        if not colon:  # what a driver knows by that name
            found = [one for one in found if one[0] != Region.CONFIG] or found
        if not found:
            raise VdcmError(f"{vdev.name} has no register {name}: vdcm show lists them")
        if len(found) > 1:
            places = ", ".join(f"{named[region]}+{offset:#x}" for region, offset, _ in found)
            raise VdcmError(f"{vdev.name} has {name} at {places}: say BAR0:{name}, or give a Place")
        ((region, offset, register),) = found
        mask = register.full
        if field_name:
            if field_name not in register.fields:
                known = ", ".join(register.fields) or "none"
                raise VdcmError(f"{register_name} has no field {field_name} (known: {known})")
            mask = register.fields[field_name].mask
        return cls(region, offset, register.size, mask)


@dataclass
class Rule:
    """Of what it means, ``after`` go well and then ``times`` are hit."""

    after: int
    times: int
    seen: int = field(default=0, init=False)

    def due(self) -> bool:
        """Is this one hit? It is counted."""
        self.seen += 1
        return self.after < self.seen <= self.after + self.times

    @property
    def hits(self) -> int:
        return max(0, min(self.seen - self.after, self.times))


@dataclass
class InterruptRule(Rule):
    """Interrupts of ``vector`` (-1: any) wait for ``seconds``; less than 0: they are lost."""

    vector: int
    seconds: float


@dataclass
class AccessRule(Rule):
    """Accesses of the guest that touch ``place`` (None: any), and what they meet there.

    ``effect`` changes the bits of ``place``: flip, set, clear. ``act`` is called first.
    """

    effect: str
    place: Place | None
    reads: bool
    writes: bool
    act: Callable[[], None] | None = None

    def means(self, region: int, offset: int, width: int, *, write: bool) -> bool:
        if not (self.writes if write else self.reads):
            return False
        place = self.place
        return place is None or (
            region == place.region
            and offset < place.offset + place.width
            and place.offset < offset + width
        )

    def changed(self, offset: int, width: int, value: int) -> int:
        """What becomes of the value of an access."""
        if self.place is None:
            return value
        left = 8 * (self.place.offset - offset)
        bits = self.place.mask << left if left >= 0 else self.place.mask >> -left
        bits &= (1 << 8 * width) - 1
        match self.effect:
            case "flip":
                return value ^ bits
            case "set":
                return value | bits
            case "clear":
                return value & ~bits
        return value
