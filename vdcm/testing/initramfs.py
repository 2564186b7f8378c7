"""The guest's whole file system: an initramfs with busybox, kernel modules and a few tools.

Built here rather than by initramfs-tools, which needs root, an installed kernel and half a
minute. The format is cpio's "newc" (Linux, Documentation/driver-api/early-userspace/
buffer-format.rst), uncompressed: the guest's emulated CPU unpacks slower than it copies.
"""

from __future__ import annotations

import lzma
import os
import re
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath

from vdcm.environment import Environment
from vdcm.errors import PrerequisiteError
from vdcm.testing.prepared import NO_MODULES
from vdcm.testing.stand_in import UNUSED, stand_in

INIT = Path(__file__).with_name("init.sh")
AGENT = "vdcm/start"
"""Where that is in an initrd of the user's own; the kernel is told by ``rdinit=``."""
_TOOLS = ("lspci", "setpci")  # every guest has a device to look at
_HOW = "--vdcm-modules lib/modules/RELEASE"
_LOADER = "ld-linux-x86-64.so.2"
_LIBRARIES = ("usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu")


class CpioWriter:
    """Entries of a cpio archive in "newc" format, in memory. Paths are relative, without "./"."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._names: set[str] = set()
        self._inode = 0

    def file(self, path: str, content: bytes, mode: int = 0o644) -> None:
        """A regular file; its folders are made."""
        self._entry(path, stat.S_IFREG | mode, content)

    def link(self, path: str, target: str) -> None:
        """A symbolic link."""
        self._entry(path, stat.S_IFLNK | 0o777, target.encode())

    def folder(self, path: str, mode: int = 0o755) -> None:
        """A folder; one that exists already stays as it is."""
        if path not in self._names:
            self._entry(path, stat.S_IFDIR | mode, b"")

    def device(self, path: str, major: int, minor: int, mode: int = 0o600) -> None:
        """A character device."""
        self._entry(path, stat.S_IFCHR | mode, b"", (major, minor))

    def archive(self) -> bytes:
        """The whole archive with its trailer."""
        return b"".join([*self._parts, _header("TRAILER!!!", 0, 0, 0, (0, 0))])

    def __contains__(self, path: str) -> bool:
        return path in self._names

    def _entry(
        self, path: str, mode: int, content: bytes, device: tuple[int, int] = (0, 0)
    ) -> None:
        pure = PurePosixPath(path)
        if pure.is_absolute() or ".." in pure.parts or str(pure) != path or path == ".":
            raise ValueError(f"{path!r} is no plain relative path")
        if path in self._names:
            raise ValueError(f"{path!r} is in the archive already")
        if len(pure.parts) > 1:
            self.folder(str(pure.parent))
        self._names.add(path)
        self._inode += 1
        self._parts += [
            _header(path, self._inode, mode, len(content), device),
            content,
            _padding(len(content)),
        ]


def _header(name: str, inode: int, mode: int, size: int, device: tuple[int, int]) -> bytes:
    raw = name.encode() + b"\0"
    # ino mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor namesize check
    fields = (inode, mode, 0, 0, 1, 0, size, 0, 0, *device, len(raw), 0)
    header = b"070701" + b"".join(b"%08x" % value for value in fields) + raw
    return header + _padding(len(header))


def _padding(size: int) -> bytes:
    return bytes(-size % 4)


class Modules:
    """The kernel modules below ``folder`` (``lib/modules/<release>``).

    The packages carry no ``modules.dep`` (depmod makes it on installation), so dependencies are
    read from the modules' own ``.modinfo`` strings.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._paths = {module_name(path.name): path for path in folder.rglob("*.ko*")}
        listed = folder / "modules.builtin"
        names = listed.read_text().split() if listed.exists() else []
        self._builtin = {module_name(PurePosixPath(name).name) for name in names}

    def closure(self, wanted: Iterable[str]) -> dict[str, bytes]:
        """The modules and all they depend on: name to content, decompressed.

        What is built into the kernel is left out. Raises PrerequisiteError for an unknown module.
        """
        found: dict[str, bytes] = {}
        pending = [module_name(name) for name in wanted]
        while pending:
            name = pending.pop()
            if name in found or name in self._builtin:
                continue
            if name not in self._paths:
                raise PrerequisiteError(
                    f"the kernel in {self.folder} has no module {name}: it must be the "
                    "distribution's standard kernel; run ci/bootstrap --update"
                )
            found[name] = content = _decompressed(self._paths[name])
            for value in modinfo(content, "depends"):
                pending += [module_name(part) for part in value.split(",") if part]
            # "pre: a b post: c"; what it names may be absent.
            for word in " ".join(modinfo(content, "softdep")).split():
                if module_name(word) in self._paths:
                    pending.append(module_name(word))
        return found


def modinfo(module: bytes, key: str) -> list[str]:
    """The values of one key among a module's ``key=value`` strings (Linux, MODULE_INFO)."""
    pattern = rb"(?:^|\0)" + re.escape(key.encode()) + rb"=([^\0]*)(?=\0)"
    return [value.decode() for value in re.findall(pattern, module)]


def module_name(name: str) -> str:
    """A module's name as the kernel has it, from a file's or a user's."""
    return re.sub(r"\.ko(\.\w+)?$", "", name).replace("-", "_")


def _decompressed(path: Path) -> bytes:
    if path.suffix == ".xz":
        return lzma.decompress(path.read_bytes())
    if path.suffix == ".zst":
        if not shutil.which("zstd"):
            raise PrerequisiteError("the kernel's modules are compressed: apt-get install zstd")
        return subprocess.run(["zstd", "-dc", path], capture_output=True, check=True).stdout
    return path.read_bytes()


def build_initramfs(
    environment: Environment,
    *,
    modules: Iterable[str] = (),
    tools: Iterable[str] = (),
    files: Mapping[str, bytes | Path] | None = None,
) -> bytes:
    """What the guest's kernel starts with: its ``modules`` and their closure, lspci, setpci and
    ``tools`` of the guest root with their libraries (``ci/provision/guest.py`` says what there is),
    and more ``files`` (guest path without leading "/" to content; executable when the host's file
    is). Of an ``environment`` with an initrd of the user's own it is that one, with its own
    programs and modules; what answers us, and ``files``, are added.

    Raises PrerequisiteError when something is not where the environment says.
    """
    cpio = CpioWriter()
    if environment.initrd is not None:
        _add_agent(cpio, environment.guest_root)
        _add_files(cpio, files or {})
        own = environment.initrd.read_bytes()
        return own + _padding(len(own)) + cpio.archive()
    programs = {*_TOOLS, *tools}
    for folder in ("dev", "proc", "run", "sys", "tmp", "usr"):
        cpio.folder(folder)
    # Before devtmpfs is mounted init has only these.
    cpio.device("dev/console", 5, 1)
    cpio.file("init", INIT.read_bytes(), 0o755)
    root = environment.guest_root
    _add_busybox(cpio, root, "bin", skip=programs)
    _add_tools(cpio, root, programs)
    ids = root / "usr/share/misc/pci.ids"
    if ids.exists():
        cpio.file("usr/share/misc/pci.ids", ids.read_bytes())
    _add_modules(cpio, environment, modules)
    _add_files(cpio, files or {})
    return cpio.archive()


def _add_files(cpio: CpioWriter, files: Mapping[str, bytes | Path]) -> None:
    for path, content in files.items():
        if isinstance(content, Path):
            executable = os.access(content, os.X_OK)
            cpio.file(path, content.read_bytes(), 0o755 if executable else 0o644)
        else:
            cpio.file(path, content)


def _add_agent(cpio: CpioWriter, root: Path) -> None:
    """``init.sh`` with a busybox of its own, in a folder where nothing else is (``AGENT``)."""
    here = PurePosixPath(AGENT).parent
    script = INIT.read_bytes()
    script = script.replace(b"/bin/busybox", f"/{here}/busybox".encode())
    script = script.replace(b"PATH=/bin", f"PATH=/usr/sbin:/usr/bin:/sbin:/bin:/{here}".encode())
    cpio.file(AGENT, script, 0o755)
    _add_busybox(cpio, root, str(here), skip=set())


def _add_busybox(cpio: CpioWriter, root: Path, folder: str, skip: set[str]) -> None:
    busybox = _find(root, "busybox")
    cpio.file(f"{folder}/busybox", busybox.read_bytes(), 0o755)
    listed = subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True)
    for applet in listed.stdout.split():
        if applet not in skip and applet != "busybox":
            cpio.link(f"{folder}/{applet}", "busybox")


def _add_tools(cpio: CpioWriter, root: Path, tools: set[str]) -> None:
    loader = _library(root, _LOADER)
    added = {loader.name: loader.read_bytes()}
    for tool in sorted(tools):
        program = _find(root, tool)
        cpio.file(f"bin/{tool}", program.read_bytes(), 0o755)
        with tempfile.TemporaryDirectory() as folder:
            instead = Path(folder)
            for name in UNUSED.get(tool, ()):
                (instead / name).write_bytes(stand_in(program, _library(root, name)))
            for library in _libraries(root, program, instead):
                added[library.name] = library.read_bytes()
    for name, content in sorted(added.items()):
        cpio.file(f"lib/x86_64-linux-gnu/{name}", content, 0o755)
    cpio.link(f"lib64/{_LOADER}", f"../lib/x86_64-linux-gnu/{_LOADER}")


def _libraries(root: Path, program: Path, instead: Path) -> Iterator[Path]:
    """What the guest root's own loader would load, had it what is in ``instead``; the host's
    libraries must not slip in."""
    search = ":".join(str(folder) for folder in (instead, *(root / name for name in _LIBRARIES)))
    listed = subprocess.run(
        [_library(root, _LOADER), "--library-path", search, "--list", program],
        capture_output=True,
        text=True,
        check=True,
        env={},
    ).stdout
    for path in re.findall(r"=> (\S+)", listed):
        if not any(Path(path).is_relative_to(place) for place in (root, instead)):
            raise PrerequisiteError(
                f"{program.name} needs {Path(path).name}, which {root} lacks: "
                "run ci/bootstrap --update"
            )
        yield Path(path)


def _library(root: Path, name: str) -> Path:
    for folder in _LIBRARIES:
        if (root / folder / name).exists():
            return root / folder / name
    raise PrerequisiteError(f"{root} has no {name}: run ci/bootstrap --update")


def _find(root: Path, program: str) -> Path:
    for folder in ("usr/bin", "usr/sbin", "bin", "sbin"):
        path = root / folder / program
        if path.exists():
            return path
    raise PrerequisiteError(f"{root} has no program {program}: run ci/bootstrap --update")


def _add_modules(cpio: CpioWriter, environment: Environment, wanted: Iterable[str]) -> None:
    if environment.modules == NO_MODULES:
        if names := ", ".join(wanted):
            raise PrerequisiteError(f"nobody has said where the modules are ({names}): {_HOW}")
        return
    release = environment.kernel_release
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, "lib/modules", release)
        folder.mkdir(parents=True)
        for name, content in Modules(environment.modules).closure(wanted).items():
            (folder / f"{name}.ko").write_bytes(content)
        for listed in ("modules.builtin", "modules.builtin.modinfo", "modules.order"):
            if (environment.modules / listed).exists():
                shutil.copy(environment.modules / listed, folder)
        _run_in(environment.guest_root, "kmod", "-b", temporary, release, name="depmod")
        for path in sorted(folder.iterdir()):
            cpio.file(f"lib/modules/{release}/{path.name}", path.read_bytes())


def _run_in(root: Path, program: str, *arguments: str, name: str | None = None) -> None:
    """Run a program of the guest root here, with that root's libraries."""
    search = ":".join(str(root / folder) for folder in _LIBRARIES)
    loader = [str(_library(root, _LOADER)), "--library-path", search]
    subprocess.run(
        [*loader, "--argv0", name or program, str(_find(root, program)), *arguments],
        check=True,
        capture_output=True,
        env={},
    )
