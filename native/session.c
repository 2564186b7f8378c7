/*
 * One libvfio-user context for one connected client, and its message loop.
 *
 * A context lives as long as its client: a new client always meets a fresh one. libvfio-user can
 * only accept a connection from a socket that it has bound itself, and reads the version message
 * from it with blocking reads. So it is given a private socket for a moment, on which a version
 * message that has been checked is already waiting; then the client's connection takes the place
 * of the private one (dup2).
 *
 * Messages that carry descriptors in either direction are answered here and not by libvfio-user:
 * GET_REGION_INFO (stock QEMU takes one descriptor per region, libvfio-user sends one per area),
 * DMA_MAP, DMA_UNMAP (libvfio-user of 2022 holds 16 ranges), SET_IRQS (it keeps one table of
 * eventfds for all kinds of interrupt) and with it GET_IRQ_INFO.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include <linux/vfio.h>

#include <libvfio-user.h>

#include "guard.h"
#include "native.h"

enum { REGIONS = VFU_PCI_DEV_VGA_REGION_IDX + 1, KINDS = 3 /* INTx, MSI, MSI-X */ };

struct region {
    uint64_t size;
    int fd;
    vdcm_area areas[VDCM_MAX_AREAS];
    uint32_t n_areas;
};

struct vectors {
    uint32_t count;
    int *eventfds;
};

struct vdcm_session {
    vfu_ctx_t *ctx;
    void *owner;
    char *path;
    vdcm_aspace *aspace;
    struct region regions[REGIONS];
    struct vectors kinds[KINDS];
    int client; /* the connection; the caller's to close */
    int fd; /* libvfio-user's descriptor of it, and its to close */
    bool attached;
    bool partial;
    bool stopped;
    uint32_t vain; /* how many chances to spin were let go after the last vain one */
    uint32_t skip; /* how many are still to be let go */
    const char *reason;
};

int vdcm_libvfio_user_generation(void)
{
#ifdef VFU_REGION_FLAG_PREFETCH
    return 2;
#else
    return 1;
#endif
}

/* ---- what libvfio-user calls ---------------------------------------------------------------- */

/* At most 8 bytes, and never more than the natural alignment of the offset allows when split. */
static size_t step(loff_t offset, size_t left)
{
    size_t width = 8;

    if (left == 1 || left == 2 || left == 4 || left == 8) {
        return left; /* one access of the guest stays one access */
    }
    while (width > left || ((size_t)offset & (width - 1)) != 0) {
        width /= 2;
    }
    return width;
}

static ssize_t access_region(vfu_ctx_t *ctx, int index, char *buffer, size_t count, loff_t offset,
                             bool write)
{
    vdcm_session *s = vfu_get_private(ctx);
    size_t done = 0;

    while (done < count) {
        size_t width = step(offset, count - done);
        uint64_t value = 0;
        int error;

        if (write) {
            memcpy(&value, buffer + done, width);
            error = vdcm_on_write(s->owner, index, (uint64_t)offset, (int)width, value);
        } else {
            error = vdcm_on_read(s->owner, index, (uint64_t)offset, (int)width, &value);
            memcpy(buffer + done, &value, width);
        }
        if (error != 0) {
            errno = error;
            return -1;
        }
        done += width;
        offset += (loff_t)width;
    }
    return (ssize_t)count;
}

/* libvfio-user does not tell a callback its region, so each region has a function of its own. */
#define REGION_CALLBACK(n)                                                                        \
    static ssize_t access_region_##n(vfu_ctx_t *ctx, char *buffer, size_t count, loff_t offset,   \
                                     bool write)                                                  \
    {                                                                                             \
        return access_region(ctx, n, buffer, count, offset, write);                               \
    }
REGION_CALLBACK(0)
REGION_CALLBACK(1)
REGION_CALLBACK(2)
REGION_CALLBACK(3)
REGION_CALLBACK(4)
REGION_CALLBACK(5)
REGION_CALLBACK(6)
REGION_CALLBACK(7)
REGION_CALLBACK(8)

static vfu_region_access_cb_t *const region_callbacks[REGIONS] = {
    access_region_0, access_region_1, access_region_2, access_region_3, access_region_4,
    access_region_5, access_region_6, access_region_7, access_region_8,
};

static int on_reset(vfu_ctx_t *ctx, vfu_reset_type_t type)
{
    vdcm_session *s = vfu_get_private(ctx);
    int error;

    if (type == VFU_RESET_LOST_CONN) {
        return 0; /* transport.py sees the disconnection itself */
    }
    error = vdcm_on_reset(s->owner);
    if (error != 0) {
        errno = error;
        return -1;
    }
    return 0;
}

static void on_log(vfu_ctx_t *ctx, int level, const char *message)
{
    vdcm_session *s = vfu_get_private(ctx);

    (void)vdcm_on_log(s->owner, level, message);
}

/* ---- life ------------------------------------------------------------------------------------ */

vdcm_session *vdcm_session_new(void *owner, const char *directory, int log_level)
{
    vdcm_session *s = calloc(1, sizeof(*s));

    if (s == NULL) {
        return NULL;
    }
    s->owner = owner;
    s->fd = -1;
    for (int i = 0; i < REGIONS; i++) {
        s->regions[i].fd = -1;
    }
    if (asprintf(&s->path, "%s/handover", directory) < 0) {
        s->path = NULL;
        goto fail;
    }
    s->aspace = vdcm_aspace_new();
    if (s->aspace == NULL) {
        goto fail;
    }
    (void)unlink(s->path); /* of a hand-over that an error cut short */
    s->ctx = vfu_create_ctx(VFU_TRANS_SOCK, s->path, LIBVFIO_USER_FLAG_ATTACH_NB, s,
                            VFU_DEV_TYPE_PCI);
    if (s->ctx == NULL) {
        goto fail;
    }
    if (vfu_setup_log(s->ctx, on_log, log_level) < 0 ||
        vfu_setup_device_reset_cb(s->ctx, on_reset) < 0 ||
        vfu_setup_device_nr_irqs(s->ctx, VFU_DEV_ERR_IRQ, 0) < 0 ||
        vfu_setup_device_nr_irqs(s->ctx, VFU_DEV_REQ_IRQ, 0) < 0) {
        goto fail;
    }
    return s;

fail: {
    int error = errno;

    vdcm_session_free(s);
    errno = error;
    return NULL;
}
}

static void unbind(struct vectors *kind, uint32_t start, uint32_t count)
{
    for (uint32_t i = start; i < start + count; i++) {
        if (kind->eventfds[i] >= 0) {
            close(kind->eventfds[i]);
            kind->eventfds[i] = -1;
        }
    }
}

void vdcm_session_free(vdcm_session *s)
{
    if (s == NULL) {
        return;
    }
    if (s->ctx != NULL) {
        vfu_destroy_ctx(s->ctx);
    }
    if (s->path != NULL) {
        (void)unlink(s->path);
        free(s->path);
    }
    for (int i = 0; i < KINDS; i++) {
        if (s->kinds[i].eventfds != NULL) {
            unbind(&s->kinds[i], 0, s->kinds[i].count);
            free(s->kinds[i].eventfds);
        }
    }
    for (int i = 0; i < REGIONS; i++) {
        if (s->regions[i].fd >= 0) {
            close(s->regions[i].fd);
        }
    }
    vdcm_aspace_free(s->aspace);
    free(s);
}

int vdcm_session_region(vdcm_session *s, int index, uint64_t size, bool memory, int fd,
                        const vdcm_area *areas, uint32_t n_areas)
{
    int flags = VFU_REGION_FLAG_RW | (memory ? VFU_REGION_FLAG_MEM : 0);
    struct region *region;

    if (index < 0 || index >= REGIONS || n_areas > VDCM_MAX_AREAS || (n_areas > 0) != (fd >= 0)) {
        return -EINVAL;
    }
    region = &s->regions[index];
    if (index == VFU_PCI_DEV_CFG_REGION_IDX) {
        flags |= VFU_REGION_FLAG_ALWAYS_CB; /* the whole configuration space is ours */
    }
    if (vfu_setup_region(s->ctx, index, size, region_callbacks[index], flags, NULL, 0, -1, 0) < 0) {
        return -errno;
    }
    if (fd >= 0) {
        region->fd = fcntl(fd, F_DUPFD_CLOEXEC, 0);
        if (region->fd < 0) {
            return -errno;
        }
        memcpy(region->areas, areas, n_areas * sizeof(*areas));
    }
    region->n_areas = n_areas;
    region->size = size;
    return 0;
}

int vdcm_session_vectors(vdcm_session *s, int index, uint32_t count)
{
    static const enum vfu_dev_irq_type types[KINDS] = {VFU_DEV_INTX_IRQ, VFU_DEV_MSI_IRQ,
                                                       VFU_DEV_MSIX_IRQ};
    struct vectors *kind;

    if (index < 0 || index >= KINDS || s->kinds[index].eventfds != NULL) {
        return -EINVAL;
    }
    kind = &s->kinds[index];
    if (count > 0) {
        kind->eventfds = malloc(count * sizeof(*kind->eventfds));
        if (kind->eventfds == NULL) {
            return -ENOMEM;
        }
        for (uint32_t i = 0; i < count; i++) {
            kind->eventfds[i] = -1;
        }
    }
    kind->count = count;
    return vfu_setup_device_nr_irqs(s->ctx, types[index], count) < 0 ? -errno : 0;
}

int vdcm_session_attach(vdcm_session *s, int fd, const void *version, size_t length)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int private = -1;
    int error = 0;

    if (strlen(s->path) >= sizeof(address.sun_path)) {
        return -ENAMETOOLONG;
    }
    strcpy(address.sun_path, s->path);
    if (vfu_realize_ctx(s->ctx) < 0) {
        return -errno;
    }
    private = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (private < 0 || connect(private, (struct sockaddr *)&address, sizeof(address)) < 0 ||
        send(private, version, length, MSG_NOSIGNAL) != (ssize_t)length ||
        vfu_attach_ctx(s->ctx) < 0) {
        error = -errno;
        goto out;
    }
    s->fd = vfu_get_poll_fd(s->ctx);
    if (fcntl(fd, F_SETFL, O_NONBLOCK) < 0 || dup3(fd, s->fd, O_CLOEXEC) < 0) {
        error = -errno;
        goto out;
    }
    s->client = fd;
    s->attached = true;

out:
    if (private >= 0) {
        close(private);
    }
    (void)unlink(s->path);
    return error;
}

void vdcm_session_stop(vdcm_session *s)
{
    s->stopped = true;
}

bool vdcm_session_partial(const vdcm_session *s)
{
    return s->partial;
}

const char *vdcm_session_reason(const vdcm_session *s)
{
    return s->reason != NULL ? s->reason : "";
}

vdcm_aspace *vdcm_session_aspace(vdcm_session *s)
{
    return s->aspace;
}

int vdcm_session_trigger(vdcm_session *s, int index, uint32_t vector)
{
    struct pollfd poller = {.events = POLLOUT};

    if (index < 0 || index >= KINDS || vector >= s->kinds[index].count ||
        s->kinds[index].eventfds[vector] < 0) {
        return -ENOENT;
    }
    /*
     * When the counter is full the client has one pending anyway. Non-blocking is not enough to
     * know: the flag belongs to the open file, which is the client's too.
     */
    poller.fd = s->kinds[index].eventfds[vector];
    if (poll(&poller, 1, 0) > 0 && (poller.revents & POLLOUT)) {
        (void)eventfd_write(poller.fd, 1);
    }
    return 0;
}

/* ---- the messages that are answered here ----------------------------------------------------- */

struct message {
    int fds[VDCM_MAX_FDS];
    uint32_t n_fds;
    union { /* last: a longer message is taken into a longer allocation */
        union vdcm_peek peek;
        uint8_t bytes[VDCM_OURS_MAX];
    };
};

static int answer(vdcm_session *s, const struct vdcm_header *request, int error,
                  const void *payload, size_t length, int fd)
{
    struct vdcm_header header = {
        .id = request->id,
        .command = request->command,
        .size = (uint32_t)(sizeof(header) + (error != 0 ? 0 : length)),
        .flags = VDCM_FLAG_REPLY | (error != 0 ? VDCM_FLAG_ERROR : 0),
        .error = (uint32_t)error,
    };
    struct iovec iov[2] = {{&header, sizeof(header)}, {(void *)payload, header.size - sizeof(header)}};
    union {
        struct cmsghdr header;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control = {0};
    struct msghdr msg = {.msg_iov = iov, .msg_iovlen = 2};

    if (request->flags & VDCM_FLAG_NO_REPLY) {
        return 0;
    }
    if (fd >= 0) {
        msg.msg_control = &control;
        msg.msg_controllen = sizeof(control);
        control.header.cmsg_level = SOL_SOCKET;
        control.header.cmsg_type = SCM_RIGHTS;
        control.header.cmsg_len = CMSG_LEN(sizeof(int));
        memcpy(CMSG_DATA(&control.header), &fd, sizeof(fd));
    }
    if (sendmsg(s->fd, &msg, MSG_NOSIGNAL | MSG_DONTWAIT) != (ssize_t)header.size) {
        s->reason = "the client does not read its answers";
        return -EPIPE;
    }
    return 0;
}

/* Takes `size` bytes off the stream, all of which have arrived; descriptors are dropped. */
static int discard(vdcm_session *s, uint32_t size)
{
    char scratch[4096];

    while (size > 0) {
        ssize_t got = recv(s->fd, scratch, size < sizeof(scratch) ? size : sizeof(scratch),
                           MSG_DONTWAIT);

        if (got <= 0) {
            return -ENOTCONN;
        }
        size -= (uint32_t)got;
    }
    return 0;
}

static void close_fds(struct message *message)
{
    for (uint32_t i = 0; i < message->n_fds; i++) {
        if (message->fds[i] >= 0) {
            close(message->fds[i]);
        }
    }
    message->n_fds = 0;
}

/* Takes a message that has arrived whole and the descriptors that came with its first byte. */
static int take(vdcm_session *s, uint32_t size, struct message *message)
{
    struct iovec iov = {.iov_base = message->bytes, .iov_len = size};
    union {
        struct cmsghdr header;
        char bytes[CMSG_SPACE(sizeof(int) * VDCM_MAX_FDS)];
    } control;
    struct msghdr msg = {.msg_iov = &iov,
                         .msg_iovlen = 1,
                         .msg_control = &control,
                         .msg_controllen = sizeof(control)};
    ssize_t got = recvmsg(s->fd, &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    struct cmsghdr *cmsg;

    message->n_fds = 0;
    if (got <= 0) {
        return -ENOTCONN;
    }
    for (cmsg = CMSG_FIRSTHDR(&msg); cmsg != NULL; cmsg = CMSG_NXTHDR(&msg, cmsg)) {
        if (cmsg->cmsg_level == SOL_SOCKET && cmsg->cmsg_type == SCM_RIGHTS) {
            size_t bytes = cmsg->cmsg_len - CMSG_LEN(0);

            memcpy(message->fds, CMSG_DATA(cmsg), bytes);
            message->n_fds = (uint32_t)(bytes / sizeof(int));
            break; /* a stream socket delivers one set */
        }
    }
    if (msg.msg_flags & MSG_CTRUNC) {
        close_fds(message);
        s->reason = "a message carries more descriptors than max_msg_fds allows";
        return -EPROTO;
    }
    while ((uint32_t)got < size) {
        ssize_t more = recv(s->fd, message->bytes + got, size - (uint32_t)got, MSG_DONTWAIT);

        if (more <= 0) {
            close_fds(message);
            return -ENOTCONN;
        }
        got += more;
    }
    return 0;
}

#define PAYLOAD(message) ((void *)((message)->bytes + sizeof(struct vdcm_header)))

static int region_info(vdcm_session *s, struct message *message)
{
    struct vfio_region_info asked;
    struct {
        struct vfio_region_info info;
        struct vfio_region_info_cap_sparse_mmap sparse;
        struct vfio_region_sparse_mmap_area areas[VDCM_MAX_AREAS];
    } __attribute__((packed)) reply;
    const struct region *region;
    size_t length = sizeof(reply.info);
    int fd = -1;

    memcpy(&asked, PAYLOAD(message), sizeof(asked));
    if (asked.index >= VFU_PCI_DEV_NUM_REGIONS) {
        return answer(s, &message->peek.header, EINVAL, NULL, 0, -1);
    }
    memset(&reply, 0, sizeof(reply));
    reply.info.argsz = sizeof(reply.info);
    reply.info.index = asked.index;
    if (asked.index < REGIONS && s->regions[asked.index].size != 0) {
        region = &s->regions[asked.index];
        reply.info.size = region->size;
        reply.info.flags = VFIO_REGION_INFO_FLAG_READ | VFIO_REGION_INFO_FLAG_WRITE;
        if (region->n_areas > 0) {
            reply.info.flags |= VFIO_REGION_INFO_FLAG_MMAP;
            reply.info.argsz += (uint32_t)(sizeof(reply.sparse) +
                                           region->n_areas * sizeof(reply.areas[0]));
        }
        if (region->n_areas > 0 && asked.argsz >= reply.info.argsz) {
            /* Not said otherwise: stock QEMU refuses the flag where there is no capability. */
            reply.info.flags |= VFIO_REGION_INFO_FLAG_CAPS;
            reply.info.cap_offset = sizeof(reply.info);
            reply.sparse.header.id = VFIO_REGION_INFO_CAP_SPARSE_MMAP;
            reply.sparse.header.version = 1;
            reply.sparse.nr_areas = region->n_areas;
            for (uint32_t i = 0; i < region->n_areas; i++) {
                reply.areas[i].offset = region->areas[i].offset;
                reply.areas[i].size = region->areas[i].size;
            }
            length = reply.info.argsz;
            fd = region->fd;
        }
    }
    return answer(s, &message->peek.header, 0, &reply, length, fd);
}

static int dma_map(vdcm_session *s, struct message *message)
{
    enum { READ = 1, WRITE = 2 };
    struct {
        uint32_t argsz, flags;
        uint64_t offset, iova, size;
    } map;
    int fd = message->n_fds > 0 ? message->fds[0] : -1;
    int error;

    memcpy(&map, PAYLOAD(message), sizeof(map));
    if ((map.flags & ~(uint32_t)(READ | WRITE)) != 0 || message->n_fds > 1) {
        return answer(s, &message->peek.header, EINVAL, NULL, 0, -1);
    }
    error = vdcm_aspace_map(s->aspace, map.iova, map.size, fd, map.offset, map.flags & READ,
                            map.flags & WRITE);
    if (error == 0) {
        (void)vdcm_on_dma(s->owner, true, map.iova, map.size, fd >= 0);
    }
    return answer(s, &message->peek.header, -error, NULL, 0, -1);
}

static int dma_unmap(vdcm_session *s, struct message *message)
{
    enum { ALL = 2 };
    struct {
        uint32_t argsz, flags;
        uint64_t iova, size;
    } unmap;
    int error = 0;

    memcpy(&unmap, PAYLOAD(message), sizeof(unmap));
    if (unmap.flags == ALL && unmap.iova == 0 && unmap.size == 0) {
        vdcm_aspace_unmap_all(s->aspace);
    } else if (unmap.flags == 0) {
        error = vdcm_aspace_unmap(s->aspace, unmap.iova, unmap.size);
    } else {
        error = -EINVAL; /* a dirty bitmap belongs to migration, which is not offered */
    }
    if (error == 0) {
        (void)vdcm_on_dma(s->owner, false, unmap.iova, unmap.size, false);
    }
    unmap.argsz = sizeof(unmap);
    return answer(s, &message->peek.header, -error, &unmap, sizeof(unmap), -1);
}

/* An eventfd, made non-blocking so that a full counter cannot stop this process. */
static bool usable_eventfd(int fd)
{
    static const char wanted[] = "anon_inode:[eventfd]";
    char link[32];
    char target[sizeof(wanted)];
    ssize_t length;

    snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
    length = readlink(link, target, sizeof(target));
    if (length != (ssize_t)sizeof(wanted) - 1 || memcmp(target, wanted, sizeof(wanted) - 1) != 0) {
        return false;
    }
    return fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK) == 0;
}

static int bind_eventfds(vdcm_session *s, struct message *message, const struct vfio_irq_set *set)
{
    struct vectors *kind = &s->kinds[set->index];

    if (message->n_fds == 0) {
        unbind(kind, set->start, set->count);
        (void)vdcm_on_irqs(s->owner, (int)set->index, VDCM_IRQ_UNBOUND, set->start, set->count);
        return 0;
    }
    if (message->n_fds != set->count) {
        return EINVAL;
    }
    for (uint32_t i = 0; i < set->count; i++) {
        if (!usable_eventfd(message->fds[i])) {
            return EBADF;
        }
    }
    unbind(kind, set->start, set->count);
    for (uint32_t i = 0; i < set->count; i++) {
        kind->eventfds[set->start + i] = message->fds[i];
        message->fds[i] = -1;
    }
    (void)vdcm_on_irqs(s->owner, (int)set->index, VDCM_IRQ_BOUND, set->start, set->count);
    return 0;
}

static int set_irqs_checked(vdcm_session *s, struct message *message)
{
    uint32_t payload = message->peek.header.size - sizeof(struct vdcm_header);
    struct vfio_irq_set set;
    const uint8_t *booleans;
    uint32_t action;
    uint32_t data;

    memcpy(&set, PAYLOAD(message), sizeof(set));
    booleans = (const uint8_t *)PAYLOAD(message) + sizeof(set);
    action = set.flags & VFIO_IRQ_SET_ACTION_TYPE_MASK;
    data = set.flags & VFIO_IRQ_SET_DATA_TYPE_MASK;
    if (set.flags != (action | data) || set.index >= KINDS ||
        set.start > s->kinds[set.index].count ||
        set.count > s->kinds[set.index].count - set.start) {
        return EINVAL;
    }
    if (message->n_fds != 0 && data != VFIO_IRQ_SET_DATA_EVENTFD) {
        return EINVAL;
    }
    if (data == VFIO_IRQ_SET_DATA_BOOL && payload - sizeof(set) != set.count) {
        return EINVAL;
    }
    if (data == VFIO_IRQ_SET_DATA_EVENTFD) {
        /* An eventfd that masks or unmasks is for interrupts that bypass the client: not offered. */
        return action == VFIO_IRQ_SET_ACTION_TRIGGER ? bind_eventfds(s, message, &set) : EOPNOTSUPP;
    }
    if (data != VFIO_IRQ_SET_DATA_NONE && data != VFIO_IRQ_SET_DATA_BOOL) {
        return EINVAL;
    }
    if (action == VFIO_IRQ_SET_ACTION_TRIGGER && data == VFIO_IRQ_SET_DATA_NONE && set.count == 0) {
        unbind(&s->kinds[set.index], 0, s->kinds[set.index].count); /* "disable this kind" */
        (void)vdcm_on_irqs(s->owner, (int)set.index, VDCM_IRQ_UNBOUND, 0, s->kinds[set.index].count);
        return 0;
    }
    if (action != VFIO_IRQ_SET_ACTION_TRIGGER && action != VFIO_IRQ_SET_ACTION_MASK &&
        action != VFIO_IRQ_SET_ACTION_UNMASK) {
        return EINVAL;
    }
    for (uint32_t i = 0; i < set.count; i++) {
        if (data == VFIO_IRQ_SET_DATA_BOOL && booleans[i] == 0) {
            continue;
        }
        if (action == VFIO_IRQ_SET_ACTION_TRIGGER) {
            (void)vdcm_session_trigger(s, (int)set.index, set.start + i);
        } else {
            (void)vdcm_on_irqs(s->owner, (int)set.index,
                         action == VFIO_IRQ_SET_ACTION_MASK ? VDCM_IRQ_MASKED : VDCM_IRQ_UNMASKED,
                         set.start + i, 1);
        }
    }
    return 0;
}

/* libvfio-user leaves the flags out that say which interrupts can be masked. */
static int irq_info(vdcm_session *s, struct message *message)
{
    struct vfio_irq_info info;

    memcpy(&info, PAYLOAD(message), sizeof(info));
    if (info.index >= VFIO_PCI_NUM_IRQS) {
        return answer(s, &message->peek.header, EINVAL, NULL, 0, -1);
    }
    info.argsz = sizeof(info);
    info.count = info.index < KINDS ? s->kinds[info.index].count : 0;
    info.flags = VFIO_IRQ_INFO_EVENTFD;
    if (info.index < KINDS) {
        info.flags |= VFIO_IRQ_INFO_MASKABLE;
    }
    if (info.index == VFIO_PCI_INTX_IRQ_INDEX) {
        info.flags |= VFIO_IRQ_INFO_AUTOMASKED;
    }
    return answer(s, &message->peek.header, 0, &info, sizeof(info), -1);
}

static int handle_ours(vdcm_session *s, uint32_t size)
{
    struct message message;
    int error = take(s, size, &message);
    const char *why = NULL;
    int wrong = 0;

    if (error != 0) {
        return error;
    }
    if (vdcm_guard_check(&message.peek, &wrong, &why) != VDCM_OURS) {
        s->reason = why;
        error = answer(s, &message.peek.header, wrong != 0 ? wrong : EINVAL, NULL, 0, -1);
    } else {
        switch (message.peek.header.command) {
        case VDCM_GET_REGION_INFO:
            error = region_info(s, &message);
            break;
        case VDCM_GET_IRQ_INFO:
            error = irq_info(s, &message);
            break;
        case VDCM_DMA_MAP:
            error = dma_map(s, &message);
            break;
        case VDCM_DMA_UNMAP:
            error = dma_unmap(s, &message);
            break;
        case VDCM_SET_IRQS:
            wrong = set_irqs_checked(s, &message);
            error = answer(s, &message.peek.header, wrong, NULL, 0, -1);
            break;
        }
    }
    close_fds(&message);
    return error;
}

/*
 * Takes a message, and shows it to libvfio-user over a socket pair that stands in for the connection
 * if it carries no descriptor. Slow, and rare: only for what is sent ahead of DMA_MAP or SET_IRQS
 * without waiting for the answer.
 */
static int pass_by_hand(vdcm_session *s, uint32_t size)
{
    struct message *message = malloc(sizeof(*message) - VDCM_OURS_MAX + VDCM_MAX_MESSAGE);
    int pair[2] = {-1, -1};
    ssize_t got;
    int error;

    if (message == NULL) {
        return -ENOMEM;
    }
    error = take(s, size, message);
    if (error == 0 && message->n_fds > 0) {
        close_fds(message);
        s->reason = "a message that takes no descriptor carries one";
        error = -EPROTO;
    }
    if (error != 0) {
        goto out;
    }
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) < 0 ||
        send(pair[1], message->bytes, size, MSG_NOSIGNAL) != (ssize_t)size ||
        dup3(pair[0], s->fd, O_CLOEXEC) < 0) {
        error = -errno;
        goto out;
    }
    error = vfu_run_ctx(s->ctx) < 0 ? -EPIPE : 0;
    if (vfu_get_poll_fd(s->ctx) != s->fd) {
        error = -ENOTCONN; /* it could not reply, and has closed s->fd */
        goto out;
    }
    if (dup3(s->client, s->fd, O_CLOEXEC) < 0) {
        error = -errno;
    }
    if (error != 0) {
        goto out;
    }
    got = recv(pair[1], message->bytes, VDCM_MAX_MESSAGE, MSG_DONTWAIT);
    if (got > 0 && send(s->fd, message->bytes, (size_t)got, MSG_NOSIGNAL | MSG_DONTWAIT) != got) {
        s->reason = "the client does not read its answers";
        error = -EPIPE;
    }

out:
    for (int i = 0; i < 2; i++) {
        if (pair[i] >= 0) {
            close(pair[i]);
        }
    }
    free(message);
    return error;
}

/* ---- the loop -------------------------------------------------------------------------------- */

static uint64_t now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * UINT64_C(1000000000) + (uint64_t)now.tv_nsec;
}

/* Sleeps until something has arrived; false if it does not within `ns`. */
static bool wait_for(int fd, uint64_t ns)
{
    struct pollfd poller = {.fd = fd, .events = POLLIN};
    struct timespec time = {.tv_nsec = (long)ns};

    return ppoll(&poller, 1, &time, NULL) > 0;
}

/*
 * To be awake when a message comes saves a wake-up, the largest part of its cost; but a client that
 * shares our CPU cannot send while we are. So each time that it was in vain, twice as many chances
 * are let go before the next try.
 */
enum { VAIN_LIMIT = 1023 };

static bool may_spin(vdcm_session *s)
{
    if (s->skip == 0) {
        return true;
    }
    s->skip--;
    return false;
}

static void spin_was_vain(vdcm_session *s, bool *spinning)
{
    if (*spinning) {
        s->vain = s->vain < VAIN_LIMIT ? 2 * s->vain + 1 : VAIN_LIMIT;
        s->skip = s->vain;
        *spinning = false;
    }
}

int vdcm_session_run(vdcm_session *s, uint64_t turn_ns, uint64_t spin_ns, uint64_t linger_ns)
{
    union vdcm_peek peek;
    uint64_t now = now_ns();
    uint64_t turn_end = now + turn_ns;
    uint64_t idle_since = now;
    bool spinning = false;
    bool looked_in_vain = false;
    int handled = 0;

    s->partial = false;
    s->reason = NULL;
    while (now < turn_end) {
        int error = 0;

        switch (vdcm_guard(s->fd, &peek, &error, &s->reason)) {
        case VDCM_PASS:
            if (vfu_run_ctx(s->ctx) < 0) {
                if (errno == EAGAIN) {
                    s->reason = "the client does not read its answers";
                }
                return errno == ENOTCONN ? -ENOTCONN : -EPIPE;
            }
            if (vfu_get_poll_fd(s->ctx) != s->fd) {
                return -ENOTCONN; /* it could not reply, and has closed s->fd */
            }
            break;
        case VDCM_UNSURE:
            error = pass_by_hand(s, peek.header.size);
            if (error != 0) {
                return error;
            }
            break;
        case VDCM_OURS:
            error = handle_ours(s, peek.header.size);
            if (error != 0) {
                return error;
            }
            break;
        case VDCM_REJECT: {
            char text[160];

            snprintf(text, sizeof(text), "command %u refused: %s", peek.header.command, s->reason);
            (void)vdcm_on_log(s->owner, 4 /* LOG_WARNING */, text);
            if (discard(s, peek.header.size) < 0) {
                return -ENOTCONN;
            }
            error = answer(s, &peek.header, error, NULL, 0, -1);
            if (error != 0) {
                return error;
            }
            break;
        }
        case VDCM_EMPTY:
            now = now_ns();
            if (spinning && now - idle_since < spin_ns) {
                looked_in_vain = true;
                continue;
            }
            spin_was_vain(s, &spinning);
            if (now - idle_since >= linger_ns || !wait_for(s->fd, idle_since + linger_ns - now)) {
                return handled;
            }
            now = now_ns();
            continue;
        case VDCM_PARTIAL:
            s->partial = true;
            return handled;
        case VDCM_GONE:
            return -ENOTCONN;
        case VDCM_REFUSE:
            return -EPROTO;
        }
        if (spinning && looked_in_vain) {
            s->vain = 0; /* it came while we were awake */
        }
        handled++;
        if (s->stopped) {
            return handled;
        }
        now = idle_since = now_ns();
        spinning = spin_ns != 0 && may_spin(s);
        looked_in_vain = false;
        if (!spinning && linger_ns != 0 && !wait_for(s->fd, linger_ns)) {
            return handled;
        }
    }
    return handled;
}
