"""Two small device models, for tests of what is above ``Vdev``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Final

from vdcm.adi import AdiType
from vdcm.bars import Bar
from vdcm.function import ParentFunction
from vdcm.host import HostDriver
from vdcm.parent import Parent, VdevType
from vdcm.pci import Capability, Identity, MsiX, Pasid, ScalableIov
from vdcm.properties import Property
from vdcm.registers import Register, RegisterMap
from vdcm.vdev import Vdev


class LampRegisters(RegisterMap):
    LEVEL = Register(0x0, 32, doc="How bright it is.")


class Lamp(Vdev):
    """A lamp.

    Not a bright one.
    """

    identity = Identity(vendor=0x1234, device=0x0001, class_code=0xFF0000)

    level = Property(0, maximum=0xFF, doc="How bright it is.")
    label = Property("", doc="What it says.")
    lit = Property(False)
    wiring = Property(1, minimum=1, maximum=4, live=False)

    def __init__(
        self,
        name: str,
        capabilities: Sequence[Capability] = (),
        bars: Sequence[Bar] = (),
        drivers: Sequence[HostDriver] = (),
    ) -> None:
        self.registers: Final = LampRegisters(self)
        bar = Bar(0, 0x1000)
        bar.place(0, self.registers)
        super().__init__(name, [bar, *bars], capabilities, drivers)

    def on_set_level(self, value: int) -> None:
        if value == 0xEE:
            raise RuntimeError("the bulb has blown")
        if self.observer is not None:
            self.note(f"level {value:#x}")


class BrokenLamp(Vdev):
    """A lamp that cannot be made."""

    identity = Identity(vendor=0x1234, device=0x0002, class_code=0xFF0000)

    def __init__(self, name: str) -> None:
        raise RuntimeError(f"no glass for {name}")


class House(Parent):
    types: ClassVar = {"lamp": Lamp, "broken-lamp": BrokenLamp}

    storeys = Property(1, minimum=1, maximum=9)


class PluggedLamp(Lamp):
    """A lamp that needs a socket of a street: an ADI with nothing to do, but with a message."""

    def __init__(self, name: str, drivers: Sequence[HostDriver]) -> None:
        msix = MsiX(1, table_bar=2, table_offset=0, pba_bar=2, pba_offset=0x1000)
        super().__init__(name, [msix], [Bar(2, 0x2000)], drivers)
        self.add_adi("socket", [0])


class Sockets(HostDriver):
    """The host driver of a street."""

    adi_types: ClassVar = {"socket": AdiType("socket", {"sockets": 1}, messages=1)}

    def __init__(self, name: str, sockets: int) -> None:
        function = ParentFunction(name, PluggedLamp.identity, [ScalableIov(), Pasid()])
        super().__init__(name, function, {"sockets": sockets})


class Street(Parent):
    """A parent whose resources run out."""

    types: ClassVar = {
        "lamp": Lamp,
        "street-lamp": Lamp,
        "plugged-lamp": VdevType(PluggedLamp, adis={"socket": 1}, doc="A lamp on a wire."),
    }

    sockets = Property(2, maximum=9)

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.driver = Sockets(name, self.sockets)


HOUSE: Final[dict[str, type[Parent]]] = {"house": House}
BOTH: Final[dict[str, type[Parent]]] = {"house": House, "street": Street}
