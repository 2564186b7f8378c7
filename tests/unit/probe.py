"""A device with a direct path for tests: probe_device.c, compiled, and its queues."""

from __future__ import annotations

import atexit
import functools
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any, Final

from cffi import FFI

from vdcm.sweep import AdiPath, QueuePath, include_dir, services

SOURCE: Final = Path(__file__).with_name("probe_device.c")
PRIMARY: Final = 0x8000_0000
SECONDARY: Final = 0x8000_0001
GUEST_PASID_7: Final = 0x8000_0002
ffi: Final = FFI()
ffi.cdef(
    """
    struct probe {
        const void *services;
        uint64_t *doorbell;
        uint64_t accepted, done, aborted, cost;
        uint32_t pasid;
        uint64_t address, length;
        uint8_t marker;
        int32_t message;
        uint32_t report;
        int last_error;
        uint64_t errors, lost;
        uint64_t rested, restless, closed;
        bool waits;
        void *handle;
    };
    bool probe_work_is_back(struct probe *);
    extern char probe_fastpath, probe_that_rests, probe_of_another_version;
    """
)


@functools.cache
def library() -> Any:
    """The device's C, built as one outside this repository would build its own."""
    folder = tempfile.mkdtemp(prefix="vdcm-probe-")
    atexit.register(shutil.rmtree, folder)
    output = f"{folder}/probe.so"
    subprocess.run(
        ["cc", "-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC",
         f"-I{include_dir()}", str(SOURCE), "-o", output],
        check=True,
    )  # fmt: skip
    return ffi.dlopen(output)


def address(pointer: Any) -> int:
    return int(ffi.cast("uintptr_t", pointer))


def fastpath(name: str = "probe_fastpath") -> int:
    return address(ffi.addressof(library(), name))


class Probe:
    """One queue of the device. Everything of ``struct probe`` can be read and set by name."""

    def __init__(
        self, path: AdiPath, *, doorbells: bool = True, rests: bool = False, **settings: int
    ) -> None:
        self.doorbell = ffi.new("uint64_t *", 0)
        self.device = ffi.new(
            "struct probe *",
            {
                "services": ffi.cast("const void *", services()),
                "doorbell": self.doorbell,
                "cost": 1,
                "pasid": PRIMARY,
                "message": -1,
                **settings,
            },
        )
        self.queue: QueuePath = path.queue(
            fastpath("probe_that_rests" if rests else "probe_fastpath"),
            address(self.device),
            doorbells=doorbells,
            keep=self,
        )

    def ring(self, items: int = 1) -> None:
        """The guest's store: ``items`` more of them."""
        self.doorbell[0] += items

    def work_is_back(self) -> bool:
        """What whoever works for it does, from any thread: False if nobody is to be told."""
        return bool(library().probe_work_is_back(self.device))

    @property
    def done(self) -> int:
        return int(self.device.done)
