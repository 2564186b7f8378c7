"""Two small device models, for tests of what is above ``Vdev``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Final

from vdcm.bars import Bar
from vdcm.errors import ResourceError
from vdcm.parent import Parent, VdevType
from vdcm.pci import Identity
from vdcm.properties import Property
from vdcm.registers import Register, RegisterMap
from vdcm.vdev import Vdev, VdevState


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

    def __init__(self, name: str) -> None:
        self.registers: Final = LampRegisters(self)
        bar = Bar(0, 0x1000)
        bar.place(0, self.registers)
        super().__init__(name, bars=[bar])

    def on_set_level(self, value: int) -> None:
        if value == 0xEE:
            raise RuntimeError("the bulb has blown")
        if self.observer is not None:
            self.observer(f"level {value:#x}")


class BrokenLamp(Vdev):
    """A lamp that cannot be made."""

    identity = Identity(vendor=0x1234, device=0x0002, class_code=0xFF0000)

    def __init__(self, name: str) -> None:
        raise RuntimeError(f"no glass for {name}")


class House(Parent):
    types: ClassVar = {"lamp": Lamp, "broken-lamp": BrokenLamp}

    storeys = Property(1, minimum=1, maximum=9)


class Socket:
    """Where one lamp can be plugged in."""

    def __init__(self, street: Street) -> None:
        street.used += 1
        self.street = street

    def release(self) -> None:
        self.street.used -= 1


class PluggedLamp(Lamp):
    """A lamp that needs a socket of a street."""

    def __init__(self, name: str, drivers: Sequence[Street] = ()) -> None:
        free = [street for street in drivers if street.used < street.sockets]
        if not free:
            raise ResourceError(f"{name}: no socket is free: stop another lamp")
        super().__init__(name)
        self.socket = Socket(free[0])

    def close(self) -> None:
        if self.state is not VdevState.CLOSED:
            self.socket.release()
        super().close()


class Street(Parent):
    """A parent whose resources run out: its own host driver, in a way."""

    types: ClassVar = {
        "lamp": Lamp,
        "street-lamp": Lamp,
        "plugged-lamp": VdevType(PluggedLamp, adis={"socket": 1}, doc="A lamp on a wire."),
    }

    sockets = Property(2, maximum=9)

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.used = 0
        self.driver = self

    def available(self, type_name: str) -> int | None:
        return self.sockets - self.used if type_name == "plugged-lamp" else None

    def describe(self) -> dict[str, Any]:
        left = {"maximum": self.sockets, "available": self.sockets - self.used}
        return {"adi_types": {"socket": left}}

    def close(self) -> None:
        assert self.used == 0, f"{self.used} lamps are still plugged in"


HOUSE: Final[dict[str, type[Parent]]] = {"house": House}
BOTH: Final[dict[str, type[Parent]]] = {"house": House, "street": Street}
