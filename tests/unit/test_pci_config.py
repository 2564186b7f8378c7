"""The configuration space as software sees it: identity, BARs, chains, access kinds, events."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vdcm.errors import DeclarationError
from vdcm.pci import (
    BarKind,
    BarLayout,
    Capability,
    Command,
    ConfigEvents,
    ConfigSpace,
    DeviceSerialNumber,
    Dvsec,
    Identity,
    MaskableMsi,
    Msi,
    MsiX,
    PciExpress,
    PowerManagement,
    PowerState,
    VendorSpecific,
    VendorSpecificExtended,
)
from vdcm.registers import Access, Field, Register, RegisterError

IDENTITY = Identity(0x494F, 0x0DC8, 0x118000, 0x12, 0x1AF4, 0x1100)
BARS = [
    BarLayout(0, 1 << 33, BarKind.MEMORY64_PREFETCHABLE),
    BarLayout(2, 256, BarKind.IO),
    BarLayout(3, 0x4000),
    BarLayout(4, 0x10, BarKind.MEMORY32_PREFETCHABLE),
]


class Events(ConfigEvents):
    def __init__(self) -> None:
        self.seen: list[object] = []

    def on_command_change(self, command: Command) -> None:
        self.seen.append(command)

    def on_power_state_change(self, state: PowerState) -> None:
        self.seen.append(state)

    def on_msi_change(self, msi: Msi) -> None:
        self.seen.append(("MSI", msi.enabled, msi.vectors_enabled, msi.mask))

    def on_msix_change(self, msix: MsiX) -> None:
        self.seen.append(("MSI-X", msix.enabled, msix.function_masked))

    def on_function_level_reset(self) -> None:
        self.seen.append("FLR")


def everything() -> list[Capability]:
    return [
        PowerManagement(),
        PciExpress(),
        MaskableMsi(4),
        MsiX(16, table_bar=3, table_offset=0x1000, pba_bar=3, pba_offset=0x2000),
        VendorSpecific(b"hello"),
        DeviceSerialNumber(0x0123456789ABCDEF),
        Dvsec(0x8086, 0x23, 1, b"abc"),
        VendorSpecificExtended(7, 2, b"wxyz"),
    ]


@pytest.fixture
def events() -> Events:
    return Events()


@pytest.fixture
def config(events: Events) -> ConfigSpace:
    return ConfigSpace(IDENTITY, bars=BARS, capabilities=everything(), intx=True, owner=events)


def find(config: ConfigSpace, kind: type[Capability]) -> int:
    capability = config.find(kind)
    assert capability is not None
    return capability.offset


def chain(config: ConfigSpace) -> list[tuple[int, int]]:
    """(id, offset) as software finds them, within a bounded number of steps."""
    read = config.space.read
    found: list[tuple[int, int]] = []
    at = read(0x34, 1) if read(0x6, 2) & 0x10 else 0
    for _ in range(48):
        if not at:
            break
        found.append((read(at, 1), at))
        at = read(at + 1, 1)
    assert not at, "the standard chain loops"
    at = 0x100
    for _ in range(960):
        header = read(at, 4)
        if header:
            found.append((header & 0xFFFF, at))
        at = header >> 20
        if not at:
            break
    assert not at, "the extended chain loops"
    return found


# Header


def test_identity_is_where_software_looks(config: ConfigSpace) -> None:
    read = config.space.read
    assert read(0x0, 4) == 0x0DC8_494F
    assert read(0x8, 4) == 0x1180_0012
    assert read(0x2C, 4) == 0x1100_1AF4
    assert read(0x3D, 1) == 1
    assert read(0x0E, 1) == 0, "type 0, one function"
    assert read(0x30, 4) == 0, "no expansion ROM"


@pytest.mark.parametrize(("name", "value"), [("vendor", 0x10000), ("class_code", 1 << 24)])
def test_identity_that_does_not_fit_is_refused(name: str, value: int) -> None:
    fields = {"vendor": 1, "device": 1, "class_code": 1, name: value}
    with pytest.raises(DeclarationError, match=name):
        Identity(**fields)


@pytest.mark.parametrize("bar", BARS, ids=lambda bar: bar.kind.name)
def test_bar_sizing_gives_size_and_kind(config: ConfigSpace, bar: BarLayout) -> None:
    mask = 0
    for index in bar.indices:
        config.space.write(0x10 + 4 * index, 4, 0xFFFF_FFFF)
        mask |= config.space.read(0x10 + 4 * index, 4) << 32 * (index - bar.index)
    width = 64 if bar.kind.is_64bit else 32
    low = 0x3 if bar.kind is BarKind.IO else 0xF
    assert mask & low == bar.kind.value
    assert -(mask & ~low) & (1 << width) - 1 == bar.size
    config.space.write(0x10 + 4 * bar.index, 4, 0xC000_0000)
    if bar.kind.is_64bit:
        config.space.write(0x14 + 4 * bar.index, 4, 0x12)
        assert config.bar_address(bar.index) == 0x12_0000_0000  # 8 GiB, aligned
    else:
        assert config.bar_address(bar.index) == 0xC000_0000


def test_bar_that_is_not_there_is_zero(config: ConfigSpace) -> None:
    config.space.write(0x24, 4, 0xFFFF_FFFF)
    assert config.space.read(0x24, 4) == 0


@pytest.mark.parametrize(
    ("index", "size", "kind"),
    [
        (6, 0x1000, BarKind.MEMORY32),
        (5, 0x1000, BarKind.MEMORY64),
        (-1, 0x1000, BarKind.MEMORY32),
        (0, 0x1800, BarKind.MEMORY32),
        (0, 8, BarKind.MEMORY32),
        (0, 0, BarKind.MEMORY32),
        (0, 1 << 32, BarKind.MEMORY32),
        (0, 2, BarKind.IO),
        (0, 512, BarKind.IO),
    ],
)
def test_bar_that_cannot_be_is_refused(index: int, size: int, kind: BarKind) -> None:
    with pytest.raises(DeclarationError, match=f"BAR{index}"):
        BarLayout(index, size, kind)


def test_bars_that_share_a_register_are_refused() -> None:
    bars = [BarLayout(0, 0x1000, BarKind.MEMORY64), BarLayout(1, 0x1000)]
    with pytest.raises(DeclarationError, match="BAR1"):
        ConfigSpace(IDENTITY, bars=bars)


def test_status_errors_are_write_one_to_clear(config: ConfigSpace) -> None:
    config.header.STATUS.DETECTED_PARITY_ERROR = 1
    config.header.STATUS.SIGNALED_SYSTEM_ERROR = 1
    config.set_interrupt_status(True)
    assert config.space.read(0x6, 2) == 0xC018
    config.space.write(0x7, 1, 0x80)
    config.space.write(0x6, 1, 0xFF)
    assert config.space.read(0x6, 2) == 0x4018
    config.set_interrupt_status(False)
    assert config.space.read(0x6, 2) == 0x4010


# Chains


def test_chains_list_everything_in_order(config: ConfigSpace) -> None:
    found = chain(config)
    assert [capability_id for capability_id, _ in found] == [
        *(0x01, 0x10, 0x05, 0x11, 0x09),
        *(0x03, 0x23, 0x0B),
    ]
    assert [offset for _, offset in found] == [c.offset for c in config.capabilities]
    assert found[0][1] == 0x40
    assert found[5][1] == 0x100


def test_without_capabilities_there_are_no_chains() -> None:
    config = ConfigSpace(IDENTITY)
    assert config.space.read(0x6, 2) & 0x10 == 0
    assert config.space.read(0x34, 1) == 0
    assert config.space.read(0x100, 4) == 0
    assert chain(config) == []


def test_asked_for_places_are_kept_and_the_rest_fills_gaps() -> None:
    config = ConfigSpace(
        IDENTITY,
        capabilities=[
            VendorSpecific(bytes(9)),  # 12 bytes: not in the gap below 0x48
            PowerManagement(at=0x48),
            VendorSpecific(bytes(5)),  # 8 bytes: in it
            PciExpress(at=0x80),
            Dvsec(1, 2, at=0x200),
            DeviceSerialNumber(5),
        ],
    )
    assert [c.offset for c in config.capabilities] == [0x40, 0x48, 0x50, 0x80, 0x100, 0x200]
    assert [i for i, _ in chain(config)] == [0x09, 0x01, 0x09, 0x10, 0x03, 0x23]


@pytest.mark.parametrize(
    ("capabilities", "words"),
    [
        (lambda: [PowerManagement(at=0x3C)], "PowerManagement"),
        (lambda: [PowerManagement(at=0x42)], "multiple of 4"),
        (lambda: [PowerManagement(at=0xFC)], "0xff"),
        (lambda: [PowerManagement(at=0x40), PciExpress(at=0x44)], "overlaps PowerManagement"),
        (lambda: [VendorSpecific(bytes(100)), VendorSpecific(bytes(100))], "VendorSpecific"),
        (lambda: [VendorSpecific(bytes(190))], "190 bytes"),
        (lambda: [DeviceSerialNumber(1, at=0x200)], "0x100"),
        (lambda: [DeviceSerialNumber(1, at=0x80)], "DeviceSerialNumber"),
        (lambda: [DeviceSerialNumber(1)], "PciExpress"),
        (lambda: [Dvsec(1, 1, data=bytes(0xF00))], "Dvsec"),
        (lambda: [PowerManagement(), PowerManagement()], "at most one"),
        (lambda: [Msi(), MaskableMsi()], "at most one"),
        (lambda: [VendorSpecific(b"x")] * 2, "one object"),
        (lambda: [cast(Capability, Msi)], "Msi is no capability"),
        (lambda: [MsiX(1, table_bar=0, pba_bar=3, pba_offset=4)], "multiple of 8"),
        (lambda: [MsiX(1, table_bar=1, pba_bar=3, pba_offset=0)], "BAR1"),
        (lambda: [MsiX(1, table_bar=2, pba_bar=3, pba_offset=0)], "BAR2 is no memory BAR"),
        (lambda: [MsiX(9, table_bar=3, pba_bar=3, pba_offset=0x80)], "overlap"),
        (lambda: [MsiX(2, table_bar=4, pba_bar=3, pba_offset=0)], "beyond BAR4"),
        (lambda: [MsiX(0, table_bar=3, pba_bar=3, pba_offset=0x800)], "1 to 2048"),
        (lambda: [MsiX(2049, table_bar=3, pba_bar=3, pba_offset=0)], "1 to 2048"),
        (lambda: [Msi(3)], "not 3"),
        (lambda: [DeviceSerialNumber(1 << 64)], "64 bits"),
        (lambda: [PciExpress(tag_bits=9)], "not 9"),
    ],
)
def test_impossible_capabilities_are_refused(
    capabilities: Callable[[], Sequence[Capability]], words: str
) -> None:
    with pytest.raises(DeclarationError, match=words):
        ConfigSpace(IDENTITY, bars=BARS, capabilities=capabilities())


def test_capability_of_one_space_is_refused_by_another() -> None:
    capability = PowerManagement()
    ConfigSpace(IDENTITY, capabilities=[capability])
    with pytest.raises(DeclarationError, match="PowerManagement"):
        ConfigSpace(IDENTITY, capabilities=[capability])


def test_vendor_specific_contents_and_lengths(config: ConfigSpace) -> None:
    read = config.space.read
    at = find(config, VendorSpecific)
    assert read(at + 2, 1) == 8
    assert bytes(read(at + 3 + i, 1) for i in range(5)) == b"hello"
    at = find(config, Dvsec)
    assert read(at, 4) & 0xF_FFFF == 0x1_0023
    assert read(at + 4, 4) == 13 << 20 | 1 << 16 | 0x8086
    assert read(at + 8, 2) == 0x23
    assert bytes(read(at + 10 + i, 1) for i in range(3)) == b"abc"
    at = find(config, VendorSpecificExtended)
    assert read(at + 4, 4) == 12 << 20 | 2 << 16 | 7
    assert read(at + 8, 4) == int.from_bytes(b"wxyz", "little")
    at = find(config, DeviceSerialNumber)
    assert read(at + 4, 8) == 0x0123456789ABCDEF


def test_dvsec_of_a_subclass_carries_registers_that_react() -> None:
    class Tunable(Dvsec):
        LEVEL = Register(0xC, 32, fields={"NOW": Field(0, 4), "MOST": Field(4, 4, Access.RO)})

        def on_write_LEVEL(self, value: int) -> None:
            self.LEVEL.MOST = max(self.LEVEL.MOST, value & 0xF)

    config = ConfigSpace(IDENTITY, capabilities=[PciExpress(), Tunable(0x8086, 9)])
    config.space.write(0x10C, 4, 7)
    config.space.write(0x10C, 4, 2)
    assert config.space.read(0x10C, 4) == 0x72
    assert config.space.read(0x104, 4) >> 20 == 0x10


# Events


def test_command_changes_are_reported_once(config: ConfigSpace, events: Events) -> None:
    config.space.write(0x4, 2, 0x0406)
    config.space.write(0x4, 2, 0x0406)
    config.space.write(0x4, 1, 0x02)
    assert events.seen == [
        Command.MEMORY | Command.BUS_MASTER | Command.INTX_DISABLE,
        Command.MEMORY | Command.INTX_DISABLE,
    ]


def test_power_states(config: ConfigSpace, events: Events) -> None:
    at = find(config, PowerManagement) + 4
    for state in (3, 1, 2, 0):
        config.space.write(at, 2, state)
    assert events.seen == [PowerState.D3HOT, PowerState.D0], "D1 and D2 are ignored"
    config.space.write(at, 1, 1)
    assert config.space.read(at, 2) == 0x8, "D0, nothing lost on the way back"


@pytest.mark.conformance("R4.4.2-1")
def test_msix_enable_and_function_mask(config: ConfigSpace, events: Events) -> None:
    at = find(config, MsiX)
    assert config.space.read(at + 2, 2) == 15
    assert config.space.read(at + 4, 8) == 0x2003_0000_1003
    config.space.write(at + 2, 2, 0xFFFF)
    config.space.write(at + 3, 1, 0x80)
    config.space.write(at + 4, 8, 0)
    assert events.seen == [("MSI-X", True, True), ("MSI-X", True, False)]
    assert config.space.read(at + 4, 8) == 0x2003_0000_1003


@pytest.mark.conformance("R4.4.2-1", "R4.4.2-2")
def test_msi_enable_vectors_and_mask(config: ConfigSpace, events: Events) -> None:
    at = find(config, MaskableMsi)
    assert config.space.read(at + 2, 2) == 0x0184
    config.space.write(at + 4, 8, 0x0000_0001_FEE0_0007)
    config.space.write(at + 2, 2, 0x71)  # 128 vectors asked for, 4 there
    config.space.write(at + 0x10, 4, 0xFFFF_FFFF)
    assert config.space.read(at + 4, 8) == 0x0000_0001_FEE0_0004
    assert config.space.read(at + 0x10, 4) == 0xF
    config.space.write(at + 0x14, 4, 0xFFFF_FFFF)
    assert config.space.read(at + 0x14, 4) == 0, "pending bits are the device's"
    assert events.seen == [("MSI", True, 4, 0), ("MSI", True, 4, 0xF)]


def test_function_level_reset(config: ConfigSpace, events: Events) -> None:
    express = find(config, PciExpress)
    config.space.write(0x4, 2, 0x7)
    config.space.write(0x10, 4, 0xC000_0000)
    config.space.write(find(config, MsiX) + 2, 2, 0x8000)
    config.space.write(express + 0x10, 2, 0x0040)  # common clock configuration
    config.space.write(express + 0x8, 2, 0x0000)
    events.seen.clear()
    config.space.write(express + 0x9, 1, 0x80)
    assert events.seen == ["FLR", Command(0), ("MSI-X", False, False)]
    assert config.space.read(0x10, 4) == 0xC
    assert config.space.read(express + 0x8, 2) == 0x2810
    assert config.space.read(express + 0x10, 2) == 0x0040, "link control outlives an FLR"
    config.reset(cold=True)
    assert config.space.read(express + 0x10, 2) == 0
    config.space.write(express + 0x8, 1, 0)  # the other byte of the same register
    assert events.seen.count("FLR") == 1


def test_without_flr_the_bit_does_nothing(events: Events) -> None:
    config = ConfigSpace(IDENTITY, capabilities=[PciExpress(flr=False)], owner=events)
    assert config.space.read(0x44, 4) & 1 << 28 == 0
    config.space.write(0x48, 2, 0x8000)
    assert events.seen == []
    assert config.space.read(0x48, 2) == 0


def test_integrated_endpoint_has_no_link() -> None:
    config = ConfigSpace(IDENTITY, capabilities=[PciExpress(integrated=True)])
    assert config.space.read(0x42, 2) == 0x92
    config.space.write(0x50, 2, 0xFFFF)
    config.space.write(0x70, 2, 0xFFFF)
    assert [config.space.read(0x40 + at, 4) for at in (0xC, 0x10, 0x2C, 0x30)] == [0] * 4


@pytest.mark.parametrize(
    ("tag_bits", "capability", "control", "capability_2", "control_2"),
    [(5, 0, 0, 0, 0), (8, 0x20, 0x100, 0, 0), (10, 0x20, 0x100, 3 << 16, 0x1000)],
)
def test_tags_as_wide_as_asked_for(
    tag_bits: int, capability: int, control: int, capability_2: int, control_2: int
) -> None:
    config = ConfigSpace(IDENTITY, capabilities=[PciExpress(tag_bits=tag_bits)])
    assert config.space.read(0x44, 4) & 0x20 == capability
    assert config.space.read(0x48, 2) == 0x2810 | control
    assert config.space.read(0x64, 4) & 3 << 16 == capability_2
    config.space.write(0x48, 2, 0x7FFF)
    config.space.write(0x68, 2, 0xFFFF)
    assert config.space.read(0x48, 2) == 0x781F | control
    assert config.space.read(0x68, 2) == 0x10 | control_2


@pytest.mark.parametrize("dmwr", [False, True])
def test_deferrable_writes_are_announced(dmwr: bool) -> None:
    config = ConfigSpace(IDENTITY, capabilities=[PciExpress(dmwr=dmwr)])
    assert config.space.read(0x64, 4) >> 28 == dmwr


def test_what_the_function_has_no_use_for_is_hardwired() -> None:
    """I/O Space Enable without an I/O BAR; Interrupt Disable and Line without an interrupt pin."""
    config = ConfigSpace(IDENTITY, bars=[BarLayout(0, 0x1000)])
    config.space.write(0x04, 2, 0xFFFF)
    config.space.write(0x3C, 1, 0xFF)
    assert (config.space.read(0x04, 2), config.space.read(0x3C, 2)) == (0x146, 0)


def test_owner_may_reset_the_config_space_itself() -> None:
    class Owner(Events):
        config: ConfigSpace

        def on_function_level_reset(self) -> None:
            super().on_function_level_reset()
            self.config.reset()

    owner = Owner()
    owner.config = ConfigSpace(IDENTITY, capabilities=[PciExpress()], owner=owner)
    owner.config.space.write(0x4, 2, 0x4)
    owner.config.space.write(0x48, 2, 0x8000)
    assert owner.seen == [Command.BUS_MASTER, "FLR", Command(0)]


def test_restore_reports_what_changes(config: ConfigSpace, events: Events) -> None:
    config.space.write(0x4, 2, 0x6)
    config.space.write(find(config, PowerManagement) + 4, 2, 3)
    state = json.loads(json.dumps(config.save()))
    config.reset()
    events.seen.clear()
    config.restore(state)
    assert events.seen == [Command.MEMORY | Command.BUS_MASTER, PowerState.D3HOT]
    config.space.write(find(config, PowerManagement) + 4, 2, 1)
    assert config.space.read(find(config, PowerManagement) + 4, 2) & 3 == 3
    with pytest.raises(RegisterError, match="config"):
        config.restore({})


# Whatever software writes


def contents(config: ConfigSpace) -> bytes:
    return b"".join(config.space.read(at, 8).to_bytes(8, "little") for at in range(0, 0x1000, 8))


@given(
    writes=st.lists(
        st.tuples(
            st.one_of(st.integers(-8, 0x140), st.integers(0, 0x1008)),
            st.sampled_from([1, 2, 4, 8]),
            st.integers(0, (1 << 64) - 1),
        ),
        max_size=50,
    )
)
def test_no_write_changes_what_is_read_only(writes: list[tuple[int, int, int]]) -> None:
    config = ConfigSpace(IDENTITY, bars=BARS, capabilities=everything(), intx=True)
    before, links = contents(config), chain(config)
    writable = bytearray(0x1000)

    def allow(offset: int, mask: int) -> None:
        size = -(-mask.bit_length() // 8)
        writable[offset : offset + size] = mask.to_bytes(size, "little")

    # From the tables of the PCI Express specification, not from the declarations.
    allow(0x04, 0x0547)
    allow(0x0C, 0xFF)
    allow(0x10, 0x0000_0000)  # 8 GiB: address bits begin in the upper half
    allow(0x14, 0xFFFF_FFFE)
    allow(0x18, 0xFFFF_FF00)
    allow(0x1C, 0xFFFF_C000)
    allow(0x20, 0xFFFF_FFF0)
    allow(0x3C, 0xFF)
    allow(find(config, PowerManagement) + 4, 0x3)
    express = find(config, PciExpress)
    allow(express + 0x08, 0x781F)
    allow(express + 0x10, 0x00CB)
    allow(express + 0x28, 0x0010)
    allow(express + 0x30, 0x000F)
    msi = find(config, MaskableMsi)
    allow(msi + 0x2, 0x0071)
    allow(msi + 0x4, 0xFFFF_FFFC)
    allow(msi + 0x8, 0xFFFF_FFFF)
    allow(msi + 0xC, 0xFFFF)
    allow(msi + 0x10, 0xF)
    allow(find(config, MsiX) + 2, 0xC000)
    for offset, width, value in writes:
        config.space.write(offset, width, value)
    after = contents(config)
    changed = [hex(i) for i in range(0x1000) if (before[i] ^ after[i]) & ~writable[i] & 0xFF]
    assert changed == []
    assert chain(config) == links
    config.reset(cold=True)
    assert contents(config) == before


kinds = st.sampled_from(list(BarKind))


@given(kind=kinds, bits=st.integers(2, 63), index=st.integers(0, 5))
def test_sizing_any_bar_gives_its_size(kind: BarKind, bits: int, index: int) -> None:
    try:
        bar = BarLayout(index, 1 << bits, kind)
    except DeclarationError:
        return
    config = ConfigSpace(IDENTITY, bars=[bar])
    for i in range(6):
        config.space.write(0x10 + 4 * i, 4, 0xFFFF_FFFF)
    read = [config.space.read(0x10 + 4 * i, 4) for i in range(6)]
    mask = sum(read[i] << 32 * (i - index) for i in bar.indices)
    low = 0x3 if kind is BarKind.IO else 0xF
    width = 64 if kind.is_64bit else 32
    assert -(mask & ~low) & (1 << width) - 1 == bar.size
    assert not any(read[i] for i in range(6) if i not in bar.indices)
