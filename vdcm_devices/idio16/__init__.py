"""ACCES PCIe-IDIO-16: 16 isolated inputs and 16 FET outputs, with a change-of-state interrupt.

Linux drives it with gpio-pci-idio-16: lines 0 to 15 are the outputs, 16 to 31 the inputs.
"""

from vdcm_devices.idio16.parent import Idio16Card

__all__ = ["Idio16Card"]
