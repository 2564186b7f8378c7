/* See inbox.h. */
#define _GNU_SOURCE
#include "inbox.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* Bytes to ask for at once: a hundred and more small messages. Longer ones are asked for whole. */
enum { VDCM_GULP = 8192 };

void vdcm_inbox_close(struct vdcm_inbox *inbox)
{
    for (uint32_t i = 0; i < inbox->n_fds; i++) {
        if (inbox->fds[i] >= 0) {
            close(inbox->fds[i]);
        }
    }
    inbox->n_fds = 0;
}

/*
 * The descriptors of one read. The kernel ends a read behind the buffer that carried them (unix(7)),
 * so they belong to the message that the last byte is of: a client sends it with one call.
 */
static enum vdcm_arrival keep_fds(struct vdcm_inbox *inbox, struct msghdr *msg, uint32_t before,
                                  const char **reason)
{
    bool second = inbox->n_fds > 0;

    for (struct cmsghdr *cmsg = CMSG_FIRSTHDR(msg); cmsg != NULL; cmsg = CMSG_NXTHDR(msg, cmsg)) {
        if (cmsg->cmsg_level == SOL_SOCKET && cmsg->cmsg_type == SCM_RIGHTS) {
            size_t size = cmsg->cmsg_len - CMSG_LEN(0);

            vdcm_inbox_close(inbox);
            memcpy(inbox->fds, CMSG_DATA(cmsg), size);
            inbox->n_fds = (uint32_t)(size / sizeof(int));
            inbox->fds_before = before;
            if (second) {
                *reason = "descriptors of one message come with two parts of it";
                return VDCM_BROKEN;
            }
            break; /* a stream socket delivers one set */
        }
    }
    if (msg->msg_flags & MSG_CTRUNC) {
        *reason = "a message carries more descriptors than max_msg_fds allows";
        return VDCM_BROKEN;
    }
    return VDCM_MESSAGE;
}

/* Take what has arrived behind what is here, a message of `wanted` bytes at least if it is there.
 * *all: there was no more; where descriptors ended the read, a look later tells. */
static enum vdcm_arrival receive(struct vdcm_inbox *inbox, int fd, uint32_t wanted, bool *all,
                                 const char **reason)
{
    uint32_t have = inbox->end - inbox->begin;
    /* Behind a message of which the descriptors are here may be one that has its own. */
    uint32_t room = (wanted > VDCM_GULP || inbox->n_fds > 0 ? wanted : VDCM_GULP) - have;
    union {
        struct cmsghdr header;
        char bytes[CMSG_SPACE(sizeof(int) * VDCM_MAX_FDS)];
    } control;
    struct iovec iov = {.iov_len = room};
    struct msghdr msg = {.msg_iov = &iov,
                         .msg_iovlen = 1,
                         .msg_control = &control,
                         .msg_controllen = sizeof(control)};
    ssize_t got;

    if (inbox->begin > 0) {
        memmove(inbox->bytes, inbox->bytes + inbox->begin, have);
        inbox->fds_before -= inbox->n_fds > 0 ? inbox->begin : 0;
        inbox->begin = 0;
        inbox->end = have;
    }
    iov.iov_base = inbox->bytes + have;
    got = recvmsg(fd, &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    if (got < 0) {
        return errno == EAGAIN || errno == EINTR ? VDCM_EMPTY : VDCM_GONE;
    }
    inbox->end += (uint32_t)got;
    *all = (uint32_t)got < room;
    if (msg.msg_controllen > 0 || (msg.msg_flags & MSG_CTRUNC)) {
        enum vdcm_arrival arrival = keep_fds(inbox, &msg, inbox->end, reason);

        if (arrival != VDCM_MESSAGE) {
            return arrival;
        }
    }
    return got == 0 ? VDCM_GONE : VDCM_MESSAGE;
}

static const char *wrong_with(const struct vdcm_header *header)
{
    if (header->size < sizeof(*header)) {
        return "a message claims to be shorter than its header";
    }
    if (header->size > VDCM_MAX_MESSAGE) {
        return "a message is longer than max_data_xfer_size allows";
    }
    if ((header->flags & VDCM_FLAG_TYPE) != 0) {
        return "a reply arrived that nobody asked for";
    }
    return NULL;
}

static bool has_header(const struct vdcm_inbox *inbox, struct vdcm_header *header)
{
    if (inbox->end - inbox->begin < sizeof(*header)) {
        return false;
    }
    memcpy(header, inbox->bytes + inbox->begin, sizeof(*header));
    return true;
}

bool vdcm_inbox_waiting(const struct vdcm_inbox *inbox)
{
    struct vdcm_header header;

    return has_header(inbox, &header) && header.size <= inbox->end - inbox->begin;
}

enum vdcm_arrival vdcm_inbox_next(struct vdcm_inbox *inbox, int fd, struct vdcm_message *message,
                                  const char **reason)
{
    bool all = false; /* more than has been read is not there */

    if (inbox->n_fds > 0 && inbox->fds_before <= inbox->begin) {
        vdcm_inbox_close(inbox); /* those of the message before */
    }
    for (;;) {
        uint32_t wanted = sizeof(struct vdcm_header);
        enum vdcm_arrival arrival;

        if (has_header(inbox, &message->header)) {
            const char *wrong = wrong_with(&message->header);

            if (wrong != NULL) {
                *reason = wrong;
                return VDCM_BROKEN;
            }
            wanted = message->header.size;
            if (inbox->end - inbox->begin >= wanted) {
                break;
            }
        }
        if (all) {
            return VDCM_PARTIAL;
        }
        arrival = receive(inbox, fd, wanted, &all, reason);
        if (arrival == VDCM_EMPTY && inbox->begin != inbox->end) {
            return VDCM_PARTIAL;
        }
        if (arrival != VDCM_MESSAGE) {
            return arrival;
        }
    }
    message->payload = inbox->bytes + inbox->begin + sizeof(message->header);
    message->length = message->header.size - (uint32_t)sizeof(message->header);
    inbox->begin += message->header.size;
    message->fds = inbox->fds;
    message->n_fds = inbox->fds_before <= inbox->begin ? inbox->n_fds : 0;
    return VDCM_MESSAGE;
}
