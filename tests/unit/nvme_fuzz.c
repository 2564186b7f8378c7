/*
 * A hostile guest: commands of random fields, in part likely ones, random PRP lists and SGLs that change
 * while they are read, doorbells of any value, pages that come and go. Every command that was taken ends
 * once, or the controller does; nothing outside the namespace changes. For the sanitizers.
 *
 *     nvme_fuzz COMMANDS SEED
 */
#include "nvme_flat.h"

enum {
    SQ = 0,
    CQ = PAGE,
    DATA = 4 * PAGE,
    ENTRIES = 64,
    SLICE = 64 << 10,
    STORE = 3 * SLICE,
    MARK = 0x5a
};

static uint32_t state;

static uint64_t some_address(void)
{
    static const uint64_t odd[] = {0, UINT64_MAX, UINT64_MAX - PAGE + 1, (uint64_t)FLAT_PAGES * PAGE,
                                   (uint64_t)FLAT_PAGES * PAGE - 16, UINT64_C(1) << 63};
    uint64_t page = random_below(&state, FLAT_PAGES - 4);

    switch (random_below(&state, 12)) {
    case 0:
        return odd[random_below(&state, sizeof(odd) / sizeof(odd[0]))];
    case 1:
        return DATA + page * PAGE + random_below(&state, PAGE);
    case 2:
        return DATA + page * PAGE + PAGE - 8 * random_below(&state, 4);
    default:
        return DATA + page * PAGE;
    }
}

static void some_words(uint8_t *at, size_t size)
{
    for (size_t i = 0; i < size; i++) {
        at[i] = (uint8_t)random_below(&state, 256);
    }
}

/* In a page of the guest's: PRP entries, descriptors of an SGL, or ranges. */
static void some_list(void)
{
    uint64_t *list = (uint64_t *)(void *)(memory + DATA +
                                          (uint64_t)random_below(&state, FLAT_PAGES - 4) * PAGE);
    uint32_t kind = random_below(&state, 3);

    for (uint32_t i = 0; i < PAGE / 8; i++) {
        if (kind == 0) {
            list[i] = some_address();
        } else if (i % 2 == 0) {
            list[i] = kind == 1 ? some_address() : random_below(&state, 64);
        } else if (kind == 1) {
            list[i] = (uint64_t)random_below(&state, 4) << 60 | random_below(&state, 9000) / 16 * 16;
        } else {
            list[i] = random_below(&state, 160);
        }
    }
}

static void some_command(nvme_command *c, uint16_t cid)
{
    some_words((uint8_t *)c, sizeof(*c));
    c->cid = cid;
    if (random_below(&state, 10) == 0) {
        return;
    }
    c->opcode = (uint8_t)random_below(&state, 14);
    c->flags = (uint8_t)(random_below(&state, 3) << 6);
    c->nsid = random_below(&state, 8) == 0 ? c->nsid : 1;
    c->dptr[0] = some_address();
    c->dptr[1] = some_address();
    if (c->flags != 0) {
        c->dptr[1] = (uint64_t)random_below(&state, 5) << 60 | random_below(&state, 300) * 16;
    }
    if (random_below(&state, 4) != 0) {
        c->cdw10 = random_below(&state, 130);
        c->cdw11 = c->opcode == NVME_DATASET_MANAGEMENT ? 4 : 0;
        c->cdw12 = random_below(&state, 2) << 30 | random_below(&state, 128);
    }
}

/* The guest's places are untouched, and so is what lies around the namespace. */
static void check(nvme_store *store)
{
    const uint8_t *bytes = (const uint8_t *)nvme_store_memory(store);

    for (uint32_t i = 0; i < STORE; i++) {
        if ((i < SLICE || i >= 2 * SLICE) && bytes[i] != MARK) {
            printf("byte %u of the store has changed\n", i);
            abort();
        }
    }
}

int main(int argc, char **argv)
{
    unsigned long commands = strtoul(argv[argc - 2], NULL, 10);
    const vdcm_fastpath *f = (const vdcm_fastpath *)nvme_fastpath();
    nvme_store *store = nvme_store_ram(STORE);
    unsigned long taken = 0;
    unsigned long ended = 0;
    unsigned long lives = 0;

    state = (uint32_t)strtoul(argv[argc - 1], NULL, 10);
    memset((uint8_t *)nvme_store_memory(store), MARK, STORE);
    while (taken < commands) {
        nvme_controller *c = nvme_controller_new((uintptr_t)&flat_services);
        nvme_cq *cq = nvme_cq_new(c, 1, CQ, ENTRIES, true);
        nvme_sq *q = nvme_sq_new(c, 1, SQ, ENTRIES, cq);
        uint32_t tail = 0;
        nvme_sq_state look;

        if (q == NULL || nvme_namespace_set(c, 1, store, SLICE, SLICE >> 9, 9, false) != 0) {
            return 2;
        }
        lives++;
        memset(flat_page, FLAT_READ | FLAT_WRITE, sizeof(flat_page));
        for (uint32_t turn = 0; turn < 2000 && !c->fatal; turn++) {
            uint32_t batch = random_below(&state, ENTRIES - 1);
            uint32_t page = 4 + random_below(&state, FLAT_PAGES - 4);

            flat_page[page] = (uint8_t)random_below(&state, 4);
            if (random_below(&state, 5000) == 0) {
                flat_page[random_below(&state, 2)] = 0;
            }
            some_list();
            for (uint32_t i = 0; i < batch; i++) {
                some_command((nvme_command *)(void *)(memory + SQ) + tail, (uint16_t)i);
                tail = (tail + 1) % ENTRIES;
            }
            if (random_below(&state, 50) == 0) {
                atomic_store(&c->words[2 + random_below(&state, 2)], random_below(&state, 100));
                f->take(q, NULL);
            }
            atomic_store(&c->words[2], tail);
            do {
                f->take(q, NULL);
                while (f->ready(q)) {
                    f->run(q, NULL, random_below(&state, 70000) + 1);
                    atomic_store(&c->words[3], cq->tail);
                    if (random_below(&state, 16) == 0) {
                        some_list();
                    }
                }
                atomic_store(&c->words[3], cq->tail);
                f->take(q, NULL);
            } while (f->ready(q));
            if (f->pending(q)) {
                printf("something is left that nobody waits for\n");
                abort();
            }
            (void)f->rest(q, NULL);
        }
        nvme_sq_look(q, &look);
        taken += c->counters.read_commands + c->counters.write_commands + c->counters.other_commands;
        ended += look.completed + c->counters.aborted;
        f->abort(q, NULL);
        f->closed(q);
        nvme_sq_free(q);
        if (nvme_cq_free(cq) != 0) {
            return 2;
        }
        nvme_controller_free(c);
        check(store);
    }
    nvme_store_free(store);
    if (ended < taken) {
        printf("%lu of %lu commands have not ended\n", taken - ended, taken);
        return 1;
    }
    printf("%lu lives, %lu errors\n", lives, reports[NVME_REPORT_ERROR]);
    return 0;
}
