"""What the guest's programs print, beside what they printed when it was looked at: tests/golden.

The text depends on a program's version, so that has a file for each. ``VDCM_UPDATE_GOLDEN=1``
writes what the guest shows now.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

GOLDEN = Path(__file__).parents[1] / "golden"
# lspci has no decoder for what vendors define, and says so for every such capability.
_OPAQUE = re.compile(
    r"((?:Vendor Specific Information|Designated Vendor-Specific): .*) <\?>$", re.M
)
_COMPLAINTS = ("!!!", "<?>", "access denied", "Chain looped", "reserved")
# What the platform assigns: addresses of the device and its regions, slot and interrupt numbers.
_ASSIGNED = (
    (re.compile(r"^[0-9a-f:.]+ (?=\S)", re.M), "BUS:DEV.F "),
    (re.compile(r"(?<=Memory at )[0-9a-f]+"), "ADDRESS"),
    (re.compile(r"(?<=I/O ports at )[0-9a-f]+"), "ADDRESS"),
    (re.compile(r"(?<=routed to IRQ )\d+"), "N"),
    (re.compile(r"(?<=Physical Slot: )\S+"), "N"),
)


def update() -> bool:
    """The files are to be written, not compared with."""
    return "VDCM_UPDATE_GOLDEN" in os.environ


def compare(name: str, text: str) -> None:
    """``text`` is that of the golden file."""
    file = GOLDEN / name
    if update():
        file.write_text(text)
    assert text == file.read_text(), f"{name}: VDCM_UPDATE_GOLDEN=1 takes what there is now"


def compare_version(name: str, program: str, version: str, text: str) -> None:
    """``compare`` with the file for this version of the program; skips when there is none."""
    file = f"{name}.{program}-{version}.txt"
    if not (GOLDEN / file).exists() and not update():
        pytest.skip(f"no golden file for {program} {version}: VDCM_UPDATE_GOLDEN=1 makes one")
    compare(file, text)


def complaints(listing: str) -> list[str]:
    """What lspci, which printed ``listing``, could not decode or found wrong."""
    text = _OPAQUE.sub(r"\1", listing)
    return [line for line in text.splitlines() if any(word in line for word in _COMPLAINTS)]


def unassigned(listing: str) -> str:
    """What lspci printed, without what the platform assigns."""
    text = listing.strip() + "\n"
    for pattern, word in _ASSIGNED:
        text = pattern.sub(word, text)
    return text
