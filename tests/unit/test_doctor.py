"""The checks of ``vdcm doctor`` on machines that lack this or that."""

from __future__ import annotations

import errno
import os
import resource
from pathlib import Path

import pytest
from small_model import House

from vdcm import doctor
from vdcm.doctor import Check, Status
from vdcm.errors import DeclarationError, PrerequisiteError


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No QEMU and no bootstrap, until a test says so."""
    monkeypatch.delenv("VDCM_QEMU", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def program(path: Path, version: str, devices: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(
        f'#!/bin/sh\nif [ "$1" = --version ]; then echo "QEMU emulator version {version}"\n'
        f"else echo '{devices}' >&2; fi\n"
    )
    path.chmod(0o755)
    return path


DEVICE = 'name "vfio-user-pci", bus PCI'


def test_no_qemu() -> None:
    check = doctor.qemu()
    assert check.status is Status.FAIL
    assert "ci/bootstrap" in check.fix


def test_qemu_on_the_path(tmp_path: Path) -> None:
    program(tmp_path / "bin/qemu-system-x86_64", "10.1.2 (Debian)", DEVICE)
    check = doctor.qemu()
    assert check.status is Status.OK
    assert "version 10.1.2" in check.detail


@pytest.mark.parametrize(
    ("version", "devices", "said"),
    [
        ("7.2.22", DEVICE, "version 7.2.22, vfio-user-pci came with 10.1"),
        ("10.0.9", DEVICE, "vfio-user-pci came with 10.1"),
        ("11.1.0", 'name "vfio-pci", bus PCI', "built without vfio-user-pci"),
        ("of the future", "", "of unknown version, is built without"),
    ],
)
def test_a_qemu_that_will_not_do(tmp_path: Path, version: str, devices: str, said: str) -> None:
    program(tmp_path / "bin/qemu-system-x86_64", version, devices)
    check = doctor.qemu()
    assert check.status is Status.FAIL
    assert said in check.detail


def test_named_qemu_comes_first_and_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path / "bin/qemu-system-x86_64", "11.1.0", DEVICE)
    monkeypatch.setenv("VDCM_QEMU", str(tmp_path / "missing"))
    check = doctor.qemu()
    assert check.status is Status.FAIL
    assert "missing does not run" in check.detail


def test_provided_qemu_when_the_paths_is_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(tmp_path / "bin/qemu-system-x86_64", "7.2.0", DEVICE)
    good = program(tmp_path / "own/qemu", "11.1.0", DEVICE)
    monkeypatch.setattr(doctor, "qemu_commands", lambda: [("qemu-system-x86_64",), (str(good),)])
    assert doctor.qemu().status is Status.OK


@pytest.mark.parametrize(
    ("flags", "error", "status"),
    [
        ("fpu vmx sse", 0, Status.OK),
        ("fpu svm", 0, Status.OK),
        ("fpu sse vmxfoo", 0, Status.WARN),
        ("fpu vmx", errno.ENOENT, Status.WARN),
        ("fpu vmx", errno.EACCES, Status.WARN),
    ],
)
def test_kvm(monkeypatch: pytest.MonkeyPatch, flags: str, error: int, status: Status) -> None:
    def open_kvm(path: str, _flags: int) -> int:
        assert path == "/dev/kvm"
        if error:
            raise OSError(error, os.strerror(error))
        return os.dup(0)

    monkeypatch.setattr(Path, "read_text", lambda *_, **__: f"processor: 0\nflags\t\t: {flags}\n")
    monkeypatch.setattr(doctor.os, "open", open_kvm)
    check = doctor.kvm()
    assert check.status is status
    assert bool(check.fix) is (status is not Status.OK)


@pytest.mark.parametrize(
    ("soft", "status"),
    [(1024, Status.WARN), (4096, Status.OK), (resource.RLIM_INFINITY, Status.OK)],
)
def test_open_files(monkeypatch: pytest.MonkeyPatch, soft: int, status: Status) -> None:
    monkeypatch.setattr(doctor.resource, "getrlimit", lambda _: (soft, 1 << 20))
    assert doctor.open_files().status is status


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("MemFree: 9 kB\nMemAvailable:    4194304 kB\n", Status.OK),
        ("MemAvailable:    524288 kB\n", Status.WARN),
        ("", Status.WARN),
    ],
)
def test_memory(monkeypatch: pytest.MonkeyPatch, text: str, status: Status) -> None:
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: text)
    assert doctor.memory().status is status


@pytest.mark.parametrize(("count", "status"), [(65530, Status.OK), (1000, Status.WARN)])
def test_memory_maps(monkeypatch: pytest.MonkeyPatch, count: int, status: Status) -> None:
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: f"{count}\n")
    assert doctor.memory_maps().status is status


def test_guest_kernel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert doctor.guest_kernel().status is Status.WARN  # no bootstrap has run

    class Environment:
        kernel_release = "6.1"
        modules = tmp_path / "modules"

    monkeypatch.setattr(doctor, "load_environment", Environment)
    drivers = Environment.modules / "kernel/drivers"
    drivers.mkdir(parents=True)
    for name in ("gpio-pci-idio-16.ko", "vfio-pci.ko.xz"):
        (drivers / name).touch()
    check = doctor.guest_kernel()
    assert (check.status, check.detail) == (Status.WARN, "6.1 lacks uio_pci_generic")
    (drivers / "uio_pci_generic.ko.zst").touch()
    assert doctor.guest_kernel().status is Status.OK


def test_device_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "models", lambda: {"house": House})
    check = doctor.device_models()
    assert (check.status, check.detail) == (Status.OK, "house, for the types broken-lamp, lamp")
    monkeypatch.setattr(doctor, "models", dict)
    assert doctor.device_models().status is Status.FAIL

    def broken() -> None:
        raise DeclarationError("device model x does not load")

    monkeypatch.setattr(doctor, "models", broken)
    assert doctor.device_models().detail == "device model x does not load"


def test_checks_of_this_machine_need_no_privilege() -> None:
    assert doctor.shared_memory().status is Status.OK
    assert doctor.locked_memory().status is Status.OK


def test_a_check_that_raises_has_failed() -> None:
    def odd_check() -> Check:
        raise PrerequisiteError("no /proc")

    (check,) = doctor.examine([odd_check])
    assert (check.name, check.status) == ("odd check", Status.FAIL)
    assert "no /proc" in check.detail
    assert not doctor.healthy([check])
    assert doctor.healthy([Check("a", Status.OK, ""), Check("b", Status.WARN, "", "")])


def test_every_check_answers() -> None:
    results = doctor.examine()
    assert len(results) == len(doctor.CHECKS)
    for result in results:
        assert result.detail
        assert bool(result.fix) is (result.status is not Status.OK)
