/*
 * Guest memory, reached by PASID through the services and touched inside guarded() only: the guest
 * may unmap a piece between two calls, and cut a file short at any time.
 */
#include <errno.h>
#include <string.h>

#include "engine.h"

void dsa_leave(dsa_queue *q)
{
    q->services->leave(q->worker);
    q->record = NULL;
    q->held = 0;
}

static int guarded(dsa_queue *q, int (*body)(void *), void *argument)
{
    int result = q->services->guarded(q->worker, body, argument);

    q->cuts += result < 0;
    return result;
}

int dsa_fault(dsa_work *w, uint64_t address, bool write, uint8_t operand)
{
    w->fault_address = address;
    w->write = write;
    w->operand = operand;
    /* Nobody resolves a fault here; to a blocked descriptor it is an answered page request. */
    return dsa_flags(&w->d) & DSA_FLAG_BLOCK_ON_FAULT ? DSA_STATUS_PAGE_FAULT_BLOCKED
                                                     : DSA_STATUS_PAGE_FAULT;
}

/* How much of `length` bytes lies in the page of the first, or of the last. */
static uint32_t within_page(const dsa_work *w, uint64_t address, uint32_t length)
{
    uint32_t offset = w->backwards ? DSA_PAGE - 1 - (uint32_t)((address + length - 1) % DSA_PAGE)
                                   : (uint32_t)(address % DSA_PAGE);

    return length < DSA_PAGE - offset ? length : DSA_PAGE - offset;
}

static int reach_all(dsa_queue *q, dsa_work *w, dsa_job *job)
{
    uint32_t length = job->length;

    for (unsigned i = 0; i < job->count; i++) {
        dsa_operand *o = &job->operands[i];
        void *memory;
        uint64_t here;

        if (q->services->reach(q->worker, w->data_pasid, o->address, job->length, o->write, &memory,
                               &here) != 0) {
            uint64_t address = w->backwards ? o->address + (length - 1) : o->address;

            return dsa_fault(w, address, o->write, o->id);
        }
        o->memory = memory;
        if (here < job->length) {
            job->length = (uint32_t)here;
        }
    }
    return DSA_MORE;
}

/* The last bytes of every operand that lie in one page. */
static void to_last_page(const dsa_work *w, dsa_job *job)
{
    uint32_t length = job->length;

    for (unsigned i = 0; i < job->count; i++) {
        uint64_t end = job->operands[i].address + job->length;
        uint32_t most = within_page(w, end - length, length);

        length = most < length ? most : length;
    }
    for (unsigned i = 0; i < job->count; i++) {
        job->operands[i].address += job->length - length;
    }
    job->length = length;
}

int dsa_reach(dsa_queue *q, dsa_work *w, dsa_job *job)
{
    uint32_t wanted = job->length;

    if (w->backwards) {
        if (!w->careful && reach_all(q, w, job) == DSA_MORE && job->length == wanted) {
            return DSA_MORE;
        }
        job->length = wanted;
        to_last_page(w, job);
    } else if (w->careful) {
        for (unsigned i = 0; i < job->count; i++) {
            job->length = within_page(w, job->operands[i].address, job->length);
        }
    }
    return reach_all(q, w, job);
}

static int probe(void *argument)
{
    const volatile uint8_t *byte = argument;

    (void)*byte;
    return 0;
}

int dsa_touch(dsa_queue *q, dsa_work *w, dsa_job *job, int (*body)(void *), int *result)
{
    const dsa_operand *o;
    unsigned i;

    *result = guarded(q, body, job);
    if (*result >= 0) {
        return DSA_MORE;
    }
    if (!w->careful) {
        w->careful = true;
        return DSA_MORE;
    }
    for (i = 0; i + 1 < job->count; i++) {
        if (guarded(q, probe, job->operands[i].memory) < 0) {
            break;
        }
    }
    o = &job->operands[i];
    return dsa_fault(w, w->backwards ? o->address + (job->length - 1) : o->address, o->write,
                     o->id);
}

struct copy {
    void *to;
    const void *from;
    uint32_t length;
};

static int copy(void *argument)
{
    const struct copy *c = argument;

    memcpy(c->to, c->from, c->length);
    return 0;
}

static uint32_t transfer(dsa_queue *q, dsa_work *w, uint32_t pasid, uint8_t operand,
                         uint64_t address, void *buffer, uint32_t length, bool write)
{
    uint32_t done = 0;

    while (done < length) {
        uint8_t *mine = (uint8_t *)buffer + done;
        uint32_t rest = DSA_PAGE - (uint32_t)((address + done) % DSA_PAGE);
        struct copy c = {.length = length - done < rest ? length - done : rest};
        void *memory;
        uint64_t here;

        if (q->services->reach(q->worker, pasid, address + done, c.length, write, &memory,
                               &here) != 0) {
            dsa_fault(w, address + done, write, operand);
            break;
        }
        c.length = (uint32_t)here;
        c.to = write ? memory : mine;
        c.from = write ? mine : memory;
        if (guarded(q, copy, &c) < 0) {
            dsa_fault(w, address + done, write, operand);
            break;
        }
        done += c.length;
    }
    return done;
}

uint32_t dsa_read(dsa_queue *q, dsa_work *w, uint32_t pasid, uint8_t operand, uint64_t address,
                  void *buffer, uint32_t length)
{
    return transfer(q, w, pasid, operand, address, buffer, length, false);
}

uint32_t dsa_write(dsa_queue *q, dsa_work *w, uint8_t operand, uint64_t address,
                   const void *buffer, uint32_t length)
{
    return transfer(q, w, w->data_pasid, operand, address, (void *)buffer, length, true);
}

bool dsa_reach_record(dsa_queue *q, const dsa_work *w)
{
    void *memory;
    uint64_t here;

    q->record = NULL;
    /* 32 bytes aligned to 32 lie in one page. Of restored work nothing has been checked here. */
    if (w->d.completion % sizeof(dsa_completion) != 0 ||
        q->services->reach(q->worker, w->record_pasid, w->d.completion, sizeof(dsa_completion),
                           true, &memory, &here) != 0 ||
        here < sizeof(dsa_completion)) {
        return false;
    }
    q->record = memory;
    return true;
}

struct store {
    uint64_t *to;
    const dsa_completion *record;
};

/*
 * The first word is put together in a register: to load what has just been stored in narrower pieces
 * would have to wait for all stores before it, those of a whole move among them.
 */
static int store(void *argument)
{
    const struct store *s = argument;
    const dsa_completion *r = s->record;
    uint64_t first = (uint64_t)r->completed << 32 | (uint32_t)r->fault_info << 16 |
                     (uint32_t)r->result << 8 | r->status;

    memcpy(&s->to[1], (const uint64_t *)r + 1, sizeof(*r) - sizeof(first));
    /* The status is in this word: pairs with the guest's acquire, or its load and lfence. */
    __atomic_store_n(&s->to[0], first, __ATOMIC_RELEASE);
    return 0;
}

bool dsa_write_record(dsa_queue *q, const dsa_work *w, const dsa_completion *record)
{
    struct store s = {.record = record};

    if (q->record == NULL && !dsa_reach_record(q, w)) {
        return false;
    }
    s.to = (uint64_t *)q->record;
    return guarded(q, store, &s) >= 0;
}
