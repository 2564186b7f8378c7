"""ci/bootstrap's parts that need neither network nor root."""

from __future__ import annotations

import io
import json
import lzma
import os
import signal
import struct
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from ci.provision import archive, cache, guest, libvfio_user, python_env, qemu, system
from ci.provision.console import CommandError, Console, ProvisionError
from vdcm.environment import Environment, load_environment
from vdcm.errors import PrerequisiteError

PROJECT = Path(__file__).resolve().parents[2]
DEBIAN = archive.Distribution("debian", "bookworm", "main", "/nowhere", (), (("new",),))


@pytest.fixture
def out() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def console(tmp_path: Path, out: io.StringIO) -> Console:
    return Console(tmp_path / "log/log", out)


@pytest.fixture
def store(tmp_path: Path, console: Console) -> cache.Cache:
    return cache.Cache(tmp_path / "cache", console)


def plan(key: str, calls: list[str]) -> tuple[str, cache.Builder]:
    def build(folder: Path, final: Path) -> dict[str, Any]:
        calls.append(key)
        (folder / "content").write_text(str(final))
        return {"key": key}

    return key, build


# --- the cache ---------------------------------------------------------------------------------


def test_an_artefact_is_made_once_and_updated_on_request(store: cache.Cache) -> None:
    calls: list[str] = []
    first = store.provide("k", lambda: plan("1", calls))
    assert store.provide("k", lambda: plan("2", calls)) == first
    assert (first / "content").read_text() == str(first)
    assert cache.facts(first) == {"version": "1", "key": "1"}
    second = store.provide("k", lambda: plan("2", calls), update=True)
    assert store.current("k") == second
    store.provide("k", lambda: plan("2", calls), update=True)
    assert calls == ["1", "2"]
    assert store.prune("k") == [first]
    assert second.exists()
    assert not first.exists()


def test_an_artefact_without_the_packages_that_are_wanted_now_is_replaced(
    store: cache.Cache,
) -> None:
    def provide(key: str, wanted: list[str], has: list[str]) -> str:
        packages = dict.fromkeys(has, "1")
        plan = key, lambda _folder, _final: {"packages": packages}
        return store.provide("k", lambda: plan, packages=wanted).name

    assert provide("1", ["a"], ["a", "library"]) == "k-1"
    assert provide("2", ["a"], []) == "k-1"
    assert provide("2", ["a", "b"], ["a", "b", "library"]) == "k-2"
    assert provide("3", ["a"], ["a"]) == "k-2"  # of a checkout that wants less


def test_a_failure_leaves_nothing(store: cache.Cache) -> None:
    def build(folder: Path, _final: Path) -> dict[str, Any]:
        (folder / "half").touch()
        raise ProvisionError("no network")

    with pytest.raises(ProvisionError, match="no network"):
        store.provide("k", lambda: ("1", build))
    assert store.current("k") is None
    assert [path.name for path in store.root.iterdir()] == [".lock-k"]


def test_the_leftovers_of_a_killed_run_are_removed(store: cache.Cache) -> None:
    program = (
        "import os, sys; from pathlib import Path\n"
        "from ci.provision import cache, console\n"
        "root = Path(sys.argv[1])\n"
        "def build(folder, final):\n"
        "    (folder / 'half').touch(); os.kill(os.getpid(), 9)\n"
        "cache.Cache(root, console.Console(root / 'log')).provide('k', lambda: ('1', build))\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(store.root)], cwd=PROJECT)
    assert done.returncode == -signal.SIGKILL
    assert len(list(store.root.glob(".new-k-*"))) == 1
    store.provide("k", lambda: plan("1", []))
    assert not list(store.root.glob(".new-k-*"))


def test_two_runs_make_it_once(tmp_path: Path) -> None:
    calls: list[str] = []
    inside, go = threading.Event(), threading.Event()
    outs = [io.StringIO(), io.StringIO()]
    stores = [cache.Cache(tmp_path / "c", Console(tmp_path / "log", out)) for out in outs]

    def slow() -> tuple[str, cache.Builder]:
        inside.set()
        assert go.wait(30)
        return plan("1", calls)

    def second() -> None:
        stores[1].provide("k", slow)

    first = threading.Thread(target=lambda: stores[0].provide("k", slow))
    first.start()
    assert inside.wait(30)
    other = threading.Thread(target=second)
    other.start()
    while "waiting" not in outs[1].getvalue():
        assert other.is_alive()
    go.set()
    first.join(30)
    other.join(30)
    assert calls == ["1"]
    assert "waiting" not in outs[0].getvalue()


def test_the_cache_root_follows_xdg(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache.cache_root() == Path("/somewhere/vdcm")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", "/home/me")
    assert cache.cache_root() == Path("/home/me/.cache/vdcm")


# --- commands ----------------------------------------------------------------------------------


def test_a_failed_command_tells_its_last_lines(console: Console) -> None:
    script = "for i in $(seq 50); do echo line $i; done; exit 3"
    with pytest.raises(CommandError, match="unpacking: sh ended with status 3") as caught:
        console.run("x", "unpacking", ["sh", "-c", script])
    assert caught.value.tail[-1] == "line 50"
    assert len(caught.value.tail) == 20
    assert "line 1\n" in console.log_path.read_text()


def test_a_full_disk_is_named(console: Console) -> None:
    with pytest.raises(CommandError, match="the disk is full"):
        console.run("x", "unpacking", ["sh", "-c", "echo No space left on device; exit 1"])


def test_apt_status_is_progress_and_not_log(
    console: Console, out: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ci.provision.console._REPORT_SECONDS", 0.0)
    script = "echo dlstatus:1:42.5000:Retrieving file 1 of 2; echo done"
    console.run("qemu", "downloading", ["sh", "-c", script])
    assert "… downloading: 42 % Retrieving file 1 of 2" in out.getvalue()
    assert "dlstatus" not in console.log_path.read_text().replace(script, "")


def test_a_command_keeps_the_lock_of_a_killed_run(store: cache.Cache, out: io.StringIO) -> None:
    """Else the next run would work in a folder that the command still writes to."""
    with store.lock("k"):
        held = subprocess.run(
            ["sh", "-c", "ls -l /proc/$$/fd"], capture_output=True, text=True, check=True
        ).stdout
        assert ".lock-k" not in held
        console = Console(store.root / "log", out)
        console.run("k", "working", ["sh", "-c", "ls -l /proc/$$/fd"])
        assert ".lock-k" in console.log_path.read_text()


# --- the archive -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "mirror"),
    [
        (["m/debian/|bookworm|bookworm|Debian|Debian|main"], "m/debian/"),
        (  # the security archive is not the main one, nor is somebody else's of that codename
            [
                "m/sec/|bookworm-security|bookworm-security|Debian|Debian-Security|main",
                "m/x/|bookworm|bookworm|Docker|Docker CE|main",
                "m/y/|bookworm|bookworm|Debian|Debian|contrib",
                "m/debian|stable|bookworm|Debian|Debian|main",
            ],
            "m/debian",
        ),
        (  # before the first apt-get update: the address decides
            ["m/other/|bookworm|||$(LABEL)|main", "m/debian/|bookworm||||main"],
            "m/debian/",
        ),
        (["m/debian/|trixie|trixie|Debian|Debian|main"], None),
        ([], None),
    ],
)
def test_the_mirror_is_the_systems_own(lines: list[str], mirror: str | None) -> None:
    assert archive.choose_mirror(lines, DEBIAN) == mirror


def test_the_distribution_is_known_or_refused(tmp_path: Path) -> None:
    release = tmp_path / "os-release"
    release.write_text('ID=debian\nVERSION_CODENAME="trixie"\n')
    assert archive.distribution(release).codename == "trixie"
    release.write_text("ID=ubuntu\nVERSION_CODENAME=noble\n")
    assert archive.distribution(release).kernel_packages[0] == "linux-image-generic"
    release.write_text('ID=fedora\nPRETTY_NAME="Fedora 40"\n')
    with pytest.raises(ProvisionError, match="Fedora 40: set VDCM_QEMU"):
        archive.distribution(release)


# --- the steps ---------------------------------------------------------------------------------


def fake_qemu(path: Path, devices: str) -> Path:
    path.write_text(
        f"#!/bin/sh\ncase $1 in -device) echo '{devices}';; *) echo QEMU version 11.1.3 x;; esac\n"
    )
    path.chmod(0o755)
    return path


def no_archive() -> archive.Archive:
    raise AssertionError("the archive was asked")


def test_qemu_of_the_user_then_of_the_path(
    tmp_path: Path, console: Console, store: cache.Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = fake_qemu(tmp_path / "qemu-system-x86_64", 'name "vfio-user-pci", bus PCI')
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.delenv("VDCM_QEMU", raising=False)
    assert qemu.provide_qemu(console, store, no_archive, update=False) == qemu.Qemu(
        (str(found),), "11.1.3", "PATH"
    )
    monkeypatch.setenv("VDCM_QEMU", str(found))
    assert qemu.provide_qemu(console, store, no_archive, update=True).origin == "$VDCM_QEMU"
    old = fake_qemu(tmp_path / "old", 'name "vfio-pci", bus PCI')
    for wrong in (old, tmp_path / "absent"):
        monkeypatch.setenv("VDCM_QEMU", str(wrong))
        with pytest.raises(ProvisionError, match=r"10\.1 or later"):
            qemu.provide_qemu(console, store, no_archive, update=False)


def test_libvfio_user_of_the_prefix(
    tmp_path: Path, console: Console, store: cache.Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIBVFIO_USER_PREFIX", str(tmp_path))
    with pytest.raises(ProvisionError, match=r"holds no include/libvfio-user\.h"):
        libvfio_user.provide_libvfio_user(console, store, no_archive, update=False)
    for name in ("include/libvfio-user.h", "lib/x86_64-linux-gnu/libvfio-user.so"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = libvfio_user.provide_libvfio_user(console, store, no_archive, update=False)
    assert found.build_environment == {"LIBVFIO_USER_PREFIX": str(tmp_path)}


def test_only_the_wanted_folder_leaves_a_tarball(tmp_path: Path, console: Console) -> None:
    tarball = tmp_path / "q.tar.xz"
    with tarfile.open(tarball, "w:xz") as file:
        for name in ("q-1/a/b/in.c", "q-1/a/bc/out.c", "q-1/out.c", "q-1/a/b/../../evil.c"):
            member = tarfile.TarInfo(name)
            member.size = 3
            file.addfile(member, io.BytesIO(b"abc"))
    into = tmp_path / "into"
    libvfio_user.extract(tarball, PurePosixPath("a/b"), into, console)
    assert [str(p.relative_to(into)) for p in into.rglob("*") if p.is_file()] == ["in.c"]


def test_missing_packages_are_named_with_the_command(
    console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = (("here", lambda: True), ("gone-dev", lambda: False))
    assert system.missing_packages(needed) == ["gone-dev"]
    monkeypatch.setattr(system, "missing_packages", lambda: ["gone-dev"])
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(ProvisionError, match=r"sudo apt-get install .* gone-dev$"):
        system.provide_system_packages(console)


def bzimage(payload: bytes) -> bytes:
    image = bytearray(2 * 512 + 16)
    image[0x1F1] = 1
    image[0x202:0x206] = b"HdrS"
    struct.pack_into("<II", image, 0x248, 16, len(payload))
    return bytes(image) + payload + b"trailing"


def test_the_kernel_is_unpacked_whole_or_not() -> None:
    elf = b"\x7fELF" + bytes(1000)
    size = len(elf).to_bytes(4, "little")
    assert guest.uncompressed_kernel(bzimage(lzma.compress(elf) + size)) == elf
    assert guest.uncompressed_kernel(bzimage(lzma.compress(elf) + b"\1\0\0\0")) is None
    assert guest.uncompressed_kernel(bzimage(b"\x1f\x8bgzip" + size)) is None
    assert guest.uncompressed_kernel(b"MZ" + bytes(1000)) is None


@pytest.fixture
def pip_log(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[list[str]]]:
    """Records what pip would do instead of doing it."""
    calls: list[list[str]] = []

    def pip(*arguments: Any, environment: object = None) -> None:
        del environment
        calls.append(list(arguments[3:]))

    monkeypatch.setattr(python_env, "_pip", pip)
    monkeypatch.setattr(python_env, "_ASK_BACKEND", "import sys; print('[]', file=sys.stderr)")
    yield calls


def test_the_native_part_is_rebuilt_when_it_changes(
    tmp_path: Path, console: Console, store: cache.Cache, pip_log: list[list[str]]
) -> None:
    project = tmp_path / "project"
    (project / "native").mkdir(parents=True)
    (project / "native/a.c").write_text("int a;")
    (project / "pyproject.toml").write_text('[project]\nname = "x"\n[tool.ruff]\n')

    def provide(**environment: str) -> tuple[Path, int]:
        before = len(pip_log)
        python = python_env.provide_python(console, store, project, environment, update=False)
        return python, len(pip_log) - before

    python, calls = provide()
    assert calls == 2  # build tools, project
    assert python.exists()
    assert provide() == (python, 0)
    (project / "pyproject.toml").write_text('[project]\nname = "x"\n')
    assert provide() == (python, 0)  # no setting of the build
    (project / "native/a.c").write_text("int b;")
    assert provide() == (python, 1)
    assert provide(LIBVFIO_USER_PREFIX="/p") == (python, 1)
    (python.parent.parent / python_env.STAMP).unlink()  # killed half-way: made anew
    assert provide(LIBVFIO_USER_PREFIX="/p") == (python, 2)
    (project / "pyproject.toml").write_text('[project]\nname = "y"\n')
    changed, calls = provide()
    assert changed != python
    assert calls == 2
    assert python_env.prune_python(store, changed) == [python.parent.parent]


# --- environment.json --------------------------------------------------------------------------


def described(tmp_path: Path) -> dict[str, Any]:
    for name in ("qemu", "kernel", "modules", "root"):
        (tmp_path / name).touch()
    return {
        "qemu": [str(tmp_path / "qemu")],
        "qemu_version": "11.1.3",
        "kernel": str(tmp_path / "kernel"),
        "kernel_release": "6.1.0",
        "modules": str(tmp_path / "modules"),
        "headers": str(tmp_path / "headers"),
        "guest_root": str(tmp_path / "root"),
        "libvfio_user": {},
        "python": sys.executable,
    }


def test_the_environment_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "environment.json"
    path.write_text(json.dumps(described(tmp_path)))
    loaded = load_environment(path)
    assert isinstance(loaded, Environment)
    assert loaded.kernel == tmp_path / "kernel"
    assert loaded.qemu == (str(tmp_path / "qemu"),)


def test_bad_environments_name_the_fix(tmp_path: Path) -> None:
    path = tmp_path / "environment.json"
    with pytest.raises(PrerequisiteError, match=r"missing: run ci/bootstrap"):
        load_environment(path)
    good = described(tmp_path)
    for text in ("", "[]", "{}", json.dumps({**good, "qemu": None})):
        path.write_text(text)
        with pytest.raises(PrerequisiteError, match="run ci/bootstrap"):
            load_environment(path)
    path.write_text(json.dumps(good))
    (tmp_path / "kernel").unlink()
    with pytest.raises(PrerequisiteError, match=r"kernel.*is gone: run ci/bootstrap"):
        load_environment(path)
