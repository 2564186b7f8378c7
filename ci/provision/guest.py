"""What runs in the guest: the distribution's standard kernel with modules and headers, and tools.

Both come from the running system's own suite, so that the headers' build tools run here and the
modules can be built with the system's compiler. Nothing is installed.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ci.provision.archive import Archive
from ci.provision.cache import Builder, Cache, facts
from ci.provision.console import Console, ProvisionError

_TOOLS = ("busybox-static", "gpiod", "pciutils")
_KERNEL_PART = re.compile(r"linux-(image|modules|headers|kbuild)")


def provide_kernel(
    console: Console, cache: Cache, archive: Callable[[], Archive], *, update: bool
) -> Path:
    """The folder of the kernel; its facts name ``release``, ``image``, ``modules``, ``headers``."""
    folder = cache.provide("kernel", lambda: _plan_kernel(archive()), update=update)
    console.say("kernel", f"{facts(folder)['release']} with modules and headers ({folder})")
    return folder


def provide_tools(
    console: Console, cache: Cache, archive: Callable[[], Archive], *, update: bool
) -> Path:
    """The folder whose ``root`` holds busybox, lspci and the GPIO tools with their libraries."""
    folder = cache.provide("guest", lambda: _plan_tools(archive()), update=update)
    console.say("guest", f"busybox, lspci, GPIO tools ({folder})")
    return folder


def _plan_kernel(archive: Archive) -> tuple[str, Builder]:
    suite = archive.dist.codename
    archive.refresh([suite])
    closure = archive.resolve(archive.dist.kernel_packages, suite)
    # The rest of the closure (initramfs-tools, compiler …) serves installation, not us.
    packages = {name: v for name, v in closure.items() if _KERNEL_PART.match(name)}
    image = next(name for name in packages if re.match(r"linux-image-\d", name))
    release = image.removeprefix("linux-image-")

    def build(folder: Path, final: Path) -> dict[str, Any]:
        archive.unpack("kernel", packages, folder)
        modules = next(
            path for path in (folder / "lib/modules", folder / "usr/lib/modules") if path.exists()
        )
        headers = folder / "usr/src" / f"linux-headers-{release}"
        for needed in (folder / f"boot/vmlinuz-{release}", modules / release, headers):
            if not needed.exists():
                raise ProvisionError(
                    f"the kernel packages lack {needed.relative_to(folder)}: report this with "
                    f"the output of apt-cache show {image}"
                )
        _relocate_headers(headers, final)
        shutil.rmtree(folder / "usr/share", ignore_errors=True)
        return {
            "release": release,
            "image": f"boot/vmlinuz-{release}",
            "modules": str((modules / release).relative_to(folder)),
            "headers": str(headers.relative_to(folder)),
            "packages": packages,
        }

    return f"{release}_{packages[image].split(':')[-1]}", build


def _relocate_headers(headers: Path, final: Path) -> None:
    """Debian's top Makefile includes its common part by absolute path; let it be ours."""
    makefile = headers / "Makefile"
    text = makefile.read_text()
    makefile.write_text(re.sub(r"(?<![\w.])/usr/(src|lib)/linux", rf"{final}/usr/\1/linux", text))


def _plan_tools(archive: Archive) -> tuple[str, Builder]:
    suite = archive.dist.codename
    archive.refresh([suite])
    packages = archive.resolve(_TOOLS, suite)

    def build(folder: Path, _final: Path) -> dict[str, Any]:
        archive.unpack("guest", packages, folder / "root")
        return {"packages": packages}

    return "_".join(packages[name].split(":")[-1] for name in _TOOLS), build
