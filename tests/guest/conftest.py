"""One server and one guest for all tests that can share them; their logs when a test fails."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.guest import copies, disk, gpio, idxd, nic
from tests.guest.kernel_module import build_program
from tests.guest.lab import MODULES, Lab, root_port
from tests.guest.machine import Machine, vfio_user
from tests.guest.server import Server
from vdcm.environment import Environment, load_environment
from vdcm.errors import PrerequisiteError

_STARTED = pytest.StashKey[list[Server | Machine]]()


@pytest.fixture(scope="session")
def environment() -> Environment:
    """What ci/bootstrap provides; without it there is nothing to boot."""
    try:
        return load_environment()
    except PrerequisiteError as error:
        if "VDCM_EVERY_RUNG" in os.environ:  # ci/test: nothing left out may look like a pass
            pytest.fail(str(error), pytrace=False)
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def lab(
    environment: Environment,
    tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
) -> Iterator[Lab]:
    folder = tmp_path_factory.mktemp("lab")
    started = request.config.stash.setdefault(_STARTED, [])
    vdevs: dict[str, dict[str, Any]] = {
        "gpio0": {"type": "pcie-idio-16", "inputs": 0x00FF},
        "show0": {"type": "showcase"},
    }
    server = Server(folder, vdevs)
    machine = Machine(
        environment,
        log_dir=folder,
        modules=MODULES,
        tools=gpio.TOOLS,
        devices=[
            *root_port(1),
            *vfio_user(server.socket("gpio0")),
            *vfio_user(server.socket("show0"), bus="rp1"),
        ],
    )
    started += [server, machine]
    with server, machine:
        yield Lab(server, machine)
    started.remove(machine)
    started.remove(server)


@pytest.fixture(scope="session")
def idxd_options(
    environment: Environment, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """What a Machine needs in order to have idxd and to copy with it."""
    folder = tmp_path_factory.mktemp("built")
    files = {
        **idxd.movdir64b(environment, folder),
        **copies.dmacopy(environment, folder),
        **build_program("perfcount", folder),
        **build_program("regwalk", folder),
    }
    return {"modules": idxd.MODULES, "tools": idxd.TOOLS, "files": files}


@pytest.fixture(scope="session")
def idxd_lab(
    environment: Environment,
    idxd_options: dict[str, Any],
    tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
) -> Iterator[idxd.IdxdLab]:
    folder = tmp_path_factory.mktemp("idxd")
    started = request.config.stash.setdefault(_STARTED, [])
    vdevs = {"dsa0": {"type": "dsa-2dwq-1swq"}, "dsa1": {"type": "dsa-1dwq"}}
    server = Server(folder, {**vdevs, "spare0": {"type": "dsa-1dwq"}})
    machine = Machine(
        environment,
        log_dir=folder,
        cpus=4,
        **idxd_options,
        devices=[argument for name in vdevs for argument in vfio_user(server.socket(name))],
    )
    started += [server, machine]
    with server, machine:
        yield idxd.IdxdLab(server, machine)
    started.remove(machine)
    started.remove(server)


@pytest.fixture(scope="session")
def avf_lab(
    environment: Environment,
    tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
) -> Iterator[nic.Nic]:
    folder = tmp_path_factory.mktemp("avf")
    started = request.config.stash.setdefault(_STARTED, [])
    server = Server(folder, {"nic0": {"type": "avf", "mac": "02:00:00:00:00:01"}})
    machine = Machine(
        environment,
        log_dir=folder,
        cpus=2,
        modules=nic.MODULES,
        tools=nic.TOOLS,
        devices=vfio_user(server.socket("nic0")),
    )
    started += [server, machine]
    with server, machine:
        yield nic.Nic(server, machine, "nic0")
    started.remove(machine)
    started.remove(server)


@pytest.fixture(scope="session")
def avf_pair(
    environment: Environment,
    tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
) -> Iterator[nic.Pair]:
    folder = tmp_path_factory.mktemp("avf-pair")
    started = request.config.stash.setdefault(_STARTED, [])
    server = Server(folder, {name: {"type": "avf"} for name in ("a", "b")}, trace=False)
    machines = [
        Machine(
            environment,
            log_dir=folder / name,
            cpus=4,
            modules=nic.MODULES,
            tools=nic.TRAFFIC_TOOLS,
            devices=vfio_user(server.socket(name)),
        )
        for name in ("a", "b")
    ]
    started += [server, *machines]
    with server, machines[0], machines[1]:
        yield nic.Pair(*(nic.Nic(server, machines[i], name) for i, name in enumerate("ab")))
    for one in (server, *machines):
        started.remove(one)


@pytest.fixture(scope="session")
def nvme_lab(
    environment: Environment,
    tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
) -> Iterator[disk.NvmeLab]:
    folder = tmp_path_factory.mktemp("nvme")
    started = request.config.stash.setdefault(_STARTED, [])
    store = folder / "store.img"
    names = disk.NvmeLab.VDEVS
    server = Server(
        folder,
        {name: {"type": "nvme", "size": "64M", "doorbells": name} for name in names},
        {"nvme0": {"model": "nvme", "store": f"file:{store}", "size": "256M"}},
    )
    machine = Machine(
        environment,
        log_dir=folder,
        cpus=2,
        **disk.machine_options(environment),
        devices=[argument for name in names for argument in vfio_user(server.socket(name))],
    )
    started += [server, machine]
    with server, machine:
        yield disk.NvmeLab(server, machine, store)
    started.remove(machine)
    started.remove(server)


Serve = Callable[..., Server]
Boot = Callable[..., Machine]


@pytest.fixture
def serve(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Serve]:
    """``serve(vdevs, parents)`` starts a server of the test's own."""
    yield from _factory(request, lambda *described: Server(tmp_path, *described))


@pytest.fixture
def boot(
    environment: Environment, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[Boot]:
    """``boot(devices, **options of Machine)`` starts a guest of the test's own."""

    def make(devices: list[str], **options: Any) -> Machine:
        number = len(list(tmp_path.glob("guest*")))
        folder = tmp_path / f"guest{number}"
        options = {"modules": MODULES, "tools": gpio.TOOLS, **options}
        return Machine(environment, log_dir=folder, devices=devices, **options)

    yield from _factory(request, make)


def _factory(
    request: pytest.FixtureRequest, make: Callable[..., Any]
) -> Iterator[Callable[..., Any]]:
    """``make`` that also starts what it makes; all of it is stopped when the test is over."""
    started = request.config.stash.setdefault(_STARTED, [])
    mine: list[Any] = []

    def start(*arguments: Any, **options: Any) -> Any:
        made = make(*arguments, **options)
        mine.append(made)
        started.append(made)
        made.start()
        return made

    try:
        yield start
    finally:
        for made in reversed(mine):
            started.remove(made)
            made.stop()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    report: pytest.TestReport = yield  # type: ignore[assignment]
    if report.failed:
        for one in item.config.stash.get(_STARTED, []):
            if isinstance(one, Server):
                report.sections.append(("server", one.log_tail()))
            else:
                report.sections.append(("guest", one.console()))
    return report  # type: ignore[return-value]
