"""The mailbox: requests, answers now and later, errors, hostile guests, resets."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mailbox_model import AREA, DATA, REGISTERS, SIZE, VECTOR, Driver, Letterbox

from vdcm import Bar, Mailbox, MailboxCode, PagePolicy, Pages, RequestType
from vdcm.bars import PAGE
from vdcm.counters import CLIENT, Count, nothing
from vdcm.errors import DeclarationError, StateError, VdcmError
from vdcm.mailbox import MailboxOwner, MailboxRegisters
from vdcm.protocol import Irq, Region
from vdcm.transport import GuestMemory, IrqAction, Session


class Signals:
    """What a VDEV uses of a session here."""

    def __init__(self) -> None:
        self.memory = GuestMemory()
        self.heard: list[int] = []

    def counters(self) -> dict[str, Count]:
        return nothing(CLIENT)

    def trigger(self, kind: Irq, vector: int) -> bool:
        assert kind is Irq.MSIX
        self.heard.append(vector)
        return True


def letterbox(**arguments: Any) -> Letterbox:
    return Letterbox("box", **arguments)


def driver_of(box: Letterbox) -> Driver:
    return Driver(
        lambda offset, width: box.read(0, offset, width),
        lambda offset, width, value: box.write(0, offset, width, value),
    )


def attach(box: Letterbox) -> Signals:
    signals = Signals()
    box.attached(cast(Session, signals))
    box.write(Region.CONFIG, 0x04, 2, 0x6)  # memory space, bus master
    box.irqs_changed(Irq.MSIX, IrqAction.BOUND, 0, 2)
    return signals


@pytest.fixture(params=[True, False], ids=["memory", "intercepted"])
def box(request: pytest.FixtureRequest) -> Iterator[Letterbox]:
    box = letterbox(shared=request.param)
    yield box
    if box.session is not None:
        box.detached()
    box.close()


@pytest.fixture
def driver(box: Letterbox) -> Driver:
    return driver_of(box)


def test_registers_say_where_the_data_is(box: Letterbox, driver: Driver) -> None:
    assert (driver.data, driver.area) == (DATA, AREA)
    assert driver.field("HAS_VECTOR", "CONTROL") == 1
    assert driver.field("VECTOR", "CONTROL") == VECTOR
    assert driver.get("STATUS") == 0x8, "open, nothing else"
    for register in ("DATA", "SIZE"):
        before = driver.get(register)
        driver.put(register, 0)
        assert driver.get(register) == before
    assert driver.get("DOORBELL") == 0
    assert box.mailbox.answered == 0


@pytest.mark.conformance("R4.4.3-3")
@pytest.mark.parametrize("length", [0, 1, 7, 8, 13, 4095, AREA])
def test_an_answer_comes_back(box: Letterbox, driver: Driver, length: int) -> None:
    request = bytes(i * 7 & 0xFF for i in range(length))
    assert driver.ask("ECHO", request) == (MailboxCode.SUCCESS, request)
    assert box.mailbox.answered == 1


def test_request_and_response_do_not_overlap(driver: Driver) -> None:
    ones = b"\xff" * AREA
    assert driver.ask("ECHO", ones) == (0, ones)
    assert driver.ask("ECHO", b"\x55" * AREA) == (0, b"\x55" * AREA)
    assert driver.ask("ECHO", b"ab") == (0, b"ab")


@pytest.mark.parametrize("lengths", [{"least": 0}, {"least": 4}, {"least": 4, "most": 8}])
def test_length_is_that_of_the_request_type(lengths: dict[str, int]) -> None:
    kind = RequestType(1, **lengths)
    heard: list[int] = []

    class Owner:
        name, observer = "owner", None
        interrupts: Any = None

        def on_request_ASK(self, request: Any) -> bytes:
            heard.append(len(request.data))
            return b""

    bar = Bar(0, 4 * PAGE)
    Mailbox(cast(MailboxOwner, Owner()), {"ASK": kind}, bar, 0, data=PAGE, size=PAGE)
    driver = Driver(bar.read, bar.write, at=0)
    for length in range(12):
        driver.ring(1, length)
        fits = lengths["least"] <= length <= lengths.get("most", lengths["least"])
        assert driver.field("CODE") == (MailboxCode.SUCCESS if fits else MailboxCode.BAD_LENGTH)
    assert heard == list(kind.lengths)


def test_a_handler_may_answer_later(box: Letterbox, driver: Driver) -> None:
    driver.send("LATER", b"wait")
    assert driver.get("STATUS") == 0x9, "open and busy"
    assert box.mailbox.busy
    [request] = box.waiting
    assert request.pending
    assert (request.name, request.data) == ("LATER", b"wait")
    assert request.complete(b"done")
    assert driver.answer() == (MailboxCode.SUCCESS, b"done")
    assert not box.mailbox.busy
    assert not request.pending
    with pytest.raises(StateError, match="LATER has been answered already"):
        request.fail(MailboxCode.FAILED, "again")


def test_later_may_be_a_failure(box: Letterbox, driver: Driver) -> None:
    driver.send("LATER", b"wait")
    assert box.waiting[0].fail(MailboxCode.WRONG_STATE, "it is not enabled")
    assert driver.answer() == (MailboxCode.WRONG_STATE, b"")


def test_request_is_a_copy(box: Letterbox, driver: Driver) -> None:
    driver.send("LATER", b"good")
    box.write(0, DATA, 4, int.from_bytes(b"evil", "little"))
    assert box.waiting[0].data == b"good"


@pytest.mark.parametrize(
    ("name", "code"), [("REFUSE", MailboxCode.NO_RESOURCES), ("FAIL", MailboxCode.FAILED)]
)
def test_refusals_are_codes_and_a_line_for_the_observer(
    box: Letterbox, driver: Driver, name: str, code: MailboxCode
) -> None:
    lines: list[str] = []
    box.observe(lambda event: lines.append(str(event)))
    assert driver.ask(name) == (code, b"")
    told = [line for line in lines if line.startswith("mailbox ")]
    assert told[0] == f"mailbox {name} (0 bytes)"
    assert told[1].startswith(f"mailbox {name} failed: {code.name}: ")


@pytest.mark.parametrize(
    ("name", "error"),
    [("BREAK", ZeroDivisionError), ("TOO_MUCH", VdcmError)],
)
def test_a_bug_is_logged_and_leaves_no_guest_waiting(
    driver: Driver, name: str, error: type[Exception]
) -> None:
    with pytest.raises(error):
        driver.send(name)
    assert driver.answer() == (MailboxCode.FAILED, b"")
    assert driver.ask("ECHO", b"fine") == (0, b"fine")


def test_answering_twice_is_a_bug(driver: Driver) -> None:
    with pytest.raises(StateError, match="TWICE has been answered already"):
        driver.send("TWICE")
    assert driver.answer() == (MailboxCode.SUCCESS, b"once")


# Hostile guests


@pytest.mark.parametrize(
    ("opcode", "length", "code"),
    [
        (0, 0, MailboxCode.UNKNOWN_REQUEST),
        (0x1234, 4, MailboxCode.UNKNOWN_REQUEST),
        (1, AREA + 1, MailboxCode.BAD_LENGTH),
        (1, 0xFFFF, MailboxCode.BAD_LENGTH),
        (2, 3, MailboxCode.BAD_LENGTH),
        (2, 5, MailboxCode.BAD_LENGTH),
    ],
)
def test_garbage_is_answered_with_a_code(
    box: Letterbox, driver: Driver, opcode: int, length: int, code: MailboxCode
) -> None:
    driver.ring(opcode, length)
    assert driver.answer() == (code, b"")
    assert box.waiting == []


def test_doorbell_while_busy_changes_nothing_else(box: Letterbox, driver: Driver) -> None:
    driver.send("LATER", b"1st.")
    driver.send("LATER", b"2nd.")
    driver.ring(0, 0xFFFF)
    assert driver.get("STATUS") == 0xD, "open, rejected and busy"
    assert len(box.waiting) == 1
    assert box.mailbox.rejected == 2
    box.waiting[0].complete(b"answer")
    assert driver.answer() == (0, b"answer")
    assert driver.field("REJECTED") == 1
    driver.put("STATUS", 0x6)
    assert (driver.field("REJECTED"), driver.field("DONE")) == (0, 0)


@pytest.mark.parametrize(("offset", "width"), [(0, 1), (1, 1), (2, 1), (2, 2), (0, 2)])
def test_part_of_a_doorbell_is_a_doorbell_with_zeros(
    box: Letterbox, driver: Driver, offset: int, width: int
) -> None:
    at = REGISTERS + MailboxRegisters.registers["DOORBELL"].offset
    box.write(0, at + offset, width, 1)
    code, _ = driver.answer()
    assert code == (MailboxCode.SUCCESS if offset == 0 else MailboxCode.UNKNOWN_REQUEST)


@settings(max_examples=60)
@given(
    shared=st.booleans(),
    writes=st.lists(
        st.tuples(
            st.one_of(
                st.integers(REGISTERS - 8, REGISTERS + 24),
                st.just(REGISTERS + 0xC),
                st.integers(DATA - 8, DATA + SIZE),
            ),
            st.sampled_from([1, 2, 4, 8]),
            st.one_of(st.integers(0, 2**64 - 1), st.sampled_from([1, 0x40001, 0x40002, 3])),
        ),
        max_size=40,
    ),
)
def test_whatever_a_guest_writes_the_mailbox_goes_on(
    shared: bool, writes: list[tuple[int, int, int]]
) -> None:
    broken = (ZeroDivisionError, StateError, VdcmError)  # handlers that fail as ordered
    box = letterbox(shared=shared)
    try:
        driver = driver_of(box)
        for offset, width, value in writes:
            try:
                box.write(0, offset, width, value)
            except broken:
                assert not box.mailbox.busy
            assert len(box.waiting) <= len(writes)
            assert sum(request.pending for request in box.waiting) == int(box.mailbox.busy)
            assert driver.field("BUSY") == int(box.mailbox.busy)
        for request in box.waiting:
            if request.pending:
                request.complete()
        assert driver.ask("ECHO", b"still here") == (0, b"still here")
    finally:
        box.close()


@settings(max_examples=40)
@given(
    asked=st.lists(
        st.tuples(st.sampled_from(["ECHO", "REFUSE", "FAIL"]), st.binary(max_size=40)), max_size=8
    )
)
def test_mapped_and_intercepted_data_behave_alike(asked: list[tuple[str, bytes]]) -> None:
    boxes = [letterbox(shared=shared) for shared in (True, False)]
    try:
        first, second = (
            [driver_of(box).ask(name, request) for name, request in asked] for box in boxes
        )
        assert first == second
    finally:
        for box in boxes:
            box.close()


# Interrupts


@pytest.mark.conformance("R4.4.2-3", "R4.4.3-4")
def test_interrupt_with_each_answer_if_the_driver_wants_it(box: Letterbox, driver: Driver) -> None:
    signals = attach(box)
    driver.ask("ECHO", b"polled")
    assert signals.heard == []
    driver.put("CONTROL", 1)
    driver.ask("ECHO", b"now")
    assert signals.heard == [VECTOR]
    driver.send("LATER", b"soon")
    driver.send("ECHO", b"rejected: none for that")
    assert signals.heard == [VECTOR]
    box.waiting[0].complete()
    driver.ring(0)
    assert signals.heard == [VECTOR] * 3


def test_without_a_vector_it_is_polled() -> None:
    box = letterbox(vector=None)
    signals = attach(box)
    driver = driver_of(box)
    driver.put("CONTROL", 0xFFFF_FFFF)
    assert driver.get("CONTROL") == 1
    assert driver.ask("ECHO", b"polled") == (0, b"polled")
    assert signals.heard == []
    box.detached()
    box.close()


# Resets, and the channel's state


def test_reset_drops_what_is_not_answered(box: Letterbox, driver: Driver) -> None:
    signals = attach(box)
    driver.put("CONTROL", 1)
    driver.ask("ECHO", b"\xff" * 16)
    driver.send("LATER", b"wait")
    signals.heard.clear()
    box.reset()
    assert driver.get("STATUS") == 0x8
    assert driver.field("INTERRUPT", "CONTROL") == 0
    assert [box.read(0, at, 8) for at in (DATA, DATA + AREA)] == [0, 0]
    [request] = box.waiting
    assert not request.pending
    assert not request.complete(b"too late")
    assert not request.fail(MailboxCode.FAILED, "too late")
    assert driver.get("STATUS") == 0x8
    assert signals.heard == []
    assert driver.ask("ECHO", b"anew") == (0, b"anew")


def test_reset_while_handling(driver: Driver) -> None:
    driver.send("RESET")
    assert driver.get("STATUS") == 0x8
    assert driver.ask("ECHO", b"anew") == (0, b"anew")


@pytest.mark.conformance("R4.1-10")
def test_channel_that_is_not_open(box: Letterbox, driver: Driver) -> None:
    driver.send("LATER", b"wait")
    box.channel_enabled = False
    assert driver.field("OPEN") == 0
    box.waiting[0].complete(b"what was asked in time")
    assert driver.answer() == (MailboxCode.SUCCESS, b"what was asked in time")
    assert driver.ask("ECHO", b"?") == (MailboxCode.NOT_OPEN, b"")
    box.reset()
    assert driver.ask("ECHO", b"?") == (MailboxCode.NOT_OPEN, b""), "it is not the guest's to open"
    box.channel_enabled = True
    assert driver.field("OPEN") == 1
    assert driver.ask("ECHO", b"!") == (MailboxCode.SUCCESS, b"!")


# Declarations


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"requests": {}}, "on_request_ASK names no request"),
        (
            {"requests": {"ASK": RequestType(1), "TELL": RequestType(2)}},
            "no method on_request_TELL",
        ),
        ({"requests": {"ASK": RequestType(0)}}, "opcode 0x0"),
        ({"requests": {"ASK": RequestType(0x10000)}}, "opcode 0x10000"),
        ({"requests": {"ASK": RequestType(1), "TELL": RequestType(1)}}, "is taken"),
        ({"requests": {"ASK": RequestType(1, 5, 4)}}, "5 to 4 bytes"),
        ({"requests": {"ASK": RequestType(1, -1)}}, "-1 to"),
        ({"requests": {"ASK": RequestType(1, 0, PAGE // 2 + 1)}}, "request area has 2048"),
        ({"size": 0}, "multiples of 16"),
        ({"size": 24}, "multiples of 16"),
        ({"size": 0x11000}, "to 0x10000"),
        ({"data": PAGE + 8}, "multiples of 16"),
        ({"data": 3 * PAGE}, "direct pages"),
        ({"data": 2 * PAGE - 16}, "several policies"),
        ({"at": PAGE - 8}, "overlaps"),
        ({"at": 2 * PAGE}, "Python does not see"),
        ({"data": 0x100000}, "not inside"),
    ],
)
def test_impossible_mailboxes_are_refused(arguments: dict[str, Any], words: str) -> None:
    class Owner:
        name, observer = "owner", None
        interrupts: Any = None

        def on_request_ASK(self, _request: Any) -> bytes:
            return b""

    pages = [Pages(2 * PAGE, PAGE, PagePolicy.MEMORY), Pages(3 * PAGE, PAGE, PagePolicy.DIRECT)]
    bar = Bar(0, 16 * PAGE, pages=pages)
    given = {"requests": {"ASK": RequestType(1)}, "at": 0, "data": PAGE, "size": PAGE, **arguments}
    with pytest.raises(DeclarationError, match=words):
        Mailbox(cast(MailboxOwner, Owner()), given.pop("requests"), bar, given.pop("at"), **given)
    bar.close()
