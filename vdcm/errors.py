"""The one exception tree. Every message names the place and, where there is one, the fix.

VdcmError
├── RegisterError       a value or width that a register does not take (vdcm.registers)
├── PropertyError       a value that a property does not take (vdcm.properties)
├── MailboxError        a guest's request is refused; carries the code for it (vdcm.mailbox)
├── DeclarationError    a device model declares something impossible
├── DefinitionError     a definition file is wrong; carries file, line and column
├── StoreError          a definition cannot be stored, or what is stored cannot be used
├── ResourceError       a parent has no more of what is asked for; names it and how much is in use
├── StateError          a call at the wrong time; names the state it was in and the one it needs
├── PrerequisiteError   the machine lacks something; names the command that provides it
├── TransportError      a socket or a client failed
│   └── ProtocolError   the peer broke the vfio-user protocol, or refused a request
├── DeferredError       a device does not take a write now; the client is to repeat it (EAGAIN)
├── RecordingError      a record of a session cannot be made, or used; names the file
├── DmaError            guest memory cannot be reached; names PASID, address and length
└── ControlError        a control request was refused
"""

from __future__ import annotations

import sys
import traceback
from pathlib import Path
from typing import Final

_OTHERS: Final = {"vdcm", *sys.stdlib_module_names}
"""Packages whose lines do not tell where a device model's mistake is."""


class VdcmError(Exception):
    """Base of all errors that vdcm raises on purpose."""


class DeclarationError(VdcmError):
    """A device model declares registers, capabilities, BARs or handlers that cannot be."""


class DefinitionError(VdcmError):
    """A definition file is wrong at ``file:line:column`` (both counted from 1)."""

    def __init__(self, message: str, file: Path | str, line: int, column: int = 1) -> None:
        super().__init__(f"{file}:{line}: {message}")
        self.file = Path(file)
        self.line = line
        self.column = column


class StoreError(VdcmError):
    """A definition cannot be stored, or what is stored cannot be used; names the file."""


class ResourceError(VdcmError):
    """A parent has none left of what an ADI needs; the message names it and how much is in use."""


class StateError(VdcmError):
    """An operation was asked for in a state that does not allow it."""


class PrerequisiteError(VdcmError):
    """The machine lacks something that is needed; the message says how to get it."""


class TransportError(VdcmError):
    """A socket could not be served, or a connection failed."""


class ProtocolError(TransportError):
    """The peer broke the vfio-user protocol, or answered a request with an error.

    ``errno`` is the error number of the peer's reply, 0 if there was none.
    """

    def __init__(self, message: str, errno: int = 0) -> None:
        super().__init__(message)
        self.errno = errno


class RecordingError(VdcmError):
    """A record of a session cannot be made, or cannot be used."""


class DmaError(VdcmError):
    """An access to guest memory failed; it costs the device that tried it, nobody else."""


class DeferredError(VdcmError):
    """The answer to a deferrable memory write (PCIe DMWr) that is not taken now: retry."""


class ControlError(VdcmError):
    """A request over the control socket was refused, or could not be made.

    ``code`` is the server's (docs/control.md), 0 if there was no answer.
    """

    def __init__(self, message: str, code: int = 0) -> None:
        super().__init__(message)
        self.code = code


def fault(error: Exception) -> str:
    """A device model's mistake in one line, with its place: the last line of the model's own that
    led to ``error``, or the one that Python cannot read."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}: {error.msg}"
    place = ""
    for frame, line in traceback.walk_tb(error.__traceback__):
        if frame.f_globals.get("__name__", "").partition(".")[0] not in _OTHERS:
            place = f"{frame.f_code.co_filename}:{line}: "
    kind = "" if isinstance(error, VdcmError) else f"{type(error).__name__}: "
    return f"{place}{kind}{error}"
