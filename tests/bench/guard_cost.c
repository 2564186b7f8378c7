/*
 * What the guard costs: nanoseconds of one look at a waiting 4-byte REGION_READ, and of the receive
 * calls that libvfio-user then makes for it. Prints one JSON object.
 *
 *     guard_cost COUNT
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

#include "guard.h"

struct request {
    struct vdcm_header header;
    uint64_t offset;
    uint32_t region, count;
};

static double now(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec * 1e9 + (double)time.tv_nsec;
}

int main(int argc, char **argv)
{
    struct request request = {
        .header = {.command = VDCM_REGION_READ, .size = sizeof(request)}, .count = 4};
    size_t count = argc > 1 ? strtoul(argv[1], NULL, 0) : 0;
    double guard = 0;
    double receive = 0;
    int pair[2];

    if (count == 0 || socketpair(AF_UNIX, SOCK_STREAM, 0, pair) < 0) {
        fprintf(stderr, "usage: guard_cost COUNT\n");
        return 2;
    }
    for (size_t i = 0; i < count; i++) {
        union vdcm_peek peek;
        const char *reason = NULL;
        char control[4096];
        struct request taken;
        struct iovec iov = {&taken.header, sizeof(taken.header)};
        struct msghdr msg = {.msg_iov = &iov,
                             .msg_iovlen = 1,
                             .msg_control = control,
                             .msg_controllen = sizeof(control)};
        size_t rest = sizeof(taken) - sizeof(taken.header);
        double start;
        double middle;
        int error = 0;

        if (send(pair[0], &request, sizeof(request), 0) != sizeof(request)) {
            perror("send");
            return 1;
        }
        start = now();
        if (vdcm_guard(pair[1], &peek, &error, &reason) != VDCM_PASS) {
            fprintf(stderr, "the guard refused: %s\n", reason);
            return 1;
        }
        middle = now();
        if (recvmsg(pair[1], &msg, 0) != sizeof(taken.header) ||
            recv(pair[1], &taken.offset, rest, 0) != (ssize_t)rest) {
            perror("recv");
            return 1;
        }
        receive += now() - middle;
        guard += middle - start;
    }
    printf("{\"messages\": %zu, \"guard_ns\": %.1f, \"receive_ns\": %.1f}\n", count,
           guard / (double)count, receive / (double)count);
    return 0;
}
