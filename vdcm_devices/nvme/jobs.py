"""Work that may take long, beside the event loop, one piece after the other in a thread; and how to
wait until something is so."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Final

SHORTEST: Final = 0.001
LONGEST: Final = 0.05
"""Seconds between two looks at a condition."""

Work = Callable[[], None]
Done = Callable[[Exception | None], None]
"""Hears of the error that ended the work, None for none."""


def when(condition: Callable[[], bool], then: Callable[[], None], pause: float = SHORTEST) -> None:
    """Call ``then`` once ``condition`` holds: now, or on the event loop, which looks at it after
    ``pause`` seconds and then less and less often. Where no loop runs this waits."""
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        while not condition():
            time.sleep(SHORTEST)
        then()
        return
    if condition():
        then()
    else:
        loop.call_later(pause, when, condition, then, min(2 * pause, LONGEST))


class Jobs:
    """Where no event loop runs, the work is done at once."""

    def __init__(self) -> None:
        self._threads: ThreadPoolExecutor | None = None
        self._now: Final[deque[tuple[Work, Done]]] = deque()
        self._closed = False

    def start(self, work: Work, done: Done) -> None:
        """Do ``work``, then call ``done`` on the event loop; after ``close`` neither."""
        if self._closed:
            return
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self._do(work, done)
            return
        if self._threads is None:
            self._threads = ThreadPoolExecutor(1, "vdcm-nvme")

        def ended(future: Future[None]) -> None:
            with suppress(RuntimeError):  # the loop is closed: nobody wants to know any more
                loop.call_soon_threadsafe(self._end, future, done)

        self._threads.submit(work).add_done_callback(ended)

    def _do(self, work: Work, done: Done) -> None:
        self._now.append((work, done))
        if len(self._now) > 1:  # one that is being done has started it
            return
        while self._now:
            work, done = self._now[0]
            done(_attempt(work))
            self._now.popleft()

    def _end(self, future: Future[None], done: Done) -> None:
        if self._closed or future.cancelled():
            return
        error = future.exception()
        done(error if isinstance(error, Exception) else None)

    def close(self) -> None:
        """Wait for what is under way; what has not begun never does. Twice is harmless."""
        self._closed = True
        if self._threads is not None:
            self._threads.shutdown(wait=True, cancel_futures=True)
            self._threads = None


def _attempt(work: Work) -> Exception | None:
    try:
        work()
    except Exception as error:
        return error
    return None
