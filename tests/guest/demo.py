"""The demo: Linux's own gpio-pci-idio-16 drives a card that vdcm serves, a user-space driver two
software DSAs, Linux's own idxd a third one, and its nvme a disk; the iavf of two guests lets them
ping each other. Run by ci/demo.

python -m tests.guest.demo [BEGIN]     BEGIN: when the demo began, in seconds since the epoch
"""

from __future__ import annotations

import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from tests.guest import demo_avf, demo_dsa, demo_idxd, demo_nvme, disk, idxd
from tests.guest.gpio import Edge, Gpio
from tests.guest.lab import CARD, OPTIONS, driven
from vdcm.environment import Environment, load_environment
from vdcm.errors import PrerequisiteError, VdcmError
from vdcm.testing import (
    GuestError,
    Machine,
    Server,
    ServerError,
    address_of,
    interrupts_of,
    vfio_user,
)

ATTACHED = ("gpio0", *demo_idxd.VDEVS, *demo_nvme.VDEVS, demo_avf.NAMES[0])
OUTPUTS = range(16)
INPUTS = range(16, 32)
SIDE = {"vdcm": "  vdcm   ", "guest": "  guest  "}


class DemoError(Exception):
    """Something came out otherwise than it should."""


def title(text: str) -> None:
    print(f"\n=== {text} {'=' * max(3, 74 - len(text))}", flush=True)


def say(side: str, text: str) -> None:
    for line in text.splitlines():
        print(f"{SIDE[side]}{line.expandtabs(4)}", flush=True)


def expect(what: str, found: object, expected: object) -> None:
    if found != expected:
        raise DemoError(f"{what}: {found!r} instead of {expected!r}")


def one_hot(line: int) -> list[int]:
    return [int(other == line) for other in range(16)]


def demo(environment: Environment, server: Server, machine: Machine, second: Machine) -> None:
    """The whole show. Raises DemoError, GuestError, ServerError or VdcmError."""
    title("1. vdcm serves the device")
    say("vdcm", f"vdcm serve {server.definition.name}\n{server.definition.read_text()}")
    server.start()
    shown = server.show("gpio0")
    say("vdcm", f"{shown['name']} is {shown['state']}: PCI {shown['pci_id']}, {shown['socket']}")

    title("2. stock QEMU boots Linux with it")
    machine.start()
    version, release = environment.qemu_version, environment.kernel_release
    say("guest", f"QEMU {version}, Linux {release}, up after {machine.boot_seconds:.1f} s")
    say("vdcm", f"gpio0 is {server.show('gpio0')['state']}")

    title("3. the guest's own driver binds")
    card = address_of(machine, CARD)
    machine.check("modprobe gpio-pci-idio-16")
    listing = machine.check(f"lspci -vvv -s {card}")
    say("guest", f"# modprobe gpio-pci-idio-16; lspci -vvv -s {card}\n{listing.strip()}")
    if "Kernel driver in use: pci-idio-16" not in listing:
        raise DemoError("the driver gpio-pci-idio-16 did not bind")
    lines = Gpio(machine, card)
    say("guest", f"# gpiodetect\n{machine.check('gpiodetect').strip()}")

    title("4. the guest drives every output")
    show_outputs(server, lines)
    title("5. the guest reads every input, which the host side sets")
    show_inputs(server, lines)
    title("6. an input interrupts the guest")
    show_interrupt(server, machine, lines, card)

    title("7. counted by vdcm")
    counters = server.show("gpio0")["counters"]
    say("vdcm", ", ".join(f"{count} {name}" for name, count in counters.items()))

    title("8. a software DSA: VDEVs composed of ADIs")
    demo_dsa.show_composition(server, say)
    title("9. a user-space driver has it move memory, without a guest")
    demo_dsa.show_work(server, say, expect)

    title("10. the guest's own idxd binds to another; accel-config enables it")
    demo_idxd.show_driver(server, machine, say, expect)
    title("11. the guest's kernel copies with it, from many threads")
    demo_idxd.show_copies(server, machine, say, expect)

    title("12. the guest's own nvme: a file system on a virtual disk")
    demo_nvme.show_file_system(server, machine, say, expect)

    title("13. the iavf of two guests: they ping each other over vdcm's switch")
    demo_avf.show_pings(server, machine, second, say, expect)


def show_outputs(server: Server, gpio: Gpio) -> None:
    gpio.set(dict.fromkeys(OUTPUTS, 0))
    for line in OUTPUTS:
        since = len(server.log)
        gpio.set(dict(zip(OUTPUTS, one_hot(line), strict=True)))
        server.wait_for(f"output {line} alone is 1", partial(driven, server, since, 1 << line))
        expect(f"outputs read back with only {line} set", gpio.get(OUTPUTS), one_hot(line))
    say("guest", "# gpioset, one output after the other; read back: as set, 16 of 16")
    say("vdcm", "saw each of them; of the last one, output 15:")
    excerpt(server, since, ("BAR2",), last=3)


def show_inputs(server: Server, gpio: Gpio) -> None:
    for line in range(16):
        since = len(server.log)
        server.set("gpio0", inputs=1 << line)
        expect(f"inputs with only {line} set", gpio.get(INPUTS), one_hot(line))
    say("vdcm", "vdcm set gpio0 inputs=0x0001, 0x0002, 0x0004 ... 0x8000")
    say("guest", "# gpioget after each: the same, 16 of 16")
    say("vdcm", "saw of the last one:")
    excerpt(server, since, ("BAR2",), last=3)


def show_interrupt(server: Server, machine: Machine, gpio: Gpio, card: str) -> None:
    server.set("gpio0", inputs=0)
    before = interrupts_of(machine, card)
    delivered = server.show("gpio0")["counters"]["interrupts"]
    since = len(server.log)
    monitor = gpio.watch([INPUTS[0]], edges=1)
    say("guest", "# gpiomon waits for input 0")
    server.set("gpio0", inputs=1)
    say("vdcm", "vdcm set gpio0 inputs=0x0001")
    expect("edges that gpiomon saw", monitor.wait(), [Edge(INPUTS[0], rising=True)])
    count = interrupts_of(machine, card) - before
    say("guest", f"gpiomon: rising edge; /proc/interrupts: {count} more for {card}")
    if count < 1 or server.show("gpio0")["counters"]["interrupts"] <= delivered:
        raise DemoError("the edge came, but no interrupt was counted")
    say("vdcm", "saw, from gpiomon's begin to its end:")
    excerpt(server, since, ("BAR2", "INTx", "INTX"), last=14)


def excerpt(server: Server, since: int, kinds: tuple[str, ...], last: int) -> None:
    """The last lines of these kinds of the trace."""
    lines = [line for line in server.trace("gpio0", since) if line.startswith(kinds)]
    say("vdcm", "\n".join(f"  {line}" for line in lines[-last:]))


def main(arguments: Sequence[str]) -> int:
    begin = float(arguments[0]) if arguments else time.time()
    # The end of a terminal or of a service ends the guest and the server in good order, too.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    try:
        environment = load_environment()
    except PrerequisiteError as error:
        print(f"DEMO FAIL: {error}", file=sys.stderr)
        return 1
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vdcm-demo-")))
        vdevs = {**demo_dsa.VDEVS, **demo_idxd.VDEVS, **demo_nvme.VDEVS, **demo_avf.VDEVS}
        vdevs = {"gpio0": {"type": "pcie-idio-16"}, **vdevs}
        server = Server(folder, vdevs, demo_nvme.parents(folder))
        stack.callback(server.kill)  # in case that it does not stop
        print("demo         building modules for the guest's kernel", flush=True)
        machine = Machine(
            environment,
            log_dir=folder,
            devices=[a for name in ATTACHED for a in vfio_user(server.socket(name))],
            cpus=4,
            modules=(*OPTIONS["modules"], *idxd.MODULES, *disk.MODULES, *demo_avf.MODULES),
            tools=(*OPTIONS["tools"], *idxd.TOOLS, *demo_nvme.TOOLS, *demo_avf.TOOLS),
            files={**demo_idxd.files(environment, folder), **demo_nvme.files(environment)},
        )
        second = Machine(
            environment,
            log_dir=folder / "second",
            devices=vfio_user(server.socket(demo_avf.NAMES[1])),
            memory="256M",
            modules=demo_avf.MODULES,
            tools=demo_avf.TOOLS,
        )
        for one in (machine, second):
            stack.callback(one.stop)
        try:
            demo(environment, server, machine, second)
            second.stop()
            machine.stop()
            server.stop()
        except KeyboardInterrupt:
            print("\nDEMO FAIL: interrupted; the guest and the server have ended", file=sys.stderr)
            return 130
        except (DemoError, GuestError, ServerError, VdcmError) as error:
            consoles = f"{machine.console()}\n{second.console()}"
            print(f"\n{server.log_tail()}\n{consoles}", file=sys.stderr)
            ended = "" if server.running else "; the server has ended"
            print(f"\nDEMO FAIL: {str(error).splitlines()[0]}{ended}", file=sys.stderr)
            return 1
    print(f"\nDEMO PASS ({time.time() - begin:.0f} s in all)")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
