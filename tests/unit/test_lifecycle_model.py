"""Random lifecycles against a plain model: what is there, in which state, and that nothing leaks.

``VDCM_LIFECYCLE_OPERATIONS`` is how many (10,000 unless told).
"""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar
from unittest.mock import patch

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from small_model import House, PluggedLamp, Street

from vdcm.client import Client
from vdcm.definition import Definition, ParentDefinition
from vdcm.errors import StateError, StoreError, TransportError, VdcmError
from vdcm.manager import Manager
from vdcm.parent import build
from vdcm.pasid import PASIDS
from vdcm.properties import PropertyError
from vdcm.store import Store

OPERATIONS = int(os.environ.get("VDCM_LIFECYCLE_OPERATIONS", "10000"))
STEPS = 50  # of one life

ROOM = {"s": 2, "t": 1}  # lamps that can be plugged in
PARENTS = (
    ParentDefinition("s", "street", Street, {"sockets": ROOM["s"]}),
    ParentDefinition("t", "street", Street, {"sockets": ROOM["t"]}),
    ParentDefinition("house", "house", House, implicit=True),
)
BLOWN = 0xEE  # the level with which the model itself fails

NAMES = st.sampled_from("abcdef")
TYPES = st.sampled_from(["lamp", "plugged-lamp", "plugged-lamp", "street-lamp"])
PLACES = st.sampled_from([["s"], ["t"], ["s", "t"], ["t", "s"]])
LEVELS = st.sampled_from([0, 1, 7, 0xFF, BLOWN, 0x100])
VALUES = st.fixed_dictionaries(
    {}, optional={"level": LEVELS, "lit": st.booleans(), "wiring": st.sampled_from([1, 2, 5])}
)


@dataclass
class Lamp:
    """What is known of one VDEV."""

    uuid: str
    type: str
    parents: list[str]
    auto: bool
    properties: dict[str, Any]
    origin: str = "stored"
    state: str = "defined"
    live: dict[str, Any] = field(default_factory=dict)
    plugged: str = ""


def legal(values: dict[str, Any]) -> bool:
    return values.get("level", 0) <= 0xFF and values.get("wiring", 1) <= 4


class Lifecycle(RuleBasedStateMachine):
    operations: ClassVar = 0

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="vdcm-test-"))
        self.loop = asyncio.new_event_loop()
        self.lamps: dict[str, Lamp] = {}
        self.clients: dict[str, Client] = {}
        self.pasids = len(PASIDS)
        self.descriptors = len(os.listdir("/proc/self/fd"))  # noqa: PTH208  # without one of its own
        self.threads = threading.active_count()
        self.begin()

    # The real thing.

    def begin(self) -> None:
        self.manager = Manager(Store(self.folder / "state"))
        self.manager.adopt(Definition(None, PARENTS, (), self.folder / "control.sock"))
        self.manager.recall()

    def do(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """Call on the loop, and let it settle: a client that has gone is seen to have."""

        async def call() -> Any:
            try:
                return function(*arguments, **options)
            finally:
                for _ in range(3):
                    await asyncio.sleep(0)

        type(self).operations += 1
        return self.loop.run_until_complete(call())

    def fails(self, error: type[VdcmError], *call: Any, **options: Any) -> None:
        try:
            self.do(*call, **options)
        except error:
            return
        raise AssertionError(f"{call[0].__name__} {call[1:]} {options} did not raise {error}")

    def given(self, name: str, kind: str, places: list[str], **more: Any) -> dict[str, Any]:
        socket = str(self.folder / f"{name}.sock")
        return {"name": name, "type": kind, "parents": places, "socket": socket, **more}

    # The model of it.

    def room(self, lamp: Lamp) -> str | None:
        for place in lamp.parents:
            if sum(other.plugged == place for other in self.lamps.values()) < ROOM[place]:
                return place
        return None

    def model_start(self, lamp: Lamp) -> bool:
        """Start it, if it can be."""
        place = self.room(lamp) if lamp.type == "plugged-lamp" else ""
        if place is None or lamp.properties.get("level") == BLOWN:
            lamp.state = "failed"
            return False
        lamp.plugged = place
        lamp.state = "ready"
        lamp.live = {"level": 0, "label": "", "lit": False, "wiring": 1, **lamp.properties}
        return True

    def model_stop(self, name: str) -> None:
        lamp = self.lamps[name]
        lamp.state, lamp.plugged, lamp.live = "defined", "", {}
        client = self.clients.pop(name, None)
        if client is not None:
            client.close()
        if lamp.origin == "transient":
            del self.lamps[name]

    # Operations.

    @rule(name=NAMES, kind=TYPES, places=PLACES, auto=st.booleans(), values=VALUES)
    def define(
        self, name: str, kind: str, places: list[str], auto: bool, values: dict[str, Any]
    ) -> None:
        wanted = [self.given(name, kind, places, auto=auto, properties=values)]
        if not legal(values):
            self.fails(PropertyError, self.manager.define, wanted)
        elif name in self.lamps:
            self.fails(VdcmError, self.manager.define, wanted)
        else:
            (made,) = self.do(self.manager.define, wanted)
            self.lamps[name] = Lamp(made["uuid"], kind, places, auto, values)

    @rule(name=NAMES, kind=TYPES, places=PLACES, values=VALUES)
    def start_transient(
        self, name: str, kind: str, places: list[str], values: dict[str, Any]
    ) -> None:
        wanted = self.given(name, kind, places, properties=values)
        lamp = Lamp("", kind, places, False, values, "transient")
        if not legal(values):
            self.fails(PropertyError, self.manager.start_transient, wanted)
        elif name in self.lamps or not self.model_start(lamp):
            self.fails(VdcmError, self.manager.start_transient, wanted)
        else:
            lamp.uuid = self.do(self.manager.start_transient, wanted)["uuid"]
            self.lamps[name] = lamp

    @rule(name=NAMES)
    def undefine(self, name: str) -> None:
        lamp = self.lamps.get(name)
        if lamp is None or lamp.origin != "stored":
            self.fails(VdcmError, self.manager.undefine, name)
            return
        self.do(self.manager.undefine, name)
        if lamp.state in ("ready", "attached"):
            lamp.origin = "transient"
        else:
            del self.lamps[name]

    @rule(
        name=NAMES,
        kind=st.none() | TYPES,
        values=VALUES,
        delete=st.lists(st.sampled_from(["level", "lit"]), max_size=1),
        auto=st.none() | st.booleans(),
    )
    def modify(
        self,
        name: str,
        kind: str | None,
        values: dict[str, Any],
        delete: list[str],
        auto: bool | None,
    ) -> None:
        lamp = self.lamps.get(name)
        options = {"kind": kind, "values": values, "delete": delete, "auto": auto}
        if lamp is None or lamp.origin != "stored":
            self.fails(VdcmError, self.manager.modify, name, **options)
        elif set(delete) - set(lamp.properties) or not legal(values):
            self.fails(PropertyError, self.manager.modify, name, **options)
        else:
            self.do(self.manager.modify, name, **options)
            kept = {key: value for key, value in lamp.properties.items() if key not in delete}
            lamp.properties = {**kept, **values}
            lamp.type = kind or lamp.type
            lamp.auto = lamp.auto if auto is None else auto

    @rule(name=NAMES)
    def start(self, name: str) -> None:
        lamp = self.lamps.get(name)
        if lamp is None:
            self.fails(VdcmError, self.manager.start, name)
        elif lamp.state in ("ready", "attached"):
            self.fails(StateError, self.manager.start, name)
        elif self.model_start(lamp):
            assert self.do(self.manager.start, name)["state"] == "ready"
        else:
            self.fails(VdcmError, self.manager.start, name)

    @rule(name=NAMES)
    def start_with_its_socket_taken(self, name: str) -> None:
        lamp = self.lamps.get(name)
        if lamp is None or lamp.state in ("ready", "attached"):
            return
        path = self.folder / f"{name}.sock"
        path.write_text("in the way")
        made = self.model_start(lamp)
        self.fails(TransportError if made else VdcmError, self.manager.start, name)
        lamp.state, lamp.plugged, lamp.live = "failed", "", {}
        path.unlink()

    @rule(name=NAMES)
    def stop(self, name: str) -> None:
        lamp = self.lamps.get(name)
        if lamp is None:
            self.fails(VdcmError, self.manager.stop, name)
        elif lamp.state not in ("ready", "attached"):
            self.fails(StateError, self.manager.stop, name)
        else:
            self.do(self.manager.stop, lamp.uuid)
            self.model_stop(name)

    @rule(name=NAMES, values=VALUES)
    def set(self, name: str, values: dict[str, Any]) -> None:
        lamp = self.lamps.get(name)
        if lamp is None:
            self.fails(VdcmError, self.manager.set, name, values)
        elif not legal(values):
            self.fails(PropertyError, self.manager.set, name, values)
        elif not lamp.live:
            self.do(self.manager.set, name, values)
            lamp.properties |= values
        elif "wiring" in values:
            self.fails(StateError, self.manager.set, name, values)
        elif values.get("level") == BLOWN:
            self.fails(VdcmError, self.manager.set, name, {"level": BLOWN})
            lamp.live["level"] = BLOWN
        else:
            self.do(self.manager.set, name, values)
            lamp.live |= values

    @rule(name=NAMES)
    def reset(self, name: str) -> None:
        lamp = self.lamps.get(name)
        if lamp is None or not lamp.live:
            self.fails(VdcmError if lamp is None else StateError, self.manager.reset, name)
        else:
            self.do(self.manager.reset, name)

    @rule(name=NAMES)
    def attach(self, name: str) -> None:
        lamp = self.lamps.get(name)
        if lamp is None or lamp.state != "ready":
            return

        async def connect() -> Client:
            with ThreadPoolExecutor(1) as pool:  # gone afterwards, with its thread
                path = self.folder / f"{name}.sock"
                return await self.loop.run_in_executor(pool, Client, path)

        self.clients[name] = self.loop.run_until_complete(connect())
        lamp.state = "attached"
        type(self).operations += 1

    @rule(name=NAMES)
    def detach(self, name: str) -> None:
        client = self.clients.pop(name, None)
        if client is not None:
            client.close()
            self.do(lambda: None)
            self.lamps[name].state = "ready"

    @rule(name=NAMES)
    def the_disk_is_full(self, name: str) -> None:
        with patch("vdcm.store.os.fsync", side_effect=OSError(28, "No space left on device")):
            given = self.given("new", "lamp", ["s"])
            self.fails(StoreError, self.manager.define, [given])
            lamp = self.lamps.get(name)
            if lamp is not None and lamp.origin == "stored":
                self.fails(StoreError, self.manager.modify, name, auto=not lamp.auto)

    @rule()
    def restart(self) -> None:
        self.end()
        for name in [name for name, lamp in self.lamps.items() if lamp.origin != "stored"]:
            del self.lamps[name]
        for lamp in self.lamps.values():
            lamp.state = "defined"
        self.begin()
        in_order = sorted(self.lamps.values(), key=lambda lamp: lamp.uuid)
        self.loop.run_until_complete(self.manager.start_all())
        for lamp in in_order:
            if lamp.auto:
                self.model_start(lamp)

    # What holds at any time.

    @invariant()
    def it_is_as_the_model_says(self) -> None:
        found = {one["name"]: one for one in self.manager.summaries()}
        assert set(found) == set(self.lamps)
        for name, lamp in self.lamps.items():
            one = found[name]
            assert (one["uuid"], one["type"], one["parents"]) == (
                *(lamp.uuid, lamp.type, lamp.parents),
            )
            assert (one["auto"], one["origin"], one["state"]) == (
                *(lamp.auto, lamp.origin, lamp.state),
            )
            assert one["properties"] == lamp.properties
            assert ("reason" in one) == (lamp.state == "failed")
            if lamp.live:
                assert self.manager.show(name)["properties"] == lamp.live

    @invariant()
    def what_is_started_holds_what_it_needs_and_nothing_more(self) -> None:
        started = {name for name, lamp in self.lamps.items() if lamp.live}
        assert len(PASIDS) == self.pasids + len(started)
        assert {path.stem for path in self.folder.glob("*.sock")} == started
        stored = {lamp.uuid for lamp in self.lamps.values() if lamp.origin == "stored"}
        assert {path.stem for path in (self.folder / "state").glob("*")} == stored
        for name in ("s", "t"):
            street = self.manager.parents[name]
            plugged = sum(lamp.plugged == name for lamp in self.lamps.values())
            assert street.driver is not None
            assert len(street.driver.adis) == plugged
            assert street.driver.ims.free == street.driver.ims.size - plugged

    def end(self) -> None:
        self.do(self.manager.close)
        for name in list(self.lamps):
            if self.lamps[name].live:
                self.model_stop(name)
        self.do(lambda: None)
        assert len(PASIDS) == self.pasids
        assert list(self.folder.glob("*.sock")) == []
        assert threading.active_count() == self.threads
        assert len(os.listdir("/proc/self/fd")) == self.descriptors  # noqa: PTH208

    def teardown(self) -> None:
        self.end()
        self.loop.close()
        shutil.rmtree(self.folder)


def test_any_life() -> None:
    first = Street("first")  # what is made once for all is made now
    build(PluggedLamp, "first", {}, drivers=[first.driver]).close()
    first.close()
    Lifecycle.operations = 0
    while Lifecycle.operations < OPERATIONS:
        run_state_machine_as_test(
            Lifecycle,
            settings=settings(
                max_examples=10,
                stateful_step_count=STEPS,
                deadline=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
