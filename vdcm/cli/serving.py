"""``vdcm serve``: the server, which the other commands talk to."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from pathlib import Path
from typing import Annotated, Final

import typer

from vdcm.cli.common import table
from vdcm.control import ControlServer
from vdcm.definition import Definition, control_path, implicit_parents, load, state_folder
from vdcm.entry import Listener
from vdcm.errors import PrerequisiteError, VdcmError
from vdcm.events import Observer
from vdcm.manager import Manager
from vdcm.parent import models
from vdcm.serving import (
    check_descriptors,
    log_to_stderr,
    raise_descriptor_limit,
    serve_until_stopped,
)
from vdcm.store import Store

LEVELS: Final = ("debug", "info", "warning", "error")


def serve(
    file: Annotated[
        Path | None,
        typer.Argument(metavar="FILE.yaml", help="A definition file.", show_default=False),
    ] = None,
    state: Annotated[
        Path | None,
        typer.Option(
            "--state",
            metavar="DIR",
            help="Where definitions are kept that survive a restart. By default "
            "$XDG_STATE_HOME/vdcm or ~/.local/state/vdcm, for root /var/lib/vdcm.",
            show_default=False,
        ),
    ] = None,
    control: Annotated[
        Path | None,
        typer.Option(
            "--control",
            envvar="VDCM_CONTROL",
            metavar="PATH",
            help="The socket for the other commands, if it is not the file's or the default one.",
            show_default=False,
        ),
    ] = None,
    trace: Annotated[
        bool, typer.Option("--trace", help="Print every access, interrupt and DMA map.")
    ] = False,
    metrics: Annotated[
        str | None,
        typer.Option(
            "--metrics",
            envvar="VDCM_METRICS",
            metavar="[HOST:]PORT",
            help="Answer Prometheus there; without HOST for this machine only.",
            show_default=False,
        ),
    ] = None,
    log_level: Annotated[
        str, typer.Option("--log-level", metavar="|".join(LEVELS), help="What to log to stderr.")
    ] = "info",
) -> None:
    """Serve VDEVs until SIGINT or SIGTERM.

    Those of a definition file, if there is one, and those that vdcm define has defined, which
    survive a restart. Each that is started listens on a UNIX socket for one QEMU (or other
    vfio-user client) at a time. It stays in the foreground and tells a service manager when it
    is ready (sd_notify).
    """
    if log_level.lower() not in LEVELS:
        raise typer.BadParameter(f"{log_level} is none of {', '.join(LEVELS)}")
    log_to_stderr(log_level.upper())
    measured = _metrics(metrics) if metrics is not None else _no_metrics
    if file is not None:
        definition = load(file)
    else:
        parents = tuple(implicit_parents(models()).values())
        definition = Definition(None, parents, (), control_path())
    store = Store((state or state_folder()).absolute())
    path = control.absolute() if control is not None else definition.control
    raise typer.Exit(asyncio.run(_serve(definition, store, path, trace, measured)))


Measured = Callable[[Manager], AbstractAsyncContextManager[object]]


def _metrics(address: str) -> Measured:
    try:
        from vdcm import metrics
    except ModuleNotFoundError as error:
        raise PrerequisiteError(
            f"--metrics needs {error.name}, which is not installed: pip install 'vdcm[metrics]'"
        ) from error
    try:
        host, port = metrics.parse_address(address)
    except VdcmError as error:
        raise typer.BadParameter(f"--metrics {error}") from error
    return lambda manager: metrics.MetricsServer(manager, host, port)


def _no_metrics(_manager: Manager) -> AbstractAsyncContextManager[object]:
    return nullcontext()


async def _serve(
    definition: Definition, store: Store, control: Path, trace: bool, measured: Measured
) -> int:
    manager = Manager(store)
    limit = raise_descriptor_limit()

    def ready() -> None:
        vdevs = manager.summaries()
        check_descriptors(len(vdevs), limit)
        if vdevs:
            table(
                ("VDEV", "TYPE", "STATE", "SOCKET"),
                [(one["name"], one["type"], one["state"], one["socket"]) for one in vdevs],
            )
            typer.echo(f"attach them to QEMU: vdcm qemu-args {definition.file or 'NAME'}")
        else:
            typer.echo("no VDEV is defined yet: vdcm types, then vdcm define --type TYPE")
        sys.stdout.flush()

    try:
        manager.adopt(definition)
        async with ControlServer(manager, control), measured(manager):
            manager.recall()
            if trace:
                logging.getLogger("vdcm.trace").setLevel(logging.INFO)  # whatever --log-level is
                manager.listen(Listener(_logger))
            return await serve_until_stopped(manager, ready)
    finally:
        manager.close()
        # What is left is the interpreter's own end, and a signal that comes now is no failure.
        signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT))


def _logger(name: str) -> Observer:
    log = logging.getLogger(f"vdcm.trace.{name}")
    return lambda event: log.info("%s", event)
