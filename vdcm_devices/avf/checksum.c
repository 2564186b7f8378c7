/* The checksums of IP, TCP, UDP (RFC 1071) and SCTP (RFC 9260), over frames that lie in pieces. */
#include "engine.h"

enum { TCP = 6, UDP = 17, SCTP = 132 };

/* Two words of 32 bits in two of 64. */
typedef uint64_t pair __attribute__((vector_size(16)));

/* In words of 32 bits, since those of 16 have the same sum modulo 2^16 - 1. */
uint64_t avf_sum(uint64_t sum, const uint8_t *bytes, uint32_t length)
{
    pair low = {0, 0};
    pair high = {0, 0};
    uint32_t word;
    uint16_t half = 0;

    for (; length >= sizeof(pair); length -= sizeof(pair), bytes += sizeof(pair)) {
        pair words;

        memcpy(&words, bytes, sizeof(words));
        low += words & 0xffffffff;
        high += words >> 32;
    }
    low += high;
    sum += low[0] + low[1];

    for (; length >= sizeof(word); length -= sizeof(word), bytes += sizeof(word)) {
        memcpy(&word, bytes, sizeof(word));
        sum += word;
    }
    if (length >= 2) {
        memcpy(&half, bytes, 2);
        sum += half;
        bytes += 2;
        length -= 2;
    }
    if (length != 0) {
        half = 0;
        memcpy(&half, bytes, 1); /* the byte behind it is 0 */
        sum += half;
    }
    return sum;
}

uint16_t avf_fold(uint64_t sum)
{
    sum = (sum & 0xffffffff) + (sum >> 32);
    sum = (sum & 0xffffffff) + (sum >> 32);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    return (uint16_t)sum;
}

/* Bytes of the source, from `at` on. */
struct walk {
    const avf_source *source;
    uint32_t at;
    uint32_t left;
    uint64_t sum;
    bool odd; /* an odd number of bytes has been added */
    uint32_t crc;
    uint8_t *to;
    void (*add)(struct walk *w, const uint8_t *bytes, uint32_t length);
};

static void add_sum(struct walk *w, const uint8_t *bytes, uint32_t length)
{
    uint16_t sum = avf_fold(avf_sum(0, bytes, length));

    w->sum += w->odd ? (uint16_t)(sum << 8 | sum >> 8) : sum;
    w->odd ^= (length & 1) != 0;
}

static void add_crc(struct walk *w, const uint8_t *bytes, uint32_t length)
{
    static const uint32_t table[16] = {
        /* Of the reflected polynomial 82F63B78h, for half a byte. */
        0x00000000, 0x105ec76f, 0x20bd8ede, 0x30e349b1, 0x417b1dbc, 0x5125dad3,
        0x61c69362, 0x7198540d, 0x82f63b78, 0x92a8fc17, 0xa24bb5a6, 0xb21572c9,
        0xc38d26c4, 0xd3d3e1ab, 0xe330a81a, 0xf36e6f75};

    for (uint32_t i = 0; i < length; i++) {
        w->crc ^= bytes[i];
        w->crc = w->crc >> 4 ^ table[w->crc & 15];
        w->crc = w->crc >> 4 ^ table[w->crc & 15];
    }
}

static void add_copy(struct walk *w, const uint8_t *bytes, uint32_t length)
{
    memcpy(w->to, bytes, length);
    w->to += length;
}

static int walk(void *argument)
{
    struct walk *w = argument;

    for (uint32_t i = 0; w->left != 0; i++) {
        uint32_t length = w->source->pieces[i].length;
        uint32_t here;

        if (w->at >= length) {
            w->at -= length;
            continue;
        }
        here = length - w->at < w->left ? length - w->at : w->left;
        w->add(w, w->source->pieces[i].memory + w->at, here);
        w->at = 0;
        w->left -= here;
    }
    return 0;
}

static int walk_frame(avf_switch *s, vdcm_worker *worker, const avf_frame *f, uint32_t from,
                      uint32_t end, struct walk *w)
{
    uint64_t address;
    int error;

    if (from < f->head_length) {
        uint32_t last = end < f->head_length ? end : f->head_length;

        w->add(w, f->head + from, last - from);
        from = last;
    }
    if (from == end) {
        return 0;
    }
    error = avf_reach_source(s, worker, &address);
    if (error != 0) {
        return error;
    }
    w->source = &s->source;
    w->at = f->at + from - f->head_length;
    w->left = end - from;
    return s->services->guarded(worker, walk, w);
}

int avf_sum_frame(avf_switch *s, vdcm_worker *worker, const avf_frame *f, uint32_t from,
                  uint32_t end, uint64_t *sum)
{
    struct walk w = {.sum = *sum, .add = add_sum};
    int error = walk_frame(s, worker, f, from, end, &w);

    *sum = w.sum;
    return error;
}

int avf_crc_frame(avf_switch *s, vdcm_worker *worker, const avf_frame *f, uint32_t from,
                  uint32_t end, uint32_t *crc)
{
    struct walk w = {.crc = UINT32_MAX, .add = add_crc};
    int error = walk_frame(s, worker, f, from, end, &w);

    *crc = ~w.crc;
    return error;
}

int avf_copy_rest(avf_switch *s, vdcm_worker *worker, const avf_frame *f, uint8_t *to)
{
    struct walk w = {.to = to, .add = add_copy};

    return walk_frame(s, worker, f, f->head_length, f->length, &w);
}

/* The pseudo header: addresses, protocol, length (RFC 9293, 3.1; RFC 8200, 8.1). */
static uint64_t pseudo_header(const avf_frame *f, uint32_t length)
{
    const uint8_t rest[8] = {0, 0, 0, f->protocol, 0, 0, (uint8_t)(length >> 8), (uint8_t)length};
    const uint8_t *ip = f->head + f->l3;

    return avf_sum(f->six ? avf_sum(0, ip + 8, 32) : avf_sum(0, ip + 12, 8), rest, sizeof(rest));
}

int avf_verify(avf_switch *s, vdcm_worker *worker, avf_frame *f)
{
    uint32_t field = f->protocol == TCP ? 16 : 6;
    uint32_t least = f->protocol == TCP ? 20 : 8;
    uint64_t sum;
    int error;

    if (f->l3 == 0) {
        return 0;
    }
    if (!f->six) {
        f->bad_ip = avf_fold(avf_sum(0, f->head + f->l3, f->l4 - f->l3)) != 0xffff;
    }
    if (f->fragment || (f->protocol != TCP && f->protocol != UDP)) {
        f->summed = f->fragment || f->protocol != SCTP;
        return 0;
    }
    f->summed = true;
    if (f->end - f->l4 < least) {
        f->bad_l4 = true;
        return 0;
    }
    if (f->protocol == UDP && !f->six && avf_be16(f->head + f->l4 + field) == 0) {
        return 0; /* it has none */
    }
    sum = pseudo_header(f, f->end - f->l4);
    error = avf_sum_frame(s, worker, f, f->l4, f->end, &sum);
    f->bad_l4 = avf_fold(sum) != 0xffff;
    return error;
}
