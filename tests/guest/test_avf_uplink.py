"""A guest with Linux's iavf and one with QEMU's virtio-net meet over the uplink of a switch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.guest import nic
from tests.guest.nic import Nic
from vdcm.testing import Machine, Server, vfio_user

NETS = ("192.0.2", "198.51.100")  # over a stream, over datagrams


def test_qemus_own_netdev_is_the_other_end(
    serve: Callable[..., Server], boot: Callable[..., Machine], tmp_path: Path
) -> None:
    stream, here, there = (tmp_path / name for name in ("stream", "dgram", "peer"))
    server = serve(
        {"a": {"type": "avf", "parent": "s"}, "b": {"type": "avf", "parent": "d"}},
        {
            "s": {"model": "avf", "uplink": f"stream:{stream}"},
            "d": {"model": "avf", "uplink": f"dgram:{here},{there}"},
        },
    )
    unix = "addr.type=unix,addr.path"
    ends = f"local.type=unix,local.path={there},remote.type=unix,remote.path={here}"
    far = boot(
        [
            *("-netdev", f"stream,id=s,server=off,{unix}={stream}"),
            *("-device", "virtio-net-pci,netdev=s,romfile="),
            *("-netdev", f"dgram,id=d,{ends}"),
            *("-device", "virtio-net-pci,netdev=d,romfile="),
        ],
        modules=("virtio_net", "virtio_pci"),
        tools=nic.TRAFFIC_TOOLS,
    )
    far.check("modprobe virtio_pci; modprobe virtio_net")
    near = boot(
        [argument for name in "ab" for argument in vfio_user(server.socket(name))],
        modules=nic.MODULES,
        tools=nic.TRAFFIC_TOOLS,
    )
    first = Nic(server, near, "a")
    first.load()
    for guest, host in ((near, 1), (far, 2)):
        for index, net in enumerate(NETS):
            guest.check(f"until ip link set eth{index} up; do sleep 0.1; done")
            guest.check(f"ip addr add {net}.{host}/24 dev eth{index}")
    first.wait_up()
    far.check("iperf3 -s -D")
    for net in NETS:
        near.check(f"until ping -c 1 -W 1 {net}.2; do sleep 0.1; done")
        near.check(nic.pings(f"{net}.2", 1472), timeout=80)
        for direction in ("", "-R"):
            near.check(f"iperf3 -t 1 -c {net}.2 {direction}", timeout=40)
    for parent in server.parents():
        if parent["name"] in ("s", "d"):
            counted = parent["driver"]["uplink"]
            assert min(counted["sent"], counted["received"]) > 100, counted
