"""A software Data Streaming Accelerator (Intel DSA, specification 341204), composed from ADIs.

Linux drives it with idxd; ``Dsa.types`` are its VDEVs.
"""

from vdcm_devices.dsa.parent import Dsa

__all__ = ["Dsa"]
