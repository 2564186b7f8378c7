"""Administrative commands: CMD and CMDSTATUS (DSA specification, 3.15 and 9.2.12).

A command that waits for work leaves Active set in CMDSTATUS and ends later, from the event loop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final, Protocol

from vdcm import BoundRegister, StateError
from vdcm_devices.dsa.checks import device_enable_error
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
from vdcm_devices.dsa.registers import DsaRegisters

Done = Callable[[], None]
Wait = Callable[[Done], None]
"""Starts something and calls its argument once it is over, perhaps at once."""


class CommandedQueue(Protocol):
    """A work queue, as commands see it."""

    @property
    def state(self) -> WqState: ...
    def enable(self) -> CommandError:
        """Check the configuration and take work from now on."""

    def stop(self) -> None:
        """Take no more work: DRAINING."""

    def disable(self) -> None:
        """DISABLED, from now on; there is no work left."""

    def drain(self, done: Done) -> None:
        """Call ``done`` when all that was submitted is completed."""

    def abort(self, done: Done) -> None:
        """Abandon what was submitted, and call ``done`` when nothing of it goes on."""

    def reset_configuration(self) -> None:
        """The WQ's registers as initially, but for its size."""


class CommandedDevice(Protocol):
    """What commands command. The PASID of a work queue is what its registers say."""

    @property
    def registers(self) -> DsaRegisters: ...
    @property
    def work_queues(self) -> Sequence[CommandedQueue]: ...
    @property
    def bus_master(self) -> bool: ...
    def set_state(self, state: DeviceState) -> None:
        """GENSTS, and what may be written in it."""

    def clear_configuration(self) -> None:
        """What Reset Device resets (table 9-3)."""

    def raise_cause(self, cause: Cause) -> None:
        """Set a bit of INTCAUSE and signal MSI-X entry 0."""

    def software_error(self, error: SoftwareError) -> None:
        """Record in SWERROR an error that no descriptor has caused."""

    def request_handle(self, index: int) -> int | None:
        """The interrupt handle of MSI-X entry ``index``; None if there is none to be had."""

    def release_handle(self, index: int) -> None:
        """Take the handle of MSI-X entry ``index`` back."""


class Commands:
    """The command register's other side."""

    def __init__(self, device: CommandedDevice) -> None:
        self._device: Final = device
        self._interrupt = False
        self._generation = 0  # of the command in progress; one that was cancelled is over

    @property
    def _status(self) -> BoundRegister:
        return self._device.registers.CMDSTATUS

    @property
    def active(self) -> bool:
        """A command is in progress."""
        return bool(self._status.ACTIVE)

    def submit(self, value: int) -> None:
        """CMD was written."""
        if self.active:
            self._device.software_error(SoftwareError.COMMAND_WHILE_ACTIVE)
            return
        self._generation += 1
        self._interrupt = bool(value >> 31)
        self._status.value = 1 << 31
        code, operand = value >> 20 & 0x1F, value & 0xFFFFF
        try:
            command = Command(code)
        except ValueError:
            self._end(CommandError.COMMAND)
            return
        if value >> 25 & 0x3F:
            self._end(CommandError.RESERVED)
        elif self._halted_for(command):
            self._end(CommandError.HALTED)
        else:
            self._HANDLERS[command](self, operand)

    def cancel(self, error: CommandError = CommandError.SUCCESS) -> None:
        """Whatever the command in progress waits for is of no interest any more."""
        self._generation += 1
        if self.active:
            self._end(error)

    def forget(self) -> None:
        """The function is being reset: there is no command, and nobody to be told of one."""
        self._generation += 1
        self._interrupt = False

    def _halted_for(self, command: Command) -> bool:
        status = self._device.registers.GENSTS
        return status.STATE == DeviceState.HALT and not (
            command is Command.RESET_DEVICE and status.RESET == ResetType.SOFTWARE
        )

    def _end(self, error: CommandError = CommandError.SUCCESS, result: int = 0) -> None:
        self._status.value = error | result << 8
        if self._interrupt:
            self._device.raise_cause(Cause.COMMAND)

    def _end_after(self, waits: Iterable[Wait], then: Done = lambda: None) -> None:
        """End the command with success when all ``waits`` are over, after calling ``then``."""
        generation = self._generation
        left = 1

        def done() -> None:
            nonlocal left
            left -= 1
            if not left and generation == self._generation:
                then()
                self._end()

        for wait in list(waits):
            left += 1
            try:
                wait(done)
            except StateError:  # the host has suspended the ADI: nothing will end in time
                self._generation += 1
                self._end(CommandError.HARDWARE)
                return
        done()

    # Commands for the device.

    def _enable_device(self, operand: int) -> None:
        device = self._device
        error = device_enable_error(device.registers, bus_master=device.bus_master)
        if operand:
            error = CommandError.RESERVED
        if not error:
            device.set_state(DeviceState.ENABLED)
        self._end(error)

    def _disable_device(self, operand: int) -> None:
        if operand:
            self._end(CommandError.RESERVED)
        elif self._device.registers.GENSTS.STATE != DeviceState.ENABLED:
            self._end(CommandError.DISABLE_NOT_ENABLED)
        else:
            self._quiesce(lambda queue: queue.drain, lambda: None)

    def _reset_device(self, operand: int) -> None:
        if operand:
            self._end(CommandError.RESERVED)
        else:
            self._quiesce(lambda queue: queue.abort, self._device.clear_configuration)

    def _quiesce(self, how: Callable[[CommandedQueue], Wait], then: Done) -> None:
        device = self._device
        queues = [queue for queue in device.work_queues if queue.state is not WqState.DISABLED]
        for queue in queues:
            queue.stop()
        if device.registers.GENSTS.STATE != DeviceState.DISABLED:
            device.set_state(DeviceState.DRAINING)

        def quiet() -> None:
            for queue in queues:
                queue.disable()
            device.set_state(DeviceState.DISABLED)
            then()

        self._end_after((how(queue) for queue in queues), quiet)

    def _drain_all(self, operand: int) -> None:
        self._on_all(operand, lambda queue: queue.drain)

    def _abort_all(self, operand: int) -> None:
        self._on_all(operand, lambda queue: queue.abort)

    def _on_all(self, operand: int, how: Callable[[CommandedQueue], Wait]) -> None:
        if operand:
            self._end(CommandError.RESERVED)
            return
        self._end_after(how(queue) for queue in self._enabled())

    def _enabled(self) -> list[CommandedQueue]:
        return [queue for queue in self._device.work_queues if queue.state is WqState.ENABLED]

    # Commands for work queues.

    def _enable_wq(self, operand: int) -> None:
        if operand >> 8:
            self._end(CommandError.RESERVED)
        elif self._device.registers.GENSTS.STATE != DeviceState.ENABLED:
            self._end(CommandError.DEVICE_NOT_ENABLED)
        elif operand >= len(self._device.work_queues):
            self._end(CommandError.WQ_INDEX)
        else:
            self._end(self._device.work_queues[operand].enable())

    def _named(self, operand: int) -> list[CommandedQueue] | None:
        """The work queues of a group number and a bitmap; None if there are not so many."""
        group, bitmap = operand >> 16, operand & 0xFFFF
        wanted = [16 * group + bit for bit in range(16) if bitmap >> bit & 1]
        if any(wq >= len(self._device.work_queues) for wq in wanted):
            return None
        return [self._device.work_queues[wq] for wq in wanted]

    def _enabled_named(self, operand: int) -> list[CommandedQueue] | None:
        """As ``_named``, all of them enabled; None if the command has been ended with an error."""
        queues = self._named(operand)
        if queues is None:
            self._end(CommandError.WQ_INDEX)
        elif any(queue.state is not WqState.ENABLED for queue in queues):
            self._end(CommandError.WQ_NOT_ENABLED)
        else:
            return queues
        return None

    def _disable_wq(self, operand: int) -> None:
        queues = self._enabled_named(operand)
        if queues is not None:
            for queue in queues:
                queue.stop()

            def quiet() -> None:
                for queue in queues:
                    queue.disable()

            self._end_after((queue.drain for queue in queues), quiet)

    def _drain_wq(self, operand: int) -> None:
        queues = self._enabled_named(operand)
        if queues is not None:
            self._end_after(queue.drain for queue in queues)

    def _abort_wq(self, operand: int) -> None:
        queues = self._enabled_named(operand)
        if queues is not None:
            self._end_after(queue.abort for queue in queues)

    def _reset_wq(self, operand: int) -> None:
        queues = self._named(operand)
        if queues is None:
            self._end(CommandError.WQ_INDEX)
            return
        active = [queue for queue in queues if queue.state is not WqState.DISABLED]
        for queue in active:
            queue.stop()

        def quiet() -> None:
            for queue in active:
                queue.disable()
            for queue in queues:
                queue.reset_configuration()

        self._end_after((queue.abort for queue in active), quiet)

    # Commands for PASIDs. A shared WQ is waited for as a whole, as the specification allows.

    def _drain_pasid(self, operand: int) -> None:
        self._end_after(queue.drain for queue, _ in self._with_pasid(operand))

    def _abort_pasid(self, operand: int) -> None:
        self._end_after(
            queue.abort if mode is WqMode.DEDICATED else queue.drain
            for queue, mode in self._with_pasid(operand)
        )

    def _with_pasid(self, pasid: int) -> list[tuple[CommandedQueue, WqMode]]:
        """Enabled work queues that may hold descriptors with the guest's ``pasid``."""
        found = []
        for queue, config in zip(
            self._device.work_queues, self._device.registers.WQMODE, strict=True
        ):
            mode = WqMode(config.MODE)
            uses = mode is WqMode.SHARED or (config.PASID_ENABLE and pasid == config.PASID)
            if uses and queue.state is WqState.ENABLED:
                found.append((queue, mode))
        return found

    # Interrupt handles. There is no IMS for the guest, so bit 16 selects a table without entries.

    def _request_handle(self, operand: int) -> None:
        error = self._entry_error(operand)
        handle = None if error else self._device.request_handle(operand)
        if handle is None:
            self._end(error or CommandError.NO_INTERRUPT_HANDLE)
        else:
            self._end(result=handle)

    def _release_handle(self, operand: int) -> None:
        error = self._entry_error(operand)
        if not error:
            self._device.release_handle(operand)
        self._end(error)

    def _entry_error(self, operand: int) -> CommandError:
        if operand >> 17:
            return CommandError.RESERVED
        if operand >= len(self._device.registers.MSIXPERM):
            return CommandError.INTERRUPT_INDEX
        return CommandError.SUCCESS

    _HANDLERS: Final = {
        Command.ENABLE_DEVICE: _enable_device,
        Command.DISABLE_DEVICE: _disable_device,
        Command.DRAIN_ALL: _drain_all,
        Command.ABORT_ALL: _abort_all,
        Command.RESET_DEVICE: _reset_device,
        Command.ENABLE_WQ: _enable_wq,
        Command.DISABLE_WQ: _disable_wq,
        Command.DRAIN_WQ: _drain_wq,
        Command.ABORT_WQ: _abort_wq,
        Command.RESET_WQ: _reset_wq,
        Command.DRAIN_PASID: _drain_pasid,
        Command.ABORT_PASID: _abort_pasid,
        Command.REQUEST_INTERRUPT_HANDLE: _request_handle,
        Command.RELEASE_INTERRUPT_HANDLE: _release_handle,
    }
