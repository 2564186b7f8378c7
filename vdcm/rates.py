"""What VDEVs do just now: two snapshots, and what has changed in between."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from vdcm.counters import Counts, Latencies
from vdcm.snapshot import AdiCounts, Snapshot, SweepCounts, VdevCounts

NS: Final = 1e9
Value = float | int | None


class Unit(Enum):
    """Of the values of a column."""

    RATE = "a second"
    BYTES = "bytes a second"
    TIME = "ns"
    SHARE = "part of the time"
    NUMBER = "number"


class Change:
    """What has been counted in ``seconds``, and in all."""

    def __init__(self, now: Counts, before: Counts | None, seconds: float) -> None:
        self._now = now
        # Without a before it has begun in between; so has what has counted more before than now.
        fresh = before is None or any(_many(now[name]) < _many(before[name]) for name in now)
        self._before: Counts = {} if before is None or fresh else before
        self.seconds = seconds

    def total(self, *names: str) -> int:
        """Of all of them, since they began."""
        return sum(_many(self._now[name]) for name in names)

    def grown(self, *names: str) -> int:
        """Of all of them, in the interval; ns of distributions."""
        return sum(_sum(self._now[name]) - _sum(self._before.get(name, 0)) for name in names)

    def rate(self, *names: str) -> float:
        """Of all of them, a second."""
        return self.grown(*names) / self.seconds

    def share(self, *names: str) -> float:
        """Times: the part of the interval that they are."""
        return self.rate(*names) / NS

    def times(self, *names: str) -> Latencies:
        """Distributions, of all of them."""
        found = Latencies()
        for name in names:
            now, before = self._now[name], self._before.get(name)
            assert isinstance(now, Latencies)
            found += now - before if isinstance(before, Latencies) else now
        return found


def _many(count: int | Latencies) -> int:
    return count.count if isinstance(count, Latencies) else count


def _sum(count: int | Latencies) -> int:
    return count.ns if isinstance(count, Latencies) else count


@dataclass(frozen=True)
class Column:
    """``vdev`` gets what the VDEV has counted and what its ADIs have; ``adi`` what one ADI has;
    None: there is no such thing of an ADI. ``weight``: which columns go first where there is little
    room: the lightest."""

    key: str
    head: str
    doc: str
    unit: Unit
    weight: int
    vdev: Callable[[Change, Change], Value]
    adi: Callable[[Change], Value] | None = None


_OWN_ERRORS: Final = ("errors", "dma_refused")
_ADI_ERRORS: Final = ("refused", "lost")

COLUMNS: Final = (
    Column("reads_per_s", "READ/s", "reads that came by message", Unit.RATE, 9,
           lambda own, _: own.rate("reads")),
    Column("writes_per_s", "WRITE/s", "writes that came by message", Unit.RATE, 9,
           lambda own, _: own.rate("writes")),
    Column("message_p50_ns", "MSG P50", "median time to answer an access", Unit.TIME, 6,
           lambda own, _: own.times("read_ns", "write_ns").percentile(0.5)),
    Column("message_p99_ns", "MSG P99", "what 99 of 100 accesses did not exceed", Unit.TIME, 5,
           lambda own, _: own.times("read_ns", "write_ns").percentile(0.99)),
    Column("message_share", "MSG %", "the time in which its messages were being answered",
           Unit.SHARE, 7, lambda own, _: own.share("read_ns", "write_ns")),
    Column("units_per_s", "WORK/s", "units of work on the direct path, in general bytes",
           Unit.BYTES, 9, lambda _, direct: direct.rate("units"), lambda adi: adi.rate("units")),
    Column("turns_per_s", "TURN/s", "turns on the sweep", Unit.RATE, 1,
           lambda _, direct: direct.times("turn_ns").count / direct.seconds,
           lambda adi: adi.times("turn_ns").count / adi.seconds),
    Column("turn_p50_ns", "TURN P50", "median time until a turn is over", Unit.TIME, 4,
           lambda _, direct: direct.times("turn_ns").percentile(0.5),
           lambda adi: adi.times("turn_ns").percentile(0.5)),
    Column("turn_p99_ns", "TURN P99", "what 99 of 100 turns did not exceed", Unit.TIME, 3,
           lambda _, direct: direct.times("turn_ns").percentile(0.99),
           lambda adi: adi.times("turn_ns").percentile(0.99)),
    Column("turn_share", "TURN %", "the time in which the sweep worked for it", Unit.SHARE, 7,
           lambda _, direct: direct.share("busy_ns"), lambda adi: adi.share("busy_ns")),
    Column("interrupts_per_s", "IRQ/s", "interrupts; of an ADI its messages", Unit.RATE, 8,
           lambda own, _: own.rate("interrupts"), lambda adi: adi.rate("messages")),
    Column("dma_read_bytes_per_s", "DMA RD", "guest memory read", Unit.BYTES, 6,
           lambda own, direct: own.rate("dma_read_bytes") + direct.rate("dma_read_bytes"),
           lambda adi: adi.rate("dma_read_bytes")),
    Column("dma_written_bytes_per_s", "DMA WR", "guest memory written", Unit.BYTES, 6,
           lambda own, direct: own.rate("dma_written_bytes") + direct.rate("dma_written_bytes"),
           lambda adi: adi.rate("dma_written_bytes")),
    Column("errors", "ERRORS", "failed accesses and DMA, and lost reports, since the start",
           Unit.NUMBER, 8,
           lambda own, direct: own.total(*_OWN_ERRORS) + direct.total(*_ADI_ERRORS),
           lambda adi: adi.total(*_ADI_ERRORS)),
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """A VDEV, or an ADI. ``values`` by the keys of ``COLUMNS``; None: there is none."""

    name: str
    type: str
    state: str
    values: Mapping[str, Value]
    failing: bool
    """Errors have come in the interval."""
    adis: tuple[Row, ...] = field(default=())


@dataclass(frozen=True)
class Rates:
    """All VDEVs; CPU times as parts of one CPU, ``sweeps`` by ``parent/index``."""

    seconds: float
    rows: tuple[Row, ...]
    python_cpu: float
    cpu: float
    sweeps: Mapping[str, float]


def between(before: Snapshot, now: Snapshot) -> Rates:
    """What has happened between two snapshots of one server."""
    seconds = (now.at - before.at) / NS
    process = Change(now.process, before.process, seconds)
    vdevs = {one.name: one for one in before.vdevs}
    ran = {_sweep_name(one): one.counts["cpu_ns"] for one in before.sweeps}
    sweeps = {}
    for one in now.sweeps:
        name, cpu = _sweep_name(one), {"cpu_ns": one.counts["cpu_ns"]}
        change = Change(cpu, {"cpu_ns": ran[name]} if name in ran else None, seconds)
        sweeps[name] = change.share("cpu_ns")
    return Rates(
        seconds,
        tuple(_vdev(one, vdevs.get(one.name), seconds) for one in now.vdevs),
        process.share("python_cpu_ns"),
        process.share("cpu_ns"),
        sweeps,
    )


def _sweep_name(sweep: SweepCounts) -> str:
    return f"{sweep.parent}/{sweep.index}"


def _vdev(now: VdevCounts, before: VdevCounts | None, seconds: float) -> Row:
    if before is not None:
        seconds = (now.at - before.at) / NS
    own = Change(now.counts, before.counts if before else None, seconds)
    direct = Change(now.direct, before.direct if before else None, seconds)
    adis = {adi.name: adi for adi in before.adis} if before else {}
    return Row(
        now.name,
        now.type,
        now.state,
        {column.key: column.vdev(own, direct) for column in COLUMNS},
        own.grown(*_OWN_ERRORS) + direct.grown(*_ADI_ERRORS) > 0,
        tuple(_adi(adi, adis.get(adi.name), seconds) for adi in now.adis),
    )


def _adi(now: AdiCounts, before: AdiCounts | None, seconds: float) -> Row:
    change = Change(now.counts, before.counts if before else None, seconds)
    values = {c.key: c.adi(change) if c.adi else None for c in COLUMNS}
    return Row(now.name, now.type, now.state, values, change.grown(*_ADI_ERRORS) > 0)


def ordered(rows: Sequence[Row], key: str, *, reverse: bool = False) -> list[Row]:
    """By a column, the most first, or by ``name``; those without a value last either way."""
    if key == "name":
        return sorted(rows, key=lambda row: row.name, reverse=reverse)
    sign = 1 if reverse else -1

    def place(row: Row) -> tuple[bool, float, str]:
        value = row.values[key]
        return value is None, sign * (value or 0), row.name

    return sorted(rows, key=place)
