"""What is counted, said once: ``show``, ``top`` and metrics have names, kinds and texts from here.

Counts are exact, begin at 0 with the VDEV, and are whole numbers; times are nanoseconds. They are
kept where they come up: a connection's and an ADI's in C, the others in ``Vdev``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from itertools import pairwise
from typing import Any, Final

BUCKETS: Final = 48
"""Of a ``Latencies`` (native/latency.h)."""
EDGES: Final = (0, *((2 + i % 2) << (7 + i // 2) for i in range(BUCKETS - 1)))
"""The nanoseconds at which each bucket begins: half powers of two from 256 on."""


@dataclass(frozen=True)
class Latencies:
    """How long things took: ``counts`` by bucket, and the ``ns`` of all of them together."""

    counts: tuple[int, ...] = (0,) * BUCKETS
    ns: int = 0

    def __add__(self, other: Latencies) -> Latencies:
        return self._with(other, 1)

    def __sub__(self, other: Latencies) -> Latencies:
        """What has come since ``other`` was read."""
        return self._with(other, -1)

    def _with(self, other: Latencies, sign: int) -> Latencies:
        pairs = zip(self.counts, other.counts, strict=True)
        return Latencies(tuple(a + sign * b for a, b in pairs), self.ns + sign * other.ns)

    @property
    def count(self) -> int:
        """How many there were."""
        return sum(self.counts)

    @property
    def mean(self) -> float | None:
        """ns; None if there was none."""
        return self.ns / self.count if self.count else None

    def percentile(self, part: float) -> float | None:
        """ns that ``part`` (0 to 1) of them did not exceed, to within a bucket, evenly filled.

        None if there was none. What lies in the last bucket is said to have taken its beginning.
        """
        wanted = part * self.count
        for number, (low, high) in zip(self.counts, pairwise((*EDGES, EDGES[-1])), strict=True):
            if number and wanted <= number:
                return low + (high - low) * wanted / number
            wanted -= number
        return None

    def summary(self) -> dict[str, Any]:
        """For a person: whole ns."""
        shown = {"mean": self.mean, "p50": self.percentile(0.5), "p99": self.percentile(0.99)}
        return {
            "count": self.count,
            **{f"{name}_ns": None if ns is None else round(ns) for name, ns in shown.items()},
        }

    def to_json(self) -> dict[str, Any]:
        """``ns`` and, of the buckets that hold something, the edge and the count."""
        filled = zip(EDGES, self.counts, strict=True)
        return {"ns": self.ns, "counts": [[edge, n] for edge, n in filled if n]}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Latencies:
        counts = dict(value["counts"])
        return cls(tuple(counts.get(edge, 0) for edge in EDGES), value["ns"])


Count = int | Latencies
Counts = Mapping[str, Count]


class Kind(Enum):
    TOTAL = "counter"
    """Grows."""
    NOW = "gauge"
    """Goes up and down."""
    TIMES = "histogram"
    """A ``Latencies``."""


@dataclass(frozen=True)
class Counter:
    """One thing that is counted. A ``name`` in ``_ns`` is a time, one in ``_bytes`` a size."""

    name: str
    doc: str
    kind: Kind = Kind.TOTAL


CLIENT: Final = (
    Counter("messages", "vfio-user messages of its clients."),
    Counter("reads", "Reads of 1 to 8 bytes that came by message."),
    Counter("writes", "Writes of 1 to 8 bytes that came by message."),
    Counter("taken", "Of the writes, those that the device's C took ahead of Python."),
    Counter("deferred", "Writes that a client was told to repeat (deferrable memory writes)."),
    Counter("errors", "Accesses and other requests that failed."),
    Counter("read_ns", "From a message with reads being looked for to its answer.", Kind.TIMES),
    Counter("write_ns", "From a message with writes being looked for to its end.", Kind.TIMES),
)
"""Of one connection."""
VDEV: Final = (
    *CLIENT,
    Counter("dma_read_bytes", "Guest memory that Python has read."),
    Counter("dma_written_bytes", "Guest memory that Python has written."),
    Counter("dma_refused", "Accesses of Python to guest memory that failed."),
    Counter("interrupts", "Interrupts given to clients, those of ADIs among them."),
    Counter("resets", "Resets of the function."),
    Counter("clients", "Clients that have connected."),
)
"""Of a VDEV, since it was started; what comes from connections is of all it has had."""
ADI: Final = (
    Counter("units", "Units of work done on the direct path, in general bytes."),
    Counter("dma_read_bytes", "Guest memory that the device's C has read."),
    Counter("dma_written_bytes", "Guest memory that the device's C has written."),
    Counter("refused", "Accesses to guest memory that failed."),
    Counter("messages", "Interrupt messages that it has generated."),
    Counter("reports", "Reports of the device's C to Python."),
    Counter("lost", "Reports that were lost, as too many waited."),
    Counter("throttled", "Times that its rate limit held work back."),
    Counter("busy_ns", "Time that the sweep has worked for it."),
    Counter("turn_ns", "From work being seen, or the turn before, to a turn's end.", Kind.TIMES),
)
"""Of an ADI, since it was allocated."""
SWEEP: Final = (
    Counter("looks", "Looks at the doorbells of a queue."),
    Counter("naps", "Naps for want of work."),
    Counter("nap_ns", "The longest nap there may be now.", Kind.NOW),
    Counter("cpu_ns", "CPU time of the thread."),
    Counter("adis", "ADIs that it serves.", Kind.NOW),
)
PROCESS: Final = (
    Counter("python_cpu_ns", "CPU time of the event loop's thread, which runs Python."),
    Counter("cpu_ns", "CPU time of all threads."),
)


def nothing(scope: Iterable[Counter]) -> dict[str, Count]:
    """All counts of a scope at their beginning."""
    return {one.name: Latencies() if one.kind is Kind.TIMES else 0 for one in scope}


def taken_from(found: Any, scope: Iterable[Counter]) -> dict[str, Count]:
    """The counts of a scope in a structure of C, whose fields are called as they are."""
    counts: dict[str, Count] = {}
    for one in scope:
        value = getattr(found, one.name)
        if one.kind is Kind.TIMES:
            counts[one.name] = Latencies(tuple(value.count), value.ns)
        else:
            counts[one.name] = value
    return counts


def together(first: Counts, *others: Counts) -> dict[str, Count]:
    """The sums of what count the same."""
    found = dict(first)
    for other in others:
        for name, count in other.items():
            found[name] += count  # type: ignore[operator]  # of one name is one kind
    return found


def summarized(counts: Counts) -> dict[str, Any]:
    """For a person, JSON-able."""
    return {
        name: one.summary() if isinstance(one, Latencies) else one for name, one in counts.items()
    }


def to_json(counts: Counts) -> dict[str, Any]:
    """For a program, JSON-able and exact."""
    return {
        name: one.to_json() if isinstance(one, Latencies) else one for name, one in counts.items()
    }


def from_json(counts: Mapping[str, Any]) -> dict[str, Count]:
    """Undo ``to_json``."""
    return {
        name: Latencies.from_json(one) if isinstance(one, Mapping) else one
        for name, one in counts.items()
    }
