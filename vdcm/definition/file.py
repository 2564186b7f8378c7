"""Definition files: YAML to checked definitions; every mistake is said with its place.

    parents:                        # optional: a model without one has one of its own name
      card0: {model: idio16}        # and the parent's own properties
    vdevs:
      gpio0:
        type: pcie-idio-16          # a type of the parent's model
        parent: card0               # optional: else the one parent with this type
        socket: gpio0.sock          # optional, relative to this file; else in the runtime folder
        auto: true                  # optional: started with the server, as they are by default
        inputs: 0x00ff              # the type's own properties
    control: control.sock           # optional, relative to this file; else in the runtime folder

``parents: [dsa0, dsa1]`` says further ones, from which ADIs come when the first has none free.
``uuid:`` is optional too; without it a VDEV has one that follows from the file's path and its name.

The file is read as a tree of nodes (``yaml.compose``), never as Python objects: nodes know their
lines, and an alias stays one node however often it is used.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar
from uuid import NAMESPACE_URL, uuid5

import yaml
from yaml.constructor import SafeConstructor
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from vdcm.definition.checked import (
    Definition,
    ParentDefinition,
    VdevDefinition,
    check_name,
    check_parents,
    check_socket,
    check_type,
    check_uuid,
    choices,
    default_parent,
    default_socket,
    implicit_parents,
    meant,
    type_properties,
)
from vdcm.definition.places import control_path
from vdcm.errors import DefinitionError, VdcmError
from vdcm.parent import Parent, models
from vdcm.properties import Property, PropertyError, properties_of

FILE_LIMIT: Final = 256 * 1024
"""Bytes of the longest definition file."""
ENTRY_LIMIT: Final = 10_000
"""Keys of all mappings together, a mapping that is used twice by an alias counted twice."""

_HINTS: Final = {
    "mapping values are not allowed here": ": is there a space after each colon, here and above?",
    "found character '\\t'": ": indent with spaces",
}
"""What YAML's author may have meant, by what the parser says."""
_VDEV_KEYS: Final = ("type", "parent", "parents", "socket", "uuid", "auto")
_Result = TypeVar("_Result")


def load(file: Path, installed: Mapping[str, type[Parent]] | None = None) -> Definition:
    """Read and check a definition file, against the ``installed`` models (default: ``models()``).

    Raises DefinitionError for a file that cannot be read or is wrong. It carries the place of the
    first mistake; its message has one line for each.
    """
    reader = _Reader(file, models() if installed is None else installed)
    definition = reader.read(_parse(file))
    if reader.problems:
        first, *others = sorted(reader.problems)
        lines = [first[2], *(f"{file}:{line}: {message}" for line, _, message in others)]
        raise DefinitionError("\n".join(lines), file, first[0], first[1])
    return definition


def _parse(file: Path) -> Node:
    try:
        with file.open("rb") as stream:
            data = stream.read(FILE_LIMIT + 1)
    except OSError as error:
        raise DefinitionError(f"cannot be read: {error.strerror}", file, 1) from error
    if len(data) > FILE_LIMIT:
        raise DefinitionError(f"is longer than {FILE_LIMIT} bytes", file, 1)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DefinitionError(f"is not UTF-8: {error.reason}", file, line) from error
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise DefinitionError(
            f"has a character that YAML forbids: U+{ord(text[error.position]):04X}", file, line
        ) from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        words = [error.problem or "cannot be understood", error.context or ""]
        if words[1].startswith("expected"):  # what was expected, then "but found ..."
            words.reverse()
        raise DefinitionError(
            f"is not YAML: {' '.join(words).rstrip()}{_HINTS.get(words[0].split(' that ')[0], '')}",
            file,
            mark.line + 1 if mark else 1,
            mark.column + 1 if mark else 1,
        ) from error
    except RecursionError:
        raise DefinitionError("is nested too deeply", file, 1) from None
    if node is None:
        raise DefinitionError("is empty: it needs at least vdevs: {NAME: {type: TYPE}}", file, 1)
    return node


def _what(node: Node) -> str:
    """A node in words, for a message."""
    if isinstance(node, MappingNode):
        return "a mapping"
    if not isinstance(node, ScalarNode):
        return "a list"
    return "nothing" if node.tag.endswith(":null") else f"{node.value[:40]!r}"


_Keys = Mapping[str, tuple[ScalarNode, Node]]
"""Of a mapping: the text of each key, and its node and its value's."""


class _Reader:
    """One reading of one file. Mistakes are collected; what is wrong is left out and read past."""

    def __init__(self, file: Path, installed: Mapping[str, type[Parent]]) -> None:
        self.file = file
        self.folder = Path.cwd() / file.parent
        self.installed = installed
        self.problems: list[tuple[int, int, str]] = []
        self.parents: dict[str, ParentDefinition] = {}
        self.refused: set[str] = set()  # parents that are there but wrong: said once, not twice
        self.sockets: dict[Path, str] = {}
        self.uuids: dict[str, str] = {}
        self.entries = 0

    def wrong(self, node: Node, message: str) -> None:
        mark = node.start_mark
        problem = (mark.line + 1, mark.column + 1, message)
        if problem not in self.problems:
            self.problems.append(problem)

    def checked(
        self, node: Node, check: Callable[..., _Result], *arguments: object
    ) -> _Result | None:
        """What ``check`` returns; None, and a mistake at ``node``, if it raises."""
        try:
            return check(*arguments)
        except VdcmError as error:
            self.wrong(node, str(error))
            return None

    def read(self, root: Node) -> Definition:
        keys = self.mapping(root, "a definition file")
        self.expect(keys, ("parents", "vdevs", "control"), "key")
        control = self.socket(keys, "control", "the control socket", root, control_path())
        if "parents" in keys:
            for key, node in self.named(keys["parents"][1], "parents"):
                self.parent(key, node)
        self.parents = implicit_parents(self.installed, self.parents.values())
        vdevs = []
        if "vdevs" in keys:
            named = self.named(keys["vdevs"][1], "vdevs")
            vdevs = [self.vdev(key, node) for key, node in named]
            if not vdevs and not self.problems:
                self.wrong(keys["vdevs"][0], "vdevs has no VDEV: add NAME: {type: TYPE}")
        return Definition(
            self.file.absolute(),
            tuple(self.parents.values()),
            tuple(vdev for vdev in vdevs if vdev is not None),
            control,
        )

    def mapping(self, node: Node, what: str) -> dict[str, tuple[ScalarNode, Node]]:
        """Key text to (key, value); duplicate and other unusable keys are mistakes."""
        found: dict[str, tuple[ScalarNode, Node]] = {}
        if not isinstance(node, MappingNode):
            self.wrong(node, f"{what} is a mapping (KEY: VALUE), not {_what(node)}")
            return found
        self.entries += len(node.value)
        if self.entries > ENTRY_LIMIT:
            mark = node.start_mark
            message = f"has more than {ENTRY_LIMIT} keys, counting what its aliases stand for"
            raise DefinitionError(message, self.file, mark.line + 1, mark.column + 1)
        for key, value in node.value:
            if not isinstance(key, ScalarNode):
                self.wrong(key, f"a key is a word, not {_what(key)}")
            elif key.value in found:
                line = found[key.value][0].start_mark.line + 1
                self.wrong(key, f"{key.value} is here twice, first in line {line}")
            else:
                found[key.value] = (key, value)
        return found

    def named(self, node: Node, what: str) -> list[tuple[ScalarNode, Node]]:
        """The entries of ``parents`` and ``vdevs``, those with an impossible name left out."""
        if isinstance(node, ScalarNode) and node.tag.endswith(":null"):
            return []
        entries = []
        for key, value in self.mapping(node, what).values():
            if self.checked(key, check_name, key.value):
                entries.append((key, value))
        return entries

    def expect(self, keys: _Keys, known: Iterable[str], what: str) -> None:
        for text, (key, _) in keys.items():
            if text not in known:
                self.wrong(key, f"unknown {what} {text[:80]} {choices(text, known)}")

    def word(self, entry: tuple[ScalarNode, Node] | None, what: str) -> tuple[Node, str] | None:
        """The text of a value that names something, as it is written in the file."""
        if entry is None:
            return None
        key, node = entry
        if isinstance(node, ScalarNode) and node.value and not node.tag.endswith(":null"):
            return node, node.value
        self.wrong(node, f"{key.value} takes {what}, not {_what(node)}")
        return None

    def socket(self, keys: _Keys, key: str, owner: str, owner_node: Node, default: Path) -> Path:
        """The socket's path that ``keys`` give under ``key``, or the default, checked: nobody else
        of this file may have it."""
        word = self.word(keys.get(key), "the path of a socket")
        node, path = (word[0], self.folder / word[1]) if word else (owner_node, default)
        if self.checked(node, check_socket, path):
            real = Path(os.path.realpath(path))
            if real in self.sockets:
                self.wrong(node, f"{owner} has the same socket as {self.sockets[real]}: {path}")
            self.sockets.setdefault(real, owner)
        return path

    def uuid(self, keys: _Keys, name: str) -> str:
        """A VDEV's UUID; nobody else of this file may have it."""
        word = self.word(keys.get("uuid"), "a UUID")
        if word is None:
            return str(uuid5(NAMESPACE_URL, f"{self.file.absolute().as_uri()}#{name}"))
        uuid = self.checked(word[0], check_uuid, word[1]) or ""
        if uuid in self.uuids:
            self.wrong(word[0], f"{name} has the same UUID as {self.uuids[uuid]}")
        self.uuids.setdefault(uuid, name)
        return uuid

    def parent(self, key: ScalarNode, node: Node) -> None:
        keys = self.mapping(node, f"parent {key.value}")
        self.refused.add(key.value)
        word = self.word(keys.get("model"), "the name of a model")
        if word is None:
            if isinstance(node, MappingNode) and "model" not in keys:
                known = choices("", self.installed)
                self.wrong(key, f"parent {key.value} needs a model {known}")
            return
        if word[1] not in self.installed:
            self.wrong(word[0], f"unknown model {word[1]} {choices(word[1], self.installed)}")
            return
        factory = self.installed[word[1]]
        properties = self.properties(keys, ("model",), properties_of(factory), f"model {word[1]}")
        self.parents[key.value] = ParentDefinition(key.value, word[1], factory, properties)
        self.refused.discard(key.value)

    def vdev(self, key: ScalarNode, node: Node) -> VdevDefinition | None:
        name = key.value
        keys = self.mapping(node, f"VDEV {name}")
        socket = self.socket(keys, "socket", name, key, default_socket(name))
        uuid = self.uuid(keys, name)
        auto = self.auto(keys)
        word = self.word(keys.get("type"), "the name of a type")
        if word is None:
            if isinstance(node, MappingNode) and "type" not in keys:
                slips = [
                    one for text, (one, _) in keys.items() if meant(text, _VDEV_KEYS) == "type"
                ]
                for slip in slips:
                    self.wrong(slip, f"unknown key {slip.value} (did you mean type?)")
                if not slips:
                    known = {kind for p in self.parents.values() for kind in p.factory.types}
                    self.wrong(key, f"VDEV {name} needs a type {choices('', known)}")
            return None
        parents = self.parents_of(name, keys, *word)
        if not parents:
            return None
        properties = self.properties(
            keys, _VDEV_KEYS, type_properties(self.parents[parents[0]], word[1]), f"type {word[1]}"
        )
        given = socket if "socket" in keys else None
        return VdevDefinition(uuid, name, word[1], parents, given, auto, properties)

    def auto(self, keys: _Keys) -> bool:
        if "auto" not in keys:
            return True
        known = Property(True)
        known.name = "auto"
        return self.checked(keys["auto"][1], _value, known, keys["auto"][1]) is not False

    def parents_of(self, name: str, keys: _Keys, node: Node, kind: str) -> tuple[str, ...] | None:
        """The parents of a VDEV of type ``kind``: the first has that type."""
        if "parent" in keys and "parents" in keys:
            self.wrong(keys["parents"][0], "parent and parents say the same: one of them")
            return None
        entry = keys.get("parent") or keys.get("parents")
        if entry is None:
            parent = self.checked(node, default_parent, name, kind, self.parents)
            return (parent,) if parent else None
        each = [entry[1]]
        if entry[0].value == "parents" and isinstance(entry[1], SequenceNode):
            each = entry[1].value
        words = [self.word((entry[0], one), "the name of a parent") for one in each]
        names = [word[1] for word in words if word is not None]
        if not names or len(names) < len(words) or self.refused.intersection(names):
            if not words:
                self.wrong(entry[1], "parents has no parent: leave it out, or name one")
            return None
        parents = self.checked(entry[1], check_parents, names, self.parents)
        if parents is None or not self.checked(node, check_type, kind, self.parents[parents[0]]):
            return None
        return parents

    def properties(
        self,
        keys: _Keys,
        reserved: tuple[str, ...],
        known: Mapping[str, Property[Any]],
        what: str,
    ) -> dict[str, Any]:
        mine = {text: entry for text, entry in keys.items() if text not in reserved}
        self.expect(mine, [*reserved, *known], f"key of {what}:")
        return {
            text: self.checked(node, _value, known[text], node)
            for text, (_, node) in mine.items()
            if text in known
        }


def _value(known: Property[Any], node: Node) -> Any:
    """The Python value of a scalar that ``known`` takes; PropertyError for any other node."""
    if not isinstance(node, ScalarNode):
        raise PropertyError(f"{known.name} takes one value, not {_what(node)}")
    value: object = node.value
    constructor = SafeConstructor()
    try:
        if node.tag == "tag:yaml.org,2002:int":
            value = constructor.construct_yaml_int(node)
        elif node.tag == "tag:yaml.org,2002:bool":
            value = constructor.construct_yaml_bool(node)
    except (ValueError, KeyError):
        raise PropertyError(f"{known.name}: {_what(node)} is no value") from None
    kind = node.tag.rpartition(":")[2]
    if kind == "null":
        known.check(None)
    if kind not in ("int", "bool", "str") or (kind == "str") != isinstance(value, str):
        raise PropertyError(f"{known.name} takes no {kind} such as {_what(node)}{_quote(known)}")
    try:
        known.check(value)
    except PropertyError as error:
        hint = _quote(known) if not isinstance(value, str) else ""
        raise PropertyError(f"{error}{hint}") from None
    return value


def _quote(known: Property[Any]) -> str:
    return ": write it in quotes" if isinstance(known.default, str) else ""
