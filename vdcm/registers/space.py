"""Addresses: where maps are placed, how an access is split over registers, and its trace."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

from vdcm.errors import DeclarationError
from vdcm.registers.declaration import Access, Register
from vdcm.registers.map import Element, RegisterError, RegisterMap, same_keys


@dataclass(frozen=True, slots=True)
class Touched:
    """A register that an access touched. ``register`` is None, and ``name`` "?", if none was there.

    ``before`` and ``after`` are whole values: of a read both are what was read; of a write
    ``after`` is the value by the access rules, which the handler is then given.
    """

    name: str
    register: Register | None
    before: int
    after: int


@dataclass(frozen=True, slots=True)
class AccessRecord:
    """One guest access, as an observer sees it; ``str()`` of it names registers and fields."""

    kind: str
    """``read`` or ``write``"""
    space: str
    offset: int
    width: int
    value: int
    touched: tuple[Touched, ...]

    def __str__(self) -> str:
        head = f"{self.kind} {self.space}+{self.offset:#04x} "
        details = [text for touched in self.touched for text in self._details(touched)]
        if self.kind == "write" and details:
            return f"{head}{', '.join(details)} ({self.value:#x})"
        tail = f" ({', '.join(details)})" if details else ""
        return f"{head}{', '.join(t.name for t in self.touched)} = {self.value:#x}{tail}"

    def _details(self, touched: Touched) -> Iterator[str]:
        """A read's fields that are not 0; a write's fields that change or are given a command."""
        if touched.register is None:
            return
        for name, field in touched.register.fields.items():
            before, after = field.decode(touched.before), field.decode(touched.after)
            command = (field.access or touched.register.access) is Access.WO
            if self.kind == "read" or command:
                if touched.after & field.mask:
                    yield f"{name if self.kind == 'read' else f'{touched.name}.{name}'}={after}"
            elif touched.before & field.mask != touched.after & field.mask:
                yield f"{touched.name}.{name} {before}→{after}"


class RegisterSpace:
    """``size`` bytes of addresses that the guest reads and writes, with register maps in them.

    An access is an offset, a width of 1, 2, 4 or 8 bytes and a little-endian value, at any
    alignment. It is split at register boundaries, in ascending order; a handler runs once per
    register touched, of a partial write after merging. Bytes that no register covers read as the
    byte ``unmapped`` and ignore writes. An access that is not wholly inside the space reads as all
    ones and ignores writes, as a read that no PCI function answers.

    ``observer``, if set, gets an AccessRecord for each access: of a write before its handlers run
    (so that what they cause is reported after it), of a read once its value is known.
    """

    def __init__(self, name: str, size: int, unmapped: int = 0) -> None:
        if size < 1:
            raise DeclarationError(f"{name}: a space has at least one byte, not {size}")
        if not 0 <= unmapped <= 0xFF:
            raise DeclarationError(f"{name}: unmapped is a byte, not {unmapped:#x}")
        self.name = name
        self.size = size
        self.observer: Callable[[AccessRecord], None] | None = None
        self._unmapped = int.from_bytes(bytes([unmapped]) * 8, "little")
        self._bases: list[int] = []
        self._maps: list[RegisterMap] = []
        # Filled by the first access that is exactly one register, so at most one entry for each.
        self._readers: dict[tuple[int, int], Callable[[], int]] = {}
        self._writers: dict[tuple[int, int], Callable[[int], None]] = {}

    def place(self, base: int, registers: RegisterMap) -> None:
        """Put a map's registers at byte ``base``.

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
        registers._placed = True

    def read(self, offset: int, width: int) -> int:
        """Read ``width`` bytes (1, 2, 4 or 8, else RegisterError) at ``offset`` as the guest."""
        if self.observer is None:
            reader = self._readers.get((offset, width))
            if reader is not None:
                return reader()
        return self._read_any(offset, width)

    def write(self, offset: int, width: int, value: int) -> None:
        """Write ``width`` bytes (1, 2, 4 or 8, else RegisterError) at ``offset`` as the guest.

        Bits of ``value`` beyond the width are ignored.
        """
        if self.observer is None:
            writer = self._writers.get((offset, width))
            if writer is not None:
                writer(value)
                return
        self._write_any(offset, width, value)

    def _read_any(self, offset: int, width: int) -> int:
        ones = self._ones(width)
        touched: list[Touched] = []
        if offset < 0 or offset + width > self.size:
            result = ones
        else:
            result = self._unmapped & ones
            for registers, element, shift in self._split(offset, width):
                covered = _shifted(ones, -shift) & element.register.full
                if covered == ones == element.register.full:
                    self._readers[offset, width] = registers._reader(element)
                value = registers._read(element, covered)
                result &= ~_shifted(covered, shift)
                result |= _shifted(value & covered, shift)
                if self.observer is not None:
                    name = element.register.label(element.position)
                    touched.append(Touched(name, element.register, value, value))
        self._report("read", offset, width, result, touched)
        return result

    def _write_any(self, offset: int, width: int, value: int) -> None:
        ones = self._ones(width)
        value &= ones
        parts: list[tuple[RegisterMap, Element, int, int]] = []
        torn: list[Touched] = []
        if offset >= 0 and offset + width <= self.size:
            for registers, element, shift in self._split(offset, width):
                covered = _shifted(ones, -shift) & element.register.full
                if element.register.whole and covered != element.register.full:
                    name = element.register.label(element.position)
                    torn.append(Touched(f"{name} (ignored: not the whole register)", None, 0, 0))
                    continue
                parts.append((registers, element, covered, _shifted(value, -shift) & covered))
                if covered == ones == element.register.full:
                    self._writers[offset, width] = partial(registers._write, element, covered)
        if self.observer is not None:
            touched = [
                Touched(
                    element.register.label(element.position),
                    element.register,
                    registers._values[element.slot],
                    registers._merged(element.slot, covered, data),
                )
                for registers, element, covered, data in parts
            ]
            self._report("write", offset, width, value, touched + torn)
        for registers, element, covered, data in parts:
            registers._write(element, covered, data)

    def _ones(self, width: int) -> int:
        if width not in (1, 2, 4, 8):
            raise RegisterError(f"{self.name}: an access is 1, 2, 4 or 8 bytes wide, not {width}")
        return (1 << 8 * width) - 1

    def _split(self, offset: int, width: int) -> Iterator[tuple[RegisterMap, Element, int]]:
        """The registers of an access, ascending, with the bit of the access where each begins."""
        end = offset + width
        first_map = max(bisect_right(self._bases, offset) - 1, 0)
        for i in range(first_map, bisect_right(self._bases, end - 1)):
            registers, base = self._maps[i], self._bases[i]
            first = max(bisect_right(registers._offsets, offset - base) - 1, 0)
            last = bisect_right(registers._offsets, end - 1 - base)
            for element in registers._elements[first:last]:
                at = base + element.offset
                if at + element.register.size > offset:
                    yield registers, element, 8 * (at - offset)

    def _report(
        self, kind: str, offset: int, width: int, value: int, touched: list[Touched]
    ) -> None:
        if self.observer is not None:
            nothing = Touched("?", None, 0, 0)
            record = AccessRecord(
                kind, self.name, offset, width, value, tuple(touched) or (nothing,)
            )
            self.observer(record)

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


def _shifted(value: int, left: int) -> int:
    return value << left if left >= 0 else value >> -left
