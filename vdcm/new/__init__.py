"""``vdcm new``: a package for a device of your own, from the files of ``template``.

They are files as one writes them, with ``$name`` and so on where the device's own go
(string.Template); ``PACKAGE`` in a path is the package's name, and ``.in`` at its end goes.
"""

from __future__ import annotations

import keyword
import re
import shutil
import sys
from contextlib import suppress
from importlib.metadata import distributions, entry_points, packages_distributions
from pathlib import Path
from string import Template
from typing import Final
from zlib import crc32

from vdcm.errors import DeclarationError, VdcmError
from vdcm.parent import GROUP, models

TEMPLATE: Final = Path(__file__).with_name("template")
LONGEST: Final = 30
"""Characters of a name."""
_NAME: Final = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")


def make(name: str, folder: Path) -> list[Path]:
    """Make the package of device ``name`` in ``folder``, which must not exist; its files.

    Raises VdcmError for a name that cannot be or is taken, and for a folder that is there.
    """
    check(name)
    if folder.exists() or folder.is_symlink():
        raise VdcmError(f"{folder} exists: name another with --directory, or remove it")
    package = name.replace("-", "_")
    values = {
        "name": name,
        "package": package,
        "Class": "".join(part.capitalize() for part in name.split("-")),
        # Not the same for all: two of them in one guest are told apart.
        "device": f"{crc32(name.encode()) & 0xFFFF:04X}",
    }
    made = []
    try:
        folder.mkdir(parents=True)
        for source in sorted(path for path in TEMPLATE.rglob("*") if path.is_file()):
            path = source.relative_to(TEMPLATE).as_posix().replace("PACKAGE", package)
            target = folder / path.removesuffix(".in")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(Template(source.read_text()).substitute(values))
            made.append(target)
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, OSError):
            raise VdcmError(f"{folder}: cannot be made: {error.strerror}") from error
        raise
    return made


def check(name: str) -> None:
    """Raise VdcmError unless a device, a package and a Python module may be called ``name``."""
    if not _NAME.fullmatch(name) or len(name) > LONGEST:
        raise VdcmError(
            f"{name[:80]!r} is no name for a device: small letters, digits and single hyphens "
            f"between them, {LONGEST} characters at most, such as my-nic"
        )
    module = name.replace("-", "_")
    if keyword.iskeyword(module) or keyword.issoftkeyword(module):
        raise VdcmError(f"{name} is a word of Python's own: choose another name")
    if module in sys.stdlib_module_names:
        raise VdcmError(f"{name} is a module of Python's library: choose another name")
    if name in _devices():
        raise VdcmError(f"there is a device {name} already (vdcm types): choose another name")
    if module in _modules():
        raise VdcmError(f"a package {name} is installed already: choose another name")


def _devices() -> set[str]:
    found = {entry.name for entry in entry_points(group=GROUP)}
    with suppress(DeclarationError):  # one that is broken keeps nobody from a better one
        found |= {kind for model in models().values() for kind in model.types}
    return found


def _modules() -> set[str]:
    installed = {(one.metadata["Name"] or "") for one in distributions()}
    names = {*packages_distributions(), *installed, "vdcm_devices", "tests"}
    return {name.lower().replace("-", "_") for name in names}
