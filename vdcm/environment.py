"""Where ``ci/bootstrap`` has put what a demo or a test needs; standard library only."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vdcm.errors import PrerequisiteError


@dataclass(frozen=True)
class Environment:
    """What ``environment.json`` says.

    ``qemu``: the command (argv prefix) of a QEMU with vfio-user-pci, ``qemu_version`` its version.
    ``kernel``: the guest kernel's image; ``modules`` and ``headers``: folders of the same
    ``kernel_release``. ``guest_root``: folder with the programs that guests use and their
    libraries. ``libvfio_user``: variables for a build of vdcm. ``python``: the interpreter of the
    environment in which vdcm is installed. ``initrd``: the user's own (vdcm.testing), else none.
    """

    qemu: tuple[str, ...]
    qemu_version: str
    kernel: Path
    kernel_release: str
    modules: Path
    headers: Path
    guest_root: Path
    libvfio_user: dict[str, str]
    python: Path
    initrd: Path | None = None


def cache_root() -> Path:
    """``${XDG_CACHE_HOME:-~/.cache}/vdcm``; a relative XDG_CACHE_HOME is ignored, as XDG says."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return (base if base.is_absolute() else Path("~/.cache").expanduser()) / "vdcm"


def load_environment(path: Path | None = None) -> Environment:
    """Read ``path``, by default ``environment.json`` of the cache.

    Raises PrerequisiteError if it is missing, incomplete or names what is gone.
    """
    path = path or cache_root() / "environment.json"
    try:
        loaded: dict[str, Any] = json.loads(path.read_text())
        environment = Environment(
            qemu=tuple(loaded["qemu"]),
            qemu_version=loaded["qemu_version"],
            kernel=Path(loaded["kernel"]),
            kernel_release=loaded["kernel_release"],
            modules=Path(loaded["modules"]),
            headers=Path(loaded["headers"]),
            guest_root=Path(loaded["guest_root"]),
            libvfio_user=dict(loaded["libvfio_user"]),
            python=Path(loaded["python"]),
        )
    except FileNotFoundError:
        raise PrerequisiteError(f"{path} is missing: run ci/bootstrap") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise PrerequisiteError(f"{path} cannot be used ({error!r}): run ci/bootstrap") from error
    needed = [
        Path(environment.qemu[0]) if environment.qemu else path / "qemu",
        environment.kernel,
        environment.modules,
        environment.guest_root,
    ]
    for item in needed:
        if not item.exists():
            raise PrerequisiteError(f"{item}, named in {path}, is gone: run ci/bootstrap")
    return environment
