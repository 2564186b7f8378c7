"""The arguments that attach VDEVs, taken apart by the programs they are for."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vdcm.errors import VdcmError
from vdcm.qemu_args import arguments, check_memory, libvirt, shell

SOCKETS = [Path("/run/vdcm/a.sock"), Path('/tmp/it\'s, "odd" <&>/é.sock')]


def test_arguments() -> None:
    vector = arguments([Path("/run/vdcm/a.sock")], "2g")
    assert vector == [
        "-machine",
        "q35,memory-backend=mem",
        "-m",
        "2G",
        "-object",
        "memory-backend-memfd,id=mem,size=2G,share=on",
        "-device",
        '{"driver":"vfio-user-pci","socket":{"path":"/run/vdcm/a.sock","type":"unix"}}',
    ]


# What may stand in a path; a surrogate cannot come from a definition file, which is UTF-8.
PATHS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1)


@given(PATHS)
def test_a_shell_gives_the_arguments_back(path: str) -> None:
    vector = arguments([Path(path)])
    text = shell(vector)
    assert shlex.split(text.replace(" \\\n-", " -")) == vector


def test_a_line_each() -> None:
    lines = shell(arguments(SOCKETS)).splitlines()
    assert len(lines) == 5
    assert all(line.startswith("-") for line in lines)
    assert [line.endswith(" \\") for line in lines] == [True] * 4 + [False]


def test_libvirt() -> None:
    domain = ElementTree.fromstring(libvirt(SOCKETS))
    namespace = {"qemu": "http://libvirt.org/schemas/domain/qemu/1.0"}
    values = [arg.attrib["value"] for arg in domain.findall("qemu:commandline/qemu:arg", namespace)]
    assert values[::2] == ["-device", "-device"]
    assert [json.loads(value)["socket"]["path"] for value in values[1::2]] == list(
        map(str, SOCKETS)
    )
    source, access = domain.find("memoryBacking/source"), domain.find("memoryBacking/access")
    assert source is not None and source.attrib == {"type": "memfd"}
    assert access is not None and access.attrib == {"mode": "shared"}


@pytest.mark.parametrize("size", ["512M", "1G", "2t"])
def test_memory_sizes(size: str) -> None:
    assert check_memory(size) == size.upper()


@pytest.mark.parametrize(
    "size", ["", "1", "0G", "1.5G", "1G,share=off", "1GB", "-1G", "1G\n", "\uff11G"]
)
def test_wrong_memory_sizes(size: str) -> None:
    with pytest.raises(VdcmError, match="no memory size"):
        check_memory(size)
