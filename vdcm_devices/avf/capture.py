"""A pcap file of what a VSI sends and receives, for Wireshark and tcpdump."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Final

from vdcm_devices.avf.datapath import DataPath

HEADER: Final = struct.pack("=IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 1 << 18, 1)
"""Of a pcap file (draft-ietf-opsawg-pcap, section 4): version 2.4, microseconds, Ethernet."""
INTERVAL: Final = 0.1
"""Seconds from one look at the data path to the next."""


class Capture:
    """The file at ``path``, made anew. OSError if it cannot be."""

    def __init__(self, path: Path) -> None:
        self._file: Final = path.open("wb", buffering=0)
        self._file.write(HEADER)
        self.left_out = 0
        """Frames for which there was no room."""
        self._left_out_before = 0

    def moved(self) -> None:
        """The next data path is another one, which counts from zero."""
        self._left_out_before = self.left_out

    def drain(self, source: DataPath) -> None:
        """Write what has come meanwhile; OSError if it cannot be."""
        while data := source.captured():
            self._file.write(data)
        self.left_out = self._left_out_before + source.capture_dropped

    def close(self) -> None:
        self._file.close()
