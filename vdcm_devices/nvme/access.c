/*
 * Guest memory, reached by PASID through the services and touched inside guarded() only: the guest
 * may unmap a piece between two calls, and cut a file short at any time.
 */
#include <errno.h>

#include "engine.h"

#ifdef __SSE2__
#include <emmintrin.h>
#endif

enum { LINE = 64, WORTH_STREAMING = 1024 };

int nvme_reach(nvme_sq *q, uint64_t address, uint64_t length, bool write, void **memory,
               uint64_t *here)
{
    const vdcm_services *s = q->controller->services;

    return s->reach(q->worker, s->secondary(q->worker), address, length, write, memory, here);
}

static int guarded(nvme_sq *q, int (*body)(void *), void *argument)
{
    int result = q->controller->services->guarded(q->worker, body, argument);

    q->cuts += result < 0;
    return result;
}

struct job {
    void *to;
    const void *from;
    uint64_t length;
};

static int copy(void *argument)
{
    const struct job *job = argument;

    memcpy(job->to, job->from, job->length);
    return 0;
}

int nvme_copy(nvme_sq *q, void *to, const void *from, uint64_t length)
{
    struct job job = {.to = to, .from = from, .length = length};

    return guarded(q, copy, &job);
}

/*
 * Into a store, past the caches: it is larger than they are, and to fetch its lines only to write all
 * of them takes half of what memory can do (measured: 4 KiB 1.3 to 2.5 million times a second).
 */
static int stream(void *argument)
{
    const struct job *job = argument;
    uint64_t done = 0;

#ifdef __SSE2__
    if ((uintptr_t)job->to % LINE == 0 && job->length >= WORTH_STREAMING) {
        for (; done + LINE <= job->length; done += LINE) {
            const __m128i *from = (const __m128i *)(const void *)((const uint8_t *)job->from + done);
            __m128i *to = (__m128i *)(void *)((uint8_t *)job->to + done);
            __m128i a = _mm_loadu_si128(from);
            __m128i b = _mm_loadu_si128(from + 1);
            __m128i c = _mm_loadu_si128(from + 2);
            __m128i d = _mm_loadu_si128(from + 3);

            _mm_stream_si128(to, a);
            _mm_stream_si128(to + 1, b);
            _mm_stream_si128(to + 2, c);
            _mm_stream_si128(to + 3, d);
        }
        _mm_sfence(); /* such stores are in no order; the completion comes behind them */
    }
#endif
    memcpy((uint8_t *)job->to + done, (const uint8_t *)job->from + done, job->length - done);
    return 0;
}

int nvme_stream(nvme_sq *q, void *to, const void *from, uint64_t length)
{
    struct job job = {.to = to, .from = from, .length = length};

    return guarded(q, stream, &job);
}

static int compare(void *argument)
{
    const struct job *job = argument;

    return memcmp(job->to, job->from, job->length) != 0;
}

int nvme_compare(nvme_sq *q, const void *a, const void *b, uint64_t length)
{
    struct job job = {.to = (void *)a, .from = b, .length = length};

    return guarded(q, compare, &job);
}

int nvme_read(nvme_sq *q, uint64_t address, void *buffer, uint64_t length)
{
    uint8_t *to = buffer;

    while (length > 0) {
        void *memory;
        uint64_t here;
        int error = nvme_reach(q, address, length, false, &memory, &here);

        if (error == 0) {
            error = nvme_copy(q, to, memory, here);
        }
        if (error != 0) {
            return error;
        }
        to += here;
        address += here;
        length -= here;
    }
    return 0;
}

static int load(void *argument)
{
    struct job *job = argument;

    /* Pairs with the guest's barrier before it stores the word: what it wrote before is seen. And
     * sequentially consistent, as the store below is: sq.c, rest(). */
    *(uint32_t *)job->to = atomic_load((const _Atomic uint32_t *)job->from);
    return 0;
}

/* Doorbell buffers are page aligned, so a word never lies in two pieces. */
int nvme_load(nvme_sq *q, uint64_t address, uint32_t *value)
{
    struct job job = {.to = value};
    void *memory;
    uint64_t here;
    int error = nvme_reach(q, address, sizeof(*value), false, &memory, &here);

    job.from = memory;
    return error != 0 ? error : guarded(q, load, &job);
}

static int store(void *argument)
{
    const struct job *job = argument;

    atomic_store((_Atomic uint32_t *)job->to, *(const uint32_t *)job->from);
    return 0;
}

int nvme_store_word(nvme_sq *q, uint64_t address, uint32_t value)
{
    struct job job = {.from = &value};
    uint64_t here;
    int error = nvme_reach(q, address, sizeof(value), true, &job.to, &here);

    return error != 0 ? error : guarded(q, store, &job);
}

void nvme_held(nvme_sq *q, uint64_t units)
{
    q->held += units;
    if (q->held + NVME_CHUNK > VDCM_HOLD_LIMIT) {
        q->controller->services->leave(q->worker);
        q->held = 0;
    }
}
