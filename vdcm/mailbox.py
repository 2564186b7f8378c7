"""The mailbox between a guest driver and its VDEV: Scalable IOV's software-emulated channel.

Data pages carry requests and responses, an intercepted doorbell says that one is there, a status
register and an interrupt say that it is done (Scalable IOV 337679-002, 4.4.3; 4.4.1 for the pages).

What a model writes:

    REQUESTS = {
        "ALLOCATE": RequestType(1, 4, doc="Type (32 bits). Answer: index (32 bits)."),
        "RELEASE": RequestType(2, 4, doc="Index (32 bits)."),
    }

    class Card(Vdev):
        def __init__(self, name: str) -> None:
            bar = Bar(0, 0x4000, pages=[Pages(0x2000, 0x1000, PagePolicy.MEMORY)])
            self.mailbox = Mailbox(self, REQUESTS, bar, 0x1000, data=0x2000, size=0x1000, vector=0)
            super().__init__(name, bars=[bar], capabilities=[MsiX(...)])

        def on_request_ALLOCATE(self, request: MailboxRequest) -> bytes | None:
            number = int.from_bytes(request.data, "little")
            if not self.has(number):
                raise MailboxError(f"no type {number}", MailboxCode.BAD_REQUEST)
            self.begin(number, lambda index: request.complete(index.to_bytes(4, "little")))
            return None  # answered later; a handler that returns bytes has answered

        def on_request_RELEASE(self, request: MailboxRequest) -> bytes:
            self.release(int.from_bytes(request.data, "little"))
            return b""

The data may as well lie in intercepted pages, for a VDEV that must not offer a mappable one: leave
``pages`` away. A reset of the VDEV resets the mailbox; what was not answered is dropped.

What a guest driver does, with the registers at ``MailboxRegisters``:

1. Read DATA and SIZE: the request area is SIZE bytes at DATA in this BAR, the response area
   follows and is as large. Set CONTROL.INTERRUPT, or poll.
2. Write the request, then DOORBELL with OPCODE and LENGTH (bytes of it), once. Until the answer
   the areas are the device's.
3. Wait until STATUS.DONE. CODE is a ``MailboxCode``; with SUCCESS there are STATUS.LENGTH bytes in
   the response area. Writing 1 clears DONE; the next doorbell does too.

A doorbell while BUSY does nothing but set STATUS.REJECTED; the request under way goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from functools import cache
from typing import ClassVar, Final, NamedTuple, Protocol

from vdcm.bars import Bar, PagePolicy
from vdcm.errors import DeclarationError, StateError, VdcmError
from vdcm.events import MailboxMessage, Observer
from vdcm.interrupts import Interrupts
from vdcm.registers import Access, BoundRegister, Field, Register, RegisterMap

RO, W1C, WO = Access.RO, Access.W1C, Access.WO


class MailboxCode(IntEnum):
    """How a request went."""

    SUCCESS = 0
    UNKNOWN_REQUEST = 1
    """There is no request with that opcode."""
    BAD_LENGTH = 2
    """The request is shorter or longer than its type, or than the request area."""
    BAD_REQUEST = 3
    """What it asks for cannot be."""
    NO_RESOURCES = 4
    """It can be, but not now."""
    WRONG_STATE = 5
    """Something else has to be done first."""
    NOT_OPEN = 6
    """The host driver has not enabled the channel."""
    FAILED = 7
    """The device failed at it."""


class MailboxError(VdcmError):
    """A handler refuses a request: the guest gets ``code``, an observer the message."""

    def __init__(self, message: str, code: MailboxCode = MailboxCode.BAD_REQUEST) -> None:
        super().__init__(message)
        self.code: Final = code


class MailboxRegisters(RegisterMap):
    """The registers, 20 bytes, in an intercepted page."""

    DATA = Register(0x00, 32, RO, doc="Offset of the request area in this BAR, bytes.")
    SIZE = Register(0x04, 32, RO, doc="Bytes of the request area, and of the response area.")
    CONTROL = Register(
        0x08,
        32,
        RO,
        fields={
            "INTERRUPT": Field(0, access=Access.RW, doc="Interrupt with each answer."),
            "HAS_VECTOR": Field(1, doc="There is an interrupt."),
            "VECTOR": Field(16, 11, doc="The MSI-X (or MSI) vector."),
        },
    )
    DOORBELL = Register(
        0x0C,
        32,
        WO,
        fields={"OPCODE": Field(0, 16), "LENGTH": Field(16, 16, doc="Bytes.")},
        answered=True,
    )
    STATUS = Register(
        0x10,
        32,
        RO,
        fields={
            "BUSY": Field(0, doc="A request has no answer yet."),
            "DONE": Field(1, access=W1C, doc="The last request has been answered."),
            "REJECTED": Field(2, access=W1C, doc="A doorbell came while BUSY, and did nothing."),
            "OPEN": Field(3, doc="The channel is enabled."),
            "CODE": Field(8, 8, values=MailboxCode),
            "LENGTH": Field(16, 16, doc="Bytes of the response."),
        },
    )

    def __init__(self, owner: Mailbox) -> None:
        self._mailbox = owner
        super().__init__(owner)

    def reset(self, *, keep_sticky: bool = False) -> None:
        super().reset(keep_sticky=keep_sticky)
        self._mailbox._drop()


@dataclass(frozen=True, slots=True)
class RequestType:
    """A kind of request: ``opcode`` (1 to 65535) and its length, ``least`` to ``most`` bytes.

    Without ``most`` the length is exactly ``least``.
    """

    opcode: int
    least: int = 0
    most: int | None = None
    doc: str = ""

    @property
    def lengths(self) -> range:
        return range(self.least, (self.least if self.most is None else self.most) + 1)


class MailboxRequest:
    """One request: ``name`` of its type and ``data``, a copy that the guest cannot change.

    To be answered once, by ``complete`` or ``fail``, at any time, in the thread of the event loop.
    Both return False, and do nothing, if a reset has dropped the request: who allocated something
    for it takes that back. A second answer raises StateError.
    """

    def __init__(self, mailbox: Mailbox, name: str, data: bytes) -> None:
        self.name: Final = name
        self.data: Final = data
        self._mailbox: Mailbox | None = mailbox
        self._answered = False

    @property
    def pending(self) -> bool:
        """It has no answer, and the guest waits for one."""
        return self._mailbox is not None

    def complete(self, response: bytes = b"") -> bool:
        """Done; at most as many bytes as the response area has, else VdcmError (and FAILED)."""
        mailbox = self._take()
        if mailbox is None:
            return False
        limit = mailbox.registers.SIZE.value
        if len(response) > limit:
            mailbox._answer(MailboxCode.FAILED)
            raise VdcmError(
                f"{mailbox.owner.name}: {self.name} answers {len(response)} bytes, at most {limit}"
            )
        mailbox._say(MailboxMessage(self.name, "answered", len(response), MailboxCode.SUCCESS.name))
        mailbox._answer(MailboxCode.SUCCESS, response)
        return True

    def fail(self, code: MailboxCode, reason: str) -> bool:
        """Not done; ``reason`` is for an observer, the guest gets the code."""
        mailbox = self._take()
        if mailbox is None:
            return False
        mailbox._say(MailboxMessage(self.name, "failed", code=code.name, reason=reason))
        mailbox._answer(code)
        return True

    def _drop(self) -> None:
        self._mailbox = None

    def _take(self) -> Mailbox | None:
        if self._answered:
            raise StateError(f"mailbox request {self.name} has been answered already")
        mailbox, self._mailbox = self._mailbox, None
        self._answered = mailbox is not None
        return mailbox


class MailboxOwner(Protocol):
    """What a mailbox uses of its VDEV, besides the handlers ``on_request_NAME``."""

    @property
    def name(self) -> str: ...
    @property
    def interrupts(self) -> Interrupts: ...
    @property
    def observer(self) -> Observer | None: ...


class Mailbox:
    """The mailbox of ``owner``, who has a method ``on_request_NAME`` for each of ``requests``.

    ``at`` is where the registers go in ``bar``, an intercepted place. ``data`` and ``size`` are
    request and response area together, bytes: multiples of 16, at most 64 KiB, in pages that are
    all ``MEMORY`` or all intercepted. ``vector`` is the interrupt, None for a driver that polls.
    ``enabled`` says whether the host driver lets this VDEV use it (Table 4-1); asked each time.

    Raises DeclarationError for what cannot be.
    """

    LIMIT: ClassVar = 0x10000

    def __init__(
        self,
        owner: MailboxOwner,
        requests: Mapping[str, RequestType],
        bar: Bar,
        at: int,
        *,
        data: int,
        size: int,
        vector: int | None = None,
        enabled: Callable[[], bool] = lambda: True,
    ) -> None:
        self.owner: Final = owner
        self._enabled = enabled
        self.registers: Final = MailboxRegisters(self)
        self.answered = 0
        self.rejected = 0
        self._request: MailboxRequest | None = None
        self._types = _by_opcode(owner, requests, size // 2)
        if data % 16 or size % 16 or not 16 <= size <= self.LIMIT:
            raise DeclarationError(
                f"mailbox data of {size:#x} bytes at {data:#x}: multiples of 16, "
                f"16 to {self.LIMIT:#x} bytes"
            )
        policy = bar.policy(data, size)
        self._bar = bar
        self._words: BoundRegister | None = None
        if policy is PagePolicy.INTERCEPTED:
            registers = _data_registers(size // 8)()
            self._words = registers.WORD
            bar.place(data, registers)
        elif policy is not PagePolicy.MEMORY:
            what = "pages of several policies" if policy is None else f"{policy.value} pages"
            raise DeclarationError(
                f"mailbox data at {data:#x} lies in {what}: memory or intercepted ones are needed"
            )
        self.registers.DATA.preset(data)
        self.registers.SIZE.preset(size // 2)
        if vector is not None:
            self.registers.CONTROL.preset(HAS_VECTOR=1, VECTOR=vector)
        bar.place(at, self.registers)

    # The host's side.

    @property
    def busy(self) -> bool:
        return self._request is not None

    def _drop(self) -> None:
        """Forget the request under way; STATUS is set by the caller."""
        if self._request is not None:
            self._request._drop()
            self._request = None

    def _answer(self, code: MailboxCode, response: bytes = b"") -> None:
        """The request under way, or a doorbell that made none, ended; the guest is told."""
        self._request = None
        self.answered += 1
        self._store(response)
        status = self.registers.STATUS
        status.CODE = code
        status.LENGTH = len(response)
        status.BUSY = 0
        status.DONE = 1
        control = self.registers.CONTROL
        if control.INTERRUPT and control.HAS_VECTOR:
            self.owner.interrupts.signal(control.VECTOR)

    def _say(self, message: MailboxMessage) -> None:
        """Tell whoever watches the VDEV."""
        if self.owner.observer is not None:
            self.owner.observer(message)

    # The guest's side.

    def on_read_STATUS(self) -> int:
        self.registers.STATUS.OPEN = int(self._enabled())
        return self.registers.STATUS.value

    def on_write_DOORBELL(self, _value: int) -> None:
        doorbell, status = self.registers.DOORBELL, self.registers.STATUS
        opcode, length = doorbell.OPCODE, doorbell.LENGTH
        if self._request is not None:
            self.rejected += 1
            status.REJECTED = 1
            self._say(
                MailboxMessage(self._name_of(opcode), "rejected", reason="another has no answer")
            )
            return
        status.DONE = status.CODE = status.LENGTH = 0
        if not self._enabled():
            self._refuse(opcode, length, MailboxCode.NOT_OPEN)
        elif opcode not in self._types:
            self._refuse(opcode, length, MailboxCode.UNKNOWN_REQUEST)
        elif length not in self._types[opcode].lengths:
            self._refuse(opcode, length, MailboxCode.BAD_LENGTH)
        else:
            self._handle(self._types[opcode], self._load(length))

    def _name_of(self, opcode: int) -> str:
        return self._types[opcode].name if opcode in self._types else f"opcode {opcode:#x}"

    def _refuse(self, opcode: int, length: int, code: MailboxCode) -> None:
        """A doorbell that makes no request."""
        name = self._name_of(opcode)
        self._say(MailboxMessage(name, "failed", code=code.name, reason=f"{length} bytes"))
        self._answer(code)

    def _handle(self, kind: _Handled, data: bytes) -> None:
        self.registers.STATUS.BUSY = 1
        request = self._request = MailboxRequest(self, kind.name, data)
        self._say(MailboxMessage(kind.name, "asked", len(data)))
        try:
            response = kind.handler(request)
        except MailboxError as error:
            request.fail(error.code, str(error))
        except BaseException as error:
            if not request.pending:
                raise
            request.fail(MailboxCode.FAILED, f"{type(error).__name__}: {error}")
            if not isinstance(error, VdcmError):
                raise  # a bug of the model, for the log; the guest is not left waiting
        else:
            if response is not None:
                request.complete(response)

    def _load(self, length: int) -> bytes:
        """The request, copied: the guest may change it while it is being looked at."""
        if self._words is None:
            return bytes(self._bar.view(self.registers.DATA.value, length))
        words = (self._words[i].value for i in range(-(-length // 8)))
        return b"".join(word.to_bytes(8, "little") for word in words)[:length]

    def _store(self, response: bytes) -> None:
        half = self.registers.SIZE.value
        if self._words is None:
            self._bar.view(self.registers.DATA.value + half, len(response))[:] = response
            return
        for at in range(0, len(response), 8):
            word = int.from_bytes(response[at : at + 8], "little")
            self._words[(half + at) // 8].value = word


class _Handled(NamedTuple):
    name: str
    lengths: range
    handler: Callable[[MailboxRequest], bytes | None]


def _by_opcode(
    owner: object, requests: Mapping[str, RequestType], limit: int
) -> dict[int, _Handled]:
    place, prefix = type(owner).__name__, "on_request_"
    found: dict[int, _Handled] = {}
    for name, kind in requests.items():
        if not 1 <= kind.opcode <= 0xFFFF or kind.opcode in found:
            raise DeclarationError(
                f"{place}: request {name}: opcode {kind.opcode:#x} is taken or not in 1 to 0xffff"
            )
        if not kind.lengths or kind.lengths[0] < 0 or kind.lengths[-1] > limit:
            raise DeclarationError(
                f"{place}: request {name} of {kind.least} to {kind.most} bytes: "
                f"the request area has {limit}"
            )
        handler = getattr(owner, prefix + name, None)
        if handler is None:
            raise DeclarationError(f"{place} has no method {prefix}{name} for that request")
        found[kind.opcode] = _Handled(name, kind.lengths, handler)
    for method in dir(type(owner)):
        name = method.removeprefix(prefix)
        if method.startswith(prefix) and name not in requests:
            known = ", ".join(requests) or "none"
            raise DeclarationError(f"{place}.{method} names no request (known: {known})")
    return found


class _DataRegisters(RegisterMap):
    """The data of a mailbox whose pages are intercepted; the number of words is the subclass's."""

    WORD = Register(0, 64, count=1)


@cache
def _data_registers(words: int) -> type[_DataRegisters]:
    """Made once for all mailboxes of a size: a class takes longer to make than a VDEV may."""

    class MailboxData(_DataRegisters):
        WORD = Register(0, 64, count=words)

    return MailboxData
