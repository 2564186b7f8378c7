/*
 * Times 4-byte reads and prints one JSON object: mean, median and 99th percentile in nanoseconds.
 *
 *     read_loop socket PATH COUNT          trapped reads of BAR 0 through a vfio-user socket
 *     read_loop socket-page PATH COUNT     the mapped page behind them
 *     read_loop file PATH COUNT [OFFSET]   a mapped file, such as a PCI resource inside a guest
 *     read_loop memory - COUNT             plain shared memory of this process
 *
 * Mapped reads are timed in batches, since one is shorter than reading the clock.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum { PAGE = 4096, BATCH = 1000 };

struct header {
    uint16_t id, command;
    uint32_t size, flags, error;
};

struct access {
    struct header header;
    uint64_t offset;
    uint32_t region, count;
    uint32_t data;
};

static void die(const char *what)
{
    perror(what);
    exit(EXIT_FAILURE);
}

static uint64_t now(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

static int order(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

    return (x > y) - (x < y);
}

static void report(uint64_t *samples, size_t count, double scale)
{
    double sum = 0;

    for (size_t i = 0; i < count; i++) {
        sum += (double)samples[i];
    }
    qsort(samples, count, sizeof(*samples), order);
    printf("{\"reads\": %zu, \"mean_ns\": %.2f, \"median_ns\": %.2f, \"p99_ns\": %.2f}\n", count,
           sum / (double)count / scale, (double)samples[count / 2] / scale,
           (double)samples[count * 99 / 100] / scale);
}

static void exchange(int fd, const void *request, size_t length, void *reply, size_t room)
{
    struct header header;

    if (send(fd, request, length, 0) != (ssize_t)length ||
        recv(fd, &header, sizeof(header), MSG_WAITALL) != sizeof(header)) {
        die("exchange");
    }
    if ((header.flags & 0x20) != 0 || header.size - sizeof(header) > room ||
        recv(fd, reply, header.size - sizeof(header), MSG_WAITALL) !=
            (ssize_t)(header.size - sizeof(header))) {
        fprintf(stderr, "the server refused command %u: error %u\n", header.command, header.error);
        exit(EXIT_FAILURE);
    }
}

static int connect_to(const char *path)
{
    static const char text[] = "{\"capabilities\":{\"max_msg_fds\":8}}";
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    struct {
        struct header header;
        uint16_t major, minor;
        char text[sizeof(text)];
    } __attribute__((packed)) hello = {.header = {.command = 1, .size = sizeof(hello)}, .minor = 1};
    char reply[4096];
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);

    snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
    if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0) {
        die(path);
    }
    memcpy(hello.text, text, sizeof(text));
    exchange(fd, &hello, sizeof(hello), reply, sizeof(reply));
    return fd;
}

/* The descriptor that comes with BAR 0's region information. */
static int region_fd(int fd)
{
    struct {
        struct header header;
        uint32_t argsz, flags, index, cap_offset;
        uint64_t size, offset;
    } request = {.header = {.command = 5, .size = sizeof(request)}, .argsz = 1024};
    char reply[2048];
    union {
        struct cmsghdr header;
        char bytes[CMSG_SPACE(sizeof(int) * 8)];
    } control;
    struct iovec iov = {reply, sizeof(reply)};
    struct msghdr msg = {.msg_iov = &iov,
                         .msg_iovlen = 1,
                         .msg_control = &control,
                         .msg_controllen = sizeof(control)};
    int found;

    if (send(fd, &request, sizeof(request), 0) != sizeof(request) || recvmsg(fd, &msg, 0) <= 0 ||
        CMSG_FIRSTHDR(&msg) == NULL) {
        die("no descriptor for BAR 0");
    }
    memcpy(&found, CMSG_DATA(CMSG_FIRSTHDR(&msg)), sizeof(found));
    return found;
}

static void time_socket(int fd, uint64_t *samples, size_t count)
{
    struct access request = {
        .header = {.command = 9}, .count = 4};

    /* The structure is padded to 40 bytes; the message is header, offset, region and count. */
    request.header.size = sizeof(struct header) + 16;
    for (size_t i = 0; i < count; i++) {
        struct {
            uint64_t offset;
            uint32_t region, count, data;
        } reply;
        uint64_t start = now();

        request.header.id++;
        exchange(fd, &request, request.header.size, &reply, sizeof(reply));
        samples[i] = now() - start;
    }
}

static void time_memory(const volatile uint32_t *word, uint64_t *samples, size_t count,
                        size_t batch)
{
    for (size_t i = 0; i < count; i++) {
        uint64_t start = now();

        for (size_t j = 0; j < batch; j++) {
            (void)*word;
        }
        samples[i] = now() - start;
    }
}

int main(int argc, char **argv)
{
    size_t count = argc > 3 ? strtoul(argv[3], NULL, 0) : 0;
    off_t offset = argc > 4 ? (off_t)strtoul(argv[4], NULL, 0) : 0;
    size_t batch = BATCH;
    uint64_t *samples;
    void *memory;

    if (count == 0) {
        fprintf(stderr, "usage: read_loop socket|socket-page|file|memory PATH COUNT [OFFSET]\n");
        return 2;
    }
    samples = calloc(count, sizeof(*samples));
    if (samples == NULL) {
        die("calloc");
    }
    if (strcmp(argv[1], "socket") == 0) {
        int fd = connect_to(argv[2]);

        time_socket(fd, samples, count / 10 + 1); /* warm up */
        time_socket(fd, samples, count);
        report(samples, count, 1);
        return 0;
    }
    if (strcmp(argv[1], "socket-page") == 0) {
        memory = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED,
                      region_fd(connect_to(argv[2])), PAGE);
    } else if (strcmp(argv[1], "file") == 0) {
        int fd = open(argv[2], O_RDWR | O_SYNC);

        if (fd < 0) {
            die(argv[2]);
        }
        batch = offset == 0 ? 1 : BATCH; /* the first page is trapped, see baseline_server.c */
        memory = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, offset);
    } else {
        memory = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    }
    if (memory == MAP_FAILED) {
        die("mmap");
    }
    time_memory(memory, samples, count / 10 + 1, batch);
    time_memory(memory, samples, count, batch);
    report(samples, count, (double)batch);
    return 0;
}
