"""Features: Set and Get Features (NVM Express 1.4, 5.21 and 5.27).

None is kept over a reset of the controller ("saveable"), so what is saved is what is the default.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, Protocol

from vdcm import monotonic_ns
from vdcm_devices.nvme.codes import ALL_NAMESPACES, Feature, NvmeError, Status
from vdcm_devices.nvme.command import Command
from vdcm_devices.nvme.logs import TEMPERATURE, WARNING_TEMPERATURE

CDW10, CDW11, CDW14 = 40, 44, 56
NSID: Final = 4
SAVE: Final = 1 << 31
CHANGEABLE: Final = 1 << 2
OF_NAMESPACE: Final = 1 << 1
HEALTH_EVENTS: Final = 0x1F
"""Critical warnings that Asynchronous Event Configuration may name (figure 291)."""
NAMESPACE_EVENTS: Final = 1 << 8


class Select(IntEnum):
    """Which value Get Features is to give (figure 187)."""

    CURRENT = 0
    DEFAULT = 1
    SAVED = 2
    CAPABILITIES = 3


class Owner(Protocol):
    """What the features are of."""

    @property
    def queues_allowed(self) -> int:
        """Pairs of I/O queues that the host may make."""

    @property
    def queues_made(self) -> bool:
        """There is an I/O queue already."""

    @property
    def vectors(self) -> int:
        """Entries of the MSI-X table."""

    @property
    def namespaces(self) -> Mapping[int, object]:
        """By namespace identifier."""

    def apply_features(self) -> None:
        """Tell the data path of what has changed."""


@dataclass(frozen=True)
class _Kind:
    """``mask``: bits that are kept. ``size``: bytes of data, 0: the value is a dword."""

    mask: int
    default: int = 0
    size: int = 0


_KINDS: Final[Mapping[Feature, _Kind]] = {
    Feature.ARBITRATION: _Kind(0xFFFF_FF07, 7),  # no limit to a burst
    Feature.POWER_MANAGEMENT: _Kind(0xFF),
    Feature.TEMPERATURE_THRESHOLD: _Kind(0xFFFF, WARNING_TEMPERATURE),
    Feature.ERROR_RECOVERY: _Kind(0xFFFF),
    Feature.WRITE_CACHE: _Kind(1, 1),
    Feature.NUMBER_OF_QUEUES: _Kind(0xFFFF_FFFF),
    Feature.INTERRUPT_COALESCING: _Kind(0xFFFF),
    Feature.VECTOR_CONFIGURATION: _Kind(1 << 16),
    Feature.WRITE_ATOMICITY: _Kind(1),
    Feature.EVENT_CONFIGURATION: _Kind(HEALTH_EVENTS | NAMESPACE_EVENTS),
    Feature.TIMESTAMP: _Kind(0, size=8),
    Feature.HOST_IDENTIFIER: _Kind(1, size=16),
}


class Features:
    """The values of one controller. ``write_cache``: it has a volatile one."""

    def __init__(self, owner: Owner, *, write_cache: bool) -> None:
        self._owner: Final = owner
        self._write_cache: Final = write_cache
        self.reset()

    def reset(self) -> None:
        """All values their defaults."""
        self._values = {feature: kind.default for feature, kind in _KINDS.items()}
        self._low_threshold = 0
        self._recovery: dict[int, int] = {}
        self._vectors: dict[int, int] = {}
        self._host = bytes(16)
        self._clock = (0, monotonic_ns(), False)

    # What the controller asks.

    def value(self, feature: Feature) -> int:
        return self._values[feature]

    @property
    def coalescing(self) -> tuple[int, int]:
        """Completions to gather (1: none), and for at most how many microseconds."""
        word = self._values[Feature.INTERRUPT_COALESCING]
        return (word & 0xFF) + 1, (word >> 8) * 100

    def coalesces(self, vector: int) -> bool:
        """It is not left out (5.21.1.9)."""
        return not self._vectors.get(vector)

    @property
    def too_warm_or_cold(self) -> bool:
        """The temperature has crossed a threshold (5.21.1.4)."""
        over = self._values[Feature.TEMPERATURE_THRESHOLD]
        return not self._low_threshold < TEMPERATURE < over

    # Commands.

    def set(self, command: Command, fetch: Callable[[int], bytes]) -> int:
        """Dword 0 of the completion. ``fetch`` gives so many bytes of the command's data."""
        if command.cdw10 & SAVE:
            raise NvmeError(Status.FEATURE_NOT_SAVEABLE, CDW10 + 3, 7)
        feature = self._feature(command)
        self._check_namespace(feature, command.nsid)
        if command.cdw14 & 0x7F:  # a UUID list there is not
            raise NvmeError(Status.INVALID_FIELD, CDW14)
        handler = self._SETTERS.get(feature)
        if handler is not None:
            return handler(self, command, fetch)
        self._values[feature] = command.cdw11 & _KINDS[feature].mask
        self._owner.apply_features()
        return 0

    def get(self, command: Command) -> tuple[int, bytes]:
        """Dword 0 of the completion, and the data, if the feature has some."""
        feature = self._feature(command)
        try:
            select = Select(command.cdw10 >> 8 & 7)
        except ValueError:
            raise NvmeError(Status.INVALID_FIELD, CDW10 + 1) from None
        if select is Select.CAPABILITIES:
            return CHANGEABLE | OF_NAMESPACE * (feature is Feature.ERROR_RECOVERY), b""
        self._check_namespace(feature, command.nsid, asked=True)
        current = select is Select.CURRENT
        if feature is Feature.TIMESTAMP:
            return 0, self._timestamp() if current else bytes(8)
        if feature is Feature.HOST_IDENTIFIER:
            size = 16 if command.cdw11 & 1 else 8
            return 0, self._host[:size] if current else bytes(size)
        return self._word(feature, command, current=current), b""

    def _word(self, feature: Feature, command: Command, *, current: bool) -> int:
        default = _KINDS[feature].default
        if feature is Feature.NUMBER_OF_QUEUES:
            return self._queues()
        if feature is Feature.VECTOR_CONFIGURATION:
            vector = self._vector(command)
            return vector | (self._vectors.get(vector, 0) if current else 0)
        if feature is Feature.TEMPERATURE_THRESHOLD:
            sensor, low = self._sensor(command)
            if sensor != 0:
                raise NvmeError(Status.INVALID_FIELD, CDW11 + 2)
            if low:
                return self._low_threshold if current else 0
        if feature is Feature.ERROR_RECOVERY and current:
            return self._recovery.get(command.nsid, default)
        return self._values[feature] if current else default

    def _feature(self, command: Command) -> Feature:
        try:
            feature = Feature(command.cdw10 & 0xFF)
        except ValueError:
            raise NvmeError(Status.INVALID_FIELD, CDW10) from None
        if feature is Feature.WRITE_CACHE and not self._write_cache:
            raise NvmeError(Status.INVALID_FIELD, CDW10)
        return feature

    def _check_namespace(self, feature: Feature, nsid: int, *, asked: bool = False) -> None:
        """Features are of the controller, but for error recovery, which is of a namespace."""
        if feature is Feature.ERROR_RECOVERY:
            if nsid in self._owner.namespaces or (nsid == ALL_NAMESPACES and not asked):
                return
            raise NvmeError(Status.INVALID_NAMESPACE, NSID)
        if nsid in (0, ALL_NAMESPACES):
            return
        if nsid not in self._owner.namespaces:
            raise NvmeError(Status.INVALID_NAMESPACE, NSID)
        if not asked:
            raise NvmeError(Status.FEATURE_NOT_OF_NAMESPACE, NSID)

    # One feature each.

    def _set_power(self, command: Command, _fetch: Callable[[int], bytes]) -> int:
        if command.cdw11 & 0x1F:  # there is one power state
            raise NvmeError(Status.INVALID_FIELD, CDW11)
        self._values[Feature.POWER_MANAGEMENT] = command.cdw11 & 0xE0
        return 0

    @staticmethod
    def _sensor(command: Command) -> tuple[int, bool]:
        """Which sensor, and whether the threshold is the lower one (figure 282)."""
        kind = command.cdw11 >> 20 & 3
        if kind > 1:
            raise NvmeError(Status.INVALID_FIELD, CDW11 + 2, 4)
        return command.cdw11 >> 16 & 0xF, bool(kind)

    def _set_threshold(self, command: Command, _fetch: Callable[[int], bytes]) -> int:
        sensor, low = self._sensor(command)
        if sensor not in (0, 0xF):  # the composite temperature, or all there are
            raise NvmeError(Status.INVALID_FIELD, CDW11 + 2)
        if low:
            self._low_threshold = command.cdw11 & 0xFFFF
        else:
            self._values[Feature.TEMPERATURE_THRESHOLD] = command.cdw11 & 0xFFFF
        self._owner.apply_features()
        return 0

    def _set_recovery(self, command: Command, _fetch: Callable[[int], bytes]) -> int:
        if command.cdw11 >> 16 & 1:  # DULBE: Identify Namespace does not offer it
            raise NvmeError(Status.INVALID_FIELD, CDW11 + 2)
        every = command.nsid == ALL_NAMESPACES
        for nsid in self._owner.namespaces if every else (command.nsid,):
            self._recovery[nsid] = command.cdw11 & 0xFFFF
        return 0

    def _queues(self) -> int:
        most = self._owner.queues_allowed - 1
        return most << 16 | most

    def _set_queues(self, command: Command, _fetch: Callable[[int], bytes]) -> int:
        if self._owner.queues_made:
            raise NvmeError(Status.SEQUENCE_ERROR)
        for half in (0, 16):
            if command.cdw11 >> half & 0xFFFF == 0xFFFF:
                raise NvmeError(Status.INVALID_FIELD, CDW11 + half // 8)
        return self._queues()

    def _vector(self, command: Command) -> int:
        vector = command.cdw11 & 0xFFFF
        if vector >= self._owner.vectors:
            raise NvmeError(Status.INVALID_FIELD, CDW11)
        return vector

    def _set_vector(self, command: Command, _fetch: Callable[[int], bytes]) -> int:
        vector = self._vector(command)
        self._vectors[vector] = command.cdw11 & _KINDS[Feature.VECTOR_CONFIGURATION].mask
        self._owner.apply_features()
        return 0

    def _timestamp(self) -> bytes:
        """Milliseconds, and that the host has set them (figure 296)."""
        start, since, was_set = self._clock
        now = start + (monotonic_ns() - since) // 1_000_000
        return (now & (1 << 48) - 1).to_bytes(6, "little") + bytes([was_set << 1, 0])

    def _set_timestamp(self, _command: Command, fetch: Callable[[int], bytes]) -> int:
        start = int.from_bytes(fetch(8)[:6], "little")
        self._clock = (start, monotonic_ns(), True)
        return 0

    def _set_host(self, command: Command, fetch: Callable[[int], bytes]) -> int:
        self._host = fetch(16 if command.cdw11 & 1 else 8).ljust(16, b"\0")
        return 0

    _SETTERS: Final = {
        Feature.POWER_MANAGEMENT: _set_power,
        Feature.TEMPERATURE_THRESHOLD: _set_threshold,
        Feature.ERROR_RECOVERY: _set_recovery,
        Feature.NUMBER_OF_QUEUES: _set_queues,
        Feature.VECTOR_CONFIGURATION: _set_vector,
        Feature.TIMESTAMP: _set_timestamp,
        Feature.HOST_IDENTIFIER: _set_host,
    }
