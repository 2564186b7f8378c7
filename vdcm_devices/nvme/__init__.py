"""An NVMe controller composed from ADIs, one for each I/O queue (NVM Express base 1.4).

Linux drives it with nvme; ``Nvme.types`` are its VDEVs.
"""

from vdcm_devices.nvme.parent import Nvme

__all__ = ["Nvme"]
