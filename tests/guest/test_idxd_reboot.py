"""Guests that copy are rebooted and killed, and so is the server; whoever is left goes on."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.guest import idxd
from tests.guest.copies import Counts, abandon, begin, copy
from vdcm.testing import GuestError, Machine, Server, vfio_user

pytestmark = pytest.mark.timeout(240)

Serve = Callable[[Mapping[str, Mapping[str, Any]]], Server]
Boot = Callable[..., Machine]

THREADS = 16
ENDLESS = 4_000_000_000
SIZE = 16384
WAYS = {
    "in order": "reboot -f",
    "at once": "echo b >/proc/sysrq-trigger",
    "after a panic": "echo c >/proc/sysrq-trigger",
    "by the host": "",
}


def bring_up(machine: Machine, devices: int = 1) -> None:
    """Work queue 0 of each DSA is enabled for dmaengine."""
    idxd.load(machine)
    for index in range(devices):
        device = idxd.IdxdDevice(machine, index)
        device.configure(size=32)
        device.enable()
        device.enable_wq()


def begin_endless(server: Server, machine: Machine, name: str) -> None:
    """Returns when all threads copy with the VDEV ``name``."""
    before = accepted(server, name)
    begin(machine, threads=THREADS, copies=ENDLESS, max_size=SIZE, timeout=2)
    server.wait_for("it copies", lambda: accepted(server, name) > before + 100)


def accepted(server: Server, name: str) -> int:
    return sum(adi["counters"]["accepted"] for adi in server.show(name)["adis"])


def unaccounted(server: Server) -> int:
    """Descriptors of ``dsa0`` that were accepted and have come to no end. Members of batches end
    without having been accepted, so only the difference of two answers means something."""
    counters = [adi["counters"] for adi in server.show("dsa0")["adis"]]
    return sum(c["accepted"] - c["succeeded"] - c["failed"] - c["aborted"] for c in counters)


def holdings(server: Server) -> dict[str, Any]:
    """What the server has in use for all of its VDEVs, and what each ADI has been given."""
    adis = [adi for name in ("dsa0", "dsa1", "spare0") for adi in server.show(name)["adis"]]
    process = Path("/proc", str(server.pid))
    return {
        "resources": [p["driver"]["resources"] for p in server.parents() if p["driver"]],
        "adis": [(adi["name"], adi["state"], adi["pasid"], len(adi["messages"])) for adi in adis],
        "descriptors": descriptors(process / "fd"),
        "threads": len(list((process / "task").iterdir())),
    }


def descriptors(folder: Path) -> Counter[str]:
    """How many there are of each kind; without connections, of which those to its control socket
    come and go."""
    kinds: Counter[str] = Counter()
    for path in folder.iterdir():
        try:
            kinds[re.sub(r"\d+", "", path.readlink().name)] += 1
        except OSError:  # closed just now
            continue
    del kinds["socket:[]"]
    return kinds


class Neighbour:
    """Another guest of the same parent, that copies all the time."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._enough = False
        self._pool = ThreadPoolExecutor(max_workers=1)
        bring_up(machine)
        self._work: Future[list[Counts]] = self._pool.submit(self._copy)

    def _copy(self) -> list[Counts]:
        runs = []
        while not self._enough:
            runs.append(copy(self._machine, threads=4, copies=200, max_size=SIZE))
        return runs

    def end(self) -> int:
        """How often it has copied; all of it well."""
        self._enough = True
        runs = self._work.result()
        self._pool.shutdown()
        assert all(counts.flawless(200) for counts in runs), "\n".join(map(repr, runs))
        return len(runs)


@pytest.fixture
def neighbour(
    idxd_lab: idxd.IdxdLab, boot: Boot, idxd_options: dict[str, Any]
) -> Iterator[Neighbour]:
    neighbour = Neighbour(boot(vfio_user(idxd_lab.server.socket("spare0")), **idxd_options))
    yield neighbour
    assert neighbour.end() > 1


@pytest.mark.usefixtures("neighbour")
def test_reboots_in_mid_work(idxd_lab: idxd.IdxdLab) -> None:
    """Each way, both VDEVs enabled and one at work; the server has the same in use as before."""
    server, machine = idxd_lab.server, idxd_lab.machine
    # Messages of handles that other tests have asked for are kept until then.
    machine.check(
        "for d in $(lspci -Dnd 8086:0b25 | cut -d ' ' -f 1); do"
        " echo 1 >/sys/bus/pci/devices/$d/reset; done"
    )
    bring_up(machine, devices=2)
    held = holdings(server)
    for how in WAYS.values():
        before = unaccounted(server)
        begin_endless(server, machine, "dsa0")
        resets = server.show("dsa0")["counters"]["resets"]
        machine.reboot(how)
        assert server.show("dsa0")["counters"]["resets"] > resets
        for name in ("dsa0", "dsa1"):
            shown = server.show(name)
            assert {queue["state"] for queue in shown["work_queues"]} == {"disabled"}
            assert not any(adi["messages"] for adi in shown["adis"])
        assert unaccounted(server) == before, how
        bring_up(machine, devices=2)
        assert copy(machine, threads=THREADS, channels=2, copies=400, max_size=SIZE).flawless(400)
        assert holdings(server) == held, how
    idxd.unload(machine)


def test_qemu_is_killed_in_mid_work(serve: Serve, boot: Boot, idxd_options: dict[str, Any]) -> None:
    """The VDEV is as new, and free for the next one; the other guest has not noticed."""
    server = serve({name: {"type": "dsa-1dwq"} for name in ("dsa0", "dsa1", "spare0")})
    neighbour = Neighbour(boot(vfio_user(server.socket("spare0")), **idxd_options))
    held = holdings(server)
    victim = boot(vfio_user(server.socket("dsa0")), cpus=2, **idxd_options)
    bring_up(victim)
    begin_endless(server, victim, "dsa0")
    victim.kill()
    server.wait_for("dsa0 is free", lambda: server.show("dsa0")["state"] == "ready")
    (adi,) = server.show("dsa0")["adis"]
    counters = adi["counters"]
    assert counters["accepted"] == counters["succeeded"] + counters["aborted"]
    assert (adi["state"], adi["messages"], counters["occupancy"]) == ("allocated", [], 0)
    assert holdings(server) == held
    victim.stop()
    victim.start()
    bring_up(victim)
    assert copy(victim, threads=THREADS, copies=400, max_size=SIZE).flawless(400)
    assert neighbour.end() > 1


def test_the_server_is_killed(serve: Serve, boot: Boot, idxd_options: dict[str, Any]) -> None:
    """An idle guest goes on without the device: its copies are lost, its kernel is not. QEMU 11.1
    itself ends (error_setv) if it waits for an answer just then, as it does in mid-work."""
    server = serve({"dsa0": {"type": "dsa-1dwq"}})
    machine = boot(vfio_user(server.socket("dsa0")), cpus=2, **idxd_options)
    bring_up(machine)
    server.kill()
    begin(machine, threads=THREADS, copies=400, max_size=SIZE, timeout=2)
    counts = abandon(machine)
    assert (counts.submitted, counts.lost, counts.wrong) == (THREADS, THREADS, 0)
    assert machine.check("echo alive").strip() == "alive"
    machine.stop()
    server.start()
    machine.start()
    bring_up(machine)
    begin_endless(server, machine, "dsa0")
    server.kill()
    try:
        assert machine.check("echo alive").strip() == "alive"
    except GuestError as error:
        assert "QEMU ended" in str(error) and "error_setv" in str(error)
    machine.stop()
    server.start()
    machine.start()
    bring_up(machine)
    assert copy(machine, threads=THREADS, copies=400, max_size=SIZE).flawless(400)
