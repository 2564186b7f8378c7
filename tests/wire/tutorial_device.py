"""The device of docs/tutorial.md, as its reader has it at the end, or with mistakes in it."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from pages import ROOT, files

from vdcm import new

PAGE: Final = ROOT / "docs/tutorial.md"


def write(folder: Path, **mistakes: str) -> None:
    """Write the reader's files into ``folder``, where ``vdcm new edu`` has made its package.

    ``mistakes``: of the file ``NAME.py`` of the package, "what is there -> what is there instead".
    """
    for test in (folder / "tests").glob("test_*.py"):
        test.unlink()
    for name, text in files(PAGE).items():
        file = folder / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
    for name, mistake in mistakes.items():
        file = folder / f"src/edu/{name}.py"
        right, _, wrong = mistake.partition(" -> ")
        text = file.read_text()
        assert text.count(right) == 1, f"{file} has not one {right}"
        file.write_text(text.replace(right, wrong))


def wrong(folder: Path, **mistakes: str) -> Path:
    """A folder to import such a device from."""
    new.make("edu", folder)
    write(folder, **mistakes)
    return folder / "src"
