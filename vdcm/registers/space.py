"""Addresses: where maps are placed, and how an access is split over registers."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Final

from vdcm.errors import DeclarationError
from vdcm.registers.declaration import Register, as_text
from vdcm.registers.map import Element, RegisterError, RegisterMap, same_keys
from vdcm.registers.record import AccessRecord, Part, Place, shifted

PLACES: Final = 1024
"""Places of accesses that are remembered while somebody observes."""


class RegisterSpace:
    """``size`` bytes of addresses that the guest reads and writes, with register maps in them.

    An access is an offset, a width of 1, 2, 4 or 8 bytes and a little-endian value, at any
    alignment. It is split at register boundaries, in ascending order; a handler runs once per
    register touched, of a partial write after merging. Bytes that no register covers read as the
    byte ``unmapped`` and ignore writes. An access that is not wholly inside the space reads as all
    ones and ignores writes, as a read that no PCI function answers.

    ``observer``, if set, gets an AccessRecord for each access: of a write before its handlers run
    (so that what they cause is reported after it), of a read once its value is known. ``kind`` is
    what these events are.
    """

    def __init__(self, name: str, size: int, unmapped: int = 0, *, kind: str = "access") -> None:
        if size < 1:
            raise DeclarationError(f"{name}: a space has at least one byte, not {size}")
        if not 0 <= unmapped <= 0xFF:
            raise DeclarationError(f"{name}: unmapped is a byte, not {unmapped:#x}")
        self.name = name
        self.size = size
        self.kind = kind
        self._observer: Callable[[AccessRecord], None] | None = None
        self.on_uncovered: Callable[[Place, bool, int], None] | None = None
        """Given each access that touches no register: its place, whether it writes, its value."""
        self._places: dict[tuple[int, int], Place] = {}
        self._written: dict[tuple[int, int], tuple[Place, RegisterMap, Element]] = {}
        self._unmapped = int.from_bytes(bytes([unmapped]) * 8, "little")
        self._bases: list[int] = []
        self._maps: list[RegisterMap] = []
        self._prefixes: list[str] = []
        # Filled by the first access that is exactly one register, so at most one entry for each.
        self._readers: dict[tuple[int, int], Callable[[], int]] = {}
        self._writers: dict[tuple[int, int], Callable[[int], None]] = {}

    @property
    def observer(self) -> Callable[[AccessRecord], None] | None:
        return self._observer

    @observer.setter
    def observer(self, observer: Callable[[AccessRecord], None] | None) -> None:
        self._observer = observer
        self._places.clear()
        self._written.clear()

    def place(self, base: int, registers: RegisterMap, prefix: str = "") -> None:
        """Put a map's registers at byte ``base``; ``prefix`` comes before their names in records.

        Raises DeclarationError if it overlaps another map or does not fit in the space.
        """
        name, end = type(registers).__name__, base + registers.size
        if base < 0 or end > self.size:
            raise DeclarationError(
                f"{self.name}: {name} at {base:#x} to {end - 1:#x} "
                f"is not inside the space of {self.size:#x} bytes"
            )
        for at, other in zip(self._bases, self._maps, strict=True):
            if base < at + other.size and at < end:
                raise DeclarationError(
                    f"{self.name}: {name} at {base:#x} to {end - 1:#x} overlaps "
                    f"{type(other).__name__} at {at:#x} to {at + other.size - 1:#x}"
                )
        i = bisect_right(self._bases, base)
        self._bases.insert(i, base)
        self._maps.insert(i, registers)
        self._prefixes.insert(i, prefix)
        registers._placed = True

    def placed(self) -> Iterator[tuple[int, RegisterMap, str]]:
        """Every map that was placed, ascending: its base, the map, the prefix of its names."""
        return zip(self._bases, self._maps, self._prefixes, strict=True)

    def read(self, offset: int, width: int) -> int:
        """Read ``width`` bytes (1, 2, 4 or 8, else RegisterError) at ``offset`` as the guest."""
        reader = self._readers.get((offset, width))
        if reader is None:
            return self._read_any(offset, width)
        value = reader()
        if self._observer is not None:
            self._observer(AccessRecord(self._place_at(offset, width), False, value))
        return value

    def write(self, offset: int, width: int, value: int) -> None:
        """Write ``width`` bytes (1, 2, 4 or 8, else RegisterError) at ``offset`` as the guest.

        Bits of ``value`` beyond the width are ignored.
        """
        if self._observer is None:
            writer = self._writers.get((offset, width))
            if writer is not None:
                writer(value)
                return
        else:
            known = self._written.get((offset, width))
            if known is not None:
                place, registers, element = known
                value &= element.register.full
                before = registers._values[element.slot]
                after = registers._merged(element.slot, element.register.full, value)
                self._observer(AccessRecord(place, True, value, (before,), (after,)))
                registers._write(element, element.register.full, value)
                return
        self._write_any(offset, width, value)

    def _read_any(self, offset: int, width: int) -> int:
        ones = self._ones(width)
        if offset < 0 or offset + width > self.size:
            result = ones
        else:
            result = self._unmapped & ones
            empty = True
            for registers, element, shift in self._split(offset, width):
                covered = shifted(ones, -shift) & element.register.full
                if covered == ones == element.register.full:
                    self._readers[offset, width] = registers._reader(element)
                value = registers._read(element, covered)
                result &= ~shifted(covered, shift)
                result |= shifted(value & covered, shift)
                empty = False
            if empty and self.on_uncovered is not None:
                self.on_uncovered(self.where(offset, width), False, result)
        if self._observer is not None:
            self._observer(AccessRecord(self._place_at(offset, width), False, result))
        return result

    def _write_any(self, offset: int, width: int, value: int) -> None:
        ones = self._ones(width)
        value &= ones
        parts: list[tuple[RegisterMap, Element, int, int]] = []
        if offset >= 0 and offset + width <= self.size:
            for registers, element, shift in self._split(offset, width):
                covered = shifted(ones, -shift) & element.register.full
                if element.register.whole and covered != element.register.full:
                    continue
                parts.append((registers, element, covered, shifted(value, -shift) & covered))
                if covered == ones == element.register.full:
                    self._writers[offset, width] = partial(registers._write, element, covered)
        if self._observer is not None:
            before = tuple(registers._values[element.slot] for registers, element, _, _ in parts)
            after = tuple(
                registers._merged(element.slot, covered, data)
                for registers, element, covered, data in parts
            )
            place = self._place_at(offset, width, write=True)
            if (offset, width) in self._writers:
                registers, element, _, _ = parts[0]
                self._written[offset, width] = (place, registers, element)
            self._observer(AccessRecord(place, True, value, before, after))
        for registers, element, covered, data in parts:
            registers._write(element, covered, data)
        if not parts and self.on_uncovered is not None:
            place = self.where(offset, width, write=True)
            if not place.torn:
                self.on_uncovered(place, True, value)

    def find(self, name: str) -> list[tuple[int, Register]]:
        """The registers of a name (of an array's element ``NAME[3]``), each with its offset."""
        return [
            (base + element.offset, element.register)
            for base, registers in zip(self._bases, self._maps, strict=True)
            for element in registers._elements
            if element.register.label(element.position) == name
        ]

    def _ones(self, width: int) -> int:
        if width not in (1, 2, 4, 8):
            raise RegisterError(f"{self.name}: an access is 1, 2, 4 or 8 bytes wide, not {width}")
        return (1 << 8 * width) - 1

    def _split(self, offset: int, width: int) -> Iterator[tuple[RegisterMap, Element, int]]:
        """The registers of an access, ascending, with the bit of the access where each begins."""
        for i, element, shift in self._split_maps(offset, width):
            yield self._maps[i], element, shift

    def _split_maps(self, offset: int, width: int) -> Iterator[tuple[int, Element, int]]:
        end = offset + width
        first_map = max(bisect_right(self._bases, offset) - 1, 0)
        for i in range(first_map, bisect_right(self._bases, end - 1)):
            registers, base = self._maps[i], self._bases[i]
            first = max(bisect_right(registers._offsets, offset - base) - 1, 0)
            last = bisect_right(registers._offsets, end - 1 - base)
            for element in registers._elements[first:last]:
                at = base + element.offset
                if at + element.register.size > offset:
                    yield i, element, 8 * (at - offset)

    def where(self, offset: int, width: int, *, write: bool = False) -> Place:
        """What is where an access of ``width`` bytes at ``offset`` goes, by name."""
        parts, torn = [], []
        if offset >= 0 and offset + width <= self.size:
            ones = self._ones(width)
            for i, element, shift in self._split_maps(offset, width):
                register = element.register
                name = self._prefixes[i] + register.label(element.position)
                covered = shifted(ones, -shift) & register.full
                if write and register.whole and covered != register.full:
                    torn.append(name)
                else:
                    parts.append(Part(name, register, covered, shift))
        return Place(self.kind, self.name, offset, width, tuple(parts), tuple(torn))

    def decoded(self, place: Place, value: int) -> str:
        """``value`` of an access of ``place`` with all fields that it shows."""
        fields = [
            f"{name}={as_text(one)}" for part in place.parts for name, one in part.fields(value)
        ]
        return f"{value:#x} ({', '.join(fields)})" if fields else f"{value:#x}"

    def changed(self, place: Place) -> str:
        """What has changed the registers of ``place`` last."""
        elements = self._split(place.offset, place.width)
        return "; ".join(registers.changed_by(element) for registers, element, _ in elements)

    def before(self, offset: int) -> str:
        """The last register before ``offset`` and where it is; empty if there is none."""
        i = bisect_right(self._bases, offset) - 1
        if i < 0:
            return ""
        registers = self._maps[i]
        j = bisect_right(registers._offsets, offset - self._bases[i]) - 1
        if j < 0:
            return ""
        element = registers._elements[j]
        name = self._prefixes[i] + element.register.label(element.position)
        return f"{name} at {self._bases[i] + element.offset:#x}"

    def _place_at(self, offset: int, width: int, *, write: bool = False) -> Place:
        """The same, remembered; a guest may use as many as it likes."""
        key = (offset, -width if write else width)
        place = self._places.get(key)
        if place is None:
            if len(self._places) >= PLACES:
                self._places.clear()
            place = self._places[key] = self.where(offset, width, write=write)
        return place

    # All maps at once; a map is named after its class and where it is: ``Uart@100``.

    def _named(self) -> dict[str, RegisterMap]:
        return {
            f"{type(registers).__name__}@{base:x}": registers
            for base, registers in zip(self._bases, self._maps, strict=True)
        }

    def reset(self, *, keep_sticky: bool = False) -> None:
        """Reset every map."""
        for registers in self._maps:
            registers.reset(keep_sticky=keep_sticky)

    def dump(self) -> dict[str, object]:
        """Every map's dump, by the map's name."""
        return {name: registers.dump() for name, registers in self._named().items()}

    def stored(self) -> dict[str, int]:
        """The stored value of every register that is no array, by name."""
        return {
            name: value
            for registers in self._maps
            for name, value in registers.save().items()
            if isinstance(value, int)
        }

    def save(self) -> dict[str, object]:
        """Every map's saved values, by the map's name."""
        return {name: registers.save() for name, registers in self._named().items()}

    def restore(self, state: Mapping[str, object]) -> None:
        """Take what ``save`` gave.

        Raises RegisterError, with nothing changed, if it does not fit.
        """
        named = self._named()
        same_keys(self.name, "map", state, named)
        before = [registers.save() for registers in self._maps]
        try:
            for name, registers in named.items():
                part = state[name]
                if not isinstance(part, Mapping):
                    raise RegisterError(f"{self.name}: {name} needs a mapping of register values")
                registers.restore(part)
        except RegisterError:
            for registers, values in zip(self._maps, before, strict=True):
                registers.restore(values)
            raise
