"""An NVMe controller composed from ADIs, one for each I/O queue (NVM Express base 1.4)."""
