"""pciutils, which did not come from us, decodes the configuration space without complaint."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from vdcm.pci import (
    Ats,
    BarKind,
    BarLayout,
    Capability,
    ConfigSpace,
    DeviceSerialNumber,
    Dvsec,
    Identity,
    MaskableMsi,
    Msi,
    MsiX,
    Pasid,
    PciExpress,
    PowerManagement,
    Pri,
    ScalableIov,
    VendorSpecific,
    VendorSpecificExtended,
)

pytestmark = pytest.mark.skipif(
    shutil.which("lspci") is None, reason="lspci is not installed: apt-get install pciutils"
)

BARS = [BarLayout(0, 0x10000, BarKind.MEMORY64_PREFETCHABLE), BarLayout(2, 64, BarKind.IO)]


def decoded(config: ConfigSpace, folder: Path) -> str:
    dump = folder / "dump"
    dump.write_text(config.lspci_dump())
    result = subprocess.run(
        ["lspci", "-F", str(dump), "-vvv"], capture_output=True, text=True, timeout=20, check=True
    )
    # lspci has no decoder for what vendors define, and says so for every such capability.
    opaque = r"(Vendor Specific Information|Designated Vendor-Specific): .*"
    text = re.sub(rf"({opaque}) <\?>$", r"\1", result.stdout, flags=re.MULTILINE)
    for complaint in ("!!!", "<?>", "access denied", "nknown", "Chain looped", "reserved"):
        assert complaint not in text, text
    return text


@pytest.mark.conformance("R2.8-2")
def test_every_capability_is_decoded(tmp_path: Path) -> None:
    config = ConfigSpace(
        Identity(0x8086, 0x0B25, 0x088000, 1, 0x8086, 0x42),
        bars=BARS,
        capabilities=[
            PowerManagement(),
            PciExpress(),
            MaskableMsi(4),
            MsiX(16, table_bar=0, table_offset=0x1000, pba_bar=0, pba_offset=0x2008),
            VendorSpecific(b"hello"),
            DeviceSerialNumber(0x0123456789ABCDEF),
            Dvsec(0x8086, 0x23, 1, b"abc"),
            VendorSpecificExtended(7, 1, b"wxyz"),
            ScalableIov(),
            Pasid(20, execute=True, privileged=False),
            Ats(invalidate_depth=9, page_aligned=False),
            Pri(64),
        ],
        intx=True,
    )
    config.space.write(0x4, 2, 0x7)
    config.space.write(0x10, 8, 0x0000_0004_0000_0000)
    config.space.write(0x18, 4, 0xC000)
    text = decoded(config, tmp_path)
    for line in (
        "Power Management version 3",
        "Status: D0 NoSoftRst+",
        "Express (v2) Endpoint",
        "FLReset+",
        "LnkCap:\tPort #0, Speed 2.5GT/s, Width x1, ASPM not supported",
        "LnkSta:\tSpeed 2.5GT/s, Width x1",
        "MSI: Enable- Count=1/4 Maskable+ 64bit+",
        "MSI-X: Enable- Count=16 Masked-",
        "Vector table: BAR=0 offset=00001000",
        "PBA: BAR=0 offset=00002008",
        "Vendor Specific Information: Len=08",
        "Device Serial Number 01-23-45-67-89-ab-cd-ef",
        "Designated Vendor-Specific: Vendor=8086 ID=0023 Rev=1 Len=13",
        "Vendor Specific Information: ID=0007 Rev=1 Len=00c",
        "Designated Vendor-Specific: Vendor=8086 ID=0005 Rev=0 Len=24",
        "ExtFmt+ EETLPPrefix+, MaxEETLPPrefixes 1",
        "PASIDCap: Exec+ Priv-, Max PASID Width: 14",
        "PASIDCtl: Enable- Exec- Priv-",
        "ATSCap:\tInvalidate Queue Depth: 09",
        "ATSCtl:\tEnable-, Smallest Translation Unit: 00",
        "PRICtl: Enable- Reset-",
        "PRISta: RF- UPRGI- Stopped+",
        "Page Request Capacity: 00000040, Page Request Allocation: 00000000",
        "Region 0: Memory at 400000000 (64-bit, prefetchable)",
        "Region 2: I/O ports at c000",
        "I/O+ Mem+ BusMaster+",
        "Interrupt: pin A",
        "(rev 01)",
    ):
        assert line in text, text


@pytest.mark.parametrize(
    ("capabilities", "lines"),
    [
        ([], ["Cap-"]),
        ([PowerManagement(), PciExpress(integrated=True)], ["Root Complex Integrated Endpoint"]),
        ([PciExpress(flr=False), Msi(32)], ["FLReset-", "Count=1/32 Maskable- 64bit+"]),
        ([PciExpress(), DeviceSerialNumber(1)], ["[100 v1] Device Serial Number"]),
    ],
)
def test_other_compositions_are_decoded(
    capabilities: list[Capability], lines: list[str], tmp_path: Path
) -> None:
    config = ConfigSpace(Identity(0x1234, 0x11E8, 0xFF0000), capabilities=capabilities)
    text = decoded(config, tmp_path)
    for line in lines:
        assert line in text, text
