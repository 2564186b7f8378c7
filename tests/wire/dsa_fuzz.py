"""A guest of the software DSA that does what it likes, while others work.

    python dsa_fuzz.py KIND PORTALS [--steps N] [--seed N]

Descriptors, registers, commands, direct portals, the mailbox, the memory map, interrupts, resets,
disconnections: what is done follows from the seed. What the sweep sees of it is a matter of time,
so a replay may find something else.
"""

from __future__ import annotations

import argparse
import errno
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from dsa_client import INTERRUPT, MOVE, DsaClient, Wq
from dsa_garbage import PAGE, Memory, a_descriptor
from dsa_machine import descriptor
from fuzz import RSS_SLACK, Level, settled

from vdcm.client import Irq, Region
from vdcm.errors import ProtocolError
from vdcm.testing import Server
from vdcm_devices.dsa.codes import Command, WqMode

ANSWER_TIME = 20.0  # seconds after which something is said to hang
STAGE = 0x7000_0000
LOOK = 10  # steps between two looks at the daemon and the others


class Bystander:
    """A guest whose work has to be done, whatever others do."""

    def __init__(self, daemon: Server, name: str) -> None:
        client = daemon.connect(name)
        self.dsa = DsaClient(Path(client.path), 1 << 20, client)
        self.dsa.start()
        self.dsa.enable_interrupts()
        self.rounds = 0
        self._interrupt = not self.dsa.shared  # work with a PASID may not ask for one
        self._source = self.dsa.memory.take(3 * PAGE)
        self._target = self.dsa.memory.take(3 * PAGE)
        self._record = self.dsa.memory.take(32, 32)

    def work(self) -> None:
        memory = self.dsa.memory
        self.rounds += 1
        data = random.Random(self.rounds).randbytes(3 * PAGE - 5)
        memory.write(self._source, data)
        memory.write(self._target, bytes(3 * PAGE))
        memory.write(self._record, bytes(32))
        move = descriptor(
            MOVE,
            0xC | INTERRUPT * self._interrupt,
            completion=self._record,
            source=self._source,
            destination=self._target,
            size=len(data),
            handle=int(self._interrupt),
            pasid=1,
        )
        deadline = time.monotonic() + ANSWER_TIME
        while not self.dsa.submit(0, move):
            assert time.monotonic() < deadline, "retry, and no end of it"
        assert self.dsa.wait(self._record).status == 1
        assert memory.read(self._target, 3 * PAGE) == data + bytes(5)
        assert not self._interrupt or self.dsa.events[1].wait(ANSWER_TIME) == 1
        assert self.dsa.read(0xC0) == 0, "an error that is not its own"


class Attacker:
    """``step`` does something. It often begins with a set-up that works, to get past the door."""

    def __init__(self, daemon: Server, known: random.Random, *, dynamic: bool) -> None:
        self._daemon, self._known, self._dynamic = daemon, known, dynamic
        self.memory = Memory()
        self.dsa = self._connect()

    def _connect(self) -> DsaClient:
        client = self._daemon.connect("attacker")
        dsa = DsaClient(Path(client.path), 16 * PAGE, client, base=STAGE)
        self.memory.map_all(dsa)
        self._set_up(dsa)
        return dsa

    def _set_up(self, dsa: DsaClient) -> None:
        modes = dsa.modes()
        if self._dynamic:
            modes = [self._known.choice(tuple(WqMode)) for _ in modes]
            for mode in modes:
                dsa.ask(1, int(mode is WqMode.SHARED))
        size = dsa.total_size // dsa.wqs
        dsa.start(
            [
                Wq(size, mode, pasid=None if mode else 1, max_transfer=31, max_batch=15)
                for mode in modes
            ]
        )
        if self._known.random() < 0.5:
            dsa.client.irq_enable(Irq.MSIX)
            dsa.client.config.write(dsa.capability(0x11) + 2, 2, 0x8000)
            for vector in range(1, dsa.wqs + 1):
                dsa.command(Command.REQUEST_INTERRUPT_HANDLE, vector)

    def step(self) -> None:
        (name,) = self._known.choices(list(_STEPS), list(_STEPS.values()))
        getattr(self, "_" + name)()

    def _submit(self) -> None:
        dsa, known = self.dsa, self._known
        for _ in range(known.randrange(1, 20)):
            members = [a_descriptor(known, member=True) for _ in range(8)]
            self.memory.put(known, b"".join(members))
            wq, portal = known.randrange(dsa.wqs), known.choice((0, 1, 1, 1, known.randrange(4)))
            ring = dsa.rings.get((wq, portal))
            if ring is not None:
                ring.store(a_descriptor(known))
                continue
            at = (4 * wq + portal) * PAGE + 64 * known.randrange(64)
            try:
                dsa.client.write_bytes(Region.BAR2, at, a_descriptor(known))
            except ProtocolError as error:
                assert error.errno == errno.EAGAIN, error

    def _scribble(self) -> None:
        """Over the direct portals."""
        known = self._known
        for area in self.dsa.areas:
            for _ in range(50):
                at = known.randrange(len(area) - 64)
                area.view[at : at + 64] = known.choice((a_descriptor(known), known.randbytes(64)))

    def _registers(self) -> None:
        known = self._known
        tables = (0x80, 0x88, 0x98, 0xC0, 0x400, 0x600, 0x620, 0x800, 0x1000, 0x4000, 0x5000)
        for _ in range(20):
            self._access(Region.BAR0, known.choice(tables) + known.randrange(256))

    def _counters(self) -> None:
        """Event counters that are about to overflow, and what else can be written of them."""
        known = self._known
        for counter in range(8):
            self.dsa.write(0x1100 + 8 * counter, 0, 8)
            self.dsa.write(0x1200 + 8 * counter, (1 << 48) - known.randrange(1, 9), 8)
            config = known.getrandbits(28) << 32 | known.randrange(6) << 8 | known.randrange(8) | 1
            self.dsa.write(0x1100 + 8 * counter, config, 8)
        for _ in range(8):
            self._access(Region.BAR0, 0x1000 + known.randrange(0x400))

    def _access(self, region: int, at: int) -> None:
        known, client = self._known, self.dsa.client
        width = known.choice((1, 2, 4, 8))
        value = known.choice((0, (1 << 64) - 1, known.getrandbits(64)))
        try:
            client.write(region, at, width, value)
            client.read(region, at, width)
        except ProtocolError as error:
            assert error.errno == errno.EAGAIN, error

    def _commands(self) -> None:
        known = self._known
        for _ in range(known.randrange(1, 6)):
            code = known.choice((*Command, known.randrange(32)))
            operand = known.choice((0, 1, 1 << known.randrange(20), known.getrandbits(20)))
            self.dsa.write(0xA0, known.getrandbits(1) << 31 | code << 20 | operand)

    def _config(self) -> None:
        """Bus Master Enable, MSI-X, the PASID capability, or anything."""
        known, dsa = self._known, self.dsa
        places = (4, dsa.capability(0x11) + 2, dsa.extended(0x1B) + 6, known.randrange(0x1000) & -2)
        dsa.client.config.write(known.choice(places), 2, known.getrandbits(16))

    def _reset(self) -> None:
        known, dsa = self._known, self.dsa
        if known.random() < 0.5:
            dsa.client.reset()
        else:
            dsa.client.config.write(dsa.capability(0x10) + 8, 2, 0x8000)
        if known.random() < 0.8:
            self._set_up(dsa)

    def _remap(self) -> None:
        known, dsa = self._known, self.dsa
        for _ in range(known.randrange(1, 5)):
            index = known.randrange(len(Memory.RANGES))
            self.memory.unmap(dsa, index)
            self.memory.map(dsa, index)
        if known.random() < 0.2:
            dsa.client.dma_unmap_all()
            self.memory.map_all(dsa)

    def _cut(self) -> None:
        self.memory.cut(self._known)

    def _mailbox(self) -> None:
        known, client = self._known, self.dsa.client
        at = self.dsa.mailbox()
        data = client.read(Region.BAR2, at, 4)
        for _ in range(known.randrange(1, 30)):
            value = known.choice((0, 1, 2, 3, known.getrandbits(32)))
            opcode = known.choice((1, 2, 3, 3, 4, 4, known.getrandbits(16)))
            size = known.choice((4, 4, 4, known.getrandbits(16)))
            client.write(Region.BAR2, data, 4, value)
            client.write(Region.BAR2, at + 0xC, 4, opcode | size << 16)
        self._access(Region.BAR2, at + known.randrange(64))

    def _interrupts(self) -> None:
        known, client = self._known, self.dsa.client
        count = client.irqs[Irq.MSIX].count
        start = known.randrange(count)
        match known.randrange(3):
            case 0:
                client.irq_enable(Irq.MSIX, known.randrange(count - start) + 1, start)
            case 1:
                client.irq_disable(Irq.MSIX)
            case 2:
                client.irq_trigger(Irq.MSIX, 1, start)

    def _reconnect(self) -> None:
        for _ in range(10):
            self._submit()
        self.dsa.client.close()
        self.dsa = self._connect()

    def close(self) -> None:
        self.dsa.client.close()
        self.memory.close()


_STEPS = {
    "submit": 40,
    "reset": 14,
    "commands": 8,
    "remap": 8,
    "scribble": 6,
    "registers": 6,
    "counters": 6,
    "mailbox": 5,
    "config": 4,
    "cut": 3,
    "interrupts": 3,
    "reconnect": 2,
}


def _level(daemon: Server, attacker: Attacker) -> Level:
    """What the daemon holds when the attacker's VDEV is as new."""
    attacker.dsa.client.close()
    daemon.connect("attacker").close()
    return Level.of(daemon.pid)


def run(folder: Path, kind: str, portals: str, steps: int, seed: int) -> Counter[str]:
    """What the attacker's ADIs have counted, all together. Raises AssertionError, naming the step,
    if the daemon or a bystander does not stand it."""
    work: dict[str, dict[str, int]] = {}
    vdevs: dict[str, dict[str, Any]] = {
        "attacker": {"type": kind, "portals": portals},
        "own": {"type": "dsa-1dwq"},
        "sharer": {"type": "dsa-1swq"},
    }
    for vdev in vdevs.values():
        vdev["parent"] = "dsa0"
    with Server(folder, vdevs, {"dsa0": {"model": "dsa"}}, trace=False) as daemon:
        bystanders = [Bystander(daemon, name) for name in ("own", "sharer")]
        attacker = Attacker(daemon, random.Random(seed), dynamic=kind == "dsa-dynamic")
        warm: Level | None = None
        for number in range(steps):
            try:
                attacker.step()
                if number % LOOK == 0:
                    attacker.memory.check()
                    for bystander in bystanders:
                        bystander.work()
                    daemon.call("list")
                    _count(work, daemon.call("show", name="attacker"))
                if number == steps // 4:
                    warm = _level(daemon, attacker)
                    attacker.dsa = attacker._connect()
            except Exception as error:
                raise AssertionError(
                    f"seed {seed}, step {number}: {error!r}\n{daemon.log}"
                ) from error
        assert warm is not None
        _level(daemon, attacker)
        end = settled(daemon.pid, warm)
        assert end.descriptors <= warm.descriptors, f"descriptors leak: {warm}, {end}"
        assert end.memory <= warm.memory + RSS_SLACK, f"memory leaks: {warm}, {end}"
        assert "Traceback" not in daemon.log, daemon.log
        attacker.close()
        for bystander in bystanders:
            bystander.work()
            (adi,) = daemon.call("show", name=Path(bystander.dsa.client.path).stem)["adis"]
            assert adi["counters"]["accepted"] == adi["counters"]["succeeded"] == bystander.rounds
            bystander.dsa.client.close()
    names = ("accepted", "succeeded", "failed", "aborted", "interrupts")
    return Counter({name: sum(adi[name] for adi in work.values()) for name in names})


def _count(work: dict[str, dict[str, int]], shown: dict[str, Any]) -> None:
    for adi in shown["adis"]:
        found = work[adi["name"]] = adi["counters"]
        ended = found["succeeded"] + found["failed"] + found["aborted"]
        # One may be under way; the descriptors of batches count as well.
        assert found["occupancy"] or ended + 1 >= found["accepted"], "accepted, and lost"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("kind")
    parser.add_argument("portals")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().getrandbits(32))
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        try:
            print(dict(run(Path(folder), **vars(options))))
        except AssertionError as error:
            sys.exit(str(error))


if __name__ == "__main__":
    main()
