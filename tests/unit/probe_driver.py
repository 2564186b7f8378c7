"""A host driver of the probe device, and a VDEV that is composed of its ADIs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from probe import Probe

from vdcm.adi import Adi, AdiType
from vdcm.bars import Bar
from vdcm.errors import VdcmError
from vdcm.function import ParentFunction
from vdcm.host import HostDriver
from vdcm.parent import Parent, VdevType
from vdcm.pci import Ats, Identity, MsiX, Pasid, Pri, ScalableIov
from vdcm.vdev import Vdev

IDENTITY = Identity(vendor=0x1234, device=0x0001, class_code=0xFF0000)


class ProbeDriver(HostDriver):
    adi_types: ClassVar = {
        "small": AdiType("small", {"slots": 1}, messages=1),
        "large": AdiType("large", {"slots": 3, "buffers": 1}, messages=2),
        "shared": AdiType("shared", {"shares": 1}, pasid_required=False),
    }
    generations: ClassVar = ("2", "1")
    channel: ClassVar = True

    def __init__(self, name: str, slots: int = 8, messages: int = 16, workers: int = 1) -> None:
        function = ParentFunction(name, IDENTITY, [ScalableIov(), Ats(), Pri(capacity=8), Pasid()])
        super().__init__(
            name,
            function,
            {"slots": slots, "buffers": 2, "shares": 1000},
            messages=messages,
            workers=workers,
        )

    def on_allocate(self, adi: Adi) -> None:
        adi.resource = Probe(adi.path, message=0 if adi.type.messages else -1)

    def on_configure(self, adi: Adi, settings: Mapping[str, Any]) -> None:
        for name, value in settings.items():
            if name not in ("cost", "address", "length", "marker", "report", "pasid"):
                raise VdcmError(f"{adi.name} has no setting {name}")
            setattr(adi.resource.device, name, value)

    def on_reset(self, adi: Adi) -> None:
        adi.resource.device.cost = 1
        adi.resource.device.length = 0

    def on_save(self, adi: Adi) -> bytes:
        device = adi.resource.device
        return b"%d %d %d" % (adi.resource.doorbell[0], device.accepted, device.done)

    def on_restore(self, adi: Adi, state: bytes) -> None:
        try:
            bell, accepted, done = map(int, state.split())
        except ValueError as error:
            raise VdcmError(f"{adi.name}: this is no state of a probe") from error
        adi.resource.doorbell[0] = bell
        adi.resource.device.accepted, adi.resource.device.done = accepted, done

    def on_counters(self, adi: Adi) -> dict[str, int]:
        return {"done": adi.resource.done}


class ProbeVdev(Vdev):
    identity = IDENTITY

    def __init__(self, name: str, drivers: Sequence[HostDriver], adis: Sequence[str]) -> None:
        super().__init__(
            name,
            bars=[Bar(0, 0x4000)],
            capabilities=[MsiX(4, table_bar=0, table_offset=0x2000, pba_bar=0, pba_offset=0x3000)],
            drivers=drivers,
        )
        self.heard: list[tuple[Adi, int]] = []
        for kind in adis:
            self.add_adi(kind, range(drivers[0].adi_types[kind].messages))

    def on_adi_report(self, adi: Adi, report: Any) -> None:
        self.heard.append((adi, report.code))


class ProbeParent(Parent):
    types: ClassVar = {
        "one": VdevType(ProbeVdev, {"adis": ("small",)}, {"small": 1}),
        "both": VdevType(ProbeVdev, {"adis": ("small", "large")}, {"small": 1, "large": 1}),
        "three": VdevType(ProbeVdev, {"adis": ("small",) * 3}, {"small": 3}),
    }

    def __init__(self, name: str, slots: int = 8) -> None:
        super().__init__(name)
        self.driver = ProbeDriver(name, slots)
