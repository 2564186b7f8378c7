"""The cpio writer and the module closure, read back by a parser of the format's own."""

from __future__ import annotations

import lzma
import stat
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vdcm.errors import PrerequisiteError
from vdcm.testing.initramfs import CpioWriter, Modules, modinfo


@dataclass(frozen=True)
class Entry:
    mode: int
    content: bytes
    inode: int
    device: tuple[int, int]


def parse(archive: bytes) -> dict[str, Entry]:
    """Entries by name, in order; checks magic, alignment and the trailer."""
    entries: dict[str, Entry] = {}
    at = 0
    while True:
        header = archive[at : at + 110]
        assert header[:6] == b"070701"
        field = [int(header[6 + 8 * i : 14 + 8 * i], 16) for i in range(13)]
        name_end = at + 110 + field[11]
        raw = archive[at + 110 : name_end]
        assert raw.endswith(b"\0")
        start = name_end + (-name_end % 4)
        assert not any(archive[name_end:start])
        name = raw[:-1].decode()
        end = start + field[6]
        if name == "TRAILER!!!":
            assert end == len(archive)
            return entries
        assert name not in entries
        device = field[9], field[10]
        entries[name] = Entry(field[1], archive[start:end], field[0], device)
        at = end + (-end % 4)


def test_entries_read_back() -> None:
    cpio = CpioWriter()
    cpio.device("dev/console", 5, 1)
    cpio.file("bin/tool", b"abc", 0o755)
    cpio.link("bin/alias", "tool")
    cpio.folder("bin")  # again: nothing
    entries = parse(cpio.archive())
    assert list(entries) == ["dev", "dev/console", "bin", "bin/tool", "bin/alias"]
    assert entries["bin/tool"].mode == stat.S_IFREG | 0o755
    assert entries["bin/tool"].content == b"abc"
    assert stat.S_ISLNK(entries["bin/alias"].mode)
    assert entries["bin/alias"].content == b"tool"
    assert stat.S_ISCHR(entries["dev/console"].mode)
    assert entries["dev/console"].device == (5, 1)
    assert stat.S_ISDIR(entries["bin"].mode)
    # Linux joins entries of one inode into hard links when nlink says so; ours are all distinct.
    assert len({entry.inode for entry in entries.values()}) == len(entries)


@given(
    st.dictionaries(
        st.text("abcxyzäß-_.0", min_size=1, max_size=30).filter(lambda s: s.strip(".") != ""),
        st.binary(max_size=50),
        max_size=8,
    )
)
def test_any_files_read_back(files: dict[str, bytes]) -> None:
    cpio = CpioWriter()
    for name, content in files.items():
        cpio.file(f"d/{name}", content)
    entries = parse(cpio.archive())
    assert {f"d/{n}": c for n, c in files.items()} == {
        name: entry.content for name, entry in entries.items() if name != "d"
    }


@pytest.mark.parametrize("path", ["/bin/x", "../x", "a/../b", "./x", "a//b", "", ".", "a/"])
def test_paths_that_leave_or_are_ambiguous_are_refused(path: str) -> None:
    with pytest.raises(ValueError, match="plain relative path"):
        CpioWriter().file(path, b"")


def test_a_name_is_there_once() -> None:
    cpio = CpioWriter()
    cpio.file("a", b"")
    with pytest.raises(ValueError, match="already"):
        cpio.link("a", "b")


def module(*strings: str) -> bytes:
    return b"\x7fELF\0code" + b"".join(b"\0" + s.encode() for s in strings) + b"\0\0tail"


def test_modinfo_takes_whole_strings_only() -> None:
    content = module("license=GPL", "depends=a,b", "parm=depends=no", "softdep=pre: c")
    assert modinfo(content, "depends") == ["a,b"]
    assert modinfo(content, "softdep") == ["pre: c"]
    assert modinfo(content, "alias") == []


def kernel(folder: Path) -> Modules:
    drivers = folder / "kernel/drivers"
    drivers.mkdir(parents=True)
    (drivers / "top-one.ko").write_bytes(module("depends=middle,in_kernel"))
    (drivers / "middle.ko.xz").write_bytes(lzma.compress(module("depends=low_er")))
    (drivers / "low-er.ko").write_bytes(module("depends=", "softdep=pre: soft post: absent"))
    (drivers / "soft.ko").write_bytes(module("depends="))
    (drivers / "other.ko").write_bytes(module("depends="))
    (folder / "modules.builtin").write_text("kernel/lib/in-kernel.ko\n")
    return Modules(folder)


def test_closure_follows_dependencies_of_either_spelling(tmp_path: Path) -> None:
    closure = kernel(tmp_path).closure(["top_one"])
    assert set(closure) == {"top_one", "middle", "low_er", "soft"}
    assert closure["middle"] == module("depends=low_er")  # decompressed
    assert kernel_names(tmp_path, "top-one") == set(closure)


def kernel_names(folder: Path, wanted: str) -> set[str]:
    return set(Modules(folder).closure([wanted]))


def test_builtin_needs_nothing_and_unknown_is_an_error(tmp_path: Path) -> None:
    modules = kernel(tmp_path)
    assert modules.closure(["in-kernel"]) == {}
    with pytest.raises(PrerequisiteError, match=r"no module absent.*ci/bootstrap"):
        modules.closure(["absent"])
