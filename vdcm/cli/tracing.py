"""``vdcm trace``: what VDEVs see, as it happens, on the terminal or into files."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Annotated, Any

import typer

from vdcm.cli.common import Control, connect
from vdcm.events import KINDS
from vdcm.trace import SAMPLE

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def trace(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME]...",
            help="VDEVs by name or UUID; all of them, those to come too, if none is named.",
            show_default=False,
        ),
    ] = None,
    kinds: Annotated[
        list[str] | None,
        typer.Option(
            *("--kind", "-k"),
            metavar="KIND",
            help=f"Only events of this kind, or of several: {', '.join(KINDS)}.",
            show_default=False,
        ),
    ] = None,
    registers: Annotated[
        list[str] | None,
        typer.Option(
            *("--register", "-r"),
            metavar="PATTERN",
            help="Only accesses to registers with such a name: 'CSTS', 'MsiX.*', 'WQCFG[3]*'.",
            show_default=False,
        ),
    ] = None,
    sample: Annotated[
        float,
        typer.Option(
            "--sample", metavar="SECONDS", help="How often the queues of ADIs are looked at."
        ),
    ] = SAMPLE,
    output: Annotated[
        Path | None,
        typer.Option(
            *("--output", "-o"),
            metavar="FILE",
            help="Write to FILE. When it is half of --size long it becomes FILE.1, and FILE "
            "begins anew: the latest events are kept.",
            show_default=False,
        ),
    ] = None,
    size: Annotated[
        str, typer.Option("--size", metavar="BYTES", help="Of FILE and FILE.1 together.")
    ] = "64M",
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object a line, as docs/control.md has it.")
    ] = False,
    control: Control = None,
) -> None:
    """Print what VDEVs see, as it happens.

    Accesses by register and field, configuration space by capability, interrupts, resets, DMA maps,
    mailbox messages, ADIs and what their queues do; and hints at what may be wrong. Ends with
    Ctrl-C. A VDEV that nobody traces pays nothing for this; one whose accesses are traced has all
    of its intercepted stores handled by Python.
    """
    wanted = {
        "names": names or None,
        "kinds": kinds or None,
        "registers": registers or None,
        "sample": round(sample * 1000),
    }
    named = len(names or ()) != 1
    most = size_of(size)
    with connect(control) as client, _opened(output, most) as write, suppress(KeyboardInterrupt):
        for one in client.trace(**wanted):
            write(_json_line(one) if as_json else _line(one, named=named))


def _json_line(one: dict[str, Any]) -> str:
    return json.dumps(one, separators=(",", ":"), ensure_ascii=False)


def _line(one: dict[str, Any], *, named: bool) -> str:
    seconds, micros = divmod(round(one["time"] * 1_000_000), 1_000_000)
    at = time.strftime("%H:%M:%S", time.localtime(seconds))
    name = f"{one['name']} " if named else ""
    mark = "hint: " if one["kind"] == "hint" else ""
    return f"{at}.{micros:06d} {name}{mark}{one['text']}"


def size_of(text: str) -> int:
    """The bytes that an option ``--size`` says."""
    found = re.fullmatch(r"(\d{1,12})([KMG]?)", text.upper())
    size = int(found[1]) * _UNITS[found[2]] if found else 0
    if size < 1 << 12:
        raise typer.BadParameter(f"--size {text}: bytes, as 64M, and at least 4K")
    return size


def _to_terminal(line: str) -> None:
    typer.echo(line)
    sys.stdout.flush()


@contextmanager
def _opened(path: Path | None, size: int) -> Iterator[Callable[[str], None]]:
    """What writes a line: to ``path`` and its predecessor, ``size`` bytes together at most."""
    if path is None:
        yield _to_terminal
        return
    files = _Files(path, size)
    try:
        yield files.write
    finally:
        files.close()


class _Files:
    """``path`` and ``path.1``: two halves, of which the older one goes."""

    def __init__(self, path: Path, size: int) -> None:
        self._path = path
        self._half = size // 2
        self._file = self._begin()

    def _begin(self) -> IO[bytes]:
        self._written = 0
        return self._path.open("wb", buffering=0)

    def write(self, line: str) -> None:
        data = line.encode() + b"\n"
        if len(data) > self._half:
            return
        if self._written + len(data) > self._half:
            self._file.close()
            self._path.replace(f"{self._path}.1")
            self._file = self._begin()
        self._file.write(data)
        self._written += len(data)

    def close(self) -> None:
        self._file.close()
