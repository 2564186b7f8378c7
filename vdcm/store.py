"""Definitions on disk: one JSON file each, so that whatever happens to one costs no other.

A file is written beside its place, brought to the disk, and put there by rename(2): it is the old
one or the new one, whole, whenever the machine stops. A server has its folder to itself (flock(2)).
"""

from __future__ import annotations

import fcntl
import json
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from vdcm.errors import StoreError

FILE_LIMIT: Final = 64 * 1024
"""Bytes of the longest file that is read."""

_SUFFIX: Final = ".json"
_UNFINISHED: Final = ".new"


class Store:
    """The definitions in ``folder``, by UUID. It is created when there is something to keep.

    Methods raise StoreError, which names the file and the fix. Closing sets the folder free; twice
    is harmless.
    """

    def __init__(self, folder: Path) -> None:
        self.folder: Final = folder
        self._lock = -1

    def read(self, take: Callable[[dict[str, Any]], object]) -> list[StoreError]:
        """Give ``take`` each definition, in the order of their UUIDs.

        A file that cannot be used, or that ``take`` raises for, is left as it is and costs nothing
        but itself: what is wrong with it is in the list that is returned.
        """
        with _blame(self.folder):
            if not self.folder.exists():
                return []
        self._open()
        with _blame(self.folder):
            paths = sorted(self.folder.iterdir())
        wrong = []
        for path in paths:
            if path.suffix == _UNFINISHED:  # of a server that was killed while it wrote
                with suppress(OSError):
                    path.unlink()
            elif path.suffix == _SUFFIX:
                try:
                    take(_parsed(path))
                except Exception as error:
                    what = error.strerror if isinstance(error, OSError) else error
                    wrong.append(
                        StoreError(
                            f"{path}: this definition is left out: {what}; repair the file "
                            "or remove it, then start the server again"
                        )
                    )
        return wrong

    def write(self, *definitions: Mapping[str, Any], new: bool = False) -> None:
        """Store definitions under their ``uuid``; all, or none if one cannot be written.

        With ``new`` there must be none under a UUID yet.
        """
        with _blame(self.folder):
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._open()
        paths = [self._path(definition["uuid"]) for definition in definitions]
        for path in paths:
            if new and path.exists():
                raise StoreError(f"{path} is there, and could not be used: repair it or remove it")
        try:
            for path, definition in zip(paths, definitions, strict=True):
                with _blame(path), os.fdopen(os.open(_beside(path), _FLAGS, 0o600), "w") as file:
                    file.write(json.dumps(definition, indent=2) + "\n")
            for path in paths:  # after all are written: most disks bring them over together
                with _blame(path):
                    _sync(_beside(path))
            for path in paths:
                with _blame(path):
                    _beside(path).rename(path)
            with _blame(self.folder):
                os.fsync(self._lock)
        except BaseException:
            for path in paths:
                with suppress(OSError):
                    _beside(path).unlink(missing_ok=True)
                    if new:
                        path.unlink(missing_ok=True)
            raise

    def remove(self, uuid: str) -> None:
        """Forget a definition; one that is gone already is forgotten too."""
        path = self._path(uuid)
        with _blame(path):
            if not self.folder.exists():
                return
        self._open()
        with _blame(path):
            path.unlink(missing_ok=True)
            os.fsync(self._lock)

    def close(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _path(self, uuid: str) -> Path:
        return self.folder / f"{uuid}{_SUFFIX}"

    def _open(self) -> None:
        """Have the folder to ourselves, also one that has taken the place of ours."""
        if self._lock >= 0:
            with _blame(self.folder):
                if os.path.samestat(os.fstat(self._lock), self.folder.stat()):
                    return
            self.close()
        with _blame(self.folder):
            folder = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(folder)
            raise StoreError(
                f"{self.folder} belongs to another server that is running: "
                "give this one a folder of its own with --state"
            ) from error
        self._lock = folder


def _beside(path: Path) -> Path:
    """Where a file is written that shall be ``path``."""
    return path.with_suffix(_UNFINISHED)


def _sync(path: Path) -> None:
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(file)
    finally:
        os.close(file)


_FLAGS: Final = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW


def _at_once(path: str, flags: int) -> int:
    """Without waiting, as for whoever writes to a pipe."""
    return os.open(path, flags | os.O_NONBLOCK)


def _parsed(path: Path) -> dict[str, Any]:
    with open(path, "rb", opener=_at_once) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ValueError("it is no file")
        data = file.read(FILE_LIMIT + 1)
    if len(data) > FILE_LIMIT:
        raise ValueError(f"it is longer than {FILE_LIMIT} bytes")
    try:
        definition = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"it is not JSON ({error})") from error
    if not isinstance(definition, dict) or definition.get("uuid") != path.stem:
        raise ValueError(f"it is no JSON object with the uuid {path.stem}")
    return definition


@contextmanager
def _blame(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"{path}: cannot be stored: {error.strerror}; make room there or correct its "
            "permissions, or start the server with another folder (--state)"
        ) from error
