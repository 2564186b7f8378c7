/*
 * Guest memory, reached by PASID through the services and touched inside guarded() only: the guest may
 * unmap a piece between two calls, and cut a file short at any time.
 */
#include <errno.h>

#include "engine.h"

int avf_reach(avf_switch *s, vdcm_worker *worker, avf_window *window, uint64_t address,
              uint64_t length, bool write, void **memory, uint64_t *here)
{
    uint64_t at = address - window->address;
    int error;

    if (at >= window->length) {
        error = s->services->reach(worker, s->services->primary(worker), address, UINT32_MAX,
                                   window->write, memory, here);
        if (error != 0) {
            return error;
        }
        window->address = address;
        window->length = *here;
        window->memory = *memory;
        window->used[window->write] -= (int64_t)*here;
        at = 0;
    }
    *memory = window->memory + at;
    *here = length < window->length - at ? length : window->length - at;
    window->used[write] += (int64_t)*here;
    return 0;
}

void avf_settle(avf_switch *s, vdcm_worker *worker, avf_window *window)
{
    if ((window->used[false] | window->used[true]) != 0) {
        s->services->used(worker, window->used[false], window->used[true]);
        window->used[false] = window->used[true] = 0;
    }
}

int avf_reach_source(avf_switch *s, vdcm_worker *worker, uint64_t *address)
{
    avf_source *source = &s->source;

    if (source->reached || source->own) {
        return 0;
    }
    source->n_pieces = 0;
    for (uint32_t i = 0; i < source->n_buffers; i++) {
        uint32_t done = 0;

        while (done < source->buffers[i].length) {
            void *memory;
            uint64_t here;
            int error;

            *address = source->buffers[i].address + done;
            if (source->n_pieces == AVF_MAX_CHAIN * AVF_PIECES) {
                return -EFAULT;
            }
            error = avf_reach(s, worker, &s->from, *address, source->buffers[i].length - done,
                              false, &memory, &here);
            if (error != 0) {
                return error;
            }
            source->pieces[source->n_pieces].memory = memory;
            source->pieces[source->n_pieces++].length = (uint32_t)here;
            done += (uint32_t)here;
        }
    }
    source->reached = true;
    return 0;
}

void avf_leave(avf_switch *s, vdcm_worker *worker)
{
    avf_settle(s, worker, &s->from);
    s->services->leave(worker);
    s->source.reached = false;
    s->inside = NULL;
    s->held = 0;
    s->from.length = s->to.length = s->ring.length = 0;
}

struct copy {
    uint8_t *to;
    const uint8_t *from;
    const avf_source *source;
    uint32_t length;
};

static int copy(void *argument)
{
    const struct copy *c = argument;

    memcpy(c->to, c->from, c->length);
    return 0;
}

int avf_copy(avf_switch *s, vdcm_worker *worker, void *to, const void *from, uint32_t length)
{
    struct copy c = {.to = to, .from = from, .length = length};

    return s->services->guarded(worker, copy, &c);
}

static int copy_head(void *argument)
{
    const struct copy *c = argument;
    uint32_t done = 0;

    for (uint32_t i = 0; done < c->length; i++) {
        uint32_t here = c->source->pieces[i].length;

        here = here < c->length - done ? here : c->length - done;
        memcpy(c->to + done, c->source->pieces[i].memory, here);
        done += here;
    }
    return 0;
}

int avf_copy_head(avf_switch *s, vdcm_worker *worker, uint8_t *to, uint32_t length)
{
    struct copy c = {.to = to, .source = &s->source, .length = length};

    return s->services->guarded(worker, copy_head, &c);
}

static int probe(void *argument)
{
    const avf_source *source = argument;

    for (uint32_t i = 0; i < source->n_pieces; i++) {
        const volatile uint8_t *memory = source->pieces[i].memory;

        (void)memory[0];
        (void)memory[source->pieces[i].length - 1];
    }
    return 0;
}

int avf_probe_source(avf_switch *s, vdcm_worker *worker)
{
    return s->source.reached ? s->services->guarded(worker, probe, &s->source) : 0;
}

void avf_offend(avf_port *p, vdcm_worker *worker, uint32_t code, bool transmit, uint32_t queue,
                uint64_t value, int error)
{
    const avf_offence offence = {
        .value = value, .queue = queue, .error = error, .transmit = transmit};

    if (!p->broken) {
        p->broken = true;
        atomic_store_explicit(&p->ready, 0, memory_order_relaxed);
        (void)p->its->services->report(worker, code, &offence, sizeof(offence));
    }
}
