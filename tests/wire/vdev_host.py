"""Moved to vdcm.testing, and to everything.py."""

from everything import (
    DIRECT,
    MEMORY,
    PBA,
    STATUS,
    TABLE,
    VECTORS,
    Everything,
    bar0,
    put,
    refused,
)

from vdcm.testing import Host, wait_until_ready

__all__ = [
    "DIRECT",
    "MEMORY",
    "PBA",
    "STATUS",
    "TABLE",
    "VECTORS",
    "Everything",
    "Host",
    "bar0",
    "put",
    "refused",
    "wait_until_ready",
]
