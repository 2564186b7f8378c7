"""The native build says what is missing and how to get it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

NATIVE = Path(__file__).resolve().parents[2] / "native"
# A pip-installed cmake lies beside the interpreter.
CMAKE = shutil.which("cmake", path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}")


def configure(tmp_path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("LIBVFIO_USER")}
    assert CMAKE is not None
    return subprocess.run(
        [CMAKE, "-S", str(NATIVE), "-B", str(tmp_path / "build"),
         f"-DPython_EXECUTABLE={sys.executable}"],
        env={**clean, "XDG_CACHE_HOME": str(tmp_path / "cache"), **environment},
        capture_output=True, text=True,
    )  # fmt: skip


@pytest.mark.skipif(CMAKE is None, reason="cmake is not installed: ci/bootstrap provides it")
@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, "run ci/bootstrap"),
        ({"LIBVFIO_USER_SOURCE": "/nonexistent"}, "holds no include/libvfio-user.h"),
    ],
)
def test_what_is_missing_is_named(
    tmp_path: Path, environment: dict[str, str], expected: str
) -> None:
    done = configure(tmp_path, **environment)
    assert done.returncode != 0
    assert expected in " ".join(done.stderr.split())
