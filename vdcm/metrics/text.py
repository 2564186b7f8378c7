"""A scrape: the text of all families, made in pieces."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Final

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from vdcm import snapshot
from vdcm.manager import Manager
from vdcm.metrics.families import of_process, of_vdevs

TOGETHER: Final = 4
"""VDEVs whose counts are written at once: for fewer, families would cost more than samples."""


class _Just(Collector):
    def __init__(self, family: Metric) -> None:
        self._family = family

    def collect(self) -> Iterable[Metric]:
        yield self._family


class _Pause:
    """Makes way for the VDEVs when it has been long enough."""

    def __init__(self) -> None:
        self._since = time.monotonic_ns()

    async def __call__(self) -> None:
        if time.monotonic_ns() - self._since > snapshot.SLICE_NS:
            await asyncio.sleep(0)
            self._since = time.monotonic_ns()


async def scrape(manager: Manager) -> bytes:
    """What there is to know, in Prometheus' text format, version 0.0.4."""
    pause = _Pause()
    texts: dict[str, list[bytes]] = {}

    async def write(families: Sequence[Metric]) -> None:
        for family in families:
            head, text = _split(generate_latest(_Just(family)))
            texts.setdefault(family.name, [head]).append(text)
            await pause()

    await write(of_process(snapshot.sweeps(manager), snapshot.process(), dict(manager.states())))
    await write(of_vdevs([]))  # whether there are any or not, there are their names
    vdevs = snapshot.vdevs(manager)
    while some := list(islice(vdevs, TOGETHER)):
        await pause()
        found = of_vdevs(some)
        await pause()
        await write(found)
    await write(list(_PROCESS.collect()))
    return b"".join(part for parts in texts.values() for part in parts)


def _split(text: bytes) -> tuple[bytes, bytes]:
    """A family's HELP and TYPE, and its samples."""
    end = text.index(b"\n", text.index(b"\n") + 1) + 1
    return text[:end], text[end:]


_PROCESS: Final = ProcessCollector(registry=CollectorRegistry())
"""Memory, descriptors and CPU time, as all programs have them that use the library."""
