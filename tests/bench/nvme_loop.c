/*
 * What a user-space driver of the NVMe controller does in its hot loop. Called from Python, in no message
 * and no callback: queues, data and doorbells are memory that is shared with the controller.
 */
#define _GNU_SOURCE
#include <sched.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <time.h>

enum { BLOCK = 512, PAGE = 4096, READ = 2 };
#define PATIENCE_NS UINT64_C(5000000000) /* after which a command is said to be lost */

struct queue {
    uint8_t *memory;  /* all that the controller reaches, at guest address 0 */
    uint64_t sq, cq;  /* offsets in it */
    uint64_t lists;   /* of a PRP list for each command */
    uint64_t data;    /* of the buffers, `size` bytes each */
    uint32_t *tail;   /* doorbells */
    uint32_t *head;
    uint32_t entries;
    uint32_t sq_tail, cq_head, phase;
    uint32_t patience; /* looks in vain before the CPU is given away */
};

struct entry {
    uint8_t opcode, flags;
    uint16_t cid;
    uint32_t nsid;
    uint64_t reserved, mptr, prp1, prp2;
    uint32_t slba, slba_high, nlb, words[3];
};

static uint64_t now(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

static void submit(struct queue *q, uint8_t opcode, uint16_t cid, uint64_t lba, uint32_t size)
{
    struct entry *e = (struct entry *)(q->memory + q->sq) + q->sq_tail;
    uint64_t buffer = q->data + (uint64_t)cid * size;

    *e = (struct entry){.opcode = opcode,
                        .cid = cid,
                        .nsid = 1,
                        .prp1 = buffer,
                        .prp2 = size <= 2 * PAGE ? buffer + PAGE : q->lists + (uint64_t)cid * PAGE,
                        .slba = (uint32_t)lba,
                        .slba_high = (uint32_t)(lba >> 32),
                        .nlb = size / BLOCK - 1};
    q->sq_tail = q->sq_tail + 1 == q->entries ? 0 : q->sq_tail + 1;
}

static void ring(struct queue *q)
{
    __atomic_store_n(q->tail, q->sq_tail, __ATOMIC_RELEASE);
}

/* The next completion's command, -1 if there is none; `bad` becomes true if it did not succeed. */
static int32_t reap(struct queue *q, bool *bad)
{
    const uint64_t *e = (const uint64_t *)(q->memory + q->cq) + 2 * q->cq_head;
    uint64_t word = __atomic_load_n(&e[1], __ATOMIC_ACQUIRE);

    if ((word >> 48 & 1) != q->phase) {
        return -1;
    }
    *bad |= word >> 49 != 0;
    if (++q->cq_head == q->entries) {
        q->cq_head = 0;
        q->phase ^= 1;
    }
    return (int32_t)(word >> 32 & 0xffff);
}

/* `last` is when the CPU was given away first in vain, 0 before that. True: too long ago. */
static bool pass_time(const struct queue *q, uint32_t *looks, uint64_t *last)
{
    if ((*looks)++ >= q->patience) {
        uint64_t time = now();

        sched_yield();
        *looks = 0;
        *last = *last != 0 ? *last : time;
        return time - *last > PATIENCE_NS;
    }
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#endif
    return false;
}

/* Lists of whole pages, for commands of `size` bytes. */
void nvme_lists(struct queue *q, uint32_t depth, uint32_t size)
{
    for (uint32_t i = 0; i < depth; i++) {
        uint64_t *list = (uint64_t *)(q->memory + q->lists + (uint64_t)i * PAGE);

        for (uint32_t k = 1; k < size / PAGE; k++) {
            list[k - 1] = q->data + (uint64_t)i * size + (uint64_t)k * PAGE;
        }
    }
}

/*
 * `count` commands of `size` bytes each on `n` queues in turn, `depth` under way on each, at places of
 * the namespace (of `blocks`) that jump about. Nanoseconds; 0 if one did not succeed.
 */
uint64_t nvme_stream(struct queue *queues, uint32_t n, uint8_t opcode, uint32_t size, uint64_t blocks,
                     uint32_t depth, uint64_t count)
{
    uint64_t start = now();
    uint64_t state = 88172645463325252u;
    uint64_t submitted = 0;
    uint64_t ended = 0;
    uint64_t places = blocks * BLOCK / size;
    uint64_t last = 0;
    uint32_t looks = 0;
    bool bad = false;

    for (uint32_t k = 0; k < n; k++) {
        for (uint32_t i = 0; i < depth && submitted < count; i++, submitted++) {
            submit(&queues[k], opcode, (uint16_t)i, submitted % places * (size / BLOCK), size);
        }
        ring(&queues[k]);
    }
    while (ended < submitted && !bad) {
        bool any = false;

        for (uint32_t k = 0; k < n; k++) {
            struct queue *q = &queues[k];
            uint32_t before = q->sq_tail;
            bool some = false;
            int32_t cid;

            while ((cid = reap(q, &bad)) >= 0) {
                some = true;
                ended++;
                if (submitted < count) {
                    state ^= state << 13;
                    state ^= state >> 7;
                    state ^= state << 17;
                    submit(q, opcode, (uint16_t)cid, state % places * (size / BLOCK), size);
                    submitted++;
                }
            }
            if (some) {
                __atomic_store_n(q->head, q->cq_head, __ATOMIC_RELEASE);
                if (q->sq_tail != before) {
                    ring(q);
                }
                any = true;
            }
        }
        if (any) {
            looks = 0;
            last = 0;
        } else {
            bad |= pass_time(&queues[0], &looks, &last);
        }
    }
    return bad ? 0 : now() - start;
}

/* One command at a time, `count` times after a pause of `pause_us`; nanoseconds go to `samples`. */
int nvme_latency(struct queue *q, uint8_t opcode, uint32_t size, uint64_t count, uint32_t pause_us,
                 uint64_t *samples)
{
    const struct timespec pause = {.tv_sec = pause_us / 1000000, .tv_nsec = pause_us % 1000000 * 1000};
    bool bad = false;

    for (uint64_t i = 0; i < count; i++) {
        uint64_t start;
        uint64_t last = 0;
        uint32_t looks = 0;

        if (pause_us != 0) {
            nanosleep(&pause, NULL);
        }
        start = now();
        submit(q, opcode, 0, i % 64 * (size / BLOCK), size);
        ring(q);
        while (reap(q, &bad) < 0) {
            if (pass_time(q, &looks, &last)) {
                return -1;
            }
        }
        __atomic_store_n(q->head, q->cq_head, __ATOMIC_RELEASE);
        samples[i] = now() - start;
    }
    return bad ? -1 : 0;
}

/*
 * The other side of `n` queues with as little as it takes: fetch, memcpy of `size` bytes in one piece, a
 * completion; no checks, no PRP lists, no isolation. What the driver's loop does with it is the limit.
 * Until *stop.
 */
void nvme_bare(struct queue *queues, uint32_t n, uint32_t size, uint8_t *store, const int *stop)
{
    while (!__atomic_load_n(stop, __ATOMIC_RELAXED)) {
        for (uint32_t k = 0; k < n; k++) {
            struct queue *q = &queues[k];
            uint32_t tail = __atomic_load_n(q->tail, __ATOMIC_ACQUIRE);

            while (q->sq_tail != tail) {
                const struct entry *e = (const struct entry *)(q->memory + q->sq) + q->sq_tail;
                uint64_t *c = (uint64_t *)(q->memory + q->cq) + 2 * q->cq_head;
                uint8_t *place = store + (uint64_t)e->slba * BLOCK;
                uint16_t cid = e->cid;

                memcpy(e->opcode == READ ? q->memory + e->prp1 : place,
                       e->opcode == READ ? place : q->memory + e->prp1, size);
                q->sq_tail = q->sq_tail + 1 == q->entries ? 0 : q->sq_tail + 1;
                c[0] = 0;
                __atomic_store_n(&c[1], (uint64_t)q->phase << 48 | (uint64_t)cid << 32 | q->sq_tail,
                                 __ATOMIC_RELEASE);
                q->cq_head = q->cq_head + 1 == q->entries ? 0 : q->cq_head + 1;
                q->phase ^= q->cq_head == 0;
            }
        }
#if defined(__x86_64__) || defined(__i386__)
        __builtin_ia32_pause();
#endif
    }
}

/* What memory itself can do: the same bytes between the same places, by memcpy. Nanoseconds. */
uint64_t nvme_memcpy(struct queue *q, uint8_t opcode, uint32_t size, uint8_t *store, uint64_t blocks,
                     uint32_t depth, uint64_t count)
{
    uint64_t start = now();
    uint64_t state = 88172645463325252u;
    uint64_t places = blocks * BLOCK / size;

    for (uint64_t i = 0; i < count; i++) {
        uint8_t *buffer = q->memory + q->data + i % depth * size;

        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        memcpy(opcode == READ ? buffer : store + state % places * size,
               opcode == READ ? store + state % places * size : buffer, size);
        __asm__ volatile("" ::: "memory");
    }
    return now() - start;
}
