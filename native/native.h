/*
 * What the C part offers for one connected client. Everything is said once: the C files include the
 * headers, and build_binding.py hands the part between their two cffi marks to cffi.
 *
 *   session.c  one connected client, its libvfio-user context, and its message loop
 *   inbox.c    the messages of its connection, one after the other
 *   guard.c    looks at each message before anybody acts on it
 *   requests.c what becomes of it: to libvfio-user, or answered here
 *   access.c   reads and writes of regions
 *
 * Errors are negative errno values. Nothing here knows a device model.
 */
#ifndef VDCM_NATIVE_H
#define VDCM_NATIVE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "latency.h"
#include "memory.h"

/* cffi: begin */

/* ---- session.c: one connected client --------------------------------------------------------- */

typedef struct vdcm_session vdcm_session;

typedef struct {
    uint64_t offset; /* in the region, page aligned */
    uint64_t size;   /* page aligned */
} vdcm_area;

/* What a client did with its eventfds; see vdcm_on_irqs(). */
enum { VDCM_IRQ_BOUND, VDCM_IRQ_UNBOUND, VDCM_IRQ_MASKED, VDCM_IRQ_UNMASKED };

enum {
    VDCM_MAX_AREAS = 16,
    VDCM_MAX_TRANSFER = 65536, /* bytes of one region access */
    VDCM_MAX_MESSAGE = 65536 + 64,
    VDCM_MAX_FDS = 16
};

/*
 * `owner` is handed to every callback. `directory` is a private folder (mode 0700) in which a
 * socket exists for the length of vdcm_session_attach().
 */
vdcm_session *vdcm_session_new(void *owner, const char *directory, int log_level);
void vdcm_session_free(vdcm_session *s);
/* VFIO region index, size in bytes; fd -1 or the memfd behind the mappable areas. Not kept. */
int vdcm_session_region(vdcm_session *s, int index, uint64_t size, int fd, const vdcm_area *areas,
                        uint32_t n_areas);
/*
 * Stores to `where` in a region that there is are given to `store`, a vdcm_store * (fastpath.h), with
 * `argument`, both of which outlive the session. Once for each region.
 */
int vdcm_session_stores(vdcm_session *s, int index, vdcm_area where, uintptr_t store,
                        uintptr_t argument);
/* While it is observed, Python is given all stores. */
void vdcm_session_observe(vdcm_session *s, bool observed);
/* VFIO interrupt index: 0 INTx, 1 MSI, 2 MSI-X. */
int vdcm_session_vectors(vdcm_session *s, int index, uint32_t count);
/*
 * Serve the client of the connection `fd`, which stays the caller's to close. `version` is a whole
 * VERSION message, for libvfio-user; the answer to the client's own is the caller's to send.
 */
int vdcm_session_attach(vdcm_session *s, int fd, const void *version, size_t length);
/*
 * Handles messages for `turn_ns` nanoseconds at most (one is always finished). When there is none,
 * it looks again and again until `spin_ns` after the last one.
 * Returns the number handled, or -ENOTCONN when the client has gone, -EPROTO when the guard refuses
 * a message (vdcm_session_reason() says why), another errno when the connection is of no more use.
 */
int vdcm_session_run(vdcm_session *s, uint64_t turn_ns, uint64_t spin_ns);
/* From a callback: handle no further message; vdcm_session_run() returns. */
void vdcm_session_stop(vdcm_session *s);
/* A message has arrived whole that there was no time for; the connection need not be readable. */
bool vdcm_session_waiting(const vdcm_session *s);
/* A message has begun and its rest is still missing. */
bool vdcm_session_partial(const vdcm_session *s);
const char *vdcm_session_reason(const vdcm_session *s);
vdcm_aspace *vdcm_session_aspace(vdcm_session *s);
/* The eventfd that the client has bound to that vector, or -1. It stays the session's. */
int vdcm_session_eventfd(const vdcm_session *s, int index, uint32_t vector);
/* Signals it: 0, or -ENOENT when there is none. */
int vdcm_session_trigger(vdcm_session *s, int index, uint32_t vector);

/* What has come from the client since it connected. An access has 1, 2, 4 or 8 bytes. */
typedef struct {
    uint64_t messages;
    uint64_t reads;
    uint64_t writes;
    uint64_t taken;    /* of the writes, by the device's C */
    uint64_t deferred; /* writes that were answered with EAGAIN */
    uint64_t errors;   /* other accesses and requests that failed */
    /* Of the messages with accesses, from when we looked for one until it was answered. */
    vdcm_latencies read_ns;
    vdcm_latencies write_ns;
} vdcm_session_counters;
/* They stay where they are as long as the session. */
const vdcm_session_counters *vdcm_session_count(const vdcm_session *s);

/* A write of a BAR: when (CLOCK_MONOTONIC), how long ago, and how many interrupts since. */
typedef struct {
    uint64_t offset;
    uint64_t value;
    uint64_t at;
    uint64_t ns;
    uint64_t interrupts;
    uint32_t region;
    uint32_t width;
} vdcm_written;
/* The client's last one; false if there was none. */
bool vdcm_session_written(const vdcm_session *s, vdcm_written *written);
/* True, once, if the last access to a BAR was a write and nothing has followed for `ns`. */
bool vdcm_session_silent(vdcm_session *s, uint64_t ns);

/* What libvfio-user calls the API generation that this module was built against: 1 or 2. */
int vdcm_libvfio_user_generation(void);

/* cffi: end */

/* Callbacks, written in Python (transport.py). They return 0 or an errno value. */
int vdcm_on_read(void *owner, int region, uint64_t offset, int width, uint64_t *value);
int vdcm_on_write(void *owner, int region, uint64_t offset, int width, uint64_t value);
int vdcm_on_reset(void *owner);
/* Is a file of guest memory to be mapped? Not 0: its client sees other pages than we would. */
int vdcm_on_memory(void *owner, uint64_t device, uint64_t inode);
int vdcm_on_dma(void *owner, bool mapped, uint64_t iova, uint64_t size, bool shared);
/* action: VDCM_IRQ_... */
int vdcm_on_irqs(void *owner, int index, int action, uint32_t start, uint32_t count);
int vdcm_on_log(void *owner, int level, const char *message);
/* The client has read a place `times` times in `ns`, has seen `value` each time and written nothing. */
int vdcm_on_repeat(void *owner, int region, uint64_t offset, int width, uint64_t value,
                   uint32_t times, uint64_t ns);

#endif
