"""The controller: its registers, its states and its admin queue (NVM Express 1.4, 3.1 and 7)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from vdcm import DmaError, VdcmError, monotonic_ns
from vdcm_devices.nvme import identify, logs
from vdcm_devices.nvme.adminqueue import AdminQueue, status_field
from vdcm_devices.nvme.codes import (
    ErrorEvent,
    EventType,
    Feature,
    HealthEvent,
    LogPage,
    NoticeEvent,
    NvmeError,
    Shutdown,
    Status,
)
from vdcm_devices.nvme.command import Command
from vdcm_devices.nvme.commands import Commands
from vdcm_devices.nvme.datapath import MAX_TRANSFER, ReportedError
from vdcm_devices.nvme.events import Events
from vdcm_devices.nvme.features import NAMESPACE_EVENTS, Features
from vdcm_devices.nvme.jobs import when
from vdcm_devices.nvme.registers import LONGEST_PAGE_SHIFT, SUBSYSTEM_RESET, NvmeRegisters

if TYPE_CHECKING:
    from vdcm_devices.nvme.namespaces import Namespaces
    from vdcm_devices.nvme.vdev import NvmeVdev

TURN: Final = 16
"""Admin commands that are done before others get their turn."""
RECALL_US: Final = 100
"""As in ``nvme_settings``."""


class Controller:
    """``longest``: entries of the longest queue; ``kept``: what ``keep_health`` gave last."""

    def __init__(self, host: NvmeVdev, longest: int, kept: Mapping[str, int]) -> None:
        self.host: Final = host
        self.registers: Final = NvmeRegisters(self)
        self.registers.CAP.preset(MQES=longest - 1)
        self.commands: Final = Commands(self)
        self.events: Final = Events(self._complete_event)
        self.features: Final = Features(self, write_cache=host.write_cache)
        self.health: Final = logs.Health(kept)
        self.errors: Final = logs.ErrorLog(self.health.errors)
        self.changed: Final[set[int]] = set()
        self.admin: AdminQueue | None = None
        self.page = 1 << 12
        self.entry_sizes = 0
        self._enabled = False
        self._fatal = ""
        self._notified = 0
        self._generation = 0  # of the controller between two resets; what is of another is over
        self._masked = 0
        self._going_on = False

    # States (3.1.5, 3.1.6, 7.3, 7.6).

    def on_write_CC(self, _value: int) -> None:
        configuration = self.registers.CC
        if configuration.EN and not self._enabled:
            self._enabled = True
            self._enable()
        elif not configuration.EN and self._enabled:
            self.reset()
        wanted = configuration.SHN
        if wanted != self._notified:
            self._notified = wanted
            if wanted:
                self._shut_down()
        self.entry_sizes = configuration.IOCQES << 4 | configuration.IOSQES

    def _enable(self) -> None:
        registers = self.registers
        configuration, queues = registers.CC, registers.AQA
        self.page = 1 << 12 + min(configuration.MPS, LONGEST_PAGE_SHIFT)
        refused = [
            configuration.MPS > LONGEST_PAGE_SHIFT,
            configuration.CSS,  # the NVM command set
            configuration.AMS,  # round robin
            not queues.ASQS,  # two entries at least
            not queues.ACQS,
            registers.ASQ.value % self.page,
            registers.ACQ.value % self.page,
            registers.CSTS.CFS,
        ]
        if any(refused):
            self.fatal("a configuration that there cannot be")
            return
        generation = self._generation
        # Not ready before what the queues before it have left is over.
        when(
            lambda: generation != self._generation or self.host.drained,
            lambda: self._ready() if generation == self._generation else None,
        )

    def _ready(self) -> None:
        registers = self.registers
        queues = registers.AQA
        self.admin = AdminQueue(
            self.host,
            registers.ASQ.value,
            queues.ASQS + 1,
            registers.ACQ.value,
            queues.ACQS + 1,
            self.host.interrupt,
        )
        self._configure()
        self.host.begin()
        registers.CSTS.RDY = 1
        self.host.say("controller enabled")
        self._use(True)

    def reset(self) -> None:
        """A controller level reset (7.3.2); the admin queue's registers stay."""
        self._stop()
        self._enabled = False
        self.events.reset()
        self.features.reset()
        status = self.registers.CSTS
        status.value = status.value & 1 << 4  # NSSRO
        self.host.say("controller reset")

    def _stop(self) -> None:
        self._generation += 1
        self.admin = None
        self.host.end()

    def power_on(self) -> None:
        """A guest has come."""
        self.health.power_cycles += 1

    def power_off(self) -> None:
        """It has gone: perhaps without a shutdown (5.14.1.2)."""
        self.health.unsafe_shutdowns += self.health.in_use
        self.health.in_use = False
        self.keep_health()

    def _use(self, in_use: bool) -> None:
        """It is at work, or has been shut down: if it ends otherwise, that was unsafe."""
        if in_use != self.health.in_use:
            self.health.in_use = in_use
            self.keep_health()

    def keep_health(self) -> None:
        """With the store, as it is now."""
        self.host.keep(self._counted())

    def _counted(self) -> dict[str, int]:
        return self.health.counted(self.host.native.counters(), self.errors.count)

    def describe(self) -> dict[str, Any]:
        """JSON-able; its counts are those of SMART, of all its life."""
        counted = self._counted()
        del counted["in_use"]
        return {"state": self._state, **counted}

    @property
    def _state(self) -> str:
        status = self.registers.CSTS
        if status.CFS:
            return f"fatal until the guest resets it: {self._fatal}"
        if status.SHST != Shutdown.NONE:
            return "shut down" if status.SHST == Shutdown.COMPLETE else "shutting down"
        if status.RDY:
            return "ready"
        return "waits for the disk" if self._enabled else "disabled"

    def reset_function(self) -> None:
        """All as after power-on."""
        self.reset()
        self._notified = 0
        self.registers.reset()

    def fatal(self, why: str) -> None:
        """Controller Fatal Status: nothing goes on until a reset (9.5)."""
        self._stop()
        self.registers.CSTS.CFS = 1
        self._fatal = why
        self.host.say(f"controller fatal status: {why}")

    def on_write_NSSR(self, value: int) -> None:
        if value == SUBSYSTEM_RESET:
            self.reset_function()
            self.registers.CSTS.NSSRO = 1

    def _shut_down(self) -> None:
        """7.6.2. The host has deleted its queues, or wants it to be quick."""
        status, generation = self.registers.CSTS, self._generation
        status.SHST = Shutdown.ONGOING

        def flushed() -> None:
            if generation == self._generation:
                status.SHST = Shutdown.COMPLETE
                self._use(False)
                self.host.say("controller shut down")

        self.host.flush(flushed)

    def on_write_INTMS(self, value: int) -> None:
        """Writing 1 sets, in either register; what is read is the mask (3.1.3)."""
        self._mask(self._masked | value)

    def on_write_INTMC(self, value: int) -> None:
        self._mask(self._masked & ~value)

    def _mask(self, mask: int) -> None:
        self._masked = mask
        self.registers.INTMS.value = self.registers.INTMC.value = mask

    # The admin queue.

    def submitted(self, tail: int) -> None:
        """The admin submission queue's doorbell."""
        if self.admin is not None:
            try:
                self.admin.submitted(tail)
            except NvmeError:
                self.bad_doorbell(ErrorEvent.INVALID_DOORBELL_VALUE)
            self.pump()

    def consumed(self, head: int) -> None:
        """The admin completion queue's doorbell."""
        if self.admin is not None:
            try:
                self.admin.consumed(head)
            except NvmeError:
                self.bad_doorbell(ErrorEvent.INVALID_DOORBELL_VALUE)
            except DmaError as error:
                self.fatal(str(error))
            self.pump()

    def pump(self) -> None:
        """Do some of the commands that wait; they wait until the host's memory can be reached."""
        if not self.host.bus_master:
            return
        generation, began = self._generation, monotonic_ns()
        try:
            for _ in range(TURN):
                entry = self.admin.take() if self.admin is not None else None
                if entry is None or generation != self._generation:
                    break
                self._execute(Command.parse(entry))
        except DmaError as error:
            if generation == self._generation:
                self.fatal(str(error))
        self.health.busy += (monotonic_ns() - began) / 1e9
        if generation == self._generation and self.admin is not None and not self.admin.idle:
            self._pump_later()

    def _pump_later(self) -> None:
        """Once, after others have had their turn."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self.pump()
            return
        generation = self._generation

        def go_on() -> None:
            self._going_on = False
            if generation == self._generation:
                self.pump()

        if not self._going_on:
            self._going_on = True
            loop.call_soon(go_on)

    def _execute(self, command: Command) -> None:
        try:
            result = self.commands.execute(command)
        except NvmeError as error:
            self._fail(command, error)
            return
        except VdcmError as error:
            if isinstance(error, DmaError):
                raise
            self._say(command, error)
            self._fail(command, NvmeError(Status.INTERNAL_ERROR))
            return
        self._say(command, "success")
        if result is not None:
            self._complete(command.cid, status_field(Status.SUCCESS), result)

    def _fail(self, command: Command, error: NvmeError) -> None:
        self._say(command, error)
        status = status_field(error.status, more=True)
        self.errors.add(0, command.cid, status, error.location, command.nsid)
        self._complete(command.cid, status)

    def _say(self, command: Command, how: object) -> None:
        if self.host.observer is not None:
            what = f"cid {command.cid}, nsid {command.nsid:#x}, cdw10 {command.cdw10:#x}"
            self.host.note(f"admin command {command.opcode:#04x} ({what}): {how}")

    def later(self, command: Command) -> Callable[[Status], None]:
        """What ends a command that goes on; nobody is told if the controller is reset before."""
        generation = self._generation

        def end(status: Status) -> None:
            if generation != self._generation:
                return
            if status is Status.SUCCESS:
                self._complete(command.cid, status_field(status))
            else:
                self._fail(command, NvmeError(status))

        return end

    def _complete_event(self, cid: int, status: Status, result: int) -> None:
        self._complete(cid, status_field(status), result)

    def _complete(self, cid: int, status: int, result: int = 0) -> None:
        if self.admin is None:
            return
        try:
            self.admin.post(cid, status, result)
        except DmaError as error:
            self.fatal(str(error))

    # What the data path reports.

    def bad_doorbell(self, what: ErrorEvent) -> None:
        if self.host.observer is not None:
            admin = "" if self.admin is None else f"; the admin queues have {self.admin.sizes}"
            self.host.note(f"{what.name.lower().replace('_', ' ')}{admin}")
        self.events.post(EventType.ERROR, what, LogPage.ERROR)

    def failed(self, error: ReportedError) -> None:
        """An I/O command has."""
        self.errors.add(error.sqid, error.cid, error.status, error.location, error.nsid, error.lba)

    # Features and log pages.

    @property
    def queues_allowed(self) -> int:
        return self.host.io_queues.allowed

    @property
    def queues_made(self) -> bool:
        return bool(self.host.io_queues.completion or self.host.io_queues.submission)

    @property
    def vectors(self) -> int:
        return self.host.io_queues.vectors

    @property
    def namespaces(self) -> Namespaces:
        return self.host.all_namespaces

    def _configure(self) -> None:
        threshold, patience = self.features.coalescing
        self.host.native.configure(
            page_shift=self.page.bit_length() - 1,
            max_transfer=MAX_TRANSFER,
            coalesce_threshold=threshold,
            coalesce_us=patience,
            recall_us=RECALL_US,
            namespaces=len(self.host.all_namespaces),
            write_through=not (self.host.write_cache and self.features.value(Feature.WRITE_CACHE)),
        )
        for queue in self.host.io_queues.completion.values():
            self.host.native.set_coalescing(queue.cqid, self.features.coalesces(queue.vector))

    def apply_features(self) -> None:
        """Some have changed: tell the data path, and see whether it is too warm now."""
        with self.host.io_queues.still():
            self._configure()
        warnings = logs.TEMPERATURE_WARNING * self.features.too_warm_or_cold
        new = warnings & ~self.health.warnings
        self.health.warnings = warnings
        if new & self.features.value(Feature.EVENT_CONFIGURATION):
            self.events.post(EventType.HEALTH, HealthEvent.TEMPERATURE_THRESHOLD, LogPage.HEALTH)

    def namespaces_changed(self, nsids: set[int]) -> None:
        """What Identify says of them (5.14.1.4)."""
        self.changed.update(nsids)
        if self.features.value(Feature.EVENT_CONFIGURATION) & NAMESPACE_EVENTS:
            self.events.post(
                EventType.NOTICE,
                NoticeEvent.NAMESPACE_ATTRIBUTE_CHANGED,
                LogPage.CHANGED_NAMESPACES,
            )

    def log_page(self, page: LogPage) -> bytes:
        """All bytes of it."""
        if page in (LogPage.ERROR, LogPage.HEALTH):
            self.host.collect_errors()
        if page is LogPage.ERROR:
            return self.errors.page()
        if page is LogPage.HEALTH:
            return logs.health(
                self._counted(),
                self.health.warnings,
            )
        if page is LogPage.FIRMWARE:
            return logs.firmware(identify.FIRMWARE)
        if page is LogPage.CHANGED_NAMESPACES:
            return logs.changed_namespaces(self.changed)
        return logs.effects(self.commands.opcodes)

    def acknowledge(self, page: LogPage) -> None:
        """The host has read a log page, and wants its events again."""
        if page is LogPage.CHANGED_NAMESPACES:
            self.changed.clear()
        self.events.read(page)
