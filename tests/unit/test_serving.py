"""Serving until told to stop: signals, the service manager, limits, scripts."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from small_model import HOUSE, Lamp

from vdcm import serving
from vdcm.definition import load, make_runtime_folder, places, runtime_folder
from vdcm.errors import TransportError, VdcmError
from vdcm.manager import Manager
from vdcm.serving import (
    check_descriptors,
    notify,
    raise_descriptor_limit,
    serve,
    serve_until_stopped,
)


@pytest.fixture
def manager(tmp_path: Path) -> Manager:
    text = "vdevs: {a: {type: lamp, socket: a.sock}, b: {type: lamp, socket: b.sock}}"
    (tmp_path / "d.yaml").write_text(text)
    manager = Manager()
    manager.adopt(load(tmp_path / "d.yaml", HOUSE))
    return manager


def test_a_socket_that_cannot_be_had(manager: Manager, tmp_path: Path) -> None:
    (tmp_path / "b.sock").write_text("mine")
    with pytest.raises(TransportError, match="is not a socket"):
        asyncio.run(serve_until_stopped(manager))
    assert not (tmp_path / "a.sock").exists()
    assert (tmp_path / "b.sock").read_text() == "mine"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_stop_it(manager: Manager, tmp_path: Path, number: signal.Signals) -> None:
    before = signal.getsignal(number)

    def ready() -> None:
        assert (tmp_path / "a.sock").is_socket()
        os.kill(os.getpid(), number)

    assert asyncio.run(serve_until_stopped(manager, ready)) == 0
    assert list(tmp_path.glob("*.sock")) == []
    assert signal.getsignal(number) is before


def test_the_limit_of_descriptors(caplog: pytest.LogCaptureFixture) -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, before[1]), before[1]))
        assert raise_descriptor_limit() == before[1]
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (before[1], before[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    check_descriptors(10, 4096)
    assert not caplog.records
    check_descriptors(1024, 4096)
    assert "1024 VDEVs need about 16448 file descriptors, and the limit is 4096" in caplog.text
    assert "LimitNOFILE=" in caplog.text


@pytest.fixture
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    (tmp_path / "run").mkdir()
    return runtime_folder()


def test_the_runtime_folder_is_ours_alone(runtime: Path) -> None:
    old = os.umask(0)
    try:
        assert make_runtime_folder() == make_runtime_folder() == runtime
    finally:
        os.umask(old)
    assert stat.S_IMODE(runtime.stat().st_mode) == 0o700
    runtime.chmod(0o777)
    with pytest.raises(TransportError, match="is not a folder that only we can write to"):
        make_runtime_folder()


def test_a_runtime_folder_that_somebody_has_put_there(
    runtime: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime.symlink_to(tmp_path)
    with pytest.raises(TransportError, match="only we can write to"):
        make_runtime_folder()
    runtime.unlink()
    runtime.mkdir(mode=0o700)
    monkeypatch.setattr(places.os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(TransportError, match="only we can write to"):
        make_runtime_folder()


def test_no_place_for_the_runtime_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "missing"))
    with pytest.raises(TransportError, match=r"cannot be created: No such file.*set XDG_RUNTIME"):
        make_runtime_folder()


@pytest.mark.parametrize("abstract", [False, True])
def test_notify(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, abstract: bool) -> None:
    name = f"vdcm-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(f"\0{name}" if abstract else name)
        listener.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}" if abstract else name)
        notify("READY=1")
        assert listener.recv(64) == b"READY=1"


def test_notify_without_a_service_manager(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    notify("READY=1")
    assert not caplog.records
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    notify("READY=1")
    assert "cannot notify" in caplog.text


def test_serve_from_a_script(
    runtime: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[str]] = []

    async def until_stopped(manager: Manager) -> int:
        seen.append([one["socket"] for one in manager.summaries()])
        manager.stopping.set()
        return await serve_until_stopped(manager)

    monkeypatch.setattr(serving, "serve_until_stopped", until_stopped)
    assert serve(Lamp("a"), path=str(tmp_path / "x.sock")) == 0
    assert serve(Lamp("a"), Lamp("b"), folder=tmp_path) == 0
    assert serve(Lamp("a")) == 0
    assert seen == [
        [str(tmp_path / "x.sock")],
        [str(tmp_path / "a.sock"), str(tmp_path / "b.sock")],
        [str(runtime / "a.sock")],
    ]


def test_serve_needs_vdevs_and_a_path_for_each(tmp_path: Path) -> None:
    lamps = [Lamp("a"), Lamp("b")]
    with pytest.raises(VdcmError, match="takes one VDEV and its path"):
        serve(*lamps, path=tmp_path / "x.sock")
    with pytest.raises(VdcmError):
        serve()
    for lamp in lamps:
        lamp.close()


def test_a_script_whose_socket_is_taken_says_so_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "x.sock").write_text("mine")
    script = "from small_model import Lamp; from vdcm import serve; serve(Lamp('a'), path='x.sock')"
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("vdcm: x.sock exists and is not a socket: ")
    assert len(done.stderr.splitlines()) == 1
