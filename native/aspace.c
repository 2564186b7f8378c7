/*
 * The guest memory of one client: sorted ranges of I/O virtual addresses, each mapped shared from
 * the descriptor that came with its DMA_MAP, or announced without one (memory that is not shared).
 *
 * The client owns the file behind a mapping and may shrink it at any time; a touch then raises
 * SIGBUS. Copies therefore run under a handler that turns the signal into -EIO for this access.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "memory.h"

/* Bytes that one client may have mapped: the largest guest, yet a small part of 47 bits. */
#define MAX_TOTAL (UINT64_C(1) << 40)
#define HUGETLBFS_MAGIC 0x958458f6
/* A page of a FUSE file is filled by a process of the client's choosing, whenever it likes. */
#define FUSE_MAGIC 0x65735546

struct range {
    uint64_t iova;
    uint64_t size;
    uint8_t *memory; /* NULL: announced only */
    void *base;      /* what was mapped: whole pages of the file, which may be huge */
    size_t length;
    bool readable;
    bool writable;
};

struct vdcm_aspace {
    struct range *ranges; /* sorted by iova, disjoint */
    size_t count;
    size_t room;
    uint64_t total;
};

/* volatile: the store must stand before the copy that may need it */
static __thread sigjmp_buf *volatile on_bus_error;
static struct sigaction previous_action;
static pthread_once_t handler_once = PTHREAD_ONCE_INIT;

static void handle_bus_error(int number, siginfo_t *info, void *context)
{
    if (on_bus_error != NULL) {
        siglongjmp(*on_bus_error, 1);
    }
    /* Not ours: as if we were not here. */
    if (previous_action.sa_flags & SA_SIGINFO) {
        previous_action.sa_sigaction(number, info, context);
        return;
    }
    sigaction(SIGBUS, &previous_action, NULL);
}

static void install_handler(void)
{
    struct sigaction action = {.sa_sigaction = handle_bus_error, .sa_flags = SA_SIGINFO | SA_NODEFER};

    /* SA_NODEFER: the handler leaves by siglongjmp, which then has no signal mask to restore. */

    sigemptyset(&action.sa_mask);
    sigaction(SIGBUS, &action, &previous_action);
}

vdcm_aspace *vdcm_aspace_new(void)
{
    pthread_once(&handler_once, install_handler);
    return calloc(1, sizeof(vdcm_aspace));
}

static void drop(struct range *range)
{
    if (range->memory != NULL) {
        munmap(range->base, range->length);
    }
}

void vdcm_aspace_unmap_all(vdcm_aspace *as)
{
    for (size_t i = 0; i < as->count; i++) {
        drop(&as->ranges[i]);
    }
    as->count = 0;
    as->total = 0;
}

void vdcm_aspace_free(vdcm_aspace *as)
{
    if (as == NULL) {
        return;
    }
    vdcm_aspace_unmap_all(as);
    free(as->ranges);
    free(as);
}

/* Index of the first range that ends behind `iova`, or count. */
static size_t find(const vdcm_aspace *as, uint64_t iova)
{
    size_t low = 0;
    size_t high = as->count;

    while (low < high) {
        size_t middle = low + (high - low) / 2;
        const struct range *range = &as->ranges[middle];

        if (range->iova + (range->size - 1) < iova) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}

/* Only a file whose pages the kernel itself provides, and that is long enough now. */
static int check_file(int fd, uint64_t offset, uint64_t size, uint64_t *page)
{
    struct stat status;
    struct statfs filesystem;

    if (fstat(fd, &status) < 0 || fstatfs(fd, &filesystem) < 0) {
        return -errno;
    }
    if (!S_ISREG(status.st_mode) || filesystem.f_type == FUSE_MAGIC) {
        return -EBADF;
    }
    if (offset > (uint64_t)status.st_size || size > (uint64_t)status.st_size - offset) {
        return -ERANGE;
    }
    if (filesystem.f_type == HUGETLBFS_MAGIC) {
        *page = (uint64_t)filesystem.f_bsize;
    }
    return 0;
}

int vdcm_aspace_map(vdcm_aspace *as, uint64_t iova, uint64_t size, int fd, uint64_t offset,
                    bool readable, bool writable)
{
    uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
    struct range range = {
        .iova = iova, .size = size, .readable = readable, .writable = writable};
    size_t index;

    if (size == 0 || ((iova | size) & (page - 1)) != 0 || iova > UINT64_MAX - (size - 1)) {
        return -EINVAL;
    }
    if (fd >= 0 && (offset & (page - 1)) != 0) {
        return -EINVAL;
    }
    index = find(as, iova);
    if (index < as->count && as->ranges[index].iova <= iova + (size - 1)) {
        return -EEXIST;
    }
    if (as->count == VDCM_ASPACE_MAX_RANGES || (fd >= 0 && size > MAX_TOTAL - as->total)) {
        return -ENOSPC;
    }
    if (as->count == as->room) {
        size_t room = as->room != 0 ? as->room * 2 : 16;
        struct range *ranges = realloc(as->ranges, room * sizeof(*ranges));

        if (ranges == NULL) {
            return -ENOMEM;
        }
        as->ranges = ranges;
        as->room = room;
    }
    if (fd >= 0) {
        int error = check_file(fd, offset, size, &page);
        int protection = (readable ? PROT_READ : 0) | (writable ? PROT_WRITE : 0);
        uint64_t before;

        if (error != 0) {
            return error;
        }
        before = offset & (page - 1);
        range.length = (before + size + page - 1) & ~(page - 1);
        range.base = mmap(NULL, range.length, protection, MAP_SHARED | MAP_NORESERVE, fd,
                          (off_t)(offset - before));
        if (range.base == MAP_FAILED) {
            return -errno;
        }
        /* A core of ours is not to hold the guest's memory. */
        madvise(range.base, range.length, MADV_DONTDUMP);
        range.memory = (uint8_t *)range.base + before;
        as->total += size;
    }
    memmove(&as->ranges[index + 1], &as->ranges[index],
            (as->count - index) * sizeof(*as->ranges));
    as->ranges[index] = range;
    as->count++;
    return 0;
}

int vdcm_aspace_unmap(vdcm_aspace *as, uint64_t iova, uint64_t size)
{
    size_t first;
    size_t end;
    uint64_t last;

    if (size == 0 || iova > UINT64_MAX - (size - 1)) {
        return -EINVAL;
    }
    last = iova + (size - 1);
    first = find(as, iova);
    for (end = first; end < as->count && as->ranges[end].iova <= last; end++) {
        const struct range *range = &as->ranges[end];

        if (range->iova < iova || range->iova + (range->size - 1) > last) {
            return -EINVAL;
        }
    }
    if (end == first) {
        return -ENOENT;
    }
    for (size_t i = first; i < end; i++) {
        if (as->ranges[i].memory != NULL) {
            as->total -= as->ranges[i].size;
        }
        drop(&as->ranges[i]);
    }
    memmove(&as->ranges[first], &as->ranges[end], (as->count - end) * sizeof(*as->ranges));
    as->count -= end - first;
    return 0;
}

size_t vdcm_aspace_ranges(const vdcm_aspace *as, vdcm_range *out, size_t max)
{
    for (size_t i = 0; i < as->count && i < max; i++) {
        const struct range *range = &as->ranges[i];

        out[i] = (vdcm_range){.iova = range->iova,
                              .size = range->size,
                              .mapped = range->memory != NULL,
                              .readable = range->readable,
                              .writable = range->writable};
    }
    return as->count;
}

/* Is all of it there and permitted? Looked at before the first byte moves. */
static int reachable(const vdcm_aspace *as, uint64_t iova, uint64_t length, bool write,
                     uint64_t *fault)
{
    size_t index = find(as, iova);

    *fault = iova;
    if (length != 0 && iova > UINT64_MAX - (length - 1)) {
        return -EFAULT;
    }
    while (length > 0) {
        const struct range *range = &as->ranges[index];
        uint64_t here;

        *fault = iova;
        if (index == as->count || range->iova > iova) {
            return -EFAULT;
        }
        if (range->memory == NULL) {
            return -ENXIO;
        }
        if (write ? !range->writable : !range->readable) {
            return -EACCES;
        }
        here = range->size - (iova - range->iova);
        if (here >= length) {
            return 0;
        }
        length -= here;
        iova += here;
        index++;
    }
    return 0;
}

/* Apart from copy() so that no variable lives across its sigsetjmp(). */
static __attribute__((noinline)) void move(const vdcm_aspace *as, uint64_t iova, uint8_t *buffer,
                                           uint64_t length, bool write)
{
    size_t index = find(as, iova);

    while (length > 0) {
        const struct range *range = &as->ranges[index++];
        uint64_t offset = iova - range->iova;
        uint64_t here = range->size - offset < length ? range->size - offset : length;

        if (write) {
            memcpy(range->memory + offset, buffer, here);
        } else {
            memcpy(buffer, range->memory + offset, here);
        }
        buffer += here;
        iova += here;
        length -= here;
    }
}

static int copy(const vdcm_aspace *as, uint64_t iova, uint8_t *buffer, uint64_t length, bool write,
                uint64_t *fault)
{
    int error = reachable(as, iova, length, write, fault);
    sigjmp_buf bus_error;

    if (error != 0) {
        return error;
    }
    *fault = iova;
    if (sigsetjmp(bus_error, 0) != 0) {
        on_bus_error = NULL;
        return -EIO;
    }
    on_bus_error = &bus_error;
    move(as, iova, buffer, length, write);
    on_bus_error = NULL;
    return 0;
}

int vdcm_aspace_check(const vdcm_aspace *as, uint64_t iova, uint64_t length, bool write,
                      uint64_t *fault)
{
    return reachable(as, iova, length, write, fault);
}

int vdcm_aspace_read(vdcm_aspace *as, uint64_t iova, void *buffer, uint64_t length,
                     uint64_t *fault)
{
    return copy(as, iova, buffer, length, false, fault);
}

int vdcm_aspace_write(vdcm_aspace *as, uint64_t iova, const void *buffer, uint64_t length,
                      uint64_t *fault)
{
    return copy(as, iova, (uint8_t *)buffer, length, true, fault);
}
