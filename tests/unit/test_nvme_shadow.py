"""Shadow doorbells between threads: nvme_shadow_stress.c, with the moments between two accesses
made long, under TSan and ASan."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = "access channel command controller cq file memory no_uring pointer sq store"


@pytest.mark.parametrize("sanitizer", ["thread", "address,undefined"])
def test_nobody_is_left_alone(tmp_path: Path, sanitizer: str) -> None:
    compiler = shutil.which("cc")
    assert compiler is not None, "no C compiler: run ci/bootstrap"
    unit, native, nvme = ROOT / "tests" / "unit", ROOT / "native", ROOT / "vdcm_devices" / "nvme"
    program = tmp_path / "nvme_shadow_stress"
    # Not under the sanitizer that the tests themselves may be running under.
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    flags = ["-std=gnu11", "-g", "-O1", "-Wall", "-Wextra", "-Werror", "-pthread"]
    perturbed = ["-include", unit / "perturbed_atomics.h"]
    sources = [
        unit / "nvme_shadow_stress.c",
        *[nvme / f"{name}.c" for name in SOURCES.split()],
    ]
    build = [compiler, *flags, f"-I{nvme}", f"-I{native}", f"-fsanitize={sanitizer}", *perturbed]
    subprocess.run([*build, *sources, "-o", program], check=True, env=environment)
    for seed in range(1, 4):
        result = subprocess.run(
            [program, "20000", str(seed)],
            env={**environment, "ASAN_OPTIONS": "detect_leaks=0"},
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        assert result.returncode == 0, f"seed {seed}:\n{result.stdout}{result.stderr}"
        found = re.fullmatch(
            r"20000 commands; (\d+) exits, (\d+) rests, (\d+) in vain\n", result.stdout
        )
        assert found is not None
        exits, rests, _ = map(int, found.groups())
        assert exits > 0, "the sweep never slept"
        assert rests > 0
        assert "Sanitizer" not in result.stderr
