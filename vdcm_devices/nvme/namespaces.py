"""The namespaces of a controller: each is a slice of the parent's store."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from vdcm_devices.nvme.codes import ALL_NAMESPACES, NvmeError, Status
from vdcm_devices.nvme.command import Command
from vdcm_devices.nvme.identify import BLOCK_SHIFTS, NamespaceFacts
from vdcm_devices.nvme.sizes import say_size
from vdcm_devices.nvme.slices import Slice
from vdcm_devices.nvme.storage import Store

if TYPE_CHECKING:
    from vdcm_devices.nvme.vdev import NvmeVdev

NSID, CDW10 = 4, 40
PATIENCE: Final = 5000
"""Milliseconds that Format waits for the commands before it."""
ERASES: Final = (0, 1)
"""Secure Erase Settings that there are: none, user data. Both leave zeros (5.23)."""

Done = Callable[[Status], None]


@dataclass
class Namespace:
    """Namespace ``nsid`` is ``slice``; it is ``ready`` unless it is being formatted, or that could
    not be finished: then there is none, until it is formatted again."""

    nsid: int
    slice: Slice
    ready: bool = False
    formatting: bool = False


class Namespaces(Mapping[int, Namespace]):
    """By namespace identifier, 1 and up."""

    def __init__(self, host: NvmeVdev, store: Store, slices: Sequence[Slice]) -> None:
        self._host: Final = host
        self._store: Final = store
        self._all: Final = {one.number: Namespace(one.number, one) for one in slices}
        self._closed = False
        for namespace in self._all.values():
            if namespace.slice.erase:  # it was being formatted when the server ended
                namespace.formatting = True
                self._erase(namespace, lambda _status: None)
            else:
                self._show(namespace)

    def __getitem__(self, nsid: int) -> Namespace:
        return self._all[nsid]

    def __iter__(self) -> Iterator[int]:
        return iter(self._all)

    def __len__(self) -> int:
        return len(self._all)

    def facts(self, nsid: int) -> NamespaceFacts:
        """What Identify says of one."""
        one = self._all[nsid].slice
        return NamespaceFacts(
            UUID(one.uuid), one.bytes >> one.block_shift, one.block_shift, self._host.read_only
        )

    # The data path's view.

    def _show(self, namespace: Namespace) -> bool:
        one = namespace.slice
        shown = self._host.native.set_namespace(
            namespace.nsid,
            self._store.native,
            self._store.start + one.offset,
            one.bytes >> one.block_shift,
            one.block_shift,
            read_only=self._host.read_only,
        )
        namespace.ready = namespace.ready or shown
        return shown

    def _hide(self, namespace: Namespace) -> bool:
        shift = namespace.slice.block_shift
        return self._host.native.set_namespace(
            namespace.nsid, self._store.native, 0, 0, shift, read_only=False
        )

    def refresh(self, then: Callable[[], None]) -> None:
        """Whether they may be written has changed; ``then`` once the data path knows."""
        self._change(
            lambda: all(self._show(one) for one in self._all.values() if one.ready),
            lambda _done: then(),
        )

    def _change(
        self, change: Callable[[], bool], then: Callable[[bool], None], patience: int = PATIENCE
    ) -> None:
        """Do what needs the queues still and no command under way; ``then`` hears whether it is
        done: guests that never let go of a command are not waited for for ever."""
        if self._closed:
            return
        with self._host.io_queues.still():
            done = change()
        if done or patience == 0:
            then(done)
            return
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            then(False)
            return
        loop.call_later(0.001, self._change, change, then, patience - 1)

    # Format NVM (5.23).

    def format(self, command: Command, done: Done) -> None:
        """Make one or all of them zeros, with the LBA format that is asked for; ``done`` hears how
        it went. NvmeError if it cannot begin."""
        if command.nsid == ALL_NAMESPACES:
            chosen = list(self._all.values())
        elif command.nsid in self._all:
            chosen = [self._all[command.nsid]]
        else:
            raise NvmeError(Status.INVALID_NAMESPACE, NSID)
        word = command.cdw10
        if word & 0xF >= len(BLOCK_SHIFTS) or word >> 4 & 0xF:  # metadata and protection: none
            raise NvmeError(Status.INVALID_FORMAT, CDW10)
        if word >> 9 & 7 not in ERASES:
            raise NvmeError(Status.INVALID_FIELD, CDW10 + 1, 1)
        if self._host.read_only:
            raise NvmeError(Status.WRITE_PROTECTED, NSID)
        if any(namespace.formatting for namespace in chosen):
            raise NvmeError(Status.NAMESPACE_NOT_READY, NSID)
        shift = BLOCK_SHIFTS[word & 0xF]
        left = len(chosen)
        worst = Status.SUCCESS

        def one_done(status: Status) -> None:
            nonlocal left, worst
            left -= 1
            worst = max(worst, status)
            if not left:
                done(worst)

        for namespace in chosen:
            namespace.ready, namespace.formatting = False, True
            self._format(namespace, shift, one_done)

    def _format(self, namespace: Namespace, shift: int, done: Done) -> None:
        one = namespace.slice
        before = one.block_shift, one.erase

        def hidden(gone: bool) -> None:
            if gone:
                one.block_shift, one.erase = shift, True
                self._save(saved)
            else:
                as_before()

        def saved(worked: bool) -> None:
            if worked:
                self._erase(namespace, done)
                return
            one.block_shift, one.erase = before
            self._store.save()  # another VDEV's may have brought there what is not so
            as_before()

        def as_before() -> None:
            namespace.formatting = False
            if not one.erase:
                self._change(lambda: self._show(namespace), lambda _: None)
            done(Status.INTERNAL_ERROR)

        self._change(lambda: self._hide(namespace), hidden)

    def _erase(self, namespace: Namespace, done: Done) -> None:
        def erased(worked: bool) -> None:
            if self._closed:
                return
            if worked:
                namespace.slice.erase = False
                self._save(saved)
            else:
                failed()

        def saved(worked: bool) -> None:
            if not worked:
                namespace.slice.erase = True
                failed()
                return
            namespace.formatting = False
            self._change(
                lambda: self._show(namespace),
                lambda shown: done(Status.SUCCESS if shown else Status.INTERNAL_ERROR),
            )

        def failed() -> None:
            # It stays away: what is in it is neither the old nor, after a restart, what is new.
            namespace.formatting = False
            done(Status.INTERNAL_ERROR)

        self._store.erase(namespace.slice, erased)

    def _save(self, done: Callable[[bool], None]) -> None:
        """Of the table; ``done`` hears whether it is on the disk."""

        def ended(error: Exception | None) -> None:
            if error is not None:
                self._host.say(str(error))
            if not self._closed:
                done(error is None)

        self._store.save(ended)

    def close(self) -> None:
        """What is being formatted is so when the VDEV is made next."""
        self._closed = True

    def describe(self) -> list[dict[str, Any]]:
        """JSON-able."""
        return [
            {
                "nsid": namespace.nsid,
                "room": say_size(namespace.slice.bytes),
                "uuid": namespace.slice.uuid,
                "blocks": namespace.slice.bytes >> namespace.slice.block_shift,
                "block_size": 1 << namespace.slice.block_shift,
                "offset": namespace.slice.offset,
                "ready": namespace.ready,
            }
            for namespace in self._all.values()
        ]
