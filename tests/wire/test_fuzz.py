"""Mutated messages of every command against a server: no crash, no hang, no leak.

VDCM_FUZZ_MESSAGES sets how many (20,000 unless told), VDCM_FUZZ_SEED repeats a run. The seed is
printed, and a failure names the connection that fuzz.py replays with ``--only``.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Callable

import fuzz
import pytest
from fuzz_messages import Generator
from wire_server import Server

from vdcm.protocol import HEADER, Command, Header

MESSAGES = int(os.environ.get("VDCM_FUZZ_MESSAGES", "20000"))
SEED = int(os.environ.get("VDCM_FUZZ_SEED", random.SystemRandom().getrandbits(32)))


@pytest.mark.timeout(60 + MESSAGES // 500)
def test_server_stands_mutated_messages(
    serve: Callable[..., Server], capsys: pytest.CaptureFixture[str]
) -> None:
    server = serve(patience=1.0)
    with capsys.disabled():
        print(f"\nfuzz: VDCM_FUZZ_SEED={SEED} VDCM_FUZZ_MESSAGES={MESSAGES}")
        report = fuzz.run(str(server.paths[0]), str(server.paths[1]), server.pid, MESSAGES, SEED)
        print(f"fuzz: {report}")
    assert report.messages >= MESSAGES
    # Messages that nobody looked at would prove nothing: most must have been answered.
    assert report.answers > report.messages / 2


def test_scripts_depend_on_the_seed_only() -> None:
    assert Generator(1).script(7) == Generator(1).script(7)
    assert Generator(1).script(7) != Generator(2).script(7)
    assert Generator(1).script(7) != Generator(1).script(8)


def test_generator_reaches_every_command() -> None:
    commands: Counter[int] = Counter()
    generator = Generator(0)
    for index in range(300):
        for piece in generator.script(index).pieces:
            if len(piece.data) >= 16:
                commands[Header._make(HEADER.unpack_from(piece.data)).command] += 1
    assert set(Command) <= set(commands)
    assert any(command not in set(Command) for command in commands)
