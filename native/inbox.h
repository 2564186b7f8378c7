/*
 * The messages of a connection, one after the other, each of them whole and with the descriptors
 * that came along. One system call takes all that has arrived, so that a burst of posted writes
 * costs one and not several for each.
 */
#ifndef VDCM_INBOX_H
#define VDCM_INBOX_H

#include <stdbool.h>
#include <stdint.h>

#include "native.h"

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

struct vdcm_message {
    struct vdcm_header header;
    const uint8_t *payload; /* not aligned; until the next message is asked for */
    uint32_t length;        /* of the payload */
    int *fds; /* -1: taken over; what is left is closed when the next message is asked for */
    uint32_t n_fds;
};

/* All zero at first. */
struct vdcm_inbox {
    uint32_t begin, end; /* bytes that have come and were not handed out */
    uint32_t fds_before; /* the descriptors came with what ends here */
    uint32_t n_fds;
    int fds[VDCM_MAX_FDS];
    uint8_t bytes[VDCM_MAX_MESSAGE];
};

enum vdcm_arrival {
    VDCM_MESSAGE,
    VDCM_EMPTY,   /* nothing there */
    VDCM_PARTIAL, /* not all of it has arrived */
    VDCM_GONE,    /* the client has closed */
    VDCM_BROKEN,  /* the stream is of no more use: close */
};

/* The next message of the connection `fd`. On VDCM_BROKEN *reason says why, in words. */
enum vdcm_arrival vdcm_inbox_next(struct vdcm_inbox *inbox, int fd, struct vdcm_message *message,
                                  const char **reason);
/* Has a message arrived whole that was not handed out? Then `fd` need not become readable. */
bool vdcm_inbox_waiting(const struct vdcm_inbox *inbox);
/* Close the descriptors that are left. */
void vdcm_inbox_close(struct vdcm_inbox *inbox);

#endif
