/*
 * What a PMU counts on CPU 0 while a command runs, one number a line:
 *
 *     perfcount OUTPUT TYPE CONFIG[:CONFIG1]... -- COMMAND [ARGUMENT]...
 *
 * TYPE is the PMU's (/sys/bus/event_source/devices/NAME/type), CONFIG and CONFIG1 the event's, as
 * its folder "format" has them. Ends with the command's status, or 125.
 */
#include <err.h>
#include <linux/perf_event.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum { FAILED = 125, MOST = 32 };

int main(int argc, char **argv)
{
    int counters[MOST];
    int count = 0;
    int at = 3;
    int status;
    FILE *output;

    for (; at < argc && strcmp(argv[at], "--") != 0; at++) {
        struct perf_event_attr event = {.size = sizeof(event)};
        char *end;

        if (count == MOST) {
            errx(FAILED, "at most %d events", MOST);
        }
        event.type = (uint32_t)strtoul(argv[2], NULL, 0);
        event.config = strtoull(argv[at], &end, 0);
        event.config1 = *end == ':' ? strtoull(end + 1, NULL, 0) : 0;
        counters[count] = (int)syscall(SYS_perf_event_open, &event, -1, 0, -1, 0);
        if (counters[count++] < 0) {
            err(FAILED, "perf_event_open %s", argv[at]);
        }
    }
    if (at + 1 >= argc) {
        errx(FAILED, "perfcount OUTPUT TYPE CONFIG[:CONFIG1]... -- COMMAND [ARGUMENT]...");
    }
    if (fork() == 0) {
        execvp(argv[at + 1], &argv[at + 1]);
        err(FAILED, "%s", argv[at + 1]);
    }
    wait(&status);
    output = fopen(argv[1], "w");
    if (output == NULL) {
        err(FAILED, "%s", argv[1]);
    }
    for (int i = 0; i < count; i++) {
        uint64_t value;

        if (read(counters[i], &value, sizeof(value)) != sizeof(value)) {
            err(FAILED, "read %d", i);
        }
        fprintf(output, "%llu\n", (unsigned long long)value);
    }
    fclose(output);
    return WIFEXITED(status) ? WEXITSTATUS(status) : FAILED;
}
