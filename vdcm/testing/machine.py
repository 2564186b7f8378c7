"""A guest: stock QEMU with the distribution's kernel and our initramfs, driven from Python.

    with Machine(environment, devices=vfio_user("/run/x.sock"), log_dir=tmp_path) as machine:
        print(machine.check("lspci -nn"))

Commands go over a serial port of their own (``init.sh`` has the framing), the kernel's console
into a file. Both ports and QMP are socket pairs, so there is no path to collide or clean up.
"""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from vdcm.environment import Environment
from vdcm.testing.initramfs import AGENT, build_initramfs
from vdcm.testing.qmp import GuestError, Qmp

BOOT_SECONDS = 60.0  # a limit, not an expectation: 3 to 6 s under TCG
_GRACE_SECONDS = 10.0  # for an answer after the guest should have killed the command
_TAIL_LINES = 40
# A panic or an oops must end the run at once: reboot, which -no-reboot turns into QEMU's exit.
# The crypto self-tests cost an emulated CPU 0.7 s.
_KERNEL_ARGUMENTS = (
    "console=ttyS0 quiet panic=-1 oops=panic nokaslr random.trust_cpu=on cryptomgr.notests"
)


@dataclass(frozen=True)
class Result:
    """What a command in the guest gave: exit status, stdout and stderr as they came."""

    status: int
    output: str


def vfio_user(path: Path | str, **properties: Any) -> list[str]:
    """QEMU's arguments for a vfio-user device on the root bus of a ``q35`` machine.

    The bus matters: extended configuration space is visible on PCI Express only.
    """
    device = {
        "driver": "vfio-user-pci",
        "socket": {"type": "unix", "path": str(path)},
        **properties,
    }
    return ["-device", json.dumps(device)]


def acceleration() -> list[str]:
    """KVM where the processor has it; a /dev/kvm alone does not run a stock kernel."""
    flags = Path("/proc/cpuinfo").read_text().split()
    if {"vmx", "svm"} & set(flags) and os.access("/dev/kvm", os.R_OK | os.W_OK):
        return ["-accel", "kvm", "-cpu", "host"]
    return ["-accel", "tcg", "-cpu", "max"]


class Machine:
    """One guest. ``devices`` are further QEMU arguments, ``memory`` is as QEMU writes it.

    ``modules`` are the kernel modules that the guest can load, with their closure; none is
    loaded at boot. ``tools`` and ``files``: see ``build_initramfs``. ``log_dir`` gets
    ``console.log`` and ``qemu.log``. ``backend`` is where its RAM comes from, as after QEMU's
    ``memory-backend-``; a vfio-user server can reach what has ``share=on``.
    ``kernel_arguments`` are added to the usual ones.
    """

    def __init__(
        self,
        environment: Environment,
        *,
        log_dir: Path,
        devices: Sequence[str] = (),
        memory: str = "512M",
        cpus: int = 1,
        modules: Iterable[str] = (),
        tools: Iterable[str] = (),
        files: Mapping[str, bytes | Path] | None = None,
        backend: str = "memfd,share=on",
        kernel_arguments: str = "",
    ) -> None:
        log_dir.mkdir(parents=True, exist_ok=True)
        self.console_log = log_dir / "console.log"
        self.qemu_log = log_dir / "qemu.log"
        self.boot_seconds = 0.0
        self._environment = environment
        own_init = f" rdinit=/{AGENT}" if environment.initrd is not None else ""
        self._arguments = [
            *("-M", "q35,memory-backend=ram,vmport=off", "-m", memory, "-smp", str(cpus)),
            *("-object", f"memory-backend-{backend},id=ram,size={memory}"),
            *("-append", f"{_KERNEL_ARGUMENTS} {kernel_arguments}{own_init}"),
            *devices,
        ]  # fmt: skip
        self._initramfs = log_dir / "initramfs.cpio"
        self._initramfs.write_bytes(
            build_initramfs(environment, modules=modules, tools=tools, files=files)
        )
        self._process: subprocess.Popen[bytes] | None = None
        self._port: socket.socket
        self._pending = b""
        self._count = 0
        self.qmp: Qmp

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """QEMU's process id."""
        return self._running().pid

    def start(self) -> None:
        """Start QEMU and wait until the guest takes commands. Raises GuestError."""
        self._pending = b""
        self._port, port = socket.socketpair()
        monitor, qmp = socket.socketpair()
        argv = [
            # A test run that is killed must not leave guests behind.
            *("setpriv", "--pdeathsig", "KILL", "--"),
            *self._environment.qemu,
            *acceleration(),
            *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
            *("-chardev", f"file,id=console,path={self.console_log}"),
            *("-serial", "chardev:console"),
            *("-chardev", f"socket,id=commands,fd={port.fileno()}", "-serial", "chardev:commands"),
            *("-chardev", f"socket,id=qmp,fd={qmp.fileno()}", "-qmp", "chardev:qmp"),
            *("-kernel", str(self._environment.kernel), "-initrd", str(self._initramfs)),
            *self._arguments,
        ]
        begin = time.monotonic()
        with port, qmp, self.qemu_log.open("wb") as log:
            self._process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(port.fileno(), qmp.fileno()),
            )
        try:
            try:
                self.qmp = Qmp(monitor)
            except GuestError as error:
                raise self._gone("start") from error
            self._wait_ready()
        except BaseException:
            self.stop()
            raise
        self.boot_seconds = time.monotonic() - begin

    def stop(self) -> None:
        """End QEMU, if it runs; the guest is not asked."""
        if self._process is not None:
            if self._process.poll() is None:
                self._process.kill()
            self._process.wait()
            self._process = None
            self._port.close()
            if hasattr(self, "qmp"):
                self.qmp.close()

    def kill(self) -> None:
        """SIGKILL to QEMU, as a crash would look to the server; returns when it is gone."""
        process = self._running()
        process.send_signal(signal.SIGKILL)
        process.wait()

    def run(self, command: str, timeout: float = 20.0) -> Result:
        """Run shell code in the guest; after ``timeout`` seconds it is killed (status 137).

        Raises GuestError if the guest dies or does not answer at all.
        """
        self._running()
        self._count += 1
        name = f"c{self._count}"
        seconds = max(1, round(timeout))
        encoded = base64.b64encode(command.encode()).decode()
        deadline = time.monotonic() + timeout + _GRACE_SECONDS
        self._send(f"{name} {seconds} {encoded}\n".encode(), deadline, command)
        answer = self._line(deadline, command)
        if not re.fullmatch(rf"{name} \d+ \d+", answer):
            raise self._error(f"the guest answered {answer!r} to {name}: {command}")
        _, status, size = answer.split()
        output = self._receive(int(size), deadline, command)
        return Result(int(status), output.decode(errors="replace"))

    def check(self, command: str, timeout: float = 20.0) -> str:
        """Run shell code that must end with status 0; returns its output. Raises GuestError."""
        result = self.run(command, timeout)
        if result.status:
            raise self._error(f"status {result.status} from: {command}\n{result.output}")
        return result.output

    def reboot(self, how: str = "reboot -f") -> None:
        """Reboot the guest (the devices are reset) and wait until it takes commands again.

        ``how`` is what it is to do itself; with nothing, QEMU resets the machine.
        """
        self.qmp.execute("set-action", reboot="reset")
        if how:
            encoded = base64.b64encode(how.encode()).decode()
            deadline = time.monotonic() + BOOT_SECONDS
            self._send(f"reboot 1 {encoded}\n".encode(), deadline, how)
        else:
            self.qmp.execute("system_reset")
        # What a dying guest still sends is not the new one's.
        self._wait_ready()
        self.qmp.execute("set-action", reboot="shutdown")

    def console(self, lines: int = _TAIL_LINES) -> str:
        """The last lines of the kernel's console and of what QEMU said."""
        parts = []
        for log in (self.qemu_log, self.console_log):
            text = log.read_text(errors="replace") if log.exists() else ""
            tail = "\n".join(text.splitlines()[-lines:])
            if tail:
                parts.append(f"--- {log.name}\n{tail}")
        return "\n".join(parts)

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise self._error("the machine is not started")
        return self._process

    def _wait_ready(self) -> None:
        deadline = time.monotonic() + BOOT_SECONDS
        while not self._line(deadline, "boot").endswith("ready 0 0"):
            pass

    def _send(self, data: bytes, deadline: float, what: str) -> None:
        self._port.settimeout(max(0.01, deadline - time.monotonic()))
        try:
            self._port.sendall(data)
        except OSError as error:
            raise self._gone(what) from error

    def _line(self, deadline: float, what: str) -> str:
        while b"\n" not in self._pending:
            self._pending += self._read(deadline, what)
        line, self._pending = self._pending.split(b"\n", 1)
        return line.decode(errors="replace")

    def _receive(self, size: int, deadline: float, what: str) -> bytes:
        while len(self._pending) < size:
            self._pending += self._read(deadline, what)
        data, self._pending = self._pending[:size], self._pending[size:]
        return data

    def _read(self, deadline: float, what: str) -> bytes:
        self._port.settimeout(max(0.01, deadline - time.monotonic()))
        try:
            data = self._port.recv(65536)
        except TimeoutError:
            raise self._error(f"the guest does not answer: {what}") from None
        except OSError:
            data = b""
        if not data:
            raise self._gone(what)
        return data

    def _gone(self, what: str) -> GuestError:
        process = self._running()
        try:
            status = process.wait(timeout=_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            return self._error(f"QEMU closed the command port: {what}")
        text = self.console_log.read_text(errors="replace") if self.console_log.exists() else ""
        reason = "the guest's kernel panicked" if "Kernel panic" in text else "QEMU ended"
        return self._error(f"{reason} (QEMU's status {status}): {what}{self._unserved()}")

    def _unserved(self) -> str:
        found = re.search(
            r"Failed to connect to '(.+?)'", self.qemu_log.read_text(errors="replace")
        )
        return f"; {found[1]} is not served: vdcm list says what is, and where" if found else ""

    def _error(self, message: str) -> GuestError:
        return GuestError(f"{message}\n{self.console()}")
