/*
 * The direct path: a thread that sweeps the doorbells of its queues and runs them (doorbell.c), in
 * the shares and within the limits of the ADIs that they belong to (adi.c, arbiter.c). None of this
 * knows a device: what a queue does is in the device's own table (fastpath.h).
 *
 * Everything here is called from one control thread, except where it says otherwise. A call that
 * changes something waits for the sweep to finish what it is doing, which takes as long as the
 * largest budget (64 KiB of work); nothing waits for the guest.
 */
#ifndef VDCM_SWEEP_H
#define VDCM_SWEEP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "ims.h"
#include "latency.h"
#include "memory.h"

/* cffi: begin */

typedef struct vdcm_sweep vdcm_sweep;
typedef struct vdcm_limit vdcm_limit;
typedef struct vdcm_group vdcm_group;
typedef struct vdcm_adi vdcm_adi;
typedef struct vdcm_queue vdcm_queue;

enum {
    VDCM_STOPPED, /* neither looked at nor run; what was accepted is kept */
    VDCM_RUNNING,
    VDCM_DRAINING /* run, but nothing is accepted; becomes STOPPED, and is reported, when empty */
};

enum {
    VDCM_REPORTS = 16, /* of one ADI that wait for the host driver; more are counted and lost */
    VDCM_MAX_WEIGHT = 255,
    VDCM_DEFAULT_WEIGHT = 16,
    VDCM_MAX_MESSAGES = 2048 /* of one ADI */
};

/* ---- doorbell.c: a sweep thread -------------------------------------------------------------- */

/*
 * After the last work it stays awake for `spin_ns`, up to 8 times as long for a guest whose work comes
 * at such intervals; and then naps for longer and longer (vdcm_sweep_longest_nap), `nap_ns` at most.
 * NULL with errno set if there can be no thread.
 */
vdcm_sweep *vdcm_sweep_new(uint64_t spin_ns, uint64_t nap_ns);
/* One without a thread: it does something only in vdcm_sweep_step(). */
vdcm_sweep *vdcm_sweep_new_stepped(uint64_t spin_ns, uint64_t nap_ns);
/*
 * What its naps grow to: 1 ms, or as long as it takes for idling to need less than 1 % of a CPU,
 * but `nap_ns` at most. Until then 1/128 of `idle_ns`, the time since there was work, or as long as it
 * takes to need less than 10 %. `spent_ns` is the CPU time from one nap to the next: the round of
 * looks, and what the kernel charges for the nap.
 */
uint64_t vdcm_sweep_longest_nap(const vdcm_sweep *s, uint64_t spent_ns, uint64_t idle_ns);
/*
 * What the thread does between two looks at its clock, at the time `now_ns`: looks at some doorbells,
 * runs one queue. Returns the units done; 0 if there was nothing that may run, *wait_ns being then
 * when the rate limit lets something (UINT64_MAX: there is no work).
 */
uint64_t vdcm_sweep_step(vdcm_sweep *s, uint64_t now_ns, uint64_t *wait_ns);
/* Ends the thread: from now on vdcm_sweep_step() alone does something. */
void vdcm_sweep_hold(vdcm_sweep *s);
/* A thread again. 0 or an errno, negative. */
int vdcm_sweep_resume(vdcm_sweep *s);
/*
 * For what the calling thread does from now on it is `ns` (CLOCK_MONOTONIC), wherever a device's C asks
 * services->now(): 0 for the time that it is.
 */
void vdcm_freeze_clock(uint64_t ns);
/* Its ADIs must have been freed. */
void vdcm_sweep_free(vdcm_sweep *s);
/* Readable when an ADI has something to say (vdcm_sweep_ready). */
int vdcm_sweep_fd(const vdcm_sweep *s);
/* The ids of the ADIs that have reports or have drained since they were last listed here. */
size_t vdcm_sweep_ready(vdcm_sweep *s, uint64_t *ids, size_t max);

typedef struct {
    uint64_t looks;  /* at one queue's doorbells */
    uint64_t naps;
    uint64_t nap_ns; /* of the longest nap there may be now */
    uint64_t cpu_ns; /* that the thread has had a CPU for */
} vdcm_sweep_counters;
void vdcm_sweep_count(vdcm_sweep *s, vdcm_sweep_counters *out);

/* ---- adi.c: assignable device interfaces ----------------------------------------------------- */

/*
 * ADIs that have one weight and one rate limit together, as those of one VDEV have: however many of
 * them want something, they get no more than one would. Groups on several sweeps may have a limit in
 * common; it outlives them, and a group its ADIs. NULL without memory.
 */
vdcm_limit *vdcm_limit_new(void);
void vdcm_limit_free(vdcm_limit *limit);
/* Units a second at most, of all who have it together; 0: no limit, and so it begins. 0 or -EINVAL. */
int vdcm_limit_set(vdcm_limit *limit, uint64_t rate);
vdcm_group *vdcm_group_new(vdcm_sweep *s, vdcm_limit *limit);
void vdcm_group_free(vdcm_group *g);
/* Share under contention with other groups and ADIs without one: 1 to VDCM_MAX_WEIGHT. 0 or -EINVAL. */
int vdcm_group_set_weight(vdcm_group *g, uint32_t weight);

/* In a group, or NULL. `id` is how vdcm_sweep_ready() names it. NULL without memory. */
vdcm_adi *vdcm_adi_new(vdcm_sweep *s, vdcm_group *group, uint64_t id);
/* Frees its queues with it. */
void vdcm_adi_free(vdcm_adi *a);
/* Host PASIDs or VDCM_NO_PASID; only host software calls this (Scalable IOV, 2.6). */
void vdcm_adi_set_pasids(vdcm_adi *a, uint32_t primary, uint32_t secondary);
/* Bus Master Enable of its VDEV, off to begin with: without it there is neither access to memory nor
 * an interrupt message, and the last of both is over when this returns. */
void vdcm_adi_set_bus_master(vdcm_adi *a, bool enabled);
/* The VDEV's table for work that names a PASID of the guest (3.3); NULL: there is none. */
void vdcm_adi_set_guest_pasids(vdcm_adi *a, vdcm_pasid_map *map);
/* Its interrupt messages: entries of `ims`, in the order in which the device counts them. */
int vdcm_adi_set_messages(vdcm_adi *a, vdcm_ims *ims, const uint32_t *entries, uint32_t count);
/* Share under contention with others of its group (1 to VDCM_MAX_WEIGHT), and units a second at most
 * (0: no limit). */
int vdcm_adi_set_qos(vdcm_adi *a, uint32_t weight, uint64_t rate);

typedef struct {
    uint32_t code;
    uint32_t size;
    uint8_t data[64];
} vdcm_adi_report;
/* Takes the oldest reports away; how many. */
size_t vdcm_adi_reports(vdcm_adi *a, vdcm_adi_report *out, size_t max);

typedef struct {
    uint64_t units;             /* of work done, in general bytes */
    uint64_t dma_read_bytes;    /* of memory, by what reach() gave and used() corrected */
    uint64_t dma_written_bytes;
    uint64_t refused;           /* accesses to memory */
    uint64_t messages;          /* generated */
    uint64_t reports;
    uint64_t lost;              /* reports that found the ring full */
    uint64_t throttled;         /* times that the rate limit held work back */
    uint64_t busy_ns;           /* that the sweep has worked for it */
    /* Of its turns, from when it was seen to have work, or from its turn before, to the end. */
    vdcm_latencies turn_ns;
} vdcm_adi_counters;
void vdcm_adi_count(vdcm_adi *a, vdcm_adi_counters *out);

/*
 * `fastpath` is a `const vdcm_fastpath *`, `device` what its functions get. With `doorbells` the
 * sweep looks at them; without, the queue is looked at when vdcm_queue_kick() says so. It begins
 * STOPPED. NULL with errno EINVAL if the table is of another version, ENOMEM.
 */
vdcm_queue *vdcm_queue_new(vdcm_adi *a, uintptr_t fastpath, uintptr_t device, bool doorbells);
void vdcm_queue_free(vdcm_queue *q);
/* When this returns, nothing of what the state forbids is going on (2.7). */
void vdcm_queue_set_state(vdcm_queue *q, int state);
int vdcm_queue_state(vdcm_queue *q);
/* Discard what was accepted and is not finished. */
void vdcm_queue_abort(vdcm_queue *q);
/* There is work in it. From any thread. */
void vdcm_queue_kick(vdcm_queue *q);
/* The const vdcm_services * that all devices get. */
uintptr_t vdcm_services_table(void);

/* cffi: end */

#endif
