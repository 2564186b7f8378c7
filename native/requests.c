/*
 * The requests that are answered here and not by libvfio-user: those that carry descriptors in
 * either direction. GET_REGION_INFO (stock QEMU takes one descriptor per region, libvfio-user sends
 * one per area), DMA_MAP and DMA_UNMAP (libvfio-user of 2022 holds 16 ranges), SET_IRQS (it keeps
 * one table of eventfds for all kinds of interrupt) and with it GET_IRQ_INFO.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <linux/vfio.h>

#include "session.h"

struct message {
    int fds[VDCM_MAX_FDS];
    uint32_t n_fds;
    union { /* last: a longer message is taken into a longer allocation */
        union vdcm_peek peek;
        uint8_t bytes[VDCM_OURS_MAX];
    };
};

int vdcm_answer(vdcm_session *s, const struct vdcm_header *request, int error,
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
int vdcm_discard(vdcm_session *s, uint32_t size)
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
        return vdcm_answer(s, &message->peek.header, EINVAL, NULL, 0, -1);
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
    return vdcm_answer(s, &message->peek.header, 0, &reply, length, fd);
}

static int dma_map(vdcm_session *s, struct message *message)
{
    enum { READ = 1, WRITE = 2 };
    struct {
        uint32_t argsz, flags;
        uint64_t offset, iova, size;
    } map;
    int fd = message->n_fds > 0 ? message->fds[0] : -1;
    struct stat status;
    int error;

    memcpy(&map, PAYLOAD(message), sizeof(map));
    if ((map.flags & ~(uint32_t)(READ | WRITE)) != 0 || message->n_fds > 1) {
        return vdcm_answer(s, &message->peek.header, EINVAL, NULL, 0, -1);
    }
    /* QEMU also passes the descriptor of memory that it has mapped for itself alone (share=off). */
    if (fd >= 0 && fstat(fd, &status) == 0 &&
        vdcm_on_memory(s->owner, status.st_dev, status.st_ino) != 0) {
        fd = -1;
    }
    error = vdcm_aspace_map(s->aspace, map.iova, map.size, fd, map.offset, map.flags & READ,
                            map.flags & WRITE);
    if (error == 0) {
        (void)vdcm_on_dma(s->owner, true, map.iova, map.size, fd >= 0);
    }
    return vdcm_answer(s, &message->peek.header, -error, NULL, 0, -1);
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
    return vdcm_answer(s, &message->peek.header, -error, &unmap, sizeof(unmap), -1);
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

/* What a client does with the error interrupt concerns nobody: it is offered and never raised. */
static void tell(vdcm_session *s, uint32_t index, int action, uint32_t start, uint32_t count)
{
    if (index != VFIO_PCI_ERR_IRQ_INDEX) {
        (void)vdcm_on_irqs(s->owner, (int)index, action, start, count);
    }
}

static int bind_eventfds(vdcm_session *s, struct message *message, const struct vfio_irq_set *set)
{
    struct vectors *kind = &s->kinds[set->index];

    if (message->n_fds == 0) {
        vdcm_unbind(kind, set->start, set->count);
        tell(s, set->index, VDCM_IRQ_UNBOUND, set->start, set->count);
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
    vdcm_unbind(kind, set->start, set->count);
    for (uint32_t i = 0; i < set->count; i++) {
        kind->eventfds[set->start + i] = message->fds[i];
        message->fds[i] = -1;
    }
    tell(s, set->index, VDCM_IRQ_BOUND, set->start, set->count);
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
        vdcm_unbind(&s->kinds[set.index], 0, s->kinds[set.index].count); /* "disable this kind" */
        tell(s, set.index, VDCM_IRQ_UNBOUND, 0, s->kinds[set.index].count);
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
            tell(s, set.index,
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
        return vdcm_answer(s, &message->peek.header, EINVAL, NULL, 0, -1);
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
    return vdcm_answer(s, &message->peek.header, 0, &info, sizeof(info), -1);
}

int vdcm_handle_ours(vdcm_session *s, uint32_t size)
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
        error = vdcm_answer(s, &message.peek.header, wrong != 0 ? wrong : EINVAL, NULL, 0, -1);
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
            error = vdcm_answer(s, &message.peek.header, wrong, NULL, 0, -1);
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
int vdcm_pass_by_hand(vdcm_session *s, uint32_t size)
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
