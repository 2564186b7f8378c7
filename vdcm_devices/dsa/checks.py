"""What the device checks before it enables itself or a work queue (DSA specification, 5.1, 5.2)."""

from __future__ import annotations

from collections.abc import Container

from vdcm_devices.dsa.codes import CommandError, DeviceState, WqMode, WqState
from vdcm_devices.dsa.registers import BUFFERS_NEEDED, DsaRegisters


def device_enable_error(registers: DsaRegisters, *, bus_master: bool) -> CommandError:
    """Why Enable Device fails: SUCCESS if it need not (5.1)."""
    if registers.GENSTS.STATE != DeviceState.DISABLED:
        return CommandError.DEVICE_NOT_DISABLED
    if not bus_master:
        return CommandError.BUS_MASTER
    sizes = [wq.SIZE for wq in registers.WQSIZE]
    if sum(sizes) > registers.WQCAP.TOTAL_SIZE:
        return CommandError.WQ_SIZES
    return _groups_error(registers, sizes) or _read_buffers_error(registers)


def _groups_error(registers: DsaRegisters, sizes: list[int]) -> CommandError:
    """Groups are complete, their members in one group each, and those are the active ones."""
    all_wqs = all_engines = 0
    for group_wqs, group_engines in zip(registers.GRPWQS, registers.GRPENGINES, strict=True):
        wqs, engines = group_wqs.WQS, group_engines.ENGINES
        if bool(wqs) != bool(engines):
            return CommandError.GROUP_INCOMPLETE
        if wqs & all_wqs:
            return CommandError.GROUP_WQS
        if engines & all_engines:
            return CommandError.GROUP_ENGINES
        all_wqs |= wqs
        all_engines |= engines
    if all_wqs != sum(1 << wq for wq, size in enumerate(sizes) if size):
        return CommandError.GROUP_WQS
    return CommandError.SUCCESS


def _read_buffers_error(registers: DsaRegisters) -> CommandError:
    """Groups with engines have enough read buffers and no more than there are."""
    total, limit = registers.GRPCAP.READ_BUFFERS, registers.GENCFG.READ_BUFFER_LIMIT
    groups = [
        (BUFFERS_NEEDED * engines.ENGINES.bit_count(), flags)
        for engines, flags in zip(registers.GRPENGINES, registers.GRPFLAGS, strict=True)
        if engines.ENGINES
    ]
    limited = sum(needed for needed, flags in groups if flags.USE_READ_BUFFER_LIMIT)
    free = total - sum(flags.READ_BUFFERS_RESERVED for _, flags in groups)
    if limit > total or limited > limit or free < 0:
        return CommandError.READ_BUFFERS
    for needed, flags in groups:
        reserved = flags.READ_BUFFERS_RESERVED
        if not max(needed, reserved) <= flags.READ_BUFFERS_ALLOWED <= reserved + free:
            return CommandError.READ_BUFFERS
    return CommandError.SUCCESS


def wq_enable_error(
    registers: DsaRegisters,
    wq: int,
    modes: Container[WqMode],
    *,
    pasid_enabled: bool,
    privileged_mode: bool,
) -> CommandError:
    """Why Enable WQ fails for ``wq`` (any number): SUCCESS if it need not (5.2).

    ``modes`` are those of the ADI behind the work queue, the two others what the guest has set in
    the PASID capability.
    """
    if registers.GENSTS.STATE != DeviceState.ENABLED:
        return CommandError.DEVICE_NOT_ENABLED
    if wq >= registers.WQCAP.WQS:
        return CommandError.WQ_INDEX
    if registers.WQSTATE[wq].STATE != WqState.DISABLED:
        return CommandError.WQ_NOT_DISABLED
    if not registers.WQSIZE[wq].SIZE:
        return CommandError.WQ_SIZE
    return _mode_error(registers, wq, modes, pasid_enabled, privileged_mode) or _limits_error(
        registers, wq
    )


def _mode_error(
    registers: DsaRegisters,
    wq: int,
    modes: Container[WqMode],
    pasid_enabled: bool,
    privileged_mode: bool,
) -> CommandError:
    config = registers.WQMODE[wq]
    mode = WqMode(config.MODE)
    if mode not in modes:
        return CommandError.WQ_MODE
    if not config.PRIORITY:
        return CommandError.WQ_PRIORITY
    if config.BLOCK_ON_FAULT:  # there are no page requests that could be enabled
        return CommandError.BLOCK_ON_FAULT
    if config.PASID_ENABLE and not pasid_enabled:
        return CommandError.PASID_ENABLE
    if mode is WqMode.SHARED and not config.PASID_ENABLE:
        return CommandError.PASID_ENABLE
    if (
        mode is WqMode.DEDICATED
        and config.PASID_ENABLE
        and config.PRIVILEGE
        and not privileged_mode
    ):
        return CommandError.PRIVILEGE
    return CommandError.SUCCESS


def _limits_error(registers: DsaRegisters, wq: int) -> CommandError:
    limits = registers.WQLIMITS[wq]
    if limits.MAX_TRANSFER > registers.GENCAP.MAX_TRANSFER:
        return CommandError.MAX_TRANSFER
    if not 0 < limits.MAX_BATCH <= registers.GENCAP.MAX_BATCH:
        return CommandError.MAX_BATCH
    for allowed, possible in zip(registers.wq_operations, registers.OPCAP, strict=True):
        if allowed[wq].value & ~possible.value:
            return CommandError.OPERATIONS
    return CommandError.SUCCESS
