/* The switch and its ports as the control thread has them. */
#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/random.h>

#include "engine.h"

/* Held by the sweep for one look or run, by others for a change. */
void avf_lock(avf_switch *s)
{
    while (atomic_flag_test_and_set_explicit(&s->lock, memory_order_acquire)) {
        sched_yield();
    }
}

void avf_unlock(avf_switch *s)
{
    atomic_flag_clear_explicit(&s->lock, memory_order_release);
}

avf_switch *avf_switch_new(uintptr_t services)
{
    const vdcm_services *table = (const vdcm_services *)services;
    avf_switch *s;

    if (table == NULL || table->abi != VDCM_FASTPATH_ABI) {
        errno = EINVAL;
        return NULL;
    }
    s = aligned_alloc(_Alignof(avf_switch), sizeof(*s));
    if (s != NULL) {
        memset(s, 0, sizeof(*s));
        s->services = table;
        s->to.write = s->ring.write = true;
        if (getrandom(&s->multiplier, sizeof(s->multiplier), 0) < 0) {
            free(s);
            return NULL;
        }
        s->multiplier |= 1;
    }
    return s;
}

void avf_switch_free(avf_switch *s)
{
    free(s);
}

avf_port *avf_port_new(avf_switch *s)
{
    avf_port *p = calloc(1, sizeof(*p));

    if (p != NULL) {
        p->its = s;
        avf_lock(s);
        p->next = s->ports;
        s->ports = p;
        avf_unlock(s);
    }
    return p;
}

/* ---- addresses ------------------------------------------------------------------------------- */

static void remove_addresses(avf_port *p)
{
    for (uint32_t i = 0; i < p->filters.n_addresses; i++) {
        avf_address **link = &p->its->buckets[avf_bucket(p->addresses[i].mac)];

        while (*link != &p->addresses[i]) {
            link = &(*link)->next;
        }
        *link = p->addresses[i].next;
    }
    free(p->addresses);
    p->addresses = NULL;
    p->filters.n_addresses = 0;
}

static void add_addresses(avf_port *p)
{
    for (uint32_t i = 0; i < p->filters.n_addresses; i++) {
        avf_address *a = &p->addresses[i];
        avf_address **bucket;

        a->mac = avf_mac(p->filters.addresses[i]);
        a->port = p;
        avf_forget(p->its, a->mac);
        bucket = &p->its->buckets[avf_bucket(a->mac)];
        a->next = *bucket;
        *bucket = a;
    }
}

static void set_promiscuous(avf_port *p)
{
    avf_port **link = &p->its->promiscuous;

    while (*link != NULL && *link != p) {
        link = &(*link)->next_promiscuous;
    }
    if (*link == p) {
        *link = p->next_promiscuous;
    }
    if (p->filters.all_unicast || p->filters.all_multicast) {
        p->next_promiscuous = p->its->promiscuous;
        p->its->promiscuous = p;
    }
}

int avf_filter(avf_port *p, const avf_filters *filters)
{
    bool learns = filters->learn && !filters->check_source;
    avf_stations *stations = NULL;
    avf_address *addresses;

    if (filters->n_addresses > AVF_ADDRESSES) {
        return -EINVAL;
    }
    addresses = calloc(AVF_ADDRESSES, sizeof(*addresses));
    if (learns && p->stations == NULL) {
        stations = avf_stations_new();
    }
    if (addresses == NULL || (learns && p->stations == NULL && stations == NULL)) {
        free(addresses);
        free(stations);
        return -ENOMEM;
    }
    avf_lock(p->its);
    remove_addresses(p);
    p->filters = *filters;
    p->filters.learn = learns;
    p->stations = stations != NULL ? stations : p->stations;
    if (!learns) {
        avf_forget_all(p);
    }
    p->addresses = addresses;
    p->mac = avf_mac(filters->mac);
    add_addresses(p);
    set_promiscuous(p);
    avf_unlock(p->its);
    return 0;
}

void avf_port_free(avf_port *p)
{
    avf_port **link;

    if (p == NULL) {
        return;
    }
    avf_lock(p->its);
    remove_addresses(p);
    avf_forget_all(p);
    p->filters.all_unicast = p->filters.all_multicast = false;
    set_promiscuous(p);
    for (link = &p->its->ports; *link != p; link = &(*link)->next) {
    }
    *link = p->next;
    avf_unlock(p->its);
    free(p->stations);
    free(p->capture);
    free(p);
}

/* ---- queues ---------------------------------------------------------------------------------- */

void avf_pages(avf_port *p, uintptr_t pages)
{
    avf_lock(p->its);
    p->pages = (uint8_t *)pages;
    avf_unlock(p->its);
}

static int configure(avf_port *p, bool transmit, uint32_t queue, const avf_queue_settings *is)
{
    if (is->length == 0 || is->length > AVF_MAX_DESCRIPTORS || is->itr > 3 || is->message < -1 ||
        is->message >= AVF_QUEUES || (p->tx[queue].enabled && transmit) ||
        (p->rx[queue].enabled && !transmit)) {
        return -EINVAL;
    }
    if (transmit) {
        p->tx[queue] = (avf_tx){.is = *is, .configured = true, .stuck = UINT32_MAX};
        return 0;
    }
    if (is->buffer < 1024 || is->buffer > 16 * 1024 - 1 || is->max_frame > AVF_MAX_FRAME) {
        return -EINVAL;
    }
    p->rx[queue] = (avf_rx){.is = *is, .configured = true};
    return 0;
}

int avf_configure(avf_port *p, bool transmit, uint32_t queue, const avf_queue_settings *settings)
{
    int error;

    if (queue >= AVF_QUEUES) {
        return -EINVAL;
    }
    avf_lock(p->its);
    error = configure(p, transmit, queue, settings);
    avf_unlock(p->its);
    return error;
}

static int enable(avf_port *p, uint32_t tx, uint32_t rx)
{
    if (p->pages == NULL || (tx | rx) >> AVF_QUEUES != 0) {
        return -EINVAL;
    }
    for (uint32_t i = 0; i < AVF_QUEUES; i++) {
        if (((tx >> i & 1) != 0 && !p->tx[i].configured) ||
            ((rx >> i & 1) != 0 && !p->rx[i].configured)) {
            return -EINVAL;
        }
    }
    for (uint32_t i = 0; i < AVF_QUEUES; i++) {
        if ((tx >> i & 1) != 0) {
            p->tx[i].enabled = true;
            p->tx[i].head = p->tx[i].tail = 0;
            p->tx[i].stuck = UINT32_MAX;
        }
        if ((rx >> i & 1) != 0) {
            p->rx[i].enabled = true;
            p->rx[i].head = p->rx[i].first = p->rx[i].n_fetched = 0;
        }
    }
    p->tx_enabled |= tx;
    return 0;
}

int avf_enable(avf_port *p, uint32_t tx, uint32_t rx)
{
    int error;

    avf_lock(p->its);
    error = enable(p, tx, rx);
    avf_unlock(p->its);
    return error;
}

static void disable(avf_port *p, uint32_t tx, uint32_t rx)
{
    p->tx_enabled &= ~tx;
    atomic_fetch_and_explicit(&p->ready, ~tx, memory_order_relaxed);
    for (uint32_t i = 0; i < AVF_QUEUES; i++) {
        if ((tx >> i & 1) != 0) {
            p->tx[i].enabled = false;
        }
        if ((rx >> i & 1) != 0) {
            p->rx[i].enabled = false;
        }
        if (p->pages != NULL && (tx >> i & 1) != 0) {
            atomic_store_explicit(avf_at(p, AVF_QTX_TAIL, i), 0, memory_order_relaxed);
        }
        if (p->pages != NULL && (rx >> i & 1) != 0) {
            atomic_store_explicit(avf_at(p, AVF_QRX_TAIL, i), 0, memory_order_relaxed);
        }
    }
}

void avf_disable(avf_port *p, uint32_t tx, uint32_t rx)
{
    avf_lock(p->its);
    disable(p, tx, rx);
    avf_unlock(p->its);
}

void avf_reset(avf_port *p)
{
    avf_lock(p->its);
    disable(p, UINT32_MAX, UINT32_MAX);
    memset(p->tx, 0, sizeof(p->tx));
    memset(p->rx, 0, sizeof(p->rx));
    memset(p->vectors, 0, sizeof(p->vectors));
    memset(p->controls, 0, sizeof(p->controls));
    p->caused = 0;
    p->broken = p->held = false;
    avf_forget_all(p);
    avf_unlock(p->its);
}

/* ---- the rest -------------------------------------------------------------------------------- */

int avf_rss(avf_port *p, const uint8_t *key, const uint8_t *table, uint64_t types)
{
    for (uint32_t i = 0; i < AVF_TABLE; i++) {
        if (table[i] >= AVF_QUEUES) {
            return -EINVAL;
        }
    }
    avf_lock(p->its);
    avf_set_key(p, key);
    memcpy(p->table, table, AVF_TABLE);
    p->types = types;
    avf_unlock(p->its);
    return 0;
}

void avf_link(avf_port *p, bool up)
{
    avf_lock(p->its);
    p->link = up;
    if (!up) {
        avf_forget_all(p);
    }
    avf_unlock(p->its);
}

void avf_count(avf_port *p, avf_counters *out)
{
    avf_lock(p->its);
    *out = p->counters;
    avf_unlock(p->its);
}
