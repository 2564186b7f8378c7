"""Hints: what a guest does with a VDEV's registers that looks as if it waits or asks in vain.

Four things are noticed, whether or not somebody traces, and at no cost for accesses that are as
they should be (native/watch.h; ``RegisterSpace.on_uncovered``):

``uncovered``
    An access to a place in a BAR, or a write to one in configuration space, that no register has.
``polling``
    A register is read again and again with the same result, and nothing happens in between.
``uncleared``
    So is one whose value is written back each time, as who clears bits by writing 1 does it.
``unanswered``
    A command was written, the guest does nothing more, and no interrupt comes. A command is a
    register or field that is write only (``Access.WO``), or declared as ``answered``; the former
    counts as unanswered only if the guest has not got an interrupt at all. So does any write upon
    which the model writes to the guest's memory.

Each is said once: in the log, to observers, and kept for ``show`` with how often it has been seen.
What a guest can cause here is bounded.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from vdcm.events import Hint
from vdcm.interrupts import Interrupts
from vdcm.protocol import Region
from vdcm.registers import Place, RegisterSpace
from vdcm.transport import Written

log = logging.getLogger("vdcm.hints")

LIMIT: Final = 64
"""Different hints of one VDEV; further ones are only counted."""
ENOUGH: Final = 64
"""Reads that are polling however quickly they come."""
SLOWLY: Final = (8, 0.05)
"""Fewer are, too: as many, in so many seconds."""

CLEARING: Final = 16
"""Of one whose value is written back each time."""

SUSPECTS: Final = 16
"""Places that are remembered as perhaps being polled."""


@dataclass
class _Said:
    hint: Hint
    times: int = 1


class Hints:
    """Those of VDEV ``name``. ``spaces``: its registers by region. ``tell`` is given each hint."""

    def __init__(
        self,
        name: str,
        spaces: Mapping[int, RegisterSpace],
        interrupts: Interrupts,
        tell: Callable[[Hint], None],
    ) -> None:
        self.untold = 0
        """Hints beyond ``LIMIT``."""
        self.wrote = 0.0
        """When the model has written guest memory last (time.monotonic)."""
        self._name = name
        self._spaces = spaces
        self._interrupts = interrupts
        self._tell = tell
        self._said: dict[tuple[object, ...], _Said] = {}
        self._suspects: dict[tuple[int, int], int] = {}  # places, and the interrupts until then
        self._delivered = interrupts.delivered
        for region, space in spaces.items():
            # Everybody reads all of configuration space.
            space.on_uncovered = partial(self._uncovered, space, reads=region != Region.CONFIG)

    def attached(self) -> None:
        """A client has come: what counts from now on is what it gets."""
        self._delivered = self._interrupts.delivered

    def describe(self) -> list[dict[str, Any]]:
        """All of them, JSON-able, in the order in which they came up first."""
        found = [
            {"hint": one.hint.hint, "times": one.times, "said": one.hint.said}
            for one in self._said.values()
        ]
        if self.untold:
            found.append({"hint": "untold", "times": self.untold, "said": "too many to keep"})
        return found

    def _say(
        self, hint: str, key: tuple[object, ...], place: Place, said: Callable[[], str]
    ) -> None:
        """Once; a ``said`` of something known is counted, and costs no more."""
        known = self._said.get((hint, *key))
        if known is not None:
            known.times += 1
        elif len(self._said) >= LIMIT:
            self.untold += 1
        else:
            event = Hint(hint, said(), tuple(part.name for part in place.parts))
            self._said[hint, *key] = _Said(event)
            log.warning("%s: %s", self._name, event)
            self._tell(event)

    # Places that no register has.

    def _uncovered(
        self, space: RegisterSpace, place: Place, write: bool, value: int, *, reads: bool
    ) -> None:
        if not (write or reads):
            return

        def said() -> str:
            near = space.before(place.offset)
            nearest = f"; the last register before is {near}" if near else ""
            what = (
                f"wrote {value:#x} to {_where(place)}, {place.width} bytes that no register covers:"
                " it was ignored"
                if write
                else f"read {place.width} bytes at {_where(place)}, which no register covers: it "
                f"got {value:#x}"
            )
            return f"the guest {what}{nearest}"

        self._say("uncovered", (place.space, write, place.offset, place.width), place, said)

    # Waiting.

    def repeated(
        self,
        region: int,
        where: tuple[int, int, int],
        times: int,
        seconds: float,
        written: Written | None,
    ) -> None:
        """The guest has read ``where`` (offset, width, value) ``times`` times in ``seconds``, and
        has written nothing in between, but before that ``written``."""
        offset, width, value = where
        # The interrupts of ADIs go past everybody: they are compared with the time before.
        delivered = self._interrupts.delivered
        alone = self._suspects.get((region, offset)) == delivered
        if len(self._suspects) >= SUSPECTS:
            self._suspects.clear()
        self._suspects[region, offset] = delivered
        cleared = written is not None and written[:4] == (region, offset, width, value)
        most = CLEARING if cleared else ENOUGH
        enough = times >= most or (times >= SLOWLY[0] and seconds >= SLOWLY[1])
        if not (alone and enough) or region not in self._spaces:
            return
        space = self._spaces[region]
        place = space.where(offset, width)
        if not place.parts:
            return

        def said() -> str:
            if cleared:
                return (
                    f"the guest reads {_names(place)} ({_where(place)}) and writes back what it "
                    f"has read, again and again: {times} times in {seconds:.2g} s, and it stays "
                    f"{space.decoded(place, value)}; {space.changed(place)}; "
                    f"{_clearing(place, value)}"
                )
            since = f"; before that it wrote {self._command(written)}" if written else ""
            return (
                f"the guest reads {_names(place)} ({_where(place)}) again and again: {times} times "
                f"in {seconds:.2g} s, and always sees {space.decoded(place, value)}, without an "
                f"interrupt meanwhile; {space.changed(place)}{since}"
            )

        self._say(
            "uncleared" if cleared else "polling", (region, offset, width, value), place, said
        )

    def silent(self, written: Written) -> None:
        """The guest has done nothing since ``written``, for some time."""
        space = self._spaces.get(written.region)
        vectors = self._interrupts.bound
        if space is None or not vectors:
            return
        place = space.where(written.offset, written.width, write=True)
        wrote = written.interrupts == 0 and self.wrote > written.at
        if not wrote and not any(
            written.interrupts == 0
            if part.register.answered
            else part.register.masks().wo & part.shown(written.value)
            and self._interrupts.delivered == self._delivered
            for part in place.parts
        ):
            return

        def said() -> str:
            and_no = "the device has written to its memory, and no" if wrote else "no"
            return (
                f"the guest wrote {self._command(written)}, and has done nothing since; {and_no} "
                f"interrupt was raised: if its driver waits for one ({vectors}), that is why it "
                "times out"
            )

        self._say("unanswered", (written.region, written.offset, written.width), place, said)

    def _command(self, written: Written) -> str:
        space = self._spaces[written.region]
        place = space.where(written.offset, written.width)
        shown = space.decoded(place, written.value)
        to = f"{_names(place)} ({_where(place)})" if place.parts else _where(place)
        return f"{shown} to {to} {written.seconds:.2g} s ago"


def _names(place: Place) -> str:
    return ", ".join(part.name for part in place.parts) or "no register"


def _clearing(place: Place, value: int) -> str:
    """How the bits that are 1 are declared."""
    parts = [(part, part.shown(value)) for part in place.parts]
    if all(part.register.masks().w1c & shown == shown for part, shown in parts):
        return "these bits are cleared by writing 1: the device sets them again"
    return "if writing 1 is to clear these bits, they have to be Access.W1C"


def _where(place: Place) -> str:
    return f"{place.space}+{place.offset:#04x}"
