"""docs/tutorial.md, as its reader goes through it: the package, its tests, the guest, the trace."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import tutorial_device
from made_package import Package
from pages import ROOT, blocks

from vdcm.testing.plugin import Serve

SAID, *TRACES, DIFFERENCE = blocks(tutorial_device.PAGE, "text")
TIMED_OUT, *_ = blocks(ROOT / "docs/howto-probe.md", "text")


def commands() -> str:
    """What the reader's guest is given."""
    found = re.search(
        r"<<'END'\n(.*?)^END$", tutorial_device.PAGE.read_text(), re.MULTILINE | re.DOTALL
    )
    assert found is not None
    return found[1]


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Package:
    """The reader's package, finished."""
    made = Package(tmp_path_factory.mktemp("tutorial"), "edu")
    tutorial_device.write(made.folder)
    made.install()
    return made


def alike(line: str) -> str:
    """Without the address of a page, which is another one in other guests."""
    return re.sub(r"0x[0-9a-f]{3,6}000\b", "PAGE", line)


@pytest.mark.usefixtures("vdcm_environment")  # there is a guest to be had: none is skipped
def test_its_tests_pass(package: Package) -> None:
    assert "5 passed" in package.run("pytest")
    package.run("mypy")
    package.run("ruff", "check", ".")
    package.run("ruff", "format", "--check", ".")


@pytest.mark.usefixtures("vdcm_environment")
def test_the_guest_and_the_trace_say_what_the_page_says(
    package: Package, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(package.target))  # where the server finds the model
    server = serve({"edu0": {"type": "edu"}})
    said = package.run("guest", str(server.socket("edu0")), text=commands())
    assert said == SAID
    server.wait_for("the guest has gone", lambda: server.show("edu0")["state"] == "ready")
    lines = [alike(line) for line in server.trace("edu0") if not line.startswith("config")]
    for trace in TRACES:
        shown = [alike(line) for line in trace.splitlines()]
        begin = lines.index(shown[0])
        assert lines[begin : begin + len(shown)] == shown


@pytest.mark.usefixtures("vdcm_environment")
def test_what_the_guest_says_when_an_interrupt_is_missing(
    package: Package, serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """docs/howto-probe.md has it."""
    mistake = "self.interrupts.signal() -> pass"
    monkeypatch.syspath_prepend(str(tutorial_device.wrong(tmp_path / "edu", vdev=mistake)))
    server = serve({"edu0": {"type": "edu"}}, models={"edu": "edu:EduParent"})
    said = package.run("guest", str(server.socket("edu0")), text=commands())
    assert TIMED_OUT in said


@pytest.mark.usefixtures("vdcm_environment")
def test_a_session_is_recorded_and_replayed(
    package: Package, serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mistaken = tutorial_device.wrong(tmp_path / "edu", vdev="min(number, 34) -> min(number, 9)")
    monkeypatch.syspath_prepend(str(package.target))
    server = serve({"edu0": {"type": "edu"}})
    file = str(tmp_path / "edu.rec")
    command = [sys.executable, "-m", "vdcm", "record", "edu0", file]
    with subprocess.Popen(
        [*command, "--control", str(server.control)], stderr=subprocess.PIPE, text=True
    ) as recorder:
        assert recorder.stderr is not None
        assert "attach a guest now" in recorder.stderr.readline()
        assert package.run("guest", str(server.socket("edu0")), text=commands()) == SAID
        recorder.send_signal(signal.SIGINT)
        assert recorder.wait(20) == 0
    assert "does the same as it was recorded to do" in package.run("vdcm", "replay", file)
    monkeypatch.syspath_prepend(str(mistaken))
    replay = [sys.executable, "-m", "vdcm", "replay", file]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        replay, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert DIFFERENCE in done.stdout + done.stderr
