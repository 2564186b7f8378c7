"""Linux's own idxd driver binds to software DSAs, and MOVDIR64B where the CPU lacks it."""

from __future__ import annotations

import pytest

from tests.guest import idxd
from tests.guest.machine import Machine

HELPER = "/sys/module/movdir64b/parameters"


@pytest.fixture
def lacking(idxd_lab: idxd.IdxdLab) -> Machine:
    """The shared guest without any driver, if its CPU lacks the instruction."""
    if idxd.has_movdir64b(idxd_lab.machine):
        pytest.skip("the CPU has MOVDIR64B")
    idxd.unload(idxd_lab.machine)
    return idxd_lab.machine


def test_movdir64b_is_carried_out_in_all_its_forms(lacking: Machine) -> None:
    result = lacking.run("insmod /movdir64b.ko selftest=1")
    assert result.status == 0, lacking.check("dmesg | grep movdir64b:")
    passed, carried, refused = (
        int(lacking.check(f"cat {HELPER}/{name}")) for name in ("passed", "carried", "refused")
    )
    assert passed > 200
    assert 0 < passed - carried < 20  # those that are to stay #UD
    assert refused == 5  # of those, the ones that only their addresses make so
    lacking.check("rmmod movdir64b")


def test_idxd_needs_the_helper_and_does_not_outlive_it(lacking: Machine) -> None:
    """The feature is there while the helper is, and no longer."""
    assert "No such device" in lacking.run("modprobe idxd").output
    for _ in range(2):
        idxd.load(lacking)
        assert not idxd.has_movdir64b(lacking)  # user space has none
        idxd.unload(lacking)
        assert "No such device" in lacking.run("modprobe idxd").output
