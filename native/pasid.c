/*
 * PASIDs: the table from PASID to domain, the readers that go through it, and the guests' own
 * PASIDs.
 *
 * Readers and the control side meet without a lock. A reader stores the domain it wants into a slot
 * of its own (a hazard pointer) and then looks whether the PASID still stands for it and whether it
 * is being changed; the control side first stores the new entry and the changing flag, and then
 * looks at the slots of all readers. All of these are sequentially consistent, so at least one of
 * the two sees the other: either the reader steps back, or the change waits for it.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "fastpath.h"
#include "memory.h"

/*
 * Two levels as in VT-d scalable mode: bits 19:6 of the PASID select a PASID table, bits 5:0 the
 * entry in it. A table that was made stays, so a reader may always look into it.
 */
enum { TABLE_BITS = 6, TABLE_SIZE = 1 << TABLE_BITS };

typedef _Atomic(vdcm_domain *) domain_slot;

struct pasid_table {
    domain_slot entries[TABLE_SIZE];
};

static _Atomic(struct pasid_table *) directory[VDCM_PASID_LIMIT >> TABLE_BITS];

struct vdcm_reader {
    _Alignas(64) domain_slot inside[VDCM_READER_DOMAINS]; /* a cache line for each reader */
    bool used;                                            /* control side */
};

static vdcm_reader readers[VDCM_READERS];
static pthread_mutex_t control = PTHREAD_MUTEX_INITIALIZER;

void vdcm_control_lock(void)
{
    pthread_mutex_lock(&control);
}

void vdcm_control_unlock(void)
{
    pthread_mutex_unlock(&control);
}

/* ---- the control side --------------------------------------------------------------------- */

static bool occupied(const vdcm_domain *domain)
{
    for (size_t i = 0; i < VDCM_READERS; i++) {
        for (size_t j = 0; j < VDCM_READER_DOMAINS; j++) {
            /* Pairs with the store in enter(), and with the release in vdcm_leave(): what the
             * reader did inside is done. */
            if (atomic_load(&readers[i].inside[j]) == domain) {
                return true;
            }
        }
    }
    return false;
}

void vdcm_exclude(vdcm_domain *domain)
{
    static const struct timespec nap = {.tv_nsec = 50000};

    if (domain == NULL) {
        return;
    }
    /* Before the slots are looked at; pairs with the load in enter(). */
    atomic_store(&domain->changing, true);
    for (unsigned tries = 0; occupied(domain); tries++) {
        if (tries < 64) {
            sched_yield();
        } else {
            nanosleep(&nap, NULL); /* the CPU may be what the reader needs to get out */
        }
    }
}

void vdcm_admit(vdcm_domain *domain)
{
    if (domain != NULL) {
        /* Pairs with the load in enter(): who sees it sees the change. */
        atomic_store(&domain->changing, false);
    }
}

static domain_slot *entry_of(uint32_t pasid)
{
    struct pasid_table *table;

    if (pasid >= VDCM_PASID_LIMIT) {
        return NULL;
    }
    /* Pairs with the store in make_entry(): the table is there as it was made. */
    table = atomic_load_explicit(&directory[pasid >> TABLE_BITS], memory_order_acquire);
    return table != NULL ? &table->entries[pasid % TABLE_SIZE] : NULL;
}

static domain_slot *make_entry(uint32_t pasid)
{
    domain_slot *entry = entry_of(pasid);

    if (entry == NULL) {
        struct pasid_table *table = calloc(1, sizeof(*table));

        if (table == NULL) {
            return NULL;
        }
        atomic_store_explicit(&directory[pasid >> TABLE_BITS], table, memory_order_release);
        entry = &table->entries[pasid % TABLE_SIZE];
    }
    return entry;
}

/* The entry goes first, then the wait: a reader that still found it there is seen inside. */
static void take_out(domain_slot *entry, vdcm_domain *domain)
{
    atomic_store(entry, NULL);
    vdcm_exclude(domain);
    vdcm_admit(domain);
    domain->pasids--;
}

static int set(uint32_t pasid, vdcm_domain *domain)
{
    domain_slot *entry;
    vdcm_domain *old;

    if (pasid >= VDCM_PASID_LIMIT) {
        return -EINVAL;
    }
    entry = domain != NULL ? make_entry(pasid) : entry_of(pasid);
    if (entry == NULL) {
        return domain != NULL ? -ENOMEM : 0;
    }
    old = atomic_load(entry);
    if (domain == NULL) {
        if (old != NULL) {
            take_out(entry, old);
        }
        return 0;
    }
    if (old != NULL) {
        return -EEXIST;
    }
    domain->pasids++;
    /* Pairs with the loads in enter(): who finds the domain finds it as it was made. */
    atomic_store(entry, domain);
    return 0;
}

int vdcm_pasid_set(uint32_t pasid, vdcm_domain *domain)
{
    int error;

    vdcm_control_lock();
    error = set(pasid, domain);
    vdcm_control_unlock();
    return error;
}

void vdcm_withdraw(vdcm_domain *domain)
{
    /* An owner that tidies up leaves nothing to search for. */
    for (uint32_t pasid = 0; domain->pasids != 0 && pasid < VDCM_PASID_LIMIT; pasid++) {
        domain_slot *entry = entry_of(pasid);

        if (entry == NULL) {
            pasid |= TABLE_SIZE - 1; /* no table: none of its PASIDs */
        } else if (atomic_load(entry) == domain) {
            take_out(entry, domain);
        }
    }
}

vdcm_reader *vdcm_reader_new(void)
{
    vdcm_reader *reader = NULL;

    vdcm_control_lock();
    for (size_t i = 0; i < VDCM_READERS && reader == NULL; i++) {
        if (!readers[i].used) {
            reader = &readers[i];
            reader->used = true;
        }
    }
    vdcm_control_unlock();
    if (reader == NULL) {
        errno = EAGAIN;
    }
    return reader;
}

void vdcm_reader_free(vdcm_reader *reader)
{
    if (reader == NULL) {
        return;
    }
    vdcm_leave(reader);
    vdcm_control_lock();
    reader->used = false;
    vdcm_control_unlock();
}

/* ---- the readers -------------------------------------------------------------------------- */

/* A slot of the reader that holds `domain`; its own thread alone writes them. */
static domain_slot *slot_with(vdcm_reader *reader, const vdcm_domain *domain)
{
    for (size_t i = 0; i < VDCM_READER_DOMAINS; i++) {
        if (atomic_load_explicit(&reader->inside[i], memory_order_relaxed) == domain) {
            return &reader->inside[i];
        }
    }
    return NULL;
}

/* *taken is the slot that this has filled, NULL if the reader was inside already. */
static int enter(vdcm_reader *reader, uint32_t pasid, vdcm_domain **entered, domain_slot **taken)
{
    domain_slot *entry = entry_of(pasid);

    if (entry == NULL) {
        return -EPERM;
    }
    for (;;) {
        vdcm_domain *domain = atomic_load(entry);
        domain_slot *slot;

        if (domain == NULL) {
            return -EPERM;
        }
        *entered = domain;
        *taken = NULL;
        if (slot_with(reader, domain) != NULL) {
            return 0; /* a change that has begun waits for us, so we must not wait for it */
        }
        slot = slot_with(reader, NULL);
        if (slot == NULL) {
            return -EBUSY;
        }
        /* Before both loads; pairs with the load in occupied(). Until the entry has been seen
         * again the domain may be gone already, and is not looked at. */
        atomic_store(slot, domain);
        if (atomic_load(entry) == domain && !atomic_load(&domain->changing)) {
            *taken = slot;
            return 0;
        }
        atomic_store_explicit(slot, NULL, memory_order_release);
        sched_yield();
    }
}

int vdcm_reach(vdcm_reader *reader, uint32_t pasid, uint64_t iova, uint64_t length, bool write,
               void **memory, uint64_t *here)
{
    vdcm_domain *domain;
    domain_slot *taken;
    int error;

    if (length == 0) {
        return -EINVAL;
    }
    error = enter(reader, pasid, &domain, &taken);
    if (error != 0) {
        return error;
    }
    error = domain->reach(domain, reader, iova, length, write, memory, here);
    if (error != 0 && taken != NULL) {
        atomic_store_explicit(taken, NULL, memory_order_release); /* nothing of it is held */
    }
    return error;
}

void vdcm_leave(vdcm_reader *reader)
{
    for (size_t i = 0; i < VDCM_READER_DOMAINS; i++) {
        /* Pairs with the load in occupied(): all touches come before. */
        atomic_store_explicit(&reader->inside[i], NULL, memory_order_release);
    }
}

/* ---- guest PASID -> host PASID ------------------------------------------------------------ */

/*
 * Sorted by guest PASID, in the upper half of each word; the host PASID is in the lower. `version`
 * is odd during a change; a reader that saw one, or a different version after than before, looks
 * again. Everything is sequentially consistent: a word of a change is seen only after its odd
 * version can be.
 */
struct vdcm_pasid_map {
    uint32_t limit;
    atomic_uint version;
    atomic_uint count;
    _Atomic(_Atomic(uint64_t) *) words; /* made with the first binding */
};

vdcm_pasid_map *vdcm_pasid_map_new(uint32_t limit)
{
    vdcm_pasid_map *map;

    if (limit == 0 || limit > VDCM_GUEST_PASID_LIMIT) {
        errno = EINVAL;
        return NULL;
    }
    map = calloc(1, sizeof(*map));
    if (map != NULL) {
        map->limit = limit;
    }
    return map;
}

void vdcm_pasid_map_free(vdcm_pasid_map *map)
{
    if (map != NULL) {
        free(atomic_load(&map->words));
        free(map);
    }
}

/* Index of the first word of `guest` or one above it, or count. */
static uint32_t position(_Atomic(uint64_t) *words, uint32_t count, uint32_t guest)
{
    uint32_t low = 0;
    uint32_t high = count;

    while (low < high) {
        uint32_t middle = low + (high - low) / 2;

        if (atomic_load(&words[middle]) >> 32 < guest) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}

static uint32_t look_up(vdcm_pasid_map *map, uint32_t guest)
{
    uint32_t count = atomic_load(&map->count); /* first: where there are any, there are words */
    _Atomic(uint64_t) *words = atomic_load(&map->words);
    uint32_t index = position(words, count, guest);
    uint64_t word = index < count ? atomic_load(&words[index]) : 0;

    return index < count && word >> 32 == guest ? (uint32_t)word : VDCM_NO_PASID;
}

uint32_t vdcm_pasid_map_translate(vdcm_pasid_map *map, uint32_t guest)
{
    if (map == NULL) {
        return VDCM_NO_PASID;
    }
    for (;;) {
        unsigned version = atomic_load(&map->version);
        uint32_t host = look_up(map, guest);

        if (version % 2 == 0 && atomic_load(&map->version) == version) {
            return host;
        }
        sched_yield();
    }
}

static bool holds(vdcm_pasid_map *map, uint32_t host)
{
    uint32_t count = atomic_load(&map->count); /* first: where there are any, there are words */
    _Atomic(uint64_t) *words = atomic_load(&map->words);

    for (uint32_t i = 0; i < count; i++) {
        if ((uint32_t)atomic_load(&words[i]) == host) {
            return true;
        }
    }
    return false;
}

bool vdcm_pasid_map_holds(vdcm_pasid_map *map, uint32_t host)
{
    for (;;) {
        unsigned version = atomic_load(&map->version);
        bool found = holds(map, host);

        if (version % 2 == 0 && atomic_load(&map->version) == version) {
            return found;
        }
        sched_yield();
    }
}

static int bind(vdcm_pasid_map *map, uint32_t guest, uint32_t host)
{
    _Atomic(uint64_t) *words = atomic_load(&map->words);
    uint32_t count = atomic_load(&map->count);
    uint32_t index;

    if (guest >= VDCM_PASID_LIMIT || host >= VDCM_PASID_LIMIT) {
        return -EINVAL;
    }
    if (look_up(map, guest) != VDCM_NO_PASID) {
        return -EEXIST;
    }
    if (count == map->limit) {
        return -ENOSPC;
    }
    if (words == NULL) {
        words = calloc(map->limit, sizeof(*words));
        if (words == NULL) {
            return -ENOMEM;
        }
        atomic_store(&map->words, words);
    }
    index = position(words, count, guest);
    atomic_fetch_add(&map->version, 1);
    for (uint32_t i = count; i > index; i--) {
        atomic_store(&words[i], atomic_load(&words[i - 1]));
    }
    atomic_store(&words[index], (uint64_t)guest << 32 | host);
    atomic_store(&map->count, count + 1);
    atomic_fetch_add(&map->version, 1);
    return 0;
}

int vdcm_pasid_map_bind(vdcm_pasid_map *map, uint32_t guest, uint32_t host)
{
    int error;

    vdcm_control_lock();
    error = bind(map, guest, host);
    vdcm_control_unlock();
    return error;
}

static int unbind(vdcm_pasid_map *map, uint32_t guest)
{
    _Atomic(uint64_t) *words = atomic_load(&map->words);
    uint32_t count = atomic_load(&map->count);

    if (look_up(map, guest) == VDCM_NO_PASID) {
        return -ENOENT;
    }
    atomic_fetch_add(&map->version, 1);
    for (uint32_t i = position(words, count, guest) + 1; i < count; i++) {
        atomic_store(&words[i - 1], atomic_load(&words[i]));
    }
    atomic_store(&map->count, count - 1);
    atomic_fetch_add(&map->version, 1);
    return 0;
}

int vdcm_pasid_map_unbind(vdcm_pasid_map *map, uint32_t guest)
{
    int error;

    vdcm_control_lock();
    error = unbind(map, guest);
    vdcm_control_unlock();
    return error;
}
