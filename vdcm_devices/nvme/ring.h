/* A channel's io_uring (uring.c); where the system has no liburing there is never one (no_uring.c). */
#ifndef NVME_RING_H
#define NVME_RING_H

#include "channel.h"

typedef struct nvme_ring nvme_ring;

/* As the functions of channel.h without "ring". */
nvme_ring *nvme_ring_new(uint32_t requests);
void nvme_ring_free(nvme_ring *ring); /* NULL is allowed */
void nvme_ring_submit(nvme_ring *ring, nvme_request *request);
void nvme_ring_push(nvme_ring *ring);
bool nvme_ring_finished(const nvme_ring *ring);
nvme_request *nvme_ring_take(nvme_ring *ring);
void nvme_ring_wait(nvme_ring *ring);
bool nvme_ring_arm(nvme_ring *ring, void (*kick)(vdcm_queue *), vdcm_queue *queue);
void nvme_ring_disarm(nvme_ring *ring);

#endif
