"""A QEMU with ``vfio-user-pci`` (QEMU 10.1 and later): the user's, the system's, or a private copy.

The private copy is a newer suite's package closure with its C library, started through that
library's own dynamic loader; hence it runs on a system with an older one.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ci.provision.archive import Archive
from ci.provision.cache import Builder, Cache
from ci.provision.console import CommandError, Console, ProvisionError

VARIABLE = "VDCM_QEMU"
PROGRAM = "qemu-system-x86_64"
_LIBRARIES = "usr/lib/x86_64-linux-gnu"
_LAUNCHER = f"""\
#!/bin/sh
# QEMU with its own C library, wherever this folder is.
root=$(dirname "$(dirname "$(readlink -f "$0")")")/root
QEMU_MODULE_DIR=$root/{_LIBRARIES}/qemu
export QEMU_MODULE_DIR
exec "$root/{_LIBRARIES}/ld-linux-x86-64.so.2" --library-path "$root/{_LIBRARIES}" \\
    "$root/usr/bin/{PROGRAM}" -L "$root/usr/share/qemu" -L "$root/usr/share/seabios" \\
    -L "$root/usr/lib/ipxe/qemu" "$@"
"""


@dataclass(frozen=True)
class Qemu:
    """How to start QEMU, its version, and where it came from."""

    command: tuple[str, ...]
    version: str
    origin: str


def probe(program: str, origin: str) -> Qemu | None:
    """The QEMU at ``program`` if it starts and knows the device."""
    try:
        devices = _output(program, "-device", "help")
        version = re.search(r"version (\S+)", _output(program, "--version"))
    except (OSError, subprocess.SubprocessError):
        return None
    if '"vfio-user-pci"' not in devices or version is None:
        return None
    return Qemu((program,), version[1], origin)


def provide_qemu(
    console: Console, cache: Cache, archive: Callable[[], Archive], *, update: bool
) -> Qemu:
    """The first that fits of $VDCM_QEMU, PATH and the private copy."""
    named = os.environ.get(VARIABLE)
    if named:
        program = shutil.which(named)
        found = probe(program, f"${VARIABLE}") if program else None
        if found is None:
            raise ProvisionError(
                f"{VARIABLE}={named} is no QEMU that lists vfio-user-pci in -device help: name "
                f"one of version 10.1 or later built with it, or unset {VARIABLE}"
            )
    else:
        program = shutil.which(PROGRAM)
        found = probe(program, "PATH") if program else None
    if found is None:
        folder = cache.provide("qemu", lambda: _plan(archive()), update=update)
        program = str(folder / "bin" / PROGRAM)
        found = probe(program, "private copy")
        if found is None:
            raise ProvisionError(
                f"the QEMU in {folder} does not start or has no vfio-user-pci: remove that "
                f"folder and run ci/bootstrap again, or set {VARIABLE}"
            )
    console.say("qemu", f"{found.version} ({found.origin}: {found.command[0]})")
    return found


def _plan(archive: Archive) -> tuple[str, Builder]:
    problems: list[str] = []
    for suites in archive.dist.qemu_suites:
        try:
            archive.refresh([archive.dist.codename, *suites])
            packages = archive.resolve(["qemu-system-x86"], suites[0])
        except CommandError as error:
            problems += [f"{suites[0]}: {error}", *error.tail[-5:]]
            continue
        # The epoch is dropped: a colon would end a folder in the loader's library path.
        version = packages["qemu-system-x86"].split(":")[-1]
        return version, partial(_build, archive, packages)
    raise ProvisionError(
        f"no suite gave a QEMU; set {VARIABLE} to one of version 10.1 or later with "
        "vfio-user-pci\n" + "\n".join(problems)
    )


def _build(
    archive: Archive, packages: dict[str, str], folder: Path, _final: Path
) -> dict[str, Any]:
    archive.unpack("qemu", packages, folder / "root")
    launcher = folder / "bin" / PROGRAM
    launcher.parent.mkdir()
    launcher.write_text(_LAUNCHER)
    launcher.chmod(0o755)
    for unused in ("doc", "locale", "man"):
        shutil.rmtree(folder / "root/usr/share" / unused, ignore_errors=True)
    if probe(str(launcher), "") is None:
        raise ProvisionError(
            f"the archive's QEMU {packages['qemu-system-x86']} does not start here or has no "
            f"vfio-user-pci: set {VARIABLE} to one of version 10.1 or later"
        )
    return {"packages": packages}


def _output(*argv: str) -> str:
    return subprocess.run(
        argv, capture_output=True, text=True, check=True, timeout=30, stdin=subprocess.DEVNULL
    ).stdout
