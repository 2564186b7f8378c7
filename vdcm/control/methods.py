"""The methods of the control socket: their parameters, what they call, and their errors."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Final

from vdcm import recording, snapshot
from vdcm.errors import ResourceError, StateError, VdcmError
from vdcm.manager import Manager
from vdcm.properties import PropertyError
from vdcm.trace import SAMPLE, Filter

log = logging.getLogger("vdcm.control")

# JSON-RPC 2.0, section 5.1; from -32000 down the server's own.
PARSE_ERROR: Final = -32700
INVALID_REQUEST: Final = -32600
UNKNOWN_METHOD: Final = -32601
INVALID_PARAMS: Final = -32602
INTERNAL_ERROR: Final = -32603
REFUSED: Final = -32000
WRONG_STATE: Final = -32001
NO_RESOURCES: Final = -32002


class Refusal(Exception):
    """An error reply."""

    def __init__(self, code: int, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.remedy = remedy


@dataclass(frozen=True)
class Method:
    """``needed`` and ``optional`` parameters, by name, and the Python type of each."""

    function: Callable[..., Any]
    needed: Mapping[str, type] = field(default_factory=dict)
    optional: Mapping[str, type] = field(default_factory=dict)

    def call(self, name: str, params: object) -> Any:
        """The result; raises Refusal."""
        kinds = {**self.needed, **self.optional}
        if not isinstance(params, dict) or not set(self.needed) <= set(params) <= set(kinds):
            wanted = [key if key in self.needed else f"[{key}]" for key in kinds]
            raise Refusal(
                INVALID_PARAMS,
                f"the parameters of {name}, by name, are: {', '.join(wanted) or 'none'}",
            )
        for key, value in params.items():
            if type(value) is not kinds[key]:
                raise Refusal(INVALID_PARAMS, f"{name}: {key} is no {_JSON[kinds[key]]}")
        try:
            return self.function(**params)
        except Refusal:
            raise
        except PropertyError as error:
            raise Refusal(INVALID_PARAMS, str(error), "vdcm types lists the properties") from error
        except StateError as error:
            raise Refusal(WRONG_STATE, str(error), "vdcm list shows the states") from error
        except ResourceError as error:
            raise Refusal(NO_RESOURCES, str(error), "vdcm types shows what is free") from error
        except VdcmError as error:  # the message has the remedy
            raise Refusal(REFUSED, str(error)) from error
        except Exception as error:
            log.exception("control method %s failed", name)
            raise Refusal(
                INTERNAL_ERROR, f"{name} failed: {error}", "see the server's log"
            ) from error


_JSON: Final[dict[type, str]] = {
    str: "text",
    bool: "true or false",
    dict: "JSON object",
    list: "JSON list",
    int: "whole number",
}


More = Callable[[Manager], Mapping[str, Method]]


class Methods:
    """What a ``Manager`` can be asked for. ``trace`` is the connection's own.

    ``more``: what a process adds to its servers, as that of a test does.
    """

    more: ClassVar[list[More]] = []

    def __init__(self, manager: Manager, trace: Callable[..., bool]) -> None:
        self._manager = manager
        self._begin_trace = trace
        name = {"name": str}
        self.table: Final[dict[str, Method]] = {
            "parents": Method(manager.describe_parents),
            "types": Method(manager.describe_types, optional={"parent": str}),
            "define": Method(self._define, {"definitions": list}),
            "undefine": Method(self._undefine, name),
            "modify": Method(
                self._modify, name, {"type": str, "set": dict, "delete": list, "auto": bool}
            ),
            "start": Method(self._start, optional={"name": str, "definition": dict}),
            "stop": Method(self._stop, name),
            "reset": Method(self._reset, name),
            "list": Method(manager.summaries, optional={"defined": bool}),
            "show": Method(manager.show, name),
            "counters": Method(self._counters, optional={"skip": int}),
            "set": Method(manager.set, {"name": str, "values": dict}),
            "trace": Method(
                self._trace, {}, {"names": list, "kinds": list, "registers": list, "sample": int}
            ),
            "record": Method(self._record, {"name": str, "file": str}, {"size": int}),
            "record_end": Method(self._record_end, name),
            "recordings": Method(self._recordings),
            "shutdown": Method(self._shutdown),
        }
        for add in self.more:
            self.table.update(add(manager))

    def call(self, method: str, params: object) -> Any:
        """The result; raises Refusal."""
        if method not in self.table:
            known = ", ".join(self.table)
            raise Refusal(UNKNOWN_METHOD, f"there is no method {method[:80]}", f"one of {known}")
        return self.table[method].call(method, params)

    def _define(self, definitions: list[Any]) -> Any:
        if not all(isinstance(one, dict) for one in definitions):
            raise Refusal(INVALID_PARAMS, "define: definitions is a list of JSON objects")
        return self._manager.define(definitions)

    def _undefine(self, name: str) -> bool:
        self._manager.undefine(name)
        return True

    def _modify(self, name: str, **changes: Any) -> Any:
        delete = changes.get("delete", [])
        if not all(isinstance(one, str) for one in delete):
            raise Refusal(INVALID_PARAMS, "modify: delete is a list of property names")
        return self._manager.modify(
            name,
            kind=changes.get("type"),
            values=changes.get("set"),
            delete=delete,
            auto=changes.get("auto"),
        )

    def _start(self, **which: Any) -> Any:
        if len(which) != 1:
            raise Refusal(INVALID_PARAMS, "start takes a name, or the definition of a transient")
        if "name" in which:
            return self._manager.start(which["name"])
        return self._manager.start_transient(which["definition"])

    def _stop(self, name: str) -> bool:
        self._manager.stop(name)
        return True

    def _reset(self, name: str) -> bool:
        self._manager.reset(name)
        return True

    def _counters(self, skip: int = 0) -> dict[str, Any]:
        if skip < 0:
            raise Refusal(INVALID_PARAMS, "counters: skip is 0 or more")
        return snapshot.page(self._manager, skip)

    def _trace(self, **wanted: Any) -> bool:
        for key in ("names", "kinds", "registers"):
            if not all(isinstance(one, str) for one in wanted.get(key, [])):
                raise Refusal(INVALID_PARAMS, f"trace: {key} is a list of texts")
        chosen = Filter(frozenset(wanted.get("kinds", ())), tuple(wanted.get("registers", ())))
        sample = wanted.get("sample", round(SAMPLE * 1000)) / 1000
        return self._begin_trace(chosen, wanted.get("names"), sample)

    def _record(self, name: str, file: str, size: int = recording.SIZE_LIMIT) -> Any:
        if not file.startswith("/") or "\0" in file or size < 1:
            raise Refusal(
                INVALID_PARAMS, "record: file is a whole path, beginning with /; size > 0"
            )
        return recording.start(self._manager, name, Path(file), size).describe()

    def _record_end(self, name: str) -> Any:
        return recording.end(self._manager, name)

    def _recordings(self) -> Any:
        return recording.recordings(self._manager)

    def _shutdown(self) -> bool:
        self._manager.stopping.set()
        return True
