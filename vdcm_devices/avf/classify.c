/* What a frame is: headers, packet type (X710 datasheet, 8.3.3), and the hash that spreads it (RSS). */
#include "engine.h"

enum { ICMP = 1, TCP = 6, UDP = 17, FRAGMENT_HEADER = 44, ICMP6 = 58, SCTP = 132 };

/* Of IPv4; those of IPv6 are so much further. */
enum {
    L2_TYPE = 1,
    FRAGMENT_TYPE = 22,
    IP_TYPE,
    UDP_TYPE,
    TCP_TYPE = 26,
    SCTP_TYPE,
    ICMP_TYPE,
    SIX_TYPE = 88 - 22
};

/* Packet classifier types, likewise. */
enum { HASH_UDP = 31, HASH_TCP = 33, HASH_SCTP, HASH_IP, HASH_FRAGMENT, HASH_SIX = 10, HASH_L2 = 63 };

/* The layer above IP, whose ports are hashed with the addresses. */
static void classify_l4(avf_frame *f)
{
    uint8_t type = IP_TYPE;
    uint8_t hash = HASH_IP;

    if (f->fragment) {
        type = FRAGMENT_TYPE;
        hash = HASH_FRAGMENT;
    } else if (f->protocol == UDP) {
        type = UDP_TYPE;
        hash = HASH_UDP;
    } else if (f->protocol == TCP) {
        type = TCP_TYPE;
        hash = HASH_TCP;
    } else if (f->protocol == SCTP) {
        type = SCTP_TYPE;
        hash = HASH_SCTP;
    } else if (f->protocol == (f->six ? ICMP6 : ICMP)) {
        type = ICMP_TYPE;
    }
    f->packet_type = (uint8_t)(type + (f->six ? SIX_TYPE : 0));
    f->hash_type = (uint8_t)(hash + (f->six ? HASH_SIX : 0));
    if (hash != HASH_IP && hash != HASH_FRAGMENT && f->l4 + 4u <= f->head_length) {
        memcpy(f->input + f->hashed, f->head + f->l4, 4);
        f->hashed = (uint8_t)(f->hashed + 4);
    }
}

static void classify_four(avf_frame *f, uint32_t at)
{
    const uint8_t *ip = f->head + at;
    uint32_t header, total;

    if (f->head_length < at + 20 || ip[0] >> 4 != 4) {
        return;
    }
    header = (ip[0] & 15u) * 4;
    total = avf_be16(ip + 2);
    if (header < 20 || total < header || at + total > f->length || at + header > f->head_length) {
        return;
    }
    f->l3 = (uint16_t)at;
    f->l4 = (uint16_t)(at + header);
    f->end = at + total;
    f->protocol = ip[9];
    f->fragment = (avf_be16(ip + 6) & 0x3fff) != 0;
    f->hashed = 8;
    memcpy(f->input, ip + 12, 8);
    classify_l4(f);
}

/* Extension headers are not followed; a fragment's is the first one. */
static void classify_six(avf_frame *f, uint32_t at)
{
    const uint8_t *ip = f->head + at;

    if (f->head_length < at + 40 || ip[0] >> 4 != 6 || at + 40 + avf_be16(ip + 4) > f->length) {
        return;
    }
    f->six = true;
    f->l3 = (uint16_t)at;
    f->l4 = (uint16_t)(at + 40);
    f->end = at + 40 + avf_be16(ip + 4);
    f->protocol = ip[6];
    f->fragment = f->protocol == FRAGMENT_HEADER;
    f->hashed = 32;
    memcpy(f->input, ip + 8, 32);
    classify_l4(f);
}

void avf_classify(avf_frame *f)
{
    uint32_t at = 14;
    uint32_t type = avf_be16(f->head + 12);

    f->l3 = f->l4 = 0;
    f->hashed = 0;
    f->protocol = 0;
    f->fragment = f->six = f->summed = f->bad_ip = f->bad_l4 = false;
    f->end = f->length;
    f->packet_type = L2_TYPE;
    f->hash_type = HASH_L2;
    if (type == 0x8100 && f->head_length >= 18) {
        type = avf_be16(f->head + 16); /* a second tag */
        at = 18;
    }
    if (type == 0x0800) {
        classify_four(f, at);
    } else if (type == 0x86dd) {
        classify_six(f, at);
    }
}

/* ---- Toeplitz -------------------------------------------------------------------------------- */

static uint32_t key_bits(const uint8_t *key, uint32_t bit)
{
    uint64_t bits = 0;

    for (uint32_t i = 0; i < 5; i++) {
        bits = bits << 8 | key[bit / 8 + i];
    }
    return (uint32_t)(bits >> (8 - bit % 8));
}

void avf_set_key(avf_port *p, const uint8_t *key)
{
    for (uint32_t i = 0; i < 2 * AVF_HASHED; i++) {
        for (uint32_t value = 0; value < 16; value++) {
            uint32_t hash = 0;

            for (uint32_t bit = 0; bit < 4; bit++) {
                if ((value >> (3 - bit) & 1) != 0) {
                    hash ^= key_bits(key, 4 * i + bit);
                }
            }
            p->toeplitz[i][value] = hash;
        }
    }
}

uint32_t avf_hash(const avf_port *p, const avf_frame *f)
{
    uint32_t hash = 0;

    for (uint32_t i = 0; i < f->hashed; i++) {
        hash ^= p->toeplitz[2 * i][f->input[i] >> 4] ^ p->toeplitz[2 * i + 1][f->input[i] & 15];
    }
    return hash;
}
