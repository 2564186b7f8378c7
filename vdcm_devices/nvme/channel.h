/*
 * I/O in files for one submission queue, that nobody waits for: requests go in, and come back finished.
 * io_uring does it where it can be had, else the threads of the store's pool (pool.c). A channel's
 * requests are submitted and taken back by one thread, that of the sweep, or by the control thread
 * when the sweep has let go of the queue.
 */
#ifndef NVME_CHANNEL_H
#define NVME_CHANNEL_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "fastpath.h"

/* Sync: of `length` bytes at `offset`, or more; of all with 0 bytes at 0. */
enum { NVME_IO_READ, NVME_IO_WRITE, NVME_IO_SYNC, NVME_IO_PUNCH };

typedef struct nvme_channel nvme_channel;
typedef struct nvme_pool nvme_pool;

typedef struct nvme_request {
    int operation;
    int fd;
    uint64_t offset;
    uint64_t length;
    uint8_t *buffer;
    int64_t result; /* bytes, or a negative errno */
    nvme_channel *channel;
    struct nvme_request *next;
} nvme_request;

/* For at most `requests` at a time. NULL with errno. `pool`: of threads; NULL: io_uring. */
nvme_channel *nvme_channel_new(nvme_pool *pool, uint32_t requests);
/* None is under way. */
void nvme_channel_free(nvme_channel *ch);
/* It begins with nvme_channel_push() at the latest. */
void nvme_channel_submit(nvme_channel *ch, nvme_request *request);
void nvme_channel_push(nvme_channel *ch);
/* Has one finished? From the submitting thread. */
bool nvme_channel_finished(const nvme_channel *ch);
/* One that has; NULL if there is none. */
nvme_request *nvme_channel_take(nvme_channel *ch);
/* Waits until one has. */
void nvme_channel_wait(nvme_channel *ch);
/* The next one that finishes kicks `queue`: false if one has already. */
bool nvme_channel_arm(nvme_channel *ch, void (*kick)(vdcm_queue *), vdcm_queue *queue);
/* Nobody is kicked any more. From any thread. */
void nvme_channel_disarm(nvme_channel *ch);

/* Threads that read and write. NULL with errno. */
nvme_pool *nvme_pool_new(void);
/* No channel uses it. */
void nvme_pool_free(nvme_pool *pool);

/* Can there be an io_uring? */
bool nvme_uring_works(void);

#endif
