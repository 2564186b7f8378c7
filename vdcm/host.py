"""The host driver of a parent: every operation that Scalable IOV names for it (Table 4-1).

The base class does what is the same for all devices: resources, states, PASIDs, messages, quality
of service. A device's driver subclasses it and implements the ``on_...`` hooks for what its
hardware, here its C, has to be told. Nothing in here can be reached by a guest.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, ClassVar, Final

from vdcm.adi import Adi, AdiState, AdiType
from vdcm.counters import Count, summarized
from vdcm.errors import ResourceError, StateError, VdcmError
from vdcm.function import ParentFunction
from vdcm.ims import ImsEntry, ImsStorage
from vdcm.pasid import PASIDS, GuestPasids
from vdcm.pci import Ats, Pri
from vdcm.sweep import NAP_US, Group, QueueState, Sweep

IMS: Final = "ims"
"""Interrupt messages, as a resource (2.5.1)."""
STATE_VERSION: Final = 1


@dataclass(frozen=True)
class Capabilities:
    """What a parent says of itself (2.2, 2.5.1, 2.8). Page sizes in bytes, ``ims`` in entries."""

    pasid_bits: int
    ims: int
    page_sizes: tuple[int, ...]
    system_page_size: int
    ats: bool
    pri: bool
    channel: bool


class HostDriver:
    """Manages the ADIs of one parent. A subclass declares what there is.

    ``adi_types``: the kinds of ADI by name. ``generations``: the revisions of the device that it
    can pass for, the latest first; a VDEV looks the same on every parent that is set to one
    generation. ``channel``: guests can talk to it through a mailbox. ``together``: the ADIs of one
    VDEV have something in common, so one sweep thread has all of them.

    ``resources``: how much there is of what the ADI types require. ``messages``: IMS entries.
    ``workers``: sweep threads, made when there is an ADI to serve.
    """

    adi_types: ClassVar[Mapping[str, AdiType]] = {}
    generations: ClassVar[tuple[str, ...]] = ("1",)
    channel: ClassVar[bool] = False
    together: ClassVar[bool] = False

    def __init__(
        self,
        name: str,
        function: ParentFunction,
        resources: Mapping[str, int],
        *,
        messages: int = 256,
        workers: int = 1,
    ) -> None:
        if workers < 1:
            raise VdcmError(f"{name} needs at least 1 worker, not {workers}")
        self.name: Final = name
        self.function: Final = function
        self.resources: Final = {**resources, IMS: messages}
        self.ims: Final = ImsStorage(messages, name)
        self.generation = self.generations[0]
        self.adis: Final[dict[int, Adi]] = {}
        self._used: Counter[str] = Counter()
        self._numbers = count()
        self._workers = workers
        self.wake_us = NAP_US
        """Of the sweeps that are made from now on: as a parent's ``wake_latency``."""
        self._sweeps: list[Sweep] = []
        self._held = False
        self._groups: dict[str, Group] = {}
        self._channels: set[str] = set()
        function.enable()

    # Scalable IOV capability reporting; types, numbers, requirements; generations.

    def capabilities(self) -> Capabilities:
        """Scalable IOV capability reporting."""
        function = self.function
        supported = function.siov.SUPPORTED_PAGE_SIZES.value
        return Capabilities(
            pasid_bits=function.pasid.CAPABILITY.MAX_WIDTH,
            ims=self.ims.size if function.ims_supported else 0,
            page_sizes=tuple(1 << n + 12 for n in range(32) if supported >> n & 1),
            system_page_size=function.system_page_size,
            ats=function.config.find(Ats) is not None,
            pri=function.config.find(Pri) is not None,
            channel=self.channel,
        )

    def maximum(self, *type_names: str) -> int:
        """How many ADIs of a type there can be when there are no others; of several types: how
        many sets of one each."""
        return self._sets(type_names, self.resources)

    def available(self, *type_names: str) -> int:
        """How many more ADIs of a type, or sets of several, can be allocated now."""
        return self._sets(
            type_names, {key: total - self.used(key) for key, total in self.resources.items()}
        )

    def _sets(self, type_names: Sequence[str], there: Mapping[str, int]) -> int:
        needed: Counter[str] = Counter()
        for name in type_names:
            needed.update(self.requirements(name))
        return min((there.get(key, 0) // n for key, n in needed.items() if n), default=0)

    def used(self, resource: str) -> int:
        """How much of a resource ADIs have."""
        return self.ims.size - self.ims.free if resource == IMS else self._used[resource]

    def requirements(self, type_name: str) -> Mapping[str, int]:
        """Resources that one ADI of a type takes, its IMS entries as ``ims`` among them."""
        kind = self._type(type_name)
        return {**kind.requirements, IMS: kind.messages} if kind.messages else kind.requirements

    def set_generation(self, generation: str) -> None:
        """Pass for a revision of the device; StateError while there are ADIs."""
        if generation not in self.generations:
            known = ", ".join(self.generations)
            raise VdcmError(f"{self.name} has no generation {generation[:80]} (known: {known})")
        if self.adis and generation != self.generation:
            raise StateError(
                f"{self.name} has {len(self.adis)} ADIs; changing the generation needs it to have "
                "none: stop its VDEVs first"
            )
        self.generation = generation
        self.on_generation(generation)

    # Allocation, configuration, reset, drain, abort, release of an ADI and its resources.

    def allocate(self, type_name: str, owner: str) -> Adi:
        """A new ADI for the VDEV ``owner``; ResourceError, naming what is lacking."""
        kind = self._type(type_name)
        for key, amount in self.requirements(type_name).items():
            there, used = self.resources.get(key, 0), self.used(key)
            if used + amount > there:
                raise ResourceError(
                    f"{self.name} has no {type_name} left for {owner}: {used} of {there}"
                    f" {key} are in use and {amount} more are needed; stop a VDEV that has some, "
                    "or give the parent more"
                )
        index = next(self._numbers)
        if owner not in self._groups:
            self._groups[owner] = Group()
        path = self._sweep_for(owner).adi(lambda _path: self._on_event(adi), self._groups[owner])
        adi = Adi(self, kind, index, owner, path)
        try:
            adi.messages = [self.ims.allocate() for _ in range(kind.messages)]
            path.set_messages(self.ims, adi.messages)
            self.on_allocate(adi)
        except BaseException:
            path.close()
            for entry in adi.messages:
                entry.release()
            self._close_group(owner)
            raise
        self._used.update(kind.requirements)
        self.adis[index] = adi
        return adi

    def configure(self, adi: Adi, **settings: Any) -> None:
        """Set device-specific settings; StateError unless ALLOCATED."""
        self._need(adi, "configure", AdiState.ALLOCATED)
        self.on_configure(adi, settings)
        adi.settings.update(settings)
        adi.on_change(adi, "configured")

    def enable(self, adi: Adi) -> None:
        """Let it work. StateError without a PASID, if its type needs one before (2.2)."""
        self._need(adi, "enable", AdiState.ALLOCATED)
        if not self.function.pasid_enabled:
            raise StateError(f"{self.name}: the PASID capability is off; an ADI needs it on")
        if adi.pasid is None and adi.type.pasid_required:
            raise StateError(f"{adi.name} has no PASID; enabling needs one: set_pasid() first")
        self.on_enable(adi)
        self._set_queues(adi, QueueState.RUNNING)
        self._enter(adi, AdiState.ENABLED)

    def disable(self, adi: Adi) -> None:
        """Stop it and discard what it has not finished; its settings stay."""
        self._need(adi, "disable", AdiState.ENABLED, AdiState.DRAINING, AdiState.SUSPENDED)
        self._quiesce(adi)
        self._enter(adi, AdiState.ALLOCATED, "disabled")
        self.on_disable(adi)
        self._drained(adi)

    def reset(self, adi: Adi) -> None:
        """Discard its work, forget its settings; no other ADI notices (2.7).

        When this returns, its reads and writes are done or given up and its interrupts generated:
        the sweep is not inside it, and has not put anything off. PASIDs, messages and quality of
        service are the host's assignment and stay.
        """
        self._need(adi, "reset", *_LIVE)
        self._quiesce(adi)
        adi.settings.clear()
        adi.resets += 1
        self._enter(adi, AdiState.ALLOCATED, "reset")
        self.on_reset(adi)
        self._drained(adi)

    def drain(self, adi: Adi, done: Callable[[], None]) -> None:
        """Finish what was accepted and accept nothing meanwhile; then ENABLED again, and ``done``.

        A reset, abort or release meanwhile also ends it, and calls ``done``.
        """
        self._need(adi, "drain", AdiState.ENABLED, AdiState.DRAINING)
        adi.on_drained.append(done)
        if adi.state is AdiState.ENABLED:
            self._enter(adi, AdiState.DRAINING)
            self._set_queues(adi, QueueState.DRAINING)

    def abort(self, adi: Adi) -> None:
        """Discard what was accepted and is not finished; it goes on with what comes then."""
        self._need(adi, "abort", *_LIVE)
        for queue in adi.path.queues:
            queue.abort()
        adi.on_change(adi, "aborted")

    def release(self, adi: Adi) -> None:
        """Give it and its resources back. Twice is harmless."""
        if adi.state is AdiState.RELEASED:
            return
        self._quiesce(adi)
        self._enter(adi, AdiState.RELEASED)
        adi.path.close()
        self.on_release(adi)
        for entry in adi.messages:
            entry.release()
        adi.messages = []
        self._used.subtract(adi.type.requirements)
        del self.adis[adi.index]
        self._close_group(adi.owner)
        self._drained(adi)

    def reset_function(self) -> None:
        """Function-level reset of the parent: afterwards no ADI is configured (2.7)."""
        for adi in self.adis.values():
            self.reset(adi)
        self.function.reset()
        self.function.enable()

    # PASIDs.

    def set_pasid(self, adi: Adi, primary: int | None, secondary: int | None = None) -> None:
        """Assign PASIDs (2.2): ``primary`` for the direct path, ``secondary`` for its metadata.

        StateError while it is at work; VdcmError for one that stands for nothing.
        """
        self._need(adi, "change the PASID", AdiState.ALLOCATED, AdiState.SUSPENDED)
        for pasid in (primary, secondary):
            if pasid is not None:
                PASIDS.space(pasid)
        adi.pasid, adi.secondary_pasid = primary, secondary
        adi.path.set_pasids(primary, secondary)

    def set_guest_pasids(self, adi: Adi, table: GuestPasids | None) -> None:
        """Let work name PASIDs of the guest, as ``table`` translates them (3.3)."""
        self._need(adi, "change the PASID table", AdiState.ALLOCATED, AdiState.SUSPENDED)
        adi.path.set_guest_pasids(table)

    def set_bus_master(self, adi: Adi, enabled: bool) -> None:
        """Bus Master Enable of its VDEV: without it there is no access to memory at all, and no
        interrupt message, which is one (PCIe 5.0, 7.5.1.1.3)."""
        self._need(adi, "change Bus Master Enable", *_LIVE)
        adi.bus_master = enabled
        adi.path.set_bus_master(enabled)

    # Interrupt Message Storage.

    def allocate_message(self, adi: Adi) -> ImsEntry:
        """One more interrupt message for an ADI, at the end of its list (2.5.1)."""
        self._need(adi, "allocate a message", *_LIVE)
        entry = self.ims.allocate()
        adi.messages.append(entry)
        adi.path.set_messages(self.ims, adi.messages)
        return entry

    def release_message(self, adi: Adi, entry: ImsEntry) -> None:
        """Take a message back; those behind it in the list move up."""
        self._need(adi, "release a message", *_LIVE)
        if entry not in adi.messages:
            raise VdcmError(f"{adi.name} has no message {entry.index}")
        adi.messages.remove(entry)
        adi.path.set_messages(self.ims, adi.messages)
        entry.release()

    # The channel to the guest driver, quality of service, state.

    def enable_channel(self, owner: str) -> None:
        """Let the guest of VDEV ``owner`` ask for things; VdcmError if there is no channel."""
        if not self.channel:
            raise VdcmError(f"{self.name} has no channel to guest drivers")
        self._channels.add(owner)

    def disable_channel(self, owner: str) -> None:
        self._channels.discard(owner)

    def channel_enabled(self, owner: str) -> bool:
        return owner in self._channels

    def set_qos(self, adi: Adi, *, weight: int | None = None, rate: int | None = None) -> None:
        """Its share under contention with others of its VDEV (1 to 255) and units a second at most
        (0: no limit)."""
        self._need(adi, "change the QoS", *_LIVE)
        weight = adi.weight if weight is None else weight
        rate = adi.rate if rate is None else rate
        adi.path.set_qos(weight, rate)
        adi.weight, adi.rate = weight, rate

    def set_vdev_qos(self, owner: str, *, weight: int, rate: int) -> None:
        """The same for all ADIs of VDEV ``owner`` together: however many it has, it gets no more.

        The weight counts among the VDEVs of a sweep. Both are forgotten with the last ADI.
        """
        if owner in self._groups:
            self._groups[owner].set_qos(weight, rate)

    def suspend(self, adi: Adi) -> None:
        """Freeze it; what was accepted is kept. StateError unless it is ENABLED."""
        self._need(adi, "suspend", AdiState.ENABLED)
        self._set_queues(adi, QueueState.STOPPED)
        self._enter(adi, AdiState.SUSPENDED)

    def resume(self, adi: Adi) -> None:
        """Go on with what was accepted."""
        self._need(adi, "resume", AdiState.SUSPENDED)
        self._enter(adi, AdiState.ENABLED, "resumed")
        self._set_queues(adi, QueueState.RUNNING)

    def save(self, adi: Adi) -> bytes:
        """The state of an ADI that does nothing now, for ``restore`` here or elsewhere."""
        self._need(adi, "save", AdiState.ALLOCATED, AdiState.SUSPENDED)
        return json.dumps(
            {
                "version": STATE_VERSION,
                "type": adi.type.name,
                "generation": self.generation,
                "settings": adi.settings,
                "device": base64.b64encode(self.on_save(adi)).decode(),
                "suspended": adi.state is AdiState.SUSPENDED,
            }
        ).encode()

    def restore(self, adi: Adi, state: bytes) -> None:
        """Take over what ``save`` gave; SUSPENDED then, if that one was. VdcmError for another
        version, type or generation, or for bytes that ``save`` did not give."""
        self._need(adi, "restore", AdiState.ALLOCATED)
        try:
            saved = json.loads(state)
            for key, mine in (
                ("version", STATE_VERSION),
                ("type", adi.type.name),
                ("generation", self.generation),
            ):
                if saved[key] != mine:
                    raise VdcmError(
                        f"{adi.name}: the state is of {key} {str(saved[key])[:80]}, not {mine}"
                    )
            device = base64.b64decode(saved["device"], validate=True)
            settings, suspended = dict(saved["settings"]), bool(saved["suspended"])
        except (ValueError, TypeError, KeyError, binascii.Error, RecursionError) as error:
            raise VdcmError(f"{adi.name}: this is no saved state: {error!r}") from error
        self.on_configure(adi, settings)
        adi.settings = settings
        self.on_restore(adi, device)
        if suspended:
            self.on_enable(adi)
            self._enter(adi, AdiState.SUSPENDED)

    # Stepping it, instead of letting threads run.

    def hold_sweeps(self) -> None:
        """End the sweep threads: from now on ``sweeps`` are to be stepped."""
        self._held = True
        for sweep in self._sweeps:
            sweep.hold()

    def resume_sweeps(self) -> None:
        """Undo ``hold_sweeps``."""
        self._held = False
        for sweep in self._sweeps:
            sweep.resume()

    @property
    def sweeps(self) -> Sequence[Sweep]:
        """Those that there are."""
        return self._sweeps

    # What a device's driver adds.

    def on_generation(self, generation: str) -> None:
        """Pass for ``generation`` from now on."""

    def on_allocate(self, adi: Adi) -> None:
        """Make ``adi.resource`` and the queues of ``adi.path``."""

    def on_configure(self, adi: Adi, settings: Mapping[str, Any]) -> None:
        """Check and apply settings; VdcmError for one that it does not take."""
        if settings:
            raise VdcmError(f"{adi.name} has no setting {', '.join(settings)}")

    def on_enable(self, adi: Adi) -> None:
        """Its queues are about to run."""

    def on_disable(self, adi: Adi) -> None:
        """Its queues have stopped and are empty."""

    def on_reset(self, adi: Adi) -> None:
        """Its queues have stopped and are empty; its settings are gone."""

    def on_release(self, adi: Adi) -> None:
        """C no longer knows it: give back what ``on_allocate`` made."""

    def on_save(self, adi: Adi) -> bytes:
        """The device's part of its state: accepted work above all."""
        del adi
        return b""

    def on_restore(self, adi: Adi, state: bytes) -> None:
        """Take over what ``on_save`` gave; VdcmError if it is something else."""
        if state:
            raise VdcmError(f"{adi.name} keeps no device state")

    def on_counters(self, adi: Adi) -> dict[str, int]:
        """The device's own counters of an ADI."""
        del adi
        return {}

    # For show, and at the end.

    def counters(self, adi: Adi) -> dict[str, Count]:
        """``counters.ADI`` and the device's own; nothing of an ADI that has been released."""
        if adi.state is AdiState.RELEASED:
            return {}
        return {**adi.path.counters(), **self.on_counters(adi)}

    def sweep_counters(self) -> list[dict[str, Count]]:
        """``counters.SWEEP`` of each sweep thread there is."""
        return [sweep.counters() for sweep in self._sweeps]

    def describe(self) -> dict[str, Any]:
        """JSON-able: resources, types and what is in use."""
        return {
            "name": self.name,
            "generation": self.generation,
            "resources": {
                key: {"total": total, "used": self.used(key)}
                for key, total in self.resources.items()
            },
            "adi_types": {
                name: {"maximum": self.maximum(name), "available": self.available(name)}
                for name in self.adi_types
            },
            "sweeps": [summarized(one) for one in self.sweep_counters()],
        }

    def close(self) -> None:
        """Release all ADIs and end the threads. Twice is harmless."""
        for adi in list(self.adis.values()):
            self.release(adi)
        for sweep in self._sweeps:
            sweep.close()
        self._sweeps = []

    # Within.

    def _type(self, name: str) -> AdiType:
        try:
            return self.adi_types[name]
        except KeyError:
            known = ", ".join(sorted(self.adi_types)) or "none"
            raise VdcmError(f"{self.name} has no ADI type {name[:80]} (known: {known})") from None

    def _need(self, adi: Adi, what: str, *states: AdiState) -> None:
        if adi.driver is not self:
            raise VdcmError(f"{adi.name} is not an ADI of {self.name}")
        if adi.state not in states:
            needed = " or ".join(state.value for state in states)
            raise StateError(f"{adi.name} is {adi.state.value}; to {what} it has to be {needed}")

    def _sweep_for(self, owner: str) -> Sweep:
        """The least busy one, or the one that has the owner's others."""
        if self.together:
            for adi in self.adis.values():
                if adi.owner == owner:
                    return adi.path.sweep
        if len(self._sweeps) < self._workers and all(map(len, self._sweeps)):
            self._sweeps.append(Sweep(nap_us=self.wake_us))
            if self._held:
                self._sweeps[-1].hold()
        return min(self._sweeps, key=len)

    def _close_group(self, owner: str) -> None:
        """If it has no ADI any more."""
        if not self._groups[owner].adis:
            self._groups.pop(owner).close()

    @staticmethod
    def _enter(adi: Adi, state: AdiState, change: str = "") -> None:
        adi.state = state
        adi.on_change(adi, change or state.value)

    @staticmethod
    def _set_queues(adi: Adi, state: QueueState) -> None:
        for queue in adi.path.queues:
            queue.state = state

    def _quiesce(self, adi: Adi) -> None:
        self._set_queues(adi, QueueState.STOPPED)
        for queue in adi.path.queues:
            queue.abort()

    def _on_event(self, adi: Adi) -> None:
        for report in adi.path.reports():
            if adi.state is AdiState.RELEASED:
                return
            adi.on_report(adi, report)
        if adi.state is AdiState.DRAINING and all(
            queue.state is QueueState.STOPPED for queue in adi.path.queues
        ):
            self._enter(adi, AdiState.ENABLED, "drained")
            self._set_queues(adi, QueueState.RUNNING)
            self._drained(adi)

    @staticmethod
    def _drained(adi: Adi) -> None:
        waiting, adi.on_drained = adi.on_drained, []
        for done in waiting:
            done()


_LIVE: Final = tuple(state for state in AdiState if state is not AdiState.RELEASED)
