"""The two admin queues: a driver sends by one and receives by the other.

A descriptor has 32 bytes: flags, opcode, length of the buffer and return value (16 bits each), a
cookie of two words, two parameters, and the buffer's address, high word first. With a message of
virtchnl the cookie is its opcode and its status.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from struct import Struct
from typing import Final, Protocol

from vdcm import BoundRegister, DmaError
from vdcm_devices.avf.codes import AdminError, AdminFlag, AdminOpcode
from vdcm_devices.avf.registers import AvfRegisters

BUFFER_SIZE: Final = 4096
"""Bytes of the largest message."""
LARGE: Final = 512
BACKLOG: Final = 64
"""Messages that wait for a buffer of the driver's; what comes then is lost."""
AT_ONCE: Final = 32
"""Messages that are taken before others have their turn."""
_DESCRIPTOR: Final = Struct("<HHHHIIIIII")


class AdminDevice(Protocol):
    """What the admin queues belong to."""

    @property
    def registers(self) -> AvfRegisters: ...
    def dma_read(self, iova: int, length: int) -> bytes: ...
    def dma_write(self, iova: int, data: bytes) -> None: ...
    def on_message(self, opcode: int, data: bytes) -> None:
        """The driver has sent a message of virtchnl."""

    def raise_admin_cause(self) -> None:
        """There is something in the receive queue."""

    def later(self, seconds: float, do: Callable[[], None]) -> None:
        """Call ``do`` then, unless the function is reset before."""

    def complain(self, why: str) -> None:
        """The driver has done something that it must not do."""


class AdminQueues:
    """Both queues; their registers are the device's."""

    def __init__(self, device: AdminDevice) -> None:
        self._device: Final = device
        self._backlog: deque[tuple[int, int, bytes]] = deque()
        self._again = False
        self.lost = 0

    def forget(self) -> None:
        """The function has been reset."""
        self._backlog.clear()
        self._again = False

    # From the driver.

    def transmit(self) -> None:
        """Take what is between head and tail of the send queue."""
        registers = self._device.registers
        for _ in range(AT_ONCE):
            length, head, tail = registers.ATQLEN1, registers.ATQH1.HEAD, registers.ATQT1.TAIL
            if not length.ENABLE or length.ATQCRIT or head == tail:
                return
            if head >= length.LEN or tail >= length.LEN:
                length.ATQCRIT = 1
                self._device.complain(
                    f"admin send queue of {length.LEN} entries: head {head}, tail {tail}"
                )
                return
            try:
                self._take(_address(registers.ATQBAH1, registers.ATQBAL1) + 32 * head, head)
            except DmaError as error:
                registers.ATQLEN1.ATQCRIT = 1
                self._device.complain(f"admin send queue: {error}")
                return
        if not self._again:
            self._again = True
            self._device.later(0.0, self._go_on)

    def _go_on(self) -> None:
        self._again = False
        self.transmit()

    def _take(self, at: int, head: int) -> None:
        device = self._device
        raw = device.dma_read(at, _DESCRIPTOR.size)
        flags, opcode, size, _, message, status, *parameters = _DESCRIPTOR.unpack(raw)
        result, data = AdminError.OK, b""
        if opcode == AdminOpcode.SEND_TO_PF:
            try:
                data = self._data(flags, size, parameters[2] << 32 | parameters[3])
            except DmaError as error:
                result = AdminError.BAD_ADDRESS
                device.complain(f"message {message}: {error}")
            except ValueError as error:
                result = AdminError.INVALID
                device.complain(f"message {message}: {error}")
        elif opcode != AdminOpcode.QUEUE_SHUTDOWN:
            result = AdminError.NOT_IMPLEMENTED
            device.complain(f"admin command {opcode:#06x} is not for a virtual function")
        flags |= AdminFlag.DONE | AdminFlag.COMPLETED
        if result is not AdminError.OK:
            flags |= AdminFlag.ERROR
        device.dma_write(
            at, _DESCRIPTOR.pack(flags, opcode, size, result, message, status, *parameters)
        )
        # Before the message: it may reset the queue.
        device.registers.ATQH1.HEAD = (head + 1) % device.registers.ATQLEN1.LEN
        if opcode == AdminOpcode.SEND_TO_PF and result is AdminError.OK:
            device.on_message(message, data)

    def _data(self, flags: int, size: int, address: int) -> bytes:
        if not flags & AdminFlag.BUFFER or not size:
            return b""
        if size > BUFFER_SIZE or (size > LARGE and not flags & AdminFlag.LARGE_BUFFER):
            raise ValueError(f"a buffer of {size} bytes, flags {flags:#06x}")
        return self._device.dma_read(address, size)

    # To the driver.

    def send(self, opcode: int, status: int = 0, data: bytes = b"") -> None:
        """A message of virtchnl; it waits while the driver has no buffer for it."""
        if not self._device.registers.ARQLEN1.ENABLE:
            return
        if len(self._backlog) >= BACKLOG:
            self.lost += 1
            self._device.registers.ARQLEN1.ARQOVFL = 1
            self._device.complain("the admin receive queue is full: a message is lost")
            return
        self._backlog.append((opcode, status, data))
        self.receive()

    def receive(self) -> None:
        """Fill what buffers the driver has given."""
        registers = self._device.registers
        came = False
        while self._backlog:
            length, head, tail = registers.ARQLEN1, registers.ARQH1.HEAD, registers.ARQT1.TAIL
            if not length.ENABLE or length.ARQCRIT or head == tail:
                break
            try:
                if head >= length.LEN or tail >= length.LEN:
                    raise DmaError(f"{length.LEN} entries: head {head}, tail {tail}")
                self._give(_address(registers.ARQBAH1, registers.ARQBAL1) + 32 * head)
            except DmaError as error:
                length.ARQCRIT = 1
                self._backlog.clear()
                self._device.complain(f"admin receive queue: {error}")
                break
            self._backlog.popleft()
            registers.ARQH1.HEAD = (head + 1) % length.LEN
            came = True
        if came:
            self._device.raise_admin_cause()

    def _give(self, at: int) -> None:
        opcode, status, data = self._backlog[0]
        raw = self._device.dma_read(at, _DESCRIPTOR.size)
        flags, _, room, _, _, _, *parameters = _DESCRIPTOR.unpack(raw)
        if len(data) > room:
            raise DmaError(f"a buffer of {room} bytes for a message of {len(data)}")
        if data:
            self._device.dma_write(parameters[2] << 32 | parameters[3], data)
        flags = AdminFlag.DONE | AdminFlag.COMPLETED
        if data:
            flags |= AdminFlag.BUFFER
        if len(data) > LARGE:
            flags |= AdminFlag.LARGE_BUFFER
        self._device.dma_write(
            at,
            _DESCRIPTOR.pack(
                flags,
                AdminOpcode.SEND_TO_VF,
                len(data),
                AdminError.OK,
                opcode,
                status & 0xFFFF_FFFF,
                *parameters,
            ),
        )


def _address(high: BoundRegister, low: BoundRegister) -> int:
    return high.value << 32 | low.value
