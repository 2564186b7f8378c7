/*
 * What the drivers of AVF VDEVs do in their hot loops. Called from Python, in no message and no callback:
 * rings, buffers and tails are memory that is shared with the switch. Each station sends to the next.
 */
#define _GNU_SOURCE
#include <sched.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <time.h>

enum { BATCH = 32, BUFFER = 2048, TX_BUFFERS = 64 };
#define EOP (UINT64_C(1) << 4)
#define RS (UINT64_C(1) << 5)
#define PATIENCE_NS UINT64_C(5000000000) /* after which a frame is said to be lost */

struct station {
    uint8_t *memory;   /* all that the switch reaches, at guest address 0 */
    uint64_t tx, rx;   /* offsets of the rings, */
    uint64_t to, from; /* of the buffers to receive into, and of TX_BUFFERS to send from */
    uint32_t *tx_tail;
    uint32_t *rx_tail;
    uint64_t flags; /* of a transmit descriptor */
    uint32_t entries; /* of either ring, a power of 2 */
    uint32_t patience; /* looks in vain before the CPU is given away */
    uint64_t sent, cleaned, received; /* since the beginning */
    uint64_t goal;
    uint64_t wrong; /* frames of another length */
};

static uint64_t now(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

static uint64_t *tx_at(struct station *s, uint64_t index)
{
    return (uint64_t *)(s->memory + s->tx) + index % s->entries * 2;
}

static uint64_t *rx_at(struct station *s, uint64_t index)
{
    return (uint64_t *)(s->memory + s->rx) + index % s->entries * 4;
}

/* Takes back what has been sent: a batch at a time, whose last descriptor asks for a report. */
static void clean(struct station *s)
{
    while (s->sent - s->cleaned >= BATCH &&
           (__atomic_load_n(tx_at(s, s->cleaned + BATCH - 1) + 1, __ATOMIC_ACQUIRE) & 15) == 15) {
        s->cleaned += BATCH;
    }
}

static bool send(struct station *s, const struct station *to, uint32_t size)
{
    /* No more than the receiver has buffers for. */
    if (s->sent - s->cleaned > s->entries - 2 * BATCH ||
        s->sent - to->received > s->entries - 2 * BATCH) {
        return false;
    }
    for (uint32_t i = 0; i < BATCH; i++, s->sent++) {
        uint64_t *d = tx_at(s, s->sent);

        d[0] = s->from + s->sent % TX_BUFFERS * BUFFER;
        d[1] = s->flags | EOP | (i == BATCH - 1 ? RS : 0) | (uint64_t)size << 34;
    }
    __atomic_store_n(s->tx_tail, (uint32_t)(s->sent % s->entries), __ATOMIC_RELEASE);
    return true;
}

static bool receive(struct station *s, uint32_t size)
{
    uint64_t before = s->received;

    for (;;) {
        uint64_t *d = rx_at(s, s->received);
        uint64_t word = __atomic_load_n(&d[1], __ATOMIC_ACQUIRE);

        if ((word & 1) == 0) {
            break;
        }
        s->wrong += (word >> 38 & 0x3fff) != size;
        d[1] = 0;
        d[0] = s->to + s->received % s->entries * BUFFER;
        s->received++;
        if (s->received % BATCH == 0) {
            __atomic_store_n(s->rx_tail, (uint32_t)((s->received - 1) % s->entries), __ATOMIC_RELEASE);
        }
    }
    return s->received != before;
}

/* All receive buffers but one. */
void avf_prepare(struct station *s)
{
    for (uint32_t i = 0; i < s->entries; i++) {
        uint64_t *d = rx_at(s, i);

        d[0] = s->to + (uint64_t)i * BUFFER;
        d[1] = d[2] = d[3] = 0;
    }
    __atomic_store_n(s->rx_tail, s->entries - 1, __ATOMIC_RELEASE);
}

/* At least `count` frames of `size` bytes by all together. Nanoseconds; 0 if one is lost or wrong. */
uint64_t avf_stream(struct station *stations, uint32_t n, uint32_t size, uint64_t count)
{
    uint64_t start = now();
    uint64_t each = (count / n + BATCH - 1) / BATCH * BATCH;
    uint64_t last = start;
    uint32_t looks = 0;
    uint32_t busy = n;

    for (uint32_t i = 0; i < n; i++) {
        stations[i].wrong = 0;
        stations[i].goal = stations[i].sent + each;
    }
    while (busy != 0) {
        bool any = false;

        busy = 0;
        for (uint32_t i = 0; i < n; i++) {
            struct station *s = &stations[i];
            struct station *to = &stations[(i + 1) % n];

            any |= receive(to, size);
            clean(s);
            if (s->sent < s->goal) {
                any |= send(s, to, size);
            }
            busy += to->received < s->goal || s->cleaned < s->goal;
        }
        if (any) {
            looks = 0;
        } else if (looks++ == stations[0].patience) {
            looks = 0;
            sched_yield();
            if (now() - last > PATIENCE_NS) {
                return 0;
            }
            continue;
        }
        if (looks == 0) {
            last = now();
        }
    }
    start = now() - start;
    for (uint32_t i = 0; i < n; i++) {
        if (stations[i].wrong != 0) {
            return 0;
        }
    }
    return start;
}

/* What memory itself can do: as many bytes between buffers of the same stations. Nanoseconds. */
uint64_t avf_memcpy(struct station *stations, uint32_t n, uint32_t size, uint64_t count)
{
    uint64_t start = now();

    for (uint64_t i = 0; i < count;) {
        for (uint32_t k = 0; k < n; k++) {
            struct station *s = &stations[k];
            struct station *to = &stations[(k + 1) % n];

            for (uint32_t j = 0; j < BATCH; j++, i++) {
                memcpy(to->memory + to->to + i / n % to->entries * BUFFER,
                       s->memory + s->from + i % TX_BUFFERS * BUFFER, size);
            }
        }
    }
    return now() - start;
}
