/*
 * The direct path of a device model: what its C implements, and what it is given.
 *
 * A device's queues are run by a sweep thread (doorbell.c) under the arbitration of its ADIs. The
 * device's C lies with the device, in an extension module of its own; the two sides meet in these
 * two tables of functions and nowhere else. This file stands alone, so that a device outside this
 * repository compiles against the installed copy (vdcm.include_dir()).
 *
 * Memory is reached only by PASID (Scalable IOV, 2.2 and 2.6), interrupts are raised only from the
 * ADI's own messages (2.5.2): the worker knows whose work it is doing, and refuses the rest.
 */
#ifndef VDCM_FASTPATH_H
#define VDCM_FASTPATH_H

#include <stdbool.h>
#include <stdint.h>

enum {
    VDCM_FASTPATH_ABI = 5,
    VDCM_REPORT_SIZE = 64,      /* bytes of the longest report */
    VDCM_HOLD_LIMIT = 256 << 10 /* bytes to work on between two leave() */
};

#define VDCM_NO_PASID UINT32_MAX

/*
 * A device's C may take the guest's stores to intercepted pages, ahead of its Python: `width` is 1,
 * 2, 4 or 8, `offset` that in the BAR. It is called on the thread of the event loop, and must not wait.
 * 0: done; an errno: what the client is answered, EAGAIN for a deferred write; VDCM_STORE_PASS:
 * Python is given the same store.
 */
typedef int vdcm_store(void *argument, uint64_t offset, uint32_t width, uint64_t value);

enum { VDCM_STORE_PASS = -1 };

/* The thread that runs a queue, and the ADI on whose behalf it does so now. */
typedef struct vdcm_worker vdcm_worker;
/* The engine's side of a queue. */
typedef struct vdcm_queue vdcm_queue;

/*
 * What the engine gives to a device. Valid only while the engine is calling the device, on the same
 * thread, but for kick(). Errors are negative errno values.
 */
typedef struct vdcm_services {
    uint32_t abi; /* VDCM_FASTPATH_ABI */
    /*
     * The memory at `address` in the address space of host PASID `pasid`: *memory and the number of
     * bytes *here that lie there in one piece (1 <= *here <= length). It stays mapped until leave().
     * -EPERM: no PASID, or one that is not this ADI's, or the VDEV is no bus master. -EFAULT: not
     * mapped. -EACCES: not permitted. -ENXIO: announced by the guest, but not shared with us.
     * The ADI's counters of DMA have *here bytes more then.
     */
    int (*reach)(vdcm_worker *worker, uint32_t pasid, uint64_t address, uint64_t length,
                 bool write, void **memory, uint64_t *here);
    /* For a device that reaches further than it means to go, or uses again what it has reached: so many
     * bytes more have been read and written than reach() has counted; negative: fewer. */
    void (*used)(vdcm_worker *worker, int64_t read, int64_t written);
    /* Lets go of all memory that was reached: at least every VDCM_HOLD_LIMIT bytes of work. */
    void (*leave)(vdcm_worker *worker);
    /*
     * Calls body(argument) and returns what it returns; -EIO if it touched memory whose file the
     * guest has cut short. Every touch of reached memory happens inside. body holds no lock.
     */
    int (*guarded)(vdcm_worker *worker, int (*body)(void *argument), void *argument);
    /* The ADI's PASIDs, VDCM_NO_PASID if it has none. The secondary one is for descriptors,
     * completions and metadata (2.2); it is the primary where none was given. */
    uint32_t (*primary)(vdcm_worker *worker);
    uint32_t (*secondary)(vdcm_worker *worker);
    /* The host PASID behind a guest's own (3.3), VDCM_NO_PASID if the guest has none such. */
    uint32_t (*translate)(vdcm_worker *worker, uint32_t guest_pasid);
    /* Generates message `message` of this ADI, counted from 0. -ERANGE if it has no such message,
     * -EPERM if the VDEV is no bus master: it is lost then. */
    int (*raise)(vdcm_worker *worker, uint32_t message);
    /* Tells the host driver (Python) of something, an error above all. False: it is lost, because
     * the ADI has VDCM_REPORTS of them waiting already. */
    bool (*report)(vdcm_worker *worker, uint32_t code, const void *data, uint32_t size);
    /* The queue that is being called, for kick(). */
    vdcm_queue *(*handle)(vdcm_worker *worker);
    /* There is something new in it: take() is called soon. From any thread, until closed(). */
    void (*kick)(vdcm_queue *queue);
    /*
     * For a device that connects ADIs, as a switch does. Calls body(argument, other) and returns what it
     * returns, `other` being a worker for the ADI of `queue` that is valid until then: what is done
     * with it is allowed or refused as that ADI's own work would be, so each side of a transfer is
     * reached with the PASIDs of its own ADI. What `worker` has reached stays mapped; leave() is of
     * both. A thread is inside at most two address spaces at a time: reach() says -EBUSY for a third.
     * `queue` is from handle(), and not closed(). -EXDEV: another thread runs it; -EAGAIN: its host
     * driver does not let it run.
     */
    int (*on_behalf)(vdcm_worker *worker, vdcm_queue *queue,
                     int (*body)(void *argument, vdcm_worker *other), void *argument);
    /* Monotonic time in ns. What depends on time asks here: a recorded device is given the same
     * times again when it is replayed. From any thread. */
    uint64_t (*now)(void);
} vdcm_services;

/* What a device implements. `queue` is its own, handed over when the queue was made. */
typedef struct vdcm_fastpath {
    uint32_t abi; /* VDCM_FASTPATH_ABI */
    uint32_t reserved;
    const char *name;
    /*
     * Look at the doorbells and accept what is there: true if anything new was accepted. Called
     * again and again, so it costs a cache line or two when there is nothing.
     */
    bool (*take)(void *queue, vdcm_worker *worker);
    /*
     * Do accepted work worth about `budget` units, in general bytes; one that is longer is left and
     * continued at the next call. Returns the units done, at least 1 unless there is none to do.
     */
    uint64_t (*run)(void *queue, vdcm_worker *worker, uint64_t budget);
    /* Is anything accepted and not finished? */
    bool (*pending)(const void *queue);
    /* Discard everything that was accepted and is not finished. */
    void (*abort)(void *queue, vdcm_worker *worker);

    /* What follows may be NULL: a device that waits for nothing but its doorbells needs none of it. */

    /* Can run() do something now? If not, though there is work pending(), it waits for something that
     * take() will see, or that kicks the queue. NULL: whenever there is work. */
    bool (*ready)(const void *queue);
    /*
     * Nothing was new for a while. From now on a queue with doorbells is looked at now and then, one
     * without not at all, until it runs or is kicked; so here the device sees to it that it will be:
     * by whoever works for it, or by its guest's next store. False: it has not, or something has come
     * meanwhile, and the sweep looks on. A queue without doorbells that has this is looked at from a
     * kick on as if it had. Called again and again, too, for one that is to run empty.
     */
    bool (*rest)(void *queue, vdcm_worker *worker);
    /* The engine is about to forget the queue: when this returns, nobody kicks it. From any thread. */
    void (*closed)(void *queue);
} vdcm_fastpath;

#endif
