"""The pytest plug-in: ``pytest -p vdcm.testing.plugin``, or that in pytest's ``addopts``.

It is asked for, and no entry point: pytest would load that in every project of the environment,
with fixtures called ``host`` and ``boot`` for tests that know nothing of vdcm.

What a fixture has started is stopped when its test is over, and shows its log if the test fails.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, TypeVar

import pytest

from vdcm.environment import Environment
from vdcm.errors import PrerequisiteError
from vdcm.recording import Outcome
from vdcm.recording import replay as replay_file
from vdcm.testing.host import Host
from vdcm.testing.machine import Machine
from vdcm.testing.prepared import prepared
from vdcm.testing.server import Server

EVERY_RUNG: Final = "VDCM_EVERY_RUNG"
"""Set in the environment, a guest that cannot be had is a failure and not a skip: for CI, where
nothing left out may look like a pass."""
LONGEST: Final = 70
"""Bytes of the path of a folder that a test's sockets can be in."""
Started = TypeVar("Started", Server, Machine)
Running = Callable[[Started], AbstractContextManager[Started]]
Serve = Callable[..., Server]
Boot = Callable[..., Machine]
Replay = Callable[..., Outcome]
_RUNNING = pytest.StashKey[list[Server | Machine]]()
_OPTIONS = {
    "qemu": "QEMU with vfio-user-pci (10.1 or later)",
    "kernel": "the guests' kernel image",
    "modules": "the folder of that kernel's modules, lib/modules/RELEASE",
    "initrd": "the guests' own initial file system, instead of one that is made",
}


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--vdcm-qemu`` and so on; in pytest's configuration ``vdcm_qemu``."""
    group = parser.getgroup("vdcm", "guests of vdcm.testing")
    for name, what in _OPTIONS.items():
        group.addoption(f"--vdcm-{name}", metavar="PATH", help=what)
        parser.addini(f"vdcm_{name}", what, type="string", default="")


def _chosen(config: pytest.Config) -> dict[str, Path]:
    """What the options say; a relative path is the configuration file's."""
    chosen = {}
    for name in _OPTIONS:
        said = config.getoption(f"vdcm_{name}") or config.getini(f"vdcm_{name}")
        if said:
            chosen[name] = config.rootpath / said
    return chosen


@pytest.fixture(scope="session")
def vdcm_environment(pytestconfig: pytest.Config) -> Environment:
    """What guests are booted with: that of ci/bootstrap, and what the options name instead.

    Without it there is nothing to boot, and the test is skipped with the reason.
    """
    try:
        return prepared(**_chosen(pytestconfig))
    except PrerequisiteError as error:
        if EVERY_RUNG in os.environ:
            pytest.fail(str(error), pytrace=False)
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def vdcm_running(pytestconfig: pytest.Config) -> Running[Any]:
    """``with vdcm_running(Server(...)) as server:`` for a fixture of your own, of any scope."""
    started = pytestconfig.stash.setdefault(_RUNNING, [])

    @contextmanager
    def run(one: Server | Machine) -> Iterator[Server | Machine]:
        started.append(one)
        try:
            with one:
                yield one
        finally:
            started.remove(one)

    return run


@contextmanager
def _short(folder: Path) -> Iterator[Path]:
    """``folder``, or another one where that is too long for the sockets in it (unix(7))."""
    if len(os.fsencode(folder)) <= LONGEST:
        yield folder
        return
    with TemporaryDirectory(prefix="vdcm-") as short:
        yield Path(short)


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    """A server in a thread of the test's own process, which has nothing to complain of."""
    with _short(tmp_path) as folder, Host(folder) as host:
        yield host
    assert host.complaints == []


@pytest.fixture
def serve(tmp_path: Path, vdcm_running: Running[Server]) -> Iterator[Serve]:
    """``serve(vdevs, parents, **options of Server)`` starts a ``vdcm serve`` of the test's own."""
    with ExitStack() as stack:
        folder = stack.enter_context(_short(tmp_path))

        def start(*described: Any, **options: Any) -> Server:
            number = len(list(folder.glob("server*")))
            server = Server(folder / f"server{number}", *described, **options)
            return stack.enter_context(vdcm_running(server))

        yield start


@pytest.fixture
def boot(
    vdcm_environment: Environment, tmp_path: Path, vdcm_running: Running[Machine]
) -> Iterator[Boot]:
    """``boot(devices, **options of Machine)`` starts a guest of the test's own."""
    with ExitStack() as stack:

        def start(devices: list[str], **options: Any) -> Machine:
            number = len(list(tmp_path.glob("guest*")))
            folder = tmp_path / f"guest{number}"
            machine = Machine(vdcm_environment, log_dir=folder, devices=devices, **options)
            return stack.enter_context(vdcm_running(machine))

        yield start


@pytest.fixture(scope="session")
def replay() -> Replay:
    """``replay(file, **options of vdcm.recording.replay)`` does a recorded session again; where the
    model does not do the same, the test fails with the first difference."""

    def check(file: Path, **options: Any) -> Outcome:
        outcome = replay_file(file, **options)
        if outcome.difference is not None:
            pytest.fail(f"{outcome.name} ({outcome.type}): {outcome.difference}", pytrace=False)
        return outcome

    return check


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    report: pytest.TestReport = yield  # type: ignore[assignment]
    if report.failed:
        for one in item.config.stash.get(_RUNNING, []):
            if isinstance(one, Server):
                report.sections.append(("server", one.log_tail()))
            else:
                report.sections.append(("guest", one.console()))
    return report  # type: ignore[return-value]
