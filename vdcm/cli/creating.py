"""``vdcm new``: the beginning of a device of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vdcm.new import make


def new(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME", help="The device's name, such as my-nic.", show_default=False
        ),
    ],
    directory: Annotated[
        Path | None,
        typer.Option(
            "--directory",
            metavar="DIR",
            help="The folder to make; by default NAME, here.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Make a package for a device of your own.

    With a register map, a model, tests of the model, over vfio-user and in a guest, and a README.
    It works at once: install it, and vdcm types lists it.
    """
    folder = directory or Path(name)
    for path in make(name, folder):
        typer.echo(path)
    typer.echo(f"next: cd {folder} && pip install -e '.[dev]' && pytest")
