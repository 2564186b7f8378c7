/* See guard.h. Sizes and counts: vfio-user protocol, the section of each command. */
#include "guard.h"

#include <errno.h>
#include <stdbool.h>
#include <string.h>

enum { VDCM_OURS_MAX = 4096 /* bytes of the longest other message: SET_IRQS with booleans */ };

static enum vdcm_verdict reject(int errnum, const char *why, int *error, const char **reason)
{
    *error = errnum;
    *reason = why;
    return VDCM_REJECT;
}

/* Is the payload long enough, and does argsz (its first word) not claim less than the fixed part? */
static bool too_short(const struct vdcm_message *message, uint32_t fixed)
{
    uint32_t argsz;

    if (message->length < fixed) {
        return true;
    }
    memcpy(&argsz, message->payload, sizeof(argsz));
    return argsz < fixed;
}

/* What is wrong with the writes of a REGION_WRITE_MULTI; NULL: nothing. */
static const char *wrong_writes(const struct vdcm_message *message)
{
    struct vdcm_write_one one;
    uint64_t count;

    if (message->length < sizeof(count)) {
        return "REGION_WRITE_MULTI is too short";
    }
    memcpy(&count, message->payload, sizeof(count));
    if (count != (message->length - sizeof(count)) / sizeof(one) ||
        (message->length - sizeof(count)) % sizeof(one) != 0) {
        return "REGION_WRITE_MULTI does not carry as many writes as it says";
    }
    for (uint64_t i = 0; i < count; i++) {
        memcpy(&one, message->payload + sizeof(count) + i * sizeof(one), sizeof(one));
        if (one.access.count == 0 || one.access.count > sizeof(one.data)) {
            return "a write of REGION_WRITE_MULTI has no bytes, or more than 8";
        }
    }
    return NULL;
}

/* The same for REGION_READ and REGION_WRITE. */
static const char *wrong_access(const struct vdcm_message *message)
{
    struct vdcm_access access;

    if (message->length < sizeof(access)) {
        return "a region access is too short";
    }
    memcpy(&access, message->payload, sizeof(access));
    if (message->header.command == VDCM_REGION_WRITE) {
        if (message->length - sizeof(access) != access.count) {
            return "REGION_WRITE does not carry as much as it says";
        }
    } else if (access.count > VDCM_MAX_TRANSFER) {
        return "REGION_READ is larger than max_data_xfer_size";
    }
    return NULL;
}

enum vdcm_verdict vdcm_guard(const struct vdcm_message *message, int *error, const char **reason)
{
    enum vdcm_verdict verdict = VDCM_OURS;
    const char *name;
    const char *wrong;
    uint32_t fixed;

    if (message->n_fds > 0 && message->header.command != VDCM_DMA_MAP &&
        message->header.command != VDCM_SET_IRQS) {
        *reason = "a message that takes no descriptor carries one";
        return VDCM_REFUSE;
    }
    switch (message->header.command) {
    case VDCM_REGION_READ:
    case VDCM_REGION_WRITE:
        wrong = wrong_access(message);
        return wrong == NULL ? VDCM_OURS : reject(EINVAL, wrong, error, reason);
    case VDCM_REGION_WRITE_MULTI:
        wrong = wrong_writes(message);
        return wrong == NULL ? VDCM_OURS : reject(EINVAL, wrong, error, reason);
    case VDCM_DMA_MAP: /* argsz, flags, offset, address, size */
        name = "DMA_MAP is too short";
        fixed = 32;
        break;
    case VDCM_DMA_UNMAP: /* argsz, flags, address, size */
        name = "DMA_UNMAP is too short";
        fixed = 24;
        break;
    case VDCM_GET_REGION_INFO: /* argsz, flags, index, cap_offset, size, offset */
        name = "GET_REGION_INFO is too short";
        fixed = 32;
        break;
    case VDCM_GET_IRQ_INFO: /* argsz, flags, index, count */
        name = "GET_IRQ_INFO is too short";
        fixed = 16;
        break;
    case VDCM_SET_IRQS: /* argsz, flags, index, start, count */
        name = "SET_IRQS is too short";
        fixed = 20;
        break;
    case VDCM_GET_INFO: /* argsz, flags, regions, interrupts */
        name = "GET_INFO is too short";
        fixed = 16;
        verdict = VDCM_PASS;
        break;
    case VDCM_DEVICE_RESET:
        name = "";
        fixed = 0;
        verdict = VDCM_PASS;
        break;
    default:
        /* One answer for all that is not served, whichever libvfio-user is behind. */
        return reject(EOPNOTSUPP, "a command that is not served", error, reason);
    }
    if (fixed > 0 && too_short(message, fixed)) {
        return reject(EINVAL, name, error, reason);
    }
    if (message->header.size > VDCM_OURS_MAX) {
        return reject(EINVAL, "a message is far longer than its command needs", error, reason);
    }
    return verdict;
}
