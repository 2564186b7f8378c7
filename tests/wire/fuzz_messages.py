"""Messages of every command, right and wrong, for the fuzzer; each connection from one seed.

A ``Script`` is all that one hostile connection sends, planned ahead, so that it depends on its
seed and on nothing that the server does.
"""

from __future__ import annotations

import itertools
import random
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from wire_registers import MSIX_VECTORS, PAGE, Reg

from vdcm import protocol
from vdcm.protocol import Command, Irq, IrqSet, MessageFlags

FdKind = Literal["memfd", "shrunk", "eventfd", "pipe", "file", "socket"]
FD_KINDS: tuple[FdKind, ...] = ("memfd", "shrunk", "eventfd", "pipe", "file", "socket")

INTERESTING = (
    0,
    1,
    2,
    7,
    8,
    15,
    16,
    17,
    31,
    32,
    0x7F,
    0x80,
    0xFF,
    0x100,
    PAGE - 1,
    PAGE,
    PAGE + 1,
    0x7FFF,
    0xFFFF,
    65536,
    65537,
    1 << 20,
    0x7FFFFFFF,
    0x80000000,
    0xFFFFFFF0,
    0xFFFFFFFF,
    1 << 32,
    1 << 47,
    (1 << 63) - 1,
    1 << 63,
    (1 << 64) - PAGE,
    (1 << 64) - 1,
)

# A register write that makes the test device sleep would measure patience, not robustness.
_REGISTERS = [offset for offset in Reg if offset != Reg.SLEEP]


@dataclass
class Piece:
    """One sendmsg(): bytes and the kinds of descriptors that go with them."""

    data: bytes
    fds: tuple[FdKind, ...] = ()
    pause: float = 0.0  # seconds before the next piece


@dataclass
class Script:
    """What one connection sends. ``messages`` counts them; ``hello`` is the VERSION message."""

    seed: str
    hello: bytes
    pieces: list[Piece] = field(default_factory=list)
    messages: int = 0
    read_answers: bool = True
    orderly: bool = True  # wait for all answers before closing


class Generator:
    """Plans connections: ``script(index)`` is the same for the same seed, always."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._random = random.Random()

    def script(self, index: int) -> Script:
        self._random.seed(f"{self._seed}/{index}")
        rng = self._random
        script = Script(f"{self._seed}/{index}", self._hello())
        if rng.random() < 0.02:
            script.read_answers = False
        script.orderly = script.read_answers and rng.random() < 0.9
        length = rng.choice((0, 3, 60, 200, 200))
        plain: list[bytes] = []  # consecutive messages without descriptors leave in one piece
        while script.messages < length:
            data, fds, broken = self._message()
            script.messages += 1
            if not fds and not broken and rng.random() > 0.05:
                plain.append(data)
                if len(plain) < rng.choice((8, 16, 64)):
                    continue
                data = b""
            if plain:
                script.pieces.append(Piece(b"".join(plain)))
                plain = []
            if data:
                script.pieces.extend(self._delivery(data, fds))
            if broken:
                break  # nothing behind it would be looked at
        if plain:
            script.pieces.append(Piece(b"".join(plain)))
        if rng.random() < 0.1:  # the end: half a message, then close
            data, fds, _ = self._message()
            script.pieces.append(Piece(data[: rng.randrange(len(data) + 1)], fds))
            script.messages += 1
        return script

    def _hello(self) -> bytes:
        rng = self._random
        capabilities = {
            "max_msg_fds": rng.choice((16, 16, 16, 1, 0)),
            "max_data_xfer_size": rng.choice((1 << 20, 1 << 20, 1, 4096)),
            "vdcm": {"read_only_areas": rng.random() < 0.5},
        }
        hello = protocol.message(Command.VERSION, protocol.pack_version(capabilities), 1)
        if rng.random() > 0.04:
            return hello
        return rng.choice((self._flip, self._poke, self._cut, self._text))(hello)

    def _delivery(self, data: bytes, fds: tuple[FdKind, ...]) -> list[Piece]:
        """The message in one piece, or in several; descriptors with any of them."""
        rng = self._random
        if len(data) < 2 or rng.random() > 0.15:
            return [Piece(data, fds)]
        # A descriptor that comes with a part of the header ends the connection: not too often.
        first = 16 if fds and len(data) > 17 and rng.random() < 0.95 else 1
        cuts = sorted(
            rng.sample(range(first, len(data)), min(rng.randint(1, 3), len(data) - first))
        )
        borders = [0, *cuts, len(data)]
        parts = [data[a:b] for a, b in itertools.pairwise(borders)]
        pieces = [Piece(part, pause=rng.choice((0, 0, 0, 0.0005, 0.002))) for part in parts]
        rng.choice((pieces[0], *pieces)).fds = fds
        return pieces

    def _message(self) -> tuple[bytes, tuple[FdKind, ...], bool]:
        """(bytes, descriptors, whether the stream is of no use behind it)."""
        rng = self._random
        build = rng.choice(_BUILDERS)
        command, payload, fds = build(self)
        flags = MessageFlags.NO_REPLY if rng.random() < 0.05 else 0
        data = protocol.message(command, payload, rng.getrandbits(16), flags)
        kind = rng.random()
        if kind < 0.3:
            return data, fds, False
        if kind < 0.985:  # wrong inside a right frame
            for _ in range(rng.choice((1, 1, 2, 4))):
                data = rng.choice((self._flip, self._poke, self._poke, self._cut, self._grow))(data)
            if rng.random() < 0.008:  # mostly the end of the connection
                fds = self._fds(rng.choice((0, 1, 2, 15, 16, 17, 64, 253)))
            data = self._frame(data)
            takes_fds = int.from_bytes(data[2:4], "little") in (
                Command.DMA_MAP,
                Command.DEVICE_SET_IRQS,
            )
            return data, fds, len(fds) > (16 if takes_fds else 0)
        return self._break(data), fds, True

    def _frame(self, data: bytes) -> bytes:
        """Make the header's size and type right again, so that only the contents are wrong."""
        data = data.ljust(protocol.HEADER.size, b"\0")
        header = protocol.Header._make(protocol.HEADER.unpack_from(data))
        flags = header.flags & (MessageFlags.NO_REPLY | MessageFlags.ERROR)
        header = header._replace(size=len(data), flags=flags)
        return protocol.HEADER.pack(*header) + data[protocol.HEADER.size :]

    def _break(self, data: bytes) -> bytes:
        """A header that lies about the size or is no command."""
        rng = self._random
        words = bytearray(data)
        if rng.random() < 0.7:
            lies = (0, 1, 15, 16, 17, len(data) - 1, len(data) + 1, 65600, 65601, *INTERESTING)
            struct.pack_into("<I", words, 4, rng.choice(lies) & 0xFFFFFFFF)
        else:
            struct.pack_into("<I", words, 8, rng.getrandbits(32) | rng.randint(1, 15))
        return bytes(words)

    def _flip(self, data: bytes) -> bytes:
        rng = self._random
        words = bytearray(data)
        first = 16 if len(data) > 16 and rng.random() < 0.95 else 0  # mostly behind the header
        for _ in range(rng.randint(1, 8)):
            words[rng.randrange(first, len(words))] ^= 1 << rng.randrange(8)
        return bytes(words)

    def _poke(self, data: bytes) -> bytes:
        """An interesting integer in one 32- or 64-bit word behind the header, or before."""
        layout = self._random.choice(("<I", "<Q"))
        size = struct.calcsize(layout)
        first = 16 if len(data) >= 16 + size and self._random.random() < 0.95 else 0
        if len(data) < first + size:
            return data
        at = first + 4 * self._random.randrange((len(data) - first - size) // 4 + 1)
        words = bytearray(data)
        struct.pack_into(layout, words, at, self._number() & ((1 << 8 * size) - 1))
        return bytes(words)

    def _cut(self, data: bytes) -> bytes:
        return data[: self._random.randint(16, len(data))] if len(data) > 16 else data

    def _grow(self, data: bytes) -> bytes:
        return data + self._random.randbytes(self._random.choice((1, 4, 16, 100, 5000)))

    def _text(self, data: bytes) -> bytes:
        """Other text in a VERSION message."""
        text = self._random.choice(
            (b"", b"\0", b"{}\0", b"{", b"[" * 2000 + b"\0", b'{"capabilities":1}\0', b"\xff\0")
        )
        return self._frame(data[:20] + text)

    def _number(self) -> int:
        rng = self._random
        number = rng.choice(INTERESTING)
        return number if rng.random() < 0.7 else number + rng.randint(-2, 2) & ((1 << 64) - 1)

    def _below(self, limit: int) -> int:
        """Mostly a number below ``limit``; at times one at the border, or far beyond."""
        rng = self._random
        if limit and rng.random() < 0.85:
            return rng.randrange(limit)
        return rng.choice((max(0, limit - 1), limit, limit + 1, 2 * limit, 1 << 31, (1 << 32) - 1))

    def _fds(self, count: int) -> tuple[FdKind, ...]:
        return tuple(self._random.choice(FD_KINDS) for _ in range(count))

    # One builder per command: mostly right, so that the mutations start close to something served.

    def _dma_map(self) -> Built:
        rng = self._random
        pages = rng.choice((1, 1, 2, 4, 16))
        iova = PAGE * rng.randrange(64)
        choices: tuple[tuple[FdKind, ...], ...] = (("memfd",), ("memfd",), (), ("shrunk",))
        fds = rng.choice(choices)
        offset = rng.choice((0, 0, 0, PAGE))
        fields = (32, rng.choice((1, 2, 3, 3, 3)), offset, iova, PAGE * pages)
        return Command.DMA_MAP, protocol.DMA_MAP.pack(*fields), fds

    def _dma_unmap(self) -> Built:
        rng = self._random
        size = PAGE * rng.choice((1, 1, 2, 4, 16))
        fields = rng.choice(((24, 0, PAGE * rng.randrange(64), size), (24, 2, 0, 0)))
        payload = protocol.DMA_UNMAP.pack(*fields)
        if rng.random() < 0.1:
            payload = protocol.DMA_UNMAP.pack(24 + 16 + 8, 1, *fields[2:])
            payload += protocol.BITMAP.pack(PAGE, 8)
        return Command.DMA_UNMAP, payload, ()

    def _info(self) -> Built:
        return Command.DEVICE_GET_INFO, protocol.DEVICE_INFO.pack(16, 0, 0, 0), ()

    def _region_info(self) -> Built:
        argsz = self._random.choice((32, 64, 1024))
        index = self._below(10)
        payload = protocol.REGION_INFO.pack(argsz, 0, index, 0, 0, 0)
        return Command.DEVICE_GET_REGION_INFO, payload, ()

    def _region_io_fds(self) -> Built:
        index = self._random.randrange(10)
        return Command.DEVICE_GET_REGION_IO_FDS, protocol.REGION_IO_FDS.pack(512, 0, index, 0), ()

    def _irq_info(self) -> Built:
        index = self._below(6)
        return Command.DEVICE_GET_IRQ_INFO, protocol.IRQ_INFO.pack(16, 0, index, 0), ()

    def _set_irqs(self) -> Built:
        rng = self._random
        index = rng.choice((0, 1, 2, 2, 2, 2, 3, self._below(5)))
        most = {Irq.INTX: 1, Irq.MSI: 8, Irq.MSIX: MSIX_VECTORS}.get(Irq(min(index, 4)), 1)
        start = self._below(most)
        count = self._below(max(0, most - start) + 1)
        data = rng.choice((IrqSet.DATA_NONE, IrqSet.DATA_BOOL, IrqSet.DATA_EVENTFD))
        action = rng.choice((IrqSet.ACTION_MASK, IrqSet.ACTION_UNMASK, IrqSet.ACTION_TRIGGER))
        fds: tuple[FdKind, ...] = ()
        body = b""
        if data == IrqSet.DATA_EVENTFD:
            count = min(count, 16) if rng.random() < 0.8 else count
            eventfd: FdKind = "eventfd"
            fds = (eventfd,) * (min(count, 16) if rng.random() < 0.9 else 0)
        elif data == IrqSet.DATA_BOOL:
            body = bytes(rng.randrange(2) for _ in range(min(count, 2 * MSIX_VECTORS)))
        fields = (20 + len(body), data | action, index, start, count)
        return Command.DEVICE_SET_IRQS, protocol.IRQ_SET.pack(*fields) + body, fds

    def _access(self) -> tuple[int, int, int]:
        """(offset, region, count)."""
        rng = self._random
        count = rng.choice((1, 2, 4, 4, 4, 8, 3, 16, 256, 4096))
        region = rng.choice((0, 0, 0, 1, 2, 7, 6))
        if region == 0:
            return rng.choice(_REGISTERS), 0, min(count, 8)
        if rng.random() < 0.5:
            return rng.randrange(0, 4096, 4), region, count
        size = {1: 64, 2: 4 * PAGE, 7: 4096}.get(region, 0)
        return max(0, self._below(size + 1) - rng.choice((0, count))), region, count

    def _read(self) -> Built:
        return Command.REGION_READ, protocol.REGION_ACCESS.pack(*self._access()), ()

    def _write(self) -> Built:
        offset, region, count = self._access()
        data = self._random.choice((bytes(count), self._random.randbytes(count)))
        payload = protocol.REGION_ACCESS.pack(offset, region, count) + data
        return Command.REGION_WRITE, payload, ()

    def _dma_doorbell(self) -> Built:
        """Have the device use what was mapped: the addresses are those of ``_dma_map``."""
        rng = self._random
        offset, width, value = rng.choice(
            (
                (Reg.DMA_ADDRESS, 8, PAGE * rng.randrange(80) + rng.choice((0, 1, PAGE - 4))),
                (Reg.DMA_LENGTH, 4, rng.choice((0, 1, 8, 256))),
                (Reg.DMA_COMMAND, 4, rng.choice((1, 2))),
                (Reg.TRIGGER, 4, rng.randrange(4) << 16 | rng.randrange(MSIX_VECTORS + 2)),
            )
        )
        payload = protocol.REGION_ACCESS.pack(offset, 0, width) + value.to_bytes(width, "little")
        return Command.REGION_WRITE, payload, ()

    def _server_command(self) -> Built:
        command = self._random.choice((Command.DMA_READ, Command.DMA_WRITE))
        payload = protocol.DMA_ACCESS.pack(PAGE * self._random.randrange(64), 8)
        return command, payload + (bytes(8) if command == Command.DMA_WRITE else b""), ()

    def _reset(self) -> Built:
        return Command.DEVICE_RESET, b"", ()

    def _dirty_pages(self) -> Built:
        flags = self._random.choice((1, 2, 4))
        payload = protocol.DIRTY_PAGES.pack(8 if flags < 4 else 48, flags)
        if flags == 4:
            payload += protocol.DIRTY_RANGE.pack(0, 16 * PAGE) + protocol.BITMAP.pack(PAGE, 8)
        return Command.DIRTY_PAGES, payload, ()

    def _write_multi(self) -> Built:
        rng = self._random
        count = rng.choice((0, 1, 3, 200, 2000))
        writes = b""
        for _ in range(count):
            offset, region, width = self._access()
            if rng.random() < 0.99:
                width = rng.choice((1, 2, 4, 8))
            writes += protocol.WRITE_ONE.pack(offset, region, width, rng.randbytes(8))
        if rng.random() < 0.1:
            count = rng.choice((*INTERESTING, count + 1)) % (1 << 64)
        return Command.REGION_WRITE_MULTI, protocol.WRITE_MULTI.pack(count) + writes, ()

    def _feature(self) -> Built:
        operation = self._random.choice((1 << 16, 1 << 17, 1 << 18))
        feature = self._random.randrange(10)
        payload = protocol.DEVICE_FEATURE.pack(64, operation | feature) + bytes(24)
        return Command.DEVICE_FEATURE, payload, ()

    def _migration_data(self) -> Built:
        command = self._random.choice((Command.MIG_DATA_READ, Command.MIG_DATA_WRITE))
        return command, protocol.MIG_DATA.pack(64, 16) + bytes(16), ()

    def _version_again(self) -> Built:
        return Command.VERSION, protocol.pack_version({"max_msg_fds": 1}), ()

    def _unknown(self) -> Built:
        command = self._random.choice((0, 19, 20, 255, 256, 0x7FFF, 0xFFFF))
        return command, self._random.randbytes(self._random.choice((0, 4, 32))), ()


Built = tuple[int, bytes, tuple[FdKind, ...]]

_BUILDERS: tuple[Callable[[Generator], Built], ...] = (
    Generator._dma_map,
    Generator._dma_map,
    Generator._dma_unmap,
    Generator._dma_doorbell,
    Generator._dma_doorbell,
    Generator._dma_doorbell,
    Generator._info,
    Generator._region_info,
    Generator._region_io_fds,
    Generator._irq_info,
    Generator._set_irqs,
    Generator._set_irqs,
    Generator._read,
    Generator._read,
    Generator._write,
    Generator._write,
    Generator._server_command,
    Generator._reset,
    Generator._dirty_pages,
    Generator._write_multi,
    Generator._feature,
    Generator._migration_data,
    Generator._version_again,
    Generator._unknown,
)
