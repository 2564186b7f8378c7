/*
 * What holds the data of namespaces: memory, or a file or block device. A parent has one store, of
 * which its VDEVs' namespaces are slices; nothing reaches beyond a slice, so a store may be shared
 * by VDEVs of different sweep threads.
 */
#ifndef NVME_STORE_H
#define NVME_STORE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* cffi: begin */

typedef struct nvme_store nvme_store;

enum { NVME_STORE_THREADS = 1 /* flag of a file: threads even where io_uring can be had */ };

/* `bytes` zeros, 1 or more. Memory is taken page by page when it is written. NULL with errno: EINVAL,
 * ENOMEM. */
nvme_store *nvme_store_ram(uint64_t bytes);
/*
 * The first `bytes` of a regular file or block device, open for reading and, unless all its
 * namespaces are read-only, writing. `fd` is duplicated. What lies behind the end of the file reads as
 * zeros. NULL with errno: EINVAL (no such file, no bytes), EBADF, ENOMEM, EMFILE, EAGAIN (no thread).
 */
nvme_store *nvme_store_file(int fd, uint64_t bytes, uint32_t flags);
/* No controller that has a namespace in it, or queues that had one, may be left. */
void nvme_store_free(nvme_store *s);
uint64_t nvme_store_bytes(const nvme_store *s);
/* "memory", "io_uring" or "threads": how it is read and written. */
const char *nvme_store_engine(const nvme_store *s);
/* The memory of nvme_store_ram(), for as long as the store is there; 0 for a file. */
uintptr_t nvme_store_memory(const nvme_store *s);
/*
 * For the control side, at once and in the calling thread: [offset, offset + length) reads as zeros
 * from now on, and gives its space back if the file system can do that. Negative errno: -EINVAL
 * beyond the end, -ENOSPC, -EIO, -EBADF not writable.
 */
int nvme_store_erase(nvme_store *s, uint64_t offset, uint64_t length);
/* All that was written is on disk when it returns. Blocks. -EIO, -ENOSPC. */
int nvme_store_sync(nvme_store *s);

/* cffi: end */

#endif
