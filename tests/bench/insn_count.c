/*
 * A plugin of QEMU's TCG (API 7, QEMU 11): counts the guest's instructions in a file, 8 bytes for
 * each virtual CPU, 64 bytes apart, so that they can be read while the guest runs.
 *
 *     -plugin file=insn_count.so,counts=PATH     PATH is 4096 bytes long
 */
#include <fcntl.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { CPUS = 64, STRIDE = 8 };

/* What is used of the plugin interface; its types are known to QEMU alone. */
typedef void translated_fn(void *block, void *argument);
typedef void executed_fn(unsigned cpu, void *argument);
extern void qemu_plugin_register_vcpu_tb_trans_cb(uint64_t id, translated_fn *call, void *argument);
extern void qemu_plugin_register_vcpu_tb_exec_cb(void *block, executed_fn *call, int registers,
                                                 void *argument);
extern size_t qemu_plugin_tb_n_insns(const void *block);

__attribute__((visibility("default"))) int qemu_plugin_version = 7;
__attribute__((visibility("default"))) int qemu_plugin_install(uint64_t id, const void *info,
                                                               int argc, char **argv);

static uint64_t *counts;

static void executed(unsigned cpu, void *instructions)
{
    counts[cpu % CPUS * STRIDE] += (uintptr_t)instructions;
}

static void translated(void *block, void *argument)
{
    (void)argument;
    qemu_plugin_register_vcpu_tb_exec_cb(block, executed, 0,
                                         (void *)qemu_plugin_tb_n_insns(block));
}

int qemu_plugin_install(uint64_t id, const void *info, int argc, char **argv)
{
    static const char name[] = "counts=";
    void *memory;
    int fd;

    (void)info;
    if (argc != 1 || strncmp(argv[0], name, sizeof(name) - 1) != 0) {
        return -1;
    }
    fd = open(argv[0] + sizeof(name) - 1, O_RDWR | O_CLOEXEC);
    if (fd < 0) {
        return -1;
    }
    memory = mmap(NULL, CPUS * STRIDE * sizeof(*counts), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (memory == MAP_FAILED) {
        return -1;
    }
    counts = memory;
    qemu_plugin_register_vcpu_tb_trans_cb(id, translated, NULL);
    return 0;
}
