/*
 * A frame from its descriptors to the switch: VLAN tag, checksums and TCP segmentation as they ask for
 * (X710 datasheet, 8.4.3 and 8.4.4). The driver has put the sum of the pseudo header where the checksum
 * will be, without the length if the frame is to be segmented.
 */
#include <errno.h>

#include "engine.h"

enum {
    LEAST = 14,     /* bytes of a frame */
    LEAST_MSS = 64,
    TAG = 4,
    L4T_TCP = 1,
    L4T_SCTP,
    L4T_UDP,
    FIN_PSH = 0x09,
    CWR = 0x80
};

/* What the first data descriptor says of the headers. */
struct headers {
    uint32_t l3, l4, end; /* offsets without the tag; `end` is that of the layer 4 header */
    bool four;            /* IPv4, */
    bool sum_ip;          /* with a checksum */
    uint32_t l4_type;     /* 0: no checksum */
    uint32_t field;       /* offset of the checksum of layer 4 */
};

static bool parse(const avf_source *source, struct headers *h, uint32_t tag)
{
    uint64_t word = source->word;
    uint32_t ip = word >> 9 & 3;

    h->l3 = (uint32_t)(word >> 16 & 0x7f) * 2;
    h->l4 = h->l3 + (uint32_t)(word >> 23 & 0x7f) * 4;
    h->end = h->l4 + (uint32_t)(word >> 30 & 0xf) * 4;
    h->four = ip >= 2;
    h->sum_ip = ip == 3;
    h->l4_type = word >> 12 & 3;
    if (ip == 0) {
        return h->l4_type == 0; /* there is nothing to be done */
    }
    if (h->l3 < LEAST + tag || h->l4 - h->l3 < (h->four ? 20u : 40u)) {
        return false;
    }
    h->l3 -= tag;
    h->l4 -= tag;
    h->end -= tag;
    h->field = h->l4 + (h->l4_type == L4T_TCP ? 16 : h->l4_type == L4T_UDP ? 6 : 8);
    return h->l4_type == 0 ||
           h->end - h->l4 >= (h->l4_type == L4T_TCP ? 20 : h->l4_type == L4T_UDP ? 8 : 12);
}

static void sum_ip(avf_frame *f, const struct headers *h)
{
    uint16_t sum;

    memset(f->head + h->l3 + 10, 0, 2);
    sum = (uint16_t)~avf_fold(avf_sum(0, f->head + h->l3, h->l4 - h->l3));
    memcpy(f->head + h->l3 + 10, &sum, 2);
}

/* `sum`: of what is to be added to the bytes of the frame. */
static int sum_l4(avf_switch *s, vdcm_worker *worker, avf_frame *f, const struct headers *h,
                  uint64_t sum)
{
    uint32_t end = f->end > h->l4 ? f->end : f->length;
    uint16_t word;
    int error;

    if (h->l4_type == L4T_SCTP) {
        uint32_t crc;

        memset(f->head + h->field, 0, 4);
        error = avf_crc_frame(s, worker, f, h->l4, end, &crc);
        memcpy(f->head + h->field, &crc, 4);
        return error;
    }
    error = avf_sum_frame(s, worker, f, h->l4, end, &sum);
    word = (uint16_t)~avf_fold(sum);
    if (word == 0 && h->l4_type == L4T_UDP) {
        word = 0xffff; /* 0 says that there is none (RFC 768) */
    }
    memcpy(f->head + h->field, &word, 2);
    return error;
}

static void count(avf_port *p, const avf_frame *f)
{
    avf_counters *c = &p->counters;

    c->tx_bytes += f->length;
    *(f->kind == AVF_UNICAST     ? &c->tx_unicast
      : f->kind == AVF_MULTICAST ? &c->tx_multicast
                                 : &c->tx_broadcast) += 1;
}

/* A frame that is complete: the bytes of work. */
static int64_t forward(avf_port *p, vdcm_worker *worker, avf_frame *f)
{
    int sent;

    count(p, f);
    avf_capture_frame(p, worker, f);
    sent = avf_forward(p->its, p, worker, f);
    return sent < 0 ? sent : (int64_t)f->length * (sent > 1 ? sent : 1);
}

static int64_t send_one(avf_port *p, vdcm_worker *worker, avf_frame *f, const struct headers *h)
{
    int error = 0;

    avf_classify(f);
    if (h->sum_ip) {
        sum_ip(f, h);
    }
    if (h->l4_type != 0) {
        error = sum_l4(p->its, worker, f, h, 0);
        f->summed = true;
    } else {
        error = avf_verify(p->its, worker, f);
    }
    return error != 0 ? error : forward(p, worker, f);
}

/* The headers of the segment that begins `offset` bytes behind them. */
static void make_segment(avf_frame *f, const struct headers *h, const uint8_t *template,
                         uint32_t offset, bool last, uint32_t number)
{
    uint8_t *ip = f->head + h->l3;
    uint8_t *tcp = f->head + h->l4;
    uint32_t sequence;

    memcpy(f->head, template, h->end);
    if (h->four) {
        avf_put16(ip + 2, f->length - h->l3);
        avf_put16(ip + 4, avf_be16(ip + 4) + number);
    } else {
        avf_put16(ip + 4, f->length - h->l3 - 40);
    }
    sequence = (avf_be16(tcp + 4) << 16 | avf_be16(tcp + 6)) + offset;
    avf_put16(tcp + 4, sequence >> 16);
    avf_put16(tcp + 6, sequence);
    if (!last) {
        tcp[13] &= (uint8_t)~FIN_PSH;
    }
    if (number != 0) {
        tcp[13] &= (uint8_t)~CWR;
    }
}

static int64_t send_segments(avf_port *p, vdcm_worker *worker, avf_frame *f,
                             const struct headers *h, uint32_t mss, uint32_t payload)
{
    uint8_t template[AVF_HEAD];
    uint32_t body = f->at - (f->head_length - h->end); /* offset of the first byte behind the headers */
    int64_t units = 0;
    uint32_t number = 0;

    memcpy(template, f->head, h->end);
    f->head_length = h->end;
    for (uint32_t offset = 0; offset < payload; offset += mss, number++) {
        uint32_t length = payload - offset < mss ? payload - offset : mss;
        uint8_t l4_length[2];
        int64_t one;
        int error;

        f->at = body + offset;
        f->length = h->end + length;
        make_segment(f, h, template, offset, offset + length == payload, number);
        avf_classify(f);
        if (h->four) {
            sum_ip(f, h);
        }
        avf_put16(l4_length, f->length - h->l4);
        error = sum_l4(p->its, worker, f, h, avf_sum(0, l4_length, 2));
        f->summed = true;
        one = error != 0 ? error : forward(p, worker, f);
        if (one < 0) {
            return one;
        }
        units += one;
    }
    return units;
}

uint32_t avf_take_tag(avf_frame *f)
{
    f->tagged = f->head_length >= LEAST + TAG && avf_be16(f->head + 12) == 0x8100;
    if (!f->tagged) {
        return 0;
    }
    f->tag = (uint16_t)avf_be16(f->head + 14);
    memmove(f->head + 12, f->head + 16, f->head_length - 16);
    f->head_length -= TAG;
    f->length -= TAG;
    return TAG;
}

/* The frame's tag: that of the descriptor, else the frame's own. False: it asks for one
 * that it may not have. */
static bool take_tag(avf_port *p, avf_frame *f, uint32_t *in_frame)
{
    uint64_t word = p->its->source.word;

    *in_frame = 0;
    if ((word >> 7 & 1) != 0) {
        f->tagged = true;
        f->tag = (uint16_t)(word >> 48);
        return p->filters.insert;
    }
    *in_frame = avf_take_tag(f);
    return true;
}

static int64_t offend(avf_port *p, vdcm_worker *worker, uint32_t code, uint32_t queue,
                      uint64_t value)
{
    avf_offend(p, worker, code, true, queue, value, 0);
    return 0;
}

int64_t avf_send(avf_port *p, vdcm_worker *worker, uint32_t queue)
{
    avf_switch *s = p->its;
    avf_source *source = &s->source;
    avf_frame *f = &s->frame;
    bool segmented = (source->context >> 4 & 1) != 0;
    uint32_t payload = source->context >> 30 & 0x3ffff;
    uint32_t mss = (uint32_t)(source->context >> 50);
    struct headers h;
    uint64_t address = 0;
    uint32_t tag;
    bool allowed;
    int error;

    if (source->length < LEAST || (!segmented && source->length > AVF_LONGEST)) {
        return offend(p, worker, AVF_BAD_LENGTH, queue, source->length);
    }
    error = avf_reach_source(s, worker, &address);
    if (error != 0) {
        avf_offend(p, worker, AVF_BAD_BUFFER, true, queue, address, error);
        return 0;
    }
    f->length = source->length;
    f->head_length = f->at = f->length < AVF_HEAD ? f->length : AVF_HEAD;
    error = avf_copy_head(s, worker, f->head, f->head_length);
    if (error != 0) {
        return error;
    }
    allowed = take_tag(p, f, &tag);
    f->outside = false;
    f->kind = avf_kind_of(f);
    if (!parse(source, &h, tag) ||
        (h.l4_type != 0 && (h.end > f->head_length || h.field + 2 > f->head_length)) ||
        (h.sum_ip && h.l4 > f->head_length)) {
        return offend(p, worker, AVF_BAD_OFFSETS, queue, source->word);
    }
    if (segmented && (h.l4_type != L4T_TCP || h.end + payload != f->length || payload == 0 ||
                      mss < LEAST_MSS || h.end + mss > AVF_LONGEST)) {
        return offend(p, worker, AVF_BAD_SEGMENTS, queue, source->context);
    }
    if (!p->link) {
        p->counters.tx_discards++;
        return f->length;
    }
    /* Nobody has segments for many: they would be copied without a limit. */
    if (!allowed || !avf_may_send(p, f) || (segmented && f->kind != AVF_UNICAST)) {
        p->counters.tx_errors++;
        return f->length;
    }
    if (p->filters.learn) {
        avf_learn(p, avf_mac(f->head + 6));
    }
    return segmented ? send_segments(p, worker, f, &h, mss, payload)
                     : send_one(p, worker, f, &h);
}
