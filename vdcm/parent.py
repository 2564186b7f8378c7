"""Parents: what VDEVs are composed from, and how models are found.

A device model is a ``Parent`` subclass, registered under the entry-point group ``vdcm.devices``.
vdcm itself knows none by name, so a model outside this repository works like the ones inside.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import Any, ClassVar, Final, TypeVar

from vdcm.errors import DeclarationError, VdcmError, fault
from vdcm.host import HostDriver
from vdcm.properties import Configurable, Property, PropertyError, properties_of
from vdcm.sweep import NAP_US
from vdcm.vdev import Vdev

GROUP: Final = "vdcm.devices"
_first: Final[set[str]] = set()
"""The models that this process has found first."""


@dataclass(frozen=True)
class VdevType:
    """A kind of VDEV that is composed of ADIs: ``model`` made with ``arguments``.

    ``adis``: how many ADIs of which type it takes when it is made (4.4: a static composition); a
    guest may ask for more later.
    """

    model: type[Vdev]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    adis: Mapping[str, int] = field(default_factory=dict)
    doc: str = ""


def wake_latency() -> Property[int]:
    """For a parent whose VDEVs have direct doorbells, to be passed on as ``HostDriver.wake_us``."""
    return Property(
        NAP_US,
        minimum=50,
        maximum=1_000_000,
        live=False,
        doc="Microseconds that it naps at most, if idle, between two looks at direct doorbells.",
    )


class Parent(Configurable):
    """One parent device. ``types`` names the kinds of VDEV that it composes.

    A parent's own properties are class attributes (``Property``), as a VDEV's are; ``build`` makes
    one with its properties set. ``driver``: the host driver of a parent that has ADIs.
    """

    types: ClassVar[Mapping[str, type[Vdev] | VdevType]] = {}
    driver: HostDriver | None = None

    def __init__(self, name: str) -> None:
        self.name: Final = name

    @classmethod
    def vdev_model(cls, type_name: str) -> type[Vdev]:
        """The class of a type's VDEVs; KeyError for an unknown type."""
        kind = cls.types[type_name]
        return kind.model if isinstance(kind, VdevType) else kind

    def available(self, type_name: str) -> int | None:
        """How many more VDEVs of a type its ADIs allow now; None: there is no limit."""
        kind = self.types[type_name]
        if self.driver is None or not isinstance(kind, VdevType):
            return None
        needed = tuple(Counter(kind.adis).elements())
        return self.driver.available(*needed) if needed else None

    def create(
        self,
        type_name: str,
        name: str,
        properties: Mapping[str, Any],
        spare: Sequence[Parent] = (),
    ) -> Vdev:
        """A VDEV called ``name``, with ``properties`` set, composed and ready to be served.

        Its ADIs come from this parent and, where it has none free, from the ``spare`` ones (4.4).
        Raises VdcmError for an unknown type, ResourceError if there are too few ADIs.
        """
        try:
            kind = self.types[type_name]
        except KeyError:
            known = ", ".join(sorted(self.types))
            raise VdcmError(f"{self.name} has no type {type_name} (known: {known})") from None
        if not isinstance(kind, VdevType):
            return build(kind, name, properties)
        drivers = [parent.driver for parent in (self, *spare) if parent.driver is not None]
        return build(kind.model, name, properties, drivers=drivers, **kind.arguments)

    def keeps(self, vdev: str) -> bool:
        """Is there something kept for the VDEV of that name while it is not started?"""
        del vdev
        return False

    def forget(self, vdev: str) -> None:
        """The VDEV of that name is defined no more: what is kept for it while it is not started,
        its data above all, is to go."""

    def close(self) -> None:
        """End what the parent does; its VDEVs have been closed. Twice is harmless."""
        if self.driver is not None:
            self.driver.close()


Model = TypeVar("Model", Vdev, Parent)


def build(model: type[Model], name: str, properties: Mapping[str, Any], **arguments: Any) -> Model:
    """Make a VDEV or a parent with its properties set.

    They have their values already while ``__init__`` runs, which may depend on them;
    ``on_set_NAME`` is called for each once it is made. Raises PropertyError for an unknown property
    or a wrong value, and what the model raises.
    """
    _check(model, name, properties)
    made = model.__new__(model)
    vars(made).update(properties)
    try:
        model.__init__(made, name, **arguments)
        set_properties(made, properties)
    except BaseException:
        try:  # what it has taken already is given back
            made.close()
        except AttributeError:  # it has not come as far as its own close() expects
            base = Vdev if isinstance(made, Vdev) else Parent
            base.close(made)
        raise
    return made


def set_properties(owner: Vdev | Parent, properties: Mapping[str, Any]) -> None:
    """Set properties by name; PropertyError for an unknown one or a wrong value, none set then."""
    _check(type(owner), owner.name, properties)
    for name, value in properties.items():
        setattr(owner, name, value)


def _check(model: type[Vdev] | type[Parent], owner: str, properties: Mapping[str, Any]) -> None:
    known = properties_of(model)
    for name, value in properties.items():
        if name not in known:
            names = ", ".join(sorted(known)) or "none"
            raise PropertyError(f"{owner} has no property {name} (known: {names})")
        known[name].check(value)


def models() -> dict[str, type[Parent]]:
    """All installed device models by name. Raises DeclarationError for one that does not load."""
    found: dict[str, type[Parent]] = {}
    for entry in entry_points(group=GROUP):
        try:
            model = entry.load()
        except Exception as error:
            raise DeclarationError(
                f"device model {entry.name} ({entry.value}) does not load: {fault(error)}"
            ) from error
        if not (isinstance(model, type) and issubclass(model, Parent)):
            raise DeclarationError(
                f"device model {entry.name} ({entry.value}) is no subclass of vdcm.Parent"
            )
        found[entry.name] = model
    _first.update(found if not _first else ())
    return found


def installed_since(known: Iterable[str] = ()) -> str:
    """A hint, if device models are installed that are not among the ``known``, which are those of
    this process if none are given; else nothing."""
    before = set(known) or _first
    new = {entry.name for entry in entry_points(group=GROUP)} - before if before else set()
    return f"; installed since the server started: {', '.join(sorted(new))}: restart it" * bool(new)
