"""The cache: artefacts in folders keyed by version, whole or absent, safe when two runs race.

Layout of ``${XDG_CACHE_HOME:-~/.cache}/vdcm``::

    <kind>-<version>/    an artefact; it appears by one rename, so it is always whole
    <kind>               symbolic link to the artefact in use
    .lock-<kind>         flock held while an artefact of that kind is made
    .new-<kind>-*/       being made; one found by the holder of the lock is a dead run's, removed
    apt/  log/           the private apt's lists; what the commands said
    environment.json     where everything is, written last
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ci.provision.console import Console, drop_lock, hold_lock

FACTS = "artefact.json"

Builder = Callable[[Path, Path], dict[str, Any]]
"""Fills a folder (first argument) that will stand at its final path (second); returns facts."""


def cache_root() -> Path:
    """``${XDG_CACHE_HOME:-~/.cache}/vdcm``; a relative XDG_CACHE_HOME is ignored, as XDG says."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return (base if base.is_absolute() else Path("~/.cache").expanduser()) / "vdcm"


class Cache:
    """Artefacts below ``root``."""

    def __init__(self, root: Path, console: Console) -> None:
        self.root = root
        self._console = console
        root.mkdir(parents=True, exist_ok=True)

    @contextmanager
    def lock(self, kind: str) -> Iterator[None]:
        """Hold the kind's lock; says so when another run has it."""
        fd = os.open(self.root / f".lock-{kind}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self._console.say(kind, "another run is at work on this; waiting for it")
                fcntl.flock(fd, fcntl.LOCK_EX)
            hold_lock(fd)
            yield
        finally:
            drop_lock(fd)
            os.close(fd)

    def current(self, kind: str) -> Path | None:
        """The artefact in use, or None."""
        link = self.root / kind
        return link.resolve() if (link / FACTS).is_file() else None

    def provide(
        self,
        kind: str,
        plan: Callable[[], tuple[str, Builder]],
        *,
        update: bool = False,
        packages: Iterable[str] = (),
    ) -> Path:
        """The artefact in use; without one (or to ``update``) ask ``plan`` for version and builder.

        Nothing is locked, asked of the archive or built when there is one already. One whose fact
        ``packages`` lacks some of these is as good as none.
        """
        wanted = set(packages)
        found = self._serving(kind, wanted)
        if found and not update:
            return found
        with self.lock(kind):
            found = self._serving(kind, wanted)
            if found and not update:
                return found
            for stale in self.root.glob(f".new-{kind}-*"):
                shutil.rmtree(stale, ignore_errors=True)
            key, build = plan()
            target = self.root / f"{kind}-{key}"
            if not (target / FACTS).is_file():
                self._make(kind, key, target, build)
            replace_link(self.root / kind, target.name)
        return target

    def _serving(self, kind: str, packages: set[str]) -> Path | None:
        found = self.current(kind)
        if found and packages:
            return found if packages <= set(facts(found).get("packages", ())) else None
        return found

    def _make(self, kind: str, key: str, target: Path, build: Builder) -> None:
        folder = Path(tempfile.mkdtemp(prefix=f".new-{kind}-", dir=self.root))
        try:
            facts = {"version": key, **build(folder, target)}
            (folder / FACTS).write_text(json.dumps(facts, indent=2) + "\n")
            folder.chmod(0o755)
            if target.exists():  # without facts: not ours to trust
                shutil.rmtree(target)
            folder.rename(target)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise

    def prune(self, kind: str) -> list[Path]:
        """Remove the kind's artefacts that are not in use; returns what was removed."""
        with self.lock(kind):
            used = self.current(kind)
            old = [
                path
                for path in self.root.glob(f"{kind}-*")
                if (path / FACTS).is_file() and path.resolve() != used
            ]
            for path in old:
                shutil.rmtree(path)
        return old


def facts(artefact: Path) -> dict[str, Any]:
    """What the builder of an artefact returned, and its ``version``."""
    loaded: dict[str, Any] = json.loads((artefact / FACTS).read_text())
    return loaded


def replace_link(link: Path, target: str) -> None:
    """Make or change a symbolic link in one step."""
    new = link.with_name(f".{link.name}.{os.getpid()}")
    new.unlink(missing_ok=True)
    new.symlink_to(target)
    new.replace(link)


def write_atomically(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old or the new text, never a part."""
    new = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        new.write_text(text)
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)
