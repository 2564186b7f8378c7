"""Asynchronous events: requests that wait for them, and events that wait for requests (NVM Express
1.4, 5.2)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from vdcm_devices.nvme.codes import EventType, LogPage, NvmeError, Status

MOST_REQUESTS: Final = 4
"""That wait at a time; AERL says one less."""

Complete = Callable[[int, Status, int], None]
"""Takes command identifier, status and dword 0 of the completion."""


class Events:
    """An event's type is masked from when it was told until its log page is read (5.2)."""

    def __init__(self, complete: Complete) -> None:
        self._complete: Final = complete
        self._requests: list[int] = []
        self._events: dict[tuple[EventType, int], LogPage] = {}
        self._masked: dict[EventType, LogPage] = {}

    def request(self, cid: int) -> None:
        """An Asynchronous Event Request; NvmeError if too many wait."""
        if len(self._requests) >= MOST_REQUESTS:
            raise NvmeError(Status.EVENT_LIMIT_EXCEEDED)
        self._requests.append(cid)
        self._tell()

    def post(self, kind: EventType, information: int, log: LogPage) -> None:
        """Something has happened; what waits to be told already is not told twice."""
        self._events.setdefault((kind, information), log)
        self._tell()

    def read(self, log: LogPage) -> None:
        """The host has read ``log`` without Retain Asynchronous Event."""
        for kind in [kind for kind, page in self._masked.items() if page is log]:
            del self._masked[kind]
        # Those that wait are told of in the page that has just been read.
        self._events = {key: page for key, page in self._events.items() if page is not log}
        self._tell()

    def abort(self, cid: int) -> bool:
        """End a request that waits; False if none of that identifier does."""
        if cid not in self._requests:
            return False
        self._requests.remove(cid)
        self._complete(cid, Status.ABORT_REQUESTED, 0)
        return True

    def reset(self) -> None:
        """The controller is reset: there is no request and no event."""
        self._requests.clear()
        self._events.clear()
        self._masked.clear()

    @property
    def waiting(self) -> int:
        """Events that nobody has been told of."""
        return len(self._events)

    def _tell(self) -> None:
        for (kind, information), log in list(self._events.items()):
            if not self._requests:
                return
            if kind in self._masked:
                continue
            del self._events[kind, information]
            self._masked[kind] = log
            cid = self._requests.pop(0)
            self._complete(cid, Status.SUCCESS, kind | information << 8 | log << 16)
