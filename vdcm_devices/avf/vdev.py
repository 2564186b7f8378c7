"""An Adaptive Virtual Function: registers, admin queues and virtchnl in front of a VSI."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from vdcm import (
    Adi,
    AdiState,
    Bar,
    BarKind,
    HostDriver,
    Identity,
    MsiX,
    PagePolicy,
    Pages,
    Property,
    PropertyError,
    Report,
    ResourceError,
    Vdev,
)
from vdcm_devices.avf.adminq import AdminQueues
from vdcm_devices.avf.capture import INTERVAL, Capture
from vdcm_devices.avf.channel import Channel
from vdcm_devices.avf.codes import ResetState
from vdcm_devices.avf.driver import PAIRS, AvfDriver, vsi_type
from vdcm_devices.avf.registers import (
    BAR0_SIZE,
    BAR3_SIZE,
    DIRECT_PAGES,
    MOST_QUEUES,
    MSIX_PENDING,
    MSIX_TABLE,
    PAGE,
    TAILS,
    AvfRegisters,
)
from vdcm_devices.avf.vector import VectorControl
from vdcm_devices.avf.vsi import Policy, Vsi, is_multicast

log = logging.getLogger("vdcm.avf")

GRACE: Final = 0.05
"""Seconds from a reset's announcement to the reset."""
SETTLING: Final = 0.01
"""Seconds that a reset takes, as the driver sees it."""


class AvfVdev(Vdev):
    """An Adaptive Virtual Function with ``queues`` queue pairs, until the driver wants others."""

    identity = Identity(vendor=0x8086, device=0x1889, class_code=0x020000)

    mac = Property(
        "",
        live=False,
        doc="Its MAC address, as 02:00:00:00:00:01; empty: one made of the host's and its name.",
    )
    queues = Property(4, minimum=1, maximum=MOST_QUEUES, live=False, doc="Queue pairs.")
    max_vlans = Property(64, maximum=4094, live=False, doc="VLAN filters at most.")
    trust = Property(
        False, doc="The guest may be promiscuous and have other MAC addresses beside its own."
    )
    spoof_check = Property(True, doc="Frames are sent from its own MAC addresses only.")
    link = Property(True, doc="The link is up.")
    speed = Property(10000, minimum=1, maximum=400000, doc="Of the link, in Mbit/s.")
    vf_reset = Property(
        False, doc="Set it to have the function reset, which the guest's driver is told before."
    )
    pcap = Property(
        "", doc="A file, made anew, for the frames that it sends and receives; empty: none."
    )
    weight = Property(16, minimum=1, maximum=255, doc="Share of the work under contention.")
    rate = Property(0, maximum=(1 << 50) - 1, doc="Bytes a second; 0: no limit.")

    def __init__(self, name: str, drivers: Sequence[HostDriver]) -> None:
        self._address = mac_of(name, self.mac)
        self.registers: Final = AvfRegisters(self)
        self.channel: Final = Channel(self)
        self.admin: Final = AdminQueues(self)
        self._misc: Final = VectorControl(lambda: self.interrupts.signal(0))
        self._generation = 0
        self._reset_due = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._adi: Adi | None = None
        self._vsi: Vsi | None = None
        self._capture: Capture | None = None
        self.complaints = 0
        self.last_complaint = ""
        self._home: AvfDriver | None = None  # whose ADI it has, and which knows its address
        pages = [Pages(at, PAGE, PagePolicy.DIRECT) for at in DIRECT_PAGES]
        bar = Bar(0, BAR0_SIZE, BarKind.MEMORY64_PREFETCHABLE, pages)
        bar.place(AvfRegisters.BASE, self.registers)
        msix = MsiX(
            MOST_QUEUES + 1,
            table_bar=3,
            table_offset=MSIX_TABLE,
            pba_bar=3,
            pba_offset=MSIX_PENDING,
        )
        super().__init__(
            name,
            bars=[bar, Bar(3, BAR3_SIZE, BarKind.MEMORY64_PREFETCHABLE)],
            capabilities=[msix],
            drivers=drivers,
        )
        try:
            self._compose(self.queues)
        except BaseException:
            self.close()
            raise
        self._settled()

    # Composition.

    @property
    def _avf(self) -> AvfDriver:
        assert self._home is not None
        return self._home

    @property
    def vsi(self) -> Vsi:
        assert self._vsi is not None
        return self._vsi

    def _compose(self, pairs: int) -> None:
        """Have a VSI of so many queue pairs; ResourceError if there is none left."""
        adi = self.add_adi(vsi_type(pairs), range(1, pairs + 1))
        try:
            self._move_to(adi.driver)
        except BaseException:
            self.remove_adi(adi)
            raise
        self._adi = adi
        path = self._avf.path(adi)
        path.attach(self.bars[0].view(0, AvfRegisters.BASE))
        path.set_link(self.link)
        path.set_capture(self._capture is not None)
        if self._capture is not None:
            self._capture.moved()
        self._vsi = Vsi(adi.index % 0xFFFF + 1, pairs, self._policy, self)
        self._vsi.attach(path)
        self.set_qos(self.weight, self.rate)

    def _move_to(self, home: HostDriver | None) -> None:
        """Another parent knows its address from now on, or none does."""
        if home is self._home:
            return
        if isinstance(home, AvfDriver):
            home.take_mac(self._address, self)
        if self._home is not None:
            self._home.give_mac(self._address, self)
        self._home = home if isinstance(home, AvfDriver) else None

    def grantable_pairs(self, wanted: int) -> int:
        driver = self._avf
        free = driver.resources[PAIRS] - driver.used(PAIRS)
        return min(wanted, MOST_QUEUES, self.vsi.pairs + free)

    def regroup(self, pairs: int) -> None:
        self._reset_later(lambda: self._regroup(pairs))

    def _regroup(self, pairs: int) -> None:
        before, adi = self.vsi.pairs, self._adi
        self._begin_reset(f"the driver asks for {pairs} queue pairs instead of {before}")
        self._write_captured()
        if adi is not None:
            self.remove_adi(adi)
        try:
            self._compose(pairs)
        except ResourceError:  # interrupt messages, that is; what there was, there is again
            self._compose(before)
        self.later(SETTLING, self._settled)

    def queues_changed(self) -> None:
        """The ADI works as long as a queue of it is enabled."""
        adi, vsi = self._adi, self.vsi
        assert adi is not None
        enabled = vsi.tx_enabled | vsi.rx_enabled
        if enabled and adi.state is AdiState.ALLOCATED:
            adi.driver.enable(adi)
        elif not enabled and adi.state is not AdiState.ALLOCATED:
            adi.driver.disable(adi)

    def is_taken(self, address: bytes) -> bool:
        return self._avf.owner_of(address) not in (None, self)

    @property
    def _policy(self) -> Policy:
        return Policy(self._address, self.trust, self.spoof_check, self.max_vlans)

    # Properties.

    def on_set_trust(self, _value: bool) -> None:
        self.vsi.set_policy(self._policy)

    def on_set_spoof_check(self, _value: bool) -> None:
        self.vsi.set_policy(self._policy)

    def on_set_link(self, up: bool) -> None:
        self.vsi.path.set_link(up)
        self.channel.tell_link()

    def on_set_speed(self, _value: int) -> None:
        self.channel.tell_link()

    def on_set_vf_reset(self, wanted: bool) -> None:
        if wanted:
            self.channel.tell_reset()
            self.later(GRACE, lambda: self._reset_function("the host wants it"))

    def on_set_weight(self, weight: int) -> None:
        self.set_qos(weight, self.rate)

    def on_set_rate(self, rate: int) -> None:
        self.set_qos(self.weight, rate)

    # The capture.

    def on_set_pcap(self, path: str) -> None:
        self._end_capture()
        if not path:
            return
        try:
            self._capture = Capture(Path(path))
        except OSError as error:
            vars(self)["pcap"] = ""
            raise PropertyError(f"{self.name}: pcap={path}: {error.strerror}") from error
        self.vsi.path.set_capture(True)
        self._drain_later(self._capture)

    def _drain_later(self, capture: Capture) -> None:
        with suppress(RuntimeError):  # without a loop, at the end
            asyncio.get_running_loop().call_later(INTERVAL, self._drain, capture)

    def _drain(self, capture: Capture) -> None:
        if capture is self._capture:
            self._write_captured()
            self._drain_later(capture)

    def _write_captured(self) -> None:
        if self._capture is None:
            return
        try:
            self._capture.drain(self.vsi.path)
        except OSError as error:
            log.warning("%s: %s ends: %s", self.name, self.pcap, error.strerror)
            vars(self)["pcap"] = ""
            self._forget_capture()

    def _end_capture(self) -> None:
        self._write_captured()
        self._forget_capture()

    def _forget_capture(self) -> None:
        if self._capture is not None:
            self.vsi.path.set_capture(False)
            self._capture.close()
            self._capture = None

    # Resets.

    def driver_reset(self) -> None:
        self._reset_later(lambda: self._reset_function("the driver asks for it"))

    def _reset_later(self, reset: Callable[[], None]) -> None:
        """The driver sees that its message has been taken, which a reset makes it forget."""
        if not self._reset_due:
            self._reset_due = True
            self.channel.forget()
            self.later(SETTLING, reset)

    def _reset_function(self, why: str) -> None:
        """A VF reset: all but configuration space and MSI-X."""
        self._begin_reset(why)
        self.vsi.reset()
        self.later(SETTLING, self._settled)

    def _begin_reset(self, why: str) -> None:
        self.note(f"VF reset: {why}")
        self.resets += 1
        if self._adi is not None:
            self._adi.driver.reset(self._adi)
        self._forget()
        for at in DIRECT_PAGES:
            self.bars[0].view(at, PAGE)[:] = bytes(PAGE)
        self.registers.reset()
        self.registers.RSTAT.VFR_STATE = ResetState.IN_PROGRESS

    def _forget(self) -> None:
        self._generation += 1
        self.admin.forget()
        self.channel.forget()
        self._misc.forget()
        self._reset_due = False
        vars(self)["vf_reset"] = False

    def _settled(self) -> None:
        """The reset is over, and the driver may begin."""
        self.registers.RSTAT.VFR_STATE = ResetState.COMPLETED
        self.later(0.0, self._activate)

    def _activate(self) -> None:
        self.registers.RSTAT.VFR_STATE = ResetState.ACTIVE

    def on_reset(self) -> None:
        """A function-level reset: the ADI and the registers have been reset already."""
        self._forget()
        if self._vsi is not None:
            self._vsi.reset()
        self.later(SETTLING, self._settled)

    def later(self, seconds: float, do: Callable[[], None]) -> None:
        """On the event loop; without one, at once."""
        generation = self._generation

        def now() -> None:
            if generation == self._generation and self._vsi is not None:
                do()

        with suppress(RuntimeError):
            self._loop = asyncio.get_running_loop()
        if self._loop is None or self._loop.is_closed():
            now()
        else:
            self._loop.call_later(seconds, now)

    # Interrupts.

    def raise_admin_cause(self) -> None:
        self.registers.ICR01.ADMINQ = 1
        self._look_at_causes()

    def on_write_DYN_CTL01(self, value: int) -> None:
        if value >> 2 & 1:
            self.registers.ICR01.SWINT = 1
        self._misc.written(value)
        self._look_at_causes()

    def on_write_ICR0_ENA1(self, _value: int) -> None:
        self._look_at_causes()

    def _look_at_causes(self) -> None:
        if self.registers.ICR01.ADMINQ and self.registers.ICR0_ENA1.ADMINQ and self._misc.enabled:
            self._misc.cause()
        self.registers.DYN_CTL01.INTENA = int(self._misc.enabled)

    # Admin queues and queues.

    def on_write_HENA(self, _index: int, _value: int) -> None:
        self._rss_written()

    def on_write_HKEY(self, _index: int, _value: int) -> None:
        self._rss_written()

    def on_write_HLUT(self, _index: int, _value: int) -> None:
        self._rss_written()

    def _rss_written(self) -> None:
        key, table, types = (
            b"".join(word.value.to_bytes(4, "little") for word in array)
            for array in (self.registers.HKEY, self.registers.HLUT, self.registers.HENA)
        )
        self.channel.set_rss_by_registers(key, table, int.from_bytes(types, "little"))

    def on_write_ATQLEN1(self, value: int) -> None:
        """A driver begins after a reset; tails that it stored before it knew of it are void."""
        if value >> 31 and not self.channel.active:
            for at in TAILS:
                self.bars[0].view(at, PAGE)[: 4 * MOST_QUEUES] = bytes(4 * MOST_QUEUES)

    def on_write_ATQT1(self, _value: int) -> None:
        self.admin.transmit()

    def on_write_ARQT1(self, _value: int) -> None:
        self.admin.receive()

    def on_message(self, opcode: int, data: bytes) -> None:
        self.channel.receive(opcode, data)

    def send(self, opcode: int, status: int, data: bytes) -> None:
        self.admin.send(opcode, status, data)

    # What went wrong, and what there is.

    def on_adi_report(self, adi: Adi, report: Report) -> None:
        self.complain(self._avf.path(adi).explain(report))
        self._reset_function("its queues cannot go on")

    def trace(self, what: str) -> None:
        self.note(what)

    def complain(self, why: str) -> None:
        self.complaints += 1
        self.last_complaint = why
        self.note(why)
        if self.complaints == 1:  # the rest is in the trace, and counted
            log.warning("%s: the guest's driver: %s", self.name, why)

    def describe(self) -> dict[str, Any]:
        described = super().describe()
        described["vsi"] = self.vsi.describe() if self._vsi is not None else None
        if self._capture is not None:
            described["capture"] = {"file": self.pcap, "left_out": self._capture.left_out}
        described["channel"] = {
            "version": ".".join(map(str, self.channel.version)),
            "capabilities": [flag.name.lower() for flag in self.channel.capabilities if flag.name],
            "active": self.channel.active,
            "messages": self.channel.messages,
            "refused": self.channel.refused,
            "lost": self.admin.lost,
            "complaints": self.complaints,
            "last_complaint": self.last_complaint,
        }
        return described

    def close(self) -> None:
        self._end_capture()
        super().close()
        if self.session is None:
            self._vsi = self._adi = None
            self._move_to(None)


def mac_of(name: str, given: str) -> bytes:
    """The address that ``given`` says, or a locally administered one of its own, the same at each
    start on this host. PropertyError for what is no unicast address."""
    if not given:
        machine = Path("/etc/machine-id")
        host = machine.read_bytes() if machine.exists() else b""
        digest = hashlib.sha256(host + b"\0" + name.encode()).digest()
        return bytes([digest[0] & 0xFC | 0x02]) + digest[1:6]
    if not re.fullmatch(r"[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}", given):
        raise PropertyError(f"{name}: mac takes six bytes as 02:00:00:00:00:01, not {given[:40]!r}")
    address = bytes.fromhex(given.replace(":", ""))
    if is_multicast(address) or not any(address):
        raise PropertyError(f"{name}: mac takes a unicast address, not {given}")
    return address
