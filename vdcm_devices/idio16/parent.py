"""The card as a parent: each VDEV is a card of its own."""

from typing import ClassVar

from vdcm import Parent
from vdcm_devices.idio16.vdev import Idio16


class Idio16Card(Parent):
    types: ClassVar = {"pcie-idio-16": Idio16}
