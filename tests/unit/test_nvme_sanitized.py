"""The data path by itself, under sanitizers: a hostile guest (nvme_fuzz.c), and shadow doorbells
between threads, the moments between two accesses made long (nvme_shadow_stress.c)."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = "access channel command controller cq file memory no_uring pointer sq store tasks"
# Not under the sanitizer that the tests themselves may be running under.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}


def build(folder: Path, name: str, sanitizer: str, *options: str | Path) -> Path:
    compiler = shutil.which("cc")
    assert compiler is not None, "no C compiler: run ci/bootstrap"
    unit, native, nvme = ROOT / "tests" / "unit", ROOT / "native", ROOT / "vdcm_devices" / "nvme"
    flags = ["-std=gnu11", "-g", "-O1", "-Wall", "-Wextra", "-Werror", "-pthread"]
    sources = [unit / f"{name}.c", *[nvme / f"{source}.c" for source in SOURCES.split()]]
    command = [compiler, *flags, f"-I{nvme}", f"-I{native}", f"-fsanitize={sanitizer}", *options]
    subprocess.run([*command, *sources, "-o", folder / name], check=True, env=ENVIRONMENT)
    return folder / name


def run(program: Path, *arguments: str) -> str:
    result = subprocess.run(
        [program, *arguments],
        env={**ENVIRONMENT, "ASAN_OPTIONS": "detect_leaks=0"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert result.returncode == 0, f"{arguments}:\n{result.stdout}{result.stderr}"
    assert "Sanitizer" not in result.stderr
    return result.stdout


@pytest.mark.parametrize("sanitizer", ["thread", "address,undefined"])
def test_nobody_is_left_alone(tmp_path: Path, sanitizer: str) -> None:
    perturbed = ROOT / "tests" / "unit" / "perturbed_atomics.h"
    program = build(tmp_path, "nvme_shadow_stress", sanitizer, "-include", perturbed)
    for seed in range(1, 4):
        output = run(program, "20000", str(seed))
        found = re.fullmatch(r"20000 commands; (\d+) exits, (\d+) rests, (\d+) in vain\n", output)
        assert found is not None
        exits, rests, _ = map(int, found.groups())
        assert exits > 0, "the sweep never slept"
        assert rests > 0


def test_a_hostile_guest_gets_its_statuses(tmp_path: Path) -> None:
    options = ["-fno-sanitize-recover=undefined"]
    program = build(tmp_path, "nvme_fuzz", "address,undefined", *options)
    for seed in range(1, 4):
        found = re.fullmatch(r"(\d+) lives, (\d+) errors\n", run(program, "200000", str(seed)))
        assert found is not None
        assert int(found[2]) > 1000
