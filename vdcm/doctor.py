"""What this machine has and lacks for serving VDEVs and for a QEMU that uses them.

Each check is a function that returns a ``Check``; one that goes wrong itself is a failed check.
"""

from __future__ import annotations

import mmap
import os
import re
import resource
import shutil
import subprocess
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Final

from vdcm.environment import load_environment
from vdcm.errors import PrerequisiteError, VdcmError
from vdcm.parent import models
from vdcm.transport import LIBVFIO_USER_GENERATION

MINIMUM_QEMU: Final = (10, 1)
"""The first release with ``-device vfio-user-pci``."""
MINIMUM_FILES: Final = 4096
MINIMUM_MEMORY: Final = 1 << 30
MINIMUM_MAPS: Final = 65530
"""Linux' default of vm.max_map_count."""

_GUEST_MODULES: Final = ("gpio-pci-idio-16", "vfio-pci", "uio_pci_generic")
_PROBE_SECONDS: Final = 30


class Status(Enum):
    """``FAIL``: VDEVs cannot be served or attached. ``WARN``: slower, or only in part."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True)
class Check:
    """The answer of one check; ``fix`` says what to do unless all is well."""

    name: str
    status: Status
    detail: str
    fix: str = ""


def ok(name: str, detail: str) -> Check:
    return Check(name, Status.OK, detail)


def warn(name: str, detail: str, fix: str) -> Check:
    return Check(name, Status.WARN, detail, fix)


def fail(name: str, detail: str, fix: str) -> Check:
    return Check(name, Status.FAIL, detail, fix)


# --- QEMU ---------------------------------------------------------------------------------------


def qemu_commands() -> list[tuple[str, ...]]:
    """Where a QEMU may be, best first: $VDCM_QEMU, the PATH, what ci/bootstrap has provided."""
    commands: list[tuple[str, ...]] = []
    named = os.environ.get("VDCM_QEMU")
    if named:
        return [(named,)]
    found = shutil.which("qemu-system-x86_64")
    if found:
        commands.append((found,))
    with suppress(PrerequisiteError):  # said by guest_kernel()
        commands.append(load_environment().qemu)
    return commands


def _output(command: Sequence[str]) -> str:
    result = subprocess.run(
        command, capture_output=True, text=True, errors="replace", timeout=_PROBE_SECONDS
    )
    return result.stdout + result.stderr


def qemu() -> Check:
    """A QEMU that lists vfio-user-pci."""
    name = "qemu"
    fix = (
        "run ci/bootstrap, install QEMU 10.1 or later (Debian 12, 13: the backports' "
        "qemu-system-x86), or set VDCM_QEMU to one"
    )
    commands = qemu_commands()
    if not commands:
        return fail(name, "no qemu-system-x86_64 on the PATH, nor provided by ci/bootstrap", fix)
    seen = []
    for command in commands:
        try:
            text = _output([*command, "--version"])
            devices = _output([*command, "-device", "help"])
        except (OSError, subprocess.TimeoutExpired) as error:
            seen.append(f"{command[0]} does not run: {error}")
            continue
        found = re.search(r"version (\d+)\.(\d+)(?:\.\d+)*", text)
        version = found.group(0) if found else "of unknown version"
        if found and (int(found[1]), int(found[2])) < MINIMUM_QEMU:
            seen.append(f"{command[0]} is {version}, vfio-user-pci came with 10.1")
        elif '"vfio-user-pci"' not in devices:
            seen.append(f"{command[0]}, {version}, is built without vfio-user-pci")
        else:
            return ok(name, f"{version} with vfio-user-pci: {' '.join(command)}")
    return fail(name, "; ".join(seen), fix)


def kvm() -> Check:
    """Hardware acceleration; TCG does without."""
    name = "kvm"
    slow = "nothing needs it: QEMU falls back to TCG (-accel tcg), about ten times slower"
    flags = Path("/proc/cpuinfo").read_text(errors="replace")
    if not re.search(r"^flags\s*:.*\b(vmx|svm)\b", flags, re.MULTILINE):
        return warn(name, "the CPU shows neither vmx nor svm", slow)
    try:
        os.close(os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError:
        return warn(name, "/dev/kvm is missing", f"modprobe kvm_intel or kvm_amd; {slow}")
    except OSError as error:
        return warn(
            name,
            f"/dev/kvm cannot be opened: {error.strerror}",
            f"sudo usermod -aG kvm $USER and log in again; {slow}",
        )
    return ok(name, "/dev/kvm opens and the CPU has virtualization")


# --- limits and memory --------------------------------------------------------------------------


def open_files() -> Check:
    """Each VDEV needs a socket, its guest's memory and an eventfd per vector."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    name, detail = "open files", f"{_limit(soft)} (hard limit {_limit(hard)})"
    if _below(soft, MINIMUM_FILES):
        return warn(
            name,
            f"{detail}; many VDEVs with many vectors need {MINIMUM_FILES}",
            f"ulimit -n {MINIMUM_FILES}, or LimitNOFILE={MINIMUM_FILES} in the systemd unit",
        )
    return ok(name, detail)


def locked_memory() -> Check:
    """Only a guest with devices of the host's own (vfio-pci) pins its memory; VDEVs do not."""
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    detail = "unlimited" if soft == resource.RLIM_INFINITY else f"{soft // 1024} KiB"
    return ok("locked memory", f"{detail} (VDEVs lock none)")


def _limit(value: int) -> str:
    return "unlimited" if value == resource.RLIM_INFINITY else str(value)


def _below(value: int, wanted: int) -> bool:
    return value != resource.RLIM_INFINITY and value < wanted


def shared_memory() -> Check:
    """A memfd that can be mapped: what guest RAM and direct pages are made of."""
    fd = os.memfd_create("vdcm-doctor")
    try:
        os.ftruncate(fd, mmap.PAGESIZE)
        with mmap.mmap(fd, mmap.PAGESIZE) as pages:
            pages[0] = 1
    finally:
        os.close(fd)
    return ok("shared memory", "memfd works")


def memory() -> Check:
    """Room for a guest of 1 GiB."""
    found = re.search(r"^MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    free = int(found[1]) * 1024 if found else 0
    detail = f"{free >> 20} MiB available"
    if free < MINIMUM_MEMORY:
        return warn("memory", detail, "give the guest less: vdcm qemu-args FILE --memory 256M")
    return ok("memory", detail)


def memory_maps() -> Check:
    """A guest's RAM comes in ranges, each a mapping; QEMU splits them many times during boot."""
    count = int(Path("/proc/sys/vm/max_map_count").read_text())
    detail = f"vm.max_map_count is {count}"
    if count < MINIMUM_MAPS:
        return warn("memory maps", detail, f"sudo sysctl vm.max_map_count={MINIMUM_MAPS}")
    return ok("memory maps", detail)


# --- guest and models ---------------------------------------------------------------------------


def guest_kernel() -> Check:
    """The kernel of the demo and the guest tests; one's own guests bring theirs."""
    name = "guest kernel"
    fix = "run ci/bootstrap; only the demo and the guest tests need it"
    try:
        environment = load_environment()
    except PrerequisiteError as error:
        return warn(name, str(error), fix)
    # Only files: modules.dep is missing where depmod has not run, module files are the truth.
    there = {
        path.name.partition(".ko")[0].replace("-", "_")
        for path in environment.modules.rglob("*.ko*")
    }
    missing = [one for one in _GUEST_MODULES if one.replace("-", "_") not in there]
    if missing:
        return warn(name, f"{environment.kernel_release} lacks {', '.join(missing)}", fix)
    return ok(name, f"{environment.kernel_release} with {', '.join(_GUEST_MODULES)}")


def libvfio_user() -> Check:
    """Which generation of its API this vdcm was built against."""
    api = {1: "the API of 2022", 2: "the API of later years"}[LIBVFIO_USER_GENERATION]
    return ok("libvfio-user", f"built in, {api}")


def device_models() -> Check:
    """Every installed device model loads."""
    name = "device models"
    try:
        found = models()
    except VdcmError as error:
        return fail(name, str(error), "reinstall the package that has it, or remove that package")
    if not found:
        return fail(name, "none is installed", "reinstall vdcm: pip install .")
    types = sorted(kind for model in found.values() for kind in model.types)
    return ok(name, f"{', '.join(sorted(found))}, for the types {', '.join(types)}")


CHECKS: Final[tuple[Callable[[], Check], ...]] = (
    qemu,
    libvfio_user,
    kvm,
    open_files,
    locked_memory,
    shared_memory,
    memory,
    memory_maps,
    guest_kernel,
    device_models,
)


def examine(checks: Sequence[Callable[[], Check]] = CHECKS) -> list[Check]:
    """Run all checks. One that raises has failed, with what it raised."""
    results = []
    for check in checks:
        try:
            results.append(check())
        except Exception as error:
            name = check.__name__.replace("_", " ")
            results.append(
                fail(name, f"cannot be checked: {error}", "report this, with vdcm --debug doctor")
            )
    return results


def healthy(results: Sequence[Check]) -> bool:
    """No check has failed."""
    return all(each.status is not Status.FAIL for each in results)
