"""Parents and VDEVs of a process: what a definition makes of them, and when what is allowed."""

from __future__ import annotations

import asyncio
import errno
import os
import stat
import tempfile
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from small_model import BOTH, HOUSE, BrokenLamp, Lamp, Street

from vdcm import Bar, Vdev
from vdcm.catalog import describe_types
from vdcm.definition import implicit_parents, load
from vdcm.entry import Life, Listener
from vdcm.errors import StateError, StoreError, TransportError, VdcmError
from vdcm.manager import Manager
from vdcm.pasid import PASIDS
from vdcm.properties import PropertyError
from vdcm.store import Store

TWO = """
parents: {home: {model: house, storeys: 2}}
vdevs:
  lamp0: {type: lamp, parent: home, socket: lamp0.sock, level: 3}
  lamp1: {type: lamp, parent: home, socket: lamp1.sock, auto: false}
"""
STREETS = """
parents:
  s: {model: street, sockets: 1}
  t: {model: street, sockets: 1}
"""


def adopted(folder: Path, text: str = TWO, store: Store | None = None) -> Manager:
    (folder / "d.yaml").write_text(text)
    manager = Manager(store)
    manager.adopt(load(folder / "d.yaml", BOTH))
    manager.recall()
    return manager


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    manager = adopted(tmp_path)
    yield manager
    manager.close()


@pytest.fixture
def keeper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Manager]:
    """Two streets with a socket each, and a state folder."""
    with tempfile.TemporaryDirectory() as short:  # a socket's path is
        monkeypatch.setenv("XDG_RUNTIME_DIR", short)
        manager = adopted(tmp_path, STREETS, Store(tmp_path / "state"))
        yield manager
        manager.close()


def run(work: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    return asyncio.run(work())


def states(manager: Manager) -> dict[str, str]:
    return {one["name"]: one["state"] for one in manager.summaries()}


# Files


def test_adopt(manager: Manager, tmp_path: Path) -> None:
    home = manager.parents["home"]
    assert home.storeys == 2  # type: ignore[attr-defined]
    assert set(manager.parents) == {"home"}  # the implicit one is not needed yet
    summaries = manager.summaries()
    for n, summary in enumerate(summaries):
        assert UUID(summary.pop("uuid"))
        assert summary == {
            "name": f"lamp{n}",
            "type": "lamp",
            "parents": ["home"],
            "auto": n == 0,
            "socket": str(tmp_path / f"lamp{n}.sock"),
            "properties": {"level": 3} if n == 0 else {},
            "state": "defined",
            "origin": "file",
        }
    assert manager.show("lamp0")["properties"]["level"] == 3
    assert manager.entry("lamp0").vdev is None


def test_adopt_is_all_or_none(tmp_path: Path) -> None:
    (tmp_path / "d.yaml").write_text("vdevs: {a: {type: lamp}, b: {type: lamp, socket: x.sock}}")
    definition = load(tmp_path / "d.yaml", HOUSE)
    manager = Manager()
    other = Lamp("b")
    manager.add(other, tmp_path / "y.sock")
    with pytest.raises(VdcmError, match="there is a VDEV b already"):
        manager.adopt(definition)
    assert states(manager) == {"b": "defined"}
    assert manager.parents == {}
    manager.close()


def test_names_uuids_and_sockets_are_unique(manager: Manager, tmp_path: Path) -> None:
    lamp, named = Lamp("lamp0"), Lamp(manager.entry("lamp0").definition.uuid)
    for vdev in (lamp, named):
        with pytest.raises(VdcmError, match=f"there is a VDEV {vdev.name} already"):
            manager.add(vdev, tmp_path / "x.sock")
        vdev.close()
    other = Lamp("other")
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(VdcmError, match="other would have the same socket as lamp0: "):
        manager.add(other, tmp_path / "link/lamp0.sock")
    other.close()
    with pytest.raises(VdcmError, match="there is a parent home already"):
        manager.adopt(load(tmp_path / "d.yaml", HOUSE))


def test_an_unknown_name_says_the_known_ones(manager: Manager) -> None:
    for ask in (manager.show, manager.stop, manager.entry):
        with pytest.raises(VdcmError, match=r"no VDEV lamp2 \(did you mean lamp.\? known: lamp0, "):
            ask("lamp2")


def test_a_uuid_is_as_good_as_a_name(manager: Manager) -> None:
    entry = manager.entry("lamp0")
    assert manager.entry(entry.definition.uuid) is manager.entry(entry.definition.uuid.upper())
    assert manager.entry(entry.definition.uuid) is entry
    with pytest.raises(VdcmError, match="there is no VDEV LAMP0"):
        manager.entry("LAMP0")


# Start and stop


def test_start_and_stop(manager: Manager, tmp_path: Path) -> None:
    path = tmp_path / "lamp0.sock"
    pasids = len(PASIDS)

    async def work() -> None:
        assert manager.start("lamp0")["state"] == "ready"
        assert stat.S_IMODE(path.lstat().st_mode) == 0o600
        assert manager.show("lamp0")["pci_id"] == "1234:0001"
        assert states(manager) == {"lamp0": "ready", "lamp1": "defined"}
        assert len(PASIDS) == pasids + 1
        with pytest.raises(StateError, match="lamp0 is started; starting needs it defined or fail"):
            manager.start("lamp0")
        manager.stop("lamp0")
        assert not path.exists()
        assert manager.entry("lamp0").vdev is None
        assert len(PASIDS) == pasids
        for verb in (manager.stop, manager.reset):
            with pytest.raises(StateError, match=r"lamp0 is defined; .* needs it started"):
                verb("lamp0")
        manager.start("lamp0")
        manager.reset("lamp0")
        assert manager.show("lamp0")["counters"]["resets"] == 1
        manager.close()
        manager.close()
        assert list(tmp_path.glob("*.sock")) == []
        assert manager.summaries() == []

    run(work)


def test_start_all_starts_what_is_auto(manager: Manager) -> None:
    async def work() -> None:
        await manager.start_all()
        assert states(manager) == {"lamp0": "ready", "lamp1": "defined"}
        manager.close()

    run(work)


def test_told_to_stop_while_it_starts_all(manager: Manager) -> None:
    async def work() -> None:
        manager.stopping.set()
        await manager.start_all()
        assert states(manager) == {"lamp0": "defined", "lamp1": "defined"}

    run(work)


def test_a_model_that_cannot_be_made(tmp_path: Path) -> None:
    manager = adopted(tmp_path, "vdevs: {a: {type: broken-lamp, socket: a.sock}}")

    async def work() -> None:
        said = r"VDEV a of type broken-lamp: .* RuntimeError: no glass"
        with pytest.raises(VdcmError, match=said):
            manager.start("a")
        assert "no glass" in manager.summaries()[0]["reason"]
        assert states(manager) == {"a": "failed"}
        with pytest.raises(StateError, match="a is failed; stopping needs it started"):
            manager.stop("a")
        with pytest.raises(VdcmError, match=said):
            await manager.start_all() or manager.start("a")

    run(work)
    manager.close()


def test_a_start_without_a_socket_holds_nothing(manager: Manager, tmp_path: Path) -> None:
    (tmp_path / "lamp0.sock").write_text("mine")
    pasids = len(PASIDS)

    async def work() -> None:
        with pytest.raises(TransportError, match="is not a socket"):
            manager.start("lamp0")
        assert (manager.entry("lamp0").vdev, len(PASIDS)) == (None, pasids)
        (tmp_path / "lamp0.sock").unlink()
        assert manager.start("lamp0")["state"] == "ready"
        assert "reason" not in manager.summaries()[0]
        manager.close()

    run(work)


def test_stop_from_within_a_handler_is_refused_in_between(manager: Manager) -> None:
    """While it starts and stops a VDEV is in neither state, also for its own model."""
    seen: list[str] = []

    class Meddler(Lamp):
        def close(self) -> None:
            with pytest.raises(StateError, match="lamp0 is stopping; stopping needs it started"):
                manager.stop("lamp0")
            seen.append(manager.entry("lamp0").life.value)
            super().close()

    async def work() -> None:
        manager.start("lamp0")
        vdev = manager.entry("lamp0").vdev
        assert vdev is not None
        vdev.__class__ = Meddler
        manager.stop("lamp0")
        assert seen == ["stopping"]

    run(work)


def test_a_script_starts_and_stops_its_own(tmp_path: Path) -> None:
    manager = Manager()
    lamp = Lamp("a")
    manager.add(lamp, tmp_path / "a.sock")

    async def work() -> None:
        await manager.start_all()
        assert states(manager) == {"a": "ready"}
        manager.stop("a")
        assert manager.entry("a").vdev is lamp
        manager.set("a", {"level": 7})
        manager.start("a")
        assert manager.show("a")["properties"]["level"] == 7
        for verb in (manager.undefine, lambda name: manager.modify(name, auto=False)):
            with pytest.raises(VdcmError, match="a is script, it has no definition"):
                verb("a")
        manager.close()
        assert lamp.state.value == "closed"

    run(work)


def test_a_model_that_fails_to_close_keeps_nobody_open(
    manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = []

    def close(self: Lamp) -> None:
        closed.append(self.name)
        raise RuntimeError("stuck")

    async def work() -> None:
        manager.start("lamp0")
        manager.start("lamp1")
        vdevs = [manager.entry(name).vdev for name in ("lamp0", "lamp1")]
        with monkeypatch.context() as patch:
            patch.setattr(Lamp, "close", close)
            manager.stop("lamp1")
            assert manager.entry("lamp1").life is Life.DEFINED
            manager.close()
        assert closed == ["lamp1", "lamp0"]
        for vdev in vdevs:
            assert vdev is not None
            vdev.close()

    run(work)


# Definitions that stay


def test_define_survives(keeper: Manager, tmp_path: Path) -> None:
    (one,) = keeper.define([{"type": "lamp", "parent": "s", "properties": {"level": "7"}}])
    assert (one["origin"], one["state"], one["name"]) == ("stored", "defined", one["uuid"])
    keeper.modify(one["uuid"], values={"label": "porch"}, auto=True)
    keeper.close()
    again = adopted(tmp_path, STREETS, Store(tmp_path / "state"))
    (found,) = again.summaries()
    assert found == {**one, "auto": True, "properties": {"level": 7, "label": "porch"}}

    async def work() -> None:
        await again.start_all()
        assert again.show(one["uuid"])["properties"]["label"] == "porch"
        again.stop(one["uuid"])
        again.undefine(one["uuid"])
        assert again.summaries() == []

    run(work)
    again.close()
    assert list((tmp_path / "state").iterdir()) == []


def test_define_is_all_or_none(
    keeper: Manager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lamp = {"type": "lamp", "parent": "s"}
    with pytest.raises(VdcmError, match="there is a VDEV a already"):
        keeper.define([{**lamp, "name": "a"}, {**lamp, "name": "a"}])
    with pytest.raises(PropertyError):
        keeper.define([lamp, {**lamp, "properties": {"level": 999}}])
    uuid = "83b8f4f2-509f-382f-3c1e-e6bfe0fa1001"
    with pytest.raises(VdcmError, match=f"there is a VDEV {uuid.upper()} already"):
        keeper.define([{**lamp, "uuid": uuid, "name": "a"}, {**lamp, "name": uuid.upper()}])
    assert keeper.summaries() == []
    synced: list[int] = []

    def full(fd: int) -> None:
        synced.append(fd)
        if len(synced) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("vdcm.store.os.fsync", full)
    with pytest.raises(StoreError):
        keeper.define([lamp, lamp])
    assert keeper.summaries() == []
    assert list((tmp_path / "state").iterdir()) == []


def test_what_is_stored_and_cannot_be_used_costs_only_itself(
    keeper: Manager, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    good, bad = keeper.define([{"type": "lamp", "parent": p, "name": p} for p in ("s", "t")])
    keeper.close()
    again = adopted(tmp_path, "parents: {s: {model: street}}", Store(tmp_path / "state"))
    assert [one["name"] for one in again.summaries()] == ["s"]
    (record,) = caplog.records
    assert (
        f"{tmp_path}/state/{bad['uuid']}.json: this definition is left out: unknown parent t"
        in (record.getMessage())
    )
    with pytest.raises(StoreError, match="is there, and could not be used: repair it or remove it"):
        again.define([{"type": "lamp", "parent": "s", "uuid": bad["uuid"]}])
    assert again.entry(good["uuid"]).name == "s"
    again.close()


@pytest.mark.conformance("R4.4-6")
def test_over_provisioning(keeper: Manager) -> None:
    """More is defined than there is; starting says what is short, stopping gives it back."""
    names = ["a", "b", "c"]
    keeper.define([{"type": "plugged-lamp", "parent": "s", "name": n, "auto": True} for n in names])

    async def work() -> None:
        await keeper.start_all()
        assert states(keeper) == {"a": "ready", "b": "failed", "c": "failed"}
        assert "no socket left for" in keeper.show("b")["reason"]
        keeper.stop("a")
        keeper.start("b")
        assert states(keeper) == {"a": "defined", "b": "ready", "c": "failed"}
        keeper.stop("b")

    run(work)


@pytest.mark.conformance("R4.4-3")
def test_several_parents_of_one_vdev(keeper: Manager) -> None:
    both = {"type": "plugged-lamp", "parents": ["s", "t"]}
    keeper.define([{**both, "name": name} for name in ("a", "b", "c")])

    def street(name: str) -> str:
        vdev = keeper.entry(name).vdev
        assert vdev is not None
        return vdev.adis[0].driver.name

    async def work() -> None:
        keeper.start("a")
        keeper.start("b")
        assert (street("a"), street("b")) == ("s", "t")
        with pytest.raises(VdcmError, match="no socket left for"):
            keeper.start("c")
        assert [
            (one["parent"], one["available"])
            for one in keeper.describe_types()
            if one["type"] == "plugged-lamp"
        ] == [("s", 0), ("t", 0)]
        keeper.close()

    run(work)


def test_modify(keeper: Manager) -> None:
    keeper.define([{"type": "lamp", "parent": "s", "name": "a", "properties": {"level": 7}}])

    async def work() -> None:
        keeper.start("a")
        keeper.modify("a", values={"level": "9", "wiring": 2}, kind="street-lamp")
        assert keeper.show("a")["properties"]["level"] == 7  # until it is started next
        keeper.stop("a")
        keeper.start("a")
        assert keeper.show("a")["properties"]["level"] == 9
        keeper.modify("a", delete=["level"])
        keeper.stop("a")
        assert keeper.show("a")["properties"] == {
            "level": 0,
            "label": "",
            "lit": False,
            "wiring": 2,
        }
        for wrong, said in (
            ({"delete": ["level"]}, r"a has no property level set \(known: wiring\)"),
            ({"values": {"level": 999}}, "level takes 0 to 255"),
            ({"kind": "lamb"}, r"parent s has no type lamb \(did you mean lamp"),
        ):
            before = keeper.summaries()
            with pytest.raises(VdcmError, match=said):
                keeper.modify("a", **wrong)  # type: ignore[arg-type]
            assert keeper.summaries() == before

    run(work)


def test_what_is_of_a_file_is_changed_there(manager: Manager, tmp_path: Path) -> None:
    for verb in (manager.undefine, lambda name: manager.modify(name, auto=False)):
        with pytest.raises(
            VdcmError, match=rf"lamp0 is defined in {tmp_path}/d\.yaml: change that"
        ):
            verb("lamp0")
    with pytest.raises(VdcmError, match="no state folder"):
        manager.define([{"type": "lamp"}])


def test_undefine_what_is_started(keeper: Manager, tmp_path: Path) -> None:
    keeper.define([{"type": "lamp", "parent": "s", "name": "a"}])

    async def work() -> None:
        keeper.start("a")
        keeper.undefine("a")
        assert list((tmp_path / "state").iterdir()) == []
        (one,) = keeper.summaries()
        assert (one["origin"], one["state"]) == ("transient", "ready")
        assert keeper.summaries(defined=True) == []
        keeper.stop("a")
        assert keeper.summaries() == []

    run(work)


def test_transient(keeper: Manager) -> None:
    async def work() -> None:
        one = keeper.start_transient({"type": "plugged-lamp", "parent": "s"})
        assert (one["state"], one["origin"]) == ("ready", "transient")
        with pytest.raises(VdcmError, match="no socket left for"):
            keeper.start_transient({"type": "plugged-lamp", "parent": "s"})
        assert len(keeper.summaries()) == 1
        keeper.stop(one["uuid"])
        assert keeper.summaries() == []
        keeper.start_transient({"type": "plugged-lamp", "parent": "s"})
        keeper.close()

    run(work)


def test_list_is_what_define_takes(keeper: Manager, tmp_path: Path) -> None:
    keeper.define([{"type": "lamp", "parents": ["s", "t"], "properties": {"level": 3}}] * 2)
    elsewhere = adopted(tmp_path, STREETS, Store(tmp_path / "elsewhere"))
    taken = elsewhere.define(keeper.summaries())
    assert taken == keeper.summaries()
    elsewhere.close()


def test_a_parent_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[str] = []

    def broken(self: Street, _value: int) -> None:
        raise RuntimeError(f"no way to {self.name}")

    monkeypatch.setattr(Street, "on_set_sockets", broken, raising=False)
    monkeypatch.setattr(Street, "close", lambda self: closed.append(self.name))
    (tmp_path / "d.yaml").write_text(
        "parents: {r: {model: street}, s: {model: street, sockets: 1}}"
    )
    manager = Manager()
    with pytest.raises(VdcmError, match=r"parent s of model street: .* RuntimeError: no way to s"):
        manager.adopt(load(tmp_path / "d.yaml", BOTH))
    assert "r" in closed
    assert manager.describe_parents() == []


def test_describe_parents(manager: Manager) -> None:
    home, street = manager.describe_parents()
    assert (home["name"], home["model"], home["driver"]) == ("home", "house", None)
    assert home["types"] == ["broken-lamp", "lamp"]
    (storeys,) = home["properties"]
    assert (storeys["name"], storeys["value"], storeys["default"]) == ("storeys", 2, 1)
    assert street["types"] == ["lamp", "plugged-lamp", "street-lamp"]
    assert street["driver"]["adi_types"] == {"socket": {"maximum": 2, "available": 2}}
    assert {one["parent"] for one in manager.describe_types("home")} == {"home"}
    with pytest.raises(VdcmError, match="unknown parent homer"):
        manager.describe_types("homer")


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
        ({"level": "1", "label": None}, "label takes text, not nothing"),
        ({"level": "256"}, "level takes 0 to 255"),
        ({"level": "1", "levle": "1"}, r"lamp0 has no property levle \(did you mean level\?"),
    ],
)
def test_set_is_all_or_none(manager: Manager, values: dict[str, object], said: str) -> None:
    with pytest.raises(PropertyError, match=said):
        manager.set("lamp0", values)
    assert manager.show("lamp0")["properties"]["level"] == 3


def test_set_while_started(manager: Manager) -> None:
    async def work() -> None:
        manager.start("lamp0")
        assert manager.set("lamp0", {"level": "1"}) == {"level": 1}
        with pytest.raises(StateError, match="lamp0 is started; setting wiring needs it stopped"):
            manager.set("lamp0", {"level": 2, "wiring": 2})
        assert manager.show("lamp0")["properties"]["level"] == 1
        manager.stop("lamp0")
        assert manager.show("lamp0")["properties"]["level"] == 3  # as it is defined
        manager.set("lamp0", {"wiring": 2})
        manager.start("lamp0")
        assert manager.show("lamp0")["properties"]["wiring"] == 2
        manager.close()

    run(work)


def test_a_models_mistake_names_the_vdev(manager: Manager) -> None:
    async def work() -> None:
        manager.start("lamp0")
        with pytest.raises(
            VdcmError, match=r"lamp0: .* failed: .*small_model.py:\d+: RuntimeError: the bu"
        ):
            manager.set("lamp0", {"level": 0xEE})
        manager.close()

    run(work)


def test_a_declaration_that_cannot_be_names_the_vdev_and_the_line(
    manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    def init(lamp: Lamp, name: str) -> None:
        Vdev.__init__(lamp, name, bars=[Bar(0, 0x3000)])

    monkeypatch.setattr(Lamp, "__init__", init)

    async def work() -> None:
        with pytest.raises(
            VdcmError, match=r"lamp0 .*: .*test_manager.py:\d+: BAR0: size 0x3000 is not a power"
        ):
            manager.start("lamp0")
        manager.close()

    run(work)


def test_many_may_listen(manager: Manager) -> None:
    first: list[str] = []
    second: list[str] = []

    def listener(lines: list[str]) -> Listener:
        return Listener(
            lambda _name: lambda event: lines.append(str(event)), accesses=lines is second
        )

    end_first = manager.listen(listener(first), ["lamp1"])  # before there is anything to hear

    async def work() -> None:
        manager.start("lamp1")
        vdev = manager.entry("lamp1").vdev
        assert vdev is not None
        assert not vdev.observed, "somebody listens, but not to accesses"
        end_second = manager.listen(listener(second), ["lamp1", "lamp1"])
        assert vdev.observed
        manager.set("lamp1", {"level": 1})
        end_first()
        end_first()
        manager.set("lamp1", {"level": 2})
        end_second()
        assert vdev.observer is None  # and costs nothing
        manager.set("lamp1", {"level": 3})
        assert first == ["level 0x1"]
        assert second == ["level 0x1", "level 0x2"]
        manager.close()

    run(work)


def test_one_listens_to_all_also_to_those_to_come(keeper: Manager, tmp_path: Path) -> None:
    heard: list[tuple[str, str]] = []
    lamp = {"type": "lamp", "parent": "s", "socket": str(tmp_path / "a.sock")}
    keeper.define([{**lamp, "name": "a"}])
    keeper.listen(Listener(lambda name: lambda event: heard.append((name, str(event)))))
    keeper.define([{**lamp, "name": "b", "socket": str(tmp_path / "b.sock")}])

    async def work() -> None:
        for name in ("a", "b"):
            keeper.start(name)
            keeper.set(name, {"level": 1})
            keeper.stop(name)

    run(work)
    assert heard == [("a", "level 0x1"), ("b", "level 0x1")]


def test_describe_types() -> None:
    broken, lamp = describe_types(implicit_parents(HOUSE).values())
    assert (broken["type"], broken["doc"]) == ("broken-lamp", BrokenLamp.__doc__)
    assert (lamp["type"], lamp["parent"], lamp["doc"]) == ("lamp", "house", "A lamp.")
    level, label, lit, wiring = lamp["properties"]
    assert level["maximum"] == 0xFF and level["kind"] == "int" and level["live"]
    assert label["kind"] == "str" and label["minimum"] is None
    assert lit["kind"] == "bool" and lit["default"] is False
    assert not wiring["live"]
    docs = {one["type"]: one["doc"] for one in describe_types(implicit_parents(BOTH).values())}
    assert docs["plugged-lamp"] == "A lamp on a wire."
