/*
 * Addresses that are learnt (IEEE 802.1Q-2018, 8.7 and 8.8): what a port sends from that may send from
 * addresses not its own, if no port has it as a filter. The key is the address alone, so it is learnt for
 * all VLANs at once (shared VLAN learning); a port still receives frames of its VLANs only.
 *
 * Each port has room of its own, in which the address not seen longest makes way: what a guest makes up
 * costs nobody else anything. Nor can it choose addresses that meet in one bucket, as the hash is secret.
 * There is no timer: whether an address is too old is looked at when it is looked for.
 */
#include <stdlib.h>

#include "engine.h"

#define AGE_NS (AVF_AGE_S * UINT64_C(1000000000))

struct avf_station {
    uint64_t mac;  /* as in avf_address; 0: none, and older than all that are one */
    uint64_t seen; /* ns */
    avf_port *port;
    avf_station *next;          /* of the same bucket */
    avf_station *newer, *older; /* of the same port: a ring through `ends` */
};

struct avf_stations {
    avf_station ends; /* its `older` is the newest, its `newer` the oldest */
    avf_station all[AVF_LEARNT];
};

/* Right behind `newer`. */
static void put(avf_station *a, avf_station *newer)
{
    a->newer = newer;
    a->older = newer->older;
    newer->older->newer = a;
    newer->older = a;
}

static void take(avf_station *a)
{
    a->newer->older = a->older;
    a->older->newer = a->newer;
}

avf_stations *avf_stations_new(void)
{
    avf_stations *made = calloc(1, sizeof(*made));

    if (made != NULL) {
        made->ends.newer = made->ends.older = &made->ends;
        for (uint32_t i = 0; i < AVF_LEARNT; i++) {
            put(&made->all[i], &made->ends);
        }
    }
    return made;
}

static avf_station **bucket(avf_switch *s, uint64_t mac)
{
    return &s->learnt[mac * s->multiplier >> 52];
}

static avf_station *find(avf_switch *s, uint64_t mac)
{
    avf_station *a = *bucket(s, mac);

    while (a != NULL && a->mac != mac) {
        a = a->next;
    }
    return a;
}

static void drop(avf_station *a)
{
    avf_station **link = bucket(a->port->its, a->mac);

    while (*link != a) {
        link = &(*link)->next;
    }
    *link = a->next;
    a->mac = 0;
    a->port->its->n_learnt--;
    take(a);
    put(a, a->port->stations->ends.newer);
}

static uint64_t now(avf_switch *s)
{
    if (s->now == 0) {
        s->now = s->services->now();
    }
    return s->now;
}

void avf_learn(avf_port *p, uint64_t mac)
{
    avf_switch *s = p->its;
    avf_station *ends = &p->stations->ends;
    avf_station *a;

    if (mac == p->mac || mac == 0 || (mac & 1) != 0) {
        return; /* its own, no address, or that of a group */
    }
    a = find(s, mac);
    if (a == NULL && avf_is_filter(s, mac)) {
        return;
    }
    if (a == NULL || a->port != p) {
        if (a != NULL) {
            drop(a); /* the station has moved */
        }
        a = ends->newer;
        if (a->mac != 0) {
            drop(a);
        }
        a->mac = mac;
        a->port = p;
        a->next = *bucket(s, mac);
        *bucket(s, mac) = a;
        s->n_learnt++;
    }
    a->seen = now(s);
    take(a);
    put(a, ends);
}

avf_port *avf_behind(avf_switch *s, uint64_t mac)
{
    avf_station *a = find(s, mac);

    if (a != NULL && now(s) - a->seen >= AGE_NS) {
        drop(a);
        return NULL;
    }
    return a != NULL ? a->port : NULL;
}

void avf_forget(avf_switch *s, uint64_t mac)
{
    avf_station *a = s->n_learnt != 0 ? find(s, mac) : NULL;

    if (a != NULL) {
        drop(a);
    }
}

void avf_forget_all(avf_port *p)
{
    while (p->stations != NULL && p->stations->ends.older->mac != 0) {
        drop(p->stations->ends.older);
    }
}

uint32_t avf_list_learnt(avf_port *p, avf_learnt *out)
{
    uint32_t count = 0;
    uint64_t time;

    avf_lock(p->its);
    time = p->its->services->now();
    if (p->stations != NULL) {
        for (const avf_station *a = p->stations->ends.older; a->mac != 0; a = a->older) {
            out[count].age = time - a->seen;
            if (out[count].age >= AGE_NS) {
                break; /* and so are those behind it */
            }
            memcpy(out[count++].mac, &a->mac, sizeof(a->mac));
        }
    }
    avf_unlock(p->its);
    return count;
}
