"""What guests are booted with: what ``ci/bootstrap`` has made, or the user's own."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Final

from vdcm.environment import Environment, load_environment
from vdcm.errors import PrerequisiteError

QEMU: Final = "qemu-system-x86_64"
NO_MODULES: Final = Path(os.devnull)
"""The folder of a kernel's modules, where nobody has said which."""


def prepared(
    *,
    qemu: Path | None = None,
    kernel: Path | None = None,
    modules: Path | None = None,
    initrd: Path | None = None,
) -> Environment:
    """The environment of ``ci/bootstrap``, with what is named here instead of its own.

    Of another ``kernel`` there are no modules but those of ``modules``. Where ``ci/bootstrap`` has
    not been run, ``kernel`` is needed; QEMU and the guests' programs are the system's then.
    Raises PrerequisiteError for what is not there.
    """
    for path in (qemu, kernel, modules, initrd):
        if path is not None and not path.exists():
            raise PrerequisiteError(f"{path} is not there")
    try:
        found = load_environment()
    except PrerequisiteError as error:
        if kernel is None:
            raise
        found = _of_the_system(error, kernel, qemu)
    if qemu is not None:
        found = replace(found, qemu=(str(qemu),), qemu_version="")
    if kernel is not None or modules is not None:
        modules = modules or NO_MODULES
        found = replace(
            found,
            kernel=kernel or found.kernel,
            kernel_release=modules.name,
            modules=modules,
            headers=modules / "build",  # where an installed kernel's are
        )
    return replace(found, initrd=initrd)


def _of_the_system(missing: PrerequisiteError, kernel: Path, qemu: Path | None) -> Environment:
    program = str(qemu) if qemu is not None else shutil.which(QEMU)
    if program is None:
        raise PrerequisiteError(f"there is no {QEMU}: install it, or: {missing}") from missing
    return Environment(
        qemu=(program,),
        qemu_version="",
        kernel=kernel,
        kernel_release="",
        modules=NO_MODULES,
        headers=NO_MODULES,
        guest_root=Path("/"),
        libvfio_user={},
        python=Path("python3"),
    )
