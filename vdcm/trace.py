"""A trace for one reader: the events of some VDEVs, filtered, bounded, and fair among them.

What a reader does not fetch in time is dropped and counted. Each VDEV has its own share of what may
wait, so that one whose guest floods the trace takes nothing from the others.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from operator import itemgetter
from typing import Final

from vdcm.adi import Adi
from vdcm.entry import Listener
from vdcm.errors import VdcmError
from vdcm.events import KINDS, Dropped, Event, Observer, QueueSample
from vdcm.manager import Manager

log = logging.getLogger("vdcm.trace")

QUEUE_LIMIT: Final = 8192
"""Events that wait for one reader, all VDEVs together."""
LEAST_SHARE: Final = 16
"""Of these, what each VDEV may have at least, however many there are."""
SAMPLE: Final = 1.0
"""Seconds between two samples of the counters of queues."""
FASTEST_SAMPLE: Final = 0.05
NAMING: Final = frozenset({"access", "config", "hint"})
"""Kinds of events that name registers."""


@dataclass(frozen=True)
class Filter:
    """What a reader wants: of ``kinds`` (none: all), and of the events that name registers those
    that name one like a pattern of ``registers`` (none: all).

    ``*`` and ``?`` stand for any text and any character; patterns without kinds want accesses and
    hints only. Raises VdcmError for a kind that there is not.
    """

    kinds: frozenset[str] = frozenset()
    registers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for kind in self.kinds - KINDS.keys():
            raise VdcmError(f"there is no kind of event {kind[:80]}: {', '.join(KINDS)}")
        if not self.kinds:
            object.__setattr__(self, "kinds", NAMING if self.registers else frozenset(KINDS))
        patterns = "|".join(_expression(pattern) for pattern in self.registers)
        match = re.compile(patterns).fullmatch
        object.__setattr__(self, "_matches", lru_cache(4096)(lambda name: bool(match(name))))

    def wants(self, event: Event) -> bool:
        if event.kind not in self.kinds:
            return False
        if not self.registers or event.kind not in NAMING:
            return True
        matches: Callable[[str], bool] = self.__dict__["_matches"]
        return any(map(matches, event.registers))

    @property
    def accesses(self) -> bool:
        return not self.kinds.isdisjoint(("access", "config"))


def _expression(pattern: str) -> str:
    return re.escape(pattern).replace(r"\*", ".*").replace(r"\?", ".")


Traced = tuple[float, str, Event]
"""When it was, in seconds since the epoch; the VDEV's name; what it was."""
_time: Final = itemgetter(0)


@dataclass(slots=True)
class _Waiting:
    """What of one VDEV waits for the reader."""

    events: deque[Traced] = field(default_factory=deque)
    dropped: int = 0


class Trace:
    """The events of VDEVs ``names``, by name or UUID, or of all, those to come too (None).

    ``wake`` is called when there is something to ``take``. Queues are sampled every ``sample``
    seconds, if their events are wanted. Needs the running event loop; raises VdcmError for a VDEV
    that there is not.
    """

    def __init__(
        self,
        manager: Manager,
        wanted: Filter,
        names: Sequence[str] | None,
        wake: Callable[[], None],
        *,
        sample: float = SAMPLE,
    ) -> None:
        if sample < FASTEST_SAMPLE:
            raise VdcmError(f"queues are sampled every {FASTEST_SAMPLE:g} s at most")
        self._manager = manager
        self._uuids = names and {manager.entry(name).definition.uuid for name in names}
        self._wants = None if wanted == Filter() else wanted.wants
        self._wake = wake
        self._sample_time = sample
        self._waiting: dict[str, _Waiting] = {}
        self._share = QUEUE_LIMIT
        self._counted: dict[Adi, tuple[float, dict[str, int]]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._end = manager.listen(Listener(self._observer_of, wanted.accesses), names)
        if "queue" in wanted.kinds:
            self._sample()

    def _observer_of(self, name: str) -> Observer:
        waiting = self._waiting.setdefault(name, _Waiting())
        self._share = max(QUEUE_LIMIT // len(self._waiting), LEAST_SHARE)
        events, wants, wake, clock = waiting.events, self._wants, self._wake, time.time

        def hear(event: Event) -> None:
            if wants is not None and not wants(event):
                return
            if len(events) >= self._share:
                waiting.dropped += 1
                return
            if not events:
                wake()
            now = clock()
            if waiting.dropped:
                events.append((now, name, Dropped(waiting.dropped)))
                waiting.dropped = 0
            events.append((now, name, event))

        return hear

    def take(self, most: int) -> list[Traced]:
        """Some of what waits, about ``most`` events of each VDEV, in order of time."""
        found: list[Traced] = []
        for name, waiting in self._waiting.items():
            events = waiting.events
            found += [events.popleft() for _ in range(min(most, len(events)))]
            if waiting.dropped and not events:
                found.append((time.time(), name, Dropped(waiting.dropped)))
                waiting.dropped = 0
        found.sort(key=_time)
        return found

    def _sample(self) -> None:
        """Tell of each ADI by how much its counters have grown. This is all that it costs: the
        queues count in any case."""
        now = time.monotonic()
        counted: dict[Adi, tuple[float, dict[str, int]]] = {}
        for entry in self._manager.started():
            if self._uuids is None or entry.definition.uuid in self._uuids:
                for adi in entry.running("sampling").adis:
                    counters = _totals(adi)
                    counted[adi] = (now, counters)
                    if adi in self._counted:
                        self._compare(entry.name, adi, now, counters)
        self._counted = counted
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self._sample_time, self._sample)

    def _compare(self, name: str, adi: Adi, now: float, counters: dict[str, int]) -> None:
        since, before = self._counted[adi]
        growth = {key: value - before.get(key, 0) for key, value in counters.items()}
        grown = {key: more for key, more in growth.items() if more > 0}
        if grown:
            self._observer_of(name)(QueueSample(adi.name, round(now - since, 3), grown))

    def close(self) -> None:
        """End it. Twice is harmless."""
        self._end()
        if self._timer is not None:
            self._timer.cancel()
        self._waiting.clear()


def _totals(adi: Adi) -> dict[str, int]:
    try:
        counters = adi.driver.counters(adi)
    except Exception:  # a model's own mistake: the others are sampled all the same
        log.exception("%s: the device model failed to say what it has counted", adi.name)
        return {}
    return {name: count for name, count in counters.items() if isinstance(count, int)}
