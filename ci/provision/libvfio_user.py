"""libvfio-user: an installed one, else the copy in the distribution's source package ``qemu``."""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ci.provision.archive import Archive
from ci.provision.cache import Builder, Cache
from ci.provision.console import CommandError, Console, ProvisionError

VARIABLE = "LIBVFIO_USER_PREFIX"
HEADER = "include/libvfio-user.h"
_FOLDER = PurePosixPath("subprojects/libvfio-user")


@dataclass(frozen=True)
class LibvfioUser:
    """Where it is: an installation below ``prefix`` ("" is the compiler's default search path),
    or a source tree."""

    prefix: str | None
    source: Path | None

    @property
    def build_environment(self) -> dict[str, str]:
        """The variables that tell the build of vdcm."""
        if self.source:
            return {"LIBVFIO_USER_SOURCE": str(self.source)}
        return {VARIABLE: self.prefix} if self.prefix else {}


def provide_libvfio_user(
    console: Console, cache: Cache, archive: Callable[[], Archive], *, update: bool
) -> LibvfioUser:
    """The first of $LIBVFIO_USER_PREFIX, the default search path and the source copy."""
    prefix = os.environ.get(VARIABLE)
    if prefix:
        prefix = str(Path(prefix).resolve())
        if not _installed(prefix):
            raise ProvisionError(
                f"{VARIABLE}={prefix} holds no {HEADER} with lib/libvfio-user.so or .a: name "
                f"the folder it was installed into, or unset {VARIABLE}"
            )
        console.say("libvfio-user", f"installed in {prefix}")
        return LibvfioUser(prefix, None)
    if _links():
        console.say("libvfio-user", "installed in the default search path")
        return LibvfioUser("", None)
    source = cache.provide("libvfio-user", lambda: _plan(console, archive()), update=update)
    console.say("libvfio-user", f"source copy in {source}")
    return LibvfioUser(None, source)


def _installed(prefix: str) -> bool:
    libraries = [path for lib in ("lib", "lib64") for path in Path(prefix).glob(f"{lib}/**/*")]
    named = any(path.name in ("libvfio-user.so", "libvfio-user.a") for path in libraries)
    return named and (Path(prefix) / HEADER).is_file()


def _links() -> bool:
    """Whether a program with the header compiles and links without being told where it is."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        return False
    with tempfile.TemporaryDirectory() as folder:
        argv = [compiler, "-x", "c", "-", "-lvfio-user", "-o", f"{folder}/probe"]
        program = b"#include <libvfio-user.h>\nint main(void) { return 0; }\n"
        return subprocess.run(argv, input=program, capture_output=True).returncode == 0


def _plan(console: Console, archive: Archive) -> tuple[str, Builder]:
    own = archive.dist.codename
    others = [suite for suites in archive.dist.qemu_suites for suite in suites]
    archive.refresh([own])
    versions = archive.source_versions("qemu")

    def fill(folder: Path) -> str:
        problems: list[str] = []
        tried: set[str] = set()
        for suites in ([own], [own, *others]):
            archive.refresh(suites)
            for version in archive.source_versions("qemu"):
                if version in tried:
                    continue
                tried.add(version)
                problem = _try_version(console, archive, version, folder)
                if problem is None:
                    return version
                problems.append(f"{version}: {problem}")
        raise ProvisionError(
            f"no copy of libvfio-user in the archive's QEMU sources; install it and set "
            f"{VARIABLE}\n" + "\n".join(problems)
        )

    # The version is the one that is tried first: it says what the archive held.
    key = versions[0].split(":")[-1] if versions else "unknown"
    return key, lambda folder, _final: {"qemu": fill(folder)}


def _try_version(console: Console, archive: Archive, version: str, folder: Path) -> str | None:
    """Fill ``folder`` from that version of QEMU; returns what was wrong, None if nothing."""
    download = folder / ".download"
    download.mkdir()
    try:
        archive.download_source("libvfio-user", "qemu", version, download)
        for tarball in download.glob("*.orig.tar.*"):
            console.say("libvfio-user", f"taking {_FOLDER} out of {tarball.name}")
            extract(tarball, _FOLDER, folder, console)
        return None if (folder / HEADER).is_file() else f"no {_FOLDER} (gone since QEMU 10.2)"
    except CommandError as error:
        return "\n".join([str(error), *error.tail[-5:]])
    finally:
        shutil.rmtree(download)


def extract(tarball: Path, wanted: PurePosixPath, into: Path, console: Console) -> None:
    """Unpack the regular files below ``<top folder>/<wanted>`` of a tar archive into ``into``."""
    with tarfile.open(tarball, "r|*") as archive:
        for member in archive:
            console.progress("libvfio-user", f"looking at {member.name}")
            path = PurePosixPath(*PurePosixPath(member.name).parts[1:])
            if not member.isfile() or not path.is_relative_to(wanted) or ".." in path.parts:
                continue
            content = archive.extractfile(member)
            if content is not None:
                target = into / path.relative_to(wanted)
                target.parent.mkdir(parents=True, exist_ok=True)
                with target.open("wb") as file:
                    shutil.copyfileobj(content, file)
