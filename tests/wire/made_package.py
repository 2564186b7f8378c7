"""Packages of devices, installed where they disturb nobody."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

_NONE: Final[Mapping[str, str]] = {}


class Package:
    """What ``vdcm new name`` makes, or else ``files``, installed below ``folder``."""

    def __init__(self, folder: Path, name: str = "", files: Mapping[str, str] = _NONE) -> None:
        self.folder = folder / "package"
        self.target = folder / "target"
        if name:
            self.run("vdcm", "new", name, "--directory", str(self.folder), cwd=folder)
        for path, text in files.items():
            file = self.folder / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        self.install()

    def install(self) -> None:
        """Install it as it is now; what can import from ``target`` has it."""
        pip = ("pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--upgrade")
        # Its build back-end is here: nothing is fetched.
        self.run(*pip, "--no-build-isolation", "--target", str(self.target), ".")

    def run(self, module: str, *arguments: str, cwd: Path | None = None, text: str = "") -> str:
        """What ``python -m module`` prints, given ``text``, in its folder; it has to end well.

        No server of the user's is asked for anything: it does not know the package.
        """
        nobody = {"PYTHONPATH": str(self.target), "XDG_RUNTIME_DIR": str(self.target)}
        done = subprocess.run(
            [sys.executable, "-m", module, *arguments],
            input=text,
            cwd=cwd or self.folder,
            env={**os.environ, **nobody},
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        assert done.returncode == 0, f"{module} {' '.join(arguments)}\n{done.stdout}{done.stderr}"
        return done.stdout
