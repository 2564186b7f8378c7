"""What ``vdcm new`` makes, installed where it disturbs nobody."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


class Package:
    """The package of device ``name``, made and installed below ``folder``."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder / "package"
        self.target = folder / "target"
        self.run("vdcm", "new", name, "--directory", str(self.folder), cwd=folder)
        self.install()

    def install(self) -> None:
        """Install it as it is now; what can import from ``target`` has it."""
        pip = ("pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--upgrade")
        # Its build back-end is here: nothing is fetched.
        self.run(*pip, "--no-build-isolation", "--target", str(self.target), ".")

    def run(self, module: str, *arguments: str, cwd: Path | None = None, text: str = "") -> str:
        """What ``python -m module`` prints, given ``text``, in its folder; it has to end well."""
        done = subprocess.run(
            [sys.executable, "-m", module, *arguments],
            input=text,
            cwd=cwd or self.folder,
            env={**os.environ, "PYTHONPATH": str(self.target)},
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        assert done.returncode == 0, f"{module} {' '.join(arguments)}\n{done.stdout}{done.stderr}"
        return done.stdout
