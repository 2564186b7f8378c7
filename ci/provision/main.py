"""``ci/bootstrap``: the steps in their order, and ``environment.json``."""

from __future__ import annotations

import argparse
import errno
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from ci.provision.archive import Archive, distribution
from ci.provision.cache import Cache, cache_root, facts, write_atomically
from ci.provision.console import CommandError, Console, ProvisionError
from ci.provision.guest import provide_kernel, provide_tools
from ci.provision.libvfio_user import provide_libvfio_user
from ci.provision.python_env import provide_python, prune_python
from ci.provision.qemu import provide_qemu
from ci.provision.system import provide_system_packages

PROJECT = Path(__file__).resolve().parents[2]
_KEPT_LOGS = 10

_DESCRIPTION = """\
Provides what vdcm's build, tests and demo need, each only where the system has none that fits:
a QEMU with vfio-user-pci, libvfio-user, a guest kernel with modules and headers, the programs that
guests use, and a Python environment with vdcm installed in place.

Everything goes below ${XDG_CACHE_HOME:-~/.cache}/vdcm. Only missing system packages (compiler,
json-c headers …) are installed into the system, by apt-get when run as root; otherwise the
command is printed. A second run changes nothing, asks no network and takes about a second.
"""
_EPILOG = """\
environment variables:
  VDCM_QEMU            the QEMU to use; it must list vfio-user-pci in -device help
  LIBVFIO_USER_PREFIX  where libvfio-user is installed
  VDCM_DEBIAN_MIRROR   address of the package archive, instead of the one in apt's sources
  XDG_CACHE_HOME       where the cache is, instead of ~/.cache
"""


def main(arguments: list[str]) -> int:
    """Run the steps; returns the exit status."""
    os.environ.pop("PYTHONPATH", None)  # ours, of no use to what is started
    options = _parse(arguments)
    root = cache_root()
    # apt's methods write for themselves too, so no bit of ours may be missing.
    os.umask(0o022)
    signal.signal(signal.SIGTERM, _interrupt)
    log = root / "log" / f"bootstrap-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
    console = Console(log)
    start = time.monotonic()
    try:
        cache = Cache(root, console)
        _provide(console, cache, options)
    except CommandError as error:
        return _fail(error, error.tail, log)
    except ProvisionError as error:
        return _fail(error, (), log)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        text = f"{error}: free some space (an empty cache needs about 2 GB)" if full else str(error)
        return _fail(ProvisionError(text), (), log)
    except KeyboardInterrupt:
        print("\nci/bootstrap: interrupted; nothing half-made is left", file=sys.stderr)
        return 130
    for old in sorted(log.parent.glob("bootstrap-*.log"))[:-_KEPT_LOGS]:
        old.unlink(missing_ok=True)
    console.say("done", f"in {time.monotonic() - start:.1f} s; {root / 'environment.json'}")
    return 0


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "ci/bootstrap",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--update",
        action="store_true",
        help="ask the archive for newer versions and rebuild the Python environment",
    )
    parser.add_argument(
        "--prune", action="store_true", help="afterwards remove versions that are not in use"
    )
    return parser.parse_args(arguments)


def _provide(console: Console, cache: Cache, options: argparse.Namespace) -> None:
    archives: list[Archive] = []

    def archive() -> Archive:  # only a step that lacks something asks for it
        if not archives:
            archives.append(Archive(cache, console, distribution()))
        return archives[0]

    update: bool = options.update
    provide_system_packages(console)
    qemu = provide_qemu(console, cache, archive, update=update)
    libvfio_user = provide_libvfio_user(console, cache, archive, update=update)
    kernel = provide_kernel(console, cache, archive, update=update)
    guest = provide_tools(console, cache, archive, update=update)
    python = provide_python(console, cache, PROJECT, libvfio_user.build_environment, update=update)
    known = facts(kernel)
    environment: dict[str, Any] = {
        "qemu": list(qemu.command),
        "qemu_version": qemu.version,
        "kernel": str(kernel / known["image"]),
        "kernel_release": known["release"],
        "modules": str(kernel / known["modules"]),
        "headers": str(kernel / known["headers"]),
        "guest_root": str(guest / "root"),
        "libvfio_user": libvfio_user.build_environment,
        "python": str(python),
    }
    write_atomically(cache.root / "environment.json", json.dumps(environment, indent=2) + "\n")
    # Two checkouts share the cache; the interpreter in which this one is installed is its own.
    (PROJECT / "build").mkdir(exist_ok=True)
    write_atomically(PROJECT / "build" / "python", f"{python}\n")
    if options.prune:
        removed = [
            old for kind in ("qemu", "libvfio-user", "kernel", "guest") for old in cache.prune(kind)
        ]
        for old in [*removed, *prune_python(cache, python)]:
            console.say("prune", f"removed {old}")


def _fail(error: ProvisionError, tail: tuple[str, ...], log: Path) -> int:
    print(f"\nci/bootstrap: {error}", file=sys.stderr)
    for line in tail:
        print(f"    {line}", file=sys.stderr)
    if log.exists():
        print(f"    the whole log: {log}", file=sys.stderr)
    return 1


def _interrupt(_signal: int, _frame: object) -> None:
    raise KeyboardInterrupt
