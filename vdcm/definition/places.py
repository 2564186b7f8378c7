"""Where sockets and stored definitions are, unless somebody says otherwise."""

from __future__ import annotations

import os
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

from vdcm.errors import TransportError


def runtime_folder() -> Path:
    """Where sockets go that have no path of their own; it need not exist.

    ``$XDG_RUNTIME_DIR/vdcm``, else ``/run/vdcm`` for root, else ``vdcm-UID`` in the temporary
    folder. A relative XDG_RUNTIME_DIR is ignored (XDG base directory specification).
    """
    base = Path(os.environ.get("XDG_RUNTIME_DIR", ""))
    if base.is_absolute():
        return base / "vdcm"
    if os.geteuid() == 0:
        return Path("/run/vdcm")
    return Path(tempfile.gettempdir()) / f"vdcm-{os.geteuid()}"


def control_path() -> Path:
    """The control socket of a server whose definition names none."""
    return runtime_folder() / "control.sock"


def state_folder() -> Path:
    """Where definitions are stored that survive a restart; it need not exist.

    ``$XDG_STATE_HOME/vdcm``, else ``/var/lib/vdcm`` for root, else ``~/.local/state/vdcm``. A
    relative XDG_STATE_HOME is ignored (XDG base directory specification).
    """
    base = Path(os.environ.get("XDG_STATE_HOME", ""))
    if base.is_absolute():
        return base / "vdcm"
    if os.geteuid() == 0:
        return Path("/var/lib/vdcm")
    return Path("~/.local/state/vdcm").expanduser()


def make_runtime_folder() -> Path:
    """Create ``runtime_folder()`` with mode 0700.

    Raises TransportError if it cannot be, or is there and not ours alone: whoever can write to the
    folder could put a socket of theirs in the place of ours.
    """
    folder = runtime_folder()
    try:
        with suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        found = folder.lstat()
    except OSError as error:
        raise TransportError(
            f"{folder}: cannot be created: {error.strerror}; set XDG_RUNTIME_DIR to a folder of "
            "yours, or give each VDEV a socket: in the definition file"
        ) from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise TransportError(
            f"{folder} is not a folder that only we can write to: remove it, or set "
            "XDG_RUNTIME_DIR to a folder of yours"
        )
    return folder
