"""Definitions of parents and VDEVs: checked when they are read, before anything is made.

They come from a YAML file (``load``) or as JSON over the control socket and from the state folder
(``vdev_from_json``); what a field may hold is said once, in ``checked``.
"""

from vdcm.definition.checked import (
    Definition,
    ParentDefinition,
    VdevDefinition,
    check_parents,
    choices,
    implicit_parents,
    property_values,
    type_properties,
    vdev_from_json,
)
from vdcm.definition.file import load
from vdcm.definition.places import (
    control_path,
    make_runtime_folder,
    runtime_folder,
    state_folder,
)

__all__ = [
    "Definition",
    "ParentDefinition",
    "VdevDefinition",
    "check_parents",
    "choices",
    "control_path",
    "implicit_parents",
    "load",
    "make_runtime_folder",
    "property_values",
    "runtime_folder",
    "state_folder",
    "type_properties",
    "vdev_from_json",
]
