/* Built without liburing: files are served by threads (channel.c). */
#include <errno.h>
#include <stddef.h>

#include "ring.h"

bool nvme_uring_works(void)
{
    return false;
}

nvme_ring *nvme_ring_new(uint32_t requests)
{
    (void)requests;
    errno = ENOSYS;
    return NULL;
}

void nvme_ring_free(nvme_ring *ring)
{
    (void)ring;
}

void nvme_ring_submit(nvme_ring *ring, nvme_request *request)
{
    (void)ring;
    (void)request;
}

void nvme_ring_push(nvme_ring *ring)
{
    (void)ring;
}

bool nvme_ring_finished(const nvme_ring *ring)
{
    (void)ring;
    return false;
}

nvme_request *nvme_ring_take(nvme_ring *ring)
{
    (void)ring;
    return NULL;
}

void nvme_ring_wait(nvme_ring *ring)
{
    (void)ring;
}

bool nvme_ring_arm(nvme_ring *ring, void (*kick)(vdcm_queue *), vdcm_queue *queue)
{
    (void)ring;
    (void)kick;
    (void)queue;
    return true;
}

void nvme_ring_disarm(nvme_ring *ring)
{
    (void)ring;
}
