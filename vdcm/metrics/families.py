"""Counts as families of metrics, by Prometheus' conventions: seconds, bytes, ``_total``.

Labels are bounded by what is defined: ``vdev`` is a VDEV's name, ``adi`` the slot of an ADI in it
(which a later ADI takes over), ``parent`` and ``sweep`` name a thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import version
from typing import Final

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
    UnknownMetricFamily,
)

from vdcm.counters import (
    ADI,
    EDGES,
    PROCESS,
    SWEEP,
    VDEV,
    Count,
    Counter,
    Counts,
    Kind,
    Latencies,
)
from vdcm.snapshot import SweepCounts, VdevCounts

NS: Final = 1e9
BOUNDS: Final = tuple(1024 << n for n in range(0, 21, 2))
"""ns of a histogram's buckets: 1 µs to 1 s, each four times the one before."""
_ENDS: Final = [(EDGES.index(bound), str(bound / NS)) for bound in BOUNDS]
_TYPED: Final = ["vdev", "type"]
_OWN: Final = ["vdev", "adi", "counter"]
_TIMELESS: Final = tuple(one for one in ADI if one.kind is not Kind.TIMES)


def metric_name(scope: str, counter: Counter) -> str:
    """Without the suffix that its kind adds."""
    name = counter.name
    if name.endswith("_ns"):
        name = f"{name.removesuffix('_ns')}_seconds"
    return f"vdcm_{scope}_{name}"


def of_vdevs(vdevs: Sequence[VdevCounts]) -> list[Metric]:
    """All families of some VDEVs and of their ADIs."""
    info = GaugeMetricFamily("vdcm_vdev_info", "1, of a VDEV that is started.", labels=_TYPED)
    attached = GaugeMetricFamily("vdcm_vdev_attached", "1 while it has a client.", labels=["vdev"])
    own = UnknownMetricFamily("vdcm_adi_model", "What the model counts of an ADI.", labels=_OWN)
    for one in vdevs:
        info.add_metric([one.name, one.type], 1)
        attached.add_metric([one.name], int(one.state == "attached"))
        for adi in one.adis:
            for name, value in adi.own.items():
                own.add_metric([one.name, str(adi.slot), name], value)
    adis = [([one.name, str(adi.slot)], adi.counts) for one in vdevs for adi in one.adis]
    return [
        info,
        attached,
        *_families("vdev", VDEV, ["vdev"], [([one.name], one.counts) for one in vdevs]),
        *_families("direct", ADI, ["vdev"], [([one.name], one.direct) for one in vdevs]),
        *_families("adi", _TIMELESS, ["vdev", "adi"], adis),
        own,
    ]


def of_process(
    sweeps: Sequence[SweepCounts], process: Counts, states: Mapping[str, int]
) -> list[Metric]:
    """The families of the server: its threads, and how many VDEVs are in which state."""
    build = GaugeMetricFamily("vdcm_build_info", "1, of this version.", labels=["version"])
    build.add_metric([version("vdcm")], 1)
    vdevs = GaugeMetricFamily("vdcm_vdevs", "VDEVs that are defined or started.", labels=["state"])
    for state, number in states.items():
        vdevs.add_metric([state], number)
    labelled = [([one.parent, str(one.index)], one.counts) for one in sweeps]
    return [
        build,
        vdevs,
        *_families("sweep", SWEEP, ["parent", "sweep"], labelled),
        *_families("process", PROCESS, [], [([], process)]),
    ]


def _families(
    scope: str,
    counters: Iterable[Counter],
    labels: Sequence[str],
    counted: Sequence[tuple[Sequence[str], Counts]],
) -> list[Metric]:
    return [_MAKE[one.kind](metric_name(scope, one), one, labels, counted) for one in counters]


_Counted = Sequence[tuple[Sequence[str], Counts]]


def _counter(name: str, one: Counter, labels: Sequence[str], counted: _Counted) -> Metric:
    family = CounterMetricFamily(name, one.doc, labels=labels)
    for values, counts in counted:
        family.add_metric(values, _number(one, counts[one.name]))
    return family


def _gauge(name: str, one: Counter, labels: Sequence[str], counted: _Counted) -> Metric:
    family = GaugeMetricFamily(name, one.doc, labels=labels)
    for values, counts in counted:
        family.add_metric(values, _number(one, counts[one.name]))
    return family


def _histogram(name: str, one: Counter, labels: Sequence[str], counted: _Counted) -> Metric:
    family = HistogramMetricFamily(name, one.doc, labels=labels)
    for values, counts in counted:
        times = counts[one.name]
        assert isinstance(times, Latencies)
        family.add_metric(values, _buckets(times), times.ns / NS)
    return family


_MAKE: Final[Mapping[Kind, Callable[..., Metric]]] = {
    Kind.TOTAL: _counter,
    Kind.NOW: _gauge,
    Kind.TIMES: _histogram,
}


def _number(one: Counter, value: Count) -> float:
    assert isinstance(value, int)
    return value / NS if one.name.endswith("_ns") else value


def _buckets(times: Latencies) -> list[tuple[str, float]]:
    """How many did not exceed each bound, and all of them."""
    found: list[tuple[str, float]] = []
    below = before = 0
    for end, bound in _ENDS:
        below += sum(times.counts[before:end])
        before = end
        found.append((bound, below))
    return [*found, ("+Inf", below + sum(times.counts[before:]))]
