"""Guest memory as it is recorded, or as a record has it: what is read of it, and what is written.

Python reads and writes it as ever (``TapedMemory``). C is given pages of ours in place of the
guest's (``Pages``): with what the guest had there when a step first touched them. What the step has
changed in them is written to the guest afterwards, so that a completion comes after its data.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, Protocol

from vdcm.errors import DmaError
from vdcm.pasid import Page
from vdcm.transport import DmaRange

WORD: Final = 8
WHOLE: Final = 64
"""Bytes up to which a change is written word by word, the first last: a completion record."""
SPARE: Final = 64


class Backing(Protocol):
    """Where memory comes from: the guest, or a record. All raise DmaError as GuestMemory does."""

    @property
    def native(self) -> Any:
        """Of an address space in C, for the domain to be attached to."""

    @property
    def ranges(self) -> list[DmaRange]: ...
    def read(self, iova: int, length: int) -> bytes: ...
    def write(self, iova: int, data: bytes) -> None: ...
    def page(self, address: int, *, write: bool) -> bytes:
        """What is in a page that C touches."""

    def put(self, iova: int, data: bytes) -> None:
        """C has written this."""


class Pages:
    """The pages that C has touched in this step (pasid.PageSource)."""

    def __init__(self) -> None:
        self.backing: Backing | None = None
        self.written = 0
        """Pieces that have been."""
        self._pages: dict[int, tuple[Page, bytes]] = {}
        self._changed: dict[int, None] = {}  # those that C may write, the last it asked for last
        self._spare: list[Page] = []

    def reach(self, address: int, *, write: bool) -> Page:
        if self.backing is None:
            raise DmaError("no client is connected, so there is no guest memory")
        if address not in self._pages or (write and address not in self._changed):
            data = self.backing.page(address, write=write)
            if address not in self._pages:
                page = self._spare.pop() if self._spare else Page()
                page.data[:] = data
                self._pages[address] = page, data
        if write:
            self._changed.pop(address, None)
            self._changed[address] = None
        return self._pages[address][0]

    def flush(self) -> None:
        """The step is over: write what it has changed, and forget the pages."""
        while self._pages:
            pages, self._pages = self._pages, {}
            changed, self._changed = self._changed, {}
            for address in changed:
                page, before = pages[address]
                after = page.data[:]
                if after != before and self.backing is not None:
                    for begin, end in _changes(before, after):
                        self.written += 1
                        self.backing.put(address + begin, after[begin:end])
            self._spare += [page for page, _ in pages.values()][: SPARE - len(self._spare)]


def _changes(before: bytes, after: bytes) -> Iterator[tuple[int, int]]:
    """Where they differ, in whole words: long pieces first, then single words from the end on.

    The word that says that the others are valid is the first of what it is about (DSA), or is
    stored together with them (NVMe).
    """
    words = [
        at for at in range(0, len(after), WORD) if before[at : at + WORD] != after[at : at + WORD]
    ]
    runs: list[list[int]] = []
    for at in words:
        if runs and runs[-1][1] == at:
            runs[-1][1] = at + WORD
        else:
            runs.append([at, at + WORD])
    for begin, end in runs:
        if end - begin > WHOLE:
            yield begin, end
    for begin, end in reversed(runs):
        if end - begin <= WHOLE:
            for at in range(end - WORD, begin - 1, -WORD):
                yield at, at + WORD


class TapedMemory:
    """A client's memory for Python (as transport.GuestMemory), beside ``pages`` for C."""

    def __init__(self, backing: Backing, pages: Pages) -> None:
        self._backing: Final = backing
        self._pages: Final = pages
        self.native: Final = backing.native

    @property
    def ranges(self) -> list[DmaRange]:
        return self._backing.ranges

    def read(self, iova: int, length: int) -> bytes:
        self._pages.flush()
        return self._backing.read(iova, length)

    def write(self, iova: int, data: bytes | bytearray | memoryview) -> None:
        self._pages.flush()
        self._backing.write(iova, bytes(memoryview(data).cast("B")))
