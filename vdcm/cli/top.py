"""``vdcm top``: what all VDEVs do just now, as a table once, as JSON, or live."""

from __future__ import annotations

import os
import select
import signal
import sys
import termios
import time
import tty
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Annotated, Any, Final

import typer
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from vdcm.cli.common import Control, Json, connect, print_json, table
from vdcm.control import ControlClient
from vdcm.rates import COLUMNS, Column, Rates, Row, Unit, Value, between, ordered
from vdcm.snapshot import Snapshot, read

SHORTEST: Final = 0.1
LONGEST: Final = 3600.0
LOOK: Final = 0.2
"""Seconds between two looks at keys and at the size of the terminal."""
KEYS: Final = tuple(column.key for column in COLUMNS)
SORTS: Final = ("name", *KEYS)
HINT: Final = "q quit   < > sort   r reverse   a ADIs   ↑ ↓ scroll"


def top(
    sort: Annotated[
        str, typer.Option("--sort", "-s", metavar="COLUMN", help="name, or what --json calls it.")
    ] = "name",
    reverse: Annotated[bool, typer.Option("--reverse", "-r", help="The least first.")] = False,
    adis: Annotated[bool, typer.Option("--adis/--no-adis", help="The ADIs of each VDEV.")] = True,
    interval: Annotated[
        float,
        typer.Option("--interval", "-i", metavar="SECONDS", help="What rates are taken over."),
    ] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Print a table, and end.")] = False,
    as_json: Json = False,
    control: Control = None,
) -> None:
    """Show what the VDEVs do just now.

    Live, on a terminal: q ends it, < and > choose what is sorted by, r reverses, a shows or hides
    ADIs. READ and WRITE are accesses that came by message; MSG is how long they took to be
    answered, and which part of the time that was. WORK is that of the direct path, in bytes as a
    rule; TURN is how long an ADI waited and worked, and which part of the time it worked. --json
    prints all of it once.
    """
    if sort not in SORTS:
        raise typer.BadParameter(f"--sort {sort}: it is one of {', '.join(SORTS)}")
    if not SHORTEST <= interval <= LONGEST:
        raise typer.BadParameter(f"--interval {interval:g}: it is {SHORTEST:g} to {LONGEST:g} s")
    live = not (once or as_json)
    if live and not (sys.stdout.isatty() and sys.stdin.isatty()):
        raise typer.BadParameter("this is no terminal: --once prints a table, --json what it has")
    view = View(sort, reverse, adis)
    with connect(control) as client:
        if live:
            _watch(client, view, interval)
            return
        before = _snapshot(client)
        time.sleep(interval)
        rates = between(before, _snapshot(client))
    if as_json:
        print_json(_json(rates, view))
        return
    for line in summary(rates):
        typer.echo(line)
    table(*view.table(rates))


def _snapshot(client: ControlClient) -> Snapshot:
    return read(lambda skip: client.call("counters", skip=skip))


# What is shown.


@dataclass
class View:
    """How it is shown: by what it is sorted, and from which line on."""

    sort: str = "name"
    reverse: bool = False
    adis: bool = True
    first: int = field(default=0)

    def press(self, key: str) -> bool:
        """A key; False for one that ends it."""
        if key in ("q", "Q", "\x04"):
            return False
        if key in ("<", ",", "\x1b[D", ">", ".", "\x1b[C"):
            step = 1 if key in (">", ".", "\x1b[C") else -1
            self.sort = SORTS[(SORTS.index(self.sort) + step) % len(SORTS)]
            self.first = 0
        elif key == "r":
            self.reverse = not self.reverse
        elif key == "a":
            self.adis, self.first = not self.adis, 0
        elif key in ("j", "\x1b[B"):
            self.first += 1
        elif key in ("k", "\x1b[A"):
            self.first = max(0, self.first - 1)
        return True

    def rows(self, rates: Rates) -> Iterator[tuple[Row, int]]:
        """In order, each with how deep it is: ADIs below their VDEV."""
        for row in ordered(rates.rows, self.sort, reverse=self.reverse):
            yield row, 0
            if self.adis:
                for adi in row.adis:
                    yield adi, 1

    def table(self, rates: Rates) -> tuple[list[str], list[list[str]]]:
        """Head and rows, all of them."""
        lines = [cells(row, depth, COLUMNS) for row, depth in self.rows(rates)]
        return ["VDEV", "STATE", *(column.head for column in COLUMNS)], lines


def cells(row: Row, depth: int, columns: Sequence[Column]) -> list[str]:
    name = f"  {row.name}" if depth else row.name
    return [name, row.state, *(shown(row.values[c.key], c.unit) for c in columns)]


def shown(value: Value, unit: Unit) -> str:
    """A value in about five characters; - for none, . for zero."""
    if value is None:
        return "-"
    if unit is Unit.TIME:
        return _scaled(value, ("ns", "µs", "ms", "s"))
    if unit is Unit.SHARE:
        return "." if value < 0.0005 else f"{100 * value:.3g}%"
    if not value:
        return "."
    if unit is Unit.NUMBER:
        return str(value) if value < 100_000 else _scaled(value, ("", "k", "M", "G", "T"))
    return _scaled(value, ("", "k", "M", "G", "T"))


def _scaled(value: float, units: Sequence[str]) -> str:
    index = 0
    while value >= 999.5 and index + 1 < len(units):
        value /= 1000
        index += 1
    return f"{value:.3g}{units[index]}" if value < 999.5 else f"{value:.0f}{units[index]}"


def summary(rates: Rates) -> list[str]:
    """The process, in two lines."""
    attached = sum(row.state == "attached" for row in rates.rows)
    sweeps = [f"{name} {share:.1%}" for name, share in rates.sweeps.items()]
    return [
        f"{len(rates.rows)} VDEVs, {attached} with a client, in {rates.seconds:.1f} s",
        f"CPU {rates.cpu:.1%}: Python {rates.python_cpu:.1%}"
        + (f"; sweeps {', '.join(sweeps)}" if sweeps else "; no sweeps"),
    ]


def _json(rates: Rates, view: View) -> dict[str, Any]:
    def one(row: Row) -> dict[str, Any]:
        return {"name": row.name, "type": row.type, "state": row.state, **row.values}

    return {
        "seconds": rates.seconds,
        "python_cpu": rates.python_cpu,
        "cpu": rates.cpu,
        "sweeps": dict(rates.sweeps),
        "vdevs": [
            {**one(row), "adis": [one(adi) for adi in row.adis]}
            for row in ordered(rates.rows, view.sort, reverse=view.reverse)
        ],
    }


# Live.


def _watch(client: ControlClient, view: View, interval: float) -> None:
    """Until q or Ctrl-C is pressed. ControlError when the server goes."""
    console = Console()
    before = _snapshot(client)
    rates: Rates | None = None
    with _keyboard(), Live(console=console, screen=True, auto_refresh=False) as screen:
        deadline = time.monotonic() + min(interval, LOOK)  # something to see at once
        size = None
        while True:
            changed = console.size != size
            if time.monotonic() >= deadline:
                now = _snapshot(client)
                rates, before = between(before, now), now
                deadline, changed = time.monotonic() + interval, True
            if changed:
                size = console.size
                screen.update(render(rates, view, size.width, size.height), refresh=True)
            key = _key(min(LOOK, max(0.0, deadline - time.monotonic())))
            if key and not view.press(key):
                return
            if key:
                size = None


@contextmanager
def _keyboard() -> Iterator[None]:
    """Keys as they are pressed, and not shown. Whatever ends it, the terminal is as it was."""
    before = termios.tcgetattr(sys.stdin)
    handler = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        tty.setcbreak(sys.stdin, termios.TCSANOW)
        with suppress(KeyboardInterrupt):
            yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSANOW, before)
        signal.signal(signal.SIGTERM, handler)


def _key(seconds: float) -> str:
    """What was pressed within ``seconds``; q if nobody can press anything any more."""
    keyboard = sys.stdin.fileno()
    if not select.select([keyboard], [], [], seconds)[0]:
        return ""
    try:
        pressed = os.read(keyboard, 1)
        if pressed == b"\x1b" and select.select([keyboard], [], [], 0.01)[0]:
            pressed += os.read(keyboard, 2)
    except OSError:
        pressed = b""
    return pressed.decode(errors="replace") or "q"


def render(rates: Rates | None, view: View, width: int, height: int) -> Group:
    """As much as there is room for: columns by their weight, rows from ``view.first`` on."""
    if rates is None:
        return Group(Text("vdcm top: counting ..."))
    rows = list(view.rows(rates))
    head = [Text(line, no_wrap=True, overflow="ellipsis") for line in summary(rates)]
    room = max(1, height - len(head) - 2)  # the table's head, and the last line
    view.first = max(0, min(view.first, len(rows) - room))
    visible = rows[view.first : view.first + room]
    names = max([8, *(len(row.name) + 2 * depth for row, depth in rows)])
    names = min(names, max(8, width // 3))
    columns = _fitting([row for row, _ in visible], names, width, view.sort)
    shown_table = Table(box=None, pad_edge=False, expand=False, header_style="bold")
    shown_table.add_column(_head("VDEV", "name", view), no_wrap=True, width=names)
    states = width >= names + 12
    if states:
        shown_table.add_column("STATE", no_wrap=True, width=9)
    for column in columns:
        shown_table.add_column(_head(column.head, column.key, view), justify="right", no_wrap=True)
    for row, depth in visible:
        line = cells(row, depth, columns)
        style = "red" if row.failing else "dim" if depth else ""
        shown_table.add_row(*(line if states else [line[0], *line[2:]]), style=style)
    more = len(rows) - view.first - len(visible)
    last = f"{HINT}   {f'{more} more below' if more else ''}"
    return Group(*head, shown_table, Text(last, style="dim", no_wrap=True, overflow="ellipsis"))


def _head(text: str, key: str, view: View) -> Text:
    mark = ("▲" if view.reverse else "▼") if key == view.sort else ""
    return Text(f"{text}{mark}", style="bold reverse" if mark else "bold")


def _fitting(rows: Sequence[Row], names: int, width: int, sort: str) -> list[Column]:
    """The columns that there is room for; what is sorted by is the last to go."""
    wide = {
        c.key: max(len(c.head) + 1, *(len(shown(row.values[c.key], c.unit)) for row in rows), 5) + 2
        for c in COLUMNS
    }
    left = width - names - 12
    kept = set()
    for column in sorted(COLUMNS, key=lambda one: (one.key != sort, -one.weight)):
        if wide[column.key] <= left:
            left -= wide[column.key]
            kept.add(column.key)
    return [column for column in COLUMNS if column.key in kept]
