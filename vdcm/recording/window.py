"""One thing that happened to a recorded device, what it did then, and what its model does now."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from vdcm.errors import DmaError
from vdcm.protocol import Irq, Region
from vdcm.recording.format import Kind, Record
from vdcm.registers import RegisterSpace
from vdcm.registers.declaration import as_text
from vdcm.transport import IrqAction
from vdcm.vdev import Vdev

RECENT: Final = 8
"""Of what has happened before a difference, shown with it."""
SHOWN: Final = 32
"""Bytes of what was written to memory that are shown."""
_ACCESSES: Final = (Kind.READ, Kind.WRITE)
_NOTHING: Final = "nothing"


@dataclass(frozen=True)
class Difference:
    """The first one. ``number``: of the record; ``happened``: what happens to the device there;
    ``fields``: of registers that were read, each with both values."""

    number: int
    seconds: float
    happened: str
    what: str
    recorded: str
    now: str
    fields: Sequence[str]
    before: Sequence[str]

    def to_json(self) -> dict[str, Any]:
        """JSON-able."""
        return {name: _plain(value) for name, value in vars(self).items()}

    def __str__(self) -> str:
        lines = [
            f"{self.what} differs at record {self.number}, {self.seconds:.6f} s",
            f"  happens   {self.happened}",
            f"  recorded  {self.recorded}",
            f"  now       {self.now}",
            *(f"  field     {field}" for field in self.fields),
        ]
        if self.before:
            lines += ["before that:", *(f"  {line}" for line in self.before)]
        return "\n".join(lines)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


class Memory:
    """What pages held when they were last recorded, as far as later records refer to that."""

    def __init__(self) -> None:
        self._pages: dict[int, bytes] = {}

    def resolve(self, record: Record) -> bytes | None:
        """What a page record stands for; None: it could not be reached. ValueError for one that
        refers to nothing."""
        if record.kind is Kind.NO_PAGE:
            return None
        address: int = record["address"]
        if record.kind is Kind.PAGE:
            self._pages[address] = record["data"]
        elif address not in self._pages:
            raise ValueError(f"it refers to a page at {address:#x} that is not in it")
        return self._pages[address]

    def forget(self) -> None:
        self._pages.clear()


class Window:
    """Record ``number``, ``stimulus``, and the ``effects`` behind it; ``before``: what came before.

    Raises ValueError for effects that cannot be. What differs first is ``difference``.
    """

    def __init__(
        self,
        number: int,
        stimulus: Record,
        effects: Iterable[Record],
        before: Sequence[tuple[int, Record]],
        memory: Memory,
        page_size: int,
    ) -> None:
        self.number: Final = number
        self.stimulus: Final = stimulus
        self.problem: tuple[str, str, str, Sequence[str]] | None = None
        self._before: Final = before
        self._answer: Record | None = None
        self._written: deque[Record] = deque()
        self._raised: deque[Record] = deque()
        self._read: list[Record] = []
        self._refused: dict[tuple[int, int, bool], str] = {}
        self._pages: dict[int, deque[bytes | None]] = {}
        self.counted: Final = {"dma_writes": 0, "interrupts": 0}
        for effect in effects:
            kind = effect.kind
            if kind in (Kind.ANSWER, Kind.FAILED):
                self._answer = effect
            elif kind is Kind.DMA_WRITE:
                self._written.append(effect)
            elif kind in (Kind.INTERRUPT, Kind.LINE):
                self._raised.append(effect)
            elif kind is Kind.DMA_READ:
                self._read.append(effect)
            elif kind is Kind.DMA_REFUSED:
                key = effect["iova"], effect["size"], bool(effect["write"])
                self._refused[key] = effect["reason"]
            elif kind is Kind.FORGET:
                memory.forget()
            else:
                data = memory.resolve(effect)
                if data is not None and len(data) != page_size:
                    raise ValueError(f"a page of {len(data)} bytes, they have {page_size} here")
                self._pages.setdefault(effect["address"], deque()).append(data)

    # What the guest's memory had.

    def read(self, iova: int, size: int) -> bytes:
        """What Python reads."""
        if (iova, size, False) in self._refused:
            raise DmaError(self._refused[iova, size, False])
        for i, record in enumerate(self._read):
            if record["iova"] == iova and len(record["data"]) == size:
                del self._read[i]
                self._read.append(record)  # if it is read again, and nothing else was recorded
                found: bytes = record["data"]
                return found
        for record in self._read:
            begin = iova - record["iova"]
            if 0 <= begin <= len(record["data"]) - size:
                return bytes(record["data"][begin : begin + size])
        self._differs("what is read of memory", "not read", f"{size} bytes at {iova:#x} are read")
        raise DmaError(f"{size} bytes at {iova:#x} are not in the record")

    def page(self, address: int) -> bytes:
        """What C reads, or is about to write to."""
        there = self._pages.get(address)
        if there is None:
            self._differs("what is reached of memory", "not reached", f"the page at {address:#x}")
            raise DmaError(f"the page at {address:#x} is not in the record")
        data = there.popleft() if len(there) > 1 else there[0]
        if data is None:
            raise DmaError(f"the page at {address:#x} could not be reached")
        return data

    # What the model does.

    def write(self, iova: int, data: bytes) -> None:
        """It writes to memory."""
        if (iova, len(data), True) in self._refused:
            raise DmaError(self._refused[iova, len(data), True])
        self.put(iova, data)

    def put(self, iova: int, data: bytes) -> None:
        self.counted["dma_writes"] += 1
        self._did("what is written to memory", self._written, Record(Kind.DMA_WRITE, (iova, data)))

    def signal(self, found: Record) -> None:
        self.counted["interrupts"] += 1
        self._did("an interrupt", self._raised, found)

    def _did(self, what: str, recorded: deque[Record], found: Record) -> None:
        wanted = recorded.popleft() if recorded else None
        if wanted != found:
            self._differs(what, _effect(wanted, found), _effect(found, wanted))

    def _differs(self, what: str, recorded: str, now: str, fields: Sequence[str] = ()) -> None:
        if self.problem is None:
            self.problem = what, recorded, now, fields

    def answered(self, found: Record | None, vdev: Vdev) -> None:
        """It has answered; None: it was not asked for anything."""
        wanted = self._answer
        if wanted == found:
            return
        fields: list[str] = []
        if wanted is not None and found is not None and wanted.kind is found.kind is Kind.ANSWER:
            fields = _changed_fields(vdev, self.stimulus, wanted["value"], found["value"])
        self._differs("the answer", self._said(wanted, vdev), self._said(found, vdev), fields)

    def _said(self, answer: Record | None, vdev: Vdev) -> str:
        if answer is None:
            return "it is done" if self.stimulus.kind is not Kind.READ else _NOTHING
        if answer.kind is Kind.FAILED:
            return f"it fails: {answer['error']}"
        return _decoded(vdev, self.stimulus, answer["value"])

    def left(self) -> None:
        """It does nothing more: what was recorded beyond that is missing."""
        for what, recorded in (
            ("an interrupt", self._raised),
            ("what is written to memory", self._written),
        ):
            if recorded:
                self._differs(what, _effect(recorded[0], None), _NOTHING)

    def difference(self, vdev: Vdev) -> Difference | None:
        """The first one, for people."""
        if self.problem is None:
            return None
        what, recorded, now, fields = self.problem
        return Difference(
            self.number,
            self.stimulus["time"] / 1e9,
            happened(vdev, self.stimulus),
            what,
            recorded,
            now,
            tuple(fields),
            tuple(
                f"record {number}, {one['time'] / 1e9:.6f} s: {happened(vdev, one)}"
                for number, one in self._before
            ),
        )


# For people.


def _effect(one: Record | None, other: Record | None) -> str:
    if one is None:
        return _NOTHING
    if one.kind is Kind.LINE:
        return f"INTx {'asserted' if one['asserted'] else 'deasserted'}"
    if one.kind is Kind.INTERRUPT:
        return f"{one['irq'] or 'interrupt'} {one['vector']} {one['outcome']}"
    data, at = one["data"], 0
    if other is not None and other["iova"] == one["iova"]:
        pairs = zip(data, other["data"], strict=False)
        differ = (i for i, (a, b) in enumerate(pairs) if a != b)
        at = next(differ, min(len(data), len(other["data"]))) & ~7
    some = data[at : at + SHOWN]
    more = "..." if at + SHOWN < len(data) else ""
    where = f" from byte {at:#x} on" if at else ""
    return f"{len(data)} bytes at {one['iova']:#x}{where}: {some.hex(' ', 4)}{more}"


def happened(vdev: Vdev, one: Record) -> str:
    """What happens to the device."""
    kind = one.kind
    if kind in _ACCESSES:
        place = _space(vdev, one["region"]).where(one["offset"], one["width"])
        names = ", ".join(part.name for part in place.parts) or "no register"
        where = f"{place.space}+{place.offset:#04x} {names}"
        if kind is Kind.READ:
            return f"the guest reads {where}"
        return f"the guest writes {where} = {_decoded(vdev, one, one['value'])}"
    if kind is Kind.VECTORS:
        irq, action = Irq(one["irq"]).name, IrqAction(one["action"]).name.lower()
        return f"{irq} {one['first']}..{one['first'] + one['count'] - 1} {action} by the client"
    if kind is Kind.MEMORY:
        what = "maps" if one["mapped"] else "unmaps"
        return f"the client {what} {one['iova']:#x}+{one['size']:#x}"
    if kind is Kind.HOST:
        return f"the host: {one['what']} {one['values']}"
    return {
        Kind.ATTACH: "a client attaches",
        Kind.DETACH: "the client detaches",
        Kind.RESET: "the client resets the function",
        Kind.LOOP: "the device model goes on by itself",
        Kind.END: "nothing more",
    }.get(kind, kind.name.lower())


def _decoded(vdev: Vdev, one: Record, value: int) -> str:
    space = _space(vdev, one["region"])
    return space.decoded(space.where(one["offset"], one["width"]), value)


def _space(vdev: Vdev, region: int) -> RegisterSpace:
    return vdev.config.space if region == Region.CONFIG else vdev.bars[region].space


def _seen(vdev: Vdev, one: Record, value: int) -> dict[str, Any]:
    """Its fields by name."""
    place = _space(vdev, one["region"]).where(one["offset"], one["width"])
    return {
        f"{part.name}.{name}": shown for part in place.parts for name, shown in part.fields(value)
    }


def _changed_fields(vdev: Vdev, one: Record, recorded: int, now: int) -> list[str]:
    before, after = _seen(vdev, one, recorded), _seen(vdev, one, now)
    return [
        f"{name}: {as_text(before.get(name, 0))} recorded, {as_text(after.get(name, 0))} now"
        for name in dict.fromkeys([*before, *after])
        if before.get(name, 0) != after.get(name, 0)
    ]
