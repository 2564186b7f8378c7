"""A map's values: the device's view of its registers, and one guest access to one of them."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from typing import Any, ClassVar, NamedTuple

from vdcm.errors import DeclarationError, VdcmError
from vdcm.registers.declaration import Field, Masks, Register


class RegisterError(VdcmError, ValueError):
    """A value, an access width or a saved state does not fit the declared registers."""


class Element(NamedTuple):
    """One register of a map, or one element of an array, at a byte offset in the map."""

    offset: int
    register: Register
    position: int | None  # in its array
    slot: int  # position of its value in the map's list of values


_WRITTEN: list[Element | None] = [None]
"""The register whose handler runs now: what it changes, the guest's write has changed."""


@cache
def _methods(owner: type, prefix: str) -> tuple[str, ...]:
    """Names of its methods, which every instance of a model would look up again for each map."""
    return tuple(name for name in dir(owner) if name.startswith(prefix))


class BoundRegister:
    """A register of one map instance, from the device's side: no access rules, no handlers.

    ``.value`` is the whole register, ``.FIELD`` a field; both can be set and refuse what does not
    fit (RegisterError). An array is indexed first.
    """

    __slots__ = ("_index", "_map", "_register", "_slot")

    _map: RegisterMap
    _register: Register
    _index: int | None
    _slot: int

    def __init__(self, owner: RegisterMap, register: Register, index: int | None) -> None:
        put = object.__setattr__  # our own __setattr__ knows fields only
        put(self, "_map", owner)
        put(self, "_register", register)
        put(self, "_index", index)
        put(self, "_slot", owner._first_slot[register.name] + (index or 0))

    def __len__(self) -> int:
        return self._register.count or 1

    def __getitem__(self, index: int) -> BoundRegister:
        if self._register.count is None or self._index is not None:
            raise TypeError(f"{self!r} is not an array")
        if not 0 <= index < self._register.count:
            raise IndexError(f"{self!r} has elements 0 to {self._register.count - 1}, not {index}")
        return BoundRegister(self._map, self._register, index)

    def __iter__(self) -> Iterator[BoundRegister]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        return f"{type(self._map).__name__}.{self._register.label(self._index)}"

    def _one(self) -> int:
        if self._index is None and self._register.count is not None:
            raise TypeError(f"{self!r} is an array: index it first")
        return self._slot

    @property
    def value(self) -> int:
        return self._map._values[self._one()]

    @value.setter
    def value(self, value: int) -> None:
        if not 0 <= value <= self._register.full:
            width = self._register.width
            raise RegisterError(f"{self!r}: {value:#x} does not fit in {width} bits")
        self._map._put(self._one(), int(value))

    def __getattr__(self, name: str) -> int:
        field = self._field(name)
        return (self.value & field.mask) >> field.lsb

    def __setattr__(self, name: str, value: int) -> None:
        if name == "value":
            object.__setattr__(self, name, value)
            return
        self.value = self._with(self.value, name, value)

    def _field(self, name: str) -> Field:
        try:
            return self._register.fields[name]
        except KeyError:
            known = ", ".join(self._register.fields) or "none"
            raise AttributeError(f"{self!r} has no field {name} (known: {known})") from None

    def _with(self, whole: int, name: str, value: int) -> int:
        field = self._field(name)
        if not 0 <= value < 1 << field.width:
            raise RegisterError(f"{self!r}.{name}: {value:#x} does not fit in {field.width} bits")
        return whole & ~field.mask | value << field.lsb

    def preset(self, value: int | None = None, /, **fields: int) -> None:
        """Set this instance's reset value, whole or by field, and its value now.

        For what hardware takes from straps or fuses: identities, sizes, what is supported.
        """
        whole = self._map._resets[self._one()] if value is None else value
        for name, part in fields.items():
            whole = self._with(whole, name, part)
        self.value = whole
        self._map._resets[self._slot] = whole
        if self._map._changes is not None:
            self._map._changes.pop(self._slot, None)

    def narrow(self, writable: int) -> None:
        """Make the bits outside ``writable`` read-only on this instance, before it is placed."""
        if self._map._placed:
            raise DeclarationError(f"{self!r}: narrow a register before its map is placed")
        masks = self._map._masks[self._one()]
        self._map._masks[self._slot] = masks._replace(
            rw=masks.rw & writable, w1c=masks.w1c & writable, wo=masks.wo & writable
        )

    def lock(self, bits: int | None = None) -> None:
        """Make ``bits`` (default: all) read-only for the guest until they are locked no more: by a
        lock of other bits, 0 for none, or by the map's reset.

        For what may be written at some times only, as the configuration of what is in use.
        """
        owner = self._map
        masks = owner._unlocked.setdefault(self._one(), owner._masks[self._slot])
        free = 0 if bits is None else ~bits
        owner._masks[self._slot] = masks._replace(
            rw=masks.rw & free, w1c=masks.w1c & free, wo=masks.wo & free
        )


class RegisterMap:
    """A block of registers: subclass it, with one ``Register`` per class attribute.

    ``size`` is the block's extent in bytes: the end of its last register, or what the class asks
    for (``class Foo(RegisterMap, size=0x40)``). A subclass inherits its bases' registers.
    Raises DeclarationError when a class is made that cannot be.

    An instance holds the values. Its handlers, ``on_read_NAME(self) -> int`` and
    ``on_write_NAME(self, value)`` (with ``index`` first for an array), are methods of ``owner`` or
    of the map itself. One that names no register is refused here, with DeclarationError. An owner
    that has handlers for other maps too names their classes in ``also``.
    """

    registers: ClassVar[Mapping[str, Register]] = {}
    """All registers by name, in ascending order of offset."""
    size: ClassVar[int] = 0

    _elements: ClassVar[Sequence[Element]] = ()  # by offset
    _by_slot: ClassVar[Sequence[Element]] = ()
    _offsets: ClassVar[Sequence[int]] = ()
    _first_slot: ClassVar[Mapping[str, int]] = {}
    _declared_masks: ClassVar[Sequence[Masks]] = ()  # by slot

    def __init_subclass__(cls, size: int | None = None) -> None:
        super().__init_subclass__()
        found: dict[str, Register] = {}
        for base in reversed(cls.__mro__):
            for name, value in vars(base).items():
                found.pop(name, None)
                if isinstance(value, Register):
                    found[name] = value
        elements: list[Element] = []
        first_slot: dict[str, int] = {}
        for name, register in found.items():
            if hasattr(RegisterMap, name) or name.startswith("_"):
                raise DeclarationError(f"{cls.__name__}: {name!r} cannot be a register's name")
            register.check(f"{cls.__name__}.{name}")
            for field in register.fields:
                if hasattr(BoundRegister, field):
                    raise DeclarationError(f"{cls.__name__}.{name}: no field can be called {field}")
            first_slot[name] = len(elements)
            for i in range(register.count or 1):
                index = None if register.count is None else i
                offset = register.offset + i * register.stride
                elements.append(Element(offset, register, index, len(elements)))
        cls._by_slot = tuple(elements)
        masks = {name: register.masks() for name, register in found.items()}
        cls._declared_masks = [masks[element.register.name] for element in elements]
        elements.sort(key=lambda element: element.offset)
        end = 0
        for previous, element in zip([None, *elements], elements, strict=False):
            if previous is not None and element.offset < end:
                raise DeclarationError(
                    f"{cls.__name__}.{element.register.label(element.position)} "
                    f"(bytes {element.offset:#x}:{element.offset + element.register.size - 1:#x}) "
                    f"overlaps {previous.register.label(previous.position)} "
                    f"(bytes {previous.offset:#x}:{end - 1:#x})"
                )
            end = element.offset + element.register.size
        if size is not None and size < end:
            raise DeclarationError(
                f"{cls.__name__}: size {size:#x} is less than its registers' end {end:#x}"
            )
        # A subclass keeps the extent that its base asked for.
        cls.size = max(end, size or 0, *(getattr(base, "size", 0) for base in cls.__bases__))
        cls.registers = dict(sorted(found.items(), key=lambda item: item[1].offset))
        cls._elements = elements
        cls._offsets = [element.offset for element in elements]
        cls._first_slot = first_slot

    def __init__(
        self, owner: object | None = None, *, also: Sequence[type[RegisterMap]] = ()
    ) -> None:
        self._placed = False
        self._resets = [element.register.reset for element in self._by_slot]
        self._masks = list(self._declared_masks)
        self._values = list(self._resets)
        self._unlocked: dict[int, Masks] = {}
        self._changes: dict[int, Element | None] | None = None  # by slot, since the last reset
        self._mirror: Callable[[int, int, int], None] | None = None
        self._on_read: dict[str, Callable[..., int]] = {}
        self._on_write: dict[str, Callable[..., None]] = {}
        self._bind(self, ())
        if owner is not None:
            self._bind(owner, also)

    def _bind(self, owner: object, also: Sequence[type[RegisterMap]]) -> None:
        """Find the handlers of ``owner``; a name that fits no register is a typing error."""
        kind: Any = type(owner)
        place = kind.__name__
        for prefix, handlers in (("on_read_", self._on_read), ("on_write_", self._on_write)):
            for method in _methods(kind, prefix):
                name = method.removeprefix(prefix)
                maps = [m.__name__ for m in (type(self), *also) if name in m.registers]
                if not maps:
                    known = [n for m in (type(self), *also) for n in m.registers]
                    near = difflib.get_close_matches(name, known, 1)
                    hint = f"; did you mean {prefix}{near[0]}?" if near else ""
                    searched = " or ".join(m.__name__ for m in (type(self), *also))
                    raise DeclarationError(
                        f"{place}.{method} names no register of {searched}{hint}"
                    )
                if len(maps) > 1 or name in handlers:
                    raise DeclarationError(
                        f"{place}.{method} is ambiguous: "
                        + (
                            f"{' and '.join(maps)} have such a register; give one another owner"
                            if len(maps) > 1
                            else f"{type(self).__name__} has that handler itself"
                        )
                    )
                if name in self.registers:
                    handlers[name] = getattr(owner, method)

    def __setattr__(self, name: str, value: object) -> None:
        if name in self.registers:
            raise AttributeError(f"set {type(self).__name__}.{name}.value, or one of its fields")
        super().__setattr__(name, value)

    def _bind_register(self, register: Register) -> BoundRegister:
        bound = BoundRegister(self, register, None)
        self.__dict__[register.name] = bound  # found before the descriptor from now on
        return bound

    # The device's side

    def reset(self, *, keep_sticky: bool = False) -> None:
        """Put every register to its reset value; sticky bits may be kept. Handlers do not run.

        What was locked is so no more.
        """
        for slot, masks in self._unlocked.items():
            self._masks[slot] = masks
        if keep_sticky:
            self._values[:] = [
                old & masks.sticky | reset & ~masks.sticky
                for old, reset, masks in zip(self._values, self._resets, self._masks, strict=True)
            ]
        else:
            self._values[:] = self._resets
        self._changes = None
        self._mirror_all()

    def save(self) -> dict[str, int | list[int]]:
        """All stored values, JSON-able: register name to value, or to an array's list of values."""
        state: dict[str, int | list[int]] = {}
        for name, register in self.registers.items():
            first = self._first_slot[name]
            if register.count is None:
                state[name] = self._values[first]
            else:
                state[name] = self._values[first : first + register.count]
        return state

    def restore(self, state: Mapping[str, object]) -> None:
        """Take the values that ``save`` gave. Handlers do not run.

        Raises RegisterError, with nothing changed, if a register is unknown or missing, or a value
        does not fit.
        """
        place = type(self).__name__
        same_keys(place, "register", state, self.registers)
        values = list(self._values)
        for name, register in self.registers.items():
            saved = state[name]
            given = [saved] if register.count is None else saved
            if not isinstance(given, list) or len(given) != (register.count or 1):
                raise RegisterError(f"{place}.{name}: a list of {register.count} values is needed")
            for i, value in enumerate(given):
                if type(value) is not int or not 0 <= value <= register.full:
                    label = register.label(None if register.count is None else i)
                    raise RegisterError(
                        f"{place}.{label}: {value!r} is no {register.width}-bit value"
                    )
                values[self._first_slot[name] + i] = value
        self._values[:] = values
        self._mirror_all()

    def dump(self) -> dict[str, object]:
        """Stored values for people and JSON: per register offset, value and decoded fields.

        An array gives a list. Nothing is read through handlers, so a dump has no side effects.
        """

        def one(register: Register, slot: int, offset: int) -> dict[str, object]:
            value = self._values[slot]
            entry: dict[str, object] = {"offset": offset, "value": value}
            if register.fields:
                entry["fields"] = {n: f.decode(value) for n, f in register.fields.items()}
            return entry

        result: dict[str, object] = {}
        for name, register in self.registers.items():
            first, start, step = self._first_slot[name], register.offset, register.stride
            if register.count is None:
                result[name] = one(register, first, start)
            else:
                result[name] = [
                    one(register, first + i, start + i * step) for i in range(register.count)
                ]
        return result

    @property
    def has_read_handlers(self) -> bool:
        """Reading it runs code, so what is stored is not what is read."""
        return bool(self._on_read)

    def mirror(self, sink: Callable[[int, int, int], None]) -> None:
        """Show the registers in memory: ``sink(offset, size, value)``, both in bytes, in the map.

        It is called for every register now and whenever one is stored, with the value that a guest
        would read if there were no handler.
        """
        self._mirror = sink
        self._mirror_all()

    def _put(self, slot: int, value: int) -> None:
        if self._values[slot] != value:
            self._values[slot] = value
            if self._changes is None:
                self._changes = {}
            self._changes[slot] = _WRITTEN[0]
        if self._mirror is not None:
            element = self._by_slot[slot]
            self._mirror(element.offset, element.register.size, value & self._masks[slot].readable)

    def _mirror_all(self) -> None:
        if self._mirror is not None:
            for slot, value in enumerate(self._values):
                self._put(slot, value)

    # The guest's side, used by RegisterSpace. ``covered`` has the bits that the access covers.

    def _read(self, element: Element, covered: int) -> int:
        _, register, index, slot = element
        masks = self._masks[slot]
        handler = self._on_read.get(register.name)
        if handler is None:
            value = self._values[slot]
        else:
            value = handler() if index is None else handler(index)
            if not 0 <= value <= register.full:
                raise RegisterError(
                    f"on_read_{register.name} of {type(self).__name__} returned {value:#x}, "
                    f"which does not fit in {register.width} bits"
                )
        if masks.rc & covered:
            self._put(slot, self._values[slot] & ~(masks.rc & covered))
        return value & masks.readable

    def _merged(self, slot: int, covered: int, data: int) -> int:
        masks = self._masks[slot]
        gone = masks.rw & covered | masks.w1c & covered & data | masks.wo
        return self._values[slot] & ~gone | data & covered & (masks.rw | masks.wo)

    def _write(self, element: Element, covered: int, data: int) -> None:
        _, register, index, slot = element
        value = self._merged(slot, covered, data)
        _WRITTEN[0] = element
        try:
            self._put(slot, value)
            handler = self._on_write.get(register.name)
            if handler is None:
                return
            if index is None:
                handler(value)
            else:
                handler(index, value)
        finally:
            _WRITTEN[0] = None

    def changed_by(self, element: Element) -> str:
        """What has changed a register last, in words."""
        name = element.register.label(element.position)
        if element.register.name in self._on_read:
            return f"on_read_{element.register.name} of the device model says what {name} is"
        if self._changes is None or element.slot not in self._changes:
            return f"{name} has not changed since the last reset"
        written = self._changes[element.slot]
        if written is None:
            return f"the device has changed {name} last, on its own"
        if written.slot == element.slot and written.register is element.register:
            return f"the guest's write of it has changed {name} last"
        by = written.register.label(written.position)
        return f"the device has changed {name} last when the guest wrote {by}"

    def _reader(self, element: Element) -> Callable[[], int]:
        """The quickest function that reads the whole register."""
        slot, register = element.slot, element.register
        masks = self._masks[slot]
        if register.name in self._on_read or masks.rc:
            return partial(self._read, element, register.full)
        values, readable = self._values, masks.readable
        return lambda: values[slot] & readable


def same_keys(
    place: str, what: str, given: Mapping[str, object], known: Mapping[str, object]
) -> None:
    for kind, names in (("unknown", given.keys() - known.keys()), ("no", known.keys() - given)):
        if names:
            raise RegisterError(f"{place}: {kind} {what} {', '.join(sorted(names))} in saved state")
