"""vdcm: a Virtual Device Composition Module that serves PCIe devices to stock QEMU from Python."""
