"""A work queue of a VDEV and the ADI behind it (Scalable IOV, 2.1 and 2.3)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from vdcm import Adi, AdiState, BoundRegister, DmaError, VdcmError
from vdcm_devices.dsa.checks import wq_enable_error
from vdcm_devices.dsa.codes import CommandError, DeviceState, WqMode, WqState
from vdcm_devices.dsa.datapath import ANY_PASID, IGNORE, Answer, address_of
from vdcm_devices.dsa.driver import DWQ, DsaDriver, Flag
from vdcm_devices.dsa.portals import DIRECT, PortalBar

if TYPE_CHECKING:
    from vdcm_devices.dsa.vdev import DsaVdev


COUNTED: Final = (
    "accepted",
    "succeeded",
    "failed",
    "aborted",
    "retried",
    "bytes",
    "interrupts",
)
"""Of the counters of an ADI (queue.h), those that tell how a work queue gets on."""


class WorkQueue:
    """WQ ``index`` of a VDEV. Without an ADI it is there, but cannot be enabled."""

    def __init__(self, vdev: DsaVdev, index: int) -> None:
        self.index: Final = index
        self.adi: Adi | None = None
        self._vdev: Final = vdev
        self._pages: list[object] = []  # C has their addresses

    @property
    def _driver(self) -> DsaDriver:
        assert self.adi is not None
        driver = self.adi.driver
        assert isinstance(driver, DsaDriver)
        return driver

    @property
    def modes(self) -> tuple[WqMode, ...]:
        """What the ADI is made for."""
        if self.adi is None:
            return ()
        return (WqMode.DEDICATED if self.adi.type.name == DWQ else WqMode.SHARED,)

    @property
    def state(self) -> WqState:
        return WqState(self._vdev.registers.WQSTATE[self.index].STATE)

    def _set_state(self, state: WqState) -> None:
        self._vdev.registers.WQSTATE[self.index].STATE = state
        self._vdev.queue_changed(self.index)

    @property
    def occupancy(self) -> int:
        """Entries of the work queue that are in use, by all who share it."""
        if self.adi is None or self.adi.state is AdiState.RELEASED:
            return 0
        return self._driver.occupancy(self.adi)

    @property
    def counters(self) -> dict[str, int]:
        """What has become of descriptors since there was an ADI behind it, and of their bytes."""
        if self.adi is None:
            return {}
        counted = self._driver.on_counters(self.adi)
        return {name: counted[name] for name in COUNTED if name in counted}

    # The ADI.

    def attach(self, adi: Adi) -> None:
        """Put an ADI behind it; ResourceError if there are too few interrupt messages."""
        self.adi = adi
        self._driver.set_perfmon(adi, self._vdev.perfmon.native)
        for vector in self._vdev.handles:
            self.give_message(vector)

    def detach(self) -> Adi | None:
        """It has none any more; whose it is releases what was here."""
        adi, self.adi = self.adi, None
        return adi

    def forget_pages(self) -> None:
        """C no longer has the addresses of the portals."""
        self._pages.clear()

    def give_message(self, vector: int) -> None:
        """Have an interrupt message for MSI-X entry ``vector`` (2.5.1)."""
        if self.adi is None or any(entry.vector == vector for entry in self.adi.messages):
            return
        entry = self._driver.allocate_message(self.adi)
        try:
            entry.route(self._vdev.interrupts, vector)
        except BaseException:
            self._driver.release_message(self.adi, entry)
            raise

    def apply_handles(self) -> None:
        """Tell C which handles its descriptors may use (DSA specification, 5.4, table 5-2)."""
        if self.adi is None:
            return
        mode = self._vdev.registers.WQMODE[self.index]
        for message, entry in enumerate(self.adi.messages):
            if entry.vector is None:
                continue
            permission = self._vdev.registers.MSIXPERM[entry.vector]
            allowed = entry.vector in self._vdev.handles and (
                permission.PASID_ENABLE == mode.PASID_ENABLE
            )
            if permission.IGNORE:
                message = IGNORE
            pasid = ANY_PASID
            if permission.PASID_ENABLE:
                if mode.MODE == WqMode.SHARED:
                    pasid = permission.PASID
                elif permission.PASID != mode.PASID:
                    allowed = False
            self._driver.set_handle(self.adi, entry.vector, message if allowed else None, pasid)

    # What the guest commands (commands.CommandedQueue).

    def enable(self) -> CommandError:
        vdev = self._vdev
        error = wq_enable_error(
            vdev.registers,
            self.index,
            self.modes,
            pasid_enabled=vdev.pasid_enabled,
            privileged_mode=vdev.privileged_mode,
        )
        if error or self.adi is None:
            return error
        config = vdev.registers.WQMODE[self.index]
        pasid: int | None = vdev.pasid
        if config.MODE == WqMode.SHARED:
            pasid = None  # the descriptors name theirs
        elif config.PASID_ENABLE:
            try:
                pasid = vdev.guest_pasids.translate(config.PASID)
            except DmaError:
                return CommandError.PASID_ENABLE
        try:
            driver = self._driver
            driver.set_pasid(self.adi, pasid)
            driver.set_guest_pasids(self.adi, vdev.guest_pasids)
            driver.configure(self.adi, **self._settings(config))
            self._share_portals(driver, self.adi)
            self.apply_handles()
            driver.enable(self.adi)
        except VdcmError:
            return CommandError.HARDWARE
        self._set_state(WqState.ENABLED)
        return CommandError.SUCCESS

    def _share_portals(self, driver: DsaDriver, adi: Adi) -> None:
        """The guest begins with slot 0 of each direct portal, and nothing is in any of them: what
        was not taken while the work queue was enabled is lost."""
        self._pages.clear()
        for portal in DIRECT:
            page = self._vdev.portal_page(self.index, portal)
            if page is not None:
                page[:] = bytes(len(page))
                address, keep = address_of(page)
                self._pages.append(keep)
                driver.set_portal(adi, portal, address)

    def _settings(self, config: BoundRegister) -> dict[str, Any]:
        """For C. A share's entries are those of its shared work queue, whatever the guest's size
        and threshold are: as that queue is full for all, a retry may come sooner, or later."""
        registers = self._vdev.registers
        limits = registers.WQLIMITS[self.index]
        flags = (
            Flag.WQ_PASID * config.PASID_ENABLE
            | Flag.WQ_PRIVILEGED * config.PRIVILEGE
            | Flag.USER_INTERRUPTS * registers.GENCFG.USER_INTERRUPTS
            | Flag.PRIVILEGED_MODE * self._vdev.privileged_mode
        )
        return {
            "flags": int(flags),
            "size": registers.WQSIZE[self.index].SIZE,
            "max_transfer": 1 << limits.MAX_TRANSFER,
            "max_batch": 1 << limits.MAX_BATCH,
            "index": self.index,
            "pasid": config.PASID,
            "gencap": registers.GENCAP.value,
            **self._group(),
            "operations": registers.allowed_operations(self.index),
            "doorbells": self._vdev.portal_page(self.index, DIRECT[0]) is not None,
        }

    def _group(self) -> dict[str, Any]:
        """What its group is to event counters: the n-th of its work queues has the n-th engine,
        and they begin anew where there are no more."""
        registers = self._vdev.registers
        for wqs, engines, flags in zip(
            registers.GRPWQS, registers.GRPENGINES, registers.GRPFLAGS, strict=True
        ):
            if wqs.WQS >> self.index & 1:
                before = (wqs.WQS & ((1 << self.index) - 1)).bit_count()
                its = [n for n in range(engines.ENGINES.bit_length()) if engines.ENGINES >> n & 1]
                return {
                    "engine": its[before % len(its)],
                    "traffic_classes": [flags.TC_A, flags.TC_B],
                }
        return {}

    def stop(self) -> None:
        self._set_state(WqState.DRAINING)

    def disable(self) -> None:
        if self.adi is not None and self.adi.state is not AdiState.ALLOCATED:
            self._driver.disable(self.adi)
        self._set_state(WqState.DISABLED)

    def drain(self, done: Callable[[], None]) -> None:
        if self.adi is None:
            done()
        else:
            self._driver.drain(self.adi, done)

    def abort(self, done: Callable[[], None]) -> None:
        if self.adi is not None:
            self._driver.abort(self.adi)
        done()

    def reset_configuration(self) -> None:
        registers = self._vdev.registers
        for array in (registers.WQTHRESHOLD, registers.WQMODE, registers.WQLIMITS):
            array[self.index].value = 0
        if registers.WQCAP.OPERATIONS:
            for allowed, possible in zip(registers.wq_operations, registers.OPCAP, strict=True):
                allowed[self.index].value = possible.value

    # What the VDEV does with it.

    def open_portals(self, bar: PortalBar) -> None:
        """Let descriptors come without Python if ``submit`` would take them."""
        if self._takes and self.adi is not None:
            self._driver.open_portals(self.adi, bar, self.index)
        else:
            bar.open(self.index, None)

    @property
    def _takes(self) -> bool:
        """Not if the host has taken the ADI out of use."""
        enabled = self._vdev.registers.GENSTS.STATE == DeviceState.ENABLED
        in_use = self.adi is not None and self.adi.state is not AdiState.ALLOCATED
        return enabled and in_use and self.state is WqState.ENABLED

    def submit(self, portal: int, descriptor: bytes) -> Answer | None:
        """A descriptor has come through an intercepted portal; None: it is ignored."""
        if not self._takes or self.adi is None:
            return None
        return self._driver.submit(self.adi, portal, descriptor)
