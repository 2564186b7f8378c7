/*
 * A guest with shadow doorbells (NVMe 1.4, 5.7 and 7.13) and the sweep, each in a thread of its own: the
 * guest writes the register only when the event index asks for it, the sweep stops looking when it has
 * said so. Nobody is to be left alone, and no entry to be seen before it is written (TSan knows).
 *
 *     nvme_shadow_stress COMMANDS SEED
 */
#include <pthread.h>
#include <time.h>

#include "nvme_flat.h"

enum { SQ = 0, CQ = PAGE, SHADOW = 2 * PAGE, EVENTIDX = 3 * PAGE, ENTRIES = 8, PLACES = 4 };

static atomic_bool kicked;
static atomic_bool over;
static nvme_sq *queue;
static unsigned long exits, rests, restless;

/* ---- the sweep ------------------------------------------------------------------------------- */

static void *sweep(void *argument)
{
    const vdcm_fastpath *f = (const vdcm_fastpath *)nvme_fastpath();
    uint32_t state = *(uint32_t *)argument + 1;

    while (!atomic_load(&over)) {
        if (!atomic_exchange(&kicked, false)) {
            sched_yield();
            continue;
        }
        for (bool awake = true; awake;) {
            for (uint32_t looks = random_below(&state, 5) + 1; looks > 0; looks--) {
                f->take(queue, NULL);
                while (f->ready(queue)) {
                    f->run(queue, NULL, random_below(&state, 2000) + 1);
                    f->take(queue, NULL);
                }
            }
            awake = !f->rest(queue, NULL);
            rests++;
            restless += awake;
        }
    }
    return NULL;
}

/* ---- the guest ------------------------------------------------------------------------------- */

static _Atomic uint32_t *word(uint64_t base, uint32_t doorbell)
{
    return (_Atomic uint32_t *)(void *)(memory + base + 4 * doorbell);
}

static void ring(uint32_t doorbell, uint32_t value)
{
    uint32_t old = atomic_load_explicit(word(SHADOW, doorbell), memory_order_relaxed);
    uint32_t event;

    atomic_store(word(SHADOW, doorbell), value);
    event = atomic_load(word(EVENTIDX, doorbell));
    if ((uint16_t)(value - event - 1) < (uint16_t)(value - old)) {
        exits++;
        atomic_store(&kicked, true);
    }
}

static bool done(uint32_t head, uint32_t phase)
{
    const uint64_t *entry = (const uint64_t *)(void *)(memory + CQ) + 2 * head;

    return (__atomic_load_n(&entry[1], __ATOMIC_ACQUIRE) >> 48 & 1) == phase;
}

static int guest(unsigned long commands, uint32_t state)
{
    unsigned long submitted = 0;
    unsigned long ended = 0;
    uint32_t tail = 0;
    uint32_t head = 0;
    uint32_t phase = 1;

    while (ended < commands) {
        uint32_t batch = random_below(&state, ENTRIES - 1) + 1;
        time_t deadline = time(NULL) + 20;

        for (; batch > 0 && submitted < commands && submitted - ended < ENTRIES - 1; batch--) {
            nvme_command *c = (nvme_command *)(void *)(memory + SQ) + tail;

            *c = (nvme_command){.opcode = NVME_FLUSH, .cid = (uint16_t)submitted++, .nsid = 1};
            tail = (tail + 1) % ENTRIES;
        }
        ring(2, tail);
        while (!done(head, phase)) {
            if (time(NULL) > deadline) {
                printf("left alone after %lu of %lu\n", ended, submitted);
                return 1;
            }
            sched_yield();
        }
        while (done(head, phase)) {
            head = (head + 1) % PLACES;
            phase ^= head == 0;
            ended++;
            if (random_below(&state, 3) == 0) {
                ring(3, head);
            }
        }
        ring(3, head);
        if (random_below(&state, 8) == 0) {
            sched_yield();
        }
    }
    return 0;
}

int main(int argc, char **argv)
{
    unsigned long commands = strtoul(argv[argc - 2], NULL, 10);
    uint32_t seed = (uint32_t)strtoul(argv[argc - 1], NULL, 10);
    nvme_controller *c = nvme_controller_new((uintptr_t)&flat_services);
    nvme_store *store = nvme_store_ram(1 << 20);
    pthread_t thread;
    nvme_cq *cq;
    int failed = nvme_namespace_set(c, 1, store, 0, 8, 9, false) || nvme_shadow_set(c, SHADOW, EVENTIDX);

    cq = nvme_cq_new(c, 1, CQ, PLACES, true);
    queue = nvme_sq_new(c, 1, SQ, ENTRIES, cq);
    memset(flat_page, FLAT_READ | FLAT_WRITE, sizeof(flat_page));
    if (failed || queue == NULL || pthread_create(&thread, NULL, sweep, &seed) != 0) {
        return 2;
    }
    failed = guest(commands, seed);
    atomic_store(&over, true);
    pthread_join(thread, NULL);
    if (failed || reports[NVME_REPORT_DOORBELL] + reports[NVME_REPORT_FATAL] != 0) {
        return 1;
    }
    printf("%lu commands; %lu exits, %lu rests, %lu in vain\n", commands, exits, rests, restless);
    return 0;
}
