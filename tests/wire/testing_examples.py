"""The code in docs/testing.md, and a pytest of its own for it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from pages import ROOT, blocks

PAGE = ROOT / "docs/testing.md"
TEXT = PAGE.read_text()
EXAMPLES = {
    re.findall(r"^def (test_\w+)", code, re.MULTILINE)[0]: code for code in blocks(PAGE, "python")
}
"""By the name of the test."""


def run_example(folder: Path, name: str) -> str:
    """What pytest prints."""
    (folder / f"{name}.py").write_text(EXAMPLES[name])
    options = ("-p", "vdcm.testing.plugin", "-p", "no:cacheprovider", "-rs")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, f"{name}.py"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    return done.stdout + done.stderr
