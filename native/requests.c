/*
 * One message: to access.c, to libvfio-user (GET_INFO and DEVICE_RESET), or answered here. Here are
 * those that carry descriptors in either direction: GET_REGION_INFO (stock QEMU takes one descriptor
 * per region, libvfio-user sends one per area), DMA_MAP and DMA_UNMAP (libvfio-user of 2022 holds 16
 * ranges), SET_IRQS (it keeps one table of eventfds for all kinds of interrupt) and with it
 * GET_IRQ_INFO.
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

void vdcm_count_error(vdcm_session *s, int error)
{
    s->counters.deferred += error == EAGAIN;
    s->counters.errors += error != 0 && error != EAGAIN;
}

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

    vdcm_count_error(s, error);
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
    if (sendmsg(s->client, &msg, MSG_NOSIGNAL | MSG_DONTWAIT) != (ssize_t)header.size) {
        s->reason = "the client does not read its answers";
        return -EPIPE;
    }
    return 0;
}

static int region_info(vdcm_session *s, const struct vdcm_message *message)
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

    memcpy(&asked, message->payload, sizeof(asked));
    if (asked.index >= VFU_PCI_DEV_NUM_REGIONS) {
        return vdcm_answer(s, &message->header, EINVAL, NULL, 0, -1);
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
    return vdcm_answer(s, &message->header, 0, &reply, length, fd);
}

static int dma_map(vdcm_session *s, const struct vdcm_message *message)
{
    enum { READ = 1, WRITE = 2 };
    struct {
        uint32_t argsz, flags;
        uint64_t offset, iova, size;
    } map;
    int fd = message->n_fds > 0 ? message->fds[0] : -1;
    struct stat status;
    int error;

    memcpy(&map, message->payload, sizeof(map));
    if ((map.flags & ~(uint32_t)(READ | WRITE)) != 0 || message->n_fds > 1) {
        return vdcm_answer(s, &message->header, EINVAL, NULL, 0, -1);
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
    return vdcm_answer(s, &message->header, -error, NULL, 0, -1);
}

static int dma_unmap(vdcm_session *s, const struct vdcm_message *message)
{
    enum { ALL = 2 };
    struct {
        uint32_t argsz, flags;
        uint64_t iova, size;
    } unmap;
    int error = 0;

    memcpy(&unmap, message->payload, sizeof(unmap));
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
    return vdcm_answer(s, &message->header, -error, &unmap, sizeof(unmap), -1);
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

static int bind_eventfds(vdcm_session *s, const struct vdcm_message *message,
                         const struct vfio_irq_set *set)
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

static int set_irqs(vdcm_session *s, const struct vdcm_message *message)
{
    struct vfio_irq_set set;
    const uint8_t *booleans;
    uint32_t action;
    uint32_t data;

    memcpy(&set, message->payload, sizeof(set));
    booleans = message->payload + sizeof(set);
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
    if (data == VFIO_IRQ_SET_DATA_BOOL && message->length - sizeof(set) != set.count) {
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
static int irq_info(vdcm_session *s, const struct vdcm_message *message)
{
    struct vfio_irq_info info;

    memcpy(&info, message->payload, sizeof(info));
    if (info.index >= VFIO_PCI_NUM_IRQS) {
        return vdcm_answer(s, &message->header, EINVAL, NULL, 0, -1);
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
    return vdcm_answer(s, &message->header, 0, &info, sizeof(info), -1);
}

/*
 * libvfio-user has a connection of its own, with us: it is given the message, and its answer is the
 * client's.
 */
static int pass(vdcm_session *s, const struct vdcm_message *message)
{
    struct iovec parts[2] = {{(void *)&message->header, sizeof(message->header)},
                             {(void *)message->payload, message->length}};
    struct msghdr msg = {.msg_iov = parts, .msg_iovlen = 2};
    uint8_t answer[256]; /* GET_INFO has the longest */
    ssize_t got;

    if (sendmsg(s->inner, &msg, MSG_NOSIGNAL | MSG_DONTWAIT) != (ssize_t)message->header.size ||
        vfu_run_ctx(s->ctx) < 0) {
        s->reason = "libvfio-user has failed";
        return -EPIPE;
    }
    got = recv(s->inner, answer, sizeof(answer), MSG_DONTWAIT);
    if (got >= (ssize_t)sizeof(struct vdcm_header)) {
        struct vdcm_header header;

        memcpy(&header, answer, sizeof(header));
        vdcm_count_error(s, header.flags & VDCM_FLAG_ERROR ? (int)header.error : 0);
    }
    if (got > 0 && send(s->client, answer, (size_t)got, MSG_NOSIGNAL | MSG_DONTWAIT) != got) {
        s->reason = "the client does not read its answers";
        return -EPIPE;
    }
    return 0;
}

int vdcm_refuse(vdcm_session *s, const struct vdcm_message *message, int error, const char *why)
{
    char text[160];

    snprintf(text, sizeof(text), "command %u refused: %s", message->header.command, why);
    (void)vdcm_on_log(s->owner, 4 /* LOG_WARNING */, text);
    return vdcm_answer(s, &message->header, error, NULL, 0, -1);
}

int vdcm_handle(vdcm_session *s, const struct vdcm_message *message)
{
    const char *why = NULL;
    int wrong = 0;

    switch (vdcm_guard(message, &wrong, &why)) {
    case VDCM_PASS:
        return pass(s, message);
    case VDCM_REJECT:
        return vdcm_refuse(s, message, wrong, why);
    case VDCM_REFUSE:
        s->reason = why;
        return -EPROTO;
    case VDCM_OURS:
        break;
    }
    switch (message->header.command) {
    case VDCM_REGION_READ:
        return vdcm_region_read(s, message);
    case VDCM_REGION_WRITE:
        return vdcm_region_write(s, message);
    case VDCM_REGION_WRITE_MULTI:
        return vdcm_region_write_multi(s, message);
    case VDCM_GET_REGION_INFO:
        return region_info(s, message);
    case VDCM_GET_IRQ_INFO:
        return irq_info(s, message);
    case VDCM_DMA_MAP:
        return dma_map(s, message);
    case VDCM_DMA_UNMAP:
        return dma_unmap(s, message);
    default: /* SET_IRQS */
        wrong = set_irqs(s, message);
        return vdcm_answer(s, &message->header, wrong, NULL, 0, -1);
    }
}
