"""Attaching VDEVs to a VMM, and what the machine has for it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from vdcm import doctor as machine
from vdcm import qemu_args as attach
from vdcm.cli.common import Control, Json, connect, print_json
from vdcm.definition import choices, load
from vdcm.errors import VdcmError


def qemu_args(
    what: Annotated[
        list[str],
        typer.Argument(
            metavar="NAME...|FILE.yaml [NAME...]|SOCKET",
            help="VDEVs of the running server, by name or UUID; or of a definition file; or the "
            "socket (*.sock) of one.",
            show_default=False,
        ),
    ],
    memory: Annotated[
        str, typer.Option("--memory", metavar="SIZE", help="The guest's memory.")
    ] = "1G",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the argument vector as JSON.")
    ] = False,
    libvirt: Annotated[
        bool, typer.Option("--libvirt", help="Print what to add to a libvirt domain.")
    ] = False,
    qmp: Annotated[
        str | None,
        typer.Option(
            "--qmp",
            metavar="BUS",
            help="Print the QMP command that plugs one into BUS, an empty pcie-root-port of a "
            "running QEMU.",
            show_default=False,
        ),
    ] = None,
    control: Control = None,
) -> None:
    """Print the arguments that attach VDEVs.

    For QEMU 10.1 or later, ready to paste. They include memory that is shared with the server,
    which DMA needs.
    """
    if sum((as_json, libvirt, qmp is not None)) > 1:
        raise typer.BadParameter("--json, --libvirt and --qmp exclude each other")
    try:
        attach.check_memory(memory)
    except VdcmError as error:
        raise typer.BadParameter(str(error)) from None
    sockets = _sockets(what, control)
    if qmp is not None:
        for path in sockets:
            typer.echo(attach.device_add(path, qmp))
    elif libvirt:
        typer.echo(attach.libvirt(sockets))
    elif as_json:
        print_json(attach.arguments(sockets, memory))
    else:
        typer.echo(attach.shell(attach.arguments(sockets, memory)))


def _sockets(what: Sequence[str], control: Path | None) -> list[Path]:
    for name in what:
        if what.count(name) > 1:
            raise typer.BadParameter(f"{name} is here twice")
    first, names = Path(what[0]), what[1:]
    if first.suffix == ".sock" or first.is_socket():
        if names:
            raise typer.BadParameter("a socket has no VDEVs to choose from")
        return [first.absolute()]
    if first.suffix not in (".yaml", ".yml") and not first.is_file():
        with connect(control) as client:
            return [Path(client.call("show", name=name)["socket"]) for name in what]
    known = {vdev.name: vdev.path for vdev in load(first).vdevs}
    for name in names:
        if name not in known:
            raise typer.BadParameter(f"{first} has no VDEV {name} {choices(name, known)}")
    return [known[name] for name in names or known]


def doctor(as_json: Json = False) -> None:
    """Check this machine, with the fixes.

    QEMU, KVM, limits, memory, guest kernel and device models. A warning means slower, or only
    in part; the exit code is 1 if a check fails.
    """
    results = machine.examine()
    if as_json:
        print_json(
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
