/*
 * Faults of memory, made on purpose: a test has accesses of one domain fail that would not.
 *
 * They stand in the way of the domain's `reach`, so that a domain without any pays nothing. Slots
 * change while no reader is in the domain; their counters belong to all readers.
 */
#include <errno.h>
#include <stdlib.h>

#include "memory.h"

struct slot {
    bool used;
    vdcm_dma_fault rule;
    _Atomic uint64_t seen; /* accesses that it meant */
};

struct vdcm_faults {
    int (*reach)(vdcm_domain *domain, vdcm_reader *reader, uint64_t iova, uint64_t length,
                 bool write, void **memory, uint64_t *here);
    uint32_t used;
    struct slot slots[VDCM_FAULT_MAX];
};

/*
 * Does the access of [iova, iova + length) meet a fault? Then *at is where. One that begins before a
 * fault's range has to end there (*length) and is not counted: what goes on there is.
 */
static bool meets(struct vdcm_faults *faults, uint64_t iova, uint64_t *length, bool write,
                  bool whole, uint64_t *at)
{
    uint64_t last = *length - 1 > UINT64_MAX - iova ? UINT64_MAX : iova + (*length - 1);
    bool met = false;

    for (size_t i = 0; i < VDCM_FAULT_MAX; i++) {
        struct slot *slot = &faults->slots[i];
        const vdcm_dma_fault *rule = &slot->rule;
        uint64_t seen;

        if (!slot->used || !(write ? rule->writes : rule->reads) || iova > rule->last ||
            last < rule->first) {
            continue;
        }
        if (iova < rule->first && !whole) {
            if (*length > rule->first - iova) {
                *length = rule->first - iova;
            }
            continue;
        }
        seen = atomic_fetch_add_explicit(&slot->seen, 1, memory_order_relaxed);
        if (!met && seen >= rule->after && seen - rule->after < rule->times) {
            *at = iova < rule->first ? rule->first : iova;
            met = true;
        }
    }
    return met;
}

static int reach(vdcm_domain *domain, vdcm_reader *reader, uint64_t iova, uint64_t length,
                 bool write, void **memory, uint64_t *here)
{
    uint64_t at;

    if (meets(domain->faults, iova, &length, write, false, &at)) {
        return -EFAULT; /* as if it were not mapped */
    }
    return domain->faults->reach(domain, reader, iova, length, write, memory, here);
}

int vdcm_faults_look(vdcm_domain *domain, uint64_t iova, uint64_t length, bool write,
                     uint64_t *fault)
{
    if (domain == NULL || domain->faults == NULL || length == 0) {
        return 0;
    }
    return meets(domain->faults, iova, &length, write, true, fault) ? -EREMOTEIO : 0;
}

static int add(vdcm_domain *domain, const vdcm_dma_fault *rule)
{
    struct vdcm_faults *faults = domain->faults;
    size_t i;

    if (faults == NULL) {
        faults = calloc(1, sizeof(*faults));
        if (faults == NULL) {
            return -ENOMEM;
        }
        faults->reach = domain->reach;
    }
    for (i = 0; i < VDCM_FAULT_MAX && faults->slots[i].used; i++) {
    }
    if (i == VDCM_FAULT_MAX) {
        return -ENOSPC;
    }
    vdcm_exclude(domain);
    faults->slots[i].rule = *rule;
    atomic_store(&faults->slots[i].seen, 0);
    faults->slots[i].used = true;
    faults->used++;
    domain->faults = faults;
    domain->reach = reach;
    vdcm_admit(domain);
    return (int)i;
}

int vdcm_fault_add(vdcm_domain *domain, const vdcm_dma_fault *rule)
{
    int result;

    vdcm_control_lock();
    result = add(domain, rule);
    vdcm_control_unlock();
    return result;
}

/* With the lock held: the fault of that number, or NULL. */
static struct slot *find(vdcm_domain *domain, uint32_t number)
{
    if (domain->faults == NULL || number >= VDCM_FAULT_MAX) {
        return NULL;
    }
    return domain->faults->slots[number].used ? &domain->faults->slots[number] : NULL;
}

int vdcm_fault_remove(vdcm_domain *domain, uint32_t number)
{
    struct vdcm_faults *empty = NULL;
    struct slot *slot;

    vdcm_control_lock();
    slot = find(domain, number);
    if (slot != NULL) {
        vdcm_exclude(domain);
        slot->used = false;
        if (--domain->faults->used == 0) {
            empty = domain->faults;
            domain->reach = empty->reach;
            domain->faults = NULL;
        }
        vdcm_admit(domain);
    }
    vdcm_control_unlock();
    free(empty);
    return slot != NULL ? 0 : -ENOENT;
}

int vdcm_fault_hits(vdcm_domain *domain, uint32_t number, uint64_t *hits)
{
    struct slot *slot;

    vdcm_control_lock();
    slot = find(domain, number);
    if (slot != NULL) {
        uint64_t seen = atomic_load_explicit(&slot->seen, memory_order_relaxed);

        *hits = seen > slot->rule.after ? seen - slot->rule.after : 0;
        if (*hits > slot->rule.times) {
            *hits = slot->rule.times;
        }
    }
    vdcm_control_unlock();
    return slot != NULL ? 0 : -ENOENT;
}
