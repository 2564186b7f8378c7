"""``vdcm record`` and ``vdcm replay``: a guest's session kept, and done again without a VM."""

from __future__ import annotations

import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from vdcm.cli.common import Control, Json, connect, print_json
from vdcm.cli.tracing import size_of
from vdcm.control import ControlClient
from vdcm.errors import ControlError, RecordingError
from vdcm.recording import Outcome
from vdcm.recording import replay as replay_file

LOOK: Final = 0.5
"""Seconds between two looks at whether a record has ended by itself."""
IDENTICAL, DIFFERS, UNUSABLE = 0, 1, 2


def record(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="A VDEV's name or UUID.", show_default=False)
    ],
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", help="Where to; a file that there is not yet.", show_default=False
        ),
    ],
    size: Annotated[
        str, typer.Option("--size", metavar="BYTES", help="Of FILE at most; then it ends.")
    ] = "1G",
    control: Control = None,
) -> None:
    """Record what a guest does to a VDEV, and what that does.

    The VDEV is started anew; attach a guest then. Ends with Ctrl-C (SIGINT), SIGTERM or a hang-up,
    or when the VDEV is stopped.
    While it is recorded each access is handled by Python, and nothing goes on beside that; so the
    guest finds it slow, until the VDEV is stopped and started again.
    """
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup has it
            signal.signal(number, signal.default_int_handler)
    with suppress(KeyboardInterrupt), connect(control) as client:
        client.call("record", name=name, file=str(file.absolute()), size=size_of(size))
        typer.echo(f"recording {name}: attach a guest now; Ctrl-C ends the record", err=True)
        try:
            while (ended := _ended(client, name)) is None:
                time.sleep(LOOK)
        except ControlError as error:
            raise RecordingError(
                f"{error}; {file} is not whole: vdcm replay --partial uses what it has"
            ) from error
        _check(file, ended)
        typer.echo(f"the record of {name} has ended: {ended}")
        return
    with connect(control) as client:  # not the one that Ctrl-C has found in the middle of an answer
        made = client.call("record_end", name=name)
    _check(file, made["ended"])
    typer.echo(f"{made['file']}: {made['records']} records, {made['bytes']} bytes")


def _check(file: Path, ended: str) -> None:
    if ended.startswith("failed"):
        raise RecordingError(
            f"{file} is not whole, the record has {ended}; vdcm replay --partial uses what it has"
        )


def _ended(client: ControlClient, name: str) -> str | None:
    """Why; None while it goes on."""
    for one in client.call("recordings"):
        if name in (one["name"], one["uuid"]):
            ended: str | None = one["ended"]
            return ended
    return "the VDEV was stopped"


def replay(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="What vdcm record made.", show_default=False)
    ],
    partial: Annotated[
        bool, typer.Option("--partial", help="Of a file that is not whole: as far as it is good.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Do what a guest did to a VDEV again, to its model as it is now, without a VM or a server.

    Exit code 0: the model does the same. 1: it does not; the first difference is printed, in its
    answers, its interrupts or what it writes to memory. 2: the file cannot be used.
    """
    try:
        outcome = replay_file(file, partial=partial)
    except RecordingError as error:
        typer.echo(f"vdcm: {error}", err=True)
        raise typer.Exit(UNUSABLE) from None
    if as_json:
        print_json(outcome.to_json())
    else:
        typer.echo(_said(outcome))
    raise typer.Exit(IDENTICAL if outcome.difference is None else DIFFERS)


def _said(outcome: Outcome) -> str:
    if outcome.difference is not None:
        return f"{outcome.name} ({outcome.type}): {outcome.difference}"
    counts: dict[str, Any] = dict(outcome.counts)
    said = ", ".join(f"{count} {_WORDS.get(kind, kind)}" for kind, count in counts.items())
    return (
        f"{outcome.name} ({outcome.type}) does the same as it was recorded to do: {said}, "
        f"in {outcome.seconds:.3f} s of the guest's"
    )


_WORDS = {
    "dma_writes": "writes to memory",
    "attach": "clients",
    "detach": "ends of clients",
    "memory": "DMA maps",
    "vectors": "changes of vectors",
    "host": "things by the host",
    "loop": "turns of the event loop",
    "read": "reads",
    "write": "writes",
    "reset": "resets",
}
