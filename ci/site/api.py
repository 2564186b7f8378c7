"""The public names of Python, from their docstrings."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Final

import vdcm
import vdcm.client
import vdcm.testing

_TITLES: Final[Mapping[str, tuple[ModuleType, str]]] = {
    "vdcm": (vdcm, "Python: for device models"),
    "vdcm-client": (vdcm.client, "Python: the native client"),
    "vdcm-testing": (vdcm.testing, "Python: for tests"),
}


def pages() -> dict[str, str]:
    """The pages by name: one for each module that has names for others."""
    return {name: _page(module, title) for name, (module, title) in _TITLES.items()}


def _page(module: ModuleType, title: str) -> str:
    """All of ``__all__``, under the first lines of the modules that it comes from."""
    rooms: dict[str, list[str]] = {}
    for name in module.__all__:
        made_in: str = getattr(getattr(module, name), "__module__", "")
        ours = made_in.startswith("vdcm.")  # an alias of a type is not
        rooms.setdefault(_room(made_in) if ours else module.__name__, []).append(name)
    parts = [f"# {title}", f"Module `{module.__name__}`. {inspect.getdoc(module) or ''}"]
    for room, names in sorted(rooms.items()):
        if room != module.__name__:
            heading = inspect.cleandoc(sys.modules[room].__doc__ or room).partition("\n")[0]
            parts += [f"## {heading.rstrip('.')}"]
        parts += [_directive(module, name) for name in names]
    return "\n\n".join(parts) + "\n"


def _room(module: str) -> str:
    """A package of several modules is one room: ``vdcm.pci`` of ``vdcm.pci.header``."""
    parts = module.split(".")
    depth = 3 if parts[:2] == ["vdcm", "testing"] else 2
    return ".".join(parts[:depth])


def _directive(module: ModuleType, name: str) -> str:
    value = getattr(module, name)
    kind = "function" if inspect.isfunction(value) else "data"
    if inspect.isclass(value):
        kind = "exception" if issubclass(value, BaseException) else "class"
    members = "\n   :members:\n   :show-inheritance:" if kind in ("class", "exception") else ""
    return f"```{{eval-rst}}\n.. auto{kind}:: {module.__name__}.{name}{members}\n```"
