"""The host driver of the NIC: its ADIs are VSIs with their queue pairs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, ClassVar, Final

from vdcm import Adi, AdiType, HostDriver, ParentFunction, ResourceError
from vdcm_devices.avf.datapath import DataPath, MakeDataPath
from vdcm_devices.avf.registers import MOST_QUEUES
from vdcm_devices.avf.uplink import Uplink
from vdcm_devices.avf.vsi import text

PAIRS: Final = "queue-pairs"
VSIS: Final = "vsis"
UPLINK: Final = "uplink"


def vsi_type(pairs: int) -> str:
    """The ADI type of a VSI with ``pairs`` queue pairs (1 to 16)."""
    return f"{pairs}-queue-vsi"


def _type(pairs: int) -> AdiType:
    return AdiType(
        vsi_type(pairs),
        {VSIS: 1, PAIRS: pairs},
        messages=pairs,
        doc=f"A VSI with {pairs} queue pairs, an interrupt message for each.",
    )


class AvfDriver(HostDriver):
    """``pairs``: queue pairs; ``vsis``: VSIs; ``make``: makes an ADI's data path."""

    adi_types: ClassVar[Mapping[str, AdiType]] = {
        **{vsi_type(pairs): _type(pairs) for pairs in range(1, MOST_QUEUES + 1)},
        UPLINK: AdiType(
            UPLINK, {UPLINK: 1}, pasid_required=False, doc="The switch's, of the host."
        ),
    }
    generations: ClassVar[tuple[str, ...]] = ("1.1",)

    def __init__(
        self,
        name: str,
        function: ParentFunction,
        *,
        pairs: int,
        vsis: int,
        messages: int,
        workers: int,
        make: MakeDataPath,
    ) -> None:
        resources = {PAIRS: pairs, VSIS: vsis, UPLINK: 1}
        super().__init__(name, function, resources, messages=messages, workers=workers)
        self._make: Final = make
        self._macs: dict[bytes, object] = {}
        self._uplink: Uplink | None = None

    def connect(self, uplink: Uplink) -> None:
        """Run an uplink, one at most, from now on; it is closed with the parent."""
        self._uplink = uplink
        try:
            self.enable(self.allocate(UPLINK, f"{self.name} {UPLINK}"))
        except BaseException:
            uplink.close()
            raise

    # What an ADI is.

    def on_allocate(self, adi: Adi) -> None:
        if adi.type.name == UPLINK:
            assert self._uplink is not None  # else there is none of these
            self._uplink.start(adi)
        else:
            adi.resource = self._make(adi)

    def on_reset(self, adi: Adi) -> None:
        if adi.type.name != UPLINK:
            self.path(adi).reset()

    def on_release(self, adi: Adi) -> None:
        if adi.type.name != UPLINK:
            self.path(adi).close()
        elif self._uplink is not None:
            self._uplink.close()

    def on_counters(self, adi: Adi) -> dict[str, int]:
        return {} if adi.type.name == UPLINK else asdict(self.path(adi).statistics())

    def describe(self) -> dict[str, Any]:
        counted = self._uplink.counters() if self._uplink is not None else None
        return {**super().describe(), UPLINK: counted}

    def path(self, adi: Adi) -> DataPath:
        """The data path of an ADI."""
        path: DataPath = adi.resource
        return path

    # Who has which address.

    def take_mac(self, mac: bytes, owner: object) -> None:
        """``owner`` has ``mac`` until ``give_mac``; ResourceError if another one has it."""
        if mac in self._macs:
            raise ResourceError(
                f"{self.name}: MAC address {text(mac)} is in use: give each VDEV its own, or none"
            )
        self._macs[mac] = owner

    def give_mac(self, mac: bytes, owner: object) -> None:
        """Undo ``take_mac``. Twice is harmless."""
        if self._macs.get(mac) is owner:
            del self._macs[mac]

    def owner_of(self, mac: bytes) -> object | None:
        """Who has taken ``mac``; None: nobody."""
        return self._macs.get(mac)
