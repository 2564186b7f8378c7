"""The arguments with which QEMU or libvirt attaches VDEVs.

Guest RAM must be shared memory: the server maps it to carry out DMA.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Final
from xml.sax.saxutils import quoteattr

from vdcm.errors import VdcmError

_SIZE: Final = re.compile(r"[1-9][0-9]*[MGT]")


def check_memory(text: str) -> str:
    """``text`` if it is a size that QEMU takes for guest RAM, as 512M; else VdcmError."""
    size = text.upper()
    if not _SIZE.fullmatch(size):
        raise VdcmError(f"{text!r} is no memory size: write a whole number and M, G or T, as 512M")
    return size


def device(path: Path) -> str:
    """The value of ``-device`` for the VDEV behind a socket: JSON, as QEMU >= 10.1 takes it."""
    option = {"driver": "vfio-user-pci", "socket": {"path": str(path), "type": "unix"}}
    return json.dumps(option, separators=(",", ":"), ensure_ascii=False)


def device_add(path: Path, bus: str) -> str:
    """The QMP command that plugs the VDEV behind a socket into ``bus``, a root port.

    Its id, by which ``device_del`` takes it out, is ``vdev-`` and the name of the socket's file.
    """
    arguments = {
        "driver": "vfio-user-pci",
        "id": "vdev-" + re.sub(r"[^A-Za-z0-9._-]", "-", path.stem),
        "bus": bus,
        "socket": {"path": str(path), "type": "unix"},
    }
    return json.dumps({"execute": "device_add", "arguments": arguments}, ensure_ascii=False)


def arguments(sockets: Sequence[Path], memory: str = "1G") -> list[str]:
    """The argument vector: machine and shared memory of size ``memory``, one -device per socket."""
    size = check_memory(memory)
    vector = ["-machine", "q35,memory-backend=mem", "-m", size]
    vector += ["-object", f"memory-backend-memfd,id=mem,size={size},share=on"]
    for path in sockets:
        vector += ["-device", device(path)]
    return vector


def shell(vector: Sequence[str]) -> str:
    """An argument vector as lines that can be pasted into a shell, option and value on each."""
    pairs = zip(vector[::2], vector[1::2], strict=True)
    return " \\\n".join(f"{option} {shlex.quote(value)}" for option, value in pairs)


def libvirt(sockets: Sequence[Path]) -> str:
    """What to add to a libvirt domain: shared memory, and the devices as arguments to QEMU.

    The namespace belongs into the <domain> element (libvirt, "QEMU command-line passthrough"). The
    size of the memory is the domain's own.
    """
    args = "\n".join(
        f"    <qemu:arg value={quoteattr(text)}/>"
        for path in sockets
        for text in ("-device", device(path))
    )
    return f"""\
<domain type='kvm' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <memoryBacking>
    <source type='memfd'/>
    <access mode='shared'/>
  </memoryBacking>
  <qemu:commandline>
{args}
  </qemu:commandline>
</domain>"""
