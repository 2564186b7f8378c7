"""Sizes as people write them, as a property: ``4096``, ``512M``, ``10G``."""

from __future__ import annotations

import re
from typing import Final

from vdcm import Property, PropertyError

_UNITS: Final = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}
_SIZE: Final = re.compile(r"([0-9]{1,19})([KMGT]?)(?:i?B)?", re.IGNORECASE)
LARGEST: Final = 1 << 62


def parse_size(value: object) -> int:
    """Bytes of ``value``, a whole number or text such as ``64M`` (units of 1024).

    ValueError, with what is taken instead, for anything else.
    """
    if type(value) is int:
        size = value
    else:
        match = _SIZE.fullmatch(value.strip()) if isinstance(value, str) else None
        if match is None:
            found = repr(value)
            raise ValueError(f"a size such as 4096, 512M or 10G, not {found[:40]}")
        size = int(match[1]) << _UNITS[match[2].upper()]
    if not 0 <= size <= LARGEST:
        raise ValueError(f"a size up to {LARGEST >> 40}T, not {str(value)[:40]}")
    return size


def say_size(size: int) -> str:
    """``size`` bytes with the largest unit that leaves no fraction."""
    for unit in "TGMK":
        shift = _UNITS[unit]
        if size and size % (1 << shift) == 0:
            return f"{size >> shift}{unit}"
    return str(size)


class Size(Property[str]):
    """A property that is a size. ``parse_size`` gives its value's bytes.

    ``unit``: it is a multiple of so many bytes. ``least``: at least so many; where the default is
    empty, so may be the value.
    """

    def __init__(self, default: str, *, unit: int = 1, least: int = 0, doc: str) -> None:
        super().__init__(default, live=False, doc=doc)
        self.unit = unit
        self.least = least

    def check(self, value: object) -> None:
        if value == "" == self.default:
            return
        try:
            size = parse_size(value)
        except ValueError as error:
            raise PropertyError(f"{self.name} takes {error}") from None
        if size % self.unit:
            raise PropertyError(f"{self.name} takes a multiple of {self.unit}, not {size}")
        if size < self.least:
            least = say_size(self.least)
            raise PropertyError(f"{self.name} takes {least} or more, not {say_size(size)}")
