/*
 * Interrupts of the queues: DYN_CTLN and ITRN on a page that the guest stores to without anybody being
 * told. What it has stored in DYN_CTLN is taken out of the register, in which only INTENA stays;
 * so anything else there is new. An interrupt clears INTENA (X710 datasheet, 7.5.3). Descriptors are
 * written back at once, so there is nothing to do for WB_ON_ITR.
 */
#include "engine.h"

enum {
    INTENA = 1 << 0,
    SWINT_TRIG = 1 << 2,
    NO_ITR = 3,
    INTERVAL = 0xfff,
    VECTORS = 16 /* registers of one ITR index */
};
#define INTENA_MSK (UINT32_C(1) << 31)
#define UNIT_NS UINT64_C(2000)

void avf_cause(avf_port *p, int32_t message, uint32_t itr)
{
    if (message < 0) {
        return;
    }
    p->vectors[message].causes |= (uint8_t)(1u << itr);
    p->caused |= 1u << message;
    if (!p->dirty) {
        p->dirty = true;
        p->next_dirty = p->its->dirty;
        p->its->dirty = p;
    }
}

/* What the driver has stored in DYN_CTLN, if anything. */
static void look(avf_port *p, uint32_t vector)
{
    avf_register *control = avf_at(p, AVF_DYN_CTLN, vector);
    uint32_t word = atomic_load_explicit(control, memory_order_acquire);
    uint32_t left = ((word & INTENA_MSK) != 0 ? p->controls[vector] : word) & INTENA;
    uint32_t index = word >> 3 & 3;

    /* The exchange fails if the driver stores something else now: that is for the next look. */
    if (word == p->controls[vector] ||
        !atomic_compare_exchange_strong_explicit(control, &word, left, memory_order_acq_rel,
                                                 memory_order_relaxed)) {
        return;
    }
    p->controls[vector] = left;
    if ((word & SWINT_TRIG) != 0) {
        p->vectors[vector].causes |= 1 << NO_ITR;
        p->caused |= 1u << vector;
    }
    if (index != NO_ITR && (word & ~(uint32_t)INTENA) != 0) {
        atomic_store_explicit(avf_at(p, AVF_ITRN, index * VECTORS + vector),
                              word >> 5 & INTERVAL, memory_order_relaxed);
    }
}

/* When the interrupt may be sent, in ns: the shortest interval of those that have a cause. */
static uint64_t due(const avf_port *p, uint32_t vector)
{
    const avf_vector *v = &p->vectors[vector];
    uint64_t shortest = UINT64_MAX;

    if ((v->causes >> NO_ITR & 1) != 0) {
        return 0;
    }
    for (uint32_t itr = 0; itr < NO_ITR; itr++) {
        if ((v->causes >> itr & 1) != 0) {
            uint64_t interval = atomic_load_explicit(
                                    avf_at(p, AVF_ITRN, itr * VECTORS + vector),
                                    memory_order_relaxed) &
                                INTERVAL;

            shortest = interval < shortest ? interval : shortest;
        }
    }
    return shortest == 0 ? 0 : v->sent + shortest * UNIT_NS;
}

/* Takes INTENA away: false if the driver stores something now, which is to be looked at first. */
static bool disarm(avf_port *p, uint32_t vector)
{
    uint32_t word = INTENA;

    if (!atomic_compare_exchange_strong_explicit(avf_at(p, AVF_DYN_CTLN, vector), &word, 0,
                                                 memory_order_acq_rel, memory_order_relaxed)) {
        return false;
    }
    p->controls[vector] = 0;
    return true;
}

/* Has the driver stored anything? Two registers at a time: it is looked at again and again. */
static bool changed(const avf_port *p)
{
    const uint64_t *now = (const uint64_t *)(const void *)(p->pages + AVF_DYN_CTLN);
    uint64_t difference = 0;

    for (uint32_t i = 0; i < AVF_QUEUES / 2; i++) {
        uint64_t known;

        memcpy(&known, &p->controls[2 * i], sizeof(known));
        difference |= __atomic_load_n(&now[i], __ATOMIC_RELAXED) ^ known;
    }
    return difference != 0;
}

void avf_interrupt(avf_port *p, vdcm_worker *worker)
{
    uint64_t now = 0;

    if (changed(p)) {
        for (uint32_t i = 0; i < AVF_QUEUES; i++) {
            look(p, i);
        }
    }
    p->held = false;
    for (uint32_t left = p->caused; left != 0; left &= left - 1) {
        uint32_t i = (uint32_t)__builtin_ctz(left);

        if (p->controls[i] == 0) {
            continue;
        }
        if (now == 0) {
            now = p->its->services->now();
        }
        if (now < due(p, i) || !disarm(p, i)) {
            p->held = true;
            continue;
        }
        p->vectors[i].causes = 0;
        p->vectors[i].sent = now;
        p->caused &= ~(1u << i);
        (void)p->its->services->raise(worker, i);
    }
}

static int interrupt(void *argument, vdcm_worker *other)
{
    avf_interrupt(argument, other);
    return 0;
}

void avf_interrupt_all(avf_switch *s, vdcm_worker *worker)
{
    while (s->dirty != NULL) {
        avf_port *p = s->dirty;

        s->dirty = p->next_dirty;
        p->dirty = false;
        if (p->handle != NULL && p->pages != NULL) {
            (void)s->services->on_behalf(worker, p->handle, interrupt, p);
        }
    }
}
