"""Models of registers made from their tables, and the walk that compares a device with them,
whoever carries its accesses: a VDEV in this process, a client, a guest.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

from dsa_register_table import (
    BAR0_SIZE,
    COMMAND,
    COUNTERS,
    PERFRST,
    Attr,
    Bits,
    Lock,
    Row,
    Shape,
    gaps,
    rows,
)

ACTIONS = {*COMMAND, *PERFRST}
ImageT = TypeVar("ImageT", bound="Image")
PATTERNS = (0xFFFF_FFFF, 0, 0xAAAA_AAAA, 0x5555_5555, 0x0F0F_0F0F, 0xFFFF_FFFF)


@dataclass(frozen=True)
class Port:
    """Accesses to a region: ``read(offset, width)`` and ``write(offset, width, value)``."""

    read: Callable[[int, int], int]
    write: Callable[[int, int, int], None]


class Image:
    """``size`` bytes of registers. ``widths`` are those of accesses; what is written at ``actions``
    does something that nobody has a model of."""

    def __init__(
        self,
        rows: list[Row],
        gaps: list[range],
        size: int,
        widths: tuple[int, ...] = (1, 2, 4, 8),
        actions: Iterable[int] = (),
    ) -> None:
        self.rows = rows
        self.gaps = gaps
        self.size = size
        self.widths = widths
        self.actions = frozenset(actions)
        self._named = {row.name: row for row in rows}
        self.image = bytearray(size)
        self._written = bytearray(size)  # bits that take what is written
        self._cleared = bytearray(size)  # bits that are cleared by a 1
        self.words = sorted(
            {at & ~3 for row in rows for at in range(row.offset, row.offset + row.size)}
        )
        for row in rows:
            _put(self._cleared, row, _mask(row, lambda bits: bits.attr is Attr.W1C))
            _put(self._written, row, _mask(row, lambda bits: bits.attr is Attr.RW))
        self.reset()

    def reset(self) -> None:
        """Power-on, or a reset of the function."""
        for row in self.rows:
            self._reset(row)

    def _reset(self, row: Row) -> None:
        _put(self.image, row, sum(bits.reset << bits.low for bits in row.bits))

    def set(self, register: str, field: str, value: int) -> None:
        """The device has changed a field."""
        row, bits, whole = self._find(register, field)
        _put(self.image, row, whole & ~bits.mask | value << bits.low)

    def get(self, register: str, field: str) -> int:
        _, bits, whole = self._find(register, field)
        return (whole & bits.mask) >> bits.low

    def _find(self, register: str, field: str) -> tuple[Row, Bits, int]:
        row = self._named[register]
        bits = next(bits for bits in row.bits if bits.name == field)
        return row, bits, int.from_bytes(self.image[row.offset : row.offset + row.size], "little")

    def write(self, offset: int, width: int, value: int) -> None:
        """As the guest."""
        for i, new in enumerate((value & (1 << 8 * width) - 1).to_bytes(width, "little")):
            at = offset + i
            old = self.image[at] & ~(self._cleared[at] & new)
            self.image[at] = old & ~self._written[at] | new & self._written[at]

    def read(self, offset: int, width: int) -> int:
        return int.from_bytes(self.image[offset : offset + width], "little")

    def name(self, offset: int) -> str:
        """Of the register at ``offset``, for messages."""
        for row in self.rows:
            if row.offset <= offset < row.offset + row.size:
                return f"{row.name}+{offset - row.offset:#x} ({row.section})"
        return f"no register at {offset:#x}"


class Model(Image):
    """What a guest finds in BAR0. Bytes that can be written depend on ``device_enabled`` and
    ``enabled_wqs``; set them with ``state()``."""

    def __init__(self, shape: Shape) -> None:
        self._counters = [row for row in rows(shape) if row.counter is not None]
        super().__init__(rows(shape), gaps(shape), BAR0_SIZE, actions=ACTIONS)

    # What happens to the device

    def state(self, device_enabled: bool = False, enabled_wqs: Iterable[int] = ()) -> None:
        """The device's state and its work queues', with what that locks."""
        wqs = set(enabled_wqs)
        for row in self.rows:

            def writable(bits: Bits, row: Row = row) -> bool:
                if bits.lock is Lock.DEVICE:
                    return not device_enabled
                if bits.lock is Lock.WQ:
                    return row.wq not in wqs
                if bits.lock is Lock.COUNTER:
                    return not self._counting(row.counter)
                return bits.attr is Attr.RW

            _put(self._written, row, _mask(row, writable))
            if row.wq is not None:
                self.set(row.name, "WQ State", int(row.wq in wqs))
        self.set("GENSTS", "Device State", int(device_enabled))

    def reset(self) -> None:
        super().reset()
        self.state()

    def reset_device(self) -> None:
        """The Reset Device command (table 9-3, software reset)."""
        for row in self.rows:
            if not row.kept:
                self._reset(row)
        self.state()

    def _counting(self, counter: int | None) -> bool:
        return bool(counter is not None and self.get(f"CNTRCFG[{counter}]", "Enable"))

    def _settle_counters(self) -> None:
        """After a write: what is locked, and frozen are only those that are enabled (9.2.25.6)."""
        counting = [self._counting(counter) for counter in range(COUNTERS)]
        for row in self._counters:

            def writable(bits: Bits, row: Row = row) -> bool:
                unlocked = row.counter is not None and not counting[row.counter]
                return unlocked if bits.lock else bits.attr is Attr.RW

            _put(self._written, row, _mask(row, writable))
        enabled = sum(1 << counter for counter, is_on in enumerate(counting) if is_on)
        self.set("PERFFRZ", "Counters", self.get("PERFFRZ", "Counters") & enabled)

    # What the guest does

    def write(self, offset: int, width: int, value: int) -> None:
        super().write(offset, width, value)
        first = self._counters[0].offset
        if first - 0x100 <= offset + width and offset < first + 0x400:
            self._settle_counters()


def _mask(row: Row, wanted: Callable[[Bits], bool]) -> int:
    return sum(bits.mask for bits in row.bits if wanted(bits))


def _put(image: bytearray, row: Row, value: int) -> None:
    image[row.offset : row.offset + row.size] = value.to_bytes(row.size, "little")


class Walk(Generic[ImageT]):
    """Compares what ``port`` leads to with ``model``."""

    def __init__(self, port: Port, model: ImageT) -> None:
        self.port = port
        self.model = model

    def _same(self, offset: int, width: int, after: str = "") -> None:
        found, expected = self.port.read(offset, width), self.model.read(offset, width)
        assert found == expected, (
            f"{self.model.name(offset)}, {width} bytes: {found:#x} is not {expected:#x} {after}"
        )

    def read_all(self) -> None:
        """Every word that there is, and that there is not."""
        for offset in range(0, self.model.size, 4):
            self._same(offset, 4)

    def read_registers(self, after: str = "") -> None:
        for offset in self.model.words:
            self._same(offset, 4, after)

    def read_widths(self) -> None:
        """Aligned accesses of every width (chapter 9), and unaligned ones: those have the bytes
        that they cover."""
        for offset in self.model.words:
            for width in self.model.widths:
                for at in range(offset, offset + 4, min(width, 4)):
                    if at % width == 0:
                        self._same(at, width)
            self._same(offset + 1, 4)
            self._same(offset + 3, 2)

    def write_registers(self) -> None:
        """Patterns to every word but those of actions; none changes another."""
        for pattern in PATTERNS:
            for offset in self.model.words:
                if offset in self.model.actions:
                    continue
                self._write(offset, 4, pattern)
                self._same(offset, 4, f"after a write of {pattern:#x}")
            self.read_registers(f"after writes of {pattern:#x}")

    def write_gaps(self) -> None:
        for gap in self.model.gaps:
            for offset in range(gap.start, gap.stop, 4):
                self._write(offset, 4, 0xFFFF_FFFF)
        self.read_all()

    def write_randomly(self, count: int, seed: int) -> None:
        """Accesses of every width, some of them unaligned, in any order."""
        chance = random.Random(seed)
        offsets = [at for at in self.model.words if at not in self.model.actions]
        for _ in range(count):
            width = chance.choice(self.model.widths)
            offset = chance.choice(offsets) + chance.choice((0, 0, 0, 1, 2, 3))
            if chance.random() < 0.8:
                offset -= offset % width
            if not self.model.actions.intersection(range(offset, offset + width)):
                self._write(offset, width, chance.getrandbits(64))
                self._same(offset, width, "after a write of these bytes")
        self.read_registers("after all")

    def _write(self, offset: int, width: int, value: int) -> None:
        self.port.write(offset, width, value)
        self.model.write(offset, width, value)

    def write(self, offset: int, width: int, value: int) -> None:
        """As the guest, and look at what it did."""
        self._write(offset, width, value)
        self._same(offset, width)


class BarWalk(Walk[Model]):
    """That of BAR0."""

    def configure(self, modes: list[int]) -> None:
        """Work queues in these modes, and all engines, in group 0; the others empty. The read
        buffers are as after a reset."""
        count = len(modes)
        self.write(0x80, 4, 16 * count)
        for group in range(count):
            self.write(0x628 + 64 * group, 8, 16 * count << 20)
            self.write(0x600 + 64 * group, 8, (1 << count) - 1 if group == 0 else 0)
            self.write(0x620 + 64 * group, 8, (1 << count) - 1 if group == 0 else 0)
        for wq, mode in enumerate(modes):
            at = 0x800 + 64 * wq
            self.write(at, 4, 8)
            self.write(at + 8, 4, mode | 5 << 4 | (1 - mode) << 28)
            self.write(at + 12, 4, 20 | 4 << 5)
            for word in range(4):
                self.write(at + 32 + 8 * word, 8, 0)
            self.write(at + 32, 8, 0x3FF)

    def command(self, code: int, operand: int = 0) -> None:
        """A command, which succeeds."""
        self.port.write(COMMAND.start, 4, code << 20 | operand)
        for _ in range(1000):
            if not self.port.read(0xA8, 4) >> 31:
                break
        self._same(0xA8, 4, f"after command {code}")
