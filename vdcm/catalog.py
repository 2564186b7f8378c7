"""What types of VDEV there are, for people and scripts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from vdcm.definition import ParentDefinition, type_properties
from vdcm.parent import Parent, VdevType
from vdcm.properties import Property, properties_of


def describe_types(parents: Iterable[ParentDefinition]) -> list[dict[str, Any]]:
    """The types of ``parents``, JSON-able, sorted by type and parent."""
    found = [_describe(parent, kind) for parent in parents for kind in parent.factory.types]
    return sorted(found, key=lambda each: (each["type"], each["parent"]))


def _describe(parent: ParentDefinition, kind: str) -> dict[str, Any]:
    composed = parent.factory.types[kind]
    doc = composed.doc if isinstance(composed, VdevType) else ""
    doc = doc or parent.factory.vdev_model(kind).__doc__ or ""
    known = type_properties(parent, kind)
    return {
        "type": kind,
        "parent": parent.name,
        "model": parent.model,
        "doc": doc.strip().partition("\n")[0],
        "properties": [describe_property(name, one) for name, one in known.items()],
    }


def describe_parent(definition: ParentDefinition, parent: Parent) -> dict[str, Any]:
    """A parent, JSON-able: its types, its properties with their values, and its host driver's
    account of what it has and what is in use, null if it has no ADIs."""
    return {
        "name": definition.name,
        "model": definition.model,
        "types": sorted(definition.factory.types),
        "properties": [
            {**describe_property(name, one), "value": getattr(parent, name)}
            for name, one in properties_of(definition.factory).items()
        ],
        "driver": parent.driver.describe() if parent.driver is not None else None,
    }


def describe_property(name: str, one: Property[Any]) -> dict[str, Any]:
    return {
        "name": name,
        "kind": type(one.default).__name__,
        "default": one.default,
        "minimum": one.minimum if type(one.default) is int else None,
        "maximum": one.maximum,
        "choices": list(one.choices),
        "live": one.live,
        "doc": one.doc,
    }
