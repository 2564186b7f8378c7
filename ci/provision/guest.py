"""What runs in the guest: the distribution's standard kernel with modules and headers, and tools.

Both come from the running system's own suite, so that the headers' build tools run here and the
modules can be built with the system's compiler. Nothing is installed.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import re
import shutil
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ci.provision.archive import Archive
from ci.provision.cache import Builder, Cache, facts
from ci.provision.console import Console, ProvisionError

# All that a guest can have; a lab names the programs that its guests get. Whoever needs another
# program adds its package here, and the next ci/bootstrap fetches it.
_TOOLS = (
    "accel-config",
    "busybox-static",
    "e2fsprogs",
    "ethtool",
    "fio",
    "gpiod",
    "iperf3",
    "iproute2",
    "kmod",
    "nvme-cli",
    "pciutils",
)
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
    """The folder whose ``root`` holds the programs of ``_TOOLS`` with their libraries."""
    folder = cache.provide("guest", lambda: _plan_tools(archive()), update=update, packages=_TOOLS)
    console.say("guest", f"{', '.join(_TOOLS)} ({folder})")
    return folder


def _plan_kernel(archive: Archive) -> tuple[str, Builder]:
    suite = archive.dist.codename
    archive.refresh([suite])
    closure = archive.resolve(archive.dist.kernel_packages, suite)
    # The rest of the closure (initramfs-tools, compiler …) serves installation, not us.
    packages = {name: v for name, v in closure.items() if _KERNEL_PART.match(name)}
    package = next(name for name in packages if re.match(r"linux-image-\d", name))
    release = package.removeprefix("linux-image-")

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
                    f"the output of apt-cache show {package}"
                )
        _relocate_headers(headers, final)
        compressed = folder / f"boot/vmlinuz-{release}"
        image = compressed
        content = uncompressed_kernel(compressed.read_bytes())
        if content is not None:
            image = folder / f"boot/vmlinux-{release}"
            image.write_bytes(content)
        shutil.rmtree(folder / "usr/share", ignore_errors=True)
        return {
            "release": release,
            "image": str(image.relative_to(folder)),
            "modules": str((modules / release).relative_to(folder)),
            "headers": str(headers.relative_to(folder)),
            "packages": packages,
        }

    return f"{release}_{packages[package].split(':')[-1]}", build


def uncompressed_kernel(image: bytes) -> bytes | None:
    """The ELF file within a bzImage, or None if it cannot be had here.

    QEMU starts it by the PVH protocol; an emulated CPU would unpack it for three seconds at each
    boot. Offsets: Linux, Documentation/arch/x86/boot.rst (setup_sects, payload_offset, _length).
    """
    if image[0x202:0x206] != b"HdrS":
        return None
    sectors = image[0x1F1] or 4
    offset, length = struct.unpack_from("<II", image, 0x248)
    start = (sectors + 1) * 512 + offset
    # The kernel's build appends the uncompressed size, four bytes that are not compressed data.
    payload = image[start : start + length]
    try:
        if payload.startswith(b"\xfd7zXZ\0"):
            content = lzma.LZMADecompressor().decompress(payload)
        elif payload.startswith(b"\x28\xb5\x2f\xfd") and shutil.which("zstd"):
            done = subprocess.run(["zstd", "-dc"], input=payload, capture_output=True)
            content = done.stdout  # zstd complains about the appended size, after the content
        else:
            return None
    except lzma.LZMAError:
        return None
    whole = len(content) == int.from_bytes(payload[-4:], "little")
    return content if whole and content.startswith(b"\x7fELF") else None


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
        # No program here needs these.
        for unused in ("doc", "locale", "man", "perl"):
            shutil.rmtree(folder / "root/usr/share" / unused, ignore_errors=True)
        return {"packages": packages}

    closure = json.dumps(packages, sort_keys=True).encode()
    return f"{suite}-{hashlib.sha256(closure).hexdigest()[:12]}", build
