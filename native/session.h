/* A session's state, and what the files that serve it have of each other. */
#ifndef VDCM_SESSION_H
#define VDCM_SESSION_H

#include <libvfio-user.h>

#include "fastpath.h"
#include "guard.h"
#include "native.h"
#include "watch.h"

enum { REGIONS = VFU_PCI_DEV_VGA_REGION_IDX + 1, KINDS = 4 /* INTx, MSI, MSI-X, error */ };

struct region {
    uint64_t size;
    int fd;
    vdcm_area areas[VDCM_MAX_AREAS];
    uint32_t n_areas;
    vdcm_area stores; /* where `store` is asked first; empty: nowhere */
    vdcm_store *store;
    void *argument;
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
    int inner;  /* our end of libvfio-user's own connection */
    bool partial;
    bool stopped;
    bool observed; /* Python is to see every store */
    uint32_t vain; /* how many chances to spin were let go after the last vain one */
    uint32_t skip; /* how many are still to be let go */
    const char *reason;
    vdcm_session_counters counters;
    struct vdcm_watch watch;
    struct vdcm_inbox inbox;
    uint8_t answer[sizeof(struct vdcm_access) + VDCM_MAX_TRANSFER]; /* to REGION_READ */
};

/* Close the eventfds of vectors [start, start + count), which there are. */
void vdcm_unbind(struct vectors *kind, uint32_t start, uint32_t count);

/* What a client asked for has ended with this errno, 0 for success. */
void vdcm_count_error(vdcm_session *s, int error);
/* Answer `request`, with a payload and a descriptor unless there is an error (an errno) or fd is -1. */
int vdcm_answer(vdcm_session *s, const struct vdcm_header *request, int error,
                const void *payload, size_t length, int fd);
/* Answer with an error, and have the reason logged. */
int vdcm_refuse(vdcm_session *s, const struct vdcm_message *message, int error, const char *why);
/* Do what a message asks for and answer it. -EPROTO, -EPIPE: the connection is of no more use. */
int vdcm_handle(vdcm_session *s, const struct vdcm_message *message);

/* access.c */
int vdcm_region_read(vdcm_session *s, const struct vdcm_message *message);
int vdcm_region_write(vdcm_session *s, const struct vdcm_message *message);
int vdcm_region_write_multi(vdcm_session *s, const struct vdcm_message *message);

#endif
