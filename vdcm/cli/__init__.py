"""The command line: one function per verb. Exit codes: 0 done, 1 failed, 2 usage or definition."""

from __future__ import annotations

import errno
import os
import sys
import traceback
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer

from vdcm.cli import asking, attaching, creating, lifecycle, recording, serving, top, tracing
from vdcm.errors import DefinitionError, VdcmError

app = typer.Typer(
    name="vdcm",
    help="Serve virtual PCIe devices (VDEVs), composed in Python, to stock QEMU over vfio-user.",
    epilog="Begin with: vdcm doctor, vdcm types, vdcm serve FILE.yaml, vdcm qemu-args FILE.yaml",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help: the same on a terminal, in a pipe and in a log
)

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


for verb, function, example in (
    ("serve", serving.serve, "serve gpio.yaml"),
    ("parents", asking.parents, "parents"),
    ("types", asking.types, "types --parent idio16"),
    (
        "define",
        lifecycle.define,
        "define --type pcie-idio-16 --name gpio1 --set inputs=0xff --auto",
    ),
    ("undefine", lifecycle.undefine, "undefine gpio1"),
    ("modify", lifecycle.modify, "modify gpio1 --set inputs=0 --manual"),
    ("start", lifecycle.start, "start gpio1"),
    ("stop", lifecycle.stop, "stop gpio1"),
    ("list", asking.list_vdevs, "list --defined --json"),
    ("show", asking.show, "show gpio0"),
    ("set", asking.set_properties, "set gpio0 inputs=0x00ff"),
    ("reset", lifecycle.reset, "reset gpio0"),
    ("trace", tracing.trace, "trace gpio0 --kind access --register 'OUT_*'"),
    ("top", top.top, "top --sort units_per_s"),
    ("record", recording.record, "record disk0 disk0.rec"),
    ("replay", recording.replay, "replay disk0.rec"),
    ("qemu-args", attaching.qemu_args, "qemu-args gpio.yaml --memory 512M"),
    ("doctor", attaching.doctor, "doctor"),
    ("new", creating.new, "new my-nic"),
    ("shutdown", lifecycle.shutdown, "shutdown"),
):
    app.command(verb, epilog=f"Example: vdcm {example}")(function)


def _place(error: OSError) -> str:
    if error.filename is not None:
        return os.fsdecode(error.filename)
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG):
        return "the output cannot be written"
    return "failed (vdcm --debug ... shows where)"


def main() -> None:
    """The entry point of the command ``vdcm``."""
    if sys.stdout is None:  # closed by whoever has started us
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115  # as long as the process
    try:
        app()
    except OSError as error:  # what can be foreseen is a VdcmError: this is mostly a full disk
        if _debug:
            traceback.print_exc()
        print(f"vdcm: {_place(error)}: {error.strerror or error}", file=sys.stderr)
        with suppress(OSError, ValueError):  # what is left in the buffer would fail again at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except VdcmError as error:
        if _debug:
            traceback.print_exc()
        for line in str(error).splitlines():
            print(f"vdcm: {line}", file=sys.stderr)
        sys.exit(2 if isinstance(error, DefinitionError) else 1)
