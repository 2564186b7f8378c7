/*
 * What it costs to receive a message and to check it: nanoseconds for each of BURST posted 8-byte
 * REGION_WRITEs that wait, and for one alone; and of the receive calls that libvfio-user would make
 * for it. Prints one JSON object.
 *
 *     guard_cost COUNT
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <time.h>

#include "guard.h"

enum { BURST = 8 };

struct request {
    struct vdcm_header header;
    struct vdcm_access access;
    uint64_t data;
};

static double now(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec * 1e9 + (double)time.tv_nsec;
}

static int ours(struct vdcm_inbox *inbox, int fd)
{
    struct vdcm_message message;
    const char *reason = NULL;
    int error = 0;

    return vdcm_inbox_next(inbox, fd, &message, &reason) == VDCM_MESSAGE &&
                   vdcm_guard(&message, &error, &reason) == VDCM_OURS
               ? 0
               : -1;
}

static int theirs(struct vdcm_inbox *inbox, int fd)
{
    char control[4096];
    struct request taken;
    struct iovec iov = {&taken.header, sizeof(taken.header)};
    struct msghdr msg = {.msg_iov = &iov,
                         .msg_iovlen = 1,
                         .msg_control = control,
                         .msg_controllen = sizeof(control)};
    size_t rest = sizeof(taken) - sizeof(taken.header);

    (void)inbox;
    return recvmsg(fd, &msg, 0) == sizeof(taken.header) &&
                   recv(fd, &taken.access, rest, 0) == (ssize_t)rest
               ? 0
               : -1;
}

/* Mean nanoseconds of one of `burst` messages that wait. */
static double measure(int (*receive)(struct vdcm_inbox *, int), unsigned burst, size_t count)
{
    struct request request = {
        .header = {.command = VDCM_REGION_WRITE,
                   .size = sizeof(request),
                   .flags = VDCM_FLAG_NO_REPLY},
        .access = {.count = sizeof(request.data)},
    };
    static struct vdcm_inbox inbox;
    double spent = 0;
    int pair[2];

    if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair) < 0) {
        perror("socketpair");
        exit(1);
    }
    for (size_t i = 0; i < count; i += burst) {
        double start;

        for (unsigned k = 0; k < burst; k++) {
            if (send(pair[0], &request, sizeof(request), 0) != sizeof(request)) {
                perror("send");
                exit(1);
            }
        }
        start = now();
        for (unsigned k = 0; k < burst; k++) {
            if (receive(&inbox, pair[1]) != 0) {
                fprintf(stderr, "a message was not taken\n");
                exit(1);
            }
        }
        spent += (now() - start) / burst;
    }
    return spent * burst / (double)count;
}

int main(int argc, char **argv)
{
    size_t count = argc > 1 ? strtoul(argv[1], NULL, 0) / BURST * BURST : 0;

    if (count == 0) {
        fprintf(stderr, "usage: guard_cost COUNT\n");
        return 2;
    }
    printf("{\"messages\": %zu, \"burst_ns\": %.1f, \"alone_ns\": %.1f, \"receive_ns\": %.1f}\n",
           count, measure(ours, BURST, count), measure(ours, 1, count),
           measure(theirs, BURST, count));
    return 0;
}
