"""The command line: what is printed where, and the exit codes."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from small_model import HOUSE

from vdcm import cli, serving
from vdcm.cli import asking, attaching, common
from vdcm.cli import serving as cli_serving
from vdcm.control import ControlServer
from vdcm.definition import file as definition_file
from vdcm.definition import load
from vdcm.doctor import Check, Status
from vdcm.manager import Manager
from vdcm.store import Store

DEADLINE = 10.0
ONE = {"available": 1, "maximum": 1}
FILE = """\
vdevs:
  lamp0: {type: lamp, socket: lamp0.sock, level: 3}
  lamp1: {type: lamp, socket: lamp1.sock}
control: c.sock
"""


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str


Run = Callable[..., Done]


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Iterator[Run]:
    """``run("list", "--json")``: the command, in this process."""
    for module in (definition_file, asking, cli_serving):
        monkeypatch.setattr(module, "models", lambda: HOUSE)
    monkeypatch.setattr(cli, "_debug", False)
    monkeypatch.delenv("VDCM_CONTROL", raising=False)
    for folder in ("XDG_RUNTIME_DIR", "XDG_STATE_HOME"):  # nothing of a server of ours
        (tmp_path / folder).mkdir()
        monkeypatch.setenv(folder, str(tmp_path / folder))
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())

    def call(*words: str | Path) -> Done:
        monkeypatch.setattr(sys, "argv", ["vdcm", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as raised:
            cli.main()
        code = raised.value.code or 0
        assert isinstance(code, int)
        return Done(code, *capsys.readouterr())

    yield call
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "d.yaml").write_text(FILE)
    return tmp_path / "d.yaml"


@pytest.fixture
def server(run: Run, file: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Manager]:
    """A server of ``file``, and VDCM_CONTROL set to its socket."""
    del run  # which clears that variable, and so comes first
    made: list[Any] = []
    ready = threading.Event()

    async def serve() -> None:
        vdevs = Manager(Store(file.parent / "state"))
        found = load(file, HOUSE)
        vdevs.adopt(found)
        made.extend([vdevs, asyncio.get_running_loop()])
        try:
            async with ControlServer(vdevs, found.control):
                await vdevs.start_all()
                ready.set()
                await vdevs.stopping.wait()
        finally:
            vdevs.close()

    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()
    assert ready.wait(DEADLINE)
    monkeypatch.setenv("VDCM_CONTROL", str(file.parent / "c.sock"))
    yield made[0]
    with suppress(RuntimeError):  # the test has stopped it
        made[1].call_soon_threadsafe(made[0].stopping.set)
    thread.join(DEADLINE)


# Help and usage


VERBS = (
    *(
        "serve",
        "parents",
        "types",
        "define",
        "undefine",
        "modify",
        "start",
        "stop",
        "list",
        "show",
        "set",
    ),
    *("reset", "trace", "top", "qemu-args", "doctor", "shutdown"),
)


def test_help_names_every_verb(run: Run) -> None:
    done = run("--help")
    assert done.code == 0
    assert all(f"\n  {verb} " in done.out for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_a_verb_has_an_example(run: Run, verb: str) -> None:
    done = run(verb, "--help")
    assert done.code == 0
    assert f"Example: vdcm {verb}" in done.out


def test_version(run: Run) -> None:
    done = run("--version")
    assert (done.code, done.out.split()[0]) == (0, "vdcm")


@pytest.mark.parametrize(
    "words",
    [
        ["no-such-verb"],
        ["list", "--no-such-option"],
        ["show"],
        ["show", "lamp0", "--uuid", "x"],
        ["stop"],
        ["define"],
        ["define", "--type", "lamp", "--set", "level"],
        ["define", "--type", "lamp", "--jsonfile", "x.json"],
        ["define", "--jsonfile", "/nonexistent.json"],
        ["modify", "lamp0"],
        ["set", "lamp0", "level"],
        ["set", "lamp0", "=3"],
        ["set", "lamp0", "level=1", "level=2"],
        ["serve", "d.yaml", "--log-level", "loud"],
        ["qemu-args", "x.sock", "--memory", "lots"],
        ["qemu-args", "x.sock", "--json", "--libvirt"],
        ["qemu-args", "x.sock", "lamp0"],
    ],
)
def test_wrong_usage_is_2(run: Run, words: list[str]) -> None:
    done = run(*words)
    assert (done.code, done.out) == (2, "")
    assert "Traceback" not in done.err


@pytest.mark.parametrize("verb", ["serve", "qemu-args"])
def test_a_bad_definition_is_2_with_a_line_for_each_mistake(
    run: Run, tmp_path: Path, verb: str
) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text("vdevs:\n  a: {type: lmap}\n  b: {type: lamp, level: x}\n")
    done = run(verb, file)
    assert (done.code, done.out) == (2, "")
    assert done.err.splitlines() == [
        f"vdcm: {file}:2: unknown type lmap (did you mean lamp? known: broken-lamp, lamp)",
        f"vdcm: {file}:3: level takes a whole number, not 'x'",
    ]


def test_other_errors_are_1_on_one_line(run: Run, tmp_path: Path) -> None:
    done = run("list", "--control", tmp_path / "none.sock")
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("vdcm: no server answers on ")
    assert len(done.err.splitlines()) == 1


def test_debug_shows_the_traceback(run: Run, tmp_path: Path) -> None:
    done = run("--debug", "list", "--control", tmp_path / "none.sock")
    assert done.code == 1
    assert "Traceback" in done.err
    assert done.err.splitlines()[-1].startswith("vdcm: ")


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    ("redirection", "code", "said"),
    [
        (">/dev/full", 1, "vdcm: the output cannot be written: No space left on device"),
        (">&-", 0, ""),
    ],
)
def test_output_that_cannot_be_written(
    redirection: str, code: int, said: str, unbuffered: str
) -> None:
    done = subprocess.run(
        ["sh", "-c", f'exec "$0" -m vdcm types {redirection}', sys.executable],
        env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == code
    assert done.stderr.startswith(said)
    assert len(done.stderr.splitlines()) == bool(said)


# Asking a server


def test_list(run: Run, server: Manager, tmp_path: Path) -> None:
    done = run("list")
    assert done.code == 0
    assert [line.split() for line in done.out.splitlines()] == [
        ["NAME", "TYPE", "PARENT", "STATE", "START", "ORIGIN", "SOCKET"],
        ["lamp0", "lamp", "house", "ready", "auto", "file", str(tmp_path / "lamp0.sock")],
        ["lamp1", "lamp", "house", "ready", "auto", "file", str(tmp_path / "lamp1.sock")],
    ]
    assert json.loads(run("list", "--json").out) == server.summaries()


def test_show(run: Run, server: Manager) -> None:
    lines = run("show", "lamp0").out.splitlines()
    assert "name: lamp0" in lines
    assert "  level: 3" in lines
    assert "  lit: false" in lines
    assert json.loads(run("show", "lamp0", "--json").out) == server.show("lamp0")


def test_set(run: Run, server: Manager) -> None:
    done = run("set", "lamp0", "level=0x20", "label=a=b", "lit=on")
    assert (done.code, done.out, done.err) == (0, "", "")
    assert server.show("lamp0")["properties"] == {
        "level": 0x20,
        "label": "a=b",
        "lit": True,
        "wiring": 1,
    }


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["set", "lamp0", "level=1", "lit=2"], "lit takes true or false, not '2'"),
        (["set", "lamp0", "wiring=2"], "lamp0 is started; setting wiring needs it stopped"),
        (["start", "lamp0"], "lamp0 is started; starting needs it defined or failed"),
        (["undefine", "lamp0"], "lamp0 is defined in "),
        (["start", "--type", "lamb"], "unknown type lamb"),
        (["define", "--type", "lamp", "--name", "lamp1"], "there is a VDEV lamp1 already"),
        (["types", "--parent", "home"], "unknown parent home"),
        (["set", "lamp2", "level=1"], "there is no VDEV lamp2"),
        (["show", "lamp2"], "there is no VDEV lamp2 (did you mean lamp"),
        (["trace", "lamp2"], "there is no VDEV lamp2"),
    ],
)
def test_refusals(run: Run, server: Manager, words: list[str], said: str) -> None:
    done = run(*words)
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith(f"vdcm: {said}")
    assert server.show("lamp0")["properties"]["level"] == 3


@pytest.mark.usefixtures("server")
def test_parents(run: Run) -> None:
    lines = [" ".join(line.split()) for line in run("parents").out.splitlines()]
    assert lines == [
        "PARENT MODEL ADIS FREE TYPES",
        "house house - broken-lamp, lamp",
        "",
        "PARENT PROPERTY VALUE VALUES WHAT IT IS",
        "house storeys 1 1 to 9 (default 1)",
    ]
    assert json.loads(run("parents", "--json").out)[0]["name"] == "house"
    free = {"adi_types": {"dwq": {"available": 1, "maximum": 8}, "share": ONE}}
    assert asking._free(free) == "dwq 1/8, share 1/1"


def test_a_life(run: Run, server: Manager, tmp_path: Path) -> None:
    options = ["--type", "lamp", "--parent", "house", "--socket", tmp_path / "a.sock"]
    done = run("define", *options, "--name", "a", "--set", "level=0x10", "--auto")
    uuid = done.out.strip()
    assert done.code == 0
    assert server.entry(uuid).name == "a"
    assert server.entry("a").definition.auto
    done = run("start", "a")
    assert done.out == f"{uuid} {tmp_path}/a.sock\n"
    assert (tmp_path / "a.sock").is_socket()
    assert run("reset", "--uuid", uuid).code == 0
    assert "  resets: 1" in run("show", "a").out.splitlines()
    assert run("stop", "--uuid", uuid).code == 0
    done = run("modify", "a", "--manual", "--set", "label=x", "--delete", "level", "--json")
    changed = json.loads(done.out)
    assert (changed["auto"], changed["properties"]) == (False, {"label": "x"})
    assert run("modify", "a", "-a", "-t", "lamp").out == ""
    assert server.entry("a").definition.auto
    lines = [line.split() for line in run("list", "--defined").out.splitlines()]
    assert lines[3] == ["a", "lamp", "house", "defined", "auto", "stored", f"{tmp_path}/a.sock"]
    assert run("undefine", "a").code == 0
    assert len(server.summaries()) == 2


def test_transient(run: Run, server: Manager, tmp_path: Path) -> None:
    uuid = "83b8f4f2-509f-382f-3c1e-e6bfe0fa1001"
    options = ["--type", "lamp", "-u", uuid, "--socket", tmp_path / "a.sock"]
    assert run("start", *options).out == f"{uuid} {tmp_path}/a.sock\n"
    assert server.entry(uuid).origin.value == "transient"
    for wrong in (["start", "--name", "b"], ["start", "b", "--type", "lamp"]):
        assert run(*wrong).code == 2
    assert run("stop", uuid).code == 0
    assert len(server.summaries()) == 2


@pytest.mark.parametrize("place", ["x.json", "-"])
def test_list_feeds_define(
    run: Run, server: Manager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    run("define", "--type", "lamp", "--name", "a", "--socket", tmp_path / "a.sock")
    before = server.summaries()[2]
    text = run("list", "--json").out
    run("undefine", "a")
    path = tmp_path / place
    path.write_text(json.dumps(json.loads(text)[2:]))
    monkeypatch.chdir(tmp_path)
    with path.open() as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        done = run("define", "--jsonfile", place, "--json")
    assert json.loads(done.out) == [before] == server.summaries()[2:]


def test_shutdown(run: Run, server: Manager) -> None:
    assert run("shutdown").code == 0
    assert server.stopping.is_set()


def test_trace_ends_when_the_server_does(run: Run, server: Manager) -> None:
    vdev = server.entry("lamp0").vdev
    assert vdev is not None
    loop: asyncio.AbstractEventLoop = server._transport._loop  # type: ignore[union-attr]

    def touch() -> None:
        while vdev.observer is None:
            threading.Event().wait(0.001)
        loop.call_soon_threadsafe(server.set, "lamp0", {"level": 5})
        loop.call_soon_threadsafe(server.stopping.set)

    thread = threading.Thread(target=touch)
    thread.start()
    done = run("trace", "lamp0")
    thread.join(DEADLINE)
    assert done.code == 1
    assert "the server has gone" in done.err


def test_trace_prints_lines_or_json(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[dict[str, Any]] = []

    class Client:
        def __init__(self, path: Path) -> None:
            assert path == tmp_path / "c.sock"

        def __enter__(self) -> Client:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def trace(self, **wanted: Any) -> Iterator[dict[str, Any]]:
            asked.append(wanted)
            yield {"name": "lamp0", "time": 0.25, "kind": "reset", "text": "reset"}
            yield {"name": "lamp1", "time": 1.500001, "kind": "hint", "text": "it hangs"}
            raise KeyboardInterrupt

    monkeypatch.setattr(common, "ControlClient", Client)
    control = ["--control", tmp_path / "c.sock"]
    done = run("trace", "lamp0", *control)
    first, second = done.out.splitlines()
    assert done.code == 0
    assert first.endswith(":00.250000 reset"), "of one VDEV no name is needed"
    assert second.endswith(":01.500001 hint: it hangs")
    lines = run("trace", *control).out.splitlines()
    assert [line.split(" ", 1)[1] for line in lines] == ["lamp0 reset", "lamp1 hint: it hangs"]
    lines = run("trace", "--json", *control, "-k", "reset", "-r", "A*", "--sample", "0.5").out
    assert [json.loads(line)["kind"] for line in lines.splitlines()] == ["reset", "hint"]
    assert asked == [
        {"names": ["lamp0"], "kinds": None, "registers": None, "sample": 1000},
        {"names": None, "kinds": None, "registers": None, "sample": 1000},
        {"names": None, "kinds": ["reset"], "registers": ["A*"], "sample": 500},
    ]


def test_a_traced_file_keeps_what_is_latest(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(common, "ControlClient", lambda _path: Endless())

    class Endless(AbstractContextManager["Endless"]):
        def __exit__(self, *_: object) -> None:
            pass

        def trace(self, **_: Any) -> Iterator[dict[str, Any]]:
            for n in range(1000):
                yield {"name": "lamp0", "time": n, "kind": "device", "text": f"n{n}"}
            yield {"name": "lamp0", "time": 0, "kind": "device", "text": "x" * 9000}
            raise KeyboardInterrupt

    path = tmp_path / "t"
    done = run("trace", "-o", path, "--size", "8k", "--control", tmp_path / "c.sock")
    assert (done.code, done.out) == (0, "")
    older, newer = (tmp_path / "t.1").read_text(), path.read_text()
    assert max(len(older), len(newer)) <= 4096 and len(older) > 4000
    numbers = [int(line.rsplit("n", 1)[1]) for line in (older + newer).splitlines()]
    assert numbers == list(range(numbers[0], 1000)), "one that is too long is left out"
    assert run("trace", "-o", path, "--size", "9", "--control", "x").code == 2


# Without a server


def test_types(run: Run) -> None:
    done = run("types")
    lines = [" ".join(line.split()) for line in done.out.splitlines()]
    assert done.code == 0
    assert lines[0] == "TYPE PARENT AVAILABLE WHAT IT IS"
    assert "lamp house - A lamp." in lines
    assert "level 0 to 255 (default 0) yes lamp How bright it is." in lines
    assert "label text (default '') yes lamp What it says." in lines
    assert "lit true, false (default false) yes lamp" in lines
    assert "wiring 1 to 4 (default 1) no lamp" in lines
    assert [one["type"] for one in json.loads(run("types", "--json").out)] == [
        "broken-lamp",
        "lamp",
    ]


def test_qemu_args(run: Run, file: Path, tmp_path: Path) -> None:
    every = json.loads(run("qemu-args", file, "--json").out)
    assert every[:4] == ["-machine", "q35,memory-backend=mem", "-m", "1G"]
    paths = [json.loads(value)["socket"]["path"] for value in every[7::2]]
    assert paths == [str(tmp_path / "lamp0.sock"), str(tmp_path / "lamp1.sock")]
    one = run("qemu-args", file, "lamp1", "--memory", "256M").out
    assert "size=256M,share=on" in one
    assert "lamp1.sock" in one and "lamp0.sock" not in one
    assert "<qemu:commandline>" in run("qemu-args", file, "--libvirt").out
    unknown = run("qemu-args", file, "lamp9")
    assert unknown.code == 2
    assert "has no VDEV lamp9" in unknown.err
    twice = run("qemu-args", file, "lamp0", "lamp0")
    assert twice.code == 2
    assert "lamp0 is here twice" in twice.err


@pytest.mark.usefixtures("server")
def test_qemu_args_of_a_server(run: Run, tmp_path: Path) -> None:
    every = json.loads(run("qemu-args", "lamp1", "lamp0", "--json").out)
    paths = [json.loads(value)["socket"]["path"] for value in every[7::2]]
    assert paths == [str(tmp_path / "lamp1.sock"), str(tmp_path / "lamp0.sock")]
    command = json.loads(run("qemu-args", "lamp1", "--qmp", "rp1").out)
    assert command == {
        "execute": "device_add",
        "arguments": {
            "driver": "vfio-user-pci",
            "id": "vdev-lamp1",
            "bus": "rp1",
            "socket": {"type": "unix", "path": str(tmp_path / "lamp1.sock")},
        },
    }
    assert "there is no VDEV lamp7" in run("qemu-args", "lamp7").err


def test_qemu_args_of_a_socket(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    every = json.loads(run("qemu-args", "x.sock", "--json").out)
    assert json.loads(every[-1])["socket"]["path"] == str(tmp_path / "x.sock")


@pytest.mark.parametrize(("status", "code"), [("ok", 0), ("warn", 0), ("fail", 1)])
def test_doctor(run: Run, monkeypatch: pytest.MonkeyPatch, status: str, code: int) -> None:
    checks = [Check("qemu", Status.OK, "11.1"), Check("a b", Status(status), "so so", "do this")]
    monkeypatch.setattr(attaching.machine, "examine", lambda: checks)
    done = run("doctor")
    assert done.code == code
    assert done.out.splitlines() == [
        "ok    qemu  11.1",
        f"{status:4}  a b   so so",
        "            fix: do this",
    ]
    done = run("doctor", "--json")
    assert done.code == code
    assert json.loads(done.out)[1] == {
        "name": "a b",
        "status": status,
        "detail": "so so",
        "fix": "do this",
    }


# Serving


def test_serve(run: Run, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def notify(state: str) -> None:
        if state == "READY=1":
            assert {path.name for path in tmp_path.glob("*.sock")} == {
                "c.sock",
                "lamp0.sock",
                "lamp1.sock",
            }
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(serving, "notify", notify)
    done = run("serve", file)
    assert done.code == 0
    # While the interpreter ends: no failure. To this thread, as others may not hold it back.
    signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
    assert signal.sigtimedwait((signal.SIGTERM,), 5)
    assert [line.split() for line in done.out.splitlines()] == [
        ["VDEV", "TYPE", "STATE", "SOCKET"],
        ["lamp0", "lamp", "ready", str(tmp_path / "lamp0.sock")],
        ["lamp1", "lamp", "ready", str(tmp_path / "lamp1.sock")],
        ["attach", "them", "to", "QEMU:", "vdcm", "qemu-args", str(file)],
    ]
    assert list(tmp_path.glob("*.sock")) == []
    assert " info vdcm.serving: stopping" in done.err


def test_serve_with_trace_logs_it_whatever_the_level(
    run: Run, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def until_stopped(vdevs: Manager, _ready: object) -> int:
        vdevs.start("lamp1")
        vdevs.set("lamp1", {"level": 9})
        return 0

    monkeypatch.setattr(cli_serving, "serve_until_stopped", until_stopped)
    done = run("serve", file, "--trace", "--log-level", "error")
    assert done.code == 0
    assert " info vdcm.trace.lamp1: level 0x9\n" in done.err
    assert "0x9" not in run("serve", file, "--log-level", "debug").err


def test_serve_without_a_file(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Definitions survive, and those that are to be started are."""
    seen: list[list[dict[str, Any]]] = []

    async def until_stopped(vdevs: Manager, ready: Callable[[], None]) -> int:
        if not vdevs.summaries():
            vdevs.define([{"type": "lamp", "name": n, "auto": n == "a"} for n in ("a", "b")])
        await vdevs.start_all()
        ready()
        seen.append(vdevs.summaries())
        return 0

    monkeypatch.setattr(cli_serving, "serve_until_stopped", until_stopped)
    state = tmp_path / "elsewhere" / "state"
    assert run("serve", "--state", state).code == 0
    done = run("serve", "--state", state, "--control", tmp_path / "c.sock")
    assert done.code == 0
    assert "no VDEV is defined yet: vdcm types, then vdcm define" not in done.out
    assert done.out.splitlines()[-1] == "attach them to QEMU: vdcm qemu-args NAME"
    assert {one["name"]: one["state"] for one in seen[1]} == {"a": "ready", "b": "defined"}
    assert len(list(state.iterdir())) == 2


def test_a_second_server_of_a_state_folder_is_refused(
    run: Run, server: Manager, tmp_path: Path
) -> None:
    server.define([{"type": "lamp", "socket": str(tmp_path / "a.sock")}])
    done = run("serve", "--state", tmp_path / "state", "--control", tmp_path / "d.sock")
    assert (done.code, done.out) == (1, "")
    assert "belongs to another server" in done.err.splitlines()[-1]


def test_a_second_server_is_refused(run: Run, server: Manager, file: Path, tmp_path: Path) -> None:
    done = run("serve", file)
    assert (done.code, done.out) == (1, "")
    assert done.err.splitlines()[-1].startswith("vdcm: control socket ")
    assert [one["state"] for one in server.summaries()] == ["ready", "ready"]
    assert (tmp_path / "lamp0.sock").is_socket()


def test_a_terminal_gets_the_same_cells(
    run: Run, server: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout.__class__, "isatty", lambda _: True, raising=False)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TERM", "xterm")
    text = re.sub(r"\x1b\[[0-9;]*m", "", run("list").out)
    assert [line.split()[0] for line in text.splitlines()] == ["NAME", "lamp0", "lamp1"]
    assert all(one["socket"] in text for one in server.summaries())
