"""What a function for Scalable IOV has in its extended space: its DVSEC, PASID, ATS and PRI.

Sections named *SIOV* are those of Intel Scalable IOV (337679-002, 1.1), the others those of the PCI
Express Base Specification 5.0. What those leave undefined is refused here: the old value stays, and
``ConfigEvents.on_refused`` says why.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Final

from vdcm.errors import DeclarationError, StateError
from vdcm.pci.capabilities import PciExpress
from vdcm.pci.extended import Dvsec
from vdcm.pci.part import ExtendedCapability
from vdcm.registers import Access, Field, Register, RegisterError

if TYPE_CHECKING:
    from vdcm.pci.config import ConfigSpace

RO, RW, W1C, WO = Access.RO, Access.RW, Access.W1C, Access.WO


class ScalableIov(Dvsec):
    """The DVSEC by which system software finds Scalable IOV (SIOV 2.8): 0x18 bytes.

    ``page_sizes``: bit n means that 2^(n+12) bytes are supported; bit 0 (4 KiB) is required.
    ``dependency``: the number of the next function in the Function Dependency List, this one's own
    if it depends on none. ``homogeneous``: all functions of that list have to be in this mode.
    ``ims``: the device has Interrupt Message Storage; ``hide_ims``: it is not to be seen, for a
    domain whose base function may not use it.
    """

    VENDOR: ClassVar = 0x8086
    DVSEC: ClassVar = 5

    FUNCTION_DEPENDENCY_LINK = Register(0xA, 8, RO)
    FLAGS = Register(0xB, 8, RO, fields={"HOMOGENEOUS": Field(0)})
    SUPPORTED_PAGE_SIZES = Register(0xC, 32, RO)
    SYSTEM_PAGE_SIZE = Register(0x10, 32, reset=1, doc="One of the supported sizes; write it once.")
    CAPABILITIES = Register(0x14, 32, RO, fields={"IMS": Field(0)})

    _accepted = 1

    def __init__(
        self,
        *,
        page_sizes: int = 1,
        dependency: int = 0,
        homogeneous: bool = False,
        ims: bool = True,
        hide_ims: bool = False,
        at: int | None = None,
    ) -> None:
        super().__init__(self.VENDOR, self.DVSEC, at=at)
        if not page_sizes & 1 or page_sizes >> 32:
            raise DeclarationError(
                f"Scalable IOV page sizes {page_sizes:#x}: bits 31 to 0, of which bit 0 (4 KiB) "
                "is required"
            )
        self.ims: Final = ims
        self.FUNCTION_DEPENDENCY_LINK.preset(dependency)
        self.FLAGS.preset(HOMOGENEOUS=int(homogeneous))
        self.SUPPORTED_PAGE_SIZES.preset(page_sizes)
        self.CAPABILITIES.preset(IMS=int(ims and not hide_ims))

    @property
    def system_page_size(self) -> int:
        """Bytes that the system maps ADI registers by."""
        return self.SYSTEM_PAGE_SIZE.value << 12

    def on_write_SYSTEM_PAGE_SIZE(self, value: int) -> None:
        if value == self._accepted:
            return
        why = self._wrong(value)
        if why is None and self.config.header.COMMAND.MEMORY:
            why = "write it before Memory Space Enable is set"
        if why is not None:
            self.SYSTEM_PAGE_SIZE.value = self._accepted
            self.config.owner.on_refused(f"System Page Size {value:#x}: {why}")
        self.publish()

    def _wrong(self, value: int) -> str | None:
        if value.bit_count() != 1:
            return "exactly one bit has to be set"
        if not value & self.SUPPORTED_PAGE_SIZES.value:
            return f"supported are {self.SUPPORTED_PAGE_SIZES.value:#x}"
        return None

    def restore(self, state: Mapping[str, object]) -> None:
        value = state.get("SYSTEM_PAGE_SIZE")
        why = self._wrong(value) if isinstance(value, int) else None  # else super says it
        if why is not None:
            raise RegisterError(f"ScalableIov.SYSTEM_PAGE_SIZE: {value:#x}: {why}")
        super().restore(state)

    def state(self) -> object:
        return self.SYSTEM_PAGE_SIZE.value

    def notify(self) -> None:
        self._accepted = self.SYSTEM_PAGE_SIZE.value
        self.config.owner.on_system_page_size(self._accepted)


class Pasid(ExtendedCapability):
    """Process Address Space ID (7.8.9): the function tags its requests with PASIDs.

    ``width``: bits of the largest PASID, 0 to 20. ``execute``, ``privileged``: the function may ask
    for execute permission, for privileged mode. Control does not change while ATS is enabled.
    """

    capability_id = 0x001B

    CAPABILITY = Register(
        0x4,
        16,
        RO,
        fields={"EXECUTE": Field(1), "PRIVILEGED": Field(2), "MAX_WIDTH": Field(8, 5)},
    )
    CONTROL = Register(
        0x6, 16, fields={"ENABLE": Field(0), "EXECUTE": Field(1), "PRIVILEGED": Field(2)}
    )

    _accepted = 0

    def __init__(
        self,
        width: int = 20,
        *,
        execute: bool = False,
        privileged: bool = False,
        at: int | None = None,
    ) -> None:
        super().__init__(at=at)
        if not 0 <= width <= 20:
            raise DeclarationError(f"a PASID is 0 to 20 bits wide, not {width}")
        self.CAPABILITY.preset(EXECUTE=int(execute), PRIVILEGED=int(privileged), MAX_WIDTH=width)
        self.CONTROL.narrow(1 | execute << 1 | privileged << 2)

    @property
    def enabled(self) -> bool:
        return bool(self.CONTROL.ENABLE)

    @property
    def limit(self) -> int:
        """PASIDs of this function are below it."""
        return 1 << self.CAPABILITY.MAX_WIDTH

    def attach(self, config: ConfigSpace) -> None:
        super().attach(config)
        express = config.find(PciExpress)
        if express is not None:
            # What carries a PASID is an end-end TLP prefix, one of them (6.20, 7.5.3.15).
            express.DEVICE_CAPABILITIES_2.preset(
                EXTENDED_FMT=1, END_END_PREFIXES=1, MAX_END_END_PREFIXES=1
            )

    def on_write_CONTROL(self, value: int) -> None:
        ats = self.config.find(Ats)
        if ats is not None and ats.enabled and value != self._accepted:
            self.CONTROL.value = self._accepted
            self.config.owner.on_refused(f"PASID Control {value:#x}: disable ATS first")
        self.publish()

    def state(self) -> object:
        return self.CONTROL.value

    def notify(self) -> None:
        self._accepted = self.CONTROL.value


class Ats(ExtendedCapability):
    """Address Translation Services (10.5.1): the function may ask for translations and keep them.

    ``invalidate_depth``: invalidations it takes before it answers, 1 to 32. ``page_aligned``: its
    untranslated addresses are multiples of 4 KiB. ``global_invalidate``: it takes invalidations for
    all PASIDs at once.
    """

    capability_id = 0x000F

    CAPABILITY = Register(
        0x4,
        16,
        RO,
        fields={
            "INVALIDATE_DEPTH": Field(0, 5, doc="0 means 32."),
            "PAGE_ALIGNED": Field(5),
            "GLOBAL_INVALIDATE": Field(6),
            "RELAXED_ORDERING": Field(7),
        },
    )
    CONTROL = Register(
        0x6,
        16,
        fields={
            "SMALLEST_UNIT": Field(0, 5, doc="A translation is for 2^(n+12) bytes or more."),
            "ENABLE": Field(15),
        },
    )

    def __init__(
        self,
        *,
        invalidate_depth: int = 32,
        page_aligned: bool = True,
        global_invalidate: bool = False,
        relaxed_ordering: bool = False,
        at: int | None = None,
    ) -> None:
        super().__init__(at=at)
        if not 1 <= invalidate_depth <= 32:
            raise DeclarationError(f"ATS takes 1 to 32 invalidations, not {invalidate_depth}")
        self.CAPABILITY.preset(
            INVALIDATE_DEPTH=invalidate_depth % 32,
            PAGE_ALIGNED=int(page_aligned),
            GLOBAL_INVALIDATE=int(global_invalidate),
            RELAXED_ORDERING=int(relaxed_ordering),
        )

    @property
    def enabled(self) -> bool:
        return bool(self.CONTROL.ENABLE)


class Pri(ExtendedCapability):
    """Page Request Interface (10.5.2): the function may ask for pages that are not there.

    ``capacity``: page requests that it can have outstanding, 32 bits; software allocates as many of
    them or fewer. ``pasid_required``: it expects a response with the PASID of the request.
    """

    capability_id = 0x0013

    CONTROL = Register(0x4, 16, fields={"ENABLE": Field(0), "RESET": Field(1, access=WO)})
    STATUS = Register(
        0x6,
        16,
        W1C,
        fields={
            "RESPONSE_FAILURE": Field(0, doc="A response said that no others will come."),
            "UNEXPECTED_RESPONSE": Field(1, doc="A response was for no request."),
            "STOPPED": Field(8, access=RO, reset=1, doc="Not enabled, and nothing outstanding."),
            "PASID_REQUIRED": Field(15, access=RO),
        },
    )
    CAPACITY = Register(0x8, 32, RO)
    ALLOCATION = Register(0xC, 32)

    _was = (False, 0)  # enabled, allocation

    def __init__(
        self, capacity: int, *, pasid_required: bool = False, at: int | None = None
    ) -> None:
        super().__init__(at=at)
        if not 1 <= capacity < 1 << 32:
            raise DeclarationError(f"PRI capacity {capacity}: 1 to 2^32 - 1 page requests")
        self._groups: dict[int, int] = {}
        self.STATUS.preset(PASID_REQUIRED=int(pasid_required))
        self.CAPACITY.preset(capacity)

    @property
    def enabled(self) -> bool:
        return bool(self.CONTROL.ENABLE)

    @property
    def outstanding(self) -> int:
        """Page requests that have no response yet."""
        return sum(self._groups.values())

    def request(self, group: int) -> None:
        """The function sends a page request of ``group`` (page request group index, 9 bits).

        Raises StateError, with nothing sent, if software has not enabled it or allocated no more.
        """
        if not self.enabled or self.STATUS.RESPONSE_FAILURE:
            raise StateError("page requests are not enabled: software has to set PRI's Enable")
        if self.outstanding >= self.ALLOCATION.value:
            raise StateError(
                f"all {self.ALLOCATION.value} allocated page requests are outstanding: "
                "wait for a response"
            )
        self._groups[group] = self._groups.get(group, 0) + 1

    def respond(self, group: int, *, failure: bool = False) -> bool:
        """A response for ``group`` has come; False if it is to be ignored.

        ``failure`` is the Response Failure code (10.4.2.2), after which no others are expected.
        """
        if self.STATUS.RESPONSE_FAILURE:
            return False
        if failure:
            self.STATUS.RESPONSE_FAILURE = 1
            self._groups.clear()
        elif self._groups.pop(group, None) is None:
            self.STATUS.UNEXPECTED_RESPONSE = 1
            return False
        self._show_stopped()
        return True

    def discard(self) -> None:
        """Forget all requests: a response that still comes is an unexpected one."""
        self._groups.clear()
        self._show_stopped()

    def on_write_CONTROL(self, _value: int) -> None:
        was_enabled, _ = self._was
        if self.enabled and not was_enabled:
            self.STATUS.RESPONSE_FAILURE = self.STATUS.UNEXPECTED_RESPONSE = 0
        elif not self.enabled and self.CONTROL.RESET:
            self._groups.clear()
        self.CONTROL.RESET = 0
        self._show_stopped()
        self.publish()

    def on_write_ALLOCATION(self, value: int) -> None:
        _, before = self._was
        if value == before:
            return
        if self.enabled or value > self.CAPACITY.value:
            self.ALLOCATION.value = before
            self.config.owner.on_refused(
                f"Outstanding Page Request Allocation {value:#x}: at most "
                f"{self.CAPACITY.value:#x}, and before Enable is set"
            )
        self.publish()

    def _show_stopped(self) -> None:
        self.STATUS.STOPPED = int(not self.enabled and not self._groups)

    def reset(self, *, keep_sticky: bool = False) -> None:
        super().reset(keep_sticky=keep_sticky)
        self._groups.clear()

    def state(self) -> object:
        return self.enabled, self.ALLOCATION.value

    def notify(self) -> None:
        self._was = self.enabled, self.ALLOCATION.value
