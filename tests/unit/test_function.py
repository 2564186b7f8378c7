"""A parent's own function: what its host driver asks of it and sets in it."""

from __future__ import annotations

import logging

import pytest

from vdcm.errors import DeclarationError, StateError
from vdcm.function import ParentFunction
from vdcm.pci import Ats, Capability, Identity, Pasid, Pri, ScalableIov

IDENTITY = Identity(0x8086, 0x0B25, 0x088000)


def function(*capabilities: Capability, ims: bool = True) -> ParentFunction:
    siov = ScalableIov(page_sizes=3, ims=ims)
    return ParentFunction("dsa0", IDENTITY, [siov, Pasid(), *capabilities])


def test_nothing_is_enabled_at_first() -> None:
    parent = function()
    assert not parent.pasid_enabled
    assert not parent.memory_enabled
    assert parent.system_page_size == 4096
    assert parent.ims_supported
    assert not function(ims=False).ims_supported


@pytest.mark.conformance("R2.2-3", "R2.8-3")
def test_pasid_and_memory_are_enabled_where_software_would() -> None:
    parent = function(Ats(), Pri(16))
    parent.enable()
    assert parent.pasid_enabled
    assert parent.config.space.read(parent.pasid.offset + 6, 2) == 1
    assert parent.memory_enabled
    assert parent.config.space.read(0x4, 2) == 0x6


def test_pasid_cannot_be_enabled_after_ats() -> None:
    ats = Ats()
    parent = function(ats)
    parent.config.space.write(ats.offset + 6, 2, 0x8000)
    with pytest.raises(StateError, match="dsa0: PASID cannot be enabled after ATS"):
        parent.enable()


@pytest.mark.conformance("R2.8-16", "R2.8-17")
def test_system_page_size_is_what_was_written_before_memory_space(
    caplog: pytest.LogCaptureFixture,
) -> None:
    parent = function()
    parent.config.space.write(parent.siov.offset + 0x10, 4, 2)
    assert parent.system_page_size == 8192
    parent.enable()
    with caplog.at_level(logging.WARNING, "vdcm.function"):
        parent.config.space.write(parent.siov.offset + 0x10, 4, 1)
    assert parent.system_page_size == 8192
    assert "dsa0: refused: System Page Size 0x1" in caplog.text


@pytest.mark.conformance("R2.7-10")
def test_function_level_reset_disables_everything() -> None:
    parent = function()
    parent.enable()
    parent.reset()
    assert not parent.pasid_enabled
    assert not parent.memory_enabled


@pytest.mark.conformance("R2.2-2", "R2.8-1")
@pytest.mark.parametrize("capability", [ScalableIov, Pasid])
def test_a_function_with_adis_has_both_capabilities(capability: type[Capability]) -> None:
    with pytest.raises(DeclarationError, match="dsa0: a function with ADIs has"):
        ParentFunction("dsa0", IDENTITY, [capability()])
