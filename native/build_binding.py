"""Writes the C source of a cffi binding: ``python build_binding.py MODULE OUTPUT.c HEADER.h ...``.

The declarations are the parts of the headers between their two cffi marks; what Python implements
(``vdcm_on_...``) is named here because cffi wants it said as ``extern "Python+C"``.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from cffi import FFI


def declarations(header: str) -> tuple[str, str]:
    """The C declarations and, apart from them, the callbacks that Python implements."""
    _, _, rest = header.partition("/* cffi: begin */")
    shared, _, rest = rest.partition("/* cffi: end */")
    callbacks = re.findall(r"^int vdcm_on_\w+\(.*?\);", rest, re.DOTALL | re.MULTILINE)
    return shared, "\n".join(callbacks)


def main(module: str, output: Path, headers: list[Path]) -> None:
    ffi = FFI()
    for header in headers:
        shared, callbacks = declarations(header.read_text())
        ffi.cdef(shared)
        if callbacks:
            ffi.cdef(f'extern "Python+C" {{\n{callbacks}\n}}')
    ffi.set_source(module, "\n".join(f'#include "{header.name}"' for header in headers))
    ffi.emit_c_code(str(output))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), [Path(name) for name in sys.argv[3:]])
