/*
 * Memory of the guests: address spaces (aspace.c), and the PASIDs by which alone they are reached
 * (pasid.c). One thread, the one that serves the clients, changes them; others read at the same
 * time, each through a reader. A change waits until no reader is inside the space.
 */
#ifndef VDCM_MEMORY_H
#define VDCM_MEMORY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* cffi: begin */

/* ---- aspace.c: I/O virtual address -> memory of the guest ---------------------------------- */

typedef struct vdcm_aspace vdcm_aspace;

/* Limits that keep one hostile client from using up the process's address space. */
enum { VDCM_ASPACE_MAX_RANGES = 512 };

typedef struct {
    uint64_t iova;
    uint64_t size;
    bool mapped;   /* false: announced without memory that could be shared */
    bool readable; /* by the device */
    bool writable;
} vdcm_range;

vdcm_aspace *vdcm_aspace_new(void);
void vdcm_aspace_free(vdcm_aspace *as);
/* fd may be -1. The descriptor is not kept. -EEXIST on overlap, -ENOSPC beyond the limits. */
int vdcm_aspace_map(vdcm_aspace *as, uint64_t iova, uint64_t size, int fd, uint64_t offset,
                    bool readable, bool writable);
/* Removes all ranges inside [iova, iova+size); -EINVAL if one is cut, -ENOENT if there is none. */
int vdcm_aspace_unmap(vdcm_aspace *as, uint64_t iova, uint64_t size);
void vdcm_aspace_unmap_all(vdcm_aspace *as);
size_t vdcm_aspace_ranges(const vdcm_aspace *as, vdcm_range *out, size_t max);
/*
 * Copies `length` bytes between the guest at `iova` and `buffer`. Either all of it is done, or an
 * error says why not and *fault is the first address that could not be reached:
 * -EFAULT not mapped, -ENXIO announced but not shared, -EACCES not permitted, -EIO the file
 * behind the mapping shrank. With -EIO a part may have been written.
 */
int vdcm_aspace_read(vdcm_aspace *as, uint64_t iova, void *buffer, uint64_t length,
                     uint64_t *fault);
int vdcm_aspace_write(vdcm_aspace *as, uint64_t iova, const void *buffer, uint64_t length,
                      uint64_t *fault);
/* The same question without the copy: for a length that is still to be allocated. */
int vdcm_aspace_check(const vdcm_aspace *as, uint64_t iova, uint64_t length, bool write,
                      uint64_t *fault);

/* ---- pasid.c: PASID -> address space ----------------------------------------------------------- */

/* cffi: end */

#endif
