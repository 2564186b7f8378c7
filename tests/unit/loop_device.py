"""A block device over a file, where the machine lets one have it."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def loop_device(file: Path) -> Iterator[Path]:
    """Its path, as long as it is there."""
    losetup = shutil.which("losetup", path="/usr/sbin:/sbin:/usr/bin:/bin")
    if losetup is None:
        pytest.skip("there is no losetup: install util-linux")
    done = subprocess.run(
        [losetup, "--find", "--show", str(file)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"no loop device can be had here: {done.stderr.strip()}")
    path = Path(done.stdout.strip())
    try:
        yield path
    finally:
        subprocess.run([losetup, "--detach", str(path)], check=True)
