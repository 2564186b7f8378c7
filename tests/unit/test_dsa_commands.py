"""The software DSA's administrative commands, with work queues that end their work when told."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vdcm.errors import StateError
from vdcm_devices.dsa.codes import (
    Cause,
    Command,
    CommandError,
    DeviceState,
    ResetType,
    SoftwareError,
    WqMode,
    WqState,
)
from vdcm_devices.dsa.commands import Commands
from vdcm_devices.dsa.registers import Capabilities, registers_class

WQS = 20  # more than one group of 16


class FakeQueue:
    """Remembers what it was told; drains when ``finish`` is called."""

    def __init__(self) -> None:
        self.state = WqState.DISABLED
        self.waiting: list[Callable[[], None]] = []
        self.log: list[str] = []
        self.error = CommandError.SUCCESS
        self.suspended = False

    def enable(self) -> CommandError:
        if not self.error:
            self.state = WqState.ENABLED
        return self.error

    def stop(self) -> None:
        self.state = WqState.DRAINING

    def disable(self) -> None:
        self.state = WqState.DISABLED

    def drain(self, done: Callable[[], None]) -> None:
        if self.suspended:
            raise StateError("suspended")
        self.log.append("drain")
        self.waiting.append(done)

    def abort(self, done: Callable[[], None]) -> None:
        self.log.append("abort")
        done()

    def reset_configuration(self) -> None:
        self.log.append("reset")

    def finish(self) -> None:
        waiting, self.waiting = self.waiting, []
        for done in waiting:
            done()


class FakeDevice:
    def __init__(self) -> None:
        self.registers = registers_class(WQS, 1, 1)()
        self.registers.tell(
            Capabilities(
                wqs=WQS,
                total_wq_size=WQS,
                dedicated=True,
                shared=True,
                groups=1,
                engines=1,
                operations=1,
                max_transfer=20,
                max_batch=4,
            )
        )
        self.work_queues = [FakeQueue() for _ in range(WQS)]
        self.bus_master = True
        self.causes: list[Cause] = []
        self.errors: list[SoftwareError] = []
        self.cleared = 0
        self.handles: list[int] = []
        self.handles_left = True
        self.commands = Commands(self)
        for wq in self.registers.WQSIZE:
            wq.SIZE = 1
        self.registers.GRPWQS[0].WQS = (1 << WQS) - 1
        self.registers.GRPENGINES[0].ENGINES = 1

    def set_state(self, state: DeviceState) -> None:
        self.registers.GENSTS.STATE = state

    def clear_configuration(self) -> None:
        self.cleared += 1

    def raise_cause(self, cause: Cause) -> None:
        self.causes.append(cause)

    def software_error(self, error: SoftwareError) -> None:
        self.errors.append(error)

    def request_handle(self, index: int) -> int | None:
        return index + 40 if self.handles_left else None

    def release_handle(self, index: int) -> None:
        self.handles.append(index)

    # Shorthands of the tests.

    def command(self, code: int, operand: int = 0, *, interrupt: bool = False) -> int:
        self.commands.submit(interrupt << 31 | code << 20 | operand)
        return self.status

    @property
    def status(self) -> int:
        return self.registers.CMDSTATUS.value

    def enable(self, *wqs: int) -> None:
        if self.registers.GENSTS.STATE == DeviceState.DISABLED:
            assert self.command(Command.ENABLE_DEVICE) == 0
        for wq in wqs:
            assert self.command(Command.ENABLE_WQ, wq) == 0


ACTIVE = 1 << 31


@pytest.fixture
def device() -> FakeDevice:
    return FakeDevice()


def test_success_is_exactly_zero_and_interrupts_only_if_asked(device: FakeDevice) -> None:
    assert device.command(Command.ENABLE_DEVICE) == 0
    assert device.registers.GENSTS.STATE == DeviceState.ENABLED
    assert device.causes == []
    assert device.command(Command.ENABLE_WQ, 3, interrupt=True) == 0
    assert device.work_queues[3].state is WqState.ENABLED
    assert device.causes == [Cause.COMMAND]


@pytest.mark.parametrize("code", [0, 15, 16, 17, 31])
def test_a_command_that_there_is_not(device: FakeDevice, code: int) -> None:
    assert device.command(code, interrupt=True) == CommandError.COMMAND
    assert device.causes == [Cause.COMMAND], "errors complete a command as well"


@pytest.mark.parametrize(
    ("code", "operand", "error"),
    [
        (Command.ENABLE_DEVICE, 1, CommandError.RESERVED),
        (Command.DISABLE_DEVICE, 1, CommandError.RESERVED),
        (Command.DRAIN_ALL, 1, CommandError.RESERVED),
        (Command.ABORT_ALL, 1, CommandError.RESERVED),
        (Command.RESET_DEVICE, 1, CommandError.RESERVED),
        (Command.ENABLE_WQ, 0x100, CommandError.RESERVED),
        (Command.ENABLE_WQ, WQS, CommandError.WQ_INDEX),
        (Command.ENABLE_DEVICE, 0, CommandError.DEVICE_NOT_DISABLED),
        (Command.DISABLE_WQ, 1 << 16 | 1 << 4, CommandError.WQ_INDEX),
        (Command.DRAIN_WQ, 2 << 16 | 1, CommandError.WQ_INDEX),
        (Command.DRAIN_WQ, 0b11, CommandError.WQ_NOT_ENABLED),
        (Command.ABORT_WQ, 0b11, CommandError.WQ_NOT_ENABLED),
        (Command.DISABLE_WQ, 1 << 16 | 1, CommandError.WQ_NOT_ENABLED),
        (Command.RESET_WQ, 15 << 16 | 1, CommandError.WQ_INDEX),
        (Command.REQUEST_INTERRUPT_HANDLE, WQS + 1, CommandError.INTERRUPT_INDEX),
        (Command.REQUEST_INTERRUPT_HANDLE, 1 << 16, CommandError.INTERRUPT_INDEX),
        (Command.REQUEST_INTERRUPT_HANDLE, 1 << 17, CommandError.RESERVED),
        (Command.RELEASE_INTERRUPT_HANDLE, WQS + 1, CommandError.INTERRUPT_INDEX),
        (Command.RELEASE_INTERRUPT_HANDLE, 1 << 19, CommandError.RESERVED),
    ],
)
def test_error_codes(device: FakeDevice, code: int, operand: int, error: int) -> None:
    device.enable(0)
    assert device.command(code, operand) == error


def test_reserved_bits_of_the_register(device: FakeDevice) -> None:
    device.commands.submit(1 << 25 | Command.ENABLE_DEVICE << 20)
    assert device.status == CommandError.RESERVED


def test_commands_that_need_an_enabled_device(device: FakeDevice) -> None:
    assert device.command(Command.DISABLE_DEVICE) == CommandError.DISABLE_NOT_ENABLED
    assert device.command(Command.ENABLE_WQ, 0) == CommandError.DEVICE_NOT_ENABLED


def test_disable_wq_waits_for_its_work_alone(device: FakeDevice) -> None:
    device.enable(1, 4, 7)
    assert device.command(Command.DISABLE_WQ, 1 << 1 | 1 << 4, interrupt=True) & ACTIVE
    one, four, seven = (device.work_queues[wq] for wq in (1, 4, 7))
    assert (one.state, four.state, seven.state) == (
        WqState.DRAINING,
        WqState.DRAINING,
        WqState.ENABLED,
    )
    one.finish()
    assert device.status & ACTIVE
    assert one.state is WqState.DRAINING, "they are disabled together"
    four.finish()
    assert device.status == 0
    assert device.causes == [Cause.COMMAND]
    assert (one.state, four.state, seven.state) == (
        WqState.DISABLED,
        WqState.DISABLED,
        WqState.ENABLED,
    )


def test_wqs_beyond_sixteen_are_named_by_group(device: FakeDevice) -> None:
    device.enable(17, 18)
    assert device.command(Command.DRAIN_WQ, 1 << 16 | 0b110) & ACTIVE
    assert [wq for wq, queue in enumerate(device.work_queues) if queue.waiting] == [17, 18]
    device.work_queues[17].finish()
    device.work_queues[18].finish()
    assert device.status == 0
    assert device.work_queues[17].state is WqState.ENABLED, "drained, not disabled"


def test_disable_device_drains_and_disables_everything(device: FakeDevice) -> None:
    device.enable(0, 5)
    assert device.command(Command.DISABLE_DEVICE) & ACTIVE
    assert device.registers.GENSTS.STATE == DeviceState.DRAINING
    device.work_queues[5].finish()
    device.work_queues[0].finish()
    assert device.status == 0
    assert device.registers.GENSTS.STATE == DeviceState.DISABLED
    assert all(queue.state is WqState.DISABLED for queue in device.work_queues)
    assert device.cleared == 0


def test_reset_device_aborts_and_clears(device: FakeDevice) -> None:
    assert device.command(Command.RESET_DEVICE) == 0
    assert device.cleared == 1, "of a disabled device only the configuration"
    device.enable(0, 5)
    assert device.command(Command.RESET_DEVICE) == 0
    assert device.cleared == 2
    assert device.work_queues[5].log == ["abort"]
    assert device.registers.GENSTS.STATE == DeviceState.DISABLED


def test_reset_wq_takes_disabled_ones_too(device: FakeDevice) -> None:
    device.enable(0)
    assert device.command(Command.RESET_WQ, 0b11) == 0
    assert device.work_queues[0].log == ["abort", "reset"]
    assert device.work_queues[1].log == ["reset"]
    assert device.work_queues[0].state is WqState.DISABLED


def test_abort_wq_leaves_it_enabled(device: FakeDevice) -> None:
    device.enable(2)
    assert device.command(Command.ABORT_WQ, 0b100) == 0
    assert device.work_queues[2].log == ["abort"]
    assert device.work_queues[2].state is WqState.ENABLED


def test_pasid_commands_reach_the_queues_that_may_have_it(device: FakeDevice) -> None:
    """A dedicated work queue with that PASID, and every shared one; none that is disabled."""
    device.enable(0, 1, 2)
    for wq, (mode, enabled, pasid) in enumerate(
        [(WqMode.DEDICATED, 1, 77), (WqMode.DEDICATED, 0, 77), (WqMode.SHARED, 1, 0)]
    ):
        device.registers.WQMODE[wq].MODE = mode
        device.registers.WQMODE[wq].PASID_ENABLE = enabled
        device.registers.WQMODE[wq].PASID = pasid
    assert device.command(Command.DRAIN_PASID, 77) & ACTIVE
    assert [queue.log for queue in device.work_queues[:4]] == [["drain"], [], ["drain"], []]
    for queue in device.work_queues:
        queue.finish()
    assert device.status == 0
    assert device.command(Command.ABORT_PASID, 77) & ACTIVE
    assert device.work_queues[0].log == ["drain", "abort"]
    assert device.work_queues[2].log == ["drain", "drain"], "others' work is not abandoned"
    device.work_queues[2].finish()
    assert device.status == 0
    assert device.command(Command.DRAIN_PASID, 5) & ACTIVE, "the shared one may have any PASID"
    device.work_queues[2].finish()
    assert device.status == 0


def test_drain_all_and_abort_all(device: FakeDevice) -> None:
    assert device.command(Command.DRAIN_ALL) == 0
    device.enable(0, 9)
    assert device.command(Command.DRAIN_ALL) & ACTIVE
    device.work_queues[0].finish()
    device.work_queues[9].finish()
    assert device.status == 0
    assert device.command(Command.ABORT_ALL) == 0
    assert device.work_queues[9].log == ["drain", "abort"]


def test_interrupt_handles(device: FakeDevice) -> None:
    assert device.command(Command.REQUEST_INTERRUPT_HANDLE, 2) == 42 << 8
    assert device.command(Command.RELEASE_INTERRUPT_HANDLE, 2) == 0
    assert device.handles == [2]
    device.handles_left = False
    assert device.command(Command.REQUEST_INTERRUPT_HANDLE, 2) == CommandError.NO_INTERRUPT_HANDLE


def test_a_command_while_another_is_active_is_discarded(device: FakeDevice) -> None:
    device.enable(0)
    device.command(Command.DRAIN_WQ, 1)
    assert device.command(Command.RESET_DEVICE) & ACTIVE
    assert device.errors == [SoftwareError.COMMAND_WHILE_ACTIVE]
    assert device.cleared == 0
    device.work_queues[0].finish()
    assert device.status == 0


def test_a_cancelled_command_does_not_end_later(device: FakeDevice) -> None:
    """A reset comes between, and then another command: the first one's work does not end that."""
    device.enable(0)
    device.command(Command.DRAIN_WQ, 1, interrupt=True)
    device.commands.forget()
    device.registers.reset()
    device.work_queues[0].finish()
    assert device.status == 0
    assert device.causes == []
    device.work_queues[0].state = WqState.ENABLED
    device.command(Command.DRAIN_WQ, 1)
    device.commands.cancel(CommandError.HARDWARE)
    assert device.status == CommandError.HARDWARE
    device.command(Command.DRAIN_WQ, 1)
    first, second = device.work_queues[0].waiting
    first()
    assert device.status & ACTIVE
    second()
    assert device.status == 0


def test_halt_refuses_all_but_the_reset_that_helps(device: FakeDevice) -> None:
    device.enable(0)
    device.registers.GENSTS.STATE = DeviceState.HALT
    device.registers.GENSTS.RESET = ResetType.FUNCTION
    for code in Command:
        assert device.command(code) == CommandError.HALTED
    device.registers.GENSTS.RESET = ResetType.SOFTWARE
    assert device.command(Command.DISABLE_DEVICE) == CommandError.HALTED
    assert device.command(Command.RESET_DEVICE) == 0
    assert device.registers.GENSTS.STATE == DeviceState.DISABLED


def test_a_suspended_adi_does_not_leave_the_guest_waiting(device: FakeDevice) -> None:
    device.enable(0, 1)
    device.work_queues[1].suspended = True
    assert device.command(Command.DRAIN_ALL) == CommandError.HARDWARE
    device.work_queues[0].finish()
    assert device.status == CommandError.HARDWARE


@given(st.lists(st.tuples(st.integers(0, (1 << 32) - 1), st.booleans()), max_size=30))
def test_any_commands_end_with_a_code_of_the_specification(steps: list[tuple[int, bool]]) -> None:
    device = FakeDevice()
    device.enable(0, 1, 2)
    for value, finish in steps:
        device.commands.submit(value)
        if finish:
            for queue in device.work_queues:
                queue.finish()
            assert not device.status & ACTIVE
            CommandError(device.status & 0xFF)
            assert device.registers.GENSTS.STATE != DeviceState.DRAINING
            assert all(queue.state is not WqState.DRAINING for queue in device.work_queues)
