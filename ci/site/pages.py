"""The site's sources: README and docs/ as they are, and the reference, which is made here."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from ci.site import api, commands, registers
from vdcm.parent import models

# The order in which somebody new reads them; a page that is not named here comes last.
SECTIONS: Final[Mapping[str, tuple[str, ...]]] = {
    "Tutorial": ("tutorial",),
    "How to": ("howto-libvirt", "howto-ci", "testing", "howto-probe", "mistakes", "howto-fastpath"),
    "Explanation": ("two-paths", "composing", "observe", "recording"),
    "Devices": ("dsa", "nvme", "avf"),
    "Reference": ("control", "conformance"),
}


def stage(root: Path, source: Path) -> None:
    """Write all sources of the checkout ``root`` into ``source``, which is made."""
    shutil.copytree(root / "docs", source / "docs")
    reference = source / "reference"
    reference.mkdir()
    made = {
        **{f"registers-{name}": registers.page(name) for name in sorted(models())},
        "commands": commands.page(),
        **api.pages(),
        "fastpath": _fastpath(root / "native/fastpath.h"),
    }
    for name, text in made.items():
        (reference / f"{name}.md").write_text(text)
    for page in (source / "docs").rglob("*.md"):
        page.write_text(re.sub(r"\]\(\.\./README\.md", "](../index.md", page.read_text()))
    known = [name for names in SECTIONS.values() for name in names]
    others = sorted({page.stem for page in (source / "docs").glob("*.md")} - set(known))
    trees = []
    for section, names in SECTIONS.items():
        pages = [f"docs/{name}" for name in names if (source / f"docs/{name}.md").exists()]
        if section == "Reference":
            pages += [f"docs/{name}" for name in others] + [f"reference/{name}" for name in made]
        if pages:
            listed = "\n".join(pages)
            trees.append(
                f"```{{toctree}}\n:hidden:\n:maxdepth: 1\n:caption: {section}\n\n{listed}\n```\n"
            )
    (source / "index.md").write_text((root / "README.md").read_text() + "\n" + "\n".join(trees))


def _fastpath(header: Path) -> str:
    return (
        "# The header of the direct path\n\n"
        "`#include <vdcm/fastpath.h>`, found in the folder `vdcm.include_dir()`: what the C of a "
        "device implements, and what it is given.\n\n"
        f"```c\n{header.read_text()}```\n"
    )
