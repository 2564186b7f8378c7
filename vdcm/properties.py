"""Properties of a device model: what a definition file and the host side may set.

    class Card(Vdev):
        inputs = Property(0, maximum=0xFFFF, doc="Levels of inputs 0 to 15.")

        def on_set_inputs(self, value: int) -> None: ...    # after the value is in place

One declaration gives the key in the definition file, its check, ``vdcm set`` and ``vdcm show``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Generic, Self, TypeVar, overload

from vdcm.errors import DeclarationError, VdcmError

RESERVED: Final = frozenset(
    {"auto", "model", "name", "parent", "parents", "socket", "type", "uuid"}
)
"""Keys that stand beside the properties in a definition: none can be called so."""

Value = TypeVar("Value", int, str, bool)


class PropertyError(VdcmError, ValueError):
    """A value that a property does not take, or a property that there is not."""


class Property(Generic[Value]):
    """A named value of a device. Its type is the default's: int, str or bool.

    ``minimum`` and ``maximum`` bound an int, ``choices`` are all that a text may be. ``live`` says
    whether the host may set it while the device is being served. Setting raises PropertyError for
    a wrong type or range.
    """

    def __init__(
        self,
        default: Value,
        *,
        minimum: int = 0,
        maximum: int | None = None,
        choices: Sequence[str] = (),
        live: bool = True,
        doc: str = "",
    ) -> None:
        self.default: Value = default
        self.minimum = minimum
        self.maximum = maximum
        self.choices = choices
        self.live = live
        self.doc = doc
        self.name = ""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, instance: None, owner: type) -> Self: ...
    @overload
    def __get__(self, instance: object, owner: type) -> Value: ...
    def __get__(self, instance: object | None, owner: type) -> Self | Value:
        if instance is None:
            return self
        value: Value = instance.__dict__.get(self.name, self.default)
        return value

    def __set__(self, instance: object, value: Value) -> None:
        self.check(value)
        instance.__dict__[self.name] = value
        handler = getattr(instance, f"on_set_{self.name}", None)
        if handler is not None:
            handler(value)

    def check(self, value: object) -> None:
        """Raise PropertyError unless ``value`` could be set."""
        kind = type(self.default)
        if type(value) is not kind:
            found = "nothing" if value is None else _short(repr(value))
            raise PropertyError(f"{self.name} takes {_WORDS[kind]}, not {found}")
        if self.choices and value not in self.choices:
            found = _short(repr(value))
            raise PropertyError(f"{self.name} takes {' or '.join(self.choices)}, not {found}")
        if type(value) is not int:
            return
        if value < self.minimum or (self.maximum is not None and value > self.maximum):
            bounds = f"{number(self.minimum)} or more"
            if self.maximum is not None:
                bounds = f"{self.minimum} to {number(self.maximum)}"
            raise PropertyError(f"{self.name} takes {bounds}, not {_short(number(value))}")

    def outside(self, value: Value) -> bool:
        """Does ``value`` name something outside of this process, a file above all? What is there is
        not in a record of a session (vdcm.recording), and a replay does not touch it."""
        del value
        return False

    def parse(self, text: str) -> Value:
        """The value that ``text`` of a command line stands for; ints in any Python notation."""
        kind = type(self.default)
        value: object = text
        if kind is bool:
            value = {"true": True, "on": True, "false": False, "off": False}.get(text.lower(), text)
        elif kind is int:
            try:
                value = int(text, 0)
            except ValueError:
                value = text
        self.check(value)
        return value  # type: ignore[return-value]  # check() has made sure


def number(value: int) -> str:
    """As people read it: counts in decimal, bit masks in hexadecimal, so both where they differ."""
    if abs(value) < 10:
        return str(value)
    if value.bit_length() > 64:  # str() takes long for long ones, and refuses the longest
        return f"{value:#x}"
    return f"{value} ({value:#x})"


def _short(text: str) -> str:
    """What fits into a message: whoever sends a value chooses its length."""
    return text if len(text) <= 80 else f"{text[:80]}..."


_WORDS = {int: "a whole number", str: "text", bool: "true or false"}


class Configurable:
    """A class with properties. DeclarationError when one is made whose name is not free."""

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        for name in sorted(RESERVED.intersection(properties_of(cls))):
            raise DeclarationError(
                f"{cls.__name__}: a property cannot be called {name}, which a definition says of "
                "every VDEV or parent: choose another name"
            )


def properties_of(owner: type) -> Mapping[str, Property[Any]]:
    """All properties of a class, its bases' included, by name."""
    return {
        name: value
        for base in reversed(owner.__mro__)
        for name, value in vars(base).items()
        if isinstance(value, Property)
    }
