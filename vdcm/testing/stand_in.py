"""Programs without libraries that they never call in a guest: empty ones stand in for those.

Debian's fio is linked with the clients of every network storage there is: 85 MB. The dynamic
loader wants each library and, in it, each symbol that the program names, of the version that it
names.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import defaultdict
from pathlib import Path

from vdcm.errors import PrerequisiteError

UNUSED = {
    "fio": (
        *("libgfapi.so.0", "libibverbs.so.1", "libnbd.so.0", "libpmem.so.1", "libpmemblk.so.1"),
        *("librados.so.2", "librbd.so.1", "librdmacm.so.1"),
    )
}
"""Programs, and what each is linked with and does without."""
_SYMBOL = re.compile(r" \w (\w+)(?:@@?(\w\S*))?$", re.MULTILINE)


def stand_in(program: Path, library: Path) -> bytes:
    """A library instead of ``library``, with what ``program`` wants of it; to call that is fatal.

    Raises PrerequisiteError with what the compiler says if that fails.
    """
    wanted, there = _symbols(program, "--undefined-only"), _symbols(library, "--defined-only")
    nodes: defaultdict[str, list[str]] = defaultdict(list)
    for name in sorted(wanted.keys() & there.keys()):
        nodes[wanted[name]].append(name)
    source = "".join(f".globl {name}\n{name}: ud2\n" for names in nodes.values() for name in names)
    # A node without a name stands alone, as the linker has it: its symbols have no version.
    script = "".join(f"{node} {{ {'; '.join(names)}; }};\n" for node, names in nodes.items())
    with tempfile.TemporaryDirectory() as folder:
        target, versions = Path(folder, "library"), Path(folder, "versions")
        versions.write_text(script)
        linked = ("-Wl,-z,noexecstack", f"-Wl,-soname,{library.name}")
        _run(
            *("cc", "-shared", "-nostdlib", *linked, f"-Wl,--version-script={versions}"),
            *("-x", "assembler", "-o", str(target), "-"),
            text=source,
        )
        return target.read_bytes()


def _symbols(file: Path, kind: str) -> dict[str, str]:
    """Dynamic symbols to their versions, empty for none."""
    listed = _run("nm", "-D", kind, str(file))
    return {match[1]: match[2] or "" for match in _SYMBOL.finditer(listed)}


def _run(*command: str, text: str = "") -> str:
    try:
        done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise PrerequisiteError(f"there is no {command[0]}: run ci/bootstrap") from error
    if done.returncode:
        raise PrerequisiteError(f"{' '.join(command)}: {done.stderr}")
    return done.stdout
