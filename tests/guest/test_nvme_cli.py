"""nvme-cli, by which people look at and manage NVMe, in the guest with Linux's own nvme."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pytest

from tests.guest import golden
from tests.guest.disk import Disk, NvmeLab

MODES = ("shadow", "direct")
SIZE = 64 << 20
# What a VDEV has of its own: its slice's UUID, and the serial number that follows from it.
_OWN = (
    (re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"), "UUID"),
    (re.compile(r"^(sn +: )\S+", re.M), r"\1SERIAL"),
)


class Cli(Disk):
    """The guest's end of a VDEV, and nvme-cli for it."""

    def nvme(self, words: str, what: str = "") -> str:
        """What ``nvme words`` prints of the controller, or of what ``what`` adds to its name."""
        return self.machine.check(self._command(words, what))

    def json(self, words: str, what: str = "") -> Any:
        return json.loads(self.nvme(f"{words} -o json", what))

    def counts(self, words: str) -> dict[str, int]:
        """Likewise, of which all are numbers; the long ones are text."""
        return {name: int(value) for name, value in self.json(words).items()}

    def registers(self) -> dict[str, int]:
        """Of the controller; nvme-cli 2.3 shows them, and then says that it failed."""
        loaded: dict[str, int] = json.loads(
            self.machine.run(self._command("show-regs -o json", "")).output
        )
        return loaded

    def refused(self, words: str, what: str = "") -> str:
        """What it prints when that fails."""
        result = self.machine.run(self._command(words, what))
        assert result.status, result.output
        return result.output

    def _command(self, words: str, what: str) -> str:
        verb, _, options = words.partition(" ")
        return f"nvme {verb} /dev/{self.controller}{what} {options}"

    def feature(self, number: int, options: str = "") -> int:
        """Its current value, or its default with "-s 1"."""
        text = self.nvme(f"get-feature -f {number} {options}")
        return int(re.findall(r"(?:Current|Default) value:(\S+)", text)[0], 16)

    def compare(self, name: str, text: str) -> None:
        """``text`` of nvme-cli is that of the golden file, but for what is the VDEV's own."""
        for pattern, word in _OWN:
            text = pattern.sub(word, text)
        version = re.findall(r"nvme version (\S+)", self.machine.check("nvme version"))[0]
        golden.compare_version(name, "nvme-cli", version, text)


@pytest.fixture
def of(nvme_lab: NvmeLab) -> Callable[[str], Cli]:
    """``of(name)``: a controller that is live."""
    nvme_lab.machine.check("modprobe nvme")

    def live(name: str) -> Cli:
        disk = nvme_lab.disk(name)
        disk.wait()
        return Cli(disk.server, disk.machine, disk.name, disk.address)

    return live


@pytest.fixture
def cli(of: Callable[[str], Cli]) -> Cli:
    return of("shadow")


def test_list(cli: Cli, nvme_lab: NvmeLab) -> None:
    found = json.loads(cli.machine.check("nvme list -o json"))["Devices"]
    assert len(found) == len(nvme_lab.VDEVS)
    for device in found:
        assert device["ModelNumber"] == "vdcm NVMe controller"
        assert device["PhysicalSize"] == device["UsedBytes"] == SIZE
        assert (device["SectorSize"], device["MaximumLBA"]) == (512, SIZE // 512)
    assert len({device["SerialNumber"] for device in found}) == len(found)
    assert len(re.findall(r"pcie \S+ live", cli.machine.check("nvme list-subsys"))) == len(found)


@pytest.mark.parametrize("mode", MODES)
def test_identify(of: Callable[[str], Cli], mode: str) -> None:
    """Each value was looked at when the golden file was made; here, what says what there is."""
    cli = of(mode)
    controller = cli.json("id-ctrl")
    has = controller["oacs"] >> 8 & 1, controller["oacs"] >> 1 & 1
    assert has == (mode == "shadow", True)  # doorbell buffers, format
    assert (controller["nn"], int(controller["tnvmcap"])) == (1, SIZE)
    assert controller["cntrltype"] == 1 and controller["ver"] == 0x10400
    uuid = cli.server.show(mode)["namespaces"][0]["uuid"]
    assert controller["subnqn"].endswith(uuid)
    assert uuid in cli.nvme("ns-descs", "n1")
    assert "[   0]:0x1\n" in cli.nvme("list-ns")
    cli.compare(f"nvme-{mode}-id-ctrl", cli.nvme("id-ctrl -H"))
    cli.compare("nvme-id-ns", cli.nvme("id-ns -H", "n1"))


def test_registers(of: Callable[[str], Cli]) -> None:
    for mode in MODES:
        registers = of(mode).registers()
        assert (registers["csts"], registers["vs"]) == (1, 0x10400)
        assert registers["cc"] & 1
        capabilities = registers["cap"]
        assert capabilities & 0xFFFF == 4095  # entries of a queue, less one
        assert capabilities >> 16 & 1  # queues are contiguous
        assert capabilities >> 37 & 1  # the NVM command set


def test_smart_log_counts(cli: Cli) -> None:
    before = cli.counts("smart-log")
    cli.machine.check(f"dd if=/dev/zero of={cli.wait()} bs=64k count=32 oflag=direct 2>&1")
    cli.machine.check(f"dd if={cli.wait()} of=/dev/null bs=64k count=16 iflag=direct 2>&1")
    after = cli.counts("smart-log")
    assert after["critical_warning"] == 0 and after["avail_spare"] == 100
    assert after["host_write_commands"] - before["host_write_commands"] == 32
    assert after["host_read_commands"] - before["host_read_commands"] >= 16
    # In thousands of 512 bytes, begun ones too (5.14.1.2).
    assert after["data_units_written"] - before["data_units_written"] in (4, 5)
    assert after["media_errors"] == before["media_errors"] == 0


def test_error_log_has_what_was_refused(cli: Cli) -> None:
    before = cli.counts("smart-log")["num_err_log_entries"]
    said = cli.refused(f"read -s {SIZE // 512} -c 0 -z 512", "n1")
    assert "LBA Out of Range" in said
    log = cli.json("error-log")["errors"]
    assert len(log) == 64
    assert log[0]["error_count"] == before + 1
    assert log[0]["status_field"] & 0x7FF == 0x080
    assert (log[0]["lba"], log[0]["nsid"]) == (SIZE // 512, 1)
    assert cli.counts("smart-log")["num_err_log_entries"] == before + 1


def test_features(cli: Cli) -> None:
    assert cli.feature(7) == 7 << 16 | 7  # queues, less one
    assert cli.feature(6) == 1
    cli.nvme("set-feature -f 6 -v 0")
    assert cli.feature(6) == 0
    cli.nvme("set-feature -f 6 -v 1")
    cli.nvme("set-feature -f 4 -v 0x150")
    assert cli.feature(4) == 0x150
    cli.nvme("set-feature -f 8 -v 0x0203")
    assert cli.feature(8) == 0x0203
    cli.nvme("set-feature -f 8 -v 0")
    assert "Timestamp" in cli.nvme("get-feature -f 0xe -H")
    cli.nvme("reset")
    cli.wait()
    assert cli.feature(4) == cli.feature(4, "-s 1")  # the default, after a reset
    assert "Invalid Field" in cli.refused("get-feature -f 0x7f")


def test_logs(cli: Cli) -> None:
    assert "frs1" in cli.nvme("fw-log")
    effects = cli.nvme("effects-log -H")
    for command in ("Format NVM", "Identify", "Write Zeroes", "Compare"):
        assert command in effects
    cli.nvme("changed-ns-list-log")
    assert "Invalid Log Page" in cli.refused("self-test-log")


def test_commands(cli: Cli) -> None:
    where = "-s 64 -z 4096 -c 7"
    cli.machine.check("dd if=/dev/urandom of=/cli.in bs=4096 count=1 2>/dev/null")
    cli.nvme(f"write {where} -d /cli.in", "n1")
    cli.nvme(f"compare {where} -d /cli.in", "n1")
    cli.nvme(f"read {where} -d /cli.out", "n1")
    cli.machine.check("cmp /cli.in /cli.out")
    cli.nvme("flush", "n1")
    cli.nvme("verify -s 64 -c 7", "n1")
    cli.nvme("write-zeroes -s 64 -c 3", "n1")
    assert "Compare Failure" in cli.refused(f"compare {where} -d /cli.in", "n1")
    cli.nvme("dsm -d -s 64 -b 8", "n1")
    cli.nvme(f"read {where} -d /cli.out", "n1")
    assert not cli.machine.check("tr -d '\\0' </cli.out")


@pytest.mark.parametrize("mode", MODES)
def test_format(of: Callable[[str], Cli], mode: str) -> None:
    cli = of(mode)
    path = cli.wait()
    size = f"cat /sys/block/{path[5:]}/queue/logical_block_size"
    for index, block_size in ((1, 4096), (0, 512)):
        cli.machine.check(f"dd if=/dev/urandom of={path} bs=64k count=16 conv=fsync 2>&1")
        assert "Success" in cli.nvme(f"format -l {index} -f", "n1")
        assert int(cli.machine.check(size)) == block_size
        assert cli.server.show(mode)["namespaces"][0]["block_size"] == block_size
        assert not cli.machine.check(f"dd if={path} bs=64k count=16 2>/dev/null | tr -d '\\0'")
    assert "Invalid Format" in cli.refused("format -l 5 -f", "n1")


def test_resets(of: Callable[[str], Cli]) -> None:
    """A subsystem reset goes past the driver, who does not hear of it: it resets afterwards."""
    for mode in MODES:
        cli = of(mode)
        cli.machine.check("dd if=/dev/urandom of=/cli.in bs=64k count=1 2>/dev/null")
        cli.machine.check(f"dd if=/cli.in of={cli.wait()} bs=64k conv=fsync 2>&1")
        for command in (("reset",), ("subsystem-reset", "reset")):
            for words in command:
                cli.nvme(words)
            path = cli.wait()
            cli.machine.check(f"dd if={path} bs=64k count=1 iflag=direct 2>/dev/null >/cli.out")
            cli.machine.check("cmp /cli.in /cli.out")
        assert cli.registers()["csts"] & 1
