/*
 * Inside the data path: the switch, its ports and queues, a frame on its way, and what the rooms have of
 * each other. All of it is touched under the switch's lock.
 */
#ifndef AVF_ENGINE_H
#define AVF_ENGINE_H

#include <stdatomic.h>
#include <string.h>

#include "fastpath.h"
#include "port.h"

enum {
    AVF_HEAD = 256,   /* bytes of a frame that are looked at and delivered from a copy */
    AVF_FRAMES = 64,  /* that one run sends at most */
    AVF_FETCH = 32,   /* receive descriptors that are fetched in one go, at most */
    AVF_PIECES = 5,   /* in which a buffer of 16 KiB can lie: no mapping is finer than 4 KiB */
    AVF_LONGEST = AVF_MAX_FRAME - 4, /* bytes of a frame without its CRC */
    AVF_HASHED = 36,  /* bytes that RSS hashes, at most */
    AVF_BUCKETS = 4096
};

/* Registers on the direct pages. */
enum {
    AVF_QTX_TAIL = 0x0000,
    AVF_QRX_TAIL = 0x2000,
    AVF_ITRN = 0x2800,
    AVF_DYN_CTLN = 0x3800
};

typedef _Atomic(uint32_t) avf_register;

typedef struct {
    uint64_t address;
    uint64_t word;
} avf_tx_descriptor;

typedef struct {
    avf_queue_settings is;
    bool configured;
    bool enabled;
    uint32_t head;
    uint32_t tail;  /* accepted */
    uint32_t stuck; /* a tail at which a frame is not complete, or cannot be read; UINT32_MAX: none */
} avf_tx;

typedef struct {
    avf_queue_settings is;
    bool configured;
    bool enabled;
    uint32_t head;
    uint32_t n_fetched; /* from head on */
    uint32_t first;     /* of `fetched`, the one at head */
    uint64_t fetched[AVF_FETCH];
} avf_rx;

typedef struct {
    uint8_t causes; /* a bit for each ITR index that has one */
    uint64_t sent;  /* ns, the last time */
} avf_vector;

typedef struct avf_address avf_address;
struct avf_address {
    uint64_t mac; /* its 6 bytes as they lie in memory, then 0 */
    avf_port *port;
    avf_address *next; /* of the same bucket */
};

typedef struct avf_stations avf_stations;
typedef struct avf_station avf_station;
typedef struct avf_capture avf_capture;

struct avf_port {
    avf_switch *its;
    avf_port *next;
    avf_port *next_promiscuous;
    avf_port *next_dirty;
    vdcm_queue *handle; /* NULL: the sweep does not know it */
    uint8_t *pages;
    bool link;
    bool broken; /* reported, and not reset since */
    bool held;   /* an interrupt waits for its time */
    bool dirty;  /* in the switch's list of ports to interrupt */
    uint32_t tx_enabled;
    uint32_t turn;
    atomic_uint ready; /* transmit queues that have something */
    uint64_t stamp;    /* number of the frame that was offered to it last */
    avf_tx tx[AVF_QUEUES];
    avf_rx rx[AVF_QUEUES];
    avf_vector vectors[AVF_QUEUES];
    uint32_t caused;               /* a bit for each that has a cause */
    uint32_t controls[AVF_QUEUES]; /* what DYN_CTLN holds while the driver stores nothing */
    avf_filters filters;
    uint64_t mac;
    avf_address *addresses;
    avf_stations *stations; /* learnt to be behind it; NULL: it has never learnt */
    uint8_t table[AVF_TABLE];
    uint64_t types;
    uint32_t toeplitz[2 * AVF_HASHED][16]; /* of each half byte that is hashed */
    avf_counters counters;
    avf_capture *capture; /* NULL: nobody wants it */
};

/* What a sender's descriptors say of one frame, and where it lies. */
typedef struct {
    uint64_t context; /* second word of the context descriptor, 0: there is none */
    uint64_t word;    /* of the first data descriptor */
    uint32_t length;  /* of all buffers */
    uint32_t n_buffers;
    uint32_t n_pieces;
    bool reached;
    bool own; /* memory of ours, which needs not be reached */
    struct {
        uint64_t address;
        uint32_t length;
    } buffers[AVF_MAX_CHAIN];
    struct {
        const uint8_t *memory;
        uint32_t length;
    } pieces[AVF_MAX_CHAIN * AVF_PIECES];
} avf_source;

enum avf_kind { AVF_UNICAST, AVF_MULTICAST, AVF_BROADCAST };

/* A frame without its first VLAN tag. What the switch decides on is in `head`, which the sender cannot
 * change any more; the rest is bytes [at, at + length - head_length) of the source. */
typedef struct {
    uint32_t length;
    uint32_t head_length;
    uint32_t at;
    enum avf_kind kind;
    bool tagged;
    uint16_t tag;
    uint16_t l3, l4;    /* offsets; 0: no such header */
    uint32_t end;       /* of the IP packet */
    uint8_t protocol;
    uint8_t packet_type; /* as a receive descriptor names it */
    uint8_t hash_type;   /* a bit of avf_rss() */
    uint8_t hashed;      /* bytes of `input` */
    bool fragment;
    bool six;     /* IPv6 */
    bool outside; /* it comes by the uplink */
    bool summed;   /* checksums have been looked at or made */
    bool bad_ip;
    bool bad_l4;
    uint8_t input[AVF_HASHED];
    _Alignas(64) uint8_t head[AVF_HEAD]; /* one cache line is copied at a time */
} avf_frame;

/* Memory of one piece that has been reached, good until avf_leave(). */
typedef struct {
    uint64_t address;
    uint64_t length; /* 0: there is none */
    uint8_t *memory;
    bool write;      /* what it is reached for */
    int64_t used[2]; /* bytes to read and to write, beyond what the engine has counted */
} avf_window;

struct avf_switch {
    const vdcm_services *services;
    atomic_flag lock;
    avf_port *ports;
    avf_port *promiscuous;
    avf_port *dirty;
    avf_uplink *uplink;
    avf_address *buckets[AVF_BUCKETS];
    avf_station *learnt[AVF_BUCKETS];
    uint64_t n_learnt;
    uint64_t multiplier;  /* of the hash of `learnt`: odd, and nobody outside knows it */
    uint64_t now;         /* ns, of this run; 0: nobody has asked yet */
    uint64_t frames;      /* number of the frame that is offered */
    const avf_port *inside; /* whose memory is reached beside the sender's */
    uint64_t held;        /* bytes since leave() */
    avf_window from;      /* the sender's buffers, */
    avf_window to;        /* those of the port that is inside, */
    avf_window ring;      /* and its receive ring */
    avf_source source;
    avf_frame frame;
    avf_tx_descriptor fetched[AVF_MAX_CHAIN];
};

static inline avf_register *avf_at(const avf_port *p, uint32_t offset, uint32_t index)
{
    return (avf_register *)(void *)(p->pages + offset) + index;
}

static inline uint64_t avf_mac(const uint8_t *bytes)
{
    uint32_t low;
    uint16_t high;

    /* Not into one word, which would have to wait until both parts of it have been stored. */
    memcpy(&low, bytes, sizeof(low));
    memcpy(&high, bytes + sizeof(low), sizeof(high));
    return (uint64_t)high << 32 | low;
}

/* What lies at `address` is going to be read or written, if it is known where that is. */
static inline void avf_expect(const avf_window *window, uint64_t address)
{
    if (address - window->address < window->length) {
        __builtin_prefetch(window->memory + (address - window->address), 1);
    }
}

static inline uint32_t avf_bucket(uint64_t mac)
{
    return (uint32_t)(mac * UINT64_C(0x9e3779b97f4a7c15) >> 52);
}

static inline enum avf_kind avf_kind_of(const avf_frame *f)
{
    if (avf_mac(f->head) == UINT64_C(0xffffffffffff)) {
        return AVF_BROADCAST;
    }
    return (f->head[0] & 1) == 0 ? AVF_UNICAST : AVF_MULTICAST;
}

static inline uint32_t avf_be16(const uint8_t *bytes)
{
    return (uint32_t)bytes[0] << 8 | bytes[1];
}

static inline void avf_put16(uint8_t *bytes, uint32_t value)
{
    bytes[0] = (uint8_t)(value >> 8);
    bytes[1] = (uint8_t)value;
}

/* ---- control.c ------------------------------------------------------------------------------- */

void avf_lock(avf_switch *s);
void avf_unlock(avf_switch *s);

/* ---- access.c: guest memory ------------------------------------------------------------------ */

/* As the service of this name with the primary PASID, by way of a window. What is `write` here may be
 * read only in a window that is for both. */
int avf_reach(avf_switch *s, vdcm_worker *worker, avf_window *window, uint64_t address,
              uint64_t length, bool write, void **memory, uint64_t *here);
/* The sender's buffers: 0, or a negative errno and in *address where. */
int avf_reach_source(avf_switch *s, vdcm_worker *worker, uint64_t *address);
/* The engine counts what of the window was used by `worker`. Before another one uses it. */
void avf_settle(avf_switch *s, vdcm_worker *worker, avf_window *window);
/* Lets go of all memory; the source, `worker`'s, is reached again when it is needed. */
void avf_leave(avf_switch *s, vdcm_worker *worker);
/* In guarded(): 0 or -EIO. */
int avf_copy(avf_switch *s, vdcm_worker *worker, void *to, const void *from, uint32_t length);
/* The first `length` bytes of the source, which is reached: 0 or -EIO. */
int avf_copy_head(avf_switch *s, vdcm_worker *worker, uint8_t *to, uint32_t length);
/* Is all of the source still there? 0 or -EIO. */
int avf_probe_source(avf_switch *s, vdcm_worker *worker);
/* The driver has done something that it must not: says so once, and stops its port. */
void avf_offend(avf_port *p, vdcm_worker *worker, uint32_t code, bool transmit, uint32_t queue,
                uint64_t value, int error);

/* ---- checksum.c ------------------------------------------------------------------------------ */

/* Sums of 16-bit words as they lie in memory. */
uint64_t avf_sum(uint64_t sum, const uint8_t *bytes, uint32_t length);
uint16_t avf_fold(uint64_t sum);
/* Adds to *sum the bytes from `from` to `end` of the frame, part of which may be in the source. */
int avf_sum_frame(avf_switch *s, vdcm_worker *worker, const avf_frame *f, uint32_t from,
                  uint32_t end, uint64_t *sum);
/* CRC32c (RFC 9260, appendix A) of the same bytes. */
int avf_crc_frame(avf_switch *s, vdcm_worker *worker, const avf_frame *f, uint32_t from,
                  uint32_t end, uint32_t *crc);
/* The bytes of the frame that are not in its head. 0 or -errno. */
int avf_copy_rest(avf_switch *s, vdcm_worker *worker, const avf_frame *f, uint8_t *to);
/* Are the checksums of a frame right that its sender made itself? 0 or -EIO. */
int avf_verify(avf_switch *s, vdcm_worker *worker, avf_frame *f);

/* ---- classify.c ------------------------------------------------------------------------------ */

/* Finds headers, packet type and what is hashed. */
void avf_classify(avf_frame *f);
/* The Toeplitz hash of the port's key. */
uint32_t avf_hash(const avf_port *p, const avf_frame *f);
void avf_set_key(avf_port *p, const uint8_t *key);

/* ---- switch.c -------------------------------------------------------------------------------- */

/* Has a port this address as a filter? */
bool avf_is_filter(const avf_switch *s, uint64_t mac);
/* Sends the frame to all ports that it is for, and to the uplink; how many. `from` NULL: it comes from
 * there. The source may have gone: -errno. */
int avf_forward(avf_switch *s, const avf_port *from, vdcm_worker *worker, avf_frame *f);
/* May `from` send it? */
bool avf_may_send(const avf_port *from, const avf_frame *f);

/* ---- learn.c: who is behind a port that may send from addresses not its own -------------------- */

/* Room for AVF_LEARNT. NULL: without memory. */
avf_stations *avf_stations_new(void);
/* `p`, which learns, has sent from this address. */
void avf_learn(avf_port *p, uint64_t mac);
/* The port that it is behind; NULL: not known, or not seen for AVF_AGE_S. */
avf_port *avf_behind(avf_switch *s, uint64_t mac);
/* It is somewhere else: a port has it as a filter, or it is outside. */
void avf_forget(avf_switch *s, uint64_t mac);
/* Nothing is behind `p` any more. */
void avf_forget_all(avf_port *p);

/* ---- capture.c ------------------------------------------------------------------------------- */

/* Keeps the frame, if somebody wants it. */
void avf_capture_frame(avf_port *p, vdcm_worker *worker, const avf_frame *f);

/* ---- receive.c ------------------------------------------------------------------------------- */

/* Puts the frame into a receive queue of `to`, whose worker is `other`. 0; -ENOBUFS: there is no place;
 * else the source has gone. */
int avf_receive(avf_port *to, vdcm_worker *other, const avf_frame *f);

/* ---- segment.c ------------------------------------------------------------------------------- */

/* Sends the source as a frame with the checksums that its descriptors ask for, or as segments. Bytes of
 * work, or a negative errno: the source has gone; 0: the driver has been reported. */
int64_t avf_send(avf_port *p, vdcm_worker *worker, uint32_t queue);

/* Takes the tag out of the head, if it has one: the bytes that were it. */
uint32_t avf_take_tag(avf_frame *f);

/* ---- uplink.c -------------------------------------------------------------------------------- */

/* 1, or 0: it is dropped; negative: the source has gone. */
int avf_uplink_send(avf_switch *s, vdcm_worker *worker, const avf_frame *f);

/* ---- transmit.c ------------------------------------------------------------------------------ */

/* Sends frames of a queue, *frames at most, for about `budget` bytes; how many were it. */
uint64_t avf_transmit(avf_port *p, vdcm_worker *worker, uint32_t queue, uint64_t budget,
                      uint32_t *frames);

/* ---- interrupt.c ----------------------------------------------------------------------------- */

/* There is a reason for an interrupt; avf_interrupt_all() or the port's next look sends it. */
void avf_cause(avf_port *p, int32_t message, uint32_t itr);
/* Looks at the registers, and sends what may be sent. */
void avf_interrupt(avf_port *p, vdcm_worker *worker);
/* All ports that have had a cause. */
void avf_interrupt_all(avf_switch *s, vdcm_worker *worker);

#endif
