/*
 * Stores: memory, and files or block devices. Here is what the control thread does with them; what the
 * queues do is in command.c and the I/O in files in channel.c.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "engine.h"

enum { ZEROES = 1 << 20 };

nvme_store *nvme_store_ram(uint64_t bytes)
{
    nvme_store *s;

    if (bytes == 0 || bytes > SIZE_MAX / 2) {
        errno = EINVAL;
        return NULL;
    }
    s = calloc(1, sizeof(*s));
    if (s == NULL) {
        return NULL;
    }
    s->memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (s->memory == MAP_FAILED) {
        free(s);
        errno = ENOMEM;
        return NULL;
    }
    s->bytes = bytes;
    s->fd = -1;
    /* A core of ours is not to hold the guests' data; huge pages spare address translation. */
    (void)madvise(s->memory, bytes, MADV_DONTDUMP);
    (void)madvise(s->memory, bytes, MADV_HUGEPAGE);
    return s;
}

nvme_store *nvme_store_file(int fd, uint64_t bytes, uint32_t flags)
{
    struct stat status;
    nvme_store *s;
    int error;

    if (bytes == 0 || bytes > INT64_MAX || (flags & ~(uint32_t)NVME_STORE_THREADS) != 0) {
        errno = EINVAL;
        return NULL;
    }
    if (fstat(fd, &status) < 0) {
        return NULL;
    }
    if (!S_ISREG(status.st_mode) && !S_ISBLK(status.st_mode)) {
        errno = EINVAL;
        return NULL;
    }
    s = calloc(1, sizeof(*s));
    if (s == NULL) {
        return NULL;
    }
    s->fd = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    if (s->fd < 0) {
        error = errno;
        free(s);
        errno = error;
        return NULL;
    }
    s->bytes = bytes;
    s->device = S_ISBLK(status.st_mode);
    if ((flags & NVME_STORE_THREADS) != 0 || !nvme_uring_works()) {
        s->pool = nvme_pool_new();
        if (s->pool == NULL) {
            error = errno;
            nvme_store_free(s);
            errno = error;
            return NULL;
        }
    }
    return s;
}

void nvme_store_free(nvme_store *s)
{
    if (s == NULL) {
        return;
    }
    if (s->memory != NULL) {
        munmap(s->memory, s->bytes);
    } else {
        nvme_pool_free(s->pool);
        close(s->fd);
    }
    free(s);
}

uint64_t nvme_store_bytes(const nvme_store *s)
{
    return s->bytes;
}

const char *nvme_store_engine(const nvme_store *s)
{
    return s->memory != NULL ? "memory" : s->pool != NULL ? "threads" : "io_uring";
}

uintptr_t nvme_store_memory(const nvme_store *s)
{
    return (uintptr_t)s->memory;
}

/* Zeros, written; for what cannot punch holes. */
static int write_zeros(const nvme_store *s, uint64_t offset, uint64_t length)
{
    uint8_t *zeros = aligned_alloc(4096, ZEROES);
    int error = zeros == NULL ? -ENOMEM : 0;

    if (zeros != NULL) {
        memset(zeros, 0, ZEROES);
    }
    while (error == 0 && length > 0) {
        ssize_t did = pwrite(s->fd, zeros, length < ZEROES ? length : ZEROES, (off_t)offset);

        if (did <= 0 && errno != EINTR) {
            error = did == 0 ? -EIO : -errno;
        } else if (did > 0) {
            offset += (uint64_t)did;
            length -= (uint64_t)did;
        }
    }
    free(zeros);
    return error;
}

int nvme_store_erase(nvme_store *s, uint64_t offset, uint64_t length)
{
    uint64_t range[2] = {offset, length};

    if (offset > s->bytes || length > s->bytes - offset) {
        return -EINVAL;
    }
    if (length == 0) {
        return 0;
    }
    if (s->memory != NULL) {
        uint64_t first = (offset + 4095) & ~UINT64_C(4095);
        uint64_t end = (offset + length) & ~UINT64_C(4095);

        if (first >= end || madvise(s->memory + first, end - first, MADV_DONTNEED) < 0) {
            memset(s->memory + offset, 0, length);
            return 0;
        }
        memset(s->memory + offset, 0, first - offset);
        memset(s->memory + end, 0, offset + length - end);
        return 0;
    }
    if (fallocate(s->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)offset, (off_t)length) ==
            0 ||
        (s->device && ioctl(s->fd, BLKZEROOUT, range) == 0)) {
        return 0;
    }
    return write_zeros(s, offset, length);
}

int nvme_store_sync(nvme_store *s)
{
    return s->memory != NULL || fdatasync(s->fd) == 0 ? 0 : -errno;
}
