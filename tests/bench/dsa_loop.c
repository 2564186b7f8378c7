/*
 * What a user-space driver of the DSA does in its hot loop, and the memcpy to hold against it. Called
 * from Python, in no message and no callback: the portal is memory, so are descriptors and records.
 *
 * `portal`: a direct portal's page, whose slots are used in turn, `slot` being the next. `memory`:
 * guest memory, in which completion records come first, 64 bytes each.
 */
#define _GNU_SOURCE
#include <sched.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { SLOTS = 64, RECORD = 64, DESCRIPTOR = 64 };

struct driver {
    uint64_t *portal;
    uint32_t slot;
    uint32_t patience; /* looks in vain before the CPU is given away; 0 where it is the device's too */
    uint8_t *memory;
};

static uint64_t now(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

static void pass_time(const struct driver *d, uint32_t *looks)
{
    if ((*looks)++ >= d->patience) {
        sched_yield();
        *looks = 0;
        return;
    }
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#endif
}

static void submit(struct driver *d, const uint64_t *words)
{
    uint64_t *slot = d->portal + d->slot * (DESCRIPTOR / 8);
    uint32_t looks = 0;

    /* Pairs with the release of the device's store of 0: it has read the descriptor before. */
    while (__atomic_load_n(&slot[0], __ATOMIC_ACQUIRE) != 0) {
        pass_time(d, &looks);
    }
    memcpy(&slot[1], &words[1], DESCRIPTOR - 8);
    __atomic_store_n(&slot[0], words[0], __ATOMIC_RELEASE);
    d->slot = (d->slot + 1) % SLOTS;
}

static uint8_t *record_of(struct driver *d, uint32_t index)
{
    return d->memory + (uint64_t)index * RECORD;
}

/* The status, once it is written. */
static uint8_t finish(struct driver *d, uint32_t index)
{
    uint32_t looks = 0;
    uint8_t status;

    while ((status = __atomic_load_n(record_of(d, index), __ATOMIC_ACQUIRE)) == 0) {
        pass_time(d, &looks);
    }
    return status;
}

/*
 * `count` descriptors, `depth` of them under way, the i-th being number i % depth of `words`. Returns
 * nanoseconds; 0 if one did not succeed.
 */
uint64_t dsa_stream(struct driver *d, const uint64_t *words, uint32_t depth, uint64_t count)
{
    uint64_t start = now();
    bool good = true;

    for (uint64_t i = 0; i < count + depth; i++) {
        uint32_t index = (uint32_t)(i % depth);

        if (i >= depth && i - depth < count) {
            good &= finish(d, index) == 1;
        }
        if (i < count) {
            *record_of(d, index) = 0;
            submit(d, words + index * (DESCRIPTOR / 8));
        }
    }
    return good ? now() - start : 0;
}

/* The same by the CPU: `from` and `to` are offsets in memory, of `depth` buffers each. */
uint64_t dsa_memcpy(struct driver *d, uint64_t from, uint64_t to, uint64_t size, uint32_t depth,
                    uint64_t count)
{
    uint64_t start = now();

    for (uint64_t i = 0; i < count; i++) {
        uint64_t at = i % depth * size;

        memcpy(d->memory + to + at, d->memory + from + at, size);
        __asm__ volatile("" ::: "memory");
    }
    return now() - start;
}

/*
 * One descriptor at a time, `count` times after a pause of `pause_us`, each from the doorbell to its
 * completion record (or, with an eventfd, its interrupt). Nanoseconds go to `samples`.
 */
int dsa_latency(struct driver *d, const uint64_t *words, uint64_t count, uint32_t pause_us,
                int eventfd, uint64_t *samples)
{
    for (uint64_t i = 0; i < count; i++) {
        uint64_t start;
        uint64_t signals;

        if (pause_us != 0) {
            usleep(pause_us);
        }
        *record_of(d, 0) = 0;
        start = now();
        submit(d, words);
        if (eventfd >= 0) {
            while (read(eventfd, &signals, sizeof(signals)) != sizeof(signals)) {
            }
        }
        if (finish(d, 0) != 1) {
            return -1;
        }
        samples[i] = now() - start;
    }
    return 0;
}

/* The same through an intercepted portal: a message to the VDEV's socket, and its answer. */
int dsa_message_latency(struct driver *d, const uint64_t *words, uint64_t count, uint32_t pause_us,
                        int socket, uint32_t region, uint64_t offset, uint64_t *samples)
{
    struct {
        uint16_t id, command;
        uint32_t size, flags, error;
        uint64_t offset;
        uint32_t region, count;
        uint64_t words[DESCRIPTOR / 8];
    } message = {.command = 10 /* REGION_WRITE */,
                 .size = sizeof(message),
                 .offset = offset,
                 .region = region,
                 .count = DESCRIPTOR};
    char answer[32];

    memcpy(message.words, words, DESCRIPTOR);
    for (uint64_t i = 0; i < count; i++) {
        uint64_t start;

        if (pause_us != 0) {
            usleep(pause_us);
        }
        *record_of(d, 0) = 0;
        start = now();
        if (send(socket, &message, sizeof(message), 0) != sizeof(message) ||
            recv(socket, answer, sizeof(answer), MSG_WAITALL) != sizeof(answer) ||
            finish(d, 0) != 1) {
            return -1;
        }
        samples[i] = now() - start;
    }
    return 0;
}
