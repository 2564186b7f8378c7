/*
 * What passes between the guest's software and a Data Streaming Accelerator: descriptors,
 * completion records, and their codes. Section numbers are those of the Intel DSA architecture
 * specification, 341204-006. All is little-endian, as the hosts that this runs on are.
 */
#ifndef DSA_DESCRIPTOR_H
#define DSA_DESCRIPTOR_H

#include <stdint.h>

/* cffi: begin */

/* Operations (Table 8-2): those that are implemented. */
enum {
    DSA_OP_NOOP = 0x00,
    DSA_OP_BATCH = 0x01,
    DSA_OP_DRAIN = 0x02,
    DSA_OP_MEMORY_MOVE = 0x03,
    DSA_OP_FILL = 0x04,
    DSA_OP_COMPARE = 0x05,
    DSA_OP_COMPARE_PATTERN = 0x06,
    DSA_OP_CREATE_DELTA = 0x07,
    DSA_OP_APPLY_DELTA = 0x08,
    DSA_OP_DUALCAST = 0x09,
    DSA_OP_CRC = 0x10,
    DSA_OP_COPY_CRC = 0x11,
    DSA_OP_DIF_CHECK = 0x12,
    DSA_OP_DIF_INSERT = 0x13,
    DSA_OP_DIF_STRIP = 0x14,
    DSA_OP_DIF_UPDATE = 0x15,
    DSA_OP_CACHE_FLUSH = 0x20,
    DSA_OPERATIONS = 0x21 /* codes from here on are not supported */
};

/* Flags (Table 8-3) and, from bit 16, those of single operations. */
enum {
    DSA_FLAG_FENCE = 0x000001,
    DSA_FLAG_BLOCK_ON_FAULT = 0x000002,
    DSA_FLAG_COMPLETION_VALID = 0x000004,
    DSA_FLAG_REQUEST_COMPLETION = 0x000008,
    DSA_FLAG_REQUEST_INTERRUPT = 0x000010,
    DSA_FLAG_CHECK_RESULT = 0x000080,
    DSA_FLAG_CACHE_CONTROL = 0x000100,
    DSA_FLAG_ADDRESS1_TC = 0x000200,
    DSA_FLAG_ADDRESS2_TC = 0x000400,
    DSA_FLAG_ADDRESS3_TC = 0x000800,
    DSA_FLAG_COMPLETION_TC = 0x001000,
    DSA_FLAG_STRICT_ORDERING = 0x002000,
    DSA_FLAG_READBACK = 0x004000, /* of the destination; Cache Control 2 in newer revisions */
    /* Drain (Table 8-15) */
    DSA_FLAG_READBACK1 = 0x010000,
    DSA_FLAG_READBACK2 = 0x020000,
    DSA_FLAG_NO_READBACK_TC_A = 0x040000,
    DSA_FLAG_NO_READBACK_TC_B = 0x080000,
    /* CRC generation, copy with CRC (Table 8-19) */
    DSA_FLAG_READ_SEED = 0x010000,
    DSA_FLAG_BYPASS_INVERSION = 0x020000, /* and reflection of seed and result */
    DSA_FLAG_BYPASS_REFLECTION = 0x040000 /* of the data */
};

/* Status (5.8.1), and two codes that only SWERROR has (5.8.2). */
enum {
    DSA_STATUS_SUCCESS = 0x01,
    DSA_STATUS_FALSE_PREDICATE = 0x02,
    DSA_STATUS_PAGE_FAULT = 0x03,
    DSA_STATUS_PAGE_FAULT_BLOCKED = 0x04, /* the same where Block on Fault was asked for */
    DSA_STATUS_BATCH_FAILED = 0x05,
    DSA_STATUS_BATCH_PAGE_FAULT = 0x06,
    DSA_STATUS_DELTA_ORDER = 0x07,
    DSA_STATUS_DELTA_OFFSET = 0x08,
    DSA_STATUS_DIF_ERROR = 0x09,
    DSA_STATUS_BAD_OPERATION = 0x10,
    DSA_STATUS_BAD_FLAGS = 0x11,
    DSA_STATUS_RESERVED_FIELD = 0x12,
    DSA_STATUS_BAD_SIZE = 0x13,
    DSA_STATUS_BAD_COUNT = 0x14,
    DSA_STATUS_BAD_FIELD = 0x15, /* size of a delta record */
    DSA_STATUS_OVERLAP = 0x16,
    DSA_STATUS_DUALCAST_MISMATCH = 0x17,
    DSA_STATUS_LIST_MISALIGNED = 0x18,
    DSA_STATUS_BAD_HANDLE = 0x19,
    DSA_STATUS_COMPLETION_FAULT = 0x1a,
    DSA_STATUS_COMPLETION_MISALIGNED = 0x1b,
    DSA_STATUS_MISALIGNED = 0x1c,
    DSA_STATUS_PRIVILEGE = 0x1d,
    DSA_STATUS_READBACK_FAULT = 0x1f,
    DSA_STATUS_TRANSLATION = 0x22,
    DSA_STATUS_WRITE = 0x80, /* beside a page fault: the access was a write (8.2.1) */
    DSA_ERROR_QUEUE_FULL = 0x53
};

/* General capabilities (GENCAP, 9.2.2): the bits that descriptors depend on. */
enum {
    DSA_CAP_OVERLAPPING_COPY = 0x0002,
    DSA_CAP_CACHE_CONTROL_MEMORY = 0x0004,
    DSA_CAP_CACHE_CONTROL_FLUSH = 0x0008,
    DSA_CAP_DESTINATION_READBACK = 0x0100,
    DSA_CAP_DRAIN_READBACK = 0x0200,
    DSA_CAP_FAULT_INFO = 0x1000
};

/* DIF (8.3.17.1 to 8.3.17.4) */
enum {
    DSA_DIF_BLOCK_SIZE = 0x03, /* DIF flags: 512, 520, 4096, 4104 bytes */
    DSA_DIF_INVERT_SEED = 0x04,
    DSA_DIF_INVERT_RESULT = 0x08,
    DSA_DIF_SOURCE_ALL_F_ERROR = 0x01, /* source DIF flags */
    DSA_DIF_SOURCE_ALL_F = 0x02,
    DSA_DIF_SOURCE_APP_F = 0x04,
    DSA_DIF_SOURCE_APP_REF_F = 0x08,
    DSA_DIF_SOURCE_APP_INCREMENTS = 0x10,
    DSA_DIF_SOURCE_NO_GUARD = 0x20,
    DSA_DIF_SOURCE_NO_REF = 0x40,
    DSA_DIF_SOURCE_REF_FIXED = 0x80,
    DSA_DIF_DEST_APP_PASS = 0x08, /* destination DIF flags */
    DSA_DIF_DEST_APP_INCREMENTS = 0x10,
    DSA_DIF_DEST_GUARD_PASS = 0x20,
    DSA_DIF_DEST_REF_PASS = 0x40,
    DSA_DIF_DEST_REF_FIXED = 0x80,
    DSA_DIF_GUARD_MISMATCH = 0x01, /* DIF status */
    DSA_DIF_APP_MISMATCH = 0x02,
    DSA_DIF_REF_MISMATCH = 0x04,
    DSA_DIF_ALL_F_DETECTED = 0x08
};

/* The tags that one DIF has, as descriptor and completion record have them: 8 bytes. */
typedef struct {
    uint32_t ref;
    uint16_t app_mask;
    uint16_t app;
} dsa_tags;

/* A descriptor: 64 bytes (8.1). Which name of a union counts depends on the operation (8.3). */
typedef struct {
    uint32_t pasid;     /* 19:0; bit 31: privileged. Ignored in dedicated WQs and batches (8.1.1) */
    uint32_t operation; /* 23:0 flags, 31:24 operation */
    uint64_t completion;
    union {
        uint64_t source;
        uint64_t pattern;  /* fill */
        uint64_t list;     /* batch */
        uint64_t delta;    /* apply delta record */
        uint64_t readback; /* drain */
    };
    union {
        uint64_t destination;
        uint64_t source2;   /* compare, create delta record */
        uint64_t compared;  /* compare pattern */
        uint64_t readback2; /* drain */
    };
    union {
        uint32_t size;  /* bytes to be read from the source */
        uint32_t count; /* batch: descriptors */
    };
    uint16_t handle; /* interrupt */
    uint16_t reserved;
    union {
        uint64_t specific[3];
        uint8_t expected;      /* compare, compare pattern */
        uint32_t delta_size;   /* apply delta record */
        uint64_t destination2; /* dualcast */
        struct {
            uint64_t record;
            uint32_t max_size;
            uint32_t reserved;
            uint8_t expected_mask;
        } create; /* delta record */
        struct {
            uint32_t seed;
            uint32_t reserved;
            uint64_t seed_address;
        } crc;
        struct {
            uint8_t source_flags;
            uint8_t destination_flags;
            uint8_t flags;
            uint8_t reserved[5];
            dsa_tags source;      /* check, strip, update */
            dsa_tags destination; /* insert, update */
        } dif;
    };
} dsa_descriptor;

/* A completion record: 32 bytes, aligned so (8.2). */
typedef struct {
    uint8_t status; /* 0 until the device has written it */
    uint8_t result; /* DIF operations: DIF status */
    uint8_t fault_info;
    uint8_t reserved;
    uint32_t completed; /* bytes of the source, or descriptors of the batch */
    uint64_t fault_address;
    union {
        uint32_t invalid_flags;
        uint32_t delta_size;
        uint64_t crc;
        dsa_tags source; /* the tags for the next block */
    };
    union {
        uint64_t unused;
        dsa_tags destination;
    };
} dsa_completion;

/* cffi: end */

static inline uint32_t dsa_flags(const dsa_descriptor *d)
{
    return d->operation & 0xffffff;
}

static inline uint32_t dsa_opcode(const dsa_descriptor *d)
{
    return d->operation >> 24;
}

#endif
