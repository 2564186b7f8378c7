"""Parents: what VDEVs are composed from, and how models are found.

A device model is a ``Parent`` subclass, registered under the entry-point group ``vdcm.devices``.
vdcm itself knows none by name, so a model outside this repository works like the ones inside.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Any, ClassVar, Final

from vdcm.errors import DeclarationError, VdcmError
from vdcm.properties import PropertyError, properties_of
from vdcm.vdev import Vdev

GROUP: Final = "vdcm.devices"


class Parent:
    """One parent device. ``types`` names the kinds of VDEV that it composes.

    A parent's own properties are class attributes (``Property``), as a VDEV's are.
    """

    types: ClassVar[Mapping[str, type[Vdev]]] = {}

    def __init__(self, name: str) -> None:
        self.name: Final = name

    def create(self, type_name: str, name: str, properties: Mapping[str, Any]) -> Vdev:
        """A VDEV called ``name``, with ``properties`` set; VdcmError for an unknown type."""
        try:
            model = self.types[type_name]
        except KeyError:
            known = ", ".join(sorted(self.types))
            raise VdcmError(f"{self.name} has no type {type_name} (known: {known})") from None
        vdev = model(name)
        try:
            set_properties(vdev, properties)
        except BaseException:
            vdev.close()
            raise
        return vdev


def set_properties(owner: Vdev | Parent, properties: Mapping[str, Any]) -> None:
    """Set properties by name; PropertyError for an unknown one or a wrong value, none set then."""
    known = properties_of(type(owner))
    for name, value in properties.items():
        if name not in known:
            names = ", ".join(sorted(known)) or "none"
            raise PropertyError(f"{owner.name} has no property {name} (known: {names})")
        known[name].check(value)
    for name, value in properties.items():
        setattr(owner, name, value)


def models() -> dict[str, type[Parent]]:
    """All installed device models by name. Raises DeclarationError for one that does not load."""
    found: dict[str, type[Parent]] = {}
    for entry in entry_points(group=GROUP):
        try:
            model = entry.load()
        except Exception as error:
            raise DeclarationError(
                f"device model {entry.name} ({entry.value}) does not load: {error}"
            ) from error
        if not (isinstance(model, type) and issubclass(model, Parent)):
            raise DeclarationError(
                f"device model {entry.name} ({entry.value}) is no subclass of vdcm.Parent"
            )
        found[entry.name] = model
    return found
