/*
 * The data path of one ADI of the software DSA: its work queue, or its share of one (Scalable IOV,
 * 2.3), with the engine behind it. The sweep runs it through dsa_fastpath(); Python makes it, tells
 * it what the VDEV's registers say, and submits what came through an intercepted portal.
 */
#ifndef DSA_QUEUE_H
#define DSA_QUEUE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "descriptor.h"
#include "perfmon.h"

/* cffi: begin */

typedef struct dsa_wq dsa_wq;
typedef struct dsa_queue dsa_queue;
typedef struct dsa_portals dsa_portals;

enum {
    DSA_MAX_SIZE = 4096, /* entries of a WQ */
    DSA_MAX_TRANSFER_SHIFT = 31,
    DSA_MAX_BATCH_SHIFT = 15,
    DSA_PORTALS = 4,   /* of one WQ: unlimited and limited MSI-X, unlimited and limited IMS */
    DSA_MAX_PARTS = 256, /* slots of one VDEV that may be incomplete; the oldest gives way */
    DSA_SLOTS = 64,    /* of a direct portal: a ring */
    DSA_HANDLES = 128, /* interrupt handles are below this */
    DSA_IGNORE = 0x7ffffffe, /* message of a handle that is valid and interrupts nobody */
    /* Codes of reports: the 32 bytes of SWERROR (9.2.15), Valid set; an overflow that the guest is
     * to be told of (dsa_perfmon_interrupts). */
    DSA_REPORT_SWERROR = 1,
    DSA_REPORT_OVERFLOW = 2
};

/* ---- a shared WQ: what the shares of all ADIs have in common --------------------------------- */

/* NULL with errno EINVAL unless 1 <= threshold <= size <= DSA_MAX_SIZE, or ENOMEM. Each share finds
 * `reserved` entries free of others' descriptors, however many those have and however slow they
 * are; at most size / shares make sense. */
dsa_wq *dsa_wq_new(uint32_t size, uint32_t threshold, uint32_t reserved);
/* Its queues must have been freed. */
void dsa_wq_free(dsa_wq *wq);
/* Descriptors in the WQ, of all ADIs; one that is being executed has left it. */
uint32_t dsa_wq_occupancy(const dsa_wq *wq);

/* ---- the queue of one ADI -------------------------------------------------------------------- */

enum {
    DSA_WQ_BLOCK_ON_FAULT = 0x01, /* the flag is allowed; a fault ends the operation all the same */
    DSA_WQ_PASID = 0x02,          /* WQ PASID Enable; a shared WQ has it always */
    DSA_WQ_PRIVILEGED = 0x04,     /* WQ Priv, of a dedicated WQ */
    DSA_USER_INTERRUPTS = 0x08,   /* GENCFG: User-mode Interrupts Enable */
    DSA_PRIVILEGED_MODE = 0x10    /* PASID capability: Privileged Mode Enable */
};

/* What the registers of the VDEV say about the WQ. */
typedef struct {
    uint32_t flags;
    uint32_t size;         /* entries of a dedicated WQ, 1 to DSA_MAX_SIZE */
    uint32_t max_transfer; /* bytes, at most 2^DSA_MAX_TRANSFER_SHIFT */
    uint32_t max_batch;    /* descriptors, 1 to 2^DSA_MAX_BATCH_SHIFT */
    uint32_t index;        /* of the WQ in its VDEV, for reports */
    uint32_t pasid;        /* of a dedicated WQ as the guest knows it, for reports */
    uint64_t gencap;       /* the register: DSA_CAP_... are looked at */
    uint64_t operations[4]; /* OPCAP or WQ OPCFG: bit n allows operation n */
    uint32_t engine; /* that does its work, as the guest counts them, for events */
    uint32_t traffic_classes[2]; /* TC-A and TC-B of its group, for events */
} dsa_settings;

/* `wq`: a share of this one; NULL: a dedicated WQ. `services`: a const vdcm_services *. NULL with
 * errno EINVAL for services of another version, or ENOMEM. */
dsa_queue *dsa_queue_new(dsa_wq *wq, uintptr_t services);
/* The sweep must have let go of it. */
void dsa_queue_free(dsa_queue *q);
/* Until then nothing is accepted. Not while the sweep may run it. -EBUSY if there is work in it,
 * -EINVAL if a setting is out of range, -ENOMEM. */
int dsa_queue_configure(dsa_queue *q, const dsa_settings *settings);
/* Handle `handle` is message `message` of the ADI or DSA_IGNORE, from any thread at any time; below
 * 0: it is not valid. With `pasid` below 2^20 only descriptors with it may use it (shared WQ). -EINVAL. */
int dsa_queue_handle(dsa_queue *q, uint32_t handle, int32_t message, uint32_t pasid);
/* Portal `portal` is direct: `page` is 4 KiB shared with the guest, which cannot cut them short; 0:
 * it is not direct. The guest's next slot is slot 0. Not while the sweep may run it. -EINVAL. */
int dsa_queue_portal(dsa_queue *q, uint32_t portal, uintptr_t page);
/* The event counters of its VDEV; they outlive the queue. Not while the sweep may run it. */
void dsa_queue_set_perfmon(dsa_queue *q, dsa_perfmon *perfmon);
/* An intercepted store of 64 bytes at `portal`. 0 accepted; -EAGAIN full: Retry for a shared WQ,
 * DSA_ERROR_QUEUE_FULL in SWERROR for a dedicated one; -EINVAL no such portal, or not configured.
 * From one thread, which need not be the sweep's. Kick the queue after it. */
int dsa_submit(dsa_queue *q, uint32_t portal, const void *descriptor);

typedef struct {
    uint64_t accepted;
    uint64_t retried;    /* refused because the WQ was full: answered with Retry, or lost */
    uint64_t succeeded;  /* also with false predicate; the descriptors of batches count as well */
    uint64_t failed;     /* with another status, or with none that could be told */
    uint64_t aborted;
    uint64_t reported;   /* in SWERROR */
    uint64_t interrupts;
    uint64_t descriptors[33]; /* that ended, by operation; those of unknown operation are in none */
    uint64_t bytes[33];       /* of the source, by operation */
} dsa_counters;
/* From any thread; each number is right, their sum may be of different moments. */
void dsa_queue_count(const dsa_queue *q, dsa_counters *out);
uint32_t dsa_queue_occupancy(const dsa_queue *q);

/* The accepted and unfinished work, and the portals' places, as bytes: how many there are, written
 * to `buffer` if `room` is enough. Not while the sweep may run it. */
size_t dsa_queue_save(const dsa_queue *q, void *buffer, size_t room);
/* Into a queue that has no work. -EINVAL: not what save() gave for such settings; -ENOSPC: the WQ
 * has not that many entries free; -EBUSY. Nothing is changed then. */
int dsa_queue_restore(dsa_queue *q, const void *buffer, size_t length);

/* The const vdcm_fastpath * of a dsa_queue. */
uintptr_t dsa_fastpath(void);

/* ---- portals.c: intercepted portals, on the thread of the event loop ------------------------- */

/* Those of a VDEV with `wqs` work queues; NULL with errno ENOMEM. */
dsa_portals *dsa_portals_new(uint32_t wqs);
void dsa_portals_free(dsa_portals *p);
/*
 * A store at `offset` of the BAR. True: with it a slot is complete, whose 64 bytes are in
 * `descriptor`. What is not naturally aligned or not to a portal is ignored.
 */
bool dsa_portals_write(dsa_portals *p, uint64_t offset, uint32_t width, uint64_t value,
                       void *descriptor);
/* Forget what is incomplete in the portals of `wq`, which there is. */
void dsa_portals_forget(dsa_portals *p, uint32_t wq);
uint32_t dsa_portals_incomplete(const dsa_portals *p);
/*
 * The const vdcm_store * (fastpath.h), its argument a dsa_portals *: complete slots of `wq` go to
 * `queue`, which is kicked as `engine`, the engine's side of it. It has to be configured. NULL: they
 * are Python's, as are those that a full dedicated work queue does not take or that are monitored.
 */
uintptr_t dsa_portals_store(void);
void dsa_portals_open(dsa_portals *p, uint32_t wq, dsa_queue *queue, uintptr_t engine);
/* Undo dsa_portals_open(), whatever its portals are. */
void dsa_queue_shut(dsa_queue *q);

/* ---- crc.c: what the tests compare with a reference ------------------------------------------ */

/* CRC-32C of `length` bytes after `crc`, both as iSCSI has them; 0 to begin. By table unless
 * `fast` and the CPU has an instruction for it. */
uint32_t dsa_crc32c(uint32_t crc, const void *data, size_t length, bool fast);

/* cffi: end */

#endif
