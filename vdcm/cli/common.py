"""What the commands share: their options, the connection to the server, and output."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from vdcm.control import ControlClient
from vdcm.definition import control_path
from vdcm.properties import number

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Control = Annotated[
    Path | None,
    typer.Option(
        "--control",
        envvar="VDCM_CONTROL",
        metavar="PATH",
        help="The server's control socket, if it is not the default one.",
        show_default=False,
    ),
]
Name = Annotated[
    str | None,
    typer.Argument(metavar="NAME", help="A VDEV's name or UUID.", show_default=False),
]
Uuid = Annotated[
    str | None,
    typer.Option("--uuid", "-u", metavar="UUID", help="A VDEV's UUID.", show_default=False),
]


def connect(control: Path | None) -> ControlClient:
    """A connection to the server that runs."""
    return ControlClient(control or control_path())


def which(name: str | None, uuid: str | None) -> str:
    """The one VDEV that is meant."""
    if (name is None) == (uuid is None):
        raise typer.BadParameter("name one VDEV: NAME, or --uuid UUID")
    return name or uuid or ""


def pairs(values: Sequence[str]) -> dict[str, str]:
    """``PROPERTY=VALUE`` texts as a mapping."""
    found: dict[str, str] = {}
    for value in values:
        key, equals, text = value.partition("=")
        if not equals or not key:
            raise typer.BadParameter(f"{value!r} is not PROPERTY=VALUE")
        if key in found:
            raise typer.BadParameter(f"{key} is here twice")
        found[key] = text
    return found


def print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Columns: on a terminal as wide as it is, else aligned plain text, one row a line."""
    texts = [[str(cell) for cell in row] for row in rows]
    if sys.stdout.isatty():
        shown = Table(*head, box=None, pad_edge=False, header_style="bold")
        for row in texts:
            shown.add_row(*(Text(cell, overflow="fold") for cell in row))
        Console().print(shown)
        return
    widths = [max(map(len, column)) for column in zip(head, *texts, strict=True)]
    for row in [list(head), *texts]:
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        typer.echo(line.rstrip())


def outline(value: Any, indent: int = 0, within: str = "") -> list[str]:
    """A JSON value, which is ``within`` another's key, as indented lines."""
    pad = "  " * indent
    lines = []
    if isinstance(value, dict):
        for key, one in value.items():
            if isinstance(one, dict | list):
                lines.append(f"{pad}{key}:{'' if one else ' none'}")
                lines += outline(one, indent + 1, key)
            else:
                lines.append(f"{pad}{key}: {scalar(within or key, one)}")
    elif isinstance(value, list):
        for one in value:
            if isinstance(one, dict):
                flat = {k: v for k, v in one.items() if not isinstance(v, dict | list)}
                lines.append(f"{pad}- " + ", ".join(f"{k} {scalar(k, v)}" for k, v in flat.items()))
                lines += outline({k: v for k, v in one.items() if k not in flat and v}, indent + 1)
            else:
                lines.append(f"{pad}- {one}")
    return lines


def scalar(key: str, value: object) -> str:
    """Sizes and addresses in hexadecimal, properties also in decimal, as one writes them."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "none"}[value]
    if isinstance(value, int) and key in ("size", "offset", "iova", "value"):
        return f"{value:#x}"
    if isinstance(value, int) and key == "properties":
        return number(value)
    return str(value)
