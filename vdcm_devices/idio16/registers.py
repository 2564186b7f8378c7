"""The card's registers, one byte each, in BAR 2 (manual of the PCI(e)-IDIO-16, register map)."""

from vdcm import Access, Field, Register, RegisterMap


class Idio16Registers(RegisterMap):
    OUT_LOW = Register(0x0, 8, doc="Outputs 0 to 7: read back what was written.")
    IN_LOW = Register(0x1, 8, doc="Read: inputs 0 to 7. Write: clear the interrupt.")
    IRQ_CONTROL = Register(0x2, 8, doc="Read: enable the interrupt. Write: disable it.")
    FILTER = Register(0x3, 8, doc="Read: activate the input filters. Write: deactivate them.")
    OUT_HIGH = Register(0x4, 8, doc="Outputs 8 to 15.")
    IN_HIGH = Register(0x5, 8, Access.RO, doc="Inputs 8 to 15.")
    IRQ_STATUS = Register(
        0x6,
        8,
        Access.RO,
        fields={
            "LOW_CHANGED": Field(0, doc="An input of 0 to 7 has changed."),
            "HIGH_CHANGED": Field(1, doc="An input of 8 to 15 has changed."),
            "PENDING": Field(2, doc="The interrupt is asserted."),
        },
        doc="Why the interrupt is asserted.",
    )
