"""Writes the C source of the cffi binding: ``python build_binding.py native.h OUTPUT.c``.

The declarations are the part of native.h between its two cffi marks; the callbacks are named
here because cffi wants them said as ``extern "Python+C"``.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from cffi import FFI

MODULE = "vdcm._native"


def declarations(header: str) -> tuple[str, str]:
    """The C declarations and, apart from them, the callbacks that Python implements."""
    _, _, rest = header.partition("/* cffi: begin */")
    shared, _, rest = rest.partition("/* cffi: end */")
    callbacks = re.findall(r"^int vdcm_on_\w+\(.*?\);", rest, re.DOTALL | re.MULTILINE)
    return shared, "\n".join(callbacks)


def main(header: Path, output: Path) -> None:
    shared, callbacks = declarations(header.read_text())
    ffi = FFI()
    ffi.cdef(shared)
    ffi.cdef(f'extern "Python+C" {{\n{callbacks}\n}}')
    ffi.set_source(MODULE, '#include "native.h"')
    ffi.emit_c_code(str(output))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
