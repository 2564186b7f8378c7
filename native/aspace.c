/*
 * The guest memory of one client: sorted ranges of I/O virtual addresses, each mapped shared from
 * the descriptor that came with its DMA_MAP, or announced without one (memory that is not shared).
 * Attached to a domain it is reached by PASID, from any thread that has a reader; what changes the
 * ranges keeps the readers of that domain out for as long as the array is being moved.
 *
 * The client owns the file behind a mapping and may shrink it at any time; a touch then raises
 * SIGBUS. Touches therefore run under a handler that turns the signal into -EIO for this access.
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

struct mapped;

struct vdcm_aspace {
    struct range *ranges; /* sorted by iova, disjoint */
    size_t count;
    size_t room;
    uint64_t total;
    struct mapped *user; /* the domain it is attached to */
};

/* A domain of mapped memory: second-level, or pass-through. */
struct mapped {
    vdcm_domain domain;
    vdcm_aspace *memory; /* NULL: none is attached */
};

/* Ranges on their way out: unmapping takes its time, and no reader is to wait for it. Locked. */
static struct range dropped[VDCM_ASPACE_MAX_RANGES];

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

int vdcm_guarded(int (*body)(void *argument), void *argument)
{
    sigjmp_buf *outer = on_bus_error;
    sigjmp_buf bus_error;
    int result;

    if (sigsetjmp(bus_error, 0) != 0) {
        on_bus_error = outer;
        return -EIO;
    }
    on_bus_error = &bus_error;
    result = body(argument);
    on_bus_error = outer;
    return result;
}

static vdcm_domain *domain_of(const vdcm_aspace *as)
{
    return as->user != NULL ? &as->user->domain : NULL;
}

/* Takes ranges [first, end) out; no reader is in them when they are unmapped. */
static void drop(vdcm_aspace *as, size_t first, size_t end)
{
    size_t count = end - first;

    vdcm_exclude(domain_of(as));
    memcpy(dropped, &as->ranges[first], count * sizeof(*dropped));
    memmove(&as->ranges[first], &as->ranges[end], (as->count - end) * sizeof(*as->ranges));
    as->count -= count;
    vdcm_admit(domain_of(as));
    for (size_t i = 0; i < count; i++) {
        if (dropped[i].memory != NULL) {
            as->total -= dropped[i].size;
            munmap(dropped[i].base, dropped[i].length);
        }
    }
}

static void drop_all(vdcm_aspace *as)
{
    if (as->count > 0) {
        drop(as, 0, as->count);
    }
}

void vdcm_aspace_unmap_all(vdcm_aspace *as)
{
    vdcm_control_lock();
    drop_all(as);
    vdcm_control_unlock();
}

/* With the lock held. Either may be NULL: the domain's memory goes, or was none. */
static void attach(struct mapped *mapped, vdcm_aspace *as)
{
    vdcm_exclude(&mapped->domain);
    if (mapped->memory != NULL) {
        mapped->memory->user = NULL;
    }
    mapped->memory = as;
    if (as != NULL) {
        as->user = mapped;
    }
    vdcm_admit(&mapped->domain);
}

void vdcm_aspace_free(vdcm_aspace *as)
{
    if (as == NULL) {
        return;
    }
    vdcm_control_lock();
    if (as->user != NULL) {
        attach(as->user, NULL);
    }
    drop_all(as);
    vdcm_control_unlock();
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

/* Everything that may fail has been done but this: the array may have to grow. */
static int insert(vdcm_aspace *as, size_t index, const struct range *range)
{
    int error = 0;

    vdcm_exclude(domain_of(as));
    if (as->count == as->room) {
        size_t room = as->room != 0 ? as->room * 2 : 16;
        struct range *ranges = realloc(as->ranges, room * sizeof(*ranges));

        if (ranges == NULL) {
            error = -ENOMEM;
            goto out;
        }
        as->ranges = ranges;
        as->room = room;
    }
    memmove(&as->ranges[index + 1], &as->ranges[index],
            (as->count - index) * sizeof(*as->ranges));
    as->ranges[index] = *range;
    as->count++;

out:
    vdcm_admit(domain_of(as));
    return error;
}

static int map(vdcm_aspace *as, uint64_t iova, uint64_t size, int fd, uint64_t offset,
               bool readable, bool writable)
{
    uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
    struct range range = {
        .iova = iova, .size = size, .readable = readable, .writable = writable};
    size_t index;
    int error;

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
    if (fd >= 0) {
        int protection = (readable ? PROT_READ : 0) | (writable ? PROT_WRITE : 0);
        uint64_t before;

        error = check_file(fd, offset, size, &page);
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
    }
    error = insert(as, index, &range);
    if (fd >= 0) {
        if (error != 0) {
            munmap(range.base, range.length);
        } else {
            as->total += size;
        }
    }
    return error;
}

int vdcm_aspace_map(vdcm_aspace *as, uint64_t iova, uint64_t size, int fd, uint64_t offset,
                    bool readable, bool writable)
{
    int error;

    vdcm_control_lock();
    error = map(as, iova, size, fd, offset, readable, writable);
    vdcm_control_unlock();
    return error;
}

static int unmap(vdcm_aspace *as, uint64_t iova, uint64_t size)
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
    drop(as, first, end);
    return 0;
}

int vdcm_aspace_unmap(vdcm_aspace *as, uint64_t iova, uint64_t size)
{
    int error;

    vdcm_control_lock();
    error = unmap(as, iova, size);
    vdcm_control_unlock();
    return error;
}

size_t vdcm_aspace_ranges(vdcm_aspace *as, vdcm_range *out, size_t max)
{
    size_t count;

    vdcm_control_lock();
    count = as->count;
    for (size_t i = 0; i < count && i < max; i++) {
        const struct range *range = &as->ranges[i];

        out[i] = (vdcm_range){.iova = range->iova,
                              .size = range->size,
                              .mapped = range->memory != NULL,
                              .readable = range->readable,
                              .writable = range->writable};
    }
    vdcm_control_unlock();
    return count;
}

/* What lies at `iova`, and how much of it; `index` is that of find(). */
static int resolve(const vdcm_aspace *as, size_t index, uint64_t iova, bool write,
                   uint8_t **memory, uint64_t *here)
{
    const struct range *range = &as->ranges[index];

    if (index >= as->count || range->iova > iova) {
        return -EFAULT;
    }
    if (range->memory == NULL) {
        return -ENXIO;
    }
    if (write ? !range->writable : !range->readable) {
        return -EACCES;
    }
    *memory = range->memory + (iova - range->iova);
    *here = range->size - (iova - range->iova);
    return 0;
}

/* ---- copies, for the control side --------------------------------------------------------- */

struct access {
    const vdcm_aspace *as;
    uint64_t iova;
    uint8_t *buffer; /* NULL: only look */
    uint64_t length;
    bool write;
    uint64_t *fault;
};

/* A piece after the other, each copied if there is a buffer. */
static int walk(void *argument)
{
    struct access access = *(const struct access *)argument;

    for (size_t index = find(access.as, access.iova); access.length > 0; index++) {
        uint8_t *memory;
        uint64_t here;
        int error;

        *access.fault = access.iova;
        error = resolve(access.as, index, access.iova, access.write, &memory, &here);
        if (error != 0) {
            return error;
        }
        if (here > access.length) {
            here = access.length;
        }
        if (access.buffer != NULL) {
            memcpy(access.write ? memory : access.buffer, access.write ? access.buffer : memory,
                   here);
            access.buffer += here;
        }
        access.iova += here;
        access.length -= here;
    }
    return 0;
}

/* Is all of it there and permitted? Looked at before the first byte moves. */
static int copy(vdcm_aspace *as, uint64_t iova, uint8_t *buffer, uint64_t length, bool write,
                uint64_t *fault)
{
    struct access access = {
        .as = as, .iova = iova, .length = length, .write = write, .fault = fault};
    int error;

    *fault = iova;
    if (length != 0 && iova > UINT64_MAX - (length - 1)) {
        return -EFAULT;
    }
    vdcm_control_lock();
    error = walk(&access);
    if (error == 0 && buffer != NULL) {
        error = vdcm_faults_look(domain_of(as), iova, length, write, fault);
    }
    if (error == 0 && buffer != NULL) {
        access.buffer = buffer;
        error = vdcm_guarded(walk, &access);
    }
    vdcm_control_unlock();
    return error;
}

int vdcm_aspace_check(vdcm_aspace *as, uint64_t iova, uint64_t length, bool write,
                      uint64_t *fault)
{
    return copy(as, iova, NULL, length, write, fault);
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

/* ---- the domain of such memory ------------------------------------------------------------ */

static int reach(vdcm_domain *domain, vdcm_reader *reader, uint64_t iova, uint64_t length,
                 bool write, void **memory, uint64_t *here)
{
    const vdcm_aspace *as = ((struct mapped *)domain)->memory;
    uint8_t *found;
    int error;

    (void)reader; /* there is no table to walk */
    if (as == NULL) {
        return -EFAULT;
    }
    error = resolve(as, find(as, iova), iova, write, &found, here);
    if (error == 0) {
        *memory = found;
        if (*here > length) {
            *here = length;
        }
    }
    return error;
}

vdcm_domain *vdcm_domain_new(int kind)
{
    struct mapped *mapped;

    if (kind != VDCM_SECOND_LEVEL && kind != VDCM_PASS_THROUGH) {
        errno = EINVAL;
        return NULL;
    }
    mapped = calloc(1, sizeof(*mapped));
    if (mapped == NULL) {
        return NULL;
    }
    mapped->domain.kind = kind;
    mapped->domain.reach = reach;
    atomic_init(&mapped->domain.changing, false);
    return &mapped->domain;
}

int vdcm_domain_attach(vdcm_domain *domain, vdcm_aspace *as)
{
    struct mapped *mapped = (struct mapped *)domain;
    int error = 0;

    vdcm_control_lock();
    if (as != NULL && as->user != NULL && as->user != mapped) {
        error = -EBUSY;
    } else {
        attach(mapped, as);
    }
    vdcm_control_unlock();
    return error;
}

void vdcm_domain_free(vdcm_domain *domain)
{
    if (domain == NULL) {
        return;
    }
    vdcm_control_lock();
    vdcm_withdraw(domain);
    attach((struct mapped *)domain, NULL);
    vdcm_control_unlock();
    free(domain->faults);
    free(domain);
}
