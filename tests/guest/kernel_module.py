"""Moved to vdcm.testing."""

from vdcm.testing import build_module, build_program

__all__ = ["build_module", "build_program"]
