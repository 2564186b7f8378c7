"""pciutils in the guest decodes each device as the golden files say; the bytes do not depend on its
version."""

from __future__ import annotations

import re

import pytest

from tests.guest import golden
from tests.guest.lab import Lab

DEVICES = ("idio16", "showcase")
_BYTES = re.compile(r"^[0-9a-f]{2,3}:(?: [0-9a-f]{2}){16}$", re.M)


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


@pytest.mark.parametrize("device", DEVICES)
def test_every_capability_is_decoded_without_complaint(lab: Lab, device: str) -> None:
    dump = lab.dumps[device]
    assert len(_BYTES.findall(dump)) == 256, "the guest does not see all of 4096 bytes"
    assert not golden.complaints(dump)


@pytest.mark.conformance("R2.8-2")
@pytest.mark.parametrize("device", DEVICES)
def test_bytes_are_those_of_the_golden_file(lab: Lab, device: str) -> None:
    golden.compare(f"{device}.hex", hexadecimal(lab.dumps[device]))


@pytest.mark.parametrize("device", DEVICES)
def test_decoded_text_is_that_of_the_golden_file(lab: Lab, device: str) -> None:
    version = lab.machine.check("lspci --version").split()[-1]
    text = golden.unassigned(_BYTES.sub("", lab.dumps[device]))
    golden.compare_version(device, "lspci", version, text)


def test_the_dump_is_what_the_server_has(lab: Lab) -> None:
    """The vendor's capabilities, which lspci does not decode, arrived byte for byte."""
    text = bytes.fromhex(
        "".join(line.split(": ")[1] for line in _BYTES.findall(lab.dumps["showcase"]))
    )
    for data in (b"showcase", b"extended", b"designated"):
        assert data in text
