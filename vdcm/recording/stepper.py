"""A device model that does one thing at a time, so that it does the same again."""

from __future__ import annotations

import asyncio
import heapq
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import Context
from random import Random
from typing import Any, Final, TypeVar, cast

from vdcm.host import HostDriver
from vdcm.recording.pages import Pages
from vdcm.surroundings import freeze_native, given
from vdcm.vdev import Vdev

log = logging.getLogger("vdcm.recording")

STEP_NS: Final = 4_000_000
"""What passes between two idle steps of a sweep: longer than it waits before it rests."""
IDLE_STEPS: Final = 4
"""In vain, after which a sweep is left alone; enough for what a queue may put off (8.2 ms)."""
LOOKS: Final = 64
"""Doorbells that a step looks at (native/doorbell.c)."""
ROUNDS: Final = 8
"""Of kicks at most, as long as queues go on writing to memory."""
STEPS: Final = 1 << 16
"""At a time: a guest may give a device more to do than can be waited for."""
PATIENCE: Final = 10.0
"""Seconds for a thread of the model's own to have done what it has done when it was recorded."""
Result = TypeVar("Result")


class SteppedLoop:
    """The event loop that a model finds running: what is called later waits until ``run``.

    ``on_work`` is told, from any thread, when there is something to run: now, or so many ns later.
    """

    def __init__(self, on_work: Callable[[int], None]) -> None:
        self._itself: Final = cast(asyncio.AbstractEventLoop, self)
        self._on_work: Final = on_work
        self._now = 0
        self._own: deque[asyncio.Handle] = deque()
        self._others: deque[asyncio.Handle] = deque()
        self._come: Final = threading.Condition()
        self._timers: list[tuple[int, int, asyncio.Handle]] = []
        self._made = 0

    @contextmanager
    def running(self, now: int) -> Iterator[None]:
        """It is the running loop, at ``now`` ns."""
        self._now = now
        before = asyncio._get_running_loop()
        asyncio._set_running_loop(None)
        asyncio._set_running_loop(self._itself)
        try:
            yield
        finally:
            asyncio._set_running_loop(before)

    def due(self, now: int) -> tuple[int, int]:
        """How many there are to run at ``now``: its own, and those that other threads asked for."""
        while self._timers and self._timers[0][0] <= now:
            self._own.append(heapq.heappop(self._timers)[2])
        return len(self._own), len(self._others)

    def next(self) -> int | None:
        """When the next timer is due."""
        return self._timers[0][0] if self._timers else None

    def run(self, own: int, others: int) -> bool:
        """Run so many of them; False if there are not so many."""
        if own > len(self._own):
            return False
        handles = [self._own.popleft() for _ in range(own)]
        with self._come:
            if not self._come.wait_for(lambda: len(self._others) >= others, PATIENCE):
                return False
            handles += [self._others.popleft() for _ in range(others)]
        for handle in handles:
            if not handle.cancelled():
                handle._run()
        return True

    # What a model may call.

    def time(self) -> float:
        return self._now / 1e9

    def call_soon(
        self, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self._itself, context)
        self._own.append(handle)
        self._on_work(0)
        return handle

    def call_soon_threadsafe(
        self, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self._itself, context)
        with self._come:
            self._others.append(handle)
            self._come.notify_all()
        self._on_work(0)
        return handle

    def call_later(
        self, delay: float, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self.time() + delay, callback, *args, context=context)

    def call_at(
        self, when: float, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        handle = asyncio.TimerHandle(when, callback, args, self._itself, context)
        self._made += 1  # of two at one time the first made comes first
        at = round(when * 1e9)
        heapq.heappush(self._timers, (at, self._made, handle))
        self._on_work(max(at - self._now, 0))
        return handle

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self._itself)

    def create_task(self, coro: Any, **named: Any) -> asyncio.Task[Any]:
        return asyncio.Task(coro, loop=self._itself, **named)

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        log.error("%s", context.get("message", ""), exc_info=context.get("exception"))

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """It is passed over when its time comes."""

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return True

    def is_closed(self) -> bool:
        return False


class Stepper:
    """Calls a model, and runs its sweeps. ``drivers``: of its parents, which are held meanwhile.
    ``seed``: of what chance has in store for it."""

    def __init__(
        self, drivers: list[HostDriver], pages: Pages, on_work: Callable[[int], None], seed: int
    ) -> None:
        self.loop: Final = SteppedLoop(on_work)
        self._drivers: Final = drivers
        self._pages: Final = pages
        self._chance: Final = Random(seed)
        self._sweep_ns = 0
        self.vdev: Vdev | None = None
        for driver in drivers:
            driver.hold_sweeps()

    def call(self, now: int, function: Callable[..., Result], *arguments: Any) -> Result:
        """What ``function`` of the model returns or raises at ``now`` ns."""
        with self._at(now):
            try:
                return function(*arguments)
            finally:
                self._settle()

    @contextmanager
    def _at(self, now: int) -> Iterator[None]:
        self._sweep_ns = max(self._sweep_ns, now)
        with self.loop.running(now), given(now, self._sweep_ns, self._chance):
            yield

    def take(self, vdev: Vdev) -> None:
        """It has been made: have its memory on tape, and its interrupts collected."""
        self.vdev = vdev
        vdev.address_space.domain.tape(self._pages)
        vdev.interrupts.collected = True

    def work(self, now: int) -> None:
        """Let the sweeps do what there is to do; then nothing more happens by itself."""
        with self._at(now):
            for _ in range(ROUNDS):
                if not self._sweep() or self.vdev is None:
                    break
                # A guest may have stored something just before it could see what was written.
                for adi in self.vdev.adis:
                    for queue in adi.path.queues:
                        queue.kick()

    def _sweep(self) -> bool:
        """Was anything written to memory?"""
        written = self._pages.written
        for driver in self._drivers:
            for sweep in driver.sweeps:
                queues = sum(len(adi.path.queues) for adi in driver.adis.values())
                idle, most = 0, IDLE_STEPS + IDLE_STEPS * queues // LOOKS
                for _ in range(STEPS):
                    freeze_native(self._sweep_ns)
                    done, _ = sweep.step(self._sweep_ns)
                    self._settle()
                    if done == 0:
                        idle += 1
                        self._sweep_ns += STEP_NS
                    else:
                        idle = 0
                    if idle >= most:
                        break
        return self._pages.written != written

    def _settle(self) -> None:
        """What has been done is seen: by the guest, in memory, and by Python; interrupts last."""
        self._pages.flush()
        for driver in self._drivers:
            for sweep in driver.sweeps:
                sweep.look()
        self._pages.flush()
        if self.vdev is not None:
            self.vdev.interrupts.collect()

    def close(self) -> None:
        """The VDEV has been closed: threads again."""
        for driver in self._drivers:
            driver.resume_sweeps()
