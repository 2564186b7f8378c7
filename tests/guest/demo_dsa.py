"""The demo's second device: a software DSA, composed of ADIs and driven from user space."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from dsa_client import INTERRUPT, OPERATIONS, DsaClient

from vdcm.testing import Server
from vdcm_devices.dsa.registers import MSIX_PERMISSIONS

SIZE = 1 << 20  # bytes that are moved
Say = Callable[[str, str], None]
Expect = Callable[[str, object, object], None]
VDEVS = {
    "dsa0": {"type": "dsa-2dwq-1swq", "portals": "direct"},
    "dsa1": {"type": "dsa-1swq", "weight": 32},
}
SUCCESS = 1
GUEST_PASID = 0x51


def show_composition(server: Server, say: Say) -> None:
    for name in VDEVS:
        shown = server.show(name)
        say("vdcm", f"{name} is a {shown['type']}: PCI {shown['pci_id']}, PASID {shown['pasid']}")
        for adi in shown["adis"]:
            say("vdcm", f"  {adi['name']}: weight {adi['weight']}, {adi['state']}")


def show_work(server: Server, say: Say, expect: Expect) -> None:
    """The same work through direct portals of one VDEV and intercepted ones of the other."""
    data = os.urandom(SIZE)
    crcs = []
    # A shared work queue needs a PASID in the work (2.3); the client has bound one of its own.
    for name, pasid, portals in (("dsa0", 0, "direct"), ("dsa1", GUEST_PASID, "intercepted")):
        with DsaClient(Path(server.socket(name))) as dsa:
            dsa.start(pasid=GUEST_PASID)
            dsa.enable_interrupts()
            if pasid:  # who names it may use interrupt 1
                dsa.write(MSIX_PERMISSIONS + 8, pasid << 12 | 1 << 3)
            source, target = dsa.memory.put(data, 4096), dsa.memory.take(SIZE, 4096)
            for _ in range(2):  # the first finds the sweep napping, and pages not touched yet
                begin = time.perf_counter()
                move = dsa.run(
                    0,
                    OPERATIONS["MEMORY_MOVE"],
                    source=source,
                    destination=target,
                    size=SIZE,
                    pasid=pasid,
                )
                took = time.perf_counter() - begin
            crc = dsa.run(
                0,
                OPERATIONS["CRC"],
                INTERRUPT,
                source=target,
                size=SIZE,
                handle=1,
                pasid=pasid,
            )
            dsa.events[1].wait(timeout=10.0)
            expect(f"{name}: statuses", (move.status, crc.status), (SUCCESS, SUCCESS))
            expect(f"{name}: bytes moved", dsa.memory.read(target, SIZE) == data, True)
            crcs.append(crc.specific[:4].hex())
        say(
            "vdcm",
            f"{name}, {portals} portal: {SIZE >> 20} MiB moved in {took * 1e3:.2f} ms, every byte "
            f"right; CRC {crcs[-1]}, and its interrupt came",
        )
    expect("the CRC by both paths", crcs[0], crcs[1])
