/*
 * The guest's event counters: each picks its events, and may be narrowed by filters (chapter 6).
 */
#include "engine.h"

#define PASID_MASK UINT32_C(0xfffff)
#define NO_PASID UINT32_MAX
#define VALUE_MASK ((UINT64_C(1) << DSA_COUNTER_WIDTH) - 1)
#define EVERY_COUNTER ((UINT32_C(1) << DSA_COUNTERS) - 1)

_Static_assert(sizeof(((dsa_perfmon *)0)->wanted) == DSA_CATEGORIES * sizeof(uint32_t), "");
_Static_assert(sizeof(((dsa_perfmon *)0)->values) == DSA_COUNTERS * sizeof(uint64_t), "");
_Static_assert(sizeof(((dsa_counter_settings *)0)->filters) == DSA_FILTERS * sizeof(uint32_t), "");

static uint32_t load(const uint32_t *word)
{
    return __atomic_load_n(word, __ATOMIC_RELAXED);
}

static void store(uint32_t *word, uint32_t value)
{
    __atomic_store_n(word, value, __ATOMIC_RELAXED);
}

/* ---- the control thread's side --------------------------------------------------------------- */

static void look_for_wanted(dsa_perfmon *p)
{
    uint32_t wanted[DSA_CATEGORIES] = {0};

    for (uint32_t i = 0; i < DSA_COUNTERS; i++) {
        if (load(&p->enabled) >> i & 1 && p->settings[i].category < DSA_CATEGORIES) {
            wanted[p->settings[i].category] |= p->settings[i].events;
        }
    }
    for (uint32_t i = 0; i < DSA_CATEGORIES; i++) {
        store(&p->wanted[i], wanted[i]);
    }
}

void dsa_perfmon_enable(dsa_perfmon *p, uint32_t counter, const dsa_counter_settings *settings)
{
    dsa_counter_settings *mine = &p->settings[counter];

    store(&mine->category, settings->category);
    store(&mine->events, settings->events);
    store(&mine->interrupt, settings->interrupt);
    store(&mine->freeze, settings->freeze);
    for (uint32_t i = 0; i < DSA_FILTERS; i++) {
        store(&mine->filters[i], settings->filters[i]);
    }
    /* Pairs with the acquire in count_event(). */
    __atomic_fetch_or(&p->enabled, UINT32_C(1) << counter, __ATOMIC_RELEASE);
    look_for_wanted(p);
}

void dsa_perfmon_disable(dsa_perfmon *p, uint32_t counter)
{
    __atomic_fetch_and(&p->enabled, ~(UINT32_C(1) << counter), __ATOMIC_RELAXED);
    __atomic_fetch_and(&p->frozen, ~(UINT32_C(1) << counter), __ATOMIC_RELAXED);
    look_for_wanted(p);
}

uint64_t dsa_perfmon_value(const dsa_perfmon *p, uint32_t counter)
{
    return __atomic_load_n(&p->values[counter], __ATOMIC_RELAXED) & VALUE_MASK;
}

void dsa_perfmon_set_value(dsa_perfmon *p, uint32_t counter, uint64_t value)
{
    __atomic_store_n(&p->values[counter], value & VALUE_MASK, __ATOMIC_RELAXED);
}

uint32_t dsa_perfmon_frozen(const dsa_perfmon *p)
{
    return load(&p->frozen);
}

void dsa_perfmon_freeze(dsa_perfmon *p, uint32_t mask)
{
    store(&p->frozen, mask & load(&p->enabled));
}

uint32_t dsa_perfmon_overflowed(const dsa_perfmon *p)
{
    return load(&p->overflowed);
}

void dsa_perfmon_clear_overflowed(dsa_perfmon *p, uint32_t mask)
{
    __atomic_fetch_and(&p->overflowed, ~mask, __ATOMIC_RELAXED);
    __atomic_fetch_and(&p->interrupts, ~mask, __ATOMIC_RELAXED);
}

bool dsa_perfmon_interrupts(dsa_perfmon *p)
{
    return load(&p->interrupts) != 0 &&
           __atomic_exchange_n(&p->interrupts, 0, __ATOMIC_RELAXED) != 0;
}

/* ---- one event ------------------------------------------------------------------------------- */

/* What there is to know of an event; the filters that it has are in `filters` by bit. */
struct event {
    uint32_t category;
    uint32_t event;
    uint32_t filters;
    uint32_t wq;
    uint32_t tc;
    uint32_t size_range; /* a bit number of the filter */
    uint32_t engine;
    uint32_t pasid; /* NO_PASID */
};

enum {
    FILTERS_OF_WORK = 1 << DSA_FILTER_WQ | 1 << DSA_FILTER_PASID,
    FILTERS_OF_DISPATCH = FILTERS_OF_WORK | 1 << DSA_FILTER_ENGINE,
    FILTERS_OF_DATA = 1 << DSA_FILTER_TC | 1 << DSA_FILTER_TRANSFER_SIZE | 1 << DSA_FILTER_ENGINE
};

/* A filter of 16 bits; what has a higher number cannot be picked. */
static bool picked(uint32_t filter, uint32_t number)
{
    return filter == 0xffff || (number < 16 && filter >> number & 1);
}

static bool pasid_picked(uint32_t filter, uint32_t pasid)
{
    switch (filter >> 20) {
    case 0:
        return pasid == (filter & PASID_MASK);
    case 1:
        return pasid != NO_PASID;
    case 2:
        return pasid == NO_PASID;
    default:
        return true;
    }
}

static bool passes(const dsa_counter_settings *s, const struct event *e)
{
    const uint32_t numbers[] = {[DSA_FILTER_WQ] = e->wq,
                                [DSA_FILTER_TC] = e->tc,
                                [DSA_FILTER_PAGE_SIZE] = 0,
                                [DSA_FILTER_TRANSFER_SIZE] = e->size_range,
                                [DSA_FILTER_ENGINE] = e->engine};

    for (uint32_t i = 0; i < DSA_FILTER_PASID; i++) {
        if (e->filters >> i & 1 && !picked(load(&s->filters[i]), numbers[i])) {
            return false;
        }
    }
    return !(e->filters >> DSA_FILTER_PASID & 1) ||
           pasid_picked(load(&s->filters[DSA_FILTER_PASID]), e->pasid);
}

static bool overflow(dsa_perfmon *p, uint32_t counter)
{
    const dsa_counter_settings *s = &p->settings[counter];

    __atomic_fetch_or(&p->overflowed, UINT32_C(1) << counter, __ATOMIC_RELAXED);
    if (load(&s->freeze)) {
        __atomic_fetch_or(&p->frozen, EVERY_COUNTER, __ATOMIC_RELAXED);
    }
    if (!load(&s->interrupt)) {
        return false;
    }
    __atomic_fetch_or(&p->interrupts, UINT32_C(1) << counter, __ATOMIC_RELAXED);
    return true;
}

/* It has happened `times` times. True: the guest is to be told of an overflow. */
static bool count_event(dsa_perfmon *p, const struct event *e, uint64_t times)
{
    uint32_t counting = __atomic_load_n(&p->enabled, __ATOMIC_ACQUIRE) & ~load(&p->frozen);
    bool tell = false;

    for (; counting != 0; counting &= counting - 1) {
        uint32_t i = (uint32_t)__builtin_ctz(counting);
        const dsa_counter_settings *s = &p->settings[i];
        uint64_t before;

        if (load(&s->category) != e->category || !(load(&s->events) & e->event) ||
            !passes(s, e)) {
            continue;
        }
        before = __atomic_fetch_add(&p->values[i], times, __ATOMIC_RELAXED) & VALUE_MASK;
        if (before + times > VALUE_MASK) {
            tell |= overflow(p, i);
        }
    }
    return tell;
}

void dsa_perfmon_refused(dsa_perfmon *p, uint32_t wq, uint32_t portal, bool shared, uint32_t pasid)
{
    struct event e = {.category = DSA_CATEGORY_WQ,
                      .event = !shared           ? DSA_EV_WQ_DISCARD
                               : portal % 2 != 0 ? DSA_EV_SWQ_RETRY_LIMITED
                                                 : DSA_EV_SWQ_RETRY_UNLIMITED,
                      .filters = shared ? FILTERS_OF_WORK : 1 << DSA_FILTER_WQ,
                      .wq = wq,
                      .pasid = pasid & PASID_MASK};

    (void)count_event(p, &e, 1);
}

/* ---- what the data path has to say ----------------------------------------------------------- */

static bool wanted(const dsa_queue *q, uint32_t category, uint32_t events)
{
    return load(&q->perfmon->wanted[category]) & events;
}

static void happened(dsa_queue *q, vdcm_worker *worker, const struct event *e, uint64_t times)
{
    /* Without a worker it was the control thread, which looks itself. A report that is lost is
     * made up for by those because of which it was: each makes Python look. */
    if (times != 0 && wanted(q, e->category, e->event) && count_event(q->perfmon, e, times) &&
        worker != NULL) {
        q->services->report(worker, DSA_REPORT_OVERFLOW, NULL, 0);
    }
}

/* Of work in the WQ; `category` and `event` are still to be said. */
static struct event event_of(const dsa_queue *q, const dsa_descriptor *d)
{
    return (struct event){.filters = FILTERS_OF_WORK,
                          .wq = q->settings.index,
                          .engine = q->settings.engine,
                          .pasid = q->wq != NULL                     ? d->pasid & PASID_MASK
                                   : q->settings.flags & DSA_WQ_PASID ? q->settings.pasid
                                                                      : NO_PASID};
}

static void of_wq(dsa_queue *q, vdcm_worker *worker, const dsa_descriptor *d, uint32_t event)
{
    struct event e = event_of(q, d);

    e.category = DSA_CATEGORY_WQ;
    e.event = event;
    if (event == DSA_EV_WQ_DISCARD) {
        e.filters = 1 << DSA_FILTER_WQ;
    }
    happened(q, worker, &e, 1);
}

void dsa_monitor_accepted(dsa_queue *q, vdcm_worker *worker, uint32_t portal,
                          const dsa_descriptor *d)
{
    of_wq(q, worker, d,
          q->wq == NULL     ? DSA_EV_DWQ_SUCCESS
          : portal % 2 != 0 ? DSA_EV_SWQ_SUCCESS_LIMITED
                            : DSA_EV_SWQ_SUCCESS_UNLIMITED);
}

void dsa_monitor_full(dsa_queue *q, vdcm_worker *worker, uint32_t portal, const dsa_descriptor *d)
{
    if (q->wq == NULL) {
        of_wq(q, worker, d, DSA_EV_DWQ_FULL);
        of_wq(q, worker, d, DSA_EV_WQ_DISCARD);
    } else {
        of_wq(q, worker, d,
              portal % 2 != 0 ? DSA_EV_SWQ_RETRY_LIMITED : DSA_EV_SWQ_RETRY_UNLIMITED);
    }
}

void dsa_monitor_dispatched(dsa_queue *q, const dsa_work *w)
{
    struct event e = event_of(q, &w->d);

    e.category = DSA_CATEGORY_ENGINE;
    e.event = w->member ? DSA_EV_DESC_FROM_BATCH : DSA_EV_DESC_FROM_WQ;
    e.filters = FILTERS_OF_DISPATCH;
    happened(q, q->worker, &e, 1);
}

void dsa_monitor_completion(dsa_queue *q, const dsa_work *w, uint32_t event)
{
    struct event e = event_of(q, &w->d);

    e.category = DSA_CATEGORY_COMPLETIONS;
    e.event = event;
    happened(q, q->worker, &e, 1);
}

/* Operations 0x00 to 0x09, 0x10 to 0x15 and 0x20 have the bits one after the other. */
static uint32_t operation_event(uint32_t code)
{
    return UINT32_C(1) << (code < 0x10 ? code : code < 0x20 ? code - 6 : 16);
}

static uint32_t size_range(uint32_t size)
{
    static const uint32_t ends[] = {512, 2 << 10, 4 << 10, 16 << 10, 1 << 20, 64 << 20, 1 << 30};
    uint32_t range = 0;

    while (range < sizeof(ends) / sizeof(ends[0]) && size >= ends[range]) {
        range++;
    }
    return range;
}

/* Bytes that went through one operand of a descriptor. */
struct stream {
    uint64_t bytes;
    uint32_t tc_flag; /* which of its flags selects the traffic class */
};
enum { READ, READ2, WRITE, WRITE2, STREAMS };

static uint32_t tc_flag_of(uint8_t word)
{
    return word == 2 ? DSA_FLAG_ADDRESS1_TC : word == 3 ? DSA_FLAG_ADDRESS2_TC
                                                        : DSA_FLAG_ADDRESS3_TC;
}

static void find_streams(const dsa_work *w, struct stream found[STREAMS])
{
    static const uint8_t places[] = {[DSA_SOURCE] = READ,
                                     [DSA_SOURCE2] = READ2,
                                     [DSA_DESTINATION] = WRITE,
                                     [DSA_DESTINATION2] = WRITE2};
    uint32_t code = dsa_opcode(&w->d);

    for (int i = 0; i < 3 && w->op->operands[i].word != 0; i++) {
        uint8_t place = places[w->op->operands[i].id];

        if (w->op->operands[i].write == (place >= WRITE)) { /* a flush does neither */
            found[place] = (struct stream){w->done, tc_flag_of(w->op->operands[i].word)};
        }
    }
    /* Those that do not walk along their operands at one pace. */
    if (code == DSA_OP_CREATE_DELTA) {
        found[READ] = (struct stream){w->done, DSA_FLAG_ADDRESS1_TC};
        found[READ2] = (struct stream){w->done, DSA_FLAG_ADDRESS2_TC};
        found[WRITE] = (struct stream){w->delta_size, DSA_FLAG_ADDRESS3_TC};
    } else if (code == DSA_OP_APPLY_DELTA) {
        found[READ] = (struct stream){w->done, DSA_FLAG_ADDRESS1_TC};
        found[WRITE] = (struct stream){w->done / 10 * 8, DSA_FLAG_ADDRESS2_TC};
    } else if (code >= DSA_OP_DIF_CHECK && code <= DSA_OP_DIF_UPDATE) {
        found[READ] = (struct stream){w->done, DSA_FLAG_ADDRESS1_TC};
        found[WRITE] = (struct stream){dsa_dif_written(w), DSA_FLAG_ADDRESS2_TC};
    }
}

static void of_data(dsa_queue *q, const dsa_work *w)
{
    static const struct {
        uint32_t units;
        uint32_t number;
    } events[STREAMS] = {[READ] = {DSA_EV_CL_PROCESSED, DSA_EV_NUM_READ},
                         [READ2] = {DSA_EV_CL_PROCESSED, DSA_EV_NUM_READ2},
                         [WRITE] = {DSA_EV_CL_WRITE, DSA_EV_NUM_WRITE},
                         [WRITE2] = {DSA_EV_CL_WRITE, DSA_EV_NUM_WRITE2}};
    struct stream streams[STREAMS] = {0};
    struct event e = event_of(q, &w->d);

    find_streams(w, streams);
    e.category = DSA_CATEGORY_ENGINE;
    e.filters = FILTERS_OF_DATA;
    e.size_range = size_range(w->d.size);
    for (int i = 0; i < STREAMS; i++) {
        e.tc = q->settings.traffic_classes[(dsa_flags(&w->d) & streams[i].tc_flag) != 0];
        e.event = events[i].units;
        happened(q, q->worker, &e, (streams[i].bytes + DSA_UNIT - 1) / DSA_UNIT);
        e.event = events[i].number;
        happened(q, q->worker, &e, streams[i].bytes != 0);
    }
}

void dsa_monitor_end(dsa_queue *q, const dsa_work *w)
{
    uint32_t operation = operation_event(dsa_opcode(&w->d));

    if (wanted(q, DSA_CATEGORY_OPERATIONS, operation)) {
        struct event e = event_of(q, &w->d);

        e.category = DSA_CATEGORY_OPERATIONS;
        e.event = operation;
        happened(q, q->worker, &e, 1);
    }
    if (wanted(q, DSA_CATEGORY_ENGINE, UINT32_MAX)) {
        of_data(q, w);
    }
}
