/* A session's state, and what session.c and requests.c have of each other. */
#ifndef VDCM_SESSION_H
#define VDCM_SESSION_H

#include <libvfio-user.h>

#include "guard.h"
#include "native.h"

enum { REGIONS = VFU_PCI_DEV_VGA_REGION_IDX + 1, KINDS = 4 /* INTx, MSI, MSI-X, error */ };

struct region {
    uint64_t size;
    int fd;
    vdcm_area areas[VDCM_MAX_AREAS];
    uint32_t n_areas;
};

struct vectors {
    uint32_t count;
    int *eventfds;
};

struct vdcm_session {
    vfu_ctx_t *ctx;
    void *owner;
    char *path;
    vdcm_aspace *aspace;
    struct region regions[REGIONS];
    struct vectors kinds[KINDS];
    int client; /* the connection; the caller's to close */
    int fd; /* libvfio-user's descriptor of it, and its to close */
    bool partial;
    bool stopped;
    uint32_t vain; /* how many chances to spin were let go after the last vain one */
    uint32_t skip; /* how many are still to be let go */
    const char *reason;
};

/* Close the eventfds of vectors [start, start + count), which there are. */
void vdcm_unbind(struct vectors *kind, uint32_t start, uint32_t count);

/* Answer `request`, with a payload and a descriptor unless there is an error (an errno) or fd is -1. */
int vdcm_answer(vdcm_session *s, const struct vdcm_header *request, int error,
                const void *payload, size_t length, int fd);
/* Take `size` bytes off the stream, all of which have arrived; descriptors are dropped. */
int vdcm_discard(vdcm_session *s, uint32_t size);
/* Answer the next message, of `size` bytes, which the guard has found to be ours. */
int vdcm_handle_ours(vdcm_session *s, uint32_t size);
/* Show libvfio-user the next message once it is sure that no descriptor comes with it. */
int vdcm_pass_by_hand(vdcm_session *s, uint32_t size);

#endif
