/*
 * Readers against changes: threads reach and touch memory by PASID while this program's first
 * thread maps, unmaps, hands pages from one VDEV to another, and takes domains and PASIDs away.
 *
 *     isolation_stress CHANGES SEED
 *
 * Every word of a page holds the marker of the VDEV that has the page, or that of nobody. A reader
 * that finds another one's marker, a page of nobody's that has been written to, and a touch of
 * memory that is no longer mapped (SIGSEGV) are all failures. Built with -fsanitize=thread it also
 * shows that what is changed and what is read are never so at once.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "memory.h"

enum { VDEVS = 4, PASIDS = 3 * VDEVS, PAGES = 48, READERS = 4, PAGE = 4096, SHRINKING = PAGES };
enum { GUEST_PASIDS = 64, KEPT = 8 /* every so many stays bound */, FRESH = 2000 };
#define NOBODY UINT64_C(0xfefefefefefefefe)
#define CHECK(condition) ((condition) ? (void)0 : fail(#condition, __LINE__))

struct vdev {
    vdcm_domain *domain;
    vdcm_aspace *memory;
    int file; /* of this VDEV's client, which shortens it */
};

static struct vdev vdevs[VDEVS];
static bool entered[PASIDS];
static int owners[PAGES]; /* -1: nobody */
static int pool;
static uint64_t *pages; /* all of the pool, as this program sees it */
static vdcm_pasid_map *guests;
static bool bound[GUEST_PASIDS];
static vdcm_pasid_map *fresh[FRESH]; /* each gets its first binding while it is being looked at */
static atomic_uint first_fresh;
static atomic_bool stop;
static atomic_ullong touched, missed, cut_short;

static void fail(const char *condition, int line)
{
    fprintf(stderr, "isolation_stress.c:%d: %s does not hold\n", line, condition);
    abort();
}

static uint64_t marker(int vdev)
{
    return UINT64_C(0x0101010101010101) * (unsigned)(vdev + 1);
}

static uint32_t random_below(uint64_t *state, uint32_t limit)
{
    *state = *state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (uint32_t)((*state >> 33) % limit);
}

/* ---- the readers -------------------------------------------------------------------------------- */

struct touch {
    uint64_t *words;
    uint64_t count;
    uint64_t expected;
    bool write;
    bool shrinks; /* what is new in a file that grows again is zero */
};

static int touch(void *argument)
{
    const struct touch *touch = argument;

    for (uint64_t i = 0; i < touch->count; i += 37) {
        if (touch->write) {
            __atomic_store_n(&touch->words[i], touch->expected, __ATOMIC_RELAXED);
        } else {
            uint64_t found = __atomic_load_n(&touch->words[i], __ATOMIC_RELAXED);

            CHECK(found == touch->expected || (touch->shrinks && found == 0));
        }
    }
    return 0;
}

/* The PASID's VDEV, whose memory and no other it is to find; false if there is nothing to find. */
static bool reach_and_touch(vdcm_reader *reader, uint32_t pasid, uint64_t *state)
{
    int vdev = (int)(pasid % VDEVS);
    uint32_t page = random_below(state, PAGES + 1);
    bool write = random_below(state, 2) != 0;
    uint64_t here;
    void *memory;
    int error = vdcm_reach(reader, 1 + pasid, (uint64_t)page * PAGE, 2 * PAGE, write, &memory,
                           &here);

    if (error == 0) {
        struct touch argument = {memory, here / 8, marker(vdev), write, page == SHRINKING};

        CHECK(here == PAGE);
        if (random_below(state, 4) == 0) {
            sched_yield(); /* a change finds us inside */
        }
        if (vdcm_guarded(touch, &argument) != 0) {
            CHECK(page == SHRINKING);
            atomic_fetch_add(&cut_short, 1);
#ifdef __SANITIZE_THREAD__
            /* Its own handler, which stands before ours, blocks all signals. */
            sigset_t all;

            sigfillset(&all);
            pthread_sigmask(SIG_UNBLOCK, &all, NULL);
#endif
        }
        atomic_fetch_add_explicit(&touched, 1, memory_order_relaxed);
        return true;
    }
    CHECK(error == -EPERM || error == -EFAULT || error == -EBUSY);
    atomic_fetch_add_explicit(&missed, 1, memory_order_relaxed);
    return error != -EBUSY;
}

static void *read_on(void *argument)
{
    uint64_t state = (uint64_t)(uintptr_t)argument;
    vdcm_reader *reader = vdcm_reader_new();

    CHECK(reader != NULL);
    while (!atomic_load(&stop)) {
        uint32_t guest = random_below(&state, GUEST_PASIDS);
        uint32_t host = vdcm_pasid_map_translate(guests, guest);

        CHECK(host == (guest ^ 0x555) || (host == UINT32_MAX && guest % KEPT != 0));
        host = vdcm_pasid_map_translate(fresh[atomic_load(&first_fresh)], 1);
        CHECK(host == 2 || host == UINT32_MAX);
        /* A source and a destination, the same again, and once in a while one too many. */
        for (uint32_t i = random_below(&state, 4); i > 0; i--) {
            if (!reach_and_touch(reader, random_below(&state, PASIDS), &state)) {
                break;
            }
        }
        vdcm_leave(reader);
    }
    vdcm_reader_free(reader);
    return NULL;
}

/* ---- the changes -------------------------------------------------------------------------------- */

static void fill(int page, uint64_t before, uint64_t after)
{
    for (int i = 0; i < PAGE / 8; i++) {
        uint64_t *word = &pages[page * (PAGE / 8) + i];

        CHECK(__atomic_load_n(word, __ATOMIC_RELAXED) == before);
        __atomic_store_n(word, after, __ATOMIC_RELAXED);
    }
}

static void take_away(int page)
{
    int owner = owners[page];

    owners[page] = -1;
    fill(page, marker(owner), NOBODY);
}

static void map_or_unmap(int page, int vdev)
{
    if (owners[page] >= 0) {
        CHECK(vdcm_aspace_unmap(vdevs[owners[page]].memory, (uint64_t)page * PAGE, PAGE) == 0);
        take_away(page);
        return;
    }
    fill(page, NOBODY, marker(vdev));
    owners[page] = vdev;
    CHECK(vdcm_aspace_map(vdevs[vdev].memory, (uint64_t)page * PAGE, PAGE, pool,
                          (uint64_t)page * PAGE, true, true) == 0);
}

static void take_all_away(int vdev)
{
    for (int page = 0; page < PAGES; page++) {
        if (owners[page] == vdev) {
            take_away(page);
        }
    }
}

static void map_file(struct vdev *vdev)
{
    CHECK(ftruncate(vdev->file, PAGE) == 0);
    CHECK(vdcm_aspace_map(vdev->memory, (uint64_t)SHRINKING * PAGE, PAGE, vdev->file, 0, true,
                          true) == 0);
}

static void set_pasid(uint32_t pasid, bool in)
{
    CHECK(vdcm_pasid_set(1 + pasid, in ? vdevs[pasid % VDEVS].domain : NULL) == 0);
    entered[pasid] = in;
}

static void set_pasids(int vdev, bool in)
{
    for (uint32_t pasid = (uint32_t)vdev; pasid < PASIDS; pasid += VDEVS) {
        CHECK(vdcm_pasid_set(1 + pasid, NULL) == 0);
        set_pasid(pasid, in);
    }
}

static void refill(int vdev, uint64_t before, uint64_t after)
{
    for (int page = 0; page < PAGES; page++) {
        if (owners[page] == vdev) {
            fill(page, before, after);
        }
    }
}

static void connect_client(struct vdev *vdev)
{
    vdev->memory = vdcm_aspace_new();
    CHECK(vdev->memory != NULL);
    CHECK(vdcm_domain_attach(vdev->domain, vdev->memory) == 0);
    map_file(vdev);
}

static void new_domain(struct vdev *vdev)
{
    vdev->domain = vdcm_domain_new(VDCM_SECOND_LEVEL);
    CHECK(vdev->domain != NULL);
}

static void change(uint64_t *state)
{
    int number = (int)random_below(state, VDEVS);
    struct vdev *vdev = &vdevs[number];
    uint32_t pasid = random_below(state, PASIDS);
    uint32_t guest = random_below(state, GUEST_PASIDS);

    switch (random_below(state, 24)) {
    default:
        map_or_unmap((int)random_below(state, PAGES), number);
        break;
    case 0:
    case 1:
    case 2:
        set_pasid(pasid, !entered[pasid]);
        break;
    case 3: /* the client unmaps everything */
        vdcm_aspace_unmap_all(vdev->memory);
        take_all_away(number);
        map_file(vdev);
        break;
    case 4: /* it goes, and the next one comes */
        vdcm_aspace_free(vdev->memory);
        take_all_away(number);
        connect_client(vdev);
        break;
    case 5: /* the VDEV goes without having tidied up; its memory stays, reached by nobody */
        vdcm_domain_free(vdev->domain);
        new_domain(vdev);
        CHECK(vdcm_domain_attach(vdev->domain, vdev->memory) == 0);
        set_pasids(number, true);
        break;
    case 6: /* no PASID stands for it for a while: nobody is in its memory, mapped as it is */
        set_pasids(number, false);
        refill(number, marker(number), NOBODY);
        refill(number, NOBODY, marker(number));
        set_pasids(number, true);
        break;
    case 7:
        CHECK(ftruncate(vdev->file, random_below(state, 2) ? PAGE : 0) == 0);
        break;
    case 8:
    case 9:
    case 10:
        if (guest % KEPT != 0) {
            CHECK((bound[guest] ? vdcm_pasid_map_unbind(guests, guest)
                                : vdcm_pasid_map_bind(guests, guest, guest ^ 0x555)) == 0);
            bound[guest] = !bound[guest];
        }
        break;
    case 11:
    case 12:
        if (atomic_load(&first_fresh) < FRESH - 1) {
            CHECK(vdcm_pasid_map_bind(fresh[atomic_load(&first_fresh)], 1, 2) == 0);
            atomic_fetch_add(&first_fresh, 1);
        }
        break;
    }
}

int main(int count, char **arguments)
{
    long changes = count == 3 ? atol(arguments[1]) : 0;
    uint64_t state = count == 3 ? strtoull(arguments[2], NULL, 10) : 0;
    pthread_t threads[READERS];

    pool = memfd_create("pool", MFD_CLOEXEC);
    CHECK(pool >= 0 && ftruncate(pool, PAGES * PAGE) == 0);
    pages = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, pool, 0);
    CHECK(pages != MAP_FAILED);
    for (int page = 0; page < PAGES; page++) {
        owners[page] = -1;
        fill(page, 0, NOBODY);
    }
    for (int i = 0; i < VDEVS; i++) {
        vdevs[i].file = memfd_create("file", MFD_CLOEXEC);
        new_domain(&vdevs[i]);
        connect_client(&vdevs[i]);
    }
    guests = vdcm_pasid_map_new(GUEST_PASIDS);
    CHECK(guests != NULL);
    for (int i = 0; i < FRESH; i++) {
        fresh[i] = vdcm_pasid_map_new(1);
        CHECK(fresh[i] != NULL);
    }
    for (uint32_t guest = 0; guest < GUEST_PASIDS; guest += KEPT) {
        CHECK(vdcm_pasid_map_bind(guests, guest, guest ^ 0x555) == 0);
    }
    for (int i = 0; i < READERS; i++) {
        CHECK(pthread_create(&threads[i], NULL, read_on, (void *)(uintptr_t)(state + 1 + i)) == 0);
    }
    /* As many as were asked for, and until the readers have seen something of every sort. */
    for (long i = 0; i < changes || !atomic_load(&touched) || !atomic_load(&missed) ||
                     !atomic_load(&cut_short); i++) {
        change(&state);
    }
    atomic_store(&stop, true);
    for (int i = 0; i < READERS; i++) {
        pthread_join(threads[i], NULL);
    }
    for (int page = 0; page < PAGES; page++) {
        if (owners[page] >= 0) {
            take_away(page);
        }
    }
    for (int i = 0; i < VDEVS; i++) {
        vdcm_domain_free(vdevs[i].domain);
        vdcm_aspace_free(vdevs[i].memory);
        close(vdevs[i].file);
    }
    vdcm_pasid_map_free(guests);
    for (int i = 0; i < FRESH; i++) {
        vdcm_pasid_map_free(fresh[i]);
    }
    printf("%ld changes; %llu reached, %llu not, %llu cut short\n", changes,
           atomic_load(&touched), atomic_load(&missed), atomic_load(&cut_short));
    return 0;
}
