/*
 * Interrupt Message Storage of one parent: its entries, and the generation of their messages.
 *
 * Each entry has a spin lock of its own, held for a signal at most; the thread that serves the
 * clients and a sweep meet there only when one entry is raised and changed at the same moment.
 * Entries lie in chunks that are allocated with their first entry and stay until the storage goes,
 * so that vdcm_ims_raise() can look at any entry at any time.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "ims.h"

enum {
    CHUNK = 64,      /* entries: a page */
    SPINS = 64,      /* before the CPU is given to whoever holds the lock */
    INDEX_BITS = 16, /* of an entry's name */
    GENERATIONS = 65536,
    NONE = -1
};

struct entry {
    atomic_bool locked;
    bool allocated;
    uint16_t generation;
    int32_t next_free; /* index of the entry released before this one, or NONE */
    int eventfd;       /* ours, or -1 */
    vdcm_ims_state state;
} __attribute__((aligned(64)));

struct vdcm_ims {
    uint32_t count;
    uint32_t used;     /* entries below have been allocated at least once */
    int32_t last_free; /* the entry released last, or NONE */
    _Atomic(struct entry *) chunks[];
};

static void lock(struct entry *entry)
{
    unsigned spins = 0;

    while (atomic_exchange_explicit(&entry->locked, true, memory_order_acquire)) {
        while (atomic_load_explicit(&entry->locked, memory_order_relaxed)) {
            if (++spins % SPINS == 0) {
                sched_yield();
            }
        }
    }
}

static void unlock(struct entry *entry)
{
    atomic_store_explicit(&entry->locked, false, memory_order_release);
}

/* The entry of that name, locked; NULL if there is none. */
static struct entry *find(vdcm_ims *ims, uint32_t name)
{
    uint32_t index = name & ((1U << INDEX_BITS) - 1);
    struct entry *chunk;
    struct entry *entry;

    if (index >= ims->count) {
        return NULL;
    }
    chunk = atomic_load_explicit(&ims->chunks[index / CHUNK], memory_order_acquire);
    if (chunk == NULL) {
        return NULL;
    }
    entry = &chunk[index % CHUNK];
    lock(entry);
    if (!entry->allocated || entry->generation != name >> INDEX_BITS) {
        unlock(entry);
        return NULL;
    }
    return entry;
}

vdcm_ims *vdcm_ims_new(uint32_t entries)
{
    size_t chunks = ((size_t)entries + CHUNK - 1) / CHUNK;
    vdcm_ims *ims;

    if (entries == 0 || entries > VDCM_IMS_MAX) {
        errno = EINVAL;
        return NULL;
    }
    ims = calloc(1, sizeof(*ims) + chunks * sizeof(ims->chunks[0]));
    if (ims != NULL) {
        ims->count = entries;
        ims->last_free = NONE;
        (void)vdcm_signal_never_blocks(); /* what is to be set up, not in the sweep */
    }
    return ims;
}

static void unroute(struct entry *entry)
{
    if (entry->eventfd >= 0) {
        close(entry->eventfd);
        entry->eventfd = -1;
    }
}

void vdcm_ims_free(vdcm_ims *ims)
{
    if (ims == NULL) {
        return;
    }
    for (uint32_t i = 0; i < ims->used; i++) {
        unroute(&atomic_load(&ims->chunks[i / CHUNK])[i % CHUNK]);
    }
    for (uint32_t i = 0; i < ims->used; i += CHUNK) {
        free(atomic_load(&ims->chunks[i / CHUNK]));
    }
    free(ims);
}

int vdcm_ims_allocate(vdcm_ims *ims, uint32_t *name)
{
    uint32_t index = ims->last_free != NONE ? (uint32_t)ims->last_free : ims->used;
    struct entry *chunk;
    struct entry *entry;

    if (index >= ims->count) {
        return -ENOSPC;
    }
    chunk = atomic_load_explicit(&ims->chunks[index / CHUNK], memory_order_relaxed);
    if (chunk == NULL) {
        chunk = aligned_alloc(_Alignof(struct entry), CHUNK * sizeof(*chunk));
        if (chunk == NULL) {
            return -ENOMEM;
        }
        memset(chunk, 0, CHUNK * sizeof(*chunk));
        for (uint32_t i = 0; i < CHUNK; i++) {
            chunk[i].generation = 1;
            chunk[i].eventfd = -1;
        }
        atomic_store_explicit(&ims->chunks[index / CHUNK], chunk, memory_order_release);
    }
    entry = &chunk[index % CHUNK];
    if (index == ims->used) {
        ims->used++;
    } else {
        ims->last_free = entry->next_free;
    }
    lock(entry);
    entry->state = (vdcm_ims_state){.blocked = true};
    entry->allocated = true;
    *name = (uint32_t)entry->generation << INDEX_BITS | index;
    unlock(entry);
    return 0;
}

int vdcm_ims_release(vdcm_ims *ims, uint32_t name)
{
    struct entry *entry = find(ims, name);

    if (entry == NULL) {
        return -ENOENT;
    }
    unroute(entry);
    entry->allocated = false;
    entry->generation = entry->generation == GENERATIONS - 1 ? 1 : entry->generation + 1;
    entry->next_free = ims->last_free;
    unlock(entry);
    ims->last_free = (int32_t)(name & ((1U << INDEX_BITS) - 1));
    return 0;
}

/* Delivers if nothing holds it back. The entry is locked: its eventfd stays open meanwhile. */
static void deliver(struct entry *entry)
{
    vdcm_ims_state *state = &entry->state;

    if (state->masked || state->blocked || entry->eventfd < 0) {
        return;
    }
    if (vdcm_signal(entry->eventfd) == 0) {
        state->pending = false;
        state->delivered++;
    }
}

int vdcm_ims_raise(vdcm_ims *ims, uint32_t name)
{
    struct entry *entry = find(ims, name);

    if (entry == NULL) {
        return -ENOENT;
    }
    entry->state.raised++;
    entry->state.pending = true;
    deliver(entry);
    unlock(entry);
    return 0;
}

/* What held a pending one back may be gone. */
static int changed(struct entry *entry)
{
    if (entry->state.pending) {
        deliver(entry);
    }
    unlock(entry);
    return 0;
}

int vdcm_ims_program(vdcm_ims *ims, uint32_t name, uint64_t address, uint32_t data)
{
    struct entry *entry = find(ims, name);

    if (entry == NULL) {
        return -ENOENT;
    }
    entry->state.address = address;
    entry->state.data = data;
    unlock(entry);
    return 0;
}

int vdcm_ims_route(vdcm_ims *ims, uint32_t name, int eventfd)
{
    int own = eventfd >= 0 ? fcntl(eventfd, F_DUPFD_CLOEXEC, 0) : -1;
    int error = eventfd >= 0 && own < 0 ? -errno : 0;
    struct entry *entry = find(ims, name);

    if (entry == NULL) {
        if (own >= 0) {
            close(own);
        }
        return -ENOENT;
    }
    unroute(entry);
    entry->eventfd = own; /* none if there was no descriptor left: better than the old one */
    (void)changed(entry);
    return error;
}

int vdcm_ims_mask(vdcm_ims *ims, uint32_t name, bool masked)
{
    struct entry *entry = find(ims, name);

    if (entry == NULL) {
        return -ENOENT;
    }
    entry->state.masked = masked;
    return changed(entry);
}

int vdcm_ims_block(vdcm_ims *ims, uint32_t name, bool blocked)
{
    struct entry *entry = find(ims, name);

    if (entry == NULL) {
        return -ENOENT;
    }
    entry->state.blocked = blocked;
    return changed(entry);
}

int vdcm_ims_clear(vdcm_ims *ims, uint32_t name)
{
    struct entry *entry = find(ims, name);

    if (entry == NULL) {
        return -ENOENT;
    }
    entry->state.pending = false;
    unlock(entry);
    return 0;
}

int vdcm_ims_take(vdcm_ims *ims, uint32_t name)
{
    struct entry *entry = find(ims, name);
    bool taken;

    if (entry == NULL) {
        return -ENOENT;
    }
    taken = entry->state.pending && !entry->state.masked;
    if (taken) {
        entry->state.pending = false;
    }
    unlock(entry);
    return taken;
}

int vdcm_ims_look(vdcm_ims *ims, uint32_t name, vdcm_ims_state *state)
{
    struct entry *entry = find(ims, name);

    if (entry == NULL) {
        return -ENOENT;
    }
    *state = entry->state;
    state->routed = entry->eventfd >= 0;
    unlock(entry);
    return 0;
}
