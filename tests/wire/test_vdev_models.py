"""Models of VDEVs that fail, that end in the middle of something, and what is given back; and those
whose stores C takes.
"""

from __future__ import annotations

import errno
import gc
import os
import socket
import time
from contextlib import suppress
from pathlib import Path

import pytest
from cffi import FFI
from everything import (
    ACTION,
    REFUSED,
    SCRATCH,
    Everything,
    bar0,
    put,
    refused,
)

from vdcm import Bar, Identity, Vdev
from vdcm.bars import PAGE
from vdcm.client import Client, Irq, Region
from vdcm.errors import DeferredError, ProtocolError, TransportError
from vdcm.pasid import PASIDS
from vdcm.testing import Host, wait_until_ready
from vdcm.transport import Session
from vdcm.vdev import VdevState

COMMAND, BUS_MASTER = 0x04, 0x4
RAM = 0x10000


# Models that fail


def test_exception_in_a_handler_is_an_error_reply(
    host: Host, vdev: Everything, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    host.serve(Everything, "other")
    with pytest.raises(ProtocolError) as caught:
        bar0(client, REFUSED)
    assert caught.value.errno == errno.EIO
    assert "all: the device model failed" in caplog.text
    assert "ZeroDivisionError: a bug of the device model, as ordered" in caplog.text
    vdev.action = lambda: [].pop()
    assert refused(client, ACTION) == errno.EIO
    assert bar0(client, SCRATCH) == 0
    with host.connect("other") as other:
        assert bar0(other, SCRATCH) == 0


def test_exception_in_a_reset(host: Host, vdev: Everything) -> None:
    def fail() -> None:
        raise RuntimeError("the model cannot be reset")

    with host.connect("all") as client:
        client.config.write(COMMAND, 2, BUS_MASTER)
        client.dma_memory(RAM, PAGE)
        vdev.when_reset = fail
        with pytest.raises(ProtocolError):
            client.reset()
        assert vdev.state is VdevState.ATTACHED
        assert bar0(client, SCRATCH) == 0
    wait_until_ready(vdev)
    assert vdev.address_space.ranges == []
    vdev.when_reset = lambda: None
    with host.connect("all") as client:
        assert bar0(client, SCRATCH) == 0


def test_exception_on_attachment_is_an_error_reply(
    host: Host, caplog: pytest.LogCaptureFixture
) -> None:
    class Shy(Everything):
        shy = True

        def regions(self):  # type: ignore[no-untyped-def]
            if self.shy:
                raise RuntimeError("not today")
            return super().regions()

    vdev = host.serve(Shy, "shy").vdev
    for _ in range(2):
        with pytest.raises(ProtocolError) as caught:
            host.connect("shy")
        assert caught.value.errno == errno.EIO
    assert "shy: the device model failed" in caplog.text
    vdev.shy = False
    vdev.state = VdevState.RESETTING  # a state in which it takes no client
    for _ in range(2):
        with pytest.raises(ProtocolError) as caught:
            host.connect("shy")
        assert caught.value.errno not in (0, errno.EBUSY)
    assert "shy is resetting" in caplog.text
    vdev.state = VdevState.READY
    with host.connect("shy") as client:
        assert bar0(client, SCRATCH) == 0


def test_vdev_that_is_withdrawn_by_its_own_handler(host: Host, vdev: Everything) -> None:
    """The handler has run to its end, nothing else is asked of the device, nothing is left."""
    before = descriptors()
    seen: list[int] = []

    def stop() -> None:
        host.transport.withdraw("all")
        vdev.close()
        seen.append(1)

    vdev.action = stop
    client = host.connect("all")
    with suppress(TransportError):  # it may end while we write
        for _ in range(20):
            client.post_write(Region.BAR0, ACTION, 4, 1)
    client.close()
    deadline = time.monotonic() + 20
    while not seen or descriptors() > before:
        assert time.monotonic() < deadline, "something is left of the session"
        time.sleep(0.01)
    assert seen == [1]
    assert vdev.state is VdevState.CLOSED
    assert not host.path("all").exists()


@pytest.mark.parametrize("access", ["read_bytes", "write_bytes"])
def test_vdev_that_is_withdrawn_in_the_middle_of_a_long_access(host: Host, access: str) -> None:
    """The rest of it is not the device's any more, which may have given everything back."""
    lines: list[str] = []

    class Leaving(Everything):
        def on_read_REFUSED(self) -> int:
            self.on_write_ACTION(1)
            return 0

        def on_write_ACTION(self, _value: int) -> None:
            host.transport.withdraw(self.name)
            self.close()
            lines.clear()

    vdev = host.serve(Leaving, "leaving").vdev
    host.run(vdev.observe, lambda event: lines.append(str(event)))
    with host.connect("leaving") as client, pytest.raises(ProtocolError) as caught:
        getattr(client, access)(Region.BAR0, ACTION, 16 if access == "read_bytes" else bytes(16))
    assert caught.value.errno == errno.ENODEV
    assert vdev.state is VdevState.CLOSED
    assert not [line for line in lines if "COUNTED" in line]


def test_vdev_that_is_served_again_by_its_own_handler(host: Host, vdev: Everything) -> None:
    def again() -> None:
        host.transport.withdraw("all")
        host.transport.serve(vdev, host.path("all"))

    vdev.action = again
    client = host.connect("all")
    with pytest.raises(TransportError):
        for _ in range(100):
            put(client, ACTION, 1)
    client.close()
    vdev.action = lambda: None
    with host.connect("all") as client:
        assert bar0(client, SCRATCH) == 0


def test_vdev_that_is_withdrawn_while_a_client_is_let_in(host: Host) -> None:
    class Fickle(Everything):
        def attached(self, session: Session) -> None:
            super().attached(session)
            host.transport.withdraw(self.name)

    before = descriptors()
    vdev = host.serve(Fickle, "fickle").vdev
    with pytest.raises(TransportError):
        host.connect("fickle")
    wait_until_ready(vdev)
    vdev.close()
    assert descriptors() <= before


def test_half_a_message_and_other_clients_that_knock(
    host: Host, vdev: Everything, client: Client
) -> None:
    """Each knock looks at the client that is connected, which is in the middle of a message."""
    raw = socket.socket(fileno=os.dup(client.fileno()))
    raw.setblocking(True)
    raw.send(b"\x09\x00\x09\x00\x20\x00\x00\x00")
    for _ in range(5):
        with pytest.raises(ProtocolError) as caught:
            Client(host.path("all"))
        assert caught.value.errno == errno.EBUSY
    raw.close()
    client.close()
    wait_until_ready(vdev)
    time.sleep(0.1)  # any timer that was forgotten fires


# What is given back


def test_closing_gives_back_pasid_and_descriptors(tmp_path: Path) -> None:
    host = Host(tmp_path)
    gc.collect()
    pasids, files = len(PASIDS), descriptors()
    for _ in range(200):
        vdev = host.serve(Everything, "all").vdev
        with host.connect("all") as client:
            client.irq_enable(Irq.MSIX)
            client.dma_memory(RAM, PAGE)
            client.map(Region.BAR0)
        host.run(host.transport.withdraw, "all")
        host.run(vdev.close)
        host.run(vdev.close)
        assert vdev.state is VdevState.CLOSED
    gc.collect()
    assert len(PASIDS) == pasids
    assert descriptors() == files
    host.close()
    assert host.complaints == []


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208


def test_stores_go_to_c_first_and_to_python_when_it_passes_them_on(host: Host) -> None:
    """And to Python alone while it is observed. Reads are always Python's."""
    ffi = FFI()
    answers = {8: 0, 16: errno.EAGAIN, 24: errno.ENOSPC, 32: -1}  # fastpath.h: VDCM_STORE_PASS
    offered: list[tuple[int, int, int]] = []

    @ffi.callback("int(void *, uint64_t, uint32_t, uint64_t)")  # type: ignore[untyped-decorator]
    def store(_argument: object, offset: int, width: int, value: int) -> int:
        offered.append((offset, width, value))
        return answers[offset & ~7]

    class Split(Vdev):
        identity = Identity(vendor=0x1234, device=0x5711, class_code=0)

        def __init__(self) -> None:
            bar = Bar(0, PAGE)
            bar.give_stores(8, 32, int(ffi.cast("uintptr_t", store)), 0)
            super().__init__("split", bars=[bar])
            self.written: list[tuple[int, int, int]] = []
            self._writers[0] = lambda *what: self.written.append(what)

    vdev = host.run(Split)
    host.run(host.transport.serve, vdev, host.path("split"))
    with Client(host.path("split")) as client:
        client.write(0, 8, 8, 1)
        client.write(0, 12, 2, 2)
        for offset, error in ((16, errno.EAGAIN), (24, errno.ENOSPC)):
            with pytest.raises(ProtocolError) as caught:
                client.write(0, offset, 4, 3)
            assert caught.value.errno == error
        client.write(0, 32, 4, 4)
        assert offered == [(8, 8, 1), (12, 2, 2), (16, 4, 3), (24, 4, 3), (32, 4, 4)]
        for offset in (0, 7, 40, 48):
            client.write(0, offset, 1, 5)
        assert vdev.written == [(32, 4, 4), (0, 1, 5), (7, 1, 5), (40, 1, 5), (48, 1, 5)]
        for offset in (4, 36):
            client.write(0, offset, 8, 5)  # half of it is C's: Python has it whole
        assert vdev.written[5:] == [(4, 8, 5), (36, 8, 5)]
        assert client.read(0, 8, 8) == 0
        assert client.write_multi([(0, 8, 8, 6), (0, 32, 4, 7), (0, 24, 4, 8), (0, 8, 8, 9)]) == 2
        assert offered[5:] == [(8, 8, 6), (32, 4, 7), (24, 4, 8)]
        host.run(vdev.observe, lambda _event: None)
        client.write(0, 24, 4, 10)
        assert vdev.written[-1] == (24, 4, 10)
        host.run(vdev.observe, None)
        client.write(0, 8, 4, 11)
        assert len(offered) == 9
    host.run(host.transport.withdraw, "split")
    host.run(vdev.close)


def test_a_deferred_write_is_answered_with_retry(
    client: Client, vdev: Everything, caplog: pytest.LogCaptureFixture
) -> None:
    """A deferrable write that is not taken now (PCIe DMWr) is an answer, not a failure."""
    taken: list[int] = []

    def defer() -> None:
        taken.append(1)
        if len(taken) < 3:
            raise DeferredError("not now")

    vdev.action = defer
    assert [refused(client, ACTION) for _ in range(2)] == [errno.EAGAIN, errno.EAGAIN]
    put(client, ACTION, 1)
    assert len(taken) == 3
    assert not [record for record in caplog.records if record.levelname != "INFO"]
