/*
 * Accesses to the registers of a PCI device:
 *
 *     regwalk FILE OPERATION...
 *
 * FILE is a region's in sysfs: "resourceN" is mapped, "config" read and written. Operations, all
 * numbers in hexadecimal:
 *
 *     r:WIDTH:FIRST:END          read each WIDTH bytes of FIRST to END; a line of OFFSET=VALUE for
 *                                those that are not 0
 *     w:WIDTH:FIRST:END:VALUE    write VALUE to each
 */
#include <err.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static int region;
static volatile char *mapped; /* NULL: not to be mapped */

static uint64_t get(unsigned width, uint64_t at)
{
    uint64_t value = 0;

    if (mapped == NULL) {
        if (pread(region, &value, width, (off_t)at) != (ssize_t)width) {
            err(1, "read %#llx", (unsigned long long)at);
        }
        return value;
    }
    switch (width) {
    case 1:
        return *(volatile uint8_t *)(mapped + at);
    case 2:
        return *(volatile uint16_t *)(mapped + at);
    case 4:
        return *(volatile uint32_t *)(mapped + at);
    default:
        return *(volatile uint64_t *)(mapped + at);
    }
}

static void put(unsigned width, uint64_t at, uint64_t value)
{
    if (mapped == NULL) {
        if (pwrite(region, &value, width, (off_t)at) != (ssize_t)width) {
            err(1, "write %#llx", (unsigned long long)at);
        }
        return;
    }
    switch (width) {
    case 1:
        *(volatile uint8_t *)(mapped + at) = (uint8_t)value;
        break;
    case 2:
        *(volatile uint16_t *)(mapped + at) = (uint16_t)value;
        break;
    case 4:
        *(volatile uint32_t *)(mapped + at) = (uint32_t)value;
        break;
    default:
        *(volatile uint64_t *)(mapped + at) = value;
        break;
    }
}

int main(int argc, char **argv)
{
    struct stat status;

    if (argc < 2 || (region = open(argv[1], O_RDWR | O_SYNC)) < 0 || fstat(region, &status) != 0) {
        err(1, "regwalk FILE OPERATION...");
    }
    mapped = mmap(NULL, (size_t)status.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, region, 0);
    if (mapped == MAP_FAILED) {
        mapped = NULL;
    }
    for (int i = 2; i < argc; i++) {
        unsigned width;
        unsigned long long first;
        unsigned long long end;
        unsigned long long value = 0;
        char what;

        if (sscanf(argv[i], "%c:%x:%llx:%llx:%llx", &what, &width, &first, &end, &value) <
                (what == 'w' ? 5 : 4) ||
            (width != 1 && width != 2 && width != 4 && width != 8) ||
            end > (unsigned long long)status.st_size) {
            errx(1, "operation %s", argv[i]);
        }
        for (uint64_t at = first; at + width <= end; at += width) {
            if (what == 'w') {
                put(width, at, value);
            } else if ((value = get(width, at)) != 0) {
                printf("%llx=%llx ", (unsigned long long)at, value);
            }
        }
        if (what == 'r') {
            putchar('\n');
        }
    }
    return 0;
}
