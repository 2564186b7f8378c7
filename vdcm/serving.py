"""Serving in the foreground until told to stop: signals, the service manager, limits, the log."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

from vdcm.definition import runtime_folder
from vdcm.errors import TransportError, VdcmError
from vdcm.manager import Manager
from vdcm.vdev import Vdev

log = logging.getLogger("vdcm.serving")

DESCRIPTORS_EACH: Final = 16
"""File descriptors of a VDEV with a client: its socket, the connection, shared BARs, a memory
backend or two, the eventfds of its interrupts. What most need, not what one may."""
DESCRIPTORS_OWN: Final = 64
"""File descriptors of the process itself."""


def raise_descriptor_limit() -> int:
    """Allow this process as many file descriptors as it may; how many that are."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def check_descriptors(vdevs: int, limit: int) -> None:
    """Warn if ``vdevs`` with a client each may need more file descriptors than ``limit``."""
    needed = DESCRIPTORS_OWN + vdevs * DESCRIPTORS_EACH
    if needed > limit:
        log.warning(
            "%d VDEVs need about %d file descriptors, and the limit is %d: raise it "
            "(LimitNOFILE= of the service, or ulimit -Hn)",
            *(vdevs, needed, limit),
        )


def notify(state: str) -> None:
    """Tell the service manager, if one has started us and asks for it (sd_notify(3))."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    if address.startswith("@"):
        address = "\0" + address[1:]  # an abstract socket
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
        try:
            channel.sendto(state.encode(), address)
        except OSError as error:
            log.warning("cannot notify the service manager: %s", error.strerror)


async def serve_until_stopped(manager: Manager, ready: Callable[[], None] = lambda: None) -> int:
    """Serve all VDEVs of ``manager``, call ``ready``, and return the exit code 0 when told to stop.

    SIGTERM, SIGINT and ``manager.stopping`` stop it; all VDEVs are closed then, as they are when
    one cannot be served (``Manager.start_all``). A second signal of these has its default effect.
    """
    loop = asyncio.get_running_loop()
    signals = (signal.SIGTERM, signal.SIGINT)

    def told() -> None:
        manager.stopping.set()
        for number in signals:
            loop.remove_signal_handler(number)

    for number in signals:
        loop.add_signal_handler(number, told)  # until the loop is closed: closing is not cut short
    gc.freeze()  # what is there now stays: no collection has to look at it while guests wait
    try:
        await manager.start_all()
        gc.freeze()  # a thousand VDEVs: a collection that looked at them took 80 ms
        ready()
        notify("READY=1")
        await manager.stopping.wait()
        notify("STOPPING=1")
        log.info("stopping")
        return 0
    finally:
        gc.unfreeze()
        manager.close()


def serve(*vdevs: Vdev, path: Path | str | None = None, folder: Path | str | None = None) -> int:
    """Serve VDEVs from a script until SIGINT or SIGTERM; 0 then.

        serve(Blink("blink0"), path="/tmp/blink0.sock")

    ``path`` is the socket of a single VDEV. Otherwise each gets ``folder/NAME.sock``, by default in
    the runtime folder. Raises VdcmError for a ``path`` with several VDEVs. A socket that cannot be
    had ends the script: one line on stderr, exit code 1. Log lines go to stderr unless logging is
    configured already.
    """
    if not vdevs or (path is not None and len(vdevs) > 1):
        raise VdcmError("serve() takes one VDEV and its path, or some VDEVs and their folder")
    if not logging.getLogger().handlers:
        log_to_stderr()

    async def run() -> int:
        manager = Manager()
        for vdev in vdevs:
            place = Path(folder) if folder is not None else runtime_folder()
            manager.add(vdev, Path(path) if path is not None else place / f"{vdev.name}.sock")
        return await serve_until_stopped(manager)

    try:
        return asyncio.run(run())
    except TransportError as error:
        print(f"vdcm: {error}", file=sys.stderr)
        raise SystemExit(1) from error


class _Format(logging.Formatter):
    """``HH:MM:SS level name: text``."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(level)s %(name)s: %(message)s", "%H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        record.level = record.levelname.lower()
        return super().format(record)


def log_to_stderr(level: int | str = logging.INFO) -> None:
    """Send all log lines from ``level`` on to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Format())
    logging.basicConfig(level=level, handlers=[handler], force=True)
