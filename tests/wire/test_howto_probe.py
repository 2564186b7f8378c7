"""docs/howto-probe.md: what mistakes look like is what a trace of them says."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import tutorial_device
from pages import ROOT, blocks

from vdcm.client import Client, Irq, Region
from vdcm.testing import Server
from vdcm.testing.plugin import Running

_, MISSING, LOST, RESET, REFUSED = blocks(ROOT / "docs/howto-probe.md", "text")
MODELS = {"edu": "edu:EduParent"}
BUS_MASTER = 0x6


def timeless(text: str) -> list[str]:
    """Its lines, without how long ago something was."""
    return re.sub(r"[\d.]+ s ago", "some time ago", text).splitlines()


class Probe:
    """A server of a device with mistakes, and what a driver does to it."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.client: Client = server.connect("edu0")

    def write(self, offset: int, value: int) -> None:
        self.client.write(Region.BAR0, offset, 4, value)

    def shows(self, text: str) -> None:
        """The trace has these lines, one after the other."""
        wanted = timeless(text)

        def there() -> bool:
            lines = timeless("\n".join(self.server.trace("edu0")))
            return any(lines[at : at + len(wanted)] == wanted for at in range(len(lines)))

        self.server.wait_for(f"the trace has {wanted}", there)


@pytest.fixture
def probe(
    request: pytest.FixtureRequest,
    vdcm_running: Running[Server],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Probe]:
    source = tutorial_device.wrong(tmp_path / "edu", **request.param)
    monkeypatch.syspath_prepend(str(source))
    with vdcm_running(Server(tmp_path / "s", {"edu0": {"type": "edu"}}, models=MODELS)) as server:
        yield Probe(server)


@pytest.mark.parametrize("probe", [{"vdev": "self.interrupts.signal() -> pass"}], indirect=True)
def test_a_missing_interrupt(probe: Probe) -> None:
    probe.client.config.write(0x04, 2, BUS_MASTER)
    probe.client.irq_enable(Irq.MSI)
    probe.write(0x20, 0x80)
    probe.write(0x08, 10)
    probe.shows(MISSING.rpartition("BAR0")[0])  # the hint, while the driver waits
    assert probe.client.read(Region.BAR0, 0x08, 4) == 3628800
    probe.shows(MISSING)


@pytest.mark.parametrize("probe", [{}], indirect=True)
def test_a_lost_interrupt_and_memory_that_is_not_there(probe: Probe) -> None:
    probe.client.irq_enable(Irq.MSI)
    probe.write(0x60, 1)
    probe.shows(LOST)
    probe.client.config.write(0x04, 2, BUS_MASTER)
    for offset, value in ((0x84, 9), (0x88, 0x40000), (0x90, 5), (0x98, 1)):
        probe.write(offset, value)
    probe.shows(REFUSED)


@pytest.mark.parametrize("probe", [{"registers": "0x0100_00ED -> 0x0100_00DE"}], indirect=True)
def test_a_wrong_reset_value(probe: Probe) -> None:
    probe.client.read(Region.BAR0, 0, 4)
    probe.shows(RESET)
