"""What the user sees: one line per fact, progress while something takes long, a log of the rest."""

from __future__ import annotations

import os
import re
import selectors
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

TAIL_LINES = 20
_REDRAW_SECONDS = 0.1  # on a terminal
_REPORT_SECONDS = 5.0  # elsewhere: one plain line each
_APT_STATUS = re.compile(r"(?:dl|pm)status:[^:]*:([0-9.]+):(.*)")


class ProvisionError(Exception):
    """A step failed; the message says what and how to mend it."""


class CommandError(ProvisionError):
    """A command ended with a status other than 0; ``tail`` holds its last lines."""

    def __init__(self, what: str, argv: Sequence[str], status: int, tail: Sequence[str]) -> None:
        self.tail = tuple(tail)
        output = "\n".join(self.tail)
        hint = ""
        if "No space left on device" in output:
            hint = "\nthe disk is full: free some space (an empty cache needs about 2 GB)"
        name = Path(argv[0]).name
        end = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
        super().__init__(f"{what}: {name} {end}{hint}")


class Console:
    """Prints steps; runs commands with their output in ``log`` and their progress on screen."""

    def __init__(self, log: Path, out: IO[str] | None = None) -> None:
        self.log_path = log
        self._log: IO[str] | None = None
        self._out = out or sys.stdout
        self._tty = self._out.isatty()
        self._shown = 0.0
        self._drawn = False

    def say(self, topic: str, text: str) -> None:
        """One line that stays: ``topic`` is the step."""
        self._erase()
        print(f"{topic:<12} {text}", file=self._out, flush=True)
        self.note(f"# {topic}: {text}")

    def note(self, text: str) -> None:
        """A line for the log only. The file is made at the first one."""
        if self._log is None:
            self.log_path.parent.mkdir(parents=True, exist_ok=True)
            self._log = self.log_path.open("a", encoding="utf-8", errors="replace")
        print(text, file=self._log, flush=True)

    def progress(self, topic: str, text: str) -> None:
        """Where a long operation is: redrawn on a terminal, now and then a line elsewhere."""
        now = time.monotonic()
        if now - self._shown < (_REDRAW_SECONDS if self._tty else _REPORT_SECONDS):
            return
        self._shown = now
        line = f"{topic:<12} … {text}"
        if self._tty:
            width = os.get_terminal_size(self._out.fileno()).columns or 80
            print(f"\r\033[K{line[: width - 1]}", end="", file=self._out, flush=True)
            self._drawn = True
        else:
            print(line, file=self._out, flush=True)

    def run(
        self,
        topic: str,
        what: str,
        argv: Sequence[str],
        *,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        """Run a command; ``env`` is added to the environment. Raises CommandError."""
        self.note(f"$ {' '.join(argv)}")
        start = time.monotonic()
        self._shown = start  # a quick command shows no progress
        tail: deque[str] = deque(maxlen=TAIL_LINES)
        latest = what
        with subprocess.Popen(
            argv,
            cwd=cwd,
            env={**os.environ, **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=tuple(_held_locks),
        ) as process:
            assert process.stdout is not None
            try:
                for line in _lines(process.stdout):
                    if line:
                        status = _APT_STATUS.match(line)
                        if status:
                            latest = f"{what}: {float(status[1]):.0f} % {status[2]}"
                        else:
                            tail.append(line)
                            self.note(line)
                    self.progress(topic, f"{latest} ({time.monotonic() - start:.0f} s)")
            except BaseException:
                process.terminate()
                raise
        self._erase()
        if process.returncode:
            raise CommandError(what, argv, process.returncode, tail)

    def _erase(self) -> None:
        if self._drawn:
            print("\r\033[K", end="", file=self._out, flush=True)
            self._drawn = False


# Descriptors of the locks that are held. Commands inherit them: should this process be killed,
# the lock lasts until the command that still writes into the cache has ended too.
_held_locks: set[int] = set()


def hold_lock(fd: int) -> None:
    """Let commands inherit the lock behind ``fd``."""
    _held_locks.add(fd)


def drop_lock(fd: int) -> None:
    """The reverse of ``hold_lock``."""
    _held_locks.discard(fd)


def _lines(stream: IO[bytes]) -> Iterator[str]:
    """The stream's lines as they come, and an empty string for each second without one."""
    pending = b""
    with selectors.DefaultSelector() as selector:
        selector.register(stream, selectors.EVENT_READ)
        while True:
            if not selector.select(timeout=1.0):
                yield ""
                continue
            chunk = os.read(stream.fileno(), 65536)
            if not chunk:
                break
            *lines, pending = re.split(rb"[\r\n]+", pending + chunk)
            for line in lines:
                yield line.decode(errors="replace").rstrip()
    yield pending.decode(errors="replace").rstrip()
