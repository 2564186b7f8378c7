/* The intercepted portals of one VDEV: stores become descriptors (9.3). See queue.h. */
#include <errno.h>
#include <stdlib.h>

#include "engine.h"

enum { SLOT = sizeof(dsa_descriptor), PORTAL = 4096 };

#define COMPLETE UINT64_MAX /* a bit for each byte of a slot */

/* A slot that is being written. A byte that is written twice holds what came last. */
struct part {
    uint64_t slot; /* counted from the beginning of the BAR */
    uint64_t age;
    uint64_t written;
    uint8_t data[SLOT];
};

struct dsa_gate {
    dsa_queue *queue; /* NULL: descriptors are Python's */
    vdcm_queue *engine;
};

struct dsa_portals {
    uint32_t wqs;
    uint32_t n_parts;
    uint64_t clock;
    struct part parts[DSA_MAX_PARTS];
    struct dsa_gate gates[];
};

dsa_portals *dsa_portals_new(uint32_t wqs)
{
    dsa_portals *p = calloc(1, sizeof(*p) + wqs * sizeof(p->gates[0]));

    if (p != NULL) {
        p->wqs = wqs;
    }
    return p;
}

void dsa_portals_free(dsa_portals *p)
{
    for (uint32_t wq = 0; p != NULL && wq < p->wqs; wq++) {
        dsa_portals_open(p, wq, NULL, 0);
    }
    free(p);
}

void dsa_portals_open(dsa_portals *p, uint32_t wq, dsa_queue *queue, uintptr_t engine)
{
    struct dsa_gate *gate = &p->gates[wq];

    if (gate->queue != NULL) {
        dsa_queue_shut(gate->queue);
    }
    if (queue != NULL) {
        dsa_queue_shut(queue);
        queue->gate = gate;
        gate->queue = queue;
        gate->engine = (vdcm_queue *)engine;
    }
}

void dsa_queue_shut(dsa_queue *q)
{
    if (q->gate != NULL) {
        q->gate->queue = NULL;
        q->gate = NULL;
    }
}

/* The slot's part; a new one if there is none, in the place of the oldest if there are too many. */
static struct part *part_of(dsa_portals *p, uint64_t slot)
{
    struct part *part = NULL;

    for (uint32_t i = 0; i < p->n_parts; i++) {
        if (p->parts[i].slot == slot) {
            return &p->parts[i];
        }
        if (part == NULL || p->parts[i].age < part->age) {
            part = &p->parts[i];
        }
    }
    if (p->n_parts < DSA_MAX_PARTS) {
        part = &p->parts[p->n_parts++];
    }
    part->slot = slot;
    part->age = p->clock++;
    part->written = 0;
    return part;
}

static void drop(dsa_portals *p, struct part *part)
{
    *part = p->parts[--p->n_parts];
}

/* NULL: the store is none to a portal, or not naturally aligned. */
static struct part *put(dsa_portals *p, uint64_t offset, uint32_t width, uint64_t value)
{
    uint32_t at = offset % SLOT;
    struct part *part;

    if (offset >= (uint64_t)p->wqs * DSA_PORTALS * PORTAL || width == 0 || width > sizeof(value) ||
        offset % width != 0) {
        return NULL;
    }
    part = part_of(p, offset / SLOT);
    memcpy(part->data + at, &value, width);
    part->written |= ((UINT64_C(1) << width) - 1) << at;
    return part;
}

bool dsa_portals_write(dsa_portals *p, uint64_t offset, uint32_t width, uint64_t value,
                       void *descriptor)
{
    struct part *part = put(p, offset, width, value);

    if (part == NULL || part->written != COMPLETE) {
        return false;
    }
    memcpy(descriptor, part->data, SLOT);
    drop(p, part);
    return true;
}

/* The vdcm_store. What is for Python stays complete: its own dsa_portals_write() finds it so. */
static int store(void *portals, uint64_t offset, uint32_t width, uint64_t value)
{
    dsa_portals *p = portals;
    struct part *part = put(p, offset, width, value);
    struct dsa_gate *gate;
    uint32_t portal;
    int error;

    if (part == NULL) {
        return VDCM_STORE_PASS;
    }
    if (part->written != COMPLETE) {
        return 0;
    }
    gate = &p->gates[offset / PORTAL / DSA_PORTALS];
    portal = offset / PORTAL % DSA_PORTALS;
    if (gate->queue == NULL || portal >= DSA_PORTALS / 2) { /* guests have no IMS (3.3) */
        return VDCM_STORE_PASS;
    }
    if (dsa_monitored(gate->queue)) {
        return VDCM_STORE_PASS; /* a counter that overflows has to be told of */
    }
    if (gate->queue->wq == NULL && dsa_queue_occupancy(gate->queue) >= gate->queue->settings.size) {
        return VDCM_STORE_PASS; /* it has to be told in SWERROR */
    }
    error = dsa_submit(gate->queue, portal, part->data);
    if (error != 0 && error != -EAGAIN) {
        return VDCM_STORE_PASS;
    }
    drop(p, part);
    if (error == 0) {
        gate->queue->services->kick(gate->engine);
    }
    return -error;
}

uintptr_t dsa_portals_store(void)
{
    vdcm_store *function = store;

    return (uintptr_t)function;
}

void dsa_portals_forget(dsa_portals *p, uint32_t wq)
{
    uint64_t slots = (uint64_t)DSA_PORTALS * PORTAL / SLOT;

    for (uint32_t i = p->n_parts; i-- > 0;) {
        if (p->parts[i].slot / slots == wq) {
            drop(p, &p->parts[i]);
        }
    }
}

uint32_t dsa_portals_incomplete(const dsa_portals *p)
{
    return p->n_parts;
}
