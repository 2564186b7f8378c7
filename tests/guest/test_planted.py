"""docs/mistakes.md: each of its mistakes is made, Linux's driver meets it, and the trace says what
the page says; that of the device without it does not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from tests.guest import planted
from tests.guest.planted import Nursery, says
from vdcm.environment import Environment
from vdcm.testing import Machine, Server, ServerError, vfio_user
from vdcm.testing.plugin import Running, Serve

MISTAKES: Final = planted.mistakes()
FATAL: Final = "w1c_treated_as_rw"
"""What the guest may not survive."""
AT_ONCE: Final = "a_wrong_bar_size"
"""What needs no guest to be found."""
BY_TRACE: Final = [name for name in MISTAKES if name not in (FATAL, AT_ONCE)]


@pytest.fixture(scope="module")
def nursery(
    environment: Environment,
    idxd_options: dict[str, Any],
    tmp_path_factory: pytest.TempPathFactory,
    vdcm_running: Running[Any],
) -> Iterator[Nursery]:
    folder = tmp_path_factory.mktemp("planted")
    mistakes = {name: MISTAKES[name] for name in (*BY_TRACE, FATAL)}
    vdevs = {name: {"parent": name, **keys} for name, keys in planted.VDEVS.items()}
    for name, mistake in mistakes.items():
        vdevs[name] = {**planted.VDEVS[mistake.model], "parent": name}
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder / "src"))
        server = Server(
            folder / "s",
            vdevs,
            {name: {"model": name} for name in mistakes},
            models={name: one.write(folder / "src") for name, one in mistakes.items()},
        )
        machine = Machine(
            environment,
            log_dir=folder,
            cpus=1,  # which spins, when FATAL is met, and does not get to where it crashes
            modules=("idxd", "iavf", "nvme"),
            files=idxd_options["files"],
            kernel_arguments="nvme_core.admin_timeout=3",
            devices=[argument for name in vdevs for argument in vfio_user(server.socket(name))],
        )
        with vdcm_running(server), vdcm_running(machine):
            nursery = Nursery(server, machine, mistakes)
            for name in (*planted.VDEVS, *BY_TRACE):
                nursery.bind(name)
            yield nursery


def seen(nursery: Nursery, name: str) -> None:
    """The trace of ``name`` gives it away, and that of the device as it is shipped does not."""
    mistake = MISTAKES[name]
    nursery.server.wait_for(
        f"the trace of {name} has what {planted.PAGE} says",
        lambda: says(nursery.trace(name), mistake.trace),
    )
    assert not says(nursery.trace(mistake.model), mistake.trace)


def test_there_are_ten() -> None:
    assert len(MISTAKES) == 10


@pytest.mark.parametrize("name", BY_TRACE)
def test_the_trace_gives_it_away(nursery: Nursery, name: str) -> None:
    seen(nursery, name)
    guest, model = MISTAKES[name].guest, MISTAKES[name].model
    nursery.server.wait_for(f"the guest says {guest}", lambda: says(nursery.log(), guest))
    assert not guest or not says(nursery.log_of(model), guest)


def test_the_devices_without_mistakes_have_no_hints(nursery: Nursery) -> None:
    """And their drivers have got to where those of the others have not."""
    assert [nursery.server.show(name)["hints"] for name in planted.VDEVS] == [[]] * 3
    assert nursery.server.show("nvme")["controller"]["state"] == "ready"
    assert len(nursery.server.show("nvme")["queues"]) == 1
    assert nursery.server.show("avf")["channel"]["active"]
    assert nursery.machine.check("cat /sys/bus/dsa/devices/dsa0/state") == "enabled\n"


def test_what_gives_it_away_before_the_guest_is_lost(nursery: Nursery) -> None:
    """The last, for that."""
    nursery.bind(FATAL)
    seen(nursery, FATAL)


def test_what_is_found_before_there_is_a_guest(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mistake = MISTAKES[AT_ONCE]
    entry = mistake.write(tmp_path / "src")
    monkeypatch.syspath_prepend(str(tmp_path / "src"))
    card = {"gpio": {"type": "pcie-idio-16", "parent": "card"}}
    with pytest.raises(ServerError) as refused:
        serve(card, {"card": {"model": AT_ONCE}}, models={AT_ONCE: entry})
    assert str(refused.value).replace(f"{tmp_path}/src/", "").splitlines()[-1:] == mistake.trace
    right = {"gpio": {"type": "pcie-idio-16"}}
    assert serve(right).show("gpio")["bars"][0]["size"] == 256
