"""README.md is true: its code runs, its file loads, its commands and paths are there."""

from __future__ import annotations

import os
import re
import select
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from xml.etree.ElementTree import canonicalize

import pages
import pytest
from pages import ROOT
from typer.testing import CliRunner

from vdcm import definition
from vdcm.cli import app
from vdcm.client import Client, Irq, Region
from vdcm.errors import TransportError

README = pages.README.read_text()
START_TIME = 30.0  # seconds for a process to start


blocks = partial(pages.blocks, pages.README)


def shell_words(text: str) -> list[str]:
    return shlex.split(text.replace("\\\n", " "))


DEVICE, CLIENT = blocks("python")
(YAML,) = blocks("yaml")
(XML,) = pages.blocks(ROOT / "docs/howto-libvirt.md", "xml")


@pytest.fixture
def socket_path(tmp_path: Path) -> Path:
    return tmp_path / "blink0.sock"


@pytest.fixture
def blink(tmp_path: Path, socket_path: Path) -> Iterator[subprocess.Popen[str]]:
    """``python blink.py``, as README says it, with another socket."""
    script = tmp_path / "blink.py"
    assert DEVICE.count("/tmp/blink0.sock") == 1
    script.write_text(DEVICE.replace("/tmp/blink0.sock", str(socket_path)))
    process = subprocess.Popen(
        [sys.executable, str(script)], stderr=subprocess.PIPE, cwd=tmp_path, text=True
    )
    assert process.stderr is not None
    said = ""
    deadline = time.monotonic() + START_TIME
    while "listening on" not in said:
        ready, _, _ = select.select([process.stderr], [], [], max(0, deadline - time.monotonic()))
        line = process.stderr.readline() if ready else ""
        said += line
        if not line:
            process.kill()
            process.wait()
            pytest.fail(f"blink.py did not start: {said}")
    yield process
    if process.poll() is None:
        process.kill()
    process.wait()
    process.stderr.close()


def test_the_device_is_a_device(blink: subprocess.Popen[str], socket_path: Path) -> None:
    with Client(socket_path) as device:
        assert device.config.read(0, 4) == 0xB11C1234
        device.write(Region.BAR0, 0x00, 4, 3)
        assert device.read(Region.BAR0, 0x00, 4) == 0  # both bits are commands
        device.write(Region.BAR0, 0x00, 4, 2)
        device.write(Region.BAR0, 0x04, 4, 9)
        assert device.read(Region.BAR0, 0x04, 4) == 0
        device.write(Region.BAR0, 0x08, 8, 0x1_0000_0000)
        assert device.read(Region.BAR0, 0x08, 8) == 0x1_0000_0000
        device.config.write(0x04, 2, 0x6)
        (line,) = device.irq_enable(Irq.MSIX)
        device.write(Region.BAR0, 0x08, 8, 0)
        device.write(Region.BAR0, 0x00, 4, 1)
        assert device.read(Region.BAR0, 0x04, 4) == 1
        assert line.wait(START_TIME) == 1
        assert device.config.find(0x11) is not None
    blink.send_signal(signal.SIGINT)
    assert blink.wait(START_TIME) == 0
    assert not socket_path.exists()
    with pytest.raises(TransportError):
        Client(socket_path)


def test_its_counter_dma_and_interrupt(monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process, where what it signals and writes can be seen."""
    names: dict[str, object] = {"__name__": "blink"}
    exec(compile(DEVICE, "README.md", "exec"), names)
    model = names["Blink"]
    assert isinstance(model, type)
    device = model("blink0")
    signals: list[int] = []
    written: list[tuple[int, bytes]] = []
    monkeypatch.setattr(device.interrupts, "signal", signals.append)
    monkeypatch.setattr(device, "dma_write", lambda *what: written.append(what))
    try:
        device.write(0, 0, 4, 2)
        assert (device.read(0, 4, 4), signals) == (0, [])
        device.write(0, 0, 4, 1)
        assert (device.read(0, 4, 4), signals, written) == (1, [0], [])
        device.step = 4
        device.write(0, 8, 8, 0x5000)
        device.write(0, 0, 4, 1)
        assert (signals, written) == ([0, 0], [(0x5000, b"\5\0\0\0")])
        device.write(0, 0, 4, 3)
        assert device.read(0, 4, 4) == 4
    finally:
        device.close()


def test_the_client_runs(
    blink: subprocess.Popen[str], socket_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert blink.poll() is None
    assert CLIENT.count("/tmp/blink0.sock") == 1
    exec(compile(CLIENT.replace("/tmp/blink0.sock", str(socket_path)), "README.md", "exec"), {})
    assert capsys.readouterr().out == "0xb11c1234 1\n"


def test_the_device_has_about_forty_lines() -> None:
    assert len([line for line in DEVICE.splitlines() if line.strip()]) <= 42


def test_the_definition_file_loads_and_gives_these_arguments(tmp_path: Path) -> None:
    file = tmp_path / "gpio.yaml"
    file.write_text(YAML)
    (vdev,) = definition.load(file).vdevs
    assert (vdev.name, vdev.type, vdev.path) == ("gpio0", "pcie-idio-16", Path("/tmp/gpio0.sock"))
    assert vdev.properties == {"inputs": 0x00FF}
    printed = shell_words(CliRunner().invoke(app, ["qemu-args", str(file)]).output)
    (said,) = [block for block in blocks("sh") if block.startswith("qemu-system")]
    words = shell_words(said)[2:]  # after qemu-system-x86_64 ...
    assert sorted(zip(words[::2], words[1::2], strict=True)) == sorted(
        zip(printed[::2], printed[1::2], strict=True)
    )
    libvirt = CliRunner().invoke(app, ["qemu-args", "--libvirt", str(file)]).output
    assert canonicalize(libvirt, strip_text=True) == canonicalize(XML, strip_text=True)


def test_every_command_is_there() -> None:
    runner = CliRunner()
    verbs = set(re.findall(r"^vdcm ([a-z-]+)", "\n".join(blocks("sh")), re.MULTILINE))
    assert verbs >= {"serve", "qemu-args", "set", "show", "trace", "doctor"}
    for verb in verbs:
        assert runner.invoke(app, [verb, "--help"]).exit_code == 0, verb
    assert "--trace" in runner.invoke(app, ["serve", "--help"], env={"COLUMNS": "200"}).output


def test_every_path_is_there() -> None:
    table = README[README.index("## What is where") : README.index("## Limits")]
    cells = [row.split("|") for row in table.splitlines() if row.startswith("| `")]
    assert len(cells) >= 8
    for _, paths, _, _ in cells:
        folder = ROOT
        for path in re.findall(r"`([^`]+)`", paths):
            if "/" in path:
                folder = (ROOT / path).parent
            assert (ROOT / path).exists() or (folder / path).exists(), path
    for script in re.findall(r"^(ci/[a-z]+)", "\n".join(blocks("sh")), re.MULTILINE):
        assert os.access(ROOT / script, os.X_OK), script
