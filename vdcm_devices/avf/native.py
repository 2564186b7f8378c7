"""The data path in C seen from Python (port.h): a switch, and a port of it for each VSI."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Any, Final

from vdcm import Adi, Report, VdcmError, services
from vdcm_devices.avf._fastpath import ffi, lib
from vdcm_devices.avf.datapath import (
    DataPath,
    Filters,
    Offloads,
    Rss,
    RxQueue,
    Statistics,
    TxQueue,
)

FASTPATH: Final[int] = lib.avf_fastpath()
"""Address of the ``vdcm_fastpath`` of a port."""

_OFFENCES: Final[dict[int, Callable[[int], str]]] = {
    lib.AVF_BAD_TAIL: lambda value: f"tail {value} is beyond its end",
    lib.AVF_BAD_RING: lambda value: f"its ring cannot be reached at {value:#x}",
    lib.AVF_BAD_BUFFER: lambda value: f"a buffer cannot be reached at {value:#x}",
    lib.AVF_BAD_TYPE: lambda value: f"descriptor {value:#018x} has a type that it must not have",
    lib.AVF_BAD_LENGTH: lambda value: f"a frame or buffer of {value} bytes",
    lib.AVF_ENDLESS: lambda value: f"{value} descriptors without the end of a frame",
    lib.AVF_BAD_SEGMENTS: lambda value: f"context {value:#018x} does not fit its frame",
    lib.AVF_BAD_OFFSETS: lambda value: f"descriptor {value:#018x} does not fit its headers",
}


class Switch:
    """The switch of one parent; ``port`` is its ``MakeDataPath``."""

    def __init__(self) -> None:
        self.native: Final = ffi.gc(lib.avf_switch_new(services()), lib.avf_switch_free)
        if self.native == ffi.NULL:
            raise VdcmError(f"a switch: {os.strerror(ffi.errno)}")

    def port(self, adi: Adi) -> DataPath:
        """A port for an ADI, whose path runs it."""
        port = Port(self)
        adi.path.queue(FASTPATH, port.address, doorbells=True, keep=port)
        return port


class Port:
    """The data path of one VSI."""

    def __init__(self, switch: Switch) -> None:
        self._switch: Final = switch  # is there as long as its ports
        self._native = lib.avf_port_new(switch.native)
        if self._native == ffi.NULL:
            raise MemoryError
        self._pages: object = None
        self._filters = Filters(bytes(6))
        self._offloads = Offloads()
        self._counted = Statistics()
        self.capture_dropped = 0

    @property
    def address(self) -> int:
        return int(ffi.cast("uintptr_t", self._native))

    def attach(self, pages: memoryview) -> None:
        self._pages = ffi.from_buffer(pages, require_writable=True)
        lib.avf_pages(self._native, int(ffi.cast("uintptr_t", self._pages)))

    def configure_tx(self, queue: TxQueue) -> None:
        self._configure(queue, True, {})

    def configure_rx(self, queue: RxQueue) -> None:
        self._configure(queue, False, {"buffer": queue.buffer_size, "max_frame": queue.max_frame})

    def _configure(self, queue: TxQueue | RxQueue, transmit: bool, more: dict[str, int]) -> None:
        message = -1 if queue.message is None else queue.message
        settings = {
            "address": queue.address,
            "length": queue.length,
            "message": message,
            "itr": queue.itr,
            **more,
        }
        native = ffi.new("avf_queue_settings *", settings)
        _check(lib.avf_configure(self._native, transmit, queue.index, native), f"{queue}")

    def enable(self, tx: int, rx: int) -> None:
        _check(lib.avf_enable(self._native, tx, rx), f"queues {tx:#x} and {rx:#x}")

    def disable(self, tx: int, rx: int) -> None:
        lib.avf_disable(self._native, tx, rx)

    def set_filters(self, filters: Filters) -> None:
        self._filters = filters
        self._apply()

    def set_offloads(self, offloads: Offloads) -> None:
        self._offloads = offloads
        self._apply()

    def _apply(self) -> None:
        filters, offloads = self._filters, self._offloads
        native = ffi.new(
            "avf_filters *",
            {
                "mac": list(filters.mac),
                "n_addresses": len(filters.addresses),
                "every_vlan": filters.vlans is None,
                "all_unicast": filters.all_unicast,
                "all_multicast": filters.all_multicast,
                "check_source": filters.check_source,
                "learn": filters.learn,
                "strip": offloads.strip,
                "insert": offloads.insert,
            },
        )
        for index, address in enumerate(sorted(filters.addresses)[: lib.AVF_ADDRESSES]):
            ffi.memmove(native.addresses[index], address, len(address))
        for vlan in filters.vlans or ():
            native.vlans[vlan // 8] |= 1 << vlan % 8
        _check(lib.avf_filter(self._native, native), "its filters")

    def set_rss(self, rss: Rss) -> None:
        _check(lib.avf_rss(self._native, rss.key, rss.table, rss.types), "RSS")

    def set_link(self, up: bool) -> None:
        lib.avf_link(self._native, up)

    def learnt(self) -> dict[bytes, float]:
        if self._native is None:
            return {}
        found = ffi.new("avf_learnt[]", lib.AVF_LEARNT)
        count = lib.avf_list_learnt(self._native, found)
        return {bytes(one.mac[0:6]): one.age / 1e9 for one in found[0:count]}

    def statistics(self) -> Statistics:
        if self._native is not None:
            found = ffi.new("avf_counters *")
            lib.avf_count(self._native, found)
            for name in vars(self._counted):
                setattr(self._counted, name, int(getattr(found, name)))
        return self._counted

    def set_capture(self, on: bool) -> None:
        if self._native is not None:
            _check(lib.avf_capture_set(self._native, on), "a capture")

    def captured(self) -> bytes:
        if self._native is None:
            return b""
        found, dropped = ffi.new("uint8_t[]", 1 << 16), ffi.new("uint64_t *")
        length = lib.avf_capture_take(self._native, found, 1 << 16, dropped)
        self.capture_dropped = int(dropped[0])
        return bytes(ffi.buffer(found, length))

    def explain(self, report: Report) -> str:
        found: Any = ffi.from_buffer("avf_offence *", report.data)
        which = "transmit" if found.transmit else "receive"
        error = f" ({os.strerror(-found.error)})" if found.error else ""
        return f"{which} queue {found.queue}: {_OFFENCES[report.code](int(found.value))}{error}"

    def reset(self) -> None:
        lib.avf_reset(self._native)

    def close(self) -> None:
        """The sweep has let go of it. Twice is harmless."""
        if self._native is not None:
            self.statistics()
            lib.avf_port_free(self._native)
            self._native = None
            self._pages = None


def _check(result: int, what: str) -> None:
    if result == -errno.ENOMEM:
        raise MemoryError
    if result < 0:
        raise VdcmError(f"the switch does not take {what}: {os.strerror(-result)}")
