"""A guest of each type of DSA that does what it likes: the daemon lives, and nobody else notices.

VDCM_FUZZ_STEPS sets how much it does (300 steps unless told), VDCM_FUZZ_SEED repeats a run. The
seed is printed; dsa_fuzz.py runs one by itself.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

import dsa_fuzz
import pytest

STEPS = int(os.environ.get("VDCM_FUZZ_STEPS", "300"))
SEED = int(os.environ.get("VDCM_FUZZ_SEED", random.SystemRandom().getrandbits(32)))


@pytest.mark.conformance("R2.6-1", "R2.6-9")
@pytest.mark.timeout(60 + STEPS // 5)
@pytest.mark.parametrize(
    ("kind", "portals"),
    [
        ("dsa-1dwq", "intercepted"),
        ("dsa-1swq", "direct"),
        ("dsa-2dwq-1swq", "direct"),
        ("dsa-2dwq-1swq", "intercepted"),
        ("dsa-dynamic", "direct"),
    ],
)
def test_a_guest_that_does_what_it_likes(
    tmp_path: Path, kind: str, portals: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with capsys.disabled():
        print(f"\ndsa fuzz: {kind} {portals} VDCM_FUZZ_SEED={SEED} VDCM_FUZZ_STEPS={STEPS}")
    done = dsa_fuzz.run(tmp_path, kind, portals, STEPS, SEED)
    # Work that was refused from the first to the last would prove nothing.
    assert done["accepted"] > STEPS / 10
    assert done["succeeded"] > 0
    assert done["failed"] > 0
