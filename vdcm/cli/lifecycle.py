"""The life of a VDEV: define, modify and undefine, start, stop and reset it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from vdcm.cli.common import Control, Json, Name, Uuid, connect, pairs, print_json, which

Parents = Annotated[
    list[str] | None,
    typer.Option(
        "--parent",
        "-p",
        metavar="PARENT",
        help="The parent that has the type; more of them are where ADIs come from when it has "
        "none free. Not needed if only one parent has the type.",
        show_default=False,
    ),
]
Type = Annotated[
    str | None,
    typer.Option(
        "--type", "-t", metavar="TYPE", help="Its type; vdcm types lists them.", show_default=False
    ),
]
NewName = Annotated[
    str | None,
    typer.Option(
        "--name", "-n", metavar="NAME", help="A name beside its UUID.", show_default=False
    ),
]
NewUuid = Annotated[
    str | None,
    typer.Option(
        "--uuid", "-u", metavar="UUID", help="Its UUID, if not a new one.", show_default=False
    ),
]
Values = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="PROPERTY=VALUE",
        help="A property; vdcm types says which.",
        show_default=False,
    ),
]
Socket = Annotated[
    Path | None,
    typer.Option(
        "--socket", metavar="PATH", help="Its socket, if not the default.", show_default=False
    ),
]


def define(
    uuid: NewUuid = None,
    parent: Parents = None,
    kind: Type = None,
    name: NewName = None,
    auto: Annotated[
        bool, typer.Option("--auto", "-a", help="Start it whenever the server starts.")
    ] = False,
    values: Values = None,
    socket: Socket = None,
    jsonfile: Annotated[
        str | None,
        typer.Option(
            "--jsonfile",
            metavar="FILE|-",
            help="Instead of all the others: what vdcm list --json prints, or one of it.",
            show_default=False,
        ),
    ] = None,
    as_json: Json = False,
    control: Control = None,
) -> None:
    """Define a VDEV, for good, and print its UUID.

    It survives the server's restart. Nothing is taken for it until it is started, so more may be
    defined than there are resources for.
    """
    given = _definition(uuid, parent, kind, name, auto, values, socket)
    if jsonfile is not None:
        if given:
            raise typer.BadParameter("--jsonfile says everything: no other option with it")
        definitions = _read(jsonfile)
    else:
        definitions = [_complete(given)]
    with connect(control) as client:
        made = client.call("define", definitions=definitions)
    if as_json:
        print_json(made)
    else:
        for one in made:
            typer.echo(one["uuid"])


def undefine(name: Name = None, uuid: Uuid = None, control: Control = None) -> None:
    """Forget the definition of a VDEV.

    One that is started stays until it is stopped.
    """
    vdev = which(name, uuid)
    with connect(control) as client:
        client.call("undefine", name=vdev)


def modify(
    name: Name = None,
    uuid: Uuid = None,
    kind: Type = None,
    values: Values = None,
    delete: Annotated[
        list[str] | None,
        typer.Option(
            "--delete",
            metavar="PROPERTY",
            help="A property that gets its default again.",
            show_default=False,
        ),
    ] = None,
    auto: Annotated[
        bool | None,
        typer.Option(
            "--auto/--manual",
            "-a/-m",
            help="Start it whenever the server starts, or do not.",
            show_default=False,
        ),
    ] = None,
    as_json: Json = False,
    control: Control = None,
) -> None:
    """Change the definition of a VDEV.

    One that is started changes when it is started next; vdcm set changes it at once.
    """
    changes: dict[str, Any] = {"type": kind, "delete": delete or None, "auto": auto}
    if values:
        changes["set"] = pairs(values)
    if all(change is None for change in changes.values()):
        raise typer.BadParameter("nothing to change: --type, --set, --delete, --auto or --manual")
    vdev = which(name, uuid)
    with connect(control) as client:
        changed = client.call("modify", name=vdev, **changes)
    if as_json:
        print_json(changed)


def start(
    name: Name = None,
    uuid: NewUuid = None,
    parent: Parents = None,
    kind: Type = None,
    new_name: NewName = None,
    values: Values = None,
    socket: Socket = None,
    as_json: Json = False,
    control: Control = None,
) -> None:
    """Start a VDEV, and print its UUID and socket.

    One that is defined, by NAME or --uuid; or with --type one that is not, and is gone when it is
    stopped. Starting takes what it needs of its parents, and fails if they have it not free.
    """
    given = _definition(uuid, parent, kind, new_name, False, values, socket)
    if kind is not None and name is not None:
        raise typer.BadParameter("NAME is one that is defined; --name names a new one")
    if kind is None and set(given) - {"uuid"}:
        raise typer.BadParameter("a VDEV that is not defined needs its --type")
    wanted = {"name": which(name, uuid)} if kind is None else {"definition": given}
    with connect(control) as client:
        started = client.call("start", **wanted)
    if as_json:
        print_json(started)
    else:
        typer.echo(f"{started['uuid']} {started['socket']}")


def stop(name: Name = None, uuid: Uuid = None, control: Control = None) -> None:
    """Stop a VDEV.

    Its client is disconnected, and what it had of its parents is free. In a running guest unplug
    the device first (QMP device_del).
    """
    vdev = which(name, uuid)
    with connect(control) as client:
        client.call("stop", name=vdev)


def reset(name: Name = None, uuid: Uuid = None, control: Control = None) -> None:
    """Reset a started VDEV, as a function-level reset of its guest does."""
    vdev = which(name, uuid)
    with connect(control) as client:
        client.call("reset", name=vdev)


def shutdown(control: Control = None) -> None:
    """End the server.

    All VDEVs are stopped; what is defined is still so when it is started again.
    """
    with connect(control) as client:
        client.call("shutdown")


def _definition(
    uuid: str | None,
    parents: list[str] | None,
    kind: str | None,
    name: str | None,
    auto: bool,
    values: list[str] | None,
    socket: Path | None,
) -> dict[str, Any]:
    """The definition that options say, without what they do not say."""
    said = {
        "uuid": uuid,
        "name": name,
        "type": kind,
        "parents": parents or None,
        "auto": auto or None,
        "socket": str(socket.absolute()) if socket is not None else None,
        "properties": pairs(values) if values else None,
    }
    return {key: value for key, value in said.items() if value is not None}


def _complete(given: dict[str, Any]) -> dict[str, Any]:
    if "type" not in given:
        raise typer.BadParameter("a VDEV needs its --type (vdcm types lists them), or --jsonfile")
    return given


def _read(jsonfile: str) -> list[Any]:
    """The definitions in a file, or in what comes on stdin."""
    try:
        text = sys.stdin.read() if jsonfile == "-" else Path(jsonfile).read_text()
        found = json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        what = error.strerror if isinstance(error, OSError) else f"is not JSON: {error}"
        raise typer.BadParameter(f"{jsonfile}: {what}") from error
    return found if isinstance(found, list) else [found]
