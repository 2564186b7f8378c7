"""Moved to vdcm.testing."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vdcm.testing import Server


def Daemon(folder: Path, document: Mapping[str, Any] | None = None) -> Server:
    document = document or {}
    return Server(folder, document.get("vdevs"), document.get("parents"), trace=False)
