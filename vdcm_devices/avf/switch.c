/*
 * The switch: which ports a frame is for. A frame goes to every port that has its destination address as
 * a filter, else to the one behind which it has been learnt to be, to those that are promiscuous, and
 * never back. A port receives frames of its VLANs and untagged ones. Nothing is flooded: what is for none
 * of them goes to the uplink.
 */
#include <errno.h>

#include "engine.h"

enum { VLAN_ID = 0xfff };

static bool has_vlan(const avf_port *p, const avf_frame *f)
{
    uint32_t id = f->tag & VLAN_ID;

    return !f->tagged || id == 0 || p->filters.every_vlan ||
           (p->filters.vlans[id / 8] >> id % 8 & 1) != 0;
}

static const avf_address *bucket(const avf_switch *s, uint64_t mac)
{
    return s->buckets[avf_bucket(mac)];
}

bool avf_is_filter(const avf_switch *s, uint64_t mac)
{
    const avf_address *a = bucket(s, mac);

    while (a != NULL && a->mac != mac) {
        a = a->next;
    }
    return a != NULL;
}

bool avf_may_send(const avf_port *from, const avf_frame *f)
{
    uint64_t source = avf_mac(f->head + 6);
    const avf_address *a;

    if (!has_vlan(from, f)) {
        return false;
    }
    if (!from->filters.check_source || source == from->mac) {
        return true;
    }
    if ((f->head[6] & 1) != 0) {
        return false;
    }
    for (a = bucket(from->its, source); a != NULL; a = a->next) {
        if (a->mac == source && a->port == from) {
            return true;
        }
    }
    return false;
}

struct offer {
    avf_port *to;
    const avf_frame *f;
};

static int receive(void *argument, vdcm_worker *other)
{
    const struct offer *o = argument;
    int error = avf_receive(o->to, other, o->f);

    avf_settle(o->to->its, other, &o->to->its->to);
    avf_settle(o->to->its, other, &o->to->its->ring);
    return error;
}

static void count(avf_port *to, const avf_frame *f)
{
    avf_counters *c = &to->counters;

    c->rx_bytes += f->length;
    *(f->kind == AVF_UNICAST     ? &c->rx_unicast
      : f->kind == AVF_MULTICAST ? &c->rx_multicast
                                 : &c->rx_broadcast) += 1;
}

/* 1 if it has been received, 0 if not; negative: the source has gone. */
static int offer(const avf_port *from, vdcm_worker *worker, avf_port *to, const avf_frame *f)
{
    avf_switch *s = to->its;
    struct offer o = {.to = to, .f = f};
    uint64_t address;
    int error;

    if (to == from || to->stamp == s->frames || !to->link || to->broken || to->handle == NULL ||
        to->pages == NULL || !has_vlan(to, f)) {
        return 0;
    }
    to->stamp = s->frames;
    if ((s->inside != NULL && s->inside != to) || s->held + f->length > VDCM_HOLD_LIMIT) {
        avf_leave(s, worker); /* a thread is inside two address spaces at most */
    }
    if (f->length != f->head_length) {
        error = avf_reach_source(s, worker, &address);
        if (error != 0) {
            return error;
        }
    }
    s->inside = to;
    s->held += f->length;
    error = s->services->on_behalf(worker, to->handle, receive, &o);
    if (error == -EIO) {
        return error;
    }
    if (error == -ENOBUFS) {
        to->counters.rx_discards++;
    }
    if (error == 0) {
        count(to, f);
        avf_capture_frame(to, worker, f);
    }
    return error == 0;
}

/* To all ports that have the address, else to the one that it is behind; *known becomes true if there
 * is one. */
static int to_address(avf_switch *s, const avf_port *from, vdcm_worker *worker, const avf_frame *f,
                      bool *known)
{
    uint64_t mac = avf_mac(f->head);
    int sent = 0;

    for (const avf_address *a = bucket(s, mac); a != NULL; a = a->next) {
        int one = a->mac == mac ? offer(from, worker, a->port, f) : 0;

        if (one < 0) {
            return one;
        }
        *known |= a->mac == mac;
        sent += one;
    }
    if (!*known && s->n_learnt != 0) {
        avf_port *behind = avf_behind(s, mac);

        *known = behind != NULL;
        return behind != NULL ? offer(from, worker, behind, f) : 0;
    }
    return sent;
}

/* To those that want it whoever it is for. */
static int to_others(avf_switch *s, const avf_port *from, vdcm_worker *worker, const avf_frame *f)
{
    bool all = f->kind == AVF_BROADCAST;
    int sent = 0;

    for (avf_port *p = all ? s->ports : s->promiscuous; p != NULL;
         p = all ? p->next : p->next_promiscuous) {
        bool wants = all || (f->kind == AVF_UNICAST ? p->filters.all_unicast
                                                    : p->filters.all_multicast);
        int one = wants ? offer(from, worker, p, f) : 0;

        if (one < 0) {
            return one;
        }
        sent += one;
    }
    return sent;
}

int avf_forward(avf_switch *s, const avf_port *from, vdcm_worker *worker, avf_frame *f)
{
    bool known = false;
    int first, second;
    int out = 0;

    s->frames++;
    first = to_address(s, from, worker, f, &known);
    if (first < 0) {
        return first;
    }
    second = to_others(s, from, worker, f);
    if (second < 0) {
        return second;
    }
    if (from != NULL && s->uplink != NULL && (f->kind != AVF_UNICAST || !known)) {
        out = avf_uplink_send(s, worker, f);
    }
    return out < 0 ? out : first + second + out;
}
