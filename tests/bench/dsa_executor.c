/*
 * The DSA's executor alone, on flat memory: descriptors of 64 bytes a second, and GB/s of memory
 * move from 4 KiB to 1 MiB beside plain memcpy. Build with VDCM_BENCH; prints, and decides nothing.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "fastpath.h"
#include "queue.h"

enum { MEMORY = 64 << 20, RECORDS = 1 << 20, QUEUE = 128 };

static uint8_t *memory;

static int reach(vdcm_worker *worker, uint32_t pasid, uint64_t address, uint64_t length, bool write,
                 void **out, uint64_t *here)
{
    (void)worker;
    (void)pasid;
    (void)write;
    if (address >= MEMORY) {
        return -EFAULT;
    }
    *out = memory + address;
    *here = length < MEMORY - address ? length : MEMORY - address;
    return 0;
}

static void leave(vdcm_worker *worker)
{
    (void)worker;
}

static int guarded(vdcm_worker *worker, int (*body)(void *), void *argument)
{
    (void)worker;
    return body(argument);
}

static uint32_t pasid_of(vdcm_worker *worker)
{
    (void)worker;
    return 1;
}

static uint32_t translate(vdcm_worker *worker, uint32_t pasid)
{
    (void)worker;
    return pasid;
}

static int raise_message(vdcm_worker *worker, uint32_t message)
{
    (void)worker;
    (void)message;
    return 0;
}

static bool report(vdcm_worker *worker, uint32_t code, const void *data, uint32_t size)
{
    (void)worker;
    (void)code;
    (void)data;
    (void)size;
    return true;
}

static double now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

/* Seconds for `count` moves of `size` bytes, QUEUE in flight. */
static double moves(dsa_queue *q, uint32_t size, uint32_t count)
{
    const vdcm_fastpath *fastpath = (const vdcm_fastpath *)dsa_fastpath();
    uint32_t room = (MEMORY - RECORDS) / 2 / size;
    uint32_t submitted = 0;
    double start = now();

    while (submitted < count || fastpath->pending(q)) {
        while (submitted < count) {
            uint32_t at = submitted % room * size;
            dsa_descriptor d = {
                .operation = (uint32_t)DSA_OP_MEMORY_MOVE << 24 | DSA_FLAG_COMPLETION_VALID |
                             DSA_FLAG_REQUEST_COMPLETION,
                .completion = submitted % QUEUE * sizeof(dsa_completion),
                .source = RECORDS + at,
                .destination = RECORDS + (MEMORY - RECORDS) / 2 + at,
                .size = size,
            };

            if (dsa_submit(q, 0, &d) != 0) {
                break;
            }
            submitted++;
        }
        fastpath->run(q, NULL, 64 << 10);
    }
    return now() - start;
}

static double copies(uint32_t size, uint32_t count)
{
    uint32_t room = (MEMORY - RECORDS) / 2 / size;
    double start = now();

    for (uint32_t i = 0; i < count; i++) {
        uint32_t at = i % room * size;

        memcpy(memory + RECORDS + (MEMORY - RECORDS) / 2 + at, memory + RECORDS + at, size);
        __asm__ volatile("" ::: "memory");
    }
    return now() - start;
}

int main(void)
{
    static const vdcm_services services = {.abi = VDCM_FASTPATH_ABI,
                                           .reach = reach,
                                           .leave = leave,
                                           .guarded = guarded,
                                           .primary = pasid_of,
                                           .secondary = pasid_of,
                                           .translate = translate,
                                           .raise = raise_message,
                                           .report = report};
    dsa_settings settings = {.size = QUEUE,
                             .max_transfer = 1 << 21,
                             .max_batch = 32,
                             .operations = {UINT64_MAX}};
    dsa_queue *q = dsa_queue_new(NULL, (uintptr_t)&services);

    memory = aligned_alloc(4096, MEMORY);
    if (q == NULL || memory == NULL || dsa_queue_configure(q, &settings) != 0) {
        fprintf(stderr, "dsa_executor: no memory\n");
        return 1;
    }
    memset(memory, 0x5a, MEMORY);
    moves(q, 64, 1 << 18);
    printf("64 B: %.2f M descriptors/s\n", (1 << 22) / moves(q, 64, 1 << 22) / 1e6);
    for (uint32_t size = 4 << 10; size <= 1 << 20; size *= 4) {
        uint32_t count = (UINT32_C(1) << 31) / size;
        double best[2] = {1e9, 1e9};

        for (int i = 0; i < 5; i++) { /* the best of each: other work comes and goes */
            double move = moves(q, size, count);
            double copy = copies(size, count);

            best[0] = move < best[0] ? move : best[0];
            best[1] = copy < best[1] ? copy : best[1];
        }
        printf("%4u KiB: move %5.2f GB/s, memcpy %5.2f GB/s, %.2f\n", size >> 10,
               (double)size * count / best[0] / 1e9, (double)size * count / best[1] / 1e9,
               best[1] / best[0]);
    }
    dsa_queue_free(q);
    free(memory);
    return 0;
}
