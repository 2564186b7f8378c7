"""What device models take from their surroundings: time, and chance.

Both are the machine's, unless they are given: a device that is recorded, or replayed, takes each
step at one moment, the same in both, and chance has the same in store for it. C asks
``services->now()`` (native/fastpath.h) for the time.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from random import Random

from vdcm._native import lib

_now = 0
_chance: Random | None = None


def monotonic_ns() -> int:
    """As ``time.monotonic_ns``: nanoseconds that never go back, since nobody knows when."""
    return _now or time.monotonic_ns()


def random_bytes(size: int) -> bytes:
    """``size`` bytes that nobody can guess."""
    return os.urandom(size) if _chance is None else _chance.randbytes(size)


def freeze_native(ns: int) -> None:
    """It is ``ns`` for C on this thread; 0 for the time that it is."""
    lib.vdcm_freeze_clock(ns)


@contextmanager
def given(ns: int, sweep_ns: int, chance: Random) -> Iterator[None]:
    """Within, it is ``ns`` (above 0) for Python, and ``sweep_ns`` for C on this thread."""
    global _now, _chance
    _now, _chance = ns, chance
    freeze_native(sweep_ns)
    try:
        yield
    finally:
        _now, _chance = 0, None
        freeze_native(0)
