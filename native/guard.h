/*
 * The guard: decides on a message before libvfio-user may read it.
 *
 * Why it exists: libvfio-user reads past the end of short messages, waits for the rest of an
 * unfinished one (which would stop every other VDEV of this process), loses descriptors on some
 * errors, and keeps the eventfds of all interrupt kinds in one table. So it is shown whole,
 * well-formed messages only, and never one that carries descriptors in either direction.
 */
#ifndef VDCM_GUARD_H
#define VDCM_GUARD_H

#include <stdint.h>
#include <sys/types.h>

/* The message header (vfio-user protocol, "Header"). */
struct vdcm_header {
    uint16_t id;
    uint16_t command;
    uint32_t size; /* of the whole message, header included */
    uint32_t flags;
    uint32_t error;
};

enum {
    VDCM_FLAG_TYPE = 0xf, /* 0 command, 1 reply */
    VDCM_FLAG_REPLY = 0x1,
    VDCM_FLAG_NO_REPLY = 0x10,
    VDCM_FLAG_ERROR = 0x20,
};

enum vdcm_command {
    VDCM_VERSION = 1,
    VDCM_DMA_MAP = 2,
    VDCM_DMA_UNMAP = 3,
    VDCM_GET_INFO = 4,
    VDCM_GET_REGION_INFO = 5,
    VDCM_GET_REGION_IO_FDS = 6,
    VDCM_GET_IRQ_INFO = 7,
    VDCM_SET_IRQS = 8,
    VDCM_REGION_READ = 9,
    VDCM_REGION_WRITE = 10,
    VDCM_DEVICE_RESET = 13,
};

enum {
    VDCM_PEEK = 256,  /* bytes that the guard looks at: no fixed part of a command is longer */
    VDCM_OURS_MAX = 4096, /* longest message that session.c answers itself: SET_IRQS with booleans */
};

union vdcm_peek {
    struct vdcm_header header;
    uint8_t bytes[VDCM_PEEK];
};

enum vdcm_verdict {
    VDCM_PASS,    /* libvfio-user may have it */
    VDCM_OURS,    /* session.c answers it */
    VDCM_UNSURE,  /* libvfio-user may have it if, once taken, it carries no descriptor */
    VDCM_REJECT,  /* well framed but wrong: answer with an error, go on */
    VDCM_EMPTY,   /* nothing there */
    VDCM_PARTIAL, /* not all of it has arrived */
    VDCM_GONE,    /* the client has closed */
    VDCM_REFUSE,  /* the stream is of no more use: close */
};

/*
 * Looks at the next message of `fd` without taking it. On VDCM_REJECT *error is the errno for the
 * answer; on VDCM_REJECT and VDCM_REFUSE *reason says why, in words.
 */
enum vdcm_verdict vdcm_guard(int fd, union vdcm_peek *peek, int *error, const char **reason);

/* The second half of it, on a message that has been taken: VDCM_PASS, VDCM_OURS or VDCM_REJECT. */
enum vdcm_verdict vdcm_guard_check(const union vdcm_peek *peek, int *error, const char **reason);

#endif
