"""A virtual DSA: registers, commands and portals in front of the work queues it is composed of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from vdcm import (
    Adi,
    Bar,
    BarKind,
    DeferredError,
    HostDriver,
    Identity,
    MsiX,
    PciExpress,
    PowerManagement,
    Property,
    Report,
    VdcmError,
    Vdev,
)
from vdcm_devices.dsa.channel import CHANNEL_SIZE, Channel, ChannelPointer, VdevPasid
from vdcm_devices.dsa.codes import (
    Cause,
    CommandError,
    DeviceState,
    ResetType,
    SoftwareError,
    WqMode,
    WqState,
)
from vdcm_devices.dsa.commands import Commands
from vdcm_devices.dsa.datapath import REPORT_SWERROR, Answer
from vdcm_devices.dsa.driver import DWQ, SHARE, DsaDriver
from vdcm_devices.dsa.perfmon import Perfmon
from vdcm_devices.dsa.portals import DIRECT, PAGE, PORTALS, PortalBar, portals_end
from vdcm_devices.dsa.registers import (
    BAR0_SIZE,
    MSIX_PENDING,
    MSIX_TABLE,
    PERFMON,
    DsaRegisters,
    registers_class,
)
from vdcm_devices.dsa.workqueue import WorkQueue

_RESETS: Final = {"software": ResetType.SOFTWARE, "function": ResetType.FUNCTION}
"""What a VDEV may need; a reset of its function does all that a warm or cold one could."""


class DsaVdev(Vdev):
    """A virtual DSA with ``dwqs`` dedicated work queues and then ``swqs`` shared ones; or with so
    many ``places`` for work queues, whose ADIs the guest asks for."""

    identity = Identity(vendor=0x8086, device=0x0B25, class_code=0x088000, subsystem_vendor=0x8086)

    portals = Property(
        "intercepted",
        choices=("intercepted", "direct"),
        live=False,
        doc="intercepted: stores are taken one by one, as the stock driver needs it. direct: "
        "portals are memory, for a driver that waits until its slot is zero.",
    )
    weight = Property(16, minimum=1, maximum=255, doc="Share under contention, of all its ADIs.")
    rate = Property(0, maximum=(1 << 50) - 1, doc="Bytes a second, of all its ADIs; 0: no limit.")
    halt = Property(
        "no",
        choices=("no", *_RESETS),
        doc="Set it and the device halts, as after a fault of the hardware (5.7), until the guest "
        "has reset it: by the Reset Device command (software), or by a function-level reset.",
    )

    def __init__(
        self,
        name: str,
        drivers: Sequence[HostDriver],
        dwqs: int = 0,
        swqs: int = 0,
        places: int = 0,
    ) -> None:
        wqs = places or dwqs + swqs
        driver = drivers[0]
        assert isinstance(driver, DsaDriver)
        can = driver.describe_vdev(dwqs=dwqs, swqs=swqs, wqs=wqs)
        self.dynamic: Final = places > 0
        self.registers: Final[DsaRegisters] = registers_class(wqs, can.groups, can.engines)(self)
        self.registers.tell(can)
        self.perfmon: Final = Perfmon(can.version, lambda: self.raise_cause(Cause.PERFMON))
        self.handles: Final[set[int]] = set()
        self.commands: Final = Commands(self)
        self.work_queues: Final = [WorkQueue(self, index) for index in range(wqs)]
        direct = self.portals == "direct"
        self._portals: Final = PortalBar(
            wqs,
            self._submit,
            direct=direct,
            extra=CHANNEL_SIZE,
            memory=PAGE if direct else 0,
        )
        channel_at = portals_end(wqs)
        self.channel: Final = Channel(self, self._portals, channel_at)
        bar = Bar(0, BAR0_SIZE, BarKind.MEMORY64_PREFETCHABLE)
        bar.place(0, self.registers)
        bar.place(PERFMON, self.perfmon.registers)
        self._pasid: Final = VdevPasid(self._on_pasid_change)
        super().__init__(
            name,
            bars=[bar, self._portals],
            capabilities=[  # where appendix C has them
                PciExpress(integrated=True, tag_bits=10, dmwr=True, at=0x40),
                MsiX(
                    can.vectors,
                    table_bar=0,
                    table_offset=MSIX_TABLE,
                    pba_bar=0,
                    pba_offset=MSIX_PENDING,
                    at=0x80,
                ),
                PowerManagement(at=0x90),
                self._pasid,
                ChannelPointer(2, channel_at),
            ],
            drivers=drivers,
        )
        try:
            driver.enable_channel(name)
            for queue, kind in zip(self.work_queues, [DWQ] * dwqs + [SHARE] * swqs, strict=False):
                self.back(queue, kind)
        except BaseException:
            self.close()
            raise

    # Composition.

    def back(self, queue: WorkQueue, kind: str) -> None:
        """Put an ADI of ``kind`` behind a work queue; ResourceError if there is none left."""
        adi = self.add_adi(kind)
        try:
            queue.attach(adi)
        except BaseException:
            queue.detach()
            self.remove_adi(adi)
            raise
        self._divide()

    def unback(self, queue: WorkQueue) -> None:
        """Give the ADI behind a work queue back, if there is one."""
        adi = queue.detach()
        if adi is not None:
            self.remove_adi(adi)
            queue.forget_pages()
            self._divide()

    def portal_page(self, wq: int, portal: int) -> memoryview | None:
        """The shared memory of a direct portal; None if it is intercepted."""
        if self.portals != "direct":
            return None
        return self._portals.view((wq * PORTALS + portal) * PAGE, PAGE)

    def on_set_weight(self, _value: int) -> None:
        self._divide()

    def on_set_rate(self, _value: int) -> None:
        self._divide()

    def _divide(self) -> None:
        """The priorities of the enabled work queues divide what the VDEV has."""
        self.set_qos(self.weight, self.rate)
        for queue in self.work_queues:
            if queue.adi is not None and queue.state is WqState.ENABLED:
                priority = self.registers.WQMODE[queue.index].PRIORITY
                queue.adi.driver.set_qos(queue.adi, weight=16 * priority)

    # States, and what may be written in them (table 9-4, table 9-7).

    def set_state(self, state: DeviceState) -> None:
        registers = self.registers
        registers.GENSTS.STATE = state
        for queue in self.work_queues:
            queue.open_portals(self._portals)
        locked = 0 if state is DeviceState.DISABLED else None
        registers.GENCFG.lock(locked)
        for table in (
            registers.GRPWQS,
            registers.GRPENGINES,
            registers.GRPFLAGS,
            registers.WQSIZE,
        ):
            for register in table:
                register.lock(locked)

    def queue_changed(self, wq: int) -> None:
        registers = self.registers
        locked = 0 if self.work_queues[wq].state is WqState.DISABLED else None
        for table in (registers.WQMODE, registers.WQLIMITS, *registers.wq_operations):
            table[wq].lock(locked)
        self._portals.forget(wq)
        self.work_queues[wq].open_portals(self._portals)
        self._divide()

    def clear_configuration(self) -> None:
        registers = self.registers
        kept = (
            registers.CMDSTATUS,
            registers.SWERROR,
            registers.SWERROR_INFORMATION,
            registers.SWERROR_ADDRESS,
        )
        values = [register.value for register in kept]
        registers.reset()
        for register, value in zip(kept, values, strict=True):
            register.value = value
        for queue in self.work_queues:
            queue.open_portals(self._portals)
        self.interrupts.clear_pending()
        self.perfmon.reset()
        self._apply_handles()
        self.halt = "no"

    def _halt(self, reset: ResetType) -> None:
        """Stop all work, which nobody is told of; only a reset helps (5.7)."""
        self.set_state(DeviceState.HALT)
        self.registers.GENSTS.RESET = max(reset, self.registers.GENSTS.RESET)
        self.commands.cancel(CommandError.HARDWARE)
        for adi in self.adis:
            adi.driver.reset(adi)
        if self.registers.GENCTRL.HALT:
            self.raise_cause(Cause.HALT)

    def on_set_halt(self, reset: str) -> None:
        if reset in _RESETS:
            self._halt(_RESETS[reset])

    def on_bus_master_change(self, _enabled: bool) -> None:
        self._on_pci_change()

    def _on_pasid_change(self) -> None:
        self._on_pci_change()

    def _on_pci_change(self) -> None:
        """What the device does not take while it is enabled (9.1.3)."""
        if self.registers.GENSTS.STATE in (DeviceState.ENABLED, DeviceState.DRAINING):
            self.software_error(SoftwareError.PCI_CONFIGURATION)
            self._halt(ResetType.FUNCTION)

    @property
    def pasid_enabled(self) -> bool:
        """The guest has enabled the PASID capability."""
        return self._pasid.enabled

    @property
    def privileged_mode(self) -> bool:
        """The guest has enabled privileged mode in the PASID capability."""
        return bool(self._pasid.CONTROL.PRIVILEGED)

    # Interrupts and errors.

    def raise_cause(self, cause: Cause) -> None:
        self.registers.INTCAUSE.value |= cause
        self.interrupts.signal(0)

    def request_handle(self, index: int) -> int | None:
        if index not in self.handles:
            try:
                for queue in self.work_queues:
                    queue.give_message(index)
            except VdcmError:
                return None
            self.handles.add(index)
            self._apply_handles()
        return index

    def release_handle(self, index: int) -> None:
        self.handles.discard(index)
        self._apply_handles()

    def on_write_MSIXPERM(self, _index: int, _value: int) -> None:
        self._apply_handles()

    def _apply_handles(self) -> None:
        for queue in self.work_queues:
            queue.apply_handles()

    def software_error(self, error: SoftwareError, wq: int | None = None) -> None:
        """Record an error that is nobody's descriptor's."""
        word = 1 | error << 8
        if wq is not None:
            word |= 1 << 3 | wq << 16
        self._record((word, 0, 0))

    def _record(self, words: Sequence[int]) -> None:
        """The first error stays until the guest has seen it (9.2.15)."""
        registers = self.registers
        if registers.SWERROR.VALID:
            registers.SWERROR.OVERFLOW = 1
            return
        overflow = registers.SWERROR.OVERFLOW  # until the guest clears it, too
        registers.SWERROR.value = words[0]
        registers.SWERROR.OVERFLOW = overflow
        registers.SWERROR_INFORMATION.value = words[1]
        registers.SWERROR_ADDRESS.value = words[2]
        if registers.GENCTRL.SOFTWARE_ERROR:
            self.raise_cause(Cause.SOFTWARE_ERROR)

    def on_adi_report(self, adi: Adi, report: Report) -> None:
        self.perfmon.look()  # whatever it is: a report of an overflow may have been lost
        if report.code == REPORT_SWERROR:
            data = report.data
            words = [int.from_bytes(data[at : at + 8], "little") for at in (0, 8, 16)]
            if self.observer is not None:
                self.note(f"{adi.name} software error {words[0] >> 8 & 0xFF:#x}")
            self._record(words)

    # What the guest does.

    def on_write_CMD(self, value: int) -> None:
        self.commands.submit(value)

    def on_read_WQSTATE(self, index: int) -> int:
        stored = self.registers.WQSTATE[index].value
        return stored & ~0xFFFF | min(self.work_queues[index].occupancy, 0xFFFF)

    def _submit(self, wq: int, portal: int, descriptor: bytes) -> None:
        """64 bytes came to a portal (5.3)."""
        queue = self.work_queues[wq]
        answer = None
        # Without IMS there are no IMS portals (3.3).
        if portal in DIRECT:
            answer = queue.submit(portal, descriptor)
            self.perfmon.look()
        if self.observer is not None:
            said = "ignored" if answer is None else answer.name.lower()
            self.note(f"WQ {wq} portal {portal} operation {descriptor[7]:#04x}: {said}")
        if answer is Answer.ACCEPTED:
            return
        if answer is None and portal in DIRECT:
            pasid = int.from_bytes(descriptor[:4], "little")
            self.perfmon.refused(wq, portal, shared=WqMode.SHARED in queue.modes, pasid=pasid)
        if WqMode.SHARED in queue.modes:
            raise DeferredError(f"{self.name}: WQ {wq} does not take a descriptor now")
        if answer is Answer.FULL:
            self.software_error(SoftwareError.WQ_FULL, wq)

    # Life.

    def reset(self) -> None:
        self.commands.forget()
        super().reset()

    def on_reset(self) -> None:
        self.halt = "no"
        self.handles.clear()
        self.perfmon.reset()
        for queue in self.work_queues:
            if self.dynamic:
                self.unback(queue)
            elif queue.adi is not None:
                queue.adi.driver.set_pasid(queue.adi, self.pasid)
                for entry in tuple(queue.adi.messages):
                    queue.adi.driver.release_message(queue.adi, entry)
        self._divide()

    def describe(self) -> dict[str, Any]:
        described = super().describe()
        described["work_queues"] = [
            {
                "index": queue.index,
                "adi": queue.adi.name if queue.adi is not None else None,
                "modes": [mode.name.lower() for mode in queue.modes],
                "state": queue.state.name.lower(),
                "occupancy": queue.occupancy,
                "counters": queue.counters,
            }
            for queue in self.work_queues
        ]
        return described

    def close(self) -> None:
        if self.session is None:  # else it goes on
            self.commands.forget()
            self.channel.mailbox.registers.reset()
        super().close()
        for queue in self.work_queues:
            queue.detach()
            queue.forget_pages()
        for driver in self.drivers:
            driver.disable_channel(self.name)


class DynamicDsaVdev(DsaVdev):
    """A virtual DSA whose guest asks for its work queues (Scalable IOV, 4.4)."""

    queues = Property(4, minimum=1, maximum=8, live=False, doc="Places for work queues.")

    def __init__(self, name: str, drivers: Sequence[HostDriver]) -> None:
        super().__init__(name, drivers, places=self.queues)
