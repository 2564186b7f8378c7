/*
 * Inside the data path: the controller, its queues, the commands under way, and what the rooms have of
 * each other. Everything but what is atomic belongs to the sweep while it may run a queue of the
 * controller, and to the control thread otherwise.
 */
#ifndef NVME_ENGINE_H
#define NVME_ENGINE_H

#include <stdatomic.h>
#include <stddef.h>
#include <string.h>

#include "fastpath.h"
#include "queue.h"

enum {
    NVME_DOORBELLS = 2 * (NVME_MAX_QUEUES + 1),
    NVME_FETCH = 32,    /* submission queue entries that are fetched in one go, at most */
    NVME_POST = 8,      /* completions that are gathered before they are posted, at most */
    NVME_TASKS = 32,    /* commands of one queue that are under way in files */
    NVME_OVERHEAD = 512 /* units that a command costs apart from its bytes */
};

/* A submission queue entry (NVMe 1.4, 4.2). */
typedef struct {
    uint8_t opcode;
    uint8_t flags; /* FUSE in 1:0, PSDT in 7:6 */
    uint16_t cid;
    uint32_t nsid;
    uint32_t cdw2, cdw3;
    uint64_t mptr;
    uint64_t dptr[2];
    uint32_t cdw10, cdw11, cdw12, cdw13, cdw14, cdw15;
} nvme_command;

/* A completion queue entry (4.6); the phase is bit 0 of the last two bytes. */
typedef struct {
    uint32_t result;
    uint32_t reserved;
    uint16_t sqhd;
    uint16_t sqid;
    uint16_t cid;
    uint16_t status;
} nvme_completion;

typedef struct {
    nvme_store *store; /* NULL: there is no such namespace */
    uint64_t offset;
    uint64_t blocks;
    uint32_t shift;
    bool read_only;
} nvme_namespace;

struct nvme_controller {
    const vdcm_services *services;
    nvme_settings settings;
    nvme_namespace namespaces[NVME_MAX_NAMESPACES + 1];
    nvme_cq *cqs[NVME_MAX_QUEUES + 1];
    nvme_sq *sqs[NVME_MAX_QUEUES + 1];
    _Atomic uint32_t own_words[NVME_DOORBELLS];
    _Atomic uint32_t *words; /* own ones, or on a page of the guest's */
    uint64_t shadow;         /* guest addresses; 0: no doorbell buffers */
    uint64_t eventidx;
    bool fatal;
    nvme_counters counters;
};

struct nvme_cq {
    nvme_controller *controller;
    uint32_t id;
    uint32_t entries;
    uint64_t address;
    bool interrupts;
    uint32_t users; /* submission queues */
    uint32_t tail;
    uint32_t head; /* as seen last */
    uint16_t phase;
};

struct nvme_sq {
    nvme_controller *controller;
    nvme_cq *cq;
    uint32_t id;
    uint32_t entries;
    uint64_t address;
    _Atomic uint32_t tail;
    _Atomic uint32_t head;
    _Atomic uint32_t under_way;
    _Atomic uint32_t in_files;
    _Atomic uint64_t completed;
};

struct nvme_store {
    uint64_t bytes;
    uint8_t *memory; /* NULL: a file */
    int fd;
    bool device;
    uint32_t flags;
};

#endif
