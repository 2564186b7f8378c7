"""Kernel modules of ours, built against the distribution's headers, and programs for a guest."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from vdcm.environment import Environment
from vdcm.errors import PrerequisiteError


def build_module(environment: Environment, source: Path, folder: Path) -> Path:
    """The module of ``source``, a folder with a Makefile for the kernel's build; its ``.ko`` has
    the folder's name. Built in ``folder``, so that the source stays as it is.

    Raises PrerequisiteError with the compiler's output if that fails.
    """
    build = folder / source.name
    shutil.copytree(source, build)
    # Type information for BPF needs a tool (pahole) that does not come with the headers.
    plain = "CONFIG_DEBUG_INFO_BTF_MODULES="
    command = ["make", "-C", str(environment.headers), f"M={build}", plain, "modules"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        hint = "" if ": error: " in done.stderr else " (ci/bootstrap --update brings its compiler)"
        raise PrerequisiteError(
            f"{source} does not compile against {environment.headers}{hint}:\n"
            f"{done.stdout}{done.stderr}"
        )
    return build / f"{source.name}.ko"


def build_program(source: Path, folder: Path) -> dict[str, Path]:
    """``files`` for a Machine: the static program of ``source``, a folder with one C file of the
    folder's name, built in ``folder``.

    Raises PrerequisiteError with the compiler's output if that fails.
    """
    file, program = source / f"{source.name}.c", folder / source.name
    flags = ("-static", "-O2", "-Wall", "-Wextra", "-Werror")
    command = ["gcc", *flags, "-o", str(program), str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise PrerequisiteError(f"{file} does not compile:\n{done.stderr}")
    return {source.name: program}
