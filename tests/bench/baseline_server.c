/*
 * The measure to hold vdcm against: the least that a device server on libvfio-user can be. One
 * device, blocking, one 4-byte counter at the start of BAR 0 (by message) and one page of shared
 * memory behind it (mapped by the client).
 *
 *     baseline_server SOCKET
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#include <libvfio-user.h>

enum { PAGE = 4096, BAR_SIZE = 2 * PAGE };

static uint32_t counter;

static ssize_t access_bar(vfu_ctx_t *ctx, char *buffer, size_t count, loff_t offset, bool write)
{
    (void)ctx;
    if (!write && offset == 0 && count == sizeof(counter)) {
        memcpy(buffer, &counter, sizeof(counter));
        counter++;
    }
    return (ssize_t)count;
}

static void ignore_range(vfu_ctx_t *ctx, vfu_dma_info_t *info)
{
    (void)ctx;
    (void)info;
}

static int fail(const char *what)
{
    perror(what);
    return EXIT_FAILURE;
}

int main(int argc, char **argv)
{
    struct iovec area = {.iov_base = (void *)PAGE, .iov_len = PAGE};
    vfu_ctx_t *ctx;
    int fd;

    if (argc != 2) {
        fprintf(stderr, "usage: baseline_server SOCKET\n");
        return 2;
    }
    fd = memfd_create("baseline", MFD_CLOEXEC);
    if (fd < 0 || ftruncate(fd, BAR_SIZE) < 0) {
        return fail("memfd");
    }
    ctx = vfu_create_ctx(VFU_TRANS_SOCK, argv[1], 0, NULL, VFU_DEV_TYPE_PCI);
    if (ctx == NULL) {
        return fail("vfu_create_ctx");
    }
    if (vfu_pci_init(ctx, VFU_PCI_TYPE_CONVENTIONAL, PCI_HEADER_TYPE_NORMAL, 0) < 0) {
        return fail("vfu_pci_init");
    }
    vfu_pci_set_id(ctx, 0x1234, 0xbe7c, 0, 0);
    if (vfu_setup_region(ctx, VFU_PCI_DEV_BAR0_REGION_IDX, BAR_SIZE, access_bar,
                         VFU_REGION_FLAG_RW | VFU_REGION_FLAG_MEM, &area, 1, fd, 0) < 0) {
        return fail("vfu_setup_region");
    }
#ifdef VFU_REGION_FLAG_PREFETCH
    if (vfu_setup_device_dma(ctx, LIBVFIO_USER_MAX_DMA_REGIONS, ignore_range, ignore_range) < 0) {
#else
    if (vfu_setup_device_dma(ctx, ignore_range, ignore_range) < 0) {
#endif
        return fail("vfu_setup_device_dma");
    }
    if (vfu_setup_device_nr_irqs(ctx, VFU_DEV_ERR_IRQ, 0) < 0 ||
        vfu_setup_device_nr_irqs(ctx, VFU_DEV_REQ_IRQ, 0) < 0) {
        return fail("vfu_setup_device_nr_irqs");
    }
    if (vfu_realize_ctx(ctx) < 0) {
        return fail("vfu_realize_ctx");
    }
    puts("ready");
    fflush(stdout);
    for (;;) {
        if (vfu_attach_ctx(ctx) < 0) {
            return fail("vfu_attach_ctx");
        }
        if (vfu_run_ctx(ctx) < 0 && errno != ENOTCONN) {
            return fail("vfu_run_ctx");
        }
    }
}
