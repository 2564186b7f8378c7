"""The direct path seen from Python: sweep threads, and what a device's C runs on them.

A sweep looks at doorbells in shared memory and runs the queues behind them; Python only sets it up
and hears of what went wrong (native/sweep.h). Nothing here knows a device.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Sequence
from enum import IntEnum
from pathlib import Path
from typing import Any, Final, NamedTuple

from vdcm import _native
from vdcm._native import ffi, lib
from vdcm.counters import ADI, SWEEP, Count, taken_from
from vdcm.errors import StateError, VdcmError
from vdcm.ims import ImsEntry, ImsStorage
from vdcm.pasid import GuestPasids

log = logging.getLogger("vdcm.sweep")

SPIN_US: Final = 50
"""Microseconds that a sweep stays awake after its last work; up to 8 times as long while work comes
at such intervals."""
NAP_US: Final = 20_000
"""Microseconds of a sweep's longest nap, unless told. With few doorbells to look at it is 1 ms."""
WEIGHTS: Final = range(1, lib.VDCM_MAX_WEIGHT + 1)
DEFAULT_WEIGHT: Final[int] = lib.VDCM_DEFAULT_WEIGHT
NO_PASID: Final = 0xFFFF_FFFF
NO_WORK: Final = (1 << 64) - 1


class QueueState(IntEnum):
    """What the sweep does with a queue."""

    STOPPED = lib.VDCM_STOPPED
    """Nothing; what was accepted is kept."""
    RUNNING = lib.VDCM_RUNNING
    DRAINING = lib.VDCM_DRAINING
    """It runs what was accepted, accepts nothing, and becomes STOPPED when it is empty."""


class Report(NamedTuple):
    """What a device's C told the host driver: a code and up to 64 bytes, both of its own making."""

    code: int
    data: bytes


def services() -> int:
    """The address of the ``vdcm_services`` table (fastpath.h), which a device's C is given."""
    return int(lib.vdcm_services_table())


def include_dir() -> Path:
    """The folder to give a C compiler, for ``#include <vdcm/fastpath.h>``."""
    return Path(_native.__file__).parent / "include"


class Group:
    """ADIs, on whichever sweeps, that have one rate limit together, and one weight on each."""

    def __init__(self) -> None:
        self.weight = DEFAULT_WEIGHT
        self.rate = 0
        self._limit = lib.vdcm_limit_new()
        if self._limit == ffi.NULL:
            raise MemoryError
        self._parts: dict[Any, Any] = {}
        self.adis: set[AdiPath] = set()
        """Those that are in it."""

    def part(self, sweep: Any) -> Any:
        """What it is on one sweep, made when it is first asked for."""
        if sweep not in self._parts:
            native = lib.vdcm_group_new(sweep, self._limit)
            if native == ffi.NULL:
                raise MemoryError
            self._parts[sweep] = native
            lib.vdcm_group_set_weight(native, self.weight)
        return self._parts[sweep]

    def set_qos(self, weight: int, rate: int) -> None:
        """``weight`` in ``WEIGHTS``; ``rate`` in units a second, 0 for no limit."""
        if weight not in WEIGHTS or (
            rate != self.rate and lib.vdcm_limit_set(self._limit, rate) != 0
        ):
            raise VdcmError(_impossible(weight, rate))
        for native in self._parts.values():
            lib.vdcm_group_set_weight(native, weight)
        self.weight, self.rate = weight, rate

    def close(self) -> None:
        """Its sweeps have not been closed. Twice is harmless. StateError while it has an ADI."""
        if self.adis:
            raise StateError(f"the group has {len(self.adis)} ADIs: release them first")
        for native in self._parts.values():
            lib.vdcm_group_free(native)
        self._parts.clear()
        lib.vdcm_limit_free(self._limit)
        self._limit = ffi.NULL


class Sweep:
    """One sweep thread. ``spin_us`` and ``nap_us`` as in ``SPIN_US`` and ``NAP_US``.

    What it has to say arrives on the event loop that runs when its first ADI is made; without one,
    ``look`` is to be called. With ``stepped`` there is no thread: it does something only in
    ``step``. Raises StateError if there can be no thread.
    """

    def __init__(
        self, spin_us: int = SPIN_US, nap_us: int = NAP_US, *, stepped: bool = False
    ) -> None:
        if stepped:
            self._native = lib.vdcm_sweep_new_stepped(spin_us * 1000, nap_us * 1000)
        else:
            self._native = lib.vdcm_sweep_new(spin_us * 1000, nap_us * 1000)
        if self._native == ffi.NULL:
            raise StateError(f"no thread for the direct path: {os.strerror(ffi.errno)}")
        self._adis: dict[int, AdiPath] = {}
        self._next_id = 1
        self._loop: asyncio.AbstractEventLoop | None = None
        self._held = False

    def __len__(self) -> int:
        """How many ADIs it serves."""
        return len(self._adis)

    def adi(self, on_event: Callable[[AdiPath], None], group: Group | None = None) -> AdiPath:
        """Make room for an ADI; ``on_event`` is called when it has reports or has drained."""
        if self._loop is None and not self._held:
            self._listen()
        part = group.part(self._native) if group is not None else ffi.NULL
        native = lib.vdcm_adi_new(self._native, part, self._next_id)
        if native == ffi.NULL:
            raise MemoryError
        path = AdiPath(self, self._next_id, native, on_event, group)
        self._adis[self._next_id] = path
        if group is not None:
            group.adis.add(path)
        self._next_id += 1
        return path

    def _listen(self) -> None:
        try:
            self._loop = asyncio.get_running_loop()
        except RuntimeError:
            pass  # a caller without a loop calls look()
        else:
            self._loop.add_reader(lib.vdcm_sweep_fd(self._native), self.look)

    def _unlisten(self) -> None:
        if self._loop is not None and not self._loop.is_closed():
            self._loop.remove_reader(lib.vdcm_sweep_fd(self._native))
        self._loop = None

    def hold(self) -> None:
        """End the thread: from now on it is ``step`` and ``look`` that do something."""
        self._held = True
        self._unlisten()
        lib.vdcm_sweep_hold(self._native)

    def resume(self) -> None:
        """Undo ``hold``; StateError if there can be no thread."""
        error = lib.vdcm_sweep_resume(self._native)
        if error:
            raise StateError(f"no thread for the direct path: {os.strerror(-error)}")
        self._held = False
        self._listen()

    def look(self) -> None:
        """Pass on what has been reported since the last look."""
        ids = ffi.new("uint64_t[]", 64)
        for index in range(lib.vdcm_sweep_ready(self._native, ids, 64)):
            path = self._adis.get(ids[index])
            if path is None:  # an earlier handler has closed it
                continue
            try:
                path.on_event(path)
            except Exception:  # a model's own mistake; the others have drained all the same
                log.exception("a device model failed to hear what its ADI had to say")

    def step(self, now_ns: int) -> tuple[int, int | None]:
        """Look at some doorbells and run one queue at the time ``now_ns``.

        The units of work done; and, if there was nothing that may run, the ns until the rate limit
        lets something (None: there is no work).
        """
        wait = ffi.new("uint64_t *")
        done = lib.vdcm_sweep_step(self._native, now_ns, wait)
        return int(done), None if wait[0] == NO_WORK else int(wait[0])

    def longest_nap(self, spent_ns: int, idle_ns: int = 1 << 60) -> int:
        """What its naps grow to, in ns, if from one to the next it takes ``spent_ns`` of a CPU and
        there was work ``idle_ns`` ago."""
        return int(lib.vdcm_sweep_longest_nap(self._native, spent_ns, idle_ns))

    def counters(self) -> dict[str, Count]:
        """``counters.SWEEP``."""
        found = ffi.new("vdcm_sweep_counters *")
        lib.vdcm_sweep_count(self._native, found)
        return {**taken_from(found, SWEEP[:-1]), "adis": len(self)}

    def close(self) -> None:
        """End the thread. Twice is harmless. StateError while it serves an ADI."""
        if self._adis:
            raise StateError(f"the sweep serves {len(self._adis)} ADIs: release them first")
        if self._native is None:
            return
        self._unlisten()
        lib.vdcm_sweep_free(self._native)
        self._native = None

    def forget(self, identifier: int) -> None:
        self._adis.pop(identifier, None)


class AdiPath:
    """The direct path of one ADI: its PASIDs, messages and share, and its queues."""

    def __init__(
        self,
        sweep: Sweep,
        identifier: int,
        native: Any,
        on_event: Callable[[AdiPath], None],
        group: Group | None,
    ) -> None:
        self.group: Final = group
        self.on_event: Final = on_event
        self.sweep: Final = sweep
        self._id = identifier
        self._native = native
        self._queues: list[QueuePath] = []
        self._guest_pasids: GuestPasids | None = None  # C has its address

    @property
    def queues(self) -> Sequence[QueuePath]:
        return self._queues

    def queue(
        self, fastpath: int, device: int, *, doorbells: bool, keep: object = None
    ) -> QueuePath:
        """Add a queue, STOPPED.

        ``fastpath``: address of the device's ``vdcm_fastpath``; ``device``: of what its functions
        get, and ``keep`` whatever owns that memory: it is kept until C no longer knows it.
        ``doorbells``: the sweep looks for work, else ``kick`` says that there is some. Raises
        VdcmError for a table of another version.
        """
        native = lib.vdcm_queue_new(self._native, fastpath, device, doorbells)
        if native == ffi.NULL:
            raise VdcmError(
                f"the device's C cannot be used ({os.strerror(ffi.errno)}): build it against the "
                "fastpath.h of this vdcm"
            )
        queue = QueuePath(native, keep)
        self._queues.append(queue)
        return queue

    def set_pasids(self, primary: int | None, secondary: int | None) -> None:
        self._check()
        none = NO_PASID
        lib.vdcm_adi_set_pasids(
            self._native,
            none if primary is None else primary,
            none if secondary is None else secondary,
        )

    def set_bus_master(self, enabled: bool) -> None:
        """Whether it may reach memory and send messages; not to begin with."""
        self._check()
        lib.vdcm_adi_set_bus_master(self._native, enabled)

    def set_guest_pasids(self, table: GuestPasids | None) -> None:
        self._check()
        lib.vdcm_adi_set_guest_pasids(self._native, table.native if table else ffi.NULL)
        self._guest_pasids = table

    def set_messages(self, storage: ImsStorage, entries: Sequence[ImsEntry]) -> None:
        self._check()
        handles = [entry.handle for entry in entries]
        result = lib.vdcm_adi_set_messages(self._native, storage.native, handles, len(handles))
        if result:
            raise VdcmError(f"{len(handles)} messages for one ADI: {os.strerror(-result)}")

    def set_qos(self, weight: int, rate: int) -> None:
        """As a group's; the weight counts among the ADIs of its group."""
        self._check()
        result = lib.vdcm_adi_set_qos(self._native, weight, rate)
        if result:
            raise VdcmError(_impossible(weight, rate))

    def reports(self) -> list[Report]:
        """Take the reports that have come."""
        found = ffi.new("vdcm_adi_report[]", lib.VDCM_REPORTS)
        count = lib.vdcm_adi_reports(self._native, found, lib.VDCM_REPORTS)
        return [
            Report(found[i].code, bytes(ffi.buffer(found[i].data, found[i].size)))
            for i in range(count)
        ]

    def counters(self) -> dict[str, Count]:
        """``counters.ADI``."""
        self._check()
        found = ffi.new("vdcm_adi_counters *")
        lib.vdcm_adi_count(self._native, found)
        return taken_from(found, ADI)

    def close(self) -> None:
        """Give all of it back. When this returns, C holds nothing of the device's."""
        if self._native is None:
            return
        for queue in self._queues:
            queue.forget()
        lib.vdcm_adi_free(self._native)
        self._native = None
        self._queues.clear()
        self.sweep.forget(self._id)
        if self.group is not None:
            self.group.adis.discard(self)

    def _check(self) -> None:
        if self._native is None:
            raise StateError("the ADI has been released")


class QueuePath:
    """One queue on the direct path."""

    def __init__(self, native: Any, keep: object) -> None:
        self._native = native
        self._keep = keep

    @property
    def address(self) -> int:
        """Its ``vdcm_queue *``, for a device's C to kick (fastpath.h)."""
        return int(ffi.cast("uintptr_t", self._usable()))

    @property
    def state(self) -> QueueState:
        return QueueState(lib.vdcm_queue_state(self._usable()))

    @state.setter
    def state(self, state: QueueState) -> None:
        """When it returns, nothing that the new state forbids is going on (Scalable IOV, 2.7)."""
        lib.vdcm_queue_set_state(self._usable(), state)

    def abort(self) -> None:
        """Discard what was accepted and is not finished."""
        lib.vdcm_queue_abort(self._usable())

    def kick(self) -> None:
        """Say that there is work in it."""
        lib.vdcm_queue_kick(self._usable())

    def forget(self) -> None:
        self._native = None

    def _usable(self) -> Any:
        if self._native is None:
            raise StateError("the queue's ADI has been released")
        return self._native


def _impossible(weight: int, rate: int) -> str:
    return (
        f"weight {weight}, rate {rate}: a weight is {WEIGHTS.start} to {WEIGHTS.stop - 1}, "
        "a rate 2**50 units a second at most"
    )
