"""One guest access as an observer sees it, decoded to registers and fields."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

from vdcm.events import Event
from vdcm.registers.declaration import Access, Register, as_text


class Part(NamedTuple):
    """A register that an access touches: ``covered`` has the bits of it that it covers, of which
    the lowest of the register is bit ``shift`` of the access (negative: it begins before it)."""

    name: str
    register: Register
    covered: int
    shift: int

    def shown(self, value: int) -> int:
        """What of the register ``value``, that of the access, shows."""
        return shifted(value, -self.shift) & self.covered

    def fields(self, value: int, *, zeros: bool = True) -> Iterator[tuple[str, int | str]]:
        """The fields that the access covers, as ``value``, that of the access, shows them; those
        that are 0 with ``zeros`` only."""
        shown = self.shown(value)
        for name, field in self.register.fields.items():
            if field.mask & self.covered == field.mask and (zeros or shown & field.mask):
                yield name, field.decode(shown)


@dataclass(frozen=True, eq=False, slots=True)
class Place:
    """What is where an access goes, the same for each access of that place and width.

    ``torn``: registers that it touches, but which are written as a whole or not at all.
    """

    kind: str
    space: str
    offset: int
    width: int
    parts: tuple[Part, ...]
    torn: tuple[str, ...]


@dataclass(slots=True)  # not frozen: that takes twice as long to make
class AccessRecord(Event):
    """One access. ``before`` and ``after``, of a write: the whole values of the place's registers,
    as they were stored and as the access rules make them; the handlers are then given ``after``."""

    place: Place
    write: bool
    value: int
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()

    @property
    def kind(self) -> str:  # type: ignore[override]
        return self.place.kind

    @property
    def registers(self) -> Sequence[str]:
        return [part.name for part in self.place.parts]

    def encoded(self) -> str:
        return _encoded(self.place, self.write, self.value, self.before, self.after)

    def __str__(self) -> str:
        place, value = self.place, self.value
        where = f"{place.space}+{place.offset:#04x}"
        if self.write:
            return f"{where} {', '.join(self._changes())} (write {value:#x})"
        seen = [
            f"{name}={as_text(shown)}"
            for part in place.parts
            for name, shown in part.fields(value, zeros=False)
        ]
        names = ", ".join(self.registers) or "no register"
        return f"{where} {names} = {value:#x} (read{': ' if seen else ''}{', '.join(seen)})"

    def _changes(self) -> Iterator[str]:
        """What becomes of each register that is written."""
        for part, before, after in zip(self.place.parts, self.before, self.after, strict=True):
            changed = _changed(part.register, before, after)
            for name, (old, new) in changed.items():
                change = f"={as_text(new)}" if old is None else f" {as_text(old)}→{as_text(new)}"
                yield f"{part.name}.{name}{change}"
            if not changed and before != after:
                yield f"{part.name} {before:#x}→{after:#x}"
            elif not changed:
                yield f"{part.name} unchanged"
        for name in self.place.torn:
            yield f"{name} ignored (not the whole register)"
        if not self.place.parts and not self.place.torn:
            yield "no register"

    def details(self) -> dict[str, Any]:
        place = self.place
        registers: list[dict[str, Any]] = []
        for i, part in enumerate(place.parts):
            one: dict[str, Any] = {"name": part.name}
            if self.write:
                before, after = self.before[i], self.after[i]
                changed = _changed(part.register, before, after)
                one |= {"before": before, "after": after, "changed": changed}
            else:
                one["fields"] = dict(part.fields(self.value, zeros=False))
            registers.append(one)
        return {
            "access": "write" if self.write else "read",
            "space": place.space,
            "offset": place.offset,
            "width": place.width,
            "value": self.value,
            "registers": registers,
            "torn": list(place.torn),
        }


@lru_cache(4096)
def _encoded(
    place: Place, write: bool, value: int, before: tuple[int, ...], after: tuple[int, ...]
) -> str:
    """Drivers do the same things again and again, and to find the words takes long."""
    return Event.encoded(AccessRecord(place, write, value, before, after))


def shifted(value: int, left: int) -> int:
    """``value`` moved to the left, or for a negative ``left`` to the right."""
    return value << left if left >= 0 else value >> -left


def _changed(
    register: Register, before: int, after: int
) -> dict[str, tuple[int | str | None, int | str]]:
    """The fields that a write changes, from and to; and the commands it gives, from None."""
    changed: dict[str, tuple[int | str | None, int | str]] = {}
    for name, field in register.fields.items():
        if (field.access or register.access) is Access.WO:
            if after & field.mask:
                changed[name] = (None, field.decode(after))
        elif (before ^ after) & field.mask:
            changed[name] = (field.decode(before), field.decode(after))
    return changed
