"""What a server has counted so far: read in its process, and sent to others as JSON.

A snapshot of many VDEVs is taken piece by piece, so that none of them waits for it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Final, Self

from vdcm.adi import Adi, AdiState
from vdcm.counters import Count, Counts, from_json, to_json, together
from vdcm.entry import Entry, Life
from vdcm.manager import Manager

log = logging.getLogger("vdcm.snapshot")

SLICE_NS: Final = 1_000_000
"""Nanoseconds after which a snapshot makes way for the VDEVs."""


@dataclass(frozen=True)
class AdiCounts:
    """One ADI: ``counters.ADI``, and what its device model counts besides, as ``own``.

    ``slot``: of all that its VDEV has had, one at a time has it.
    """

    slot: int
    name: str
    type: str
    state: str
    counts: Counts
    own: Mapping[str, int]

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "counts": to_json(self.counts), "own": dict(self.own)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        return cls(**{**value, "counts": from_json(value["counts"])})


@dataclass(frozen=True)
class VdevCounts:
    """A VDEV that is started: ``counters.VDEV``, and ``counters.ADI`` of all ADIs that it has had.

    ``at``: when that was, in ns of the server's monotonic clock.
    """

    name: str
    type: str
    state: str
    at: int
    counts: Counts
    direct: Counts
    adis: tuple[AdiCounts, ...] = field(default=())

    def to_json(self) -> dict[str, Any]:
        return {
            **vars(self),
            "counts": to_json(self.counts),
            "direct": to_json(self.direct),
            "adis": [adi.to_json() for adi in self.adis],
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        return cls(
            **{
                **value,
                "counts": from_json(value["counts"]),
                "direct": from_json(value["direct"]),
                "adis": tuple(AdiCounts.from_json(adi) for adi in value["adis"]),
            }
        )


@dataclass(frozen=True)
class SweepCounts:
    """``counters.SWEEP`` of a parent's sweep thread ``index``."""

    parent: str
    index: int
    counts: Counts


@dataclass(frozen=True)
class Snapshot:
    """All of it. ``at``: when it was begun, as of a VDEV."""

    at: int
    vdevs: tuple[VdevCounts, ...]
    sweeps: tuple[SweepCounts, ...]
    process: Counts


def vdevs(manager: Manager, skip: int = 0) -> Iterator[VdevCounts]:
    """The VDEVs that are started, but for the first ``skip``, and for those that stop meanwhile."""
    for entry in islice(manager.started(), skip, None):
        if entry.life is Life.STARTED:
            yield _vdev(entry)


def _vdev(entry: Entry) -> VdevCounts:
    vdev = entry.running("counting")
    adis = [
        AdiCounts(
            adi.slot,
            adi.name,
            adi.type.name,
            adi.state.value,
            adi.path.counters(),
            _own(adi),
        )
        for adi in vdev.adis
        if adi.state is not AdiState.RELEASED
    ]
    return VdevCounts(
        entry.name,
        entry.definition.type,
        vdev.state.value,
        time.monotonic_ns(),
        vdev.counters(),
        together(vdev.released, *(adi.counts for adi in adis)),
        tuple(adis),
    )


def _own(adi: Adi) -> Mapping[str, int]:
    try:
        return adi.driver.on_counters(adi)
    except Exception:  # a model's own mistake: the counters of the others are wanted all the same
        log.exception("%s: the device model failed to say what it has counted", adi.name)
        return {}


def sweeps(manager: Manager) -> list[SweepCounts]:
    """The sweep threads there are."""
    return [
        SweepCounts(parent.name, index, counts)
        for parent in manager.parents.values()
        if parent.driver is not None
        for index, counts in enumerate(parent.driver.sweep_counters())
    ]


def process() -> dict[str, Count]:
    """``counters.PROCESS``; to be called by the event loop's thread."""
    return {"python_cpu_ns": time.thread_time_ns(), "cpu_ns": time.process_time_ns()}


def page(manager: Manager, skip: int = 0) -> dict[str, Any]:
    """As much of a snapshot as can be had in about ``SLICE_NS``, at least one VDEV, JSON-able.

    ``next`` is what to skip the next time, None at the end. ``at``, ``sweeps`` and ``process`` are
    there with the first.
    """
    start = time.monotonic_ns()
    found: list[dict[str, Any]] = []
    after: int | None = None
    for one in vdevs(manager, skip):
        if found and one.at - start > SLICE_NS:
            after = skip + len(found)
            break
        found.append(one.to_json())
    answer: dict[str, Any] = {"vdevs": found, "next": after}
    if skip == 0:
        answer["at"] = start
        answer["sweeps"] = [
            {**vars(sweep), "counts": to_json(sweep.counts)} for sweep in sweeps(manager)
        ]
        answer["process"] = process()
    return answer


def read(ask: Callable[[int], Mapping[str, Any]]) -> Snapshot:
    """A snapshot from its pages: ``ask`` has the ``page`` that skips so many VDEVs."""
    first = page = ask(0)
    found = list(page["vdevs"])
    while page["next"] is not None:
        page = ask(page["next"])
        found += page["vdevs"]
    return Snapshot(
        first["at"],
        tuple(VdevCounts.from_json(one) for one in found),
        tuple(
            SweepCounts(**{**one, "counts": from_json(one["counts"])}) for one in first["sweeps"]
        ),
        from_json(first["process"]),
    )
