"""Registers said once: one declaration gives access rules, reset, dump, trace and save/restore.

    class Uart(RegisterMap):
        DATA = Register(0x0, 8, doc="Transmit and receive.")
        CTRL = Register(0x4, 32, doc="Control.", fields={
            "EN": Field(0, doc="Enable."),
            "PARITY": Field(1, 2, values=Parity),
            "RESET": Field(8, access=Access.WO),
        })
        WINDOW = Register(0x100, 32, count=8, stride=0x10)

    class Device:
        def __init__(self) -> None:
            self.regs = Uart(self)
        def on_write_CTRL(self, value: int) -> None: ...        # after the new value is in place
        def on_read_DATA(self) -> int: ...                      # the whole register
        def on_write_WINDOW(self, index: int, value: int) -> None: ...

    space = RegisterSpace("BAR0", 0x1000)
    space.place(0, device.regs)
    space.write(0x4, 4, 1)            # the guest's side: access rules apply, handlers run
    device.regs.CTRL.EN               # the device's side: no rules, no handlers
    device.regs.WINDOW[3].value = 7

A value is an unsigned integer. Offsets and access widths are bytes, register and field widths are
bits, numbering is little-endian (bit 0 of the register is bit 0 of its lowest byte).
"""

from vdcm.registers.declaration import Access, Field, Register
from vdcm.registers.map import BoundRegister, RegisterError, RegisterMap
from vdcm.registers.record import AccessRecord, Part, Place
from vdcm.registers.space import RegisterSpace

__all__ = [
    "Access",
    "AccessRecord",
    "BoundRegister",
    "Field",
    "Part",
    "Place",
    "Register",
    "RegisterError",
    "RegisterMap",
    "RegisterSpace",
]
