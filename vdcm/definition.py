"""Definition files: YAML to checked definitions; every mistake is said with its place.

    parents:                        # optional
      card0: {model: idio16}        # and the parent's own properties
    vdevs:
      gpio0:
        type: pcie-idio-16          # a type of the parent's model
        parent: card0               # optional: else a parent named as the one model with this type
        socket: gpio0.sock          # optional, relative to this file; else in the runtime folder
        inputs: 0x00ff              # the type's own properties
    control: control.sock           # optional, relative to this file; else in the runtime folder

The file is read as a tree of nodes (``yaml.compose``), never as Python objects: nodes know their
lines, and an alias stays one node however often it is used.
"""

from __future__ import annotations

import difflib
import os
import re
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml
from yaml.constructor import SafeConstructor
from yaml.nodes import MappingNode, Node, ScalarNode

from vdcm.errors import DefinitionError
from vdcm.parent import Parent, models
from vdcm.properties import Property, PropertyError, properties_of
from vdcm.vdev import Vdev

FILE_LIMIT: Final = 256 * 1024
"""Bytes of the longest definition file."""
ENTRY_LIMIT: Final = 10_000
"""Keys of all mappings together, a mapping that is used twice by an alias counted twice."""
PATH_LIMIT: Final = 107
"""Bytes of a UNIX socket's path without its NUL (``struct sockaddr_un``, unix(7))."""

_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,63}")


@dataclass(frozen=True)
class ParentDefinition:
    """A parent to create: ``model`` by its entry point's name, ``factory`` its class."""

    name: str
    model: str
    factory: type[Parent]
    properties: Mapping[str, Any]


@dataclass(frozen=True)
class VdevDefinition:
    """A VDEV to create: ``parent`` is one of the definition's parents, ``socket`` is absolute."""

    name: str
    type: str
    parent: str
    socket: Path
    properties: Mapping[str, Any]


@dataclass(frozen=True)
class Definition:
    """A definition file, checked: every name in it resolves, every property has a legal value."""

    file: Path
    parents: tuple[ParentDefinition, ...]
    vdevs: tuple[VdevDefinition, ...]
    control: Path


def runtime_folder() -> Path:
    """Where sockets go that have no path of their own; it need not exist.

    ``$XDG_RUNTIME_DIR/vdcm``, else ``/run/vdcm`` for root, else ``vdcm-UID`` in the temporary
    folder. A relative XDG_RUNTIME_DIR is ignored (XDG base directory specification).
    """
    base = Path(os.environ.get("XDG_RUNTIME_DIR", ""))
    if base.is_absolute():
        return base / "vdcm"
    if os.geteuid() == 0:
        return Path("/run/vdcm")
    return Path(tempfile.gettempdir()) / f"vdcm-{os.geteuid()}"


def control_path() -> Path:
    """The control socket of a server whose definition names none."""
    return runtime_folder() / "control.sock"


def choices(word: str, known: Iterable[str]) -> str:
    """``(known: a, b)``, with the likely one first if ``word`` looks like a slip of the pen."""
    names = sorted(known)
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.7)
    meant = f"did you mean {near[0]}? " if near else ""
    return f"({meant}known: {', '.join(names) or 'none'})"


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
            f"is not YAML: {' '.join(words).rstrip()}",
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
        self.entries = 0

    def wrong(self, node: Node, message: str) -> None:
        mark = node.start_mark
        problem = (mark.line + 1, mark.column + 1, message)
        if problem not in self.problems:
            self.problems.append(problem)

    def read(self, root: Node) -> Definition:
        keys = self.mapping(root, "a definition file")
        self.expect(keys, ("parents", "vdevs", "control"), "key")
        control = self.socket(keys, "control", "the control socket", root, control_path())
        if "parents" in keys:
            for key, node in self.named(keys["parents"][1], "parents"):
                self.parent(key, node)
        vdevs = []
        if "vdevs" in keys:
            named = self.named(keys["vdevs"][1], "vdevs")
            vdevs = [self.vdev(key, node) for key, node in named]
            if not vdevs and not self.problems:
                self.wrong(keys["vdevs"][0], "vdevs has no VDEV: add NAME: {type: TYPE}")
        elif not self.problems:
            self.wrong(root, "vdevs is missing: add vdevs: {NAME: {type: TYPE}}")
        return Definition(
            self.file,
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
            if _NAME.fullmatch(key.value):
                entries.append((key, value))
            else:
                self.wrong(
                    key,
                    f"{key.value[:80]!r} is no name: letters, digits, - and _ make one, "
                    "64 at most, the first is not -",
                )
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
        """The socket's path that ``keys`` give under ``key``, or the default, checked."""
        word = self.word(keys.get(key), "the path of a socket")
        node, path = (word[0], self.folder / word[1]) if word else (owner_node, default)
        if "\0" in str(path):
            self.wrong(node, "a path has no NUL in it")
        else:
            self.place(node, path, owner)
        return path

    def place(self, node: Node, path: Path, owner: str) -> None:
        """Check a socket's path: its length, and that nobody else of this file has it."""
        length = len(os.fsencode(path))
        if length > PATH_LIMIT:
            self.wrong(
                node,
                f"the socket's path {path} has {length} bytes, the kernel takes {PATH_LIMIT}: "
                "set socket: to a shorter one",
            )
        real = Path(os.path.realpath(path))
        if real in self.sockets:
            self.wrong(node, f"{owner} has the same socket as {self.sockets[real]}: {path}")
        self.sockets.setdefault(real, owner)

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
        properties = self.properties(keys, ("model",), factory, f"model {word[1]}")
        self.parents[key.value] = ParentDefinition(key.value, word[1], factory, properties)

    def vdev(self, key: ScalarNode, node: Node) -> VdevDefinition | None:
        name = key.value
        keys = self.mapping(node, f"VDEV {name}")
        socket = self.socket(keys, "socket", name, key, runtime_folder() / f"{name}.sock")
        word = self.word(keys.get("type"), "the name of a type")
        if word is None:
            if isinstance(node, MappingNode) and "type" not in keys:
                known = {kind for model in self.installed.values() for kind in model.types}
                self.wrong(key, f"VDEV {name} needs a type {choices('', known)}")
            return None
        parent = self.parent_of(name, keys.get("parent"), *word)
        if parent is None:
            return None
        kind = parent.factory.vdev_model(word[1])
        reserved = ("type", "parent", "socket")
        properties = self.properties(keys, reserved, kind, f"type {word[1]}")
        return VdevDefinition(name, word[1], parent.name, socket, properties)

    def parent_of(
        self, name: str, entry: tuple[ScalarNode, Node] | None, node: Node, kind: str
    ) -> ParentDefinition | None:
        """The parent of a VDEV of type ``kind``, which it has."""
        if entry is not None:
            word = self.word(entry, "the name of a parent")
            if word is None or (word[1] in self.refused and word[1] not in self.parents):
                return None
            if word[1] not in self.parents:
                self.wrong(word[0], f"unknown parent {word[1]} {choices(word[1], self.parents)}")
                return None
            parent = self.parents[word[1]]
            if kind not in parent.factory.types:
                hint = choices(kind, parent.factory.types)
                self.wrong(node, f"parent {parent.name} has no type {kind} {hint}")
                return None
            return parent
        able = [model for model, factory in self.installed.items() if kind in factory.types]
        if not able:
            known = {kind for model in self.installed.values() for kind in model.types}
            self.wrong(node, f"unknown type {kind} {choices(kind, known)}")
            return None
        if len(able) > 1:
            self.wrong(
                node,
                f"several models have the type {kind}: give VDEV {name} a parent, "
                f"of model {' or '.join(sorted(able))}",
            )
            return None
        model = able[0]
        implicit = ParentDefinition(model, model, self.installed[model], {})
        parent = self.parents.setdefault(model, implicit)
        if parent.model != model:
            self.wrong(
                node,
                f"VDEV {name} needs a parent of model {model}, and the parent of that name is of "
                f"model {parent.model}: give VDEV {name} a parent",
            )
            return None
        return parent

    def properties(
        self,
        keys: _Keys,
        reserved: tuple[str, ...],
        owner: type[Parent] | type[Vdev],
        what: str,
    ) -> dict[str, Any]:
        known = properties_of(owner)
        mine = {text: entry for text, entry in keys.items() if text not in reserved}
        self.expect(mine, [*reserved, *known], f"key of {what}:")
        values = {}
        for text, (_, node) in mine.items():
            if text in known:
                try:
                    values[text] = _value(known[text], node)
                except PropertyError as error:
                    self.wrong(node, str(error))
        return values


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
