/*
 * The guard: decides on a whole message before anybody acts on it.
 *
 * libvfio-user reads past the end of short messages, loses descriptors on some errors, and keeps the
 * eventfds of all interrupt kinds in one table. So it is shown well-formed messages only, and never
 * one that carries descriptors in either direction; what makes up most of the traffic it is not
 * shown at all, because each message costs it two system calls and an allocation or two.
 */
#ifndef VDCM_GUARD_H
#define VDCM_GUARD_H

#include <stdint.h>

#include "inbox.h"

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
    VDCM_REGION_WRITE_MULTI = 15,
};

/* VFIO_USER_REGION_READ and _WRITE, and their answers; the data follows. */
struct vdcm_access {
    uint64_t offset;
    uint32_t region;
    uint32_t count;
};

/* An entry of VFIO_USER_REGION_WRITE_MULTI, behind their number in 8 bytes. */
struct vdcm_write_one {
    struct vdcm_access access;
    uint8_t data[8];
};

enum vdcm_verdict {
    VDCM_PASS,   /* libvfio-user may have it */
    VDCM_OURS,   /* requests.c or access.c answers it */
    VDCM_REJECT, /* well framed but wrong: answer with an error, go on */
    VDCM_REFUSE, /* close the connection */
};

/*
 * On VDCM_REJECT *error is the errno for the answer; on it and on VDCM_REFUSE *reason says why, in
 * words.
 */
enum vdcm_verdict vdcm_guard(const struct vdcm_message *message, int *error, const char **reason);

#endif
