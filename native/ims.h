/*
 * Interrupts: the eventfds of clients (signal.c), and Interrupt Message Storage (ims.c).
 */
#ifndef VDCM_IMS_H
#define VDCM_IMS_H

#include <stdbool.h>
#include <stdint.h>

/* cffi: begin */

/* ---- signal.c: an eventfd that belongs to a client ------------------------------------------- */

/*
 * Adds 1 to the counter, from any thread, and does not block, whatever the client does to the
 * counter or to the flags of the file at the same time. A full counter stays full (at most it goes to
 * its very maximum, eventfd(2)): the client has a signal waiting anyway. `eventfd` has been checked to
 * be one. -EBADF if it is closed.
 */
int vdcm_signal(int eventfd);
/*
 * Is that a promise? Without asynchronous I/O in the kernel (or in the sandbox) a client that fills
 * its counter between two system calls of ours can stop the calling thread until it empties it.
 */
bool vdcm_signal_never_blocks(void);

/* ---- ims.c: Interrupt Message Storage of one parent (Scalable IOV, 2.5.1) -------------------- */

typedef struct vdcm_ims vdcm_ims;

enum { VDCM_IMS_MAX = 65536 };

/* One entry, as vdcm_ims_look() finds it. */
typedef struct {
    uint64_t address;
    uint32_t data;
    bool masked;  /* by the host driver */
    bool blocked; /* the VDEV's virtual MSI-X does not let it through */
    bool pending;
    bool routed;     /* has an eventfd */
    uint64_t raised; /* since it was allocated */
    uint64_t delivered;
} vdcm_ims_state;

/*
 * An entry is named by what vdcm_ims_allocate() returned: its index in bits 15:0 and a generation,
 * never 0, above. The generation changes when the entry is released, so that a name that has been
 * kept is refused (-ENOENT) instead of reaching the entry's next owner.
 *
 * Who checks what (2.5.2): an ADI names its messages by their position in its own list. That list is
 * the engine's; only the host driver changes it, and a device's C never sees an entry. Here it is
 * checked that the entry exists and is still the one that was meant.
 *
 * All but vdcm_ims_raise() is for one thread, the one that serves the clients. -ENOENT: no such
 * entry, or no longer.
 */
vdcm_ims *vdcm_ims_new(uint32_t entries);
/* Nothing may raise any more. */
void vdcm_ims_free(vdcm_ims *ims);
/* A new entry: not masked, blocked until vdcm_ims_block() says otherwise. -ENOSPC, -ENOMEM. */
int vdcm_ims_allocate(vdcm_ims *ims, uint32_t *entry);
/* Waits for a raise in progress. What is pending is forgotten. */
int vdcm_ims_release(vdcm_ims *ims, uint32_t entry);
int vdcm_ims_program(vdcm_ims *ims, uint32_t entry, uint64_t address, uint32_t data);
/* Where its interrupts go: a duplicate of `eventfd` is kept; -1 for nowhere. */
int vdcm_ims_route(vdcm_ims *ims, uint32_t entry, int eventfd);
/*
 * Two reasons to hold an interrupt back. When these return, no delivery is in progress or to come;
 * when nothing holds it back any more, what is pending is delivered, once.
 */
int vdcm_ims_mask(vdcm_ims *ims, uint32_t entry, bool masked);
int vdcm_ims_block(vdcm_ims *ims, uint32_t entry, bool blocked);
/* Forgets what is pending. */
int vdcm_ims_clear(vdcm_ims *ims, uint32_t entry);
/*
 * 1 if it was pending and not masked, and is no longer: the caller delivers it. For a vector of
 * several entries, whose end of a mask is one interrupt.
 */
int vdcm_ims_take(vdcm_ims *ims, uint32_t entry);
int vdcm_ims_look(vdcm_ims *ims, uint32_t entry, vdcm_ims_state *state);
/*
 * Generates the message, from any thread: signals the eventfd, or sets pending when something holds
 * it back. No allocation and no sleeping lock.
 */
int vdcm_ims_raise(vdcm_ims *ims, uint32_t entry);

/* cffi: end */

#endif
