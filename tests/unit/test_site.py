"""The site's reference is whole, and its broken links are found."""

from __future__ import annotations

from pathlib import Path

import pytest
from pages import ROOT

import vdcm
from ci.site import api, commands, pages, registers
from ci.site.links import broken
from vdcm.cli import app
from vdcm.parent import models
from vdcm_devices.idio16.registers import Idio16Registers


@pytest.mark.parametrize("model", ["idio16", "dsa", "nvme", "avf"])
def test_every_register_and_field_is_there(model: str) -> None:
    text = registers.page(model)
    parent = models()[model](model)
    try:
        kind = text.partition("a VDEV of type `")[2].partition("`")[0]
        vdev = parent.create(kind, "vdev", {})
        spaces = [vdev.config.space, *(bar.space for bar in vdev.bars.values())]
        for space in spaces:
            for base, placed, prefix in space.placed():
                for name, register in placed.registers.items():
                    many = "" if register.count is None else f"[0..{register.count - 1}]"
                    at = base + register.offset
                    row = f"`{prefix}{name}{many}` | {register.width} |"
                    assert any(
                        line.startswith(f"| `{at:#x}") and row in line for line in text.splitlines()
                    ), (at, row)
                    assert all(f"| `{field}` |" in text for field in register.fields)
        vdev.close()
    finally:
        parent.close()
    assert all(f"`{kind}`" in text for kind in parent.types)


def test_a_register_of_the_card() -> None:
    text = registers.page("idio16")
    doc = Idio16Registers.registers["IRQ_STATUS"].doc
    assert f"| `0x6` | `IRQ_STATUS` | 8 | RO | `0x0` | {doc} |" in text
    assert "### BAR2+0x6 IRQ_STATUS" in text
    assert "| 2 | `PENDING` | RO | `0x0` |  | The interrupt is asserted. |" in text


def test_a_table_is_not_ended_by_what_is_in_it() -> None:
    assert registers.table(["a"], [["x|y\nz"]]).splitlines()[-1] == r"| x\|y z |"


def test_every_command_and_every_public_name_is_there() -> None:
    text = commands.page()
    assert all(f"## vdcm {command.name}\n" in text for command in app.registered_commands)
    directives = api.pages()["vdcm"]
    assert all(f":: vdcm.{name}\n" in directives for name in vdcm.__all__)


def test_all_sources_are_put_together(tmp_path: Path) -> None:
    pages.stage(ROOT, tmp_path / "source")
    made = {path.stem for path in (tmp_path / "source").rglob("*.md")}
    assert {"index", "composing", "registers-dsa", "commands", "vdcm", "fastpath"} <= made
    index = (tmp_path / "source/index.md").read_text()
    listed = {path for path in index.splitlines() if path.startswith(("docs/", "reference/"))}
    assert len(listed) == len(made) - 1


def test_broken_links_are_found(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text(
        '<h1 id="here">A</h1><a href="#here"></a><a href="#gone"></a><a href="b.html#there"></a>'
        '<a href="b.html#gone"></a><a href="c.html"></a><a href="https://example.org/c"></a>'
    )
    (tmp_path / "b.html").write_text('<p id="there"><img src="no.svg"></p>')
    assert broken(tmp_path) == [
        "a.html: #gone", "a.html: b.html#gone", "a.html: c.html", "b.html: no.svg"
    ]  # fmt: skip
