"""The commands, as ``--help`` tells of them."""

from __future__ import annotations

import typer
from typer.testing import CliRunner

from vdcm.cli import app


def page() -> str:
    """A page of every command's help."""
    parts = [
        "# Commands",
        "Exit codes: 0 done, 1 failed, 2 wrong usage or a wrong definition.",
        _help(),
    ]
    group = typer.main.get_command(app)
    for verb in getattr(group, "commands", {}):
        parts += [f"## vdcm {verb}", _help(verb)]
    return "\n\n".join(parts) + "\n"


def _help(*verb: str) -> str:
    shown = CliRunner().invoke(
        app, [*verb, "--help"], prog_name="vdcm", env={"COLUMNS": "90", "TERM": "dumb"}
    )
    if shown.exit_code:
        raise RuntimeError(f"vdcm {' '.join(verb)} --help ends with {shown.exit_code}")
    return f"```text\n{shown.output.strip()}\n```"
