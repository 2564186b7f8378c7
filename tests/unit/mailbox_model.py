"""A VDEV with a mailbox, and what its guest driver does: the driver is used over the wire too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from vdcm import (
    Bar,
    Identity,
    Mailbox,
    MailboxCode,
    MailboxError,
    MailboxRequest,
    MsiX,
    PagePolicy,
    Pages,
    Register,
    RegisterMap,
    RequestType,
    VdcmError,
    Vdev,
)
from vdcm.bars import PAGE
from vdcm.mailbox import MailboxRegisters

REGISTERS, DATA, TABLE, PENDING = 0x100, 2 * PAGE, 4 * PAGE, 5 * PAGE
SIZE = 2 * PAGE
AREA = SIZE // 2
VECTOR = 1

REQUESTS: Final = {
    "ECHO": RequestType(1, 0, AREA, doc="Answer: the same."),
    "LATER": RequestType(2, 4, doc="Answered when the test says so."),
    "REFUSE": RequestType(3, doc="Refused: no resources."),
    "FAIL": RequestType(4, doc="The device fails at it."),
    "BREAK": RequestType(5, doc="A bug."),
    "RESET": RequestType(6, doc="Resets the VDEV meanwhile."),
    "TOO_MUCH": RequestType(7, doc="A response that does not fit."),
    "TWICE": RequestType(0xFFFF, doc="Answered twice."),
}


class Scratch(RegisterMap):
    WORD = Register(0x0, 32)


class Letterbox(Vdev):
    """``shared``: the data pages are memory; else they are intercepted."""

    identity = Identity(vendor=0x1234, device=0x1E77, class_code=0xFF0000)

    def __init__(self, name: str, *, shared: bool = True, vector: int | None = VECTOR) -> None:
        self.waiting: list[MailboxRequest] = []
        self.channel_enabled = True
        pages = [Pages(DATA, SIZE, PagePolicy.MEMORY)] if shared else []
        bar = Bar(0, 8 * PAGE, pages=pages)
        self.scratch: Final = Scratch()
        bar.place(0, self.scratch)
        self.mailbox: Final = Mailbox(
            self,
            REQUESTS,
            bar,
            REGISTERS,
            data=DATA,
            size=SIZE,
            vector=vector,
            enabled=lambda: self.channel_enabled,
        )
        super().__init__(
            name,
            bars=[bar],
            capabilities=[MsiX(2, table_bar=0, table_offset=TABLE, pba_bar=0, pba_offset=PENDING)],
        )

    def on_request_ECHO(self, request: MailboxRequest) -> bytes:
        return request.data

    def on_request_LATER(self, request: MailboxRequest) -> None:
        self.waiting.append(request)

    def on_request_REFUSE(self, _request: MailboxRequest) -> bytes:
        raise MailboxError("nothing is free", MailboxCode.NO_RESOURCES)

    def on_request_FAIL(self, _request: MailboxRequest) -> bytes:
        raise VdcmError("the parent does not answer")

    def on_request_BREAK(self, _request: MailboxRequest) -> bytes:
        raise ZeroDivisionError("a bug of the device model, as ordered")

    def on_request_RESET(self, _request: MailboxRequest) -> bytes:
        self.reset()
        return b"too late"

    def on_request_TOO_MUCH(self, _request: MailboxRequest) -> bytes:
        return bytes(AREA + 1)

    def on_request_TWICE(self, request: MailboxRequest) -> bytes:
        request.complete(b"once")
        return b"twice"


class Driver:
    """A guest driver: ``read(offset, width)`` and ``write(offset, width, value)`` reach the BAR.

    It finds all it needs in the registers at ``at``.
    """

    def __init__(
        self,
        read: Callable[[int, int], int],
        write: Callable[[int, int, int], None],
        at: int = REGISTERS,
    ) -> None:
        self._read, self._write, self._at = read, write, at
        self.data, self.area = self.get("DATA"), self.get("SIZE")

    def get(self, register: str) -> int:
        return self._read(self._at + MailboxRegisters.registers[register].offset, 4)

    def put(self, register: str, value: int) -> None:
        self._write(self._at + MailboxRegisters.registers[register].offset, 4, value)

    def field(self, name: str, register: str = "STATUS") -> int:
        declared = MailboxRegisters.registers[register].fields[name]
        return (self.get(register) & declared.mask) >> declared.lsb

    def ring(self, opcode: int, length: int = 0) -> None:
        self.put("DOORBELL", length << 16 | opcode)

    def send(self, name: str, request: bytes = b"") -> None:
        """Put the request into its area, four bytes at a time, and ring."""
        padded = request + bytes(-len(request) % 4)
        for i in range(0, len(padded), 4):
            self._write(self.data + i, 4, int.from_bytes(padded[i : i + 4], "little"))
        self.ring(REQUESTS[name].opcode, len(request))

    def answer(self) -> tuple[int, bytes]:
        """Code and response of a request that is done."""
        assert self.field("DONE") and not self.field("BUSY"), f"status {self.get('STATUS'):#x}"
        length = self.field("LENGTH")
        words = [self._read(self.data + self.area + i, 4) for i in range(0, length, 4)]
        response = b"".join(word.to_bytes(4, "little") for word in words)[:length]
        return self.field("CODE"), response

    def ask(self, name: str, request: bytes = b"") -> tuple[int, bytes]:
        self.send(name, request)
        return self.answer()
