"""``python -m vdcm.testing serve``: ``vdcm serve`` with the control method ``inject``.

Only the server of a test has it: nobody breaks a device of ``vdcm serve``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vdcm.cli import main
from vdcm.control.methods import Method, Methods
from vdcm.errors import VdcmError
from vdcm.manager import Manager
from vdcm.testing.injector import Injector

METHODS = ("add", "hits", "clear", "raise_interrupt", "flip_memory")
_injectors: dict[str, Injector] = {}  # by the name of the VDEV


def injecting(manager: Manager) -> Mapping[str, Method]:
    """``inject``: call a method of a VDEV's Injector."""

    def inject(name: str, method: str, arguments: dict[str, Any]) -> Any:
        if method not in METHODS:
            raise VdcmError(f"an Injector has no {method}")
        entry = manager.entry(name)
        vdev = entry.running("injecting a fault")
        found = _injectors.get(entry.name)
        if found is None or found.vdev is not vdev:  # it has been stopped, and its faults with it
            found = Injector(vdev, manager.endpoint(name), expendable=True)
            _injectors[entry.name] = found
        return getattr(found, method)(**arguments)

    return {"inject": Method(inject, {"name": str, "method": str, "arguments": dict})}


if __name__ == "__main__":
    Methods.more.append(injecting)
    main()
