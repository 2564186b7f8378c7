"""The control socket: what its methods do, who may use it, and what a bad client costs."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from small_model import HOUSE, BrokenLamp

from vdcm.control import ControlClient, ControlServer, methods
from vdcm.control import client as client_module
from vdcm.control import server as module
from vdcm.definition import load
from vdcm.errors import ControlError, ResourceError, TransportError
from vdcm.manager import Manager
from vdcm.store import Store
from vdcm.trace import QUEUE_LIMIT

DEADLINE = 10.0


class Server:
    """A manager with two lamps, and its control socket, on a loop of their own in a thread.

    It keeps definitions in ``folder/state``.
    """

    def __init__(self, folder: Path) -> None:
        file = folder / "d.yaml"
        file.write_text(
            "vdevs:\n"
            "  lamp0: {type: lamp, socket: lamp0.sock, level: 3}\n"
            "  lamp1: {type: lamp, socket: lamp1.sock}\n"
            "control: c.sock\n"
        )
        self.definition = load(file, HOUSE)
        self.path = self.definition.control
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)
        self._thread.start()
        assert self._ready.wait(DEADLINE)

    async def _run(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.manager = Manager(Store(self.path.parent / "state"))
        self.manager.adopt(self.definition)
        try:
            async with ControlServer(self.manager, self.path) as self.control:
                await self.manager.start_all()
                self._ready.set()
                await self.manager.stopping.wait()
        finally:
            self.manager.close()

    def do(self, function: Any, *args: Any) -> Any:
        """Call on the loop."""

        async def call() -> Any:
            return function(*args)

        return asyncio.run_coroutine_threadsafe(call(), self.loop).result(DEADLINE)

    def wait(self) -> None:
        self._thread.join(DEADLINE)
        assert not self._thread.is_alive()

    def close(self) -> None:
        if self._thread.is_alive():
            self.loop.call_soon_threadsafe(self.manager.stopping.set)
            self.wait()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path)
    yield server
    server.close()


@pytest.fixture
def client(server: Server) -> Iterator[ControlClient]:
    with ControlClient(server.path) as client:
        yield client


def observer(server: Server) -> object:
    vdev = server.manager.entry("lamp0").vdev
    assert vdev is not None
    return vdev.observer


class Raw:
    """A connection that says what it likes."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(DEADLINE)
        self.socket.connect(str(path))
        self.file = self.socket.makefile("rb")

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def reply(self) -> dict[str, Any] | None:
        line = self.file.readline()
        return json.loads(line) if line else None

    def ask(self, data: bytes | dict[str, Any]) -> dict[str, Any]:
        self.send((data if isinstance(data, bytes) else json.dumps(data).encode()) + b"\n")
        reply = self.reply()
        assert reply is not None
        return reply


def request(method: str, identifier: int = 1, **params: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": identifier, "method": method, "params": params}


# What the methods do


def test_list_and_show(client: ControlClient, tmp_path: Path) -> None:
    assert [one["name"] for one in client.call("list")] == ["lamp0", "lamp1"]
    assert client.call("list")[0]["state"] == "ready"
    shown = client.call("show", name="lamp0")
    assert shown["socket"] == str(tmp_path / "lamp0.sock")
    assert shown["properties"]["level"] == 3


def test_set_answers_the_new_values(client: ControlClient) -> None:
    assert client.call("set", name="lamp0", values={"level": "0x10", "lit": True}) == {
        "level": 16,
        "lit": True,
    }
    assert client.call("show", name="lamp0")["properties"]["level"] == 16


def test_types_and_parents(client: ControlClient) -> None:
    assert [one["type"] for one in client.call("types")] == ["broken-lamp", "lamp"]
    assert client.call("types", parent="house") == client.call("types")
    assert [one["name"] for one in client.call("parents")] == ["house"]
    with pytest.raises(ControlError, match="unknown parent street"):
        client.call("types", parent="street")


def test_a_life(client: ControlClient, tmp_path: Path) -> None:
    given = {"type": "lamp", "name": "a", "socket": str(tmp_path / "a.sock")}
    (made,) = client.call("define", definitions=[given])
    assert client.call("modify", name="a", set={"level": "2"}, auto=True)["auto"] is True
    assert client.call("start", name=made["uuid"])["state"] == "ready"
    assert client.call("show", name="a")["properties"]["level"] == 2
    assert client.call("reset", name="a") is True
    assert client.call("show", name="a")["counters"]["resets"] == 1
    with pytest.raises(ControlError, match="a is started; starting needs it defined") as raised:
        client.call("start", name="a")
    assert raised.value.code == methods.WRONG_STATE
    assert client.call("stop", name="a") is True
    client.call("modify", name="a", delete=["level"], type="lamp")
    assert client.call("show", name="a")["properties"]["level"] == 0
    assert client.call("undefine", name="a") is True
    assert [one["name"] for one in client.call("list")] == ["lamp0", "lamp1"]
    started = client.call("start", definition=given)
    assert (started["origin"], started["state"]) == ("transient", "ready")
    assert len(client.call("list", defined=True)) == 2
    client.call("stop", name="a")
    assert len(client.call("list")) == 2


def test_a_thousand(client: ControlClient, tmp_path: Path) -> None:
    """A request and an answer of several hundred kilobytes."""
    place = tempfile.mkdtemp(dir=tmp_path)
    definitions = [
        {"type": "lamp", "name": f"lamp-{n}", "socket": f"{place}/{n}"} for n in range(10, 1010)
    ]
    assert len(client.call("define", definitions=definitions)) == 1000
    listed = client.call("list")
    assert len(listed) == 1002
    assert len(json.dumps(listed)) > 200_000
    with pytest.raises(ControlError, match=r"no VDEV lamp \(.*known: .* and 982 more\)"):
        client.call("show", name="lamp")


def test_shutdown(client: ControlClient, server: Server) -> None:
    assert client.call("shutdown") is True
    server.wait()
    assert not server.path.exists()
    with pytest.raises(ControlError, match="the server has gone"):
        client.call("list")


def test_trace(client: ControlClient, server: Server) -> None:
    trace = client.trace(names=["lamp0"])
    with ControlClient(server.path) as other:
        lines: list[dict[str, Any]] = []

        def collect() -> None:
            lines.append(next(trace))
            lines.append(next(trace))

        collector = threading.Thread(target=collect)
        collector.start()
        while observer(server) is None:
            other.call("list")
        other.call("set", name="lamp1", values={"level": 9})
        other.call("set", name="lamp0", values={"level": 1})
        other.call("set", name="lamp0", values={"level": 2})
        collector.join(DEADLINE)
    assert [(one["name"], one["kind"], one["text"], one["note"]) for one in lines] == [
        ("lamp0", "device", "level 0x1", "level 0x1"),
        ("lamp0", "device", "level 0x2", "level 0x2"),
    ]
    assert lines[0]["time"] <= lines[1]["time"]


def test_a_trace_ends_with_its_client(server: Server) -> None:
    with Raw(server.path) as one, Raw(server.path) as other:
        assert one.ask(request("trace", names=["lamp0"]))["result"] is True
        assert other.ask(request("trace", names=["lamp0"]))["result"] is True
        assert observer(server) is not None
    with ControlClient(server.path) as client:
        while observer(server) is not None:
            client.call("list")


def test_one_trace_for_a_connection(server: Server) -> None:
    with Raw(server.path) as raw:
        assert raw.ask(request("trace", names=["lamp0"]))["result"] is True
        refused = raw.ask(request("trace", names=["lamp1"]))["error"]
        assert "has a trace already" in refused["message"]
        assert raw.ask(request("list"))["result"]


def test_a_trace_that_is_not_read_loses_lines_and_says_how_many(server: Server) -> None:
    count = QUEUE_LIMIT + 500

    def flood() -> None:  # in one turn of the loop, so that nothing can leave meanwhile
        for n in range(count):
            server.manager.set("lamp0", {"level": n & 0x7F})

    with Raw(server.path) as raw:
        assert raw.ask(request("trace", names=["lamp0"]))["result"] is True
        server.do(flood)
        notes = [raw.reply() for _ in range(QUEUE_LIMIT)]
        assert all(note is not None and note["params"]["kind"] == "device" for note in notes)
        dropped = raw.reply()
    assert dropped is not None
    assert (dropped["params"]["kind"], dropped["params"]["count"]) == ("dropped", 500)


def test_a_stuck_trace_does_not_keep_the_server(server: Server) -> None:
    with Raw(server.path) as raw:
        assert raw.ask(request("trace", names=["lamp0"]))["result"] is True
        for _ in range(40):  # more than the socket and the transport take
            server.do(lambda: [server.manager.set("lamp0", {"level": 1}) for _ in range(500)])
        with ControlClient(server.path) as client:
            client.call("shutdown")
        server.wait()


def test_stopping_with_clients_connected_logs_nothing(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    with Raw(server.path) as tracing, Raw(server.path) as idle:
        assert tracing.ask(request("trace", names=["lamp0"]))["result"] is True
        assert idle.ask(request("list"))["result"]
        server.close()
    assert [record.getMessage() for record in caplog.records if record.name == "asyncio"] == []


# What is refused


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (b"nonsense", methods.PARSE_ERROR),
        (b"\xff\xfe", methods.PARSE_ERROR),
        (b"[" * 20000, methods.PARSE_ERROR),
        (b"9" * 6000, methods.PARSE_ERROR),
        (b"", methods.PARSE_ERROR),
        (b"[]", methods.INVALID_REQUEST),
        (b'[{"jsonrpc": "2.0", "id": 1, "method": "list"}]', methods.INVALID_REQUEST),
        (b'{"id": 1, "method": "list"}', methods.INVALID_REQUEST),
        (b'{"jsonrpc": "2.0", "id": 1}', methods.INVALID_REQUEST),
        (b'{"jsonrpc": "2.0", "id": 1, "method": {}}', methods.INVALID_REQUEST),
        (b'{"jsonrpc": "2.0", "id": [], "method": "list"}', methods.INVALID_REQUEST),
        (b'{"jsonrpc": "2.0", "id": true, "method": "list"}', methods.INVALID_REQUEST),
        (b'{"jsonrpc": "2.0", "id": 1, "method": "lost"}', methods.UNKNOWN_METHOD),
        (b'{"jsonrpc": "2.0", "id": 1, "method": "close"}', methods.UNKNOWN_METHOD),
    ],
)
def test_requests_that_are_none(server: Server, line: bytes, code: int) -> None:
    with Raw(server.path) as raw:
        assert raw.ask(line)["error"]["code"] == code
        assert "result" in raw.ask(request("list"))  # and the connection lives


@pytest.mark.parametrize(
    ("asked", "code", "said"),
    [
        (request("list", name="x"), methods.INVALID_PARAMS, "the parameters of list"),
        (request("show"), methods.INVALID_PARAMS, "the parameters of show, by name, are: name"),
        (request("show", name=3), methods.INVALID_PARAMS, "show: name is no text"),
        ({**request("show"), "params": ["lamp0"]}, methods.INVALID_PARAMS, "by name"),
        (request("set", name="lamp0", values=[]), methods.INVALID_PARAMS, "values is no JSON obj"),
        (request("list", defined=1), methods.INVALID_PARAMS, "list: defined is no true or false"),
        (request("define", definitions={}), methods.INVALID_PARAMS, "definitions is no JSON list"),
        (request("define", definitions=[1]), methods.INVALID_PARAMS, "a list of JSON objects"),
        (request("define", definitions=[{}]), methods.REFUSED, "type is missing"),
        (
            request("define", definitions=[{"type": "lamp", "properties": {"x": 1}}]),
            methods.INVALID_PARAMS,
            "type lamp has no property x",
        ),
        (request("modify"), methods.INVALID_PARAMS, "are: name, [type], [set], [delete], [auto]"),
        (request("modify", name="lamp0", delete=[1]), methods.INVALID_PARAMS, "property names"),
        (request("modify", name="lamp0", auto=True), methods.REFUSED, "change that file"),
        (request("undefine", name="lamp0"), methods.REFUSED, "is defined in "),
        (request("start"), methods.INVALID_PARAMS, "start takes a name, or the definition"),
        (request("start", name="a", definition={}), methods.INVALID_PARAMS, "start takes a name"),
        (request("start", name="lamp0"), methods.WRONG_STATE, "lamp0 is started; starting needs"),
        (request("start", definition={"type": "lamb"}), methods.REFUSED, "unknown type lamb"),
        (
            request("start", definition={"type": "broken-lamp", "socket": "/tmp/x"}),
            methods.REFUSED,
            "RuntimeError: no glass for",
        ),
        (
            request("start", definition={"type": "lamp", "socket": "/nowhere/x"}),
            methods.REFUSED,
            "/nowhere/x: cannot use its folder",
        ),
        (request("stop"), methods.INVALID_PARAMS, "the parameters of stop, by name, are: name"),
        (request("show", name="\ud800"), methods.REFUSED, "there is no VDEV"),
        (request("trace", names=["x"]), methods.REFUSED, "there is no VDEV x (known: lamp0, "),
        (request("trace", names=[1]), methods.INVALID_PARAMS, "trace: names is a list of texts"),
        (request("trace", kinds=["x"]), methods.REFUSED, "there is no kind of event x: access, "),
        (request("trace", sample=0), methods.REFUSED, "every 0.05 s at most"),
        (
            request("set", name="lamp0", values={"level": 999}),
            methods.INVALID_PARAMS,
            "level takes 0 to 255",
        ),
        (request("set", name="lamp0", values={"x": 1}), methods.INVALID_PARAMS, "no property x"),
        (request("set", name="lamp0", values={"wiring": 2}), methods.WRONG_STATE, "is started; s"),
        (request("set", name="lamp0", values={"level": 0xEE}), methods.REFUSED, "has blown"),
    ],
)
def test_refusals_have_a_code_and_words(
    server: Server, asked: dict[str, Any], code: int, said: str
) -> None:
    with Raw(server.path) as raw:
        reply = raw.ask(asked)
    assert (reply["id"], reply["error"]["code"]) == (1, code)
    assert said in reply["error"]["message"]


def test_a_refusal_has_a_remedy(server: Server, client: ControlClient) -> None:
    with Raw(server.path) as raw:
        error = raw.ask(request("set", name="lamp0", values={"x": 1}))["error"]
    assert error["data"]["remedy"] == "vdcm types lists the properties"
    with pytest.raises(ControlError, match=r"no property x \(.*\(vdcm types lists"):
        client.call("set", name="lamp0", values={"x": 1})


def test_no_resources_have_a_code_of_their_own(
    client: ControlClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left(_self: object, name: str) -> None:
        raise ResourceError(f"no glass is left for {name}")

    monkeypatch.setattr(BrokenLamp, "__init__", none_left)
    with pytest.raises(
        ControlError, match=r"no glass is left.*\(vdcm types shows what is"
    ) as raised:
        client.call("start", definition={"type": "broken-lamp", "name": "a", "socket": "/tmp/x"})
    assert raised.value.code == methods.NO_RESOURCES


def test_a_failure_inside_is_logged_and_answered(
    server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> None:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr(server.manager, "describe_parents", broken)
    with Raw(server.path) as raw:
        error = raw.ask(request("parents"))["error"]
        assert error["code"] == methods.INTERNAL_ERROR
        assert error["message"] == "parents failed: oops"
    assert "ZeroDivisionError" in caplog.text


def test_a_notification_is_done_and_not_answered(server: Server) -> None:
    with Raw(server.path) as raw:
        note = request("set", name="lamp0", values={"level": 7})
        del note["id"]
        raw.send(json.dumps(note).encode() + b"\n")
        wrong = request("show", name="x")
        del wrong["id"]
        raw.send(json.dumps(wrong).encode() + b"\n")
        reply = raw.ask(request("show", 5, name="lamp0"))
    assert reply["id"] == 5
    assert reply["result"]["properties"]["level"] == 7


def test_requests_in_pieces_and_several_at_once(server: Server) -> None:
    line = json.dumps(request("list")).encode() + b"\n"
    with Raw(server.path) as raw:
        for at in range(len(line)):
            raw.send(line[at : at + 1])
        assert raw.reply() is not None
        raw.send(line * 20)
        assert all(raw.reply() is not None for _ in range(20))


@pytest.mark.parametrize("end", [b"\n", b""])
def test_a_request_that_is_too_long(server: Server, end: bytes) -> None:
    with Raw(server.path) as raw:
        raw.send(b"x" * (module.LINE_LIMIT + 2) + end)
        reply = raw.reply()
        assert reply is not None
        assert f"{module.LINE_LIMIT} bytes at most" in reply["error"]["message"]
        assert raw.reply() is None
    with ControlClient(server.path) as client:
        client.call("list")


def test_a_client_that_does_not_read_its_answers_is_disconnected(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PATIENCE", 0.1)
    line = json.dumps(request("show", name="lamp0")).encode() + b"\n"
    with Raw(server.path) as raw, pytest.raises(OSError):
        for _ in range(100_000):
            raw.send(line * 100)
    with ControlClient(server.path) as client:
        client.call("list")


def test_too_many_clients(server: Server) -> None:
    raws = [Raw(server.path) for _ in range(module.CLIENT_LIMIT)]
    for raw in raws:
        assert "result" in raw.ask(request("list"))
    with (
        ControlClient(server.path) as client,
        pytest.raises(ControlError, match=r"64 clients are connected \(close one of them\)"),
    ):
        client.call("list")
    for raw in raws:
        raw.__exit__()
    for _ in range(100):
        try:
            with ControlClient(server.path) as client:
                assert client.call("list")
            return
        except ControlError:
            continue  # the server has not seen the others go yet
    pytest.fail("the server takes no client after the others have gone")


# Who may


def test_only_its_own_user_and_root(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "peer_uid", lambda _: os.geteuid() + 1000)
    with Raw(server.path) as raw:
        reply = raw.reply()
        assert reply is not None
        assert "may not control this server" in reply["error"]["message"]
        assert raw.reply() is None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize("mode", [0o600, 0o666])
def test_another_user_gets_nothing(mode: int) -> None:
    """The file's mode keeps others out, and if somebody has loosened it their credentials do."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        server = Server(Path(folder))
        assert stat.S_IMODE(server.path.lstat().st_mode) == 0o600
        server.path.chmod(mode)
        script = (
            "import os, sys; from pathlib import Path; from vdcm.control import client;"
            "os.setgroups([]); os.setgid(65534); os.setuid(65534);"
            "client.peer_uid = lambda _: 0;"  # as one who knows no better
            "client.ControlClient(Path(sys.argv[1])).call('shutdown')"
        )
        done = subprocess.run(
            [sys.executable, "-c", script, str(server.path)],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert not server.manager.stopping.is_set()
        server.close()
    if mode == 0o600:
        assert "no server answers on" in done.stderr and "Permission denied" in done.stderr
    else:
        assert "user 65534 may not control this server (use sudo)" in done.stderr


def test_root_may(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "peer_uid", lambda _: 0)
    monkeypatch.setattr(module.os, "geteuid", lambda: 1000)
    with ControlClient(server.path) as client:
        assert client.call("list")


def test_a_server_of_a_stranger_is_not_trusted(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module.os, "geteuid", lambda: 1000)
    monkeypatch.setattr(client_module, "peer_uid", lambda _: 1001)
    with pytest.raises(ControlError, match="belongs to user 1001"):
        ControlClient(server.path)


def test_the_socket_is_private(server: Server) -> None:
    assert stat.S_IMODE(server.path.lstat().st_mode) == 0o600


# Servers that are not there


def test_no_server(tmp_path: Path) -> None:
    with pytest.raises(ControlError, match=r"no server answers on .*: start one with vdcm serve"):
        ControlClient(tmp_path / "none.sock")


def test_a_second_server_is_refused(server: Server) -> None:
    async def second() -> None:
        async with ControlServer(Manager(), server.path):
            pass

    with pytest.raises(TransportError, match=r"control socket .* is being served by another"):
        asyncio.run(second())
    with ControlClient(server.path) as client:
        client.call("list")


@pytest.mark.parametrize("answer", [b"nonsense\n", b"[1]\n", b""])
def test_a_server_that_talks_nonsense(tmp_path: Path, answer: bytes) -> None:
    path = tmp_path / "x.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        with ControlClient(path) as client, pytest.raises(ControlError, match=str(path)):
            client.call("list")
        thread.join(DEADLINE)


def test_a_server_that_does_not_answer(tmp_path: Path) -> None:
    path = tmp_path / "x.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen()
        with (
            ControlClient(path, timeout=0.05) as client,
            pytest.raises(ControlError, match=r"did not answer within 0\.05 s"),
        ):
            client.call("list")
