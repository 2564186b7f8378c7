"""Packages of the system itself: what the build needs before anything of ours can run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
from collections.abc import Callable, Sequence
from pathlib import Path

from ci.provision.console import CommandError, Console, ProvisionError


def _command(*names: str) -> Callable[[], bool]:
    return lambda: any(shutil.which(name) for name in names)


def _pkg_config(module: str) -> Callable[[], bool]:
    def found() -> bool:
        if not shutil.which("pkg-config"):
            return False
        return subprocess.run(["pkg-config", "--exists", module]).returncode == 0

    return found


def _python_headers() -> bool:
    return (Path(sysconfig.get_path("include")) / "Python.h").exists()


# What is looked for, not the package: a compiler that came another way is as good.
_NEEDED: tuple[tuple[str, Callable[[], bool]], ...] = (
    ("gcc", _command("cc", "gcc", "clang")),
    ("libc6-dev", lambda: any(Path("/usr/include").glob("**/sys/eventfd.h"))),
    ("make", _command("make")),  # kernel modules for the guest
    ("pkg-config", _command("pkg-config")),
    ("libjson-c-dev", _pkg_config("json-c")),
    ("liburing-dev", _pkg_config("liburing")),
    ("python3-dev", _python_headers),
)


def missing_packages(
    needed: Sequence[tuple[str, Callable[[], bool]]] = _NEEDED,
) -> list[str]:
    """The Debian packages whose contents this system lacks."""
    return [package for package, found in needed if not found()]


def provide_system_packages(console: Console) -> None:
    """Install what is missing when root; else raise ProvisionError with the command."""
    missing = missing_packages()
    if not missing:
        console.say("system", "compiler, make, libraries and Python headers are here")
        return
    install = ["apt-get", "install", "--yes", "--no-install-recommends", *missing]
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        raise ProvisionError(f"system packages are missing: sudo {' '.join(install)}")
    console.say("system", f"installing {', '.join(missing)}")
    environment = {"DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C"}
    progress = ["apt-get", "-q", "-o", "APT::Status-Fd=1"]
    try:
        console.run("system", "installing", [*progress, *install[1:]], env=environment)
    except CommandError:  # no lists yet, or old ones
        console.run("system", "reading package lists", [*progress, "update"], env=environment)
        console.run("system", "installing", [*progress, *install[1:]], env=environment)
    still = missing_packages()
    if still:
        raise ProvisionError(f"installed, and yet not found: {', '.join(still)}")
