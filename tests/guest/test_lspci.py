"""pciutils in the guest decodes each device as the golden files say.

The decoded text depends on the version of pciutils, so that has a file for each; the bytes do not.
``VDCM_UPDATE_GOLDEN=1`` writes what the guest shows now.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from tests.guest.lab import Lab

GOLDEN = Path(__file__).parents[1] / "golden"
DEVICES = ("idio16", "showcase")
# lspci has no decoder for what vendors define, and says so for every such capability.
_OPAQUE = re.compile(
    r"((?:Vendor Specific Information|Designated Vendor-Specific): .*) <\?>$", re.M
)
_BYTES = re.compile(r"^[0-9a-f]{2,3}:(?: [0-9a-f]{2}){16}$", re.M)
# What the platform assigns: addresses of the device and its regions, slot and interrupt numbers.
_ASSIGNED = (
    (re.compile(r"^[0-9a-f:.]+ (?=\S)", re.M), "BUS:DEV.F "),
    (re.compile(r"(?<=Memory at )[0-9a-f]+"), "ADDRESS"),
    (re.compile(r"(?<=I/O ports at )[0-9a-f]+"), "ADDRESS"),
    (re.compile(r"(?<=routed to IRQ )\d+"), "N"),
    (re.compile(r"(?<=Physical Slot: )\S+"), "N"),
)


def decoded(dump: str) -> str:
    """The text that lspci made, without what the platform assigns."""
    text = _BYTES.sub("", dump).strip() + "\n"
    for pattern, word in _ASSIGNED:
        text = pattern.sub(word, text)
    return text


def hexadecimal(dump: str) -> str:
    """The bytes that are not all zero, 16 a line, without BAR addresses and interrupt line."""
    lines = []
    for line in _BYTES.findall(dump):
        offset, *values = line.replace(":", "").split()
        at = int(offset, 16)
        for i in range(16):
            # The low byte of a BAR tells its kind.
            if (0x10 <= at + i < 0x28 and (at + i) % 4) or at + i == 0x3C:
                values[i] = "--"
        if set(values) != {"00"}:
            lines.append(f"{at:03x}: {' '.join(values)}\n")
    return "".join(lines)


def compare(file: Path, text: str) -> None:
    if os.environ.get("VDCM_UPDATE_GOLDEN"):
        file.write_text(text)
    assert text == file.read_text(), f"{file.name}: VDCM_UPDATE_GOLDEN=1 takes what there is now"


@pytest.mark.parametrize("device", DEVICES)
def test_every_capability_is_decoded_without_complaint(lab: Lab, device: str) -> None:
    dump = lab.dumps[device]
    assert len(_BYTES.findall(dump)) == 256, "the guest does not see all of 4096 bytes"
    text = _OPAQUE.sub(r"\1", dump)
    for complaint in ("!!!", "<?>", "access denied", "Chain looped", "reserved"):
        assert complaint not in text, text


@pytest.mark.conformance("R2.8-2")
@pytest.mark.parametrize("device", DEVICES)
def test_bytes_are_those_of_the_golden_file(lab: Lab, device: str) -> None:
    compare(GOLDEN / f"{device}.hex", hexadecimal(lab.dumps[device]))


@pytest.mark.parametrize("device", DEVICES)
def test_decoded_text_is_that_of_the_golden_file(lab: Lab, device: str) -> None:
    version = lab.machine.check("lspci --version").split()[-1]
    file = GOLDEN / f"{device}.lspci-{version}.txt"
    if not file.exists() and not os.environ.get("VDCM_UPDATE_GOLDEN"):
        pytest.skip(f"no golden file for pciutils {version}: VDCM_UPDATE_GOLDEN=1 makes one")
    compare(file, decoded(lab.dumps[device]))


def test_the_dump_is_what_the_server_has(lab: Lab) -> None:
    """The vendor's capabilities, which lspci does not decode, arrived byte for byte."""
    text = bytes.fromhex(
        "".join(line.split(": ")[1] for line in _BYTES.findall(lab.dumps["showcase"]))
    )
    for data in (b"showcase", b"extended", b"designated"):
        assert data in text
