"""The command line: one function per verb. Exit codes: 0 done, 1 failed, 2 usage or definition."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from vdcm import doctor as machine
from vdcm import qemu_args as attach
from vdcm.control import ControlClient, ControlServer
from vdcm.definition import Definition, choices, control_path, load
from vdcm.errors import DefinitionError, VdcmError
from vdcm.manager import Manager, describe_types, log_to_stderr, serve_until_stopped

app = typer.Typer(
    name="vdcm",
    help="Serve virtual PCIe devices (VDEVs), composed in Python, to stock QEMU over vfio-user.",
    epilog="Begin with: vdcm doctor, vdcm types, vdcm serve FILE.yaml, vdcm qemu-args FILE.yaml",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help: the same on a terminal, in a pipe and in a log
)

LEVELS: Final = ("debug", "info", "warning", "error")

_debug = False


def _set_debug(value: bool) -> None:
    global _debug
    _debug = value


def _print_version(value: bool) -> None:
    if value:
        typer.echo(f"vdcm {version('vdcm')}")
        raise typer.Exit


@app.callback()
def _common(
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error.", callback=_set_debug)
    ] = False,
    show_version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    del debug, show_version  # their callbacks have done it


File = Annotated[
    Path, typer.Argument(metavar="FILE.yaml", help="A definition file.", show_default=False)
]
Name = Annotated[str, typer.Argument(metavar="NAME", help="A VDEV's name.", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Control = Annotated[
    Path | None,
    typer.Option(
        "--control",
        envvar="VDCM_CONTROL",
        metavar="PATH",
        help="The server's control socket, if its definition file names one.",
        show_default=False,
    ),
]


# --- serving ------------------------------------------------------------------------------------


@app.command(epilog="Example: vdcm serve gpio.yaml")
def serve(
    file: File,
    trace: Annotated[
        bool, typer.Option("--trace", help="Print every access, interrupt and DMA map.")
    ] = False,
    log_level: Annotated[
        str, typer.Option("--log-level", metavar="|".join(LEVELS), help="What to log to stderr.")
    ] = "info",
) -> None:
    """Serve what a definition file defines.

    Until SIGINT or SIGTERM. Each VDEV listens on a UNIX socket for one QEMU (or other vfio-user
    client) at a time.
    """
    if log_level.lower() not in LEVELS:
        raise typer.BadParameter(f"{log_level} is none of {', '.join(LEVELS)}")
    log_to_stderr(log_level.upper())
    raise typer.Exit(asyncio.run(_serve(load(file), trace)))


async def _serve(definition: Definition, trace: bool) -> int:
    manager = Manager()

    def ready() -> None:
        _table(
            ("VDEV", "TYPE", "SOCKET"),
            [(one["name"], one["type"], one["socket"]) for one in manager.summaries()],
        )
        typer.echo(f"attach them to QEMU: vdcm qemu-args {definition.file}")
        sys.stdout.flush()

    try:
        manager.define(definition)
        async with ControlServer(manager, definition.control):
            if trace:
                logging.getLogger("vdcm.trace").setLevel(logging.INFO)  # whatever --log-level is
                for vdev in definition.vdevs:
                    _log_trace(manager, vdev.name)
            return await serve_until_stopped(manager, ready)
    finally:
        manager.close()


def _log_trace(manager: Manager, name: str) -> None:
    log = logging.getLogger(f"vdcm.trace.{name}")
    manager.listen(name, lambda line: log.info("%s", line))


# --- asking a running server --------------------------------------------------------------------


def _connect(control: Path | None) -> ControlClient:
    return ControlClient(control or control_path())


@app.command("list", epilog="Example: vdcm list --json")
def list_vdevs(as_json: Json = False, control: Control = None) -> None:
    """List the VDEVs of a running server.

    STATE is defined (not served), ready (waits for a client), attached (has one) or resetting.
    """
    with _connect(control) as client:
        vdevs = client.call("list")
    if as_json:
        _print_json(vdevs)
    else:
        keys = ("name", "type", "parent", "state", "socket")
        _table([key.upper() for key in keys], [[one[key] for key in keys] for one in vdevs])


@app.command(epilog="Example: vdcm show gpio0")
def show(name: Name, as_json: Json = False, control: Control = None) -> None:
    """Show all there is to know of a VDEV.

    Its BARs and pages, interrupts, DMA map, counters and properties.
    """
    with _connect(control) as client:
        vdev = client.call("show", name=name)
    if as_json:
        _print_json(vdev)
    else:
        typer.echo("\n".join(_outline(vdev)))


@app.command("set", epilog="Example: vdcm set gpio0 inputs=0x00ff")
def set_properties(
    name: Name,
    values: Annotated[
        list[str],
        typer.Argument(
            metavar="PROPERTY=VALUE...", help="vdcm types says which.", show_default=False
        ),
    ],
    control: Control = None,
) -> None:
    """Set properties of a served VDEV.

    All of them, or none if one is wrong.
    """
    pairs = {}
    for value in values:
        key, equals, text = value.partition("=")
        if not equals or not key:
            raise typer.BadParameter(f"{value!r} is not PROPERTY=VALUE")
        if key in pairs:
            raise typer.BadParameter(f"{key} is here twice")
        pairs[key] = text
    with _connect(control) as client:
        client.call("set", name=name, values=pairs)


@app.command(epilog="Example: vdcm trace gpio0")
def trace(name: Name, control: Control = None) -> None:
    """Print what a VDEV sees, as it happens.

    Accesses by register name, interrupts, resets and DMA maps. Ends with Ctrl-C. A VDEV that
    nobody traces pays nothing for this.
    """
    with _connect(control) as client, suppress(KeyboardInterrupt):
        for one in client.trace(name):
            if one["dropped"]:
                typer.echo(f"... {one['dropped']} lines dropped: this terminal is too slow")
            at = time.strftime("%H:%M:%S", time.localtime(one["time"]))
            typer.echo(f"{at}.{int(one['time'] % 1 * 1000):03d} {one['line']}")
            sys.stdout.flush()


# --- without a server ---------------------------------------------------------------------------


@app.command(epilog="Example: vdcm types")
def types(as_json: Json = False) -> None:
    """List the types of VDEV there are.

    With their properties; the installed device models compose them.
    """
    found = describe_types()
    if as_json:
        _print_json(found)
        return
    _table(("TYPE", "MODEL", "WHAT IT IS"), [(t["type"], t["model"], t["doc"]) for t in found])
    rows = [
        (kind["type"], one["name"], _range(one), "yes" if one["live"] else "no", one["doc"])
        for kind in found
        for one in kind["properties"]
    ]
    if rows:
        typer.echo()
        _table(("TYPE", "PROPERTY", "VALUES", "LIVE", "WHAT IT IS"), rows)


def _range(one: dict[str, Any]) -> str:
    if one["kind"] == "bool":
        return f"true, false (default {str(one['default']).lower()})"
    if one["kind"] == "str":
        return f"text (default {one['default']!r})"
    upper = "" if one["maximum"] is None else f" to {one['maximum']:#x}"
    return f"{one['minimum']:#x}{upper} (default {one['default']:#x})"


@app.command("qemu-args", epilog="Example: vdcm qemu-args gpio.yaml --memory 512M")
def qemu_args(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE.yaml|SOCKET",
            help="A definition file, or the socket (*.sock) of one VDEV.",
            show_default=False,
        ),
    ],
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME...]", help="Only these VDEVs.", show_default=False),
    ] = None,
    memory: Annotated[
        str, typer.Option("--memory", metavar="SIZE", help="The guest's memory.")
    ] = "1G",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the argument vector as JSON.")
    ] = False,
    libvirt: Annotated[
        bool, typer.Option("--libvirt", help="Print what to add to a libvirt domain.")
    ] = False,
) -> None:
    """Print the arguments that attach VDEVs.

    For QEMU 10.1 or later, ready to paste. They include memory that is shared with the server,
    which DMA needs.
    """
    if as_json and libvirt:
        raise typer.BadParameter("--json and --libvirt exclude each other")
    try:
        attach.check_memory(memory)
    except VdcmError as error:
        raise typer.BadParameter(str(error)) from None
    sockets = _sockets(file, names or [])
    if libvirt:
        typer.echo(attach.libvirt(sockets))
    elif as_json:
        _print_json(attach.arguments(sockets, memory))
    else:
        typer.echo(attach.shell(attach.arguments(sockets, memory)))


def _sockets(file: Path, names: Sequence[str]) -> list[Path]:
    if file.suffix == ".sock" or file.is_socket():
        if names:
            raise typer.BadParameter("a socket has no VDEVs to choose from")
        return [file.absolute()]
    known = {vdev.name: vdev.socket for vdev in load(file).vdevs}
    for name in names:
        if names.count(name) > 1:
            raise typer.BadParameter(f"{name} is here twice")
        if name not in known:
            raise typer.BadParameter(f"{file} has no VDEV {name} {choices(name, known)}")
    return [known[name] for name in names or known]


@app.command(epilog="Example: vdcm doctor")
def doctor(as_json: Json = False) -> None:
    """Check this machine, with the fixes.

    QEMU, KVM, limits, memory, guest kernel and device models. A warning means slower, or only
    in part; the exit code is 1 if a check fails.
    """
    results = machine.examine()
    if as_json:
        _print_json(
            [
                {"name": r.name, "status": r.status.value, "detail": r.detail, "fix": r.fix}
                for r in results
            ]
        )
    else:
        width = max(len(result.name) for result in results)
        for result in results:
            typer.echo(f"{result.status.value:4}  {result.name:{width}}  {result.detail}")
            if result.fix:
                typer.echo(f"{'':{width + 8}}fix: {result.fix}")
    raise typer.Exit(0 if machine.healthy(results) else 1)


# --- output and errors --------------------------------------------------------------------------


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Columns: on a terminal as wide as it is, else aligned plain text, one row a line."""
    texts = [[str(cell) for cell in row] for row in rows]
    if sys.stdout.isatty():
        table = Table(*head, box=None, pad_edge=False, header_style="bold")
        for row in texts:
            table.add_row(*(Text(cell, overflow="fold") for cell in row))
        Console().print(table)
        return
    widths = [max(map(len, column)) for column in zip(head, *texts, strict=True)]
    for row in [list(head), *texts]:
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        typer.echo(line.rstrip())


def _outline(value: Any, indent: int = 0, within: str = "") -> list[str]:
    """A JSON value, which is ``within`` another's key, as indented lines."""
    pad = "  " * indent
    lines = []
    if isinstance(value, dict):
        for key, one in value.items():
            if isinstance(one, dict | list):
                lines.append(f"{pad}{key}:{'' if one else ' none'}")
                lines += _outline(one, indent + 1, key)
            else:
                lines.append(f"{pad}{key}: {_scalar(within or key, one)}")
    elif isinstance(value, list):
        for one in value:
            if isinstance(one, dict):
                flat = {k: v for k, v in one.items() if not isinstance(v, dict | list)}
                lines.append(
                    f"{pad}- " + ", ".join(f"{k} {_scalar(k, v)}" for k, v in flat.items())
                )
                lines += _outline({k: v for k, v in one.items() if k not in flat and v}, indent + 1)
            else:
                lines.append(f"{pad}- {one}")
    return lines


def _scalar(key: str, value: object) -> str:
    """Sizes, addresses and properties in hexadecimal, as one writes them."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "none"}[value]
    if key in ("size", "offset", "iova", "properties", "value") and isinstance(value, int):
        return f"{value:#x}"
    return str(value)


def main() -> None:
    """The entry point of the command ``vdcm``."""
    if sys.stdout is None:  # closed by whoever has started us
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115  # as long as the process
    try:
        app()
    except OSError as error:  # what can be foreseen is a VdcmError: this is mostly a full disk
        if _debug:
            traceback.print_exc()
        print(f"vdcm: {error} (vdcm --debug ... shows where)", file=sys.stderr)
        with suppress(OSError, ValueError):  # what is left in the buffer would fail again at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except VdcmError as error:
        if _debug:
            traceback.print_exc()
        for line in str(error).splitlines():
            print(f"vdcm: {line}", file=sys.stderr)
        sys.exit(2 if isinstance(error, DefinitionError) else 1)
