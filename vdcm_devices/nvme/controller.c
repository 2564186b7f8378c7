/*
 * The controller as the control thread sees it: settings, namespaces, doorbells, and its queues as they
 * come and go.
 */
#include <errno.h>
#include <stdlib.h>

#include "engine.h"

_Static_assert(sizeof(nvme_command) == 64, "as the guest lays it out");
_Static_assert(sizeof(nvme_completion) == 16, "as the guest lays it out");
_Static_assert(sizeof(nvme_error) <= VDCM_REPORT_SIZE, "fits into a report");

#define GUEST_PAGE UINT64_C(4096)
#define DOORBELLS UINT64_C(0x1000) /* in BAR 0 (3.1) */

static bool in_file(const nvme_namespace *n)
{
    return n->store != NULL && n->memory == NULL;
}

bool nvme_uses_files(const nvme_controller *c)
{
    for (uint32_t i = 1; i <= NVME_MAX_NAMESPACES; i++) {
        if (in_file(&c->namespaces[i])) {
            return true;
        }
    }
    return false;
}

/* Is a command to it under way? */
static bool in_use(const nvme_controller *c, const nvme_namespace *n)
{
    for (uint32_t i = 1; i <= NVME_MAX_QUEUES; i++) {
        const nvme_sq *q = c->sqs[i];

        if (q == NULL) {
            continue;
        }
        if (q->busy && q->current.n == n) {
            return true;
        }
        if (q->files != NULL && nvme_files_use(q->files, n)) {
            return true;
        }
    }
    for (const nvme_files *f = c->left; f != NULL; f = f->next) {
        if (nvme_files_use(f, n)) {
            return true;
        }
    }
    return false;
}

static int open_queues(const nvme_controller *c)
{
    for (uint32_t i = 1; i <= NVME_MAX_QUEUES; i++) {
        int error = c->sqs[i] != NULL ? nvme_tasks_open(c->sqs[i]) : 0;

        if (error != 0) {
            return error;
        }
    }
    return 0;
}

nvme_controller *nvme_controller_new(uintptr_t services)
{
    const vdcm_services *table = (const vdcm_services *)services;
    nvme_controller *c;

    if (table == NULL || table->abi != VDCM_FASTPATH_ABI) {
        errno = EINVAL;
        return NULL;
    }
    c = calloc(1, sizeof(*c));
    if (c != NULL) {
        c->services = table;
        c->settings = (nvme_settings){.page_shift = 12, .max_transfer = NVME_MAX_TRANSFER};
        c->words = c->own_words;
    }
    return c;
}

void nvme_controller_free(nvme_controller *c)
{
    if (c != NULL) {
        nvme_tasks_wait(c);
        free(c);
    }
}

int nvme_controller_configure(nvme_controller *c, const nvme_settings *s)
{
    if (s->page_shift < 12 || s->page_shift > 16 || s->max_transfer < GUEST_PAGE ||
        s->max_transfer > NVME_MAX_TRANSFER || s->namespaces > NVME_MAX_NAMESPACES) {
        return -EINVAL;
    }
    c->settings = *s;
    return 0;
}

int nvme_namespace_set(nvme_controller *c, uint32_t nsid, nvme_store *store, uint64_t offset,
                       uint64_t blocks, uint32_t block_shift, bool read_only)
{
    nvme_namespace before;
    nvme_namespace *n;
    int error = 0;

    if (nsid == 0 || nsid > NVME_MAX_NAMESPACES) {
        return -EINVAL;
    }
    n = &c->namespaces[nsid];
    if (in_use(c, n)) {
        return -EBUSY;
    }
    if (blocks == 0) {
        *n = (nvme_namespace){.store = NULL};
        return 0;
    }
    if (store == NULL || (block_shift != 9 && block_shift != 12) || offset % GUEST_PAGE != 0 ||
        offset > store->bytes || blocks > (store->bytes - offset) >> block_shift) {
        return -EINVAL;
    }
    before = *n;
    *n = (nvme_namespace){.store = store,
                          .memory = store->memory != NULL ? store->memory + offset : NULL,
                          .offset = offset,
                          .blocks = blocks,
                          .shift = block_shift,
                          .lost = atomic_load_explicit(&store->lost, memory_order_relaxed),
                          .read_only = read_only};
    if (in_file(n)) {
        error = open_queues(c);
    }
    if (error != 0) {
        *n = before;
    }
    return error;
}

/* ---- doorbells ------------------------------------------------------------------------------- */

int nvme_doorbells_set(nvme_controller *c, uintptr_t page)
{
    if (page % sizeof(uint64_t) != 0) {
        return -EINVAL;
    }
    c->words = page != 0 ? (_Atomic uint32_t *)page : c->own_words;
    for (uint32_t i = 0; i < NVME_DOORBELLS; i++) {
        atomic_store_explicit(&c->words[i], 0, memory_order_relaxed);
    }
    c->fatal = false;
    return 0;
}

/* Entries of the queue behind a doorbell; 0: there is none. */
static uint32_t entries_of(const nvme_controller *c, uint32_t doorbell)
{
    uint32_t id = doorbell / 2;

    if (id > NVME_MAX_QUEUES) {
        return 0;
    }
    if (doorbell % 2 == 0) {
        return c->sqs[id] != NULL ? c->sqs[id]->entries : 0;
    }
    return c->cqs[id] != NULL ? c->cqs[id]->entries : 0;
}

static bool kick(const nvme_sq *q)
{
    if (q->engine != NULL) {
        q->controller->services->kick(q->engine);
    }
    return q->engine != NULL;
}

int nvme_doorbell_write(nvme_controller *c, uint32_t doorbell, uint32_t value)
{
    if (doorbell >= 2) {
        uint32_t entries = entries_of(c, doorbell);

        if (entries == 0) {
            return -ENOENT;
        }
        if (value >= entries) {
            return -ERANGE;
        }
    }
    /* Pairs with the acquire of take(): what the guest wrote to memory before is seen. */
    atomic_store_explicit(&c->words[doorbell], value, memory_order_release);
    return 0;
}

static int store(void *controller, uint64_t offset, uint32_t width, uint64_t value)
{
    const nvme_controller *c = controller;
    uint32_t doorbell = (uint32_t)((offset - DOORBELLS) / sizeof(uint32_t));
    const nvme_cq *cq;

    if (width != sizeof(uint32_t) || offset % width != 0 || doorbell < 2 ||
        nvme_doorbell_write(controller, doorbell, (uint32_t)value) != 0) {
        return VDCM_STORE_PASS;
    }
    if (doorbell % 2 == 0) {
        return kick(c->sqs[doorbell / 2]) ? 0 : VDCM_STORE_PASS;
    }
    cq = c->cqs[doorbell / 2];
    for (uint32_t i = 1; i <= NVME_MAX_QUEUES; i++) {
        if (c->sqs[i] != NULL && c->sqs[i]->cq == cq && !kick(c->sqs[i])) {
            return VDCM_STORE_PASS;
        }
    }
    return 0;
}

uintptr_t nvme_doorbell_store(void)
{
    vdcm_store *function = store;

    return (uintptr_t)function;
}

uint32_t nvme_doorbell_read(const nvme_controller *c, uint32_t doorbell)
{
    return doorbell < NVME_DOORBELLS ? atomic_load_explicit(&c->words[doorbell], memory_order_acquire)
                                     : 0;
}

int nvme_shadow_set(nvme_controller *c, uint64_t shadow, uint64_t eventidx)
{
    if (shadow % GUEST_PAGE != 0 || eventidx % GUEST_PAGE != 0 || (shadow == 0) != (eventidx == 0)) {
        return -EINVAL;
    }
    c->shadow = shadow;
    c->eventidx = eventidx;
    return 0;
}

/* ---- queues ---------------------------------------------------------------------------------- */

int nvme_check_queue(uint32_t id, uint64_t address, uint32_t entries, const void *there)
{
    if (entries < 2 || entries > NVME_MAX_ENTRIES || address % GUEST_PAGE != 0) {
        return EINVAL;
    }
    return id == 0 || id > NVME_MAX_QUEUES ? EINVAL : there != NULL ? EEXIST : 0;
}

nvme_cq *nvme_cq_new(nvme_controller *c, uint32_t id, uint64_t address, uint32_t entries,
                     bool interrupts)
{
    nvme_cq *cq;

    errno = nvme_check_queue(id, address, entries, id <= NVME_MAX_QUEUES ? c->cqs[id] : NULL);
    if (errno != 0) {
        return NULL;
    }
    cq = calloc(1, sizeof(*cq));
    if (cq != NULL) {
        cq->controller = c;
        cq->id = id;
        cq->entries = entries;
        cq->address = address;
        cq->interrupts = interrupts;
        cq->coalesced = true;
        cq->phase = 1;
        cq->bad_head = NVME_NONE;
        c->cqs[id] = cq;
        atomic_store_explicit(&c->words[2 * id + 1], 0, memory_order_relaxed);
    }
    return cq;
}

void nvme_cq_set_coalescing(nvme_cq *cq, bool enabled)
{
    cq->coalesced = enabled;
}

int nvme_cq_free(nvme_cq *cq)
{
    if (cq == NULL) {
        return 0;
    }
    if (cq->users != 0) {
        return -EBUSY;
    }
    cq->controller->cqs[cq->id] = NULL;
    free(cq);
    return 0;
}

void nvme_count(const nvme_controller *c, nvme_counters *out)
{
    const uint64_t *from = (const uint64_t *)&c->counters;
    uint64_t *to = (uint64_t *)out;

    for (size_t i = 0; i < sizeof(*out) / sizeof(*to); i++) {
        to[i] = __atomic_load_n(&from[i], __ATOMIC_RELAXED);
    }
}
