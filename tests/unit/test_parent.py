"""Parents: creating VDEVs, setting properties, and finding models."""

from __future__ import annotations

import re
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

import pytest
from small_model import House, Lamp

import vdcm.parent
from vdcm import Parent, PropertyError, VdcmError
from vdcm.definition import implicit_parents
from vdcm.definition.checked import default_parent
from vdcm.errors import DeclarationError
from vdcm.parent import GROUP, build, installed_since, models, set_properties
from vdcm.pasid import PASIDS
from vdcm_devices.idio16 import Idio16Card


def test_a_parent_creates_what_it_names() -> None:
    vdev = House("home").create("lamp", "lamp0", {"level": 0x10, "label": "porch"})
    assert vdev.name == "lamp0"
    assert vdev.describe()["properties"] == {
        "level": 0x10,
        "label": "porch",
        "lit": False,
        "wiring": 1,
    }
    vdev.close()


def test_an_unknown_type_is_refused_with_the_known_ones() -> None:
    with pytest.raises(VdcmError, match=r"home has no type lump \(known: broken-lamp, lamp\)"):
        House("home").create("lump", "lamp0", {})
    with pytest.raises(VdcmError, match="known: "):
        Parent("none").create("lamp", "lamp0", {})


@pytest.mark.parametrize("properties", [{"level": 0x100}, {"colour": 1}, {"level": 0xEE}])
def test_a_vdev_that_cannot_be_made_leaves_no_pasid(properties: dict[str, int]) -> None:
    """0xee is a value that the model itself fails on."""
    before = len(PASIDS)
    with pytest.raises((PropertyError, RuntimeError)):
        House("home").create("lamp", "lamp0", properties)
    assert len(PASIDS) == before


class Half(Lamp):
    """One that fails when it is half made, with a close() that expects it whole."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        raise RuntimeError("no wire")

    def close(self) -> None:
        self.wire.cut()  # type: ignore[attr-defined]
        super().close()


def test_a_vdev_that_is_half_made_leaves_no_pasid() -> None:
    before = len(PASIDS)
    with pytest.raises(RuntimeError, match="no wire"):
        build(Half, "half", {})
    assert len(PASIDS) == before


def test_properties_are_set_all_or_none() -> None:
    house = House("home")
    set_properties(house, {"storeys": 2})
    with pytest.raises(PropertyError, match=r"home has no property rooms \(known: storeys\)"):
        set_properties(house, {"storeys": 3, "rooms": 1})
    with pytest.raises(PropertyError, match="storeys takes"):
        set_properties(house, {"storeys": 99})
    assert house.storeys == 2
    with pytest.raises(PropertyError, match="known: none"):
        set_properties(Parent("bare"), {"storeys": 3})


@pytest.mark.conformance("R4.2-4")
def test_the_installed_models_are_found() -> None:
    assert models()["idio16"] is Idio16Card


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("no.such.module:Thing", "model odd .* does not load"),
        ("small_model:Missing", "model odd .* does not load"),
        ("small_model:Lamp", "is no subclass of vdcm.Parent"),
        ("small_model:HOUSE", "is no subclass of vdcm.Parent"),
    ],
)
def test_a_model_that_is_none_is_named(
    monkeypatch: pytest.MonkeyPatch, value: str, message: str
) -> None:
    def found(group: str) -> list[EntryPoint]:
        return [EntryPoint("odd", value, group)]

    monkeypatch.setattr(vdcm.parent, "entry_points", found)
    with pytest.raises(DeclarationError, match=message):
        models()
    assert GROUP == "vdcm.devices"


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("import vdcm\nvdcm.Access.R0\n", "slip.py:2: AttributeError: "),
        ("x = (\n", "slip.py:1: '(' was never closed"),
        ("from vdcm import Barr\n", "slip.py:1: ImportError: cannot import name 'Barr'"),
        (
            "from vdcm import Register, RegisterMap\n\n"
            "class Registers(RegisterMap):\n"
            "    A = Register(0, 32)\n"
            "    B = Register(2, 16)\n",
            "slip.py:3: Registers.B (bytes 0x2:0x3) overlaps A",
        ),
    ],
)
def test_a_model_that_does_not_load_has_the_place(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: str, said: str
) -> None:
    (tmp_path / "slip.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(
        vdcm.parent, "entry_points", lambda group: [EntryPoint("slip", "slip:Slip", group)]
    )
    with pytest.raises(DeclarationError, match=re.escape(f"does not load: {tmp_path}/{said}")):
        models()


def test_a_model_that_is_installed_later_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    known = models()
    assert installed_since() == installed_since(known) == ""

    def found(group: str) -> list[EntryPoint]:
        return [*entry_points(group=group), EntryPoint("later", "small_model:House", group)]

    monkeypatch.setattr(vdcm.parent, "entry_points", found)
    for hint in (installed_since(), installed_since(known)):
        assert hint == "; installed since the server started: later: restart it"
    with pytest.raises(VdcmError, match=r"unknown type attic .*later: restart it"):
        default_parent("a", "attic", implicit_parents(known))
