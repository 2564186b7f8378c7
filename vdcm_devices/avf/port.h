/*
 * The data path of the NIC: a switch, and its ports, which are VSIs with their queue pairs. Descriptors,
 * registers and packet types are those of Intel's Adaptive Virtual Functions (X710 datasheet, 8.3 to
 * 8.5: receive, transmit, checksum, segmentation, RSS).
 *
 * A port is one queue of one ADI, run by the sweep through avf_fastpath(): it takes what its transmit
 * queues have, and puts frames into the receive queues of other ports, on behalf of their ADIs. All
 * ports of a switch are on one sweep; frames to one that is on another are dropped.
 *
 * Threads: all functions are called from the control thread, at any time; changes are made between two
 * runs of the sweep, under the switch's lock. Errors are negative errno values. Guest addresses are in
 * the address space of the ADI's primary PASID.
 */
#ifndef AVF_PORT_H
#define AVF_PORT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* cffi: begin */

typedef struct avf_switch avf_switch;
typedef struct avf_port avf_port;

enum {
    AVF_QUEUES = 16,          /* pairs of a port, and interrupt vectors for them */
    AVF_MAX_DESCRIPTORS = 4096, /* of a ring */
    AVF_MAX_FRAME = 9728,     /* bytes, with the CRC that no frame here has */
    AVF_MAX_CHAIN = 128,      /* transmit descriptors of one frame, segmented or not */
    AVF_ADDRESSES = 64,       /* of a port */
    AVF_LEARNT = 256,         /* addresses behind a port */
    AVF_AGE_S = 300,          /* seconds that one is known that is not seen (IEEE 802.1Q-2018, 8.8.3) */
    AVF_VLANS = 4096,
    AVF_KEY = 52,             /* bytes */
    AVF_TABLE = 64,           /* entries */
    AVF_PAGES = 0x4000        /* bytes of BAR0 that are the data path's */
};

/* `services`: vdcm.sweep.services(). NULL with errno EINVAL for services of another version, ENOMEM. */
avf_switch *avf_switch_new(uintptr_t services);
/* Its ports have been freed. */
void avf_switch_free(avf_switch *s);

/* A port with its link down, that receives nothing. NULL with errno ENOMEM. */
avf_port *avf_port_new(avf_switch *s);
/* The sweep has let go of it. */
void avf_port_free(avf_port *p);
/* The const vdcm_fastpath * of an avf_port, which has doorbells. */
uintptr_t avf_fastpath(void);

/*
 * `pages`: memory shared with the guest (which cannot cut it short) that is the first AVF_PAGES bytes of
 * BAR0, aligned to 4; 0: none any more. Needed before a queue is enabled.
 */
void avf_pages(avf_port *p, uintptr_t pages);

/* message -1: none. itr: 0 to 2, or 3: none. */
typedef struct {
    uint64_t address;
    uint32_t length; /* descriptors */
    int32_t message;
    uint32_t itr;
    uint32_t buffer; /* receive: bytes of a buffer */
    uint32_t max_frame; /* receive: with tag and CRC */
} avf_queue_settings;

/* Of a queue that is not enabled. -EINVAL: out of range. */
int avf_configure(avf_port *p, bool transmit, uint32_t queue, const avf_queue_settings *settings);
/* By bit masks; a queue begins at descriptor 0. -EINVAL: one is not configured, or there are no pages. */
int avf_enable(avf_port *p, uint32_t tx, uint32_t rx);
/* When it returns, they do nothing; their tails are 0. */
void avf_disable(avf_port *p, uint32_t tx, uint32_t rx);
/* All queues are disabled and no longer configured, interrupts as after a reset, and nothing is learnt; a
 * port that has been reported may go on. Filters, link and counters stay. */
void avf_reset(avf_port *p);

typedef struct {
    uint8_t mac[6]; /* the rest is for others than `mac` */
    uint8_t addresses[64][6];
    uint32_t n_addresses;
    bool every_vlan;
    bool all_unicast;
    bool all_multicast;
    bool check_source;
    bool learn; /* and not check_source: what it sends from, and no port has, is behind it */
    bool strip;
    bool insert;
    uint8_t vlans[512]; /* a bit for each, from bit 0 of byte 0 */
} avf_filters;

/* -EINVAL, -ENOMEM: as before. */
int avf_filter(avf_port *p, const avf_filters *filters);
/* `types`: a bit for each packet type that is hashed. -EINVAL: a queue that cannot be. */
int avf_rss(avf_port *p, const uint8_t *key, const uint8_t *table, uint64_t types);
void avf_link(avf_port *p, bool up);

typedef struct {
    uint8_t mac[8]; /* 6 */
    uint64_t age;   /* ns since it has sent */
} avf_learnt;
/* What is behind the port, the one seen last first: how many, AVF_LEARNT at most. */
uint32_t avf_list_learnt(avf_port *p, avf_learnt *out);

typedef struct {
    uint64_t rx_bytes, rx_unicast, rx_multicast, rx_broadcast, rx_discards, rx_unknown_protocol;
    uint64_t tx_bytes, tx_unicast, tx_multicast, tx_broadcast, tx_discards, tx_errors;
} avf_counters;
void avf_count(avf_port *p, avf_counters *out);

/*
 * The uplink of a switch, at most one: a queue of an ADI of the host's own, without doorbells. Frames go out
 * that are for no port, or for several. `fd` is not blocking, and stays the caller's.
 */
typedef struct avf_uplink avf_uplink;
enum {
    AVF_INTERFACE = 1, /* fd: a TAP interface, without packet information */
    AVF_STREAM,        /* a listening socket of type stream: one client at a time */
    AVF_DATAGRAM       /* a socket of type datagram; `peer`: where to send to */
};
/* NULL with errno. */
avf_uplink *avf_uplink_new(avf_switch *s, int kind, int fd, const char *peer);
/* The const vdcm_fastpath * of an avf_uplink. */
uintptr_t avf_uplink_fastpath(void);
/* From now on frames come; `queue` is its vdcm_queue. 0 or a negative errno. */
int avf_uplink_start(avf_uplink *u, uintptr_t queue);
/* The sweep has let go of it. */
void avf_uplink_free(avf_uplink *u);
typedef struct {
    uint64_t sent, sent_bytes, dropped, received, received_bytes;
    uint64_t unwanted; /* of those received: no port has taken them */
} avf_uplink_counters;
void avf_uplink_count(avf_uplink *u, avf_uplink_counters *out);

/* What the port sends and receives is kept as records of a pcap file, 1 MiB of them at most; again: from
 * the beginning. -ENOMEM: as before. */
int avf_capture_set(avf_port *p, bool on);
/* Takes up to `most` bytes of it, 0 if there are none; *dropped: frames that there was no room for. */
uint32_t avf_capture_take(avf_port *p, uint8_t *to, uint32_t most, uint64_t *dropped);

/* What a report says of a driver that has broken its queue (the datasheet's malicious driver
 * detection): its code, with an avf_offence. Nothing of the port goes on then until avf_reset(). */
enum {
    AVF_BAD_TAIL = 1,   /* value: the tail */
    AVF_BAD_RING,       /* value: a guest address that is not to be reached */
    AVF_BAD_BUFFER,     /* the same, of a buffer */
    AVF_BAD_TYPE,       /* value: the descriptor's second word */
    AVF_BAD_LENGTH,     /* value: bytes of a frame, or of a buffer */
    AVF_ENDLESS,        /* value: descriptors without an end */
    AVF_BAD_SEGMENTS,   /* value: the context descriptor's second word */
    AVF_BAD_OFFSETS     /* value: the data descriptor's second word */
};

typedef struct {
    uint64_t value;
    uint32_t queue;
    int32_t error; /* of the access, or 0 */
    bool transmit;
} avf_offence;

/* cffi: end */

#endif
