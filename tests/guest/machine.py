"""Moved to vdcm.testing."""

from vdcm.testing import GuestError, Machine, Qmp, Result, vfio_user

__all__ = ["GuestError", "Machine", "Qmp", "Result", "vfio_user"]
