"""Moved to vdcm.testing."""

from vdcm.testing import Server, ServerError

__all__ = ["Server", "ServerError"]
