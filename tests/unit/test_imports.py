"""The import direction of vdcm and of the device models, read from the source."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# From the ground up. A module imports from its own layer's folder (a package's own parts) and from
# lower layers only. Modules of one layer do not know each other, except in LAYERS_WITHIN.
LAYERS: tuple[frozenset[str], ...] = (
    frozenset({"errors"}),
    frozenset({"protocol", "properties", "environment", "counters", "events", "_native"}),
    frozenset({"surroundings", "pci", "registers", "pasid", "transport", "client"}),
    frozenset({"bars", "interrupts", "dma", "function"}),
    frozenset({"ims", "hints"}),
    frozenset({"sweep"}),
    frozenset({"adi"}),
    frozenset({"host"}),
    frozenset({"vdev", "mailbox"}),
    frozenset({"parent", "store"}),
    frozenset({"definition"}),
    frozenset({"catalog", "entry"}),
    frozenset({"manager"}),
    frozenset({"recording", "snapshot", "trace"}),
    frozenset({"control", "serving", "rates", "metrics"}),
    frozenset({"doctor", "new", "qemu_args"}),
    frozenset({"cli"}),
    frozenset({"testing"}),
    frozenset({"__main__"}),
)
# An ADI knows its host driver only to be typed.
LAYERS_WITHIN = {("pci", "registers"), ("adi", "host")}
# C is reached through these; the others use what they offer.
NATIVE_USERS = {"surroundings", "transport", "pasid", "ims", "sweep"}
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


def modules(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imports(path: Path) -> Iterator[tuple[int, str, tuple[str, ...]]]:
    """(line, module, imported names) of every import, wherever in the file it is."""
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name, ()
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level:
                here = path.relative_to(ROOT).with_suffix("").parts[: -node.level]
                module = ".".join([*here, *([module] if module else [])])
            yield node.lineno, module, tuple(alias.name for alias in node.names)


def rooms(module: str, names: tuple[str, ...]) -> list[str]:
    """The modules of vdcm that an import names: ``bars`` of vdcm.bars; "" is vdcm itself."""
    parts = module.split(".")
    if parts[0] != "vdcm":
        return []
    if len(parts) > 1:
        return [parts[1]]
    return [name if name in LEVEL else "" for name in names] or [""]


def where(path: Path, line: int) -> str:
    return f"{path.relative_to(ROOT)}:{line}"


@pytest.mark.parametrize("path", modules("vdcm"), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down(path: Path) -> None:
    own = path.relative_to(ROOT / "vdcm").with_suffix("").parts[0]
    wrong = []
    if own != "__init__":
        assert own in LEVEL, f"{where(path, 1)}: vdcm.{own} is in no layer of this test"
    for line, module, names in imports(path):
        if module.split(".")[0] == "vdcm_devices":
            wrong.append(f"{where(path, line)}: vdcm imports a device model, {module}")
        for room in rooms(module, names):
            if room == "_native" and own not in NATIVE_USERS:
                wrong.append(f"{where(path, line)}: vdcm.{own} may not import vdcm._native")
            if own == "__init__" or room == own or (own, room) in LAYERS_WITHIN:
                continue
            if room not in LEVEL:
                wrong.append(f"{where(path, line)}: {module or 'vdcm'} is in no layer")
            elif LEVEL[room] >= LEVEL[own]:
                wrong.append(f"{where(path, line)}: vdcm.{own} may not import vdcm.{room}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "path", modules("vdcm_devices"), ids=lambda path: str(path.relative_to(ROOT))
)
def test_device_models_use_public_names(path: Path) -> None:
    folder = path.relative_to(ROOT).parts[1]
    wrong = []
    for line, module, names in imports(path):
        parts = module.split(".")
        if parts[0] == "vdcm" and (len(parts) > 1 or not names or set(names) & set(LEVEL)):
            wrong.append(f"{where(path, line)}: {module}: say from vdcm import NAME instead")
        if parts[0] == "vdcm_devices" and parts[1:2] != [folder]:
            wrong.append(f"{where(path, line)}: {module}: device models share nothing")
    assert not wrong, "\n".join(wrong)


def test_the_shop_window_lists_what_it_has() -> None:
    public = ROOT / "vdcm" / "__init__.py"
    imported = {name for _, _, names in imports(public) for name in names}
    assigned = [
        node.value
        for node in ast.parse(public.read_text()).body
        if isinstance(node, ast.Assign)
        and any(isinstance(target, ast.Name) and target.id == "__all__" for target in node.targets)
    ]
    listed = set(ast.literal_eval(assigned[0])) if assigned else set()
    assert imported - {"annotations"} == listed
