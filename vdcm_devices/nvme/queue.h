/*
 * The data path of an NVMe controller (NVM Express base 1.4): I/O submission and completion queues,
 * doorbells, and the commands of the NVM command set: Flush, Write, Read, Compare, Write Zeroes, Dataset
 * Management, Verify; no fused ones. Deallocated blocks read as zeros. Data are described by PRPs or
 * by SGLs (of any alignment, with bit buckets, and longer than the data if the guest likes). One I/O submission queue is the queue of one
 * ADI, run by the sweep through nvme_fastpath(); all queues of a controller are on one sweep. The admin
 * queue's commands are Python's: nvme_admin_fastpath() only sees its doorbell move.
 *
 * Threads: everything is called from the control thread. "Still": while every queue of the
 * controller is STOPPED or has been closed (Queue states of the sweep). Errors are negative errno
 * values. Guest addresses are in the address spaces of the ADI's PASIDs: data in that of the primary
 * one; queues, PRP lists, SGL segments and doorbell buffers in that of the secondary one, which is the
 * primary where an ADI has only one.
 */
#ifndef NVME_QUEUE_H
#define NVME_QUEUE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "store.h"

/* cffi: begin */

typedef struct nvme_controller nvme_controller;
typedef struct nvme_cq nvme_cq;
typedef struct nvme_sq nvme_sq;
typedef struct nvme_admin nvme_admin;

enum {
    NVME_MAX_QUEUES = 64,     /* I/O queues of one controller: identifiers 1 to this */
    NVME_MAX_ENTRIES = 65536, /* of a queue; 2 at least */
    NVME_MAX_NAMESPACES = 32, /* namespace identifiers 1 to this */
    NVME_MAX_TRANSFER = 1 << 20, /* bytes: the most that nvme_settings.max_transfer can be */
    NVME_MAX_RANGES = 256     /* of one Dataset Management command */
};

/* ---- the controller of one VDEV -------------------------------------------------------------- */

/* What registers and features say. nvme_controller_new() begins with page_shift 12, max_transfer
 * NVME_MAX_TRANSFER, and 0 or false for the rest. */
typedef struct {
    uint32_t page_shift;   /* of the memory page size, 12 + CC.MPS: 12 to 16 */
    uint32_t max_transfer; /* bytes of one command, as MDTS says: a page to NVME_MAX_TRANSFER */
    uint32_t coalesce_threshold; /* completions to gather for one interrupt: feature 08h, THR + 1;
                                    0 and 1: no coalescing */
    uint32_t coalesce_us;  /* longest that one is held back: 100 us x TIME; 0: no coalescing */
    uint32_t recall_us;    /* longest that the guest is not interrupted again though it has not moved
                              the head of the queue since it was; 0: it is at once */
    uint32_t namespaces;   /* NN: namespace identifiers there can be; 0: NVME_MAX_NAMESPACES */
    bool write_through;    /* feature 06h, WCE = 0: every write is on disk before it completes */
} nvme_settings;

/* `services`: vdcm.sweep.services(). NULL with errno EINVAL for services of another version, ENOMEM. */
nvme_controller *nvme_controller_new(uintptr_t services);
/* Its queues must have been freed. Waits until it is drained. */
void nvme_controller_free(nvme_controller *c);
/*
 * Has every request to files come back that queues left when they were freed? Until then an old write
 * may still land on a newer one: let the controller do nothing new to the same blocks. Ask again later.
 */
bool nvme_controller_drained(nvme_controller *c);
/* Still. -EINVAL: out of range. */
int nvme_controller_configure(nvme_controller *c, const nvme_settings *settings);
/*
 * Namespace `nsid` is bytes [offset, offset + (blocks << block_shift)) of the store, from now on; 0
 * blocks: there is no such namespace any more. Still. block_shift is 9 or 12. -EINVAL: out of range,
 * or beyond the end of the store; -EBUSY: commands to the namespace before are under way (abort the queues,
 * or let them drain, first); -ENOMEM, -EMFILE, -EAGAIN: no means for I/O in files.
 */
int nvme_namespace_set(nvme_controller *c, uint32_t nsid, nvme_store *store, uint64_t offset,
                       uint64_t blocks, uint32_t block_shift, bool read_only);

/* ---- doorbells ------------------------------------------------------------------------------- */

/*
 * Doorbells are counted as they lie in the registers from 1000h on with CAP.DSTRD 0: 2n is the tail
 * of submission queue n, 2n + 1 the head of completion queue n.
 *
 * `page`: memory shared with the guest (which cannot cut it short) that begins with doorbell 0; 8 x
 * (NVME_MAX_QUEUES + 1) bytes of it are used. 0: doorbells come by nvme_doorbell_write(). Still. All
 * words are set to 0 by this, and a queue's words when it is made; what was fatal is over (CC.EN has
 * been set again). -EINVAL: not aligned to 8.
 */
int nvme_doorbells_set(nvme_controller *c, uintptr_t page);
/*
 * An intercepted write, of doorbell 0 and 1 too. After it kick the submission queue; for a completion
 * queue's head each submission queue that names it. -ENOENT: there is no such queue; -ERANGE: no such
 * entry of it. (The asynchronous events Invalid Doorbell Register and Invalid Doorbell Write Value, NVMe
 * 1.4, 5.2.) Nothing is changed then. Doorbells 0 and 1 are not checked.
 */
int nvme_doorbell_write(nvme_controller *c, uint32_t doorbell, uint32_t value);
/*
 * A vdcm_store * (fastpath.h) for the page of intercepted doorbells, at 1000h of BAR 0; its argument is an
 * nvme_controller. It does nvme_doorbell_write() and the kicks, of queues whose engine's side it knows, and
 * passes on what is more than that: the admin queue's doorbells, bad values, other widths.
 */
uintptr_t nvme_doorbell_store(void);
/* What was written to it last, by either way; 0 for one that does not exist. */
uint32_t nvme_doorbell_read(const nvme_controller *c, uint32_t doorbell);
/*
 * Doorbell Buffer Config (NVMe 1.4, 5.7): guest addresses of the two buffers, page aligned. I/O queues
 * look at the shadow doorbells from now on; what comes by nvme_doorbell_write() only says "look"
 * (kick). 0, 0: no buffers. Still. -EINVAL: not page aligned, or one is 0 and not the other.
 */
int nvme_shadow_set(nvme_controller *c, uint64_t shadow, uint64_t eventidx);

/* ---- queues ---------------------------------------------------------------------------------- */

/*
 * A completion queue in one piece of memory (PC = 1; CAP.CQR = 1), page aligned. With `interrupts`
 * (IEN) an ADI of a submission queue that completes into it raises its message 0 (the vector IV).
 * NULL with errno: EINVAL out of range, EEXIST, ENOMEM.
 */
nvme_cq *nvme_cq_new(nvme_controller *c, uint32_t id, uint64_t address, uint32_t entries,
                     bool interrupts);
/* Whether its interrupts are coalesced as nvme_settings say, which they are to begin with; not so if
 * Interrupt Vector Configuration (5.21.1.9) leaves its vector out. Still. */
void nvme_cq_set_coalescing(nvme_cq *cq, bool enabled);
/* -EBUSY while a submission queue names it; NULL is allowed. */
int nvme_cq_free(nvme_cq *cq);

/* A submission queue in one piece of memory, page aligned: the `device` of nvme_fastpath(). NULL with
 * errno: EINVAL, EEXIST, ENOMEM. */
nvme_sq *nvme_sq_new(nvme_controller *c, uint32_t id, uint64_t address, uint32_t entries,
                     nvme_cq *cq);
/* The engine's side of it, a vdcm_queue *, for nvme_doorbell_store() until it is closed. */
void nvme_sq_set_engine(nvme_sq *q, uintptr_t engine);
/* The sweep must have let go of it (its ADI's path has been closed). Does not wait for its requests to
 * files that are under way: nvme_controller_drained(). */
void nvme_sq_free(nvme_sq *q);

/* The const vdcm_fastpath * of an nvme_sq, with doorbells true if there is a page of them, else
 * false. Abort drops what was fetched and not completed, without completions: for a queue that is
 * deleted, or a controller that is reset (which frees its queues). */
uintptr_t nvme_fastpath(void);

/* ---- the admin queue's doorbell -------------------------------------------------------------- */

/* Looks at doorbells 0 and 1 on a page of doorbells. NULL with errno ENOMEM. */
nvme_admin *nvme_admin_new(nvme_controller *c);
void nvme_admin_free(nvme_admin *a);
/* The const vdcm_fastpath * of an nvme_admin. It has never work of its own. */
uintptr_t nvme_admin_fastpath(void);
/* Says NVME_REPORT_ADMIN again when doorbell 0 or 1 is no longer what this returns: bits 15:0 the
 * tail of the admin submission queue, bits 31:16 the head of its completion queue. */
uint32_t nvme_admin_look(nvme_admin *a);

/* ---- what is reported to the host driver ----------------------------------------------------- */

enum {
    NVME_REPORT_ADMIN = 1, /* doorbell 0 or 1 was written: nvme_admin_look(). Once, until then */
    NVME_REPORT_ERROR,     /* nvme_error: a command ended with a status to be logged (More is set) */
    NVME_REPORT_DOORBELL,  /* nvme_bad_doorbell: Invalid Doorbell Write Value (NVMe 1.4, 5.2) */
    NVME_REPORT_FATAL      /* nvme_fatal: set CSTS.CFS. Once; nothing is taken until a reset */
};

/* What an entry of the Error Information log wants (NVMe 1.4, 5.14.1.1). */
typedef struct {
    uint64_t lba;
    uint32_t nsid;
    uint16_t sqid;
    uint16_t cid;
    uint16_t status;   /* bits 15:1 as in the completion, without its phase */
    uint16_t location; /* parameter error location: byte 7:0, bit 10:8; FFFFh: none */
} nvme_error;

typedef struct {
    uint32_t doorbell;
    uint32_t value;
} nvme_bad_doorbell;

typedef struct {
    uint64_t address; /* guest's, that was not to be reached */
    uint32_t queue;
    int32_t error; /* errno value of the access, negative */
} nvme_fatal;

/* ---- counters -------------------------------------------------------------------------------- */

/* Since the controller was made; from any thread. SMART's data units are 1,000 of 512 bytes. */
typedef struct {
    uint64_t read_commands;  /* Read, and Compare (NVMe 1.4, 5.14.1.2) */
    uint64_t write_commands; /* Write */
    uint64_t other_commands; /* Flush, Write Zeroes, Dataset Management, Verify, and unknown ones */
    uint64_t bytes_read;
    uint64_t bytes_written;
    uint64_t errors;     /* commands that ended with a status other than success */
    uint64_t media_errors; /* of them, those that the store could not read or write */
    uint64_t interrupts;
    uint64_t full;       /* times that work had to wait for a place in a completion queue */
    uint64_t aborted;    /* commands dropped by abort */
    uint64_t fetches;    /* runs of submission queue entries */
    uint64_t posts;      /* runs of completion queue entries */
} nvme_counters;
void nvme_count(const nvme_controller *c, nvme_counters *out);

/* Of one submission queue, from any thread. */
typedef struct {
    uint32_t tail; /* of what the guest submitted, as seen last */
    uint32_t head; /* of what was fetched: SQ Head Pointer of completions */
    uint32_t under_way; /* fetched, and not completed */
    uint32_t in_files;  /* requests to files under way, of aborted commands too */
    uint64_t completed;
} nvme_sq_state;
void nvme_sq_look(const nvme_sq *q, nvme_sq_state *out);
/* cffi: end */

#endif
