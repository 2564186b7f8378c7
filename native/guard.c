/* See guard.h. Sizes and counts: vfio-user protocol, the section of each command. */
#define _GNU_SOURCE
#include "guard.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include "native.h"

static uint32_t word(const union vdcm_peek *peek, size_t payload_offset)
{
    uint32_t value;

    memcpy(&value, peek->bytes + sizeof(struct vdcm_header) + payload_offset, sizeof(value));
    return value;
}

static uint64_t quad(const union vdcm_peek *peek, size_t payload_offset)
{
    uint64_t value;

    memcpy(&value, peek->bytes + sizeof(struct vdcm_header) + payload_offset, sizeof(value));
    return value;
}

static enum vdcm_verdict reject(int errnum, const char *why, int *error, const char **reason)
{
    *error = errnum;
    *reason = why;
    return VDCM_REJECT;
}

/* Is the payload long enough, and does argsz (its first word) not claim less than the fixed part? */
static bool too_short(const union vdcm_peek *peek, uint32_t fixed)
{
    return peek->header.size - sizeof(struct vdcm_header) < fixed || word(peek, 0) < fixed;
}

enum vdcm_verdict vdcm_guard_check(const union vdcm_peek *peek, int *error, const char **reason)
{
    uint32_t payload = peek->header.size - sizeof(struct vdcm_header);

    switch (peek->header.command) {
    case VDCM_DMA_MAP: /* argsz, flags, offset, address, size */
        if (too_short(peek, 32)) {
            return reject(EINVAL, "DMA_MAP is too short", error, reason);
        }
        return VDCM_OURS;
    case VDCM_DMA_UNMAP: /* argsz, flags, address, size */
        if (too_short(peek, 24)) {
            return reject(EINVAL, "DMA_UNMAP is too short", error, reason);
        }
        return VDCM_OURS;
    case VDCM_GET_REGION_INFO: /* argsz, flags, index, cap_offset, size, offset */
        if (too_short(peek, 32)) {
            return reject(EINVAL, "GET_REGION_INFO is too short", error, reason);
        }
        return VDCM_OURS;
    case VDCM_SET_IRQS: /* argsz, flags, index, start, count */
        if (too_short(peek, 20)) {
            return reject(EINVAL, "SET_IRQS is too short", error, reason);
        }
        return VDCM_OURS;
    case VDCM_GET_INFO: /* argsz, flags, regions, interrupts */
        if (too_short(peek, 16)) {
            return reject(EINVAL, "GET_INFO is too short", error, reason);
        }
        return VDCM_PASS;
    case VDCM_GET_IRQ_INFO: /* argsz, flags, index, count */
        if (too_short(peek, 16)) {
            return reject(EINVAL, "GET_IRQ_INFO is too short", error, reason);
        }
        return VDCM_OURS;
    case VDCM_REGION_READ: /* offset (8), region, count */
        if (payload < 16) {
            return reject(EINVAL, "REGION_READ is too short", error, reason);
        }
        if (word(peek, 12) > VDCM_MAX_TRANSFER) {
            return reject(EINVAL, "REGION_READ is larger than max_data_xfer_size", error, reason);
        }
        break;
    case VDCM_REGION_WRITE:
        if (payload < 16 || payload - 16 != word(peek, 12)) {
            return reject(EINVAL, "REGION_WRITE does not carry as much as it says", error, reason);
        }
        break;
    case VDCM_DEVICE_RESET:
        return VDCM_PASS;
    default:
        /* One answer for all that is not served, whichever libvfio-user is behind. */
        return reject(EOPNOTSUPP, "a command that is not served", error, reason);
    }
    if (quad(peek, 0) > UINT64_MAX - word(peek, 12)) {
        return reject(EINVAL, "a region access wraps around", error, reason);
    }
    return VDCM_PASS;
}

/* The rest of a message will not come from a client that has closed. */
static enum vdcm_verdict partial_or_gone(int fd)
{
    struct pollfd poller = {.fd = fd, .events = POLLRDHUP};

    return poll(&poller, 1, 0) > 0 ? VDCM_GONE : VDCM_PARTIAL;
}

enum vdcm_verdict vdcm_guard(int fd, union vdcm_peek *peek, int *error, const char **reason)
{
    struct iovec iov = {.iov_base = peek, .iov_len = sizeof(*peek)};
    /* Without room for control data the kernel installs no descriptor and says MSG_CTRUNC. */
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};
    ssize_t got = recvmsg(fd, &msg, MSG_PEEK | MSG_DONTWAIT);
    enum vdcm_verdict verdict;

    if (got < 0) {
        if (errno == EAGAIN || errno == EINTR) {
            return VDCM_EMPTY;
        }
        return VDCM_GONE; /* ECONNRESET and the like */
    }
    if (got == 0) {
        return VDCM_GONE;
    }
    if ((size_t)got < sizeof(struct vdcm_header)) {
        if (msg.msg_flags & MSG_CTRUNC) {
            *reason = "a descriptor arrived with a part of a message header";
            return VDCM_REFUSE;
        }
        return partial_or_gone(fd);
    }
    if (peek->header.size < sizeof(struct vdcm_header)) {
        *reason = "a message claims to be shorter than its header";
        return VDCM_REFUSE;
    }
    if (peek->header.size > VDCM_MAX_MESSAGE) {
        *reason = "a message is longer than max_data_xfer_size allows";
        return VDCM_REFUSE;
    }
    if ((peek->header.flags & VDCM_FLAG_TYPE) != 0) {
        *reason = "a reply arrived that nobody asked for";
        return VDCM_REFUSE;
    }
    if ((size_t)got < peek->header.size) {
        int queued = 0;

        if (ioctl(fd, FIONREAD, &queued) < 0 || (uint32_t)queued < peek->header.size) {
            return partial_or_gone(fd);
        }
        if ((size_t)got < sizeof(*peek)) {
            /* All is there and yet the look ended early: a descriptor lies within the message. */
            *reason = "a message that takes no descriptor carries one";
            if (peek->header.command != VDCM_DMA_MAP && peek->header.command != VDCM_SET_IRQS) {
                return VDCM_REFUSE;
            }
            return peek->header.size <= VDCM_OURS_MAX ? VDCM_OURS : VDCM_REFUSE;
        }
    }
    verdict = vdcm_guard_check(peek, error, reason);
    if (verdict == VDCM_OURS && peek->header.size > VDCM_OURS_MAX) {
        return reject(EINVAL, "a message is far longer than its command needs", error, reason);
    }
    if (verdict == VDCM_PASS && (msg.msg_flags & MSG_CTRUNC)) {
        /*
         * Some message that waits carries a descriptor. A look cannot tell which: with MSG_PEEK
         * the kernel walks on to the next buffer even when it has copied all that was asked for.
         */
        return VDCM_UNSURE;
    }
    return verdict;
}
