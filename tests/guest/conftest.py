"""One server and one guest for all tests that can share them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.guest import copies, disk, idxd, nic, showcase
from tests.guest.lab import OPTIONS, Lab
from vdcm.environment import Environment
from vdcm.testing import Machine, Server, build_program, root_port, vfio_user
from vdcm.testing.plugin import Running

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def environment(vdcm_environment: Environment) -> Environment:
    """What ci/bootstrap provides."""
    return vdcm_environment


@pytest.fixture(scope="session")
def lab(
    environment: Environment,
    tmp_path_factory: pytest.TempPathFactory,
    vdcm_running: Running[Any],
) -> Iterator[Lab]:
    folder = tmp_path_factory.mktemp("lab")
    vdevs: dict[str, dict[str, Any]] = {
        "gpio0": {"type": "pcie-idio-16", "inputs": 0x00FF},
        "show0": {"type": "showcase"},
    }
    server = Server(folder, vdevs, models=showcase.MODELS)
    machine = Machine(
        environment,
        log_dir=folder,
        **OPTIONS,
        devices=[
            *root_port(1),
            *vfio_user(server.socket("gpio0")),
            *vfio_user(server.socket("show0"), bus="rp1"),
        ],
    )
    with vdcm_running(server), vdcm_running(machine):
        yield Lab(server, machine)


@pytest.fixture(scope="session")
def idxd_options(
    environment: Environment, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """What a Machine needs in order to have idxd and to copy with it."""
    folder = tmp_path_factory.mktemp("built")
    files = {
        **idxd.movdir64b(environment, folder),
        **copies.dmacopy(environment, folder),
        **build_program(HERE / "perfcount", folder),
        **build_program(HERE / "regwalk", folder),
    }
    return {"modules": idxd.MODULES, "tools": idxd.TOOLS, "files": files}


@pytest.fixture(scope="session")
def idxd_lab(
    environment: Environment,
    idxd_options: dict[str, Any],
    tmp_path_factory: pytest.TempPathFactory,
    vdcm_running: Running[Any],
) -> Iterator[idxd.IdxdLab]:
    folder = tmp_path_factory.mktemp("idxd")
    vdevs = {"dsa0": {"type": "dsa-2dwq-1swq"}, "dsa1": {"type": "dsa-1dwq"}}
    server = Server(folder, {**vdevs, "spare0": {"type": "dsa-1dwq"}})
    machine = Machine(
        environment,
        log_dir=folder,
        cpus=4,
        **idxd_options,
        devices=[argument for name in vdevs for argument in vfio_user(server.socket(name))],
    )
    with vdcm_running(server), vdcm_running(machine):
        yield idxd.IdxdLab(server, machine)


@pytest.fixture(scope="session")
def avf_lab(
    environment: Environment,
    tmp_path_factory: pytest.TempPathFactory,
    vdcm_running: Running[Any],
) -> Iterator[nic.Nic]:
    folder = tmp_path_factory.mktemp("avf")
    server = Server(folder, {"nic0": {"type": "avf", "mac": "02:00:00:00:00:01"}})
    machine = Machine(
        environment,
        log_dir=folder,
        cpus=2,
        modules=nic.MODULES,
        tools=nic.TOOLS,
        devices=vfio_user(server.socket("nic0")),
    )
    with vdcm_running(server), vdcm_running(machine):
        yield nic.Nic(server, machine, "nic0")


@pytest.fixture(scope="session")
def avf_pair(
    environment: Environment,
    tmp_path_factory: pytest.TempPathFactory,
    vdcm_running: Running[Any],
) -> Iterator[nic.Pair]:
    folder = tmp_path_factory.mktemp("avf-pair")
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
    with vdcm_running(server), vdcm_running(machines[0]), vdcm_running(machines[1]):
        yield nic.Pair(*(nic.Nic(server, machines[i], name) for i, name in enumerate("ab")))


@pytest.fixture(scope="session")
def nvme_lab(
    environment: Environment,
    tmp_path_factory: pytest.TempPathFactory,
    vdcm_running: Running[Any],
) -> Iterator[disk.NvmeLab]:
    folder = tmp_path_factory.mktemp("nvme")
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
    with vdcm_running(server), vdcm_running(machine):
        yield disk.NvmeLab(server, machine, store)
