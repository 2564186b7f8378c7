"""A software NIC whose VDEVs are Adaptive Virtual Functions (8086:1889), composed from ADIs.

Linux drives one with iavf; ``Avf.types`` are its VDEVs. Numbers are those of Intel's AVF hardware
architecture and of virtchnl 1.1, which a driver and the physical function's speak to each other.
"""

from vdcm_devices.avf.parent import Avf

__all__ = ["Avf"]
