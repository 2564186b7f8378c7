"""Parents and VDEVs of a process: what a definition makes of them, and when what is allowed."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import stat
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
from small_model import HOUSE, BrokenLamp, Lamp

from vdcm import manager as module
from vdcm.definition import load, runtime_folder
from vdcm.errors import StateError, TransportError, VdcmError
from vdcm.manager import (
    Manager,
    describe_types,
    make_runtime_folder,
    notify,
    serve,
    serve_until_stopped,
)
from vdcm.properties import PropertyError

TWO = """
parents: {home: {model: house, storeys: 2}}
vdevs:
  lamp0: {type: lamp, parent: home, socket: lamp0.sock, level: 3}
  lamp1: {type: lamp, parent: home, socket: lamp1.sock}
"""


def defined(folder: Path, text: str = TWO) -> Manager:
    (folder / "d.yaml").write_text(text)
    manager = Manager()
    manager.define(load(folder / "d.yaml", HOUSE))
    return manager


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    manager = defined(tmp_path)
    yield manager
    manager.close()


def run(work: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    return asyncio.run(work())


# Define


def test_define(manager: Manager, tmp_path: Path) -> None:
    home = manager.parents["home"]
    assert home.storeys == 2  # type: ignore[attr-defined]
    assert manager.summaries() == [
        {
            "name": f"lamp{n}",
            "type": "lamp",
            "parent": "home",
            "socket": str(tmp_path / f"lamp{n}.sock"),
            "state": "defined",
        }
        for n in range(2)
    ]
    assert manager.show("lamp0")["properties"]["level"] == 3


def test_define_is_all_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = []
    monkeypatch.setattr(Lamp, "close", lambda self: closed.append(self.name))
    (tmp_path / "d.yaml").write_text("vdevs: {a: {type: lamp}, b: {type: broken-lamp}}")
    manager = Manager()
    with pytest.raises(VdcmError, match=r"VDEV b of type broken-lamp: .* RuntimeError: no glass"):
        manager.define(load(tmp_path / "d.yaml", HOUSE))
    assert manager.summaries() == []
    assert manager.parents == {}
    assert closed == ["a"]


def test_names_are_unique(manager: Manager, tmp_path: Path) -> None:
    lamp = Lamp("lamp0")
    with pytest.raises(VdcmError, match="there is a VDEV lamp0 already"):
        manager.add(lamp, tmp_path / "x.sock")
    lamp.close()
    with pytest.raises(VdcmError, match="there is a parent home already"):
        manager.define(load(tmp_path / "d.yaml", HOUSE))


def test_an_unknown_name_says_the_known_ones(manager: Manager) -> None:
    for ask in (manager.show, manager.stop, manager.entry):
        with pytest.raises(VdcmError, match=r"no VDEV lamp2 \(did you mean lamp.\? known: lamp0, "):
            ask("lamp2")


# Start and stop


def test_start_and_stop(manager: Manager, tmp_path: Path) -> None:
    path = tmp_path / "lamp0.sock"

    async def work() -> None:
        manager.start("lamp0")
        assert stat.S_IMODE(path.lstat().st_mode) == 0o600
        assert [one["state"] for one in manager.summaries()] == ["ready", "defined"]
        with pytest.raises(StateError, match="lamp0 is being served already"):
            manager.start("lamp0")
        manager.stop("lamp0")
        assert not path.exists()
        with pytest.raises(StateError, match="lamp0 is not being served"):
            manager.stop("lamp0")
        manager.start("lamp0")
        manager.start_all()
        assert [one["state"] for one in manager.summaries()] == ["ready", "ready"]
        manager.close()
        manager.close()
        assert list(tmp_path.glob("*.sock")) == []
        assert manager.summaries() == []

    run(work)


def test_a_socket_that_cannot_be_had(manager: Manager, tmp_path: Path) -> None:
    (tmp_path / "lamp1.sock").write_text("mine")

    async def work() -> None:
        with pytest.raises(TransportError, match="is not a socket"):
            await serve_until_stopped(manager)

    run(work)
    assert not (tmp_path / "lamp0.sock").exists()
    assert (tmp_path / "lamp1.sock").read_text() == "mine"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_stop_it(manager: Manager, tmp_path: Path, number: signal.Signals) -> None:
    before = signal.getsignal(number)

    def ready() -> None:
        assert (tmp_path / "lamp0.sock").is_socket()
        os.kill(os.getpid(), number)

    assert run(lambda: serve_until_stopped(manager, ready)) == 0
    assert list(tmp_path.glob("*.sock")) == []
    assert signal.getsignal(number) is before


def test_a_model_that_fails_to_close_keeps_nobody_open(
    manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = []

    def close(self: Lamp) -> None:
        closed.append(self.name)
        raise RuntimeError("stuck")

    with monkeypatch.context() as patch:
        patch.setattr(Lamp, "close", close)
        vdevs = [manager.entry(name).vdev for name in ("lamp0", "lamp1")]
        manager.close()
    assert closed == ["lamp0", "lamp1"]
    for vdev in vdevs:
        vdev.close()


# Ask and set


def test_set_reads_text_and_takes_values(manager: Manager) -> None:
    manager.set("lamp0", {"level": "0x10", "label": "1", "lit": "on"})
    properties = manager.show("lamp0")["properties"]
    assert properties == {"level": 16, "label": "1", "lit": True, "wiring": 1}
    manager.set("lamp0", {"level": 5, "lit": False})
    assert manager.show("lamp0")["properties"] == {**properties, "level": 5, "lit": False}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"level": "1", "lit": "maybe"}, "lit takes true or false, not 'maybe'"),
        ({"level": "1", "lit": 1}, "lit takes true or false, not 1"),
        ({"level": "1", "label": 1}, "label takes text, not 1"),
        ({"level": "1", "label": None}, "label takes text, not None"),
        ({"level": "256"}, "level takes 0x0 to 0xff"),
        ({"level": "1", "levle": "1"}, r"lamp0 has no property levle \(did you mean level\?"),
    ],
)
def test_set_is_all_or_none(manager: Manager, values: dict[str, object], said: str) -> None:
    with pytest.raises(PropertyError, match=said):
        manager.set("lamp0", values)
    assert manager.show("lamp0")["properties"]["level"] == 3


def test_set_while_served(manager: Manager) -> None:
    async def work() -> None:
        manager.start("lamp0")
        manager.set("lamp0", {"level": 1})
        with pytest.raises(StateError, match="lamp0 is being served; setting wiring needs it stop"):
            manager.set("lamp0", {"level": 2, "wiring": 2})
        assert manager.show("lamp0")["properties"]["level"] == 1
        manager.stop("lamp0")
        manager.set("lamp0", {"wiring": 2})
        manager.close()

    run(work)


def test_a_models_mistake_names_the_vdev(manager: Manager) -> None:
    with pytest.raises(VdcmError, match="lamp0: the device model failed: RuntimeError: the bulb"):
        manager.set("lamp0", {"level": 0xEE})


def test_many_may_listen(manager: Manager) -> None:
    vdev = manager.entry("lamp0").vdev
    first: list[str] = []
    second: list[str] = []
    end_first = manager.listen("lamp0", first.append)
    end_second = manager.listen("lamp0", second.append)
    manager.set("lamp0", {"level": 1})
    end_first()
    end_first()
    manager.set("lamp0", {"level": 2})
    end_second()
    assert vdev.observer is None  # and costs nothing
    manager.set("lamp0", {"level": 3})
    assert first == ["level 0x1"]
    assert second == ["level 0x1", "level 0x2"]


def test_describe_types() -> None:
    broken, lamp = describe_types(HOUSE)
    assert (broken["type"], broken["doc"]) == ("broken-lamp", BrokenLamp.__doc__)
    assert (lamp["type"], lamp["model"], lamp["doc"]) == ("lamp", "house", "A lamp.")
    level, label, lit, wiring = lamp["properties"]
    assert level["maximum"] == 0xFF and level["kind"] == "int" and level["live"]
    assert label["kind"] == "str" and label["minimum"] is None
    assert lit["kind"] == "bool" and lit["default"] is False
    assert not wiring["live"]


# The runtime folder, the service manager, scripts


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
    monkeypatch.setattr(module.os, "geteuid", lambda: os.getuid() + 1)
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

    monkeypatch.setattr(module, "serve_until_stopped", until_stopped)
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
