"""The registers of BAR0: what Python sees, and what lies on pages of the data path."""

from __future__ import annotations

from typing import Final

from vdcm import Access, Field, Register, RegisterMap
from vdcm_devices.avf.codes import ResetState

RO, RW, RC = Access.RO, Access.RW, Access.RC

BAR0_SIZE: Final = 0x10000
BAR3_SIZE: Final = 0x4000
MSIX_TABLE: Final = 0x0000
MSIX_PENDING: Final = 0x2000
MOST_QUEUES: Final = 16
"""Queue pairs of a function, and interrupt vectors for them: how many registers there are."""
HKEY_SIZE: Final = 52
HLUT_SIZE: Final = 64
PAGE: Final = 0x1000
DIRECT_PAGES: Final = (0x0000, 0x2000, 0x3000)
"""Those of the data path: transmit tails; receive tails and ITRs; DYN_CTLN."""
TAILS: Final = (0x0000, 0x2000)
"""QTX_TAIL1 and QRX_TAIL1, one for each queue."""

DYN_CTL: Final = {
    "INTENA": Field(0, doc="Interrupts are enabled; cleared when one is sent."),
    "CLEARPBA": Field(1, access=Access.WO),
    "SWINT_TRIG": Field(2, access=Access.WO, doc="Send one now."),
    "ITR_INDX": Field(3, 2, doc="Which ITR the interval is of; 3: none."),
    "INTERVAL": Field(5, 12, doc="In units of 2 µs."),
    "SW_ITR_INDX_ENA": Field(24),
    "SW_ITR_INDX": Field(25, 2),
    "WB_ON_ITR": Field(30),
    "INTENA_MSK": Field(31, access=Access.WO, doc="INTENA is not written."),
}


def _length(prefix: str) -> dict[str, Field]:
    return {
        "LEN": Field(0, 10),
        f"{prefix}VFE": Field(28),
        f"{prefix}OVFL": Field(29),
        f"{prefix}CRIT": Field(30),
        "ENABLE": Field(31),
    }


class AvfRegisters(RegisterMap, size=BAR0_SIZE - 0x4000):
    """BAR0 from ``BASE`` on."""

    BASE: Final = 0x4000

    ICR01 = Register(
        0x4800 - BASE,
        32,
        RC,
        fields={"INTEVENT": Field(0), "ADMINQ": Field(30), "SWINT": Field(31)},
        doc="Causes of vector 0.",
    )
    ICR0_ENA1 = Register(
        0x5000 - BASE, 32, fields={"ADMINQ": Field(30)}, doc="Causes that vector 0 is sent for."
    )
    DYN_CTL01 = Register(0x5C00 - BASE, 32, fields=DYN_CTL, doc="Interrupt control of vector 0.")
    ARQBAH1 = Register(0x6000 - BASE, 32, doc="Admin receive queue: address, high.")
    ATQH1 = Register(0x6400 - BASE, 32, fields={"HEAD": Field(0, 10)}, doc="Send queue: head.")
    ATQLEN1 = Register(0x6800 - BASE, 32, fields=_length("ATQ"), doc="Send queue: length.")
    ARQBAL1 = Register(0x6C00 - BASE, 32, doc="Admin receive queue: address, low.")
    ARQT1 = Register(0x7000 - BASE, 32, fields={"TAIL": Field(0, 10)}, doc="Receive queue: tail.")
    ARQH1 = Register(0x7400 - BASE, 32, fields={"HEAD": Field(0, 10)}, doc="Receive queue: head.")
    ATQBAH1 = Register(0x7800 - BASE, 32, doc="Admin send queue: address, high.")
    ATQBAL1 = Register(0x7C00 - BASE, 32, doc="Admin send queue: address, low.")
    ARQLEN1 = Register(0x8000 - BASE, 32, fields=_length("ARQ"), doc="Receive queue: length.")
    ATQT1 = Register(0x8400 - BASE, 32, fields={"TAIL": Field(0, 10)}, doc="Send queue: tail.")
    RSTAT = Register(
        0x8800 - BASE,
        32,
        RO,
        fields={"VFR_STATE": Field(0, 2, values=ResetState)},
        doc="State of the function's reset.",
    )
    HENA = Register(0xC400 - BASE, 32, count=2, doc="Packet types that are hashed.")
    HKEY = Register(0xCC00 - BASE, 32, count=HKEY_SIZE // 4, doc="RSS key.")
    HLUT = Register(0xD000 - BASE, 32, count=HLUT_SIZE // 4, doc="RSS table, a byte an entry.")
