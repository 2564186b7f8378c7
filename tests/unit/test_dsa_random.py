"""Random guests and a random administrator on one software DSA: what holds after every step."""

from __future__ import annotations

import random
import time

import pytest

from vdcm.adi import AdiState
from vdcm.errors import DeferredError, ResourceError
from vdcm.parent import build
from vdcm.pasid import PASIDS
from vdcm_devices.dsa import Dsa
from vdcm_devices.dsa.codes import Command, CommandError, DeviceState, WqMode, WqState
from vdcm_devices.dsa.portals import portals_end
from vdcm_devices.dsa.vdev import DsaVdev

STEPS = 700
KINDS = ("dsa-1dwq", "dsa-1swq", "dsa-2dwq-1swq", "dsa-dynamic", "dsa-dynamic")


class World:
    """A parent with little of everything, and VDEVs that come and go."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.parent = build(
            Dsa, "dsa0", {"dwqs": 4, "swqs": 1, "shares": 2, "ims": 9, "workers": 2}
        )
        self.driver = self.parent.driver
        self.vdevs: list[DsaVdev] = []
        self.made = 0

    # What happens

    def step(self) -> None:
        known = self.random
        if not self.vdevs or known.random() < 0.03:
            self.create()
        elif known.random() < 0.02:
            self.vdevs.pop(known.randrange(len(self.vdevs))).close()
        else:
            self.act(known.choice(self.vdevs))
        self.look()

    def create(self) -> None:
        self.made += 1
        properties = {"portals": self.random.choice(("intercepted", "direct"))}
        try:
            vdev = self.parent.create(self.random.choice(KINDS), f"v{self.made}", properties)
        except ResourceError:
            return
        assert isinstance(vdev, DsaVdev)
        self.vdevs.append(vdev)

    def act(self, vdev: DsaVdev) -> None:
        known = self.random
        if vdev.registers.GENSTS.STATE == DeviceState.HALT and known.random() < 0.3:
            vdev.reset()
        does = known.choice(
            [self.start] * 3
            + [self.command] * 12
            + [self.submit] * 6
            + [self.ask] * 4
            + [self.poke] * 3
            + [self.pci, self.reset, self.weigh, self.host]
        )
        does(vdev)

    def start(self, vdev: DsaVdev) -> None:
        """What a driver does when it is loaded, right for most work queues."""
        vdev.write(0, 0xA0, 4, Command.RESET_DEVICE << 20)
        pasid = next(c for c in vdev.config.capabilities if type(c).__name__ == "VdevPasid")
        vdev.config.space.write(pasid.offset + 6, 2, 1)
        vdev.config.space.write(4, 2, 0x406)
        self.configure(vdev)
        vdev.write(0, 0xA0, 4, Command.ENABLE_DEVICE << 20)
        for wq in range(len(vdev.work_queues)):
            vdev.write(0, 0xA0, 4, Command.ENABLE_WQ << 20 | wq)

    def configure(self, vdev: DsaVdev) -> None:
        bar, known = vdev.bars[0].space, self.random
        wqs = len(vdev.work_queues)
        members = 0
        for wq, queue in enumerate(vdev.work_queues):
            mode = queue.modes[0] if queue.modes else WqMode.DEDICATED
            used = known.random() < 0.8
            members |= used << wq
            pasid = known.choice((1, 2)) << 8 | 1 << 28 if mode is WqMode.SHARED else 0
            bar.write(0x800 + 64 * wq, 4, 4 * used)
            bar.write(0x804 + 64 * wq, 4, 4)
            bar.write(0x808 + 64 * wq, 4, mode | known.randrange(1, 16) << 4 | pasid)
            bar.write(0x80C + 64 * wq, 4, 20 | 4 << 5)
        bar.write(0x600, 8, members)
        bar.write(0x620, 8, bool(members))
        for group in range(1, wqs):
            bar.write(0x600 + 64 * group, 8, 0)

    def command(self, vdev: DsaVdev) -> None:
        known = self.random
        command = known.choice((*Command, *[Command.ENABLE_DEVICE, Command.ENABLE_WQ] * 3))
        if command is Command.ENABLE_WQ:
            operand = known.randrange(len(vdev.work_queues) + 1)
        elif Command.DISABLE_WQ <= command <= Command.RESET_WQ:
            operand = known.randrange(1, 1 << len(vdev.work_queues) + 1)
        elif command in (Command.REQUEST_INTERRUPT_HANDLE, Command.RELEASE_INTERRUPT_HANDLE):
            operand = known.randrange(5)
        elif command in (Command.DRAIN_PASID, Command.ABORT_PASID):
            operand = known.choice((1, 2))
        else:
            operand = 0
        vdev.write(0, 0xA0, 4, known.getrandbits(1) << 31 | command << 20 | operand)
        CommandError(vdev.read(0, 0xA8, 4) & 0xFF)

    def submit(self, vdev: DsaVdev) -> None:
        page = 0x1000 * self.random.randrange(4 * len(vdev.work_queues))
        try:
            for word in range(8):
                vdev.write(2, page + 8 * word, 8, 1 if word == 0 else 0)
        except DeferredError:
            assert WqMode.SHARED in vdev.work_queues[page // 0x4000].modes

    def ask(self, vdev: DsaVdev) -> None:
        at = portals_end(len(vdev.work_queues))
        vdev.write(2, vdev.read(2, at, 4), 4, self.random.randrange(3))
        vdev.write(2, at + 0xC, 4, self.random.randrange(6) | 4 << 16)

    def poke(self, vdev: DsaVdev) -> None:
        at = self.random.choice((0x80, 0x88, 0x98, 0xC0, 0x408, 0x600, 0x800, 0x808, 0x820, 0x4000))
        vdev.write(0, at, 4, self.random.getrandbits(32))

    def pci(self, vdev: DsaVdev) -> None:
        pasid = next(c for c in vdev.config.capabilities if type(c).__name__ == "VdevPasid")
        offset, value = self.random.choice(((4, 0x406), (4, 0x402), (pasid.offset + 6, 1)))
        vdev.config.space.write(offset, 2, value)

    def reset(self, vdev: DsaVdev) -> None:
        vdev.reset()

    def weigh(self, vdev: DsaVdev) -> None:
        vdev.weight = self.random.randrange(1, 256)

    def host(self, vdev: DsaVdev) -> None:
        """The administrator: an ADI is suspended for a while."""
        for adi in vdev.adis:
            if adi.state is AdiState.ENABLED:
                self.driver.suspend(adi)
            elif adi.state is AdiState.SUSPENDED:
                self.driver.resume(adi)

    def look(self) -> None:
        for sweep in self.driver._sweeps:
            sweep.look()

    # What holds

    def check(self) -> None:
        adis = [adi for vdev in self.vdevs for adi in vdev.adis]
        assert sorted(adi.index for adi in adis) == sorted(self.driver.adis)
        used = {"dwq": 0, "swq-share": 0}
        for adi in adis:
            used[adi.type.name] += 1
        assert {key: self.driver._used[key] for key in used} == used
        assert self.driver.ims.size - self.driver.ims.free == sum(len(a.messages) for a in adis)
        bound = sum(len(vdev.guest_pasids.bindings) for vdev in self.vdevs)
        assert len(PASIDS) == len(self.vdevs) + bound
        for vdev in self.vdevs:
            self.check_vdev(vdev)

    @staticmethod
    def check_vdev(vdev: DsaVdev) -> None:
        backing = [queue.adi for queue in vdev.work_queues if queue.adi is not None]
        assert sorted(adi.index for adi in backing) == sorted(adi.index for adi in vdev.adis)
        state = vdev.registers.GENSTS.STATE
        assert all(1 <= adi.weight <= 255 for adi in vdev.adis)
        if vdev.commands.active or state == DeviceState.HALT:
            return
        for queue in vdev.work_queues:
            if queue.state is WqState.DISABLED:
                assert queue.adi is None or queue.adi.state is AdiState.ALLOCATED
            elif queue.state is WqState.ENABLED:
                assert state == DeviceState.ENABLED
                assert queue.adi is not None
                assert queue.adi.state in (
                    AdiState.ENABLED,
                    AdiState.DRAINING,
                    AdiState.SUSPENDED,
                )

    def settled(self) -> bool:
        """No command waits any more, once nothing is suspended."""
        for adi in self.driver.adis.values():
            if adi.state is AdiState.SUSPENDED:
                self.driver.resume(adi)
        deadline = time.monotonic() + 20
        while any(vdev.commands.active for vdev in self.vdevs):
            if time.monotonic() > deadline:
                return False
            self.look()
        return True


@pytest.mark.parametrize("seed", range(6))
def test_nothing_is_lost_or_left_whatever_happens(seed: int) -> None:
    world = World(seed)
    enabled = 0
    try:
        for _ in range(STEPS):
            world.step()
            world.check()
            enabled += any(
                queue.state is WqState.ENABLED for vdev in world.vdevs for queue in vdev.work_queues
            )
        assert world.settled()
        world.check()
        for vdev in world.vdevs:
            vdev.reset()
            assert vdev.registers.GENSTS.STATE == DeviceState.DISABLED
            assert not vdev.commands.active
            assert all(queue.state is WqState.DISABLED for queue in vdev.work_queues)
            assert not any(adi.messages for adi in vdev.adis)
    finally:
        for vdev in world.vdevs:
            vdev.close()
        world.vdevs.clear()
        assert world.driver.adis == {}
        assert world.driver.ims.free == world.driver.ims.size
        world.parent.close()
    assert len(PASIDS) == 0
    assert enabled > STEPS // 20, "the guests got hardly anything to work"
