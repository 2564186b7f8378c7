"""What a definition holds and what each field may be; the JSON form of a VDEV's.

    {"uuid": "83b8f4f2-509f-382f-3c1e-e6bfe0fa1001", "name": "gpio0", "type": "pcie-idio-16",
     "parents": ["idio16"], "auto": true, "socket": "/run/vdcm/gpio0.sock",
     "properties": {"inputs": 255}}

Only ``type`` has to be there. A function here raises VdcmError for the first mistake it finds.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from uuid import UUID, uuid4

from vdcm.definition.places import runtime_folder
from vdcm.errors import VdcmError
from vdcm.parent import Parent, installed_since
from vdcm.properties import Property, PropertyError, properties_of

PATH_LIMIT: Final = 107
"""Bytes of a UNIX socket's path without its NUL (``struct sockaddr_un``, unix(7))."""
CHOICES: Final = 20
"""Names that a message lists at most."""

_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,63}")
_KEYS: Final = ("uuid", "name", "type", "parent", "parents", "auto", "socket", "properties")
_SAID: Final = ("state", "origin", "reason")
"""What ``vdcm list --json`` adds; not part of a definition."""


@dataclass(frozen=True)
class ParentDefinition:
    """A parent to create: ``model`` by its entry point's name, ``factory`` its class.

    ``implicit``: nobody asked for it, it is there because its model is installed.
    """

    name: str
    model: str
    factory: type[Parent]
    properties: Mapping[str, Any] = field(default_factory=dict)
    implicit: bool = False


@dataclass(frozen=True)
class VdevDefinition:
    """A VDEV to create. ``type`` is one of the first parent's; the further ``parents`` are where
    ADIs come from when that has none free (Scalable IOV, 4.4). ``socket`` None: the default.

    ``auto``: started with the server.
    """

    uuid: str
    name: str
    type: str
    parents: tuple[str, ...]
    socket: Path | None = None
    auto: bool = False
    properties: Mapping[str, Any] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        """The path of the socket."""
        return self.socket or default_socket(self.name)

    def to_json(self) -> dict[str, Any]:
        """What ``vdev_from_json`` takes."""
        return {
            "uuid": self.uuid,
            "name": self.name,
            "type": self.type,
            "parents": list(self.parents),
            "auto": self.auto,
            "socket": str(self.path),
            "properties": dict(self.properties),
        }


@dataclass(frozen=True)
class Definition:
    """What a server begins with: every name in it resolves, every property has a legal value."""

    file: Path | None
    parents: tuple[ParentDefinition, ...]
    vdevs: tuple[VdevDefinition, ...]
    control: Path


def meant(word: str, known: Iterable[str]) -> str:
    """The one of ``known`` that ``word`` is a slip of the pen for; "" if none."""
    cutoff = 0.65 if len(word) == 3 else 0.7  # of three letters one may be wrong
    return "".join(difflib.get_close_matches(word, sorted(known), n=1, cutoff=cutoff))


def choices(word: str, known: Iterable[str]) -> str:
    """``(known: a, b)``, with the likely one first if ``word`` looks like a slip of the pen."""
    names = sorted(known)
    near = meant(word, names)
    hint = f"did you mean {near}? " if near else ""
    more = f" and {len(names) - CHOICES} more" if len(names) > CHOICES else ""
    return f"({hint}known: {', '.join(names[:CHOICES]) or 'none'}{more})"


def implicit_parents(
    installed: Mapping[str, type[Parent]], given: Iterable[ParentDefinition] = ()
) -> dict[str, ParentDefinition]:
    """All parents there are, by name: ``given``, and for each model without one, one of its name.

    A model whose name a parent of another model has gets none.
    """
    parents = {parent.name: parent for parent in given}
    served = {parent.model for parent in parents.values()}
    for model, factory in installed.items():
        if model not in served and model not in parents:
            parents[model] = ParentDefinition(model, model, factory, implicit=True)
    return parents


def default_socket(name: str) -> Path:
    """The socket of a VDEV that has none of its own."""
    return runtime_folder() / f"{name}.sock"


def check_name(text: str) -> str:
    """``text`` if it can be a name."""
    if not _NAME.fullmatch(text):
        raise VdcmError(
            f"{text[:80]!r} is no name: letters, digits, - and _ make one, 64 at most, "
            "the first is not -"
        )
    return text


def check_uuid(text: str) -> str:
    """``text`` as a UUID in lower case (RFC 9562, section 4)."""
    try:
        found = str(UUID(text))
    except ValueError:
        found = ""
    if found != text.lower():
        raise VdcmError(
            f"{text[:80]!r} is no UUID: 32 hexadecimal digits as 8-4-4-4-12; "
            "without one a new one is made"
        )
    return found


def check_socket(path: Path) -> Path:
    """``path`` if the kernel takes it for a socket."""
    if "\0" in str(path):
        raise VdcmError("a path has no NUL in it")
    try:
        length = len(os.fsencode(path))
    except UnicodeEncodeError:
        raise VdcmError(f"{str(path)[:80]!r} is no path: it is not Unicode") from None
    if length > PATH_LIMIT:
        raise VdcmError(
            f"the socket's path {str(path)[:PATH_LIMIT]} has {length} bytes, the kernel takes "
            f"{PATH_LIMIT}: set socket: to a shorter one"
        )
    return path


def check_parents(names: Sequence[str], known: Mapping[str, ParentDefinition]) -> tuple[str, ...]:
    """``names`` if each is a parent's, and none is there twice."""
    for name in names:
        if name not in known:
            raise VdcmError(f"unknown parent {name[:80]} {choices(name, known)}{installed_since()}")
        if names.count(name) > 1:
            raise VdcmError(f"parent {name} is here twice")
    return tuple(names)


def check_type(kind: str, parent: ParentDefinition) -> str:
    """``kind`` if it is a type of ``parent``."""
    if kind not in parent.factory.types:
        hint = choices(kind, parent.factory.types)
        raise VdcmError(f"parent {parent.name} has no type {kind[:80]} {hint}")
    return kind


def default_parent(name: str, kind: str, known: Mapping[str, ParentDefinition]) -> str:
    """The one parent that has VDEVs of type ``kind``, for VDEV ``name``, which says none."""
    able = sorted(p.name for p in known.values() if kind in p.factory.types)
    if not able:
        kinds = {kind for parent in known.values() for kind in parent.factory.types}
        raise VdcmError(f"unknown type {kind[:80]} {choices(kind, kinds)}{installed_since()}")
    if len(able) > 1:
        raise VdcmError(
            f"several parents have the type {kind}: give VDEV {name} a parent, {' or '.join(able)}"
        )
    return able[0]


def type_properties(parent: ParentDefinition, kind: str) -> Mapping[str, Property[Any]]:
    """The properties of a VDEV of type ``kind``, which is one of ``parent``'s."""
    return properties_of(parent.factory.vdev_model(kind))


def property_values(
    known: Mapping[str, Property[Any]], values: Mapping[str, object], whose: str
) -> dict[str, Any]:
    """``values``, text read as on a command line; PropertyError if ``whose`` takes them not."""
    parsed: dict[str, Any] = {}
    for key, value in values.items():
        if key not in known:
            raise PropertyError(f"{whose} has no property {key[:80]} {choices(key, known)}")
        if isinstance(value, str):
            parsed[key] = known[key].parse(value)
        else:
            known[key].check(value)
            parsed[key] = value
    return parsed


def vdev_from_json(
    given: Mapping[str, object], known: Mapping[str, ParentDefinition]
) -> VdevDefinition:
    """The definition that JSON (of the form above) stands for; a missing uuid is made.

    ``parent`` may be said instead of ``parents``; what ``vdcm list --json`` adds is passed over.
    """
    for key in given:
        if key not in _KEYS and key not in _SAID:
            raise VdcmError(f"a definition has no {key[:80]} {choices(key, _KEYS)}")
    uuid = check_uuid(_text(given, "uuid")) if "uuid" in given else str(uuid4())
    name = check_name(_text(given, "name")) if "name" in given else uuid
    kind = _text(given, "type")
    parents = _parents(given, known) or (default_parent(name, kind, known),)
    check_type(kind, known[parents[0]])
    auto = given.get("auto", False)
    if not isinstance(auto, bool):
        raise VdcmError("auto is true or false")
    socket = None
    if "socket" in given:
        socket = Path(_text(given, "socket"))
        if not socket.is_absolute():
            raise VdcmError(
                f"socket takes the whole path, beginning with /, not {str(socket)[:80]}"
            )
        socket = None if socket == default_socket(name) else check_socket(socket)
    check_socket(socket or default_socket(name))
    properties = given.get("properties", {})
    if not isinstance(properties, dict):
        raise VdcmError("properties is a JSON object, of property to value")
    values = property_values(type_properties(known[parents[0]], kind), properties, f"type {kind}")
    return VdevDefinition(uuid, name, kind, parents, socket, auto, values)


def _parents(given: Mapping[str, object], known: Mapping[str, ParentDefinition]) -> tuple[str, ...]:
    if "parents" not in given:
        return check_parents([_text(given, "parent")], known) if "parent" in given else ()
    if "parent" in given:
        raise VdcmError("parent and parents say the same: one of them")
    names = given["parents"]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise VdcmError("parents is a list of names of parents")
    return check_parents(names, known)


def _text(given: Mapping[str, object], key: str) -> str:
    value = given.get(key)
    if not isinstance(value, str) or not value:
        what = "is missing" if value is None else "is text, and not empty"
        raise VdcmError(f"{key} {what}: a definition needs at least a type")
    return value
