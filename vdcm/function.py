"""A parent's own function: the configuration space that its host driver owns and consults.

There is no bus behind it: the function is that of a software parent, and the host driver is the
only software that writes it. Sections are those of Intel Scalable IOV (337679-002, 1.1).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Final

from vdcm.errors import DeclarationError, StateError
from vdcm.pci import (
    Capability,
    Command,
    ConfigEvents,
    ConfigSpace,
    Identity,
    Pasid,
    PciExpress,
    PowerManagement,
    ScalableIov,
)

log = logging.getLogger("vdcm.function")


class ParentFunction:
    """The physical function of the parent ``name``, with its ADIs' capabilities.

    ``capabilities`` has a ``ScalableIov`` (2.8) and a ``Pasid`` (2.2), and what else the parent
    has: ``Ats``, ``Pri``. Raises DeclarationError for what cannot be composed.
    """

    def __init__(
        self,
        name: str,
        identity: Identity,
        capabilities: Sequence[Capability],
    ) -> None:
        self.name: Final = name
        self.config: Final = ConfigSpace(
            identity,
            capabilities=[PowerManagement(), PciExpress(), *capabilities],
            owner=_Events(name),
        )
        siov, pasid = self.config.find(ScalableIov), self.config.find(Pasid)
        if siov is None or pasid is None:
            raise DeclarationError(
                f"{name}: a function with ADIs has the capabilities ScalableIov and Pasid"
            )
        self.siov: Final = siov
        self.pasid: Final = pasid

    def enable(self) -> None:
        """Set PASID Enable, which has to precede the first ADI (2.2), then Memory Space Enable and
        Bus Master Enable. From now on System Page Size stays as it is (2.8).

        Raises StateError if ATS is enabled already: PASID Enable cannot change then.
        """
        self.config.space.write(self.pasid.offset + 0x6, 2, 1)
        if not self.pasid.enabled:
            raise StateError(f"{self.name}: PASID cannot be enabled after ATS: disable ATS first")
        command = self.config.header.command | Command.MEMORY | Command.BUS_MASTER
        self.config.space.write(0x4, 2, command)

    @property
    def pasid_enabled(self) -> bool:
        return self.pasid.enabled

    @property
    def memory_enabled(self) -> bool:
        return Command.MEMORY in self.config.header.command

    @property
    def ims_supported(self) -> bool:
        """The parent has Interrupt Message Storage, whether or not that is shown."""
        return self.siov.ims

    @property
    def system_page_size(self) -> int:
        """Bytes. ADI registers are isolated in whole pages of this size (2.4)."""
        return self.siov.system_page_size

    def reset(self) -> None:
        """Function-level reset, as by Initiate Function Level Reset: nothing is enabled then."""
        self.config.function_level_reset()


class _Events(ConfigEvents):
    def __init__(self, name: str) -> None:
        self._name = name

    def on_refused(self, reason: str) -> None:
        log.warning("%s: refused: %s", self._name, reason)
