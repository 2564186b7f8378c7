"""Metrics for Prometheus: ``vdcm serve --metrics``. Needs prometheus-client (``vdcm[metrics]``).

Names, kinds and texts are those of ``vdcm.counters``. A scrape is made on the event loop piece by
piece, so that VDEVs are served in between; threads would fight with them for the interpreter.
"""

from pathlib import Path
from typing import Final

from vdcm.metrics.server import MetricsServer, parse_address
from vdcm.metrics.text import scrape

DASHBOARD: Final = Path(__file__).with_name("dashboard.json")
"""For Grafana: import it there and choose the data source."""

__all__ = ["DASHBOARD", "MetricsServer", "parse_address", "scrape"]
