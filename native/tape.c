/*
 * A domain on tape: each page that a device's C reaches comes from Python, which keeps what the page
 * held when it was first touched, and finds out afterwards what has been written to it. A piece never
 * ends beyond its page, so what is reached twice is the same memory.
 */
#include <errno.h>
#include <unistd.h>

#include "memory.h"

static int reach(vdcm_domain *domain, vdcm_reader *reader, uint64_t iova, uint64_t length,
                 bool write, void **memory, uint64_t *here)
{
    uint64_t size = (uint64_t)sysconf(_SC_PAGESIZE);
    uint64_t within = iova & (size - 1);
    void *page;
    int error;

    (void)reader;
    error = vdcm_on_reach(domain->tape, iova - within, write, &page);
    if (error != 0) {
        return -error;
    }
    *memory = (uint8_t *)page + within;
    *here = size - within < length ? size - within : length;
    return 0;
}

int vdcm_tape_begin(vdcm_domain *domain, void *owner)
{
    int error = -EBUSY;

    vdcm_control_lock();
    if (domain->faults == NULL) {
        vdcm_exclude(domain);
        domain->tape = owner;
        domain->reach = reach;
        vdcm_admit(domain);
        error = 0;
    }
    vdcm_control_unlock();
    return error;
}
