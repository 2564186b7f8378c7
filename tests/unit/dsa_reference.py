"""What a DSA does to memory, in plain Python from the specification's words (341204-006): byte by
byte, checksums bit by bit. It knows nothing of pieces, chunks or budgets, and takes descriptors
that are valid; ``None`` in an outcome is what the specification leaves undefined.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

SUCCESS, FALSE_PREDICATE, PAGE_FAULT, BLOCKED_FAULT = 1, 2, 3, 4
DELTA_ORDER, DELTA_OFFSET, DIF_ERROR, OVERLAP = 7, 8, 9, 0x16
WRITE = 0x80
BLOCK_ON_FAULT, CHECK_RESULT = 1 << 1, 1 << 7
SOURCE, SOURCE2, DESTINATION, DESTINATION2 = 1, 2, 3, 4
BLOCK_SIZES = (512, 520, 4096, 4104)


class FaultError(Exception):
    def __init__(self, address: int, write: bool, operand: int) -> None:
        self.address, self.write, self.operand = address, write, operand


class Image:
    """Guest memory: pieces ``(address, content, writable)``; what is in none of them faults."""

    def __init__(self, pieces: Iterable[tuple[int, bytes, bool]]) -> None:
        self.pieces = [(address, bytearray(content), w) for address, content, w in pieces]

    def _find(self, address: int, write: bool, operand: int) -> tuple[bytearray, int]:
        for start, content, writable in self.pieces:
            if start <= address < start + len(content) and (writable or not write):
                return content, address - start
        raise FaultError(address, write, operand)

    def check(self, address: int, write: bool, operand: int) -> None:
        self._find(address, write, operand)

    def get(self, address: int, operand: int) -> int:
        content, offset = self._find(address, False, operand)
        return content[offset]

    def put(self, address: int, value: int, operand: int) -> None:
        content, offset = self._find(address, True, operand)
        content[offset] = value

    def read(self, address: int, length: int, operand: int) -> bytes:
        return bytes(self.get(address + i, operand) for i in range(length))

    def write(self, address: int, data: bytes, operand: int) -> None:
        for i, value in enumerate(data):
            self.put(address + i, value, operand)


@dataclass
class Outcome:
    status: int = SUCCESS
    result: int | None = None
    completed: int | None = 0
    fault_address: int | None = None
    operand: int | None = None
    specific: dict[int, bytes] = field(default_factory=dict)
    """By its offset in the completion record."""


@dataclass
class Descriptor:
    flags: int
    operation: int
    source: int
    destination: int
    size: int
    specific: bytes

    @classmethod
    def parse(cls, raw: bytes) -> Descriptor:
        _, word, _, source, destination, size, _, _, specific = struct.unpack("<IIQQQIHH24s", raw)
        return cls(word & 0xFFFFFF, word >> 24, source, destination, size, specific)


# ---- checksums -----------------------------------------------------------------------------------


def bits_of(data: bytes, first: int) -> Iterable[int]:
    """The bits of the bytes, from bit ``first`` (0 or 7) of each."""
    for byte in data:
        for i in range(8):
            yield byte >> (i if first == 0 else 7 - i) & 1


def divide(register: int, bits: Iterable[int], polynomial: int, width: int) -> int:
    """The remainder of the bits, multiplied by x^width, after those that left ``register``."""
    for bit in bits:
        carry = register >> (width - 1) & 1 ^ bit
        register = register << 1 & (1 << width) - 1
        if carry:
            register ^= polynomial
    return register


def mirrored(value: int) -> int:
    return int(f"{value:032b}"[::-1], 2)


def crc32c(seed: int, data: bytes, *, bypass_inversion: bool, bypass_reflection: bool) -> int:
    """Appendix A. Bit 0 of seed and value is the coefficient of x^31, unless that is bypassed."""
    register = seed if bypass_inversion else mirrored(seed) ^ 0xFFFF_FFFF
    bits = bits_of(data, 7 if bypass_reflection else 0)
    register = divide(register, bits, 0x1EDC6F41, 32)
    return register if bypass_inversion else mirrored(register ^ 0xFFFF_FFFF)


def guard(data: bytes, invert_seed: bool, invert_result: bool) -> int:
    """Appendix B: the CRC of T10."""
    remainder = divide(0xFFFF if invert_seed else 0, bits_of(data, 7), 0x8BB7, 16)
    return remainder ^ 0xFFFF if invert_result else remainder


# ---- operations ----------------------------------------------------------------------------------


def overlap(a: int, a_size: int, b: int, b_size: int) -> bool:
    return a < b + b_size and b < a + a_size


def judged(d: Descriptor, expected: bool) -> int:
    return FALSE_PREDICATE if d.flags & CHECK_RESULT and not expected else SUCCESS


def stopped(out: Outcome, fault: FaultError, completed: int, d: Descriptor) -> Outcome:
    out.status = BLOCKED_FAULT if d.flags & BLOCK_ON_FAULT else PAGE_FAULT
    out.status |= WRITE if fault.write else 0
    out.completed = completed
    out.fault_address, out.operand = fault.address, fault.operand
    return out


def memory_move(d: Descriptor, m: Image) -> Outcome:
    backwards = d.source < d.destination < d.source + d.size
    out = Outcome()
    for n in range(d.size):
        i = d.size - 1 - n if backwards else n
        try:
            value = m.get(d.source + i, SOURCE)
            m.put(d.destination + i, value, DESTINATION)
        except FaultError as fault:
            out.result = int(backwards)
            return stopped(out, fault, n, d)
    return out


def fill(d: Descriptor, m: Image) -> Outcome:
    pattern = struct.pack("<Q", d.source)
    for i in range(d.size):
        try:
            m.put(d.destination + i, pattern[i % 8], DESTINATION)
        except FaultError as fault:
            return stopped(Outcome(), fault, i, d)
    return Outcome()


def comparison(d: Descriptor, m: Image, second: Callable[[int], int]) -> Outcome:
    expected = d.specific[0] & 1
    for i in range(d.size):
        try:
            first = m.get(d.source + i, SOURCE)
            if first != second(i):
                return Outcome(judged(d, expected == 1), 1, i)
        except FaultError as fault:
            return stopped(Outcome(result=0), fault, i, d)
    return Outcome(judged(d, expected == 0), 0)


def compare(d: Descriptor, m: Image) -> Outcome:
    return comparison(d, m, lambda i: m.get(d.destination + i, SOURCE2))


def compare_pattern(d: Descriptor, m: Image) -> Outcome:
    pattern = struct.pack("<Q", d.destination)
    return comparison(d, m, lambda i: pattern[i % 8])


def create_delta(d: Descriptor, m: Image) -> Outcome:
    record, most = struct.unpack_from("<QI", d.specific)
    mask = d.specific[16]
    out = Outcome()
    used = 0
    done = 0
    result = 0
    try:
        for i in range(0, d.size, 8):
            done = i
            one = m.read(d.source + i, 8, SOURCE)
            two = m.read(d.destination + i, 8, SOURCE2)
            if one == two:
                continue
            if used + 10 > most:
                result = 2
                break
            m.write(record + used, struct.pack("<H", i // 8) + two, DESTINATION)
            used += 10
            result = 1
    except FaultError as fault:
        out.result = int(used > 0)
        out.specific = {16: struct.pack("<I", used)}
        return stopped(out, fault, done, d)
    out.result = result
    out.specific = {16: struct.pack("<I", used)}
    out.completed = done if result == 2 else 0
    out.status = judged(d, bool(mask >> result & 1))
    return out


def apply_delta(d: Descriptor, m: Image) -> Outcome:
    (size,) = struct.unpack_from("<I", d.specific)
    before = -1
    for i in range(0, size // 10 * 10, 10):
        try:
            offset, data = struct.unpack("<H8s", m.read(d.source + i, 10, SOURCE))
            if offset * 8 >= d.size:
                return Outcome(DELTA_OFFSET, None, i)
            if offset <= before:
                return Outcome(DELTA_ORDER, None, i)
            m.write(d.destination + offset * 8, data, DESTINATION)
            before = offset
        except FaultError as fault:
            return stopped(Outcome(), fault, i, d)
    return Outcome()


def dualcast(d: Descriptor, m: Image) -> Outcome:
    (second,) = struct.unpack_from("<Q", d.specific)
    for i in range(d.size):
        try:
            value = m.get(d.source + i, SOURCE)
            m.check(d.destination + i, True, DESTINATION)
            m.put(second + i, value, DESTINATION2)
            m.put(d.destination + i, value, DESTINATION)
        except FaultError as fault:
            return stopped(Outcome(), fault, i, d)
    return Outcome()


def crc(d: Descriptor, m: Image) -> Outcome:
    seed, _, seed_address = struct.unpack_from("<IIQ", d.specific)
    out = Outcome()
    data = bytearray()
    copies = d.operation == 0x11
    if d.flags & 1 << 16:
        try:
            (seed,) = struct.unpack("<I", m.read(seed_address, 4, SOURCE2))
        except FaultError as fault:
            return stopped(out, fault, 0, d)
    try:
        for i in range(d.size):
            value = m.get(d.source + i, SOURCE)
            if copies:
                m.put(d.destination + i, value, DESTINATION)
            data.append(value)
    except FaultError as fault:
        stopped(out, fault, len(data), d)
    value = crc32c(
        seed,
        bytes(data),
        bypass_inversion=bool(d.flags & 1 << 17),
        bypass_reflection=bool(d.flags & 1 << 18),
    )
    if out.completed != 0 or out.status == SUCCESS:
        out.specific = {16: struct.pack("<Q", value)}
    return out


@dataclass
class Tags:
    ref: int
    mask: int
    app: int

    @classmethod
    def parse(cls, data: bytes) -> Tags:
        return cls(*struct.unpack("<IHH", data))

    def pack(self) -> bytes:
        return struct.pack("<IHH", self.ref, self.mask, self.app)

    @property
    def masked(self) -> int:
        return self.app & ~self.mask & 0xFFFF

    def advance(self, flags: int) -> None:
        """Bit 7: the reference tag is fixed; bit 4: the application tag increments."""
        if not flags & 0x80:
            self.ref = (self.ref + 1) & 0xFFFF_FFFF
        if flags & 0x10:
            self.app = (self.app + 1) & 0xFFFF


def dif_status(dif: bytes, flags: int, computed: int, tags: Tags) -> int:
    stored, app, ref = struct.unpack(">HHI", dif)
    if dif == b"\xff" * 8 and flags & 0x02:
        return 0x08 if flags & 0x01 else 0
    if app == 0xFFFF and (flags & 0x04 or (flags & 0x08 and ref == 0xFFFF_FFFF)):
        return 0
    status = 0
    if not flags & 0x20 and stored != computed:
        status |= 0x01
    if tags.mask != 0xFFFF and app != tags.masked:
        status |= 0x02
    if not flags & 0x40 and ref != tags.ref:
        status |= 0x04
    return status


def dif(d: Descriptor, m: Image) -> Outcome:
    source_flags, destination_flags, flags = d.specific[:3]
    source_tags, destination_tags = Tags.parse(d.specific[8:16]), Tags.parse(d.specific[16:24])
    size = BLOCK_SIZES[flags & 3]
    strips, inserts, updates = (d.operation == code for code in (0x14, 0x13, 0x15))
    step = size if inserts else size + 8
    out = Outcome()
    done = 0
    to = d.destination
    try:
        while done < d.size:
            data = m.read(d.source + done, step, SOURCE)
            block, old = data[:size], data[size:]
            computed = guard(block, bool(flags & 4), bool(flags & 8))
            if not inserts:
                status = dif_status(old, source_flags, computed, source_tags)
                if status:
                    return Outcome(DIF_ERROR, status, done)
            new = struct.pack(">HHI", computed, destination_tags.masked, destination_tags.ref)
            if updates:
                for bit, first, last in ((0x20, 0, 2), (0x08, 2, 4), (0x40, 4, 8)):
                    if destination_flags & bit:
                        new = new[:first] + old[first:last] + new[last:]
            if d.operation != 0x12:
                whole = block if strips else block + new
                m.write(to, whole, DESTINATION)
                to += len(whole)
            source_tags.advance(source_flags)
            destination_tags.advance(destination_flags)
            done += step
    except FaultError as fault:
        stopped(out, fault, done, d)
    if not inserts:
        out.specific[16] = source_tags.pack()
    if inserts or updates:
        out.specific[24] = destination_tags.pack()
    return out


def cache_flush(d: Descriptor, m: Image) -> Outcome:
    for i in range(d.size):
        try:
            m.get(d.destination + i, DESTINATION)
        except FaultError as fault:
            return stopped(Outcome(), fault, i, d)
    return Outcome()


OPERATIONS: dict[int, Callable[[Descriptor, Image], Outcome]] = {
    0x00: lambda _d, _m: Outcome(),
    0x03: memory_move,
    0x04: fill,
    0x05: compare,
    0x06: compare_pattern,
    0x07: create_delta,
    0x08: apply_delta,
    0x09: dualcast,
    0x10: crc,
    0x11: crc,
    0x12: dif,
    0x13: dif,
    0x14: dif,
    0x15: dif,
    0x20: cache_flush,
}


def execute(raw: bytes, memory: Image) -> Outcome:
    """Changes ``memory`` as the descriptor says, as far as it comes."""
    d = Descriptor.parse(raw)
    return OPERATIONS[d.operation](d, memory)
