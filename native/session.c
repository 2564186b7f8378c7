/*
 * One connected client, its libvfio-user context, and its message loop.
 *
 * A context lives as long as its client: a new client always meets a fresh one. libvfio-user can
 * only accept a connection from a socket that it has bound itself, and reads the version message
 * from it with blocking reads. So it is given a private socket, on which a version message that has
 * been checked is already waiting; the client's own connection it never sees (requests.c).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include <linux/vfio.h>

#include "ims.h"
#include "session.h"

int vdcm_libvfio_user_generation(void)
{
#ifdef VFU_REGION_FLAG_PREFETCH
    return 2;
#else
    return 1;
#endif
}

/* ---- what libvfio-user calls ---------------------------------------------------------------- */

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
    s->inner = -1;
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
        /* Never raised, but stock QEMU warns of a device that has none. */
        vdcm_session_vectors(s, VFIO_PCI_ERR_IRQ_INDEX, 1) < 0) {
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

void vdcm_unbind(struct vectors *kind, uint32_t start, uint32_t count)
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
    if (s->inner >= 0) {
        close(s->inner);
    }
    vdcm_inbox_close(&s->inbox);
    if (s->path != NULL) {
        (void)unlink(s->path);
        free(s->path);
    }
    for (int i = 0; i < KINDS; i++) {
        if (s->kinds[i].eventfds != NULL) {
            vdcm_unbind(&s->kinds[i], 0, s->kinds[i].count);
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

int vdcm_session_region(vdcm_session *s, int index, uint64_t size, int fd, const vdcm_area *areas,
                        uint32_t n_areas)
{
    struct region *region;

    if (index < 0 || index >= REGIONS || n_areas > VDCM_MAX_AREAS || (n_areas > 0) != (fd >= 0)) {
        return -EINVAL;
    }
    region = &s->regions[index];
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

int vdcm_session_stores(vdcm_session *s, int index, vdcm_area where, uintptr_t store,
                        uintptr_t argument)
{
    struct region *region;

    if (index < 0 || index >= REGIONS || s->regions[index].store != NULL) {
        return -EINVAL;
    }
    region = &s->regions[index];
    if (where.offset > region->size || where.size > region->size - where.offset) {
        return -EINVAL;
    }
    region->stores = where;
    region->store = (vdcm_store *)store;
    region->argument = (void *)argument;
    return 0;
}

void vdcm_session_observe(vdcm_session *s, bool observed)
{
    s->observed = observed;
}

int vdcm_session_vectors(vdcm_session *s, int index, uint32_t count)
{
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
    return 0;
}

int vdcm_session_attach(vdcm_session *s, int fd, const void *version, size_t length)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    char answer[4096];
    int error = 0;

    if (strlen(s->path) >= sizeof(address.sun_path)) {
        return -ENAMETOOLONG;
    }
    strcpy(address.sun_path, s->path);
    if (vfu_realize_ctx(s->ctx) < 0) {
        return -errno;
    }
    s->inner = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (s->inner < 0 || connect(s->inner, (struct sockaddr *)&address, sizeof(address)) < 0 ||
        send(s->inner, version, length, MSG_NOSIGNAL) != (ssize_t)length ||
        vfu_attach_ctx(s->ctx) < 0 ||
        recv(s->inner, answer, sizeof(answer), MSG_DONTWAIT) < 0 || /* to the version */
        fcntl(fd, F_SETFL, O_NONBLOCK) < 0) {
        error = -errno;
    }
    s->client = fd;
    (void)unlink(s->path);
    return error;
}

void vdcm_session_stop(vdcm_session *s)
{
    s->stopped = true;
}

bool vdcm_session_waiting(const vdcm_session *s)
{
    return vdcm_inbox_waiting(&s->inbox);
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

int vdcm_session_eventfd(const vdcm_session *s, int index, uint32_t vector)
{
    if (index < 0 || index >= KINDS || vector >= s->kinds[index].count) {
        return -1;
    }
    return s->kinds[index].eventfds[vector];
}

int vdcm_session_trigger(vdcm_session *s, int index, uint32_t vector)
{
    int eventfd = vdcm_session_eventfd(s, index, vector);

    if (eventfd < 0) {
        return -ENOENT;
    }
    vdcm_watch_interrupt(&s->watch);
    return vdcm_signal(eventfd);
}

const vdcm_session_counters *vdcm_session_count(const vdcm_session *s)
{
    return &s->counters;
}

/* ---- the loop -------------------------------------------------------------------------------- */

static uint64_t now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * UINT64_C(1000000000) + (uint64_t)now.tv_nsec;
}

bool vdcm_session_written(const vdcm_session *s, vdcm_written *written)
{
    *written = s->watch.written;
    written->ns = now_ns() - written->at;
    written->interrupts = s->watch.interrupts - written->interrupts;
    return s->watch.any;
}

bool vdcm_session_silent(vdcm_session *s, uint64_t ns)
{
    if (!s->watch.silent || now_ns() - s->watch.written.at < ns) {
        return false;
    }
    s->watch.silent = false;
    return true;
}

/*
 * To be awake when a message comes saves a wake-up, the largest part of its cost; but it takes the
 * CPU from others that want it. So each time that it was in vain, twice as many chances are let go
 * before the next try.
 */
enum { VAIN_LIMIT = 127 };

static bool may_spin(vdcm_session *s)
{
    if (s->skip == 0) {
        return true;
    }
    s->skip--;
    return false;
}

static void spin_was_vain(vdcm_session *s, bool spinning)
{
    if (spinning) {
        s->vain = s->vain < VAIN_LIMIT ? 2 * s->vain + 1 : VAIN_LIMIT;
        s->skip = s->vain;
    }
}

static void note_latency(vdcm_session *s, uint16_t command, uint64_t ns)
{
    switch (command) {
    case VDCM_REGION_READ:
        vdcm_latency_note(&s->counters.read_ns, ns);
        break;
    case VDCM_REGION_WRITE:
    case VDCM_REGION_WRITE_MULTI:
        vdcm_latency_note(&s->counters.write_ns, ns);
        break;
    default:
        break; /* of which there are few, and nobody waits for them often */
    }
}

int vdcm_session_run(vdcm_session *s, uint64_t turn_ns, uint64_t spin_ns)
{
    struct vdcm_message message;
    uint64_t now = now_ns();
    uint64_t turn_end = now + turn_ns;
    uint64_t idle_since = now;
    bool spinning = false;
    bool looked_in_vain = false;
    int handled = 0;

    s->partial = false;
    s->reason = NULL;
    while (now < turn_end) {
        uint64_t since = now; /* it is always the time just before this look: no clock for it alone */
        int error = 0;

        switch (vdcm_inbox_next(&s->inbox, s->client, &message, &s->reason)) {
        case VDCM_MESSAGE:
            s->counters.messages++;
            s->watch.now = since;
            error = vdcm_handle(s, &message);
            if (error != 0) {
                return error;
            }
            break;
        case VDCM_EMPTY:
            since = now_ns();
            if (!spinning || since - idle_since >= spin_ns) {
                spin_was_vain(s, spinning);
                return handled;
            }
            looked_in_vain = true;
            sched_yield(); /* to the client, which our answer may have woken on this CPU */
            now = now_ns();
            if (now - since > spin_ns) {
                spin_was_vain(s, spinning); /* somebody else is busy here: better to sleep */
                spinning = false;
            }
            continue;
        case VDCM_PARTIAL:
            s->partial = true;
            return handled;
        case VDCM_GONE:
            return -ENOTCONN;
        case VDCM_BROKEN:
            return -EPROTO;
        }
        if (spinning && looked_in_vain) {
            s->vain = 0; /* it came while we were awake */
        }
        handled++;
        now = idle_since = now_ns();
        note_latency(s, message.header.command, now - since);
        if (s->stopped) {
            return handled;
        }
        spinning = spin_ns != 0 && may_spin(s);
        looked_in_vain = false;
    }
    return handled;
}
