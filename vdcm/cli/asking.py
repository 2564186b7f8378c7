"""Asking a server: what there is, what it does, and what it shall be."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from vdcm.catalog import describe_types
from vdcm.cli.common import (
    Control,
    Json,
    Name,
    Uuid,
    connect,
    outline,
    pairs,
    print_json,
    scalar,
    table,
    which,
)
from vdcm.definition import implicit_parents
from vdcm.errors import ControlError
from vdcm.parent import installed_since, models


def list_vdevs(
    defined: Annotated[
        bool, typer.Option("--defined", "-d", help="Only those that survive the server's restart.")
    ] = False,
    as_json: Json = False,
    control: Control = None,
) -> None:
    """List the VDEVs of a running server.

    STATE is defined (not started), failed (vdcm show says why), ready (waits for a client),
    attached (has one) or resetting. ORIGIN is file (the server's definition file), stored (vdcm
    define), transient (vdcm start) or script. What --json prints, vdcm define --jsonfile takes.
    """
    with connect(control) as client:
        vdevs = client.call("list", defined=defined)
    if as_json:
        print_json(vdevs)
        return
    table(
        ("NAME", "TYPE", "PARENT", "STATE", "START", "ORIGIN", "SOCKET"),
        [
            (
                *(one["name"], one["type"], ",".join(one["parents"]), one["state"]),
                *("auto" if one["auto"] else "manual", one["origin"], one["socket"]),
            )
            for one in vdevs
        ],
    )


def show(
    name: Name = None, uuid: Uuid = None, as_json: Json = False, control: Control = None
) -> None:
    """Show all there is to know of a VDEV.

    What it is composed of, while it is started: ADIs, PASIDs, BARs and their pages, interrupts;
    its client, DMA map, counters and properties.
    """
    vdev = which(name, uuid)
    with connect(control) as client:
        shown = client.call("show", name=vdev)
    if as_json:
        print_json(shown)
    else:
        registers = shown.pop("registers", [])  # many, so last
        typer.echo("\n".join(outline({**shown, "registers": registers})))


def set_properties(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="A VDEV's name or UUID.", show_default=False)
    ],
    values: Annotated[
        list[str],
        typer.Argument(
            metavar="PROPERTY=VALUE...", help="vdcm types says which.", show_default=False
        ),
    ],
    control: Control = None,
) -> None:
    """Set properties of a VDEV.

    All of them, or none if one is wrong. Of one that is started they are its own until it is
    stopped, as if someone turned a knob; otherwise they are its definition's.
    """
    properties = pairs(values)
    with connect(control) as client:
        client.call("set", name=name, values=properties)


def types(
    parent: Annotated[
        str | None,
        typer.Option(
            "--parent", "-p", metavar="PARENT", help="Only this parent's.", show_default=False
        ),
    ] = None,
    as_json: Json = False,
    control: Control = None,
) -> None:
    """List the types of VDEV there are.

    With how many more of each could be started now, and their properties: LIVE ones may be set
    while the VDEV is started. If no server runs: what the installed device models have, and - for
    how many.
    """
    try:
        client = connect(control)
    except ControlError:
        if parent is not None or control is not None:
            raise
        found = describe_types(implicit_parents(models()).values())
    else:
        with client:
            found = client.call("types", parent=parent)
        since = installed_since(one["model"] for one in found) if parent is None else ""
        if since:
            typer.echo(f"vdcm: these are the server's{since}", err=True)
    if as_json:
        print_json(found)
        return
    table(
        ("TYPE", "PARENT", "AVAILABLE", "WHAT IT IS"),
        [(t["type"], t["parent"], _available(t), t["doc"]) for t in found],
    )
    having: dict[tuple[str, ...], dict[str, None]] = {}  # most types share most properties
    for kind in found:
        for one in kind["properties"]:
            row = (one["name"], _range(one), "yes" if one["live"] else "no", one["doc"])
            having.setdefault(row, {})[kind["type"]] = None
    if having:
        typer.echo()
        table(
            ("PROPERTY", "VALUES", "LIVE", "OF TYPES", "WHAT IT IS"),
            [(*row[:3], ", ".join(kinds), row[3]) for row, kinds in having.items()],
        )


def parents(as_json: Json = False, control: Control = None) -> None:
    """List the parents that VDEVs are composed from.

    With how many more ADIs of each type they have of how many, and their properties, which the
    server's definition file sets.
    """
    with connect(control) as client:
        found = client.call("parents")
    if as_json:
        print_json(found)
        return
    table(
        ("PARENT", "MODEL", "ADIS FREE", "TYPES"),
        [(p["name"], p["model"], _free(p["driver"]), ", ".join(p["types"])) for p in found],
    )
    rows = [
        (parent["name"], one["name"], scalar("properties", one["value"]), _range(one), one["doc"])
        for parent in found
        for one in parent["properties"]
    ]
    if rows:
        typer.echo()
        table(("PARENT", "PROPERTY", "VALUE", "VALUES", "WHAT IT IS"), rows)


def _free(driver: dict[str, Any] | None) -> str:
    if driver is None:
        return "-"
    kinds = driver["adi_types"].items()
    return ", ".join(f"{name} {one['available']}/{one['maximum']}" for name, one in kinds)


def _available(one: dict[str, Any]) -> str:
    if "available" not in one:
        return "-"
    return "any" if one["available"] is None else str(one["available"])


def _range(one: dict[str, Any]) -> str:
    if one["kind"] == "bool":
        return f"true, false (default {str(one['default']).lower()})"
    if one["kind"] == "str":
        return f"{', '.join(one['choices']) or 'text'} (default {one['default']!r})"
    upper = "or more" if one["maximum"] is None else f"to {one['maximum']}"
    return f"{one['minimum']} {upper} (default {one['default']})"
