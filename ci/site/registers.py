"""Every register of an installed device model, from its declarations."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from vdcm import Access, Field, Parent, Property, Register, Vdev, VdevType
from vdcm.parent import build, models
from vdcm.properties import properties_of
from vdcm.registers import RegisterSpace


def page(model: str) -> str:
    """The page of an installed model: its types and properties, and the registers of the type
    that has most, configuration space included."""
    factory = models()[model]
    parent = build(factory, model, {})
    try:
        return "\n\n".join(_parts(model, parent)) + "\n"
    finally:
        parent.close()


def _parts(model: str, parent: Parent) -> Iterator[str]:
    yield f"# Registers of {model}"
    yield _text(parent)
    kinds = parent.types
    rows = [[f"`{kind}`", _doc(parent, kind)] for kind in kinds]
    yield table(["type", "a VDEV of it is"], rows)
    yield from _properties("Properties of the parent", properties_of(type(parent)))
    made = {kind: parent.create(kind, "vdev", {}) for kind in kinds}
    try:
        largest = max(made, key=lambda kind: sum(_sizes(made[kind])))
        vdev = made[largest]
        yield from _properties("Properties of a VDEV", properties_of(type(vdev)))
        yield (
            f"What follows is a VDEV of type `{largest}` as it is made. Bits that no field covers "
            "are reserved: they read 0 and ignore writes, unless the register says otherwise."
        )
        yield table(["access", "means"], [[f"`{one.name}`", one.value] for one in Access])
        for bar in vdev.bars.values():
            yield f"## BAR{bar.index}"
            kind = bar.layout.kind.name.lower().replace("_", ", ")
            yield f"{bar.size:#x} bytes, {kind}."
            if bar.pages:
                pages = [
                    [f"`{one.offset:#x}`", f"`{one.size:#x}`", one.policy.value]
                    for one in bar.pages
                ]
                yield "Pages that are not intercepted:"
                yield table(["offset", "bytes", "policy"], pages)
            yield from _space(bar.space, f"BAR{bar.index}")
        yield "## Configuration space"
        yield from _space(vdev.config.space, "config")
    finally:
        for one in made.values():
            one.close()


def _sizes(vdev: Vdev) -> Iterator[int]:
    for bar in vdev.bars.values():
        for _, registers, _ in bar.space.placed():
            yield from (register.count or 1 for register in registers.registers.values())


def _doc(parent: Parent, kind: str) -> str:
    found = parent.types[kind]
    doc = found.doc if isinstance(found, VdevType) else ""
    return doc or _text(parent.vdev_model(kind)).partition("\n")[0]


def _properties(title: str, properties: Mapping[str, Property[Any]]) -> Iterator[str]:
    if properties:
        yield f"## {title}"
        rows = [
            [f"`{name}`", f"`{one.default!r}`", _limits(one), "yes" if one.live else "no", one.doc]
            for name, one in properties.items()
        ]
        yield table(["name", "default", "values", "while served", "what"], rows)


def _limits(one: Property[Any]) -> str:
    if one.choices:
        return ", ".join(f"`{choice}`" for choice in one.choices)
    if type(one.default) is not int:
        return type(one.default).__name__
    return f"{one.minimum} to {one.maximum}" if one.maximum is not None else f"from {one.minimum}"


def _space(space: RegisterSpace, place: str) -> Iterator[str]:
    """A table of all registers, then one of the fields of each that has some."""
    found = [
        (base + register.offset, prefix, register, values[register.name])
        for base, registers, prefix in space.placed()
        for values in [registers.save()]
        for register in registers.registers.values()
    ]
    rows = [
        [_offset(at, one), f"`{prefix}{_name(one)}`", str(one.width), _access(one),
         _value(value), one.doc]
        for at, prefix, one, value in found
    ]  # fmt: skip
    yield table(["offset", "register", "bits", "access", "reset", "what"], rows)
    for at, prefix, one, value in found:
        if one.fields:
            yield f"### {place}+{at:#x} {prefix}{_name(one)}"
            yield one.doc or "Its fields:"
            fields = [
                [_bits(field), f"`{name}`", (field.access or one.access).name,
                 _value(_of_field(field, value)), _values(field), field.doc]
                for name, field in one.fields.items()
            ]  # fmt: skip
            yield table(["bits", "field", "access", "reset", "values", "what"], fields)


def _name(register: Register) -> str:
    if register.count is None:
        return register.name
    return f"{register.name}[0..{register.count - 1}]"


def _offset(at: int, register: Register) -> str:
    each = f" + {register.stride:#x}·i" if (register.count or 1) > 1 else ""
    return f"`{at:#x}{each}`"


def _access(register: Register) -> str:
    """That of the register, or those of its fields."""
    kinds = [field.access or register.access for field in register.fields.values()]
    if register.reserved is not Access.RO:
        kinds.append(register.reserved)
    said = ", ".join(dict.fromkeys(kind.name for kind in kinds or [register.access]))
    notes = ["whole only"] * register.whole + ["sticky"] * register.sticky
    return "; ".join([said, *notes])


def _of_field(field: Field, value: object) -> object:
    if isinstance(value, int):
        return (value & field.mask) >> field.lsb
    assert isinstance(value, list)  # RegisterMap.save: an array's values
    return [(one & field.mask) >> field.lsb for one in value]


def _value(value: object) -> str:
    """A number; of an array those of its elements, unless they are one and the same."""
    values = value if isinstance(value, list) else [value]
    return f"`{values[0]:#x}`" if len(set(values)) == 1 else "one for each"


def _bits(field: Field) -> str:
    high = field.lsb + field.width - 1
    return str(high) if field.width == 1 else f"{high}:{field.lsb}"


def _values(field: Field) -> str:
    if field.values is None:
        return ""
    if isinstance(field.values, Mapping):
        pairs: Iterable[tuple[int, str]] = field.values.items()
    else:
        pairs = [(member.value, member.name) for member in field.values]
    return ", ".join(f"{number:#x} {name}" for number, name in pairs)


def _text(described: object) -> str:
    return inspect.cleandoc(described.__doc__ or "")


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown; no cell ends it."""
    lines = [heads, ["---"] * len(heads), *rows]
    cells = ([cell.replace("|", r"\|").replace("\n", " ") for cell in line] for line in lines)
    return "\n".join("| " + " | ".join(line) + " |" for line in cells)
