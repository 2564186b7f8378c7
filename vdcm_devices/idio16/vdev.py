"""The model: what reading and writing the registers does."""

from typing import Final

from vdcm import Bar, BarKind, Identity, Property, Vdev
from vdcm_devices.idio16.registers import Idio16Registers


class Idio16(Vdev):
    """ACCES PCIe-IDIO-16: 16 outputs and 16 inputs that interrupt when they change."""

    identity = Identity(vendor=0x494F, device=0x0DC8, class_code=0x118000)
    intx = True

    inputs = Property(0, maximum=0xFFFF, doc="Levels of inputs 0 to 15, one bit each.")

    def __init__(self, name: str) -> None:
        self.registers: Final = Idio16Registers(self)
        self.interrupt_enabled = False
        self.filters = False
        self._levels = 0
        bar = Bar(2, 256, BarKind.IO)
        bar.place(0, self.registers)
        super().__init__(name, bars=[bar])

    @property
    def outputs(self) -> int:
        """Levels of outputs 0 to 15, one bit each."""
        return self.registers.OUT_LOW.value | self.registers.OUT_HIGH.value << 8

    def on_set_inputs(self, levels: int) -> None:
        changed, self._levels = self._levels ^ levels, levels
        if self.interrupt_enabled and changed:
            status = self.registers.IRQ_STATUS
            status.LOW_CHANGED |= bool(changed & 0xFF)
            status.HIGH_CHANGED |= bool(changed >> 8)
            status.PENDING = 1
            self.interrupts.set_line(True)

    def on_read_IN_LOW(self) -> int:
        return self.inputs & 0xFF

    def on_read_IN_HIGH(self) -> int:
        return self.inputs >> 8

    def on_write_IN_LOW(self, _value: int) -> None:
        self.registers.IRQ_STATUS.value = 0
        self.interrupts.set_line(False)

    def on_read_IRQ_CONTROL(self) -> int:
        self.interrupt_enabled = True
        return 0

    def on_write_IRQ_CONTROL(self, _value: int) -> None:
        self.interrupt_enabled = False

    def on_read_FILTER(self) -> int:
        self.filters = True
        return 0

    def on_write_FILTER(self, _value: int) -> None:
        self.filters = False

    def on_reset(self) -> None:
        self.interrupt_enabled = self.filters = False
