// SPDX-License-Identifier: GPL-2.0
/*
 * Copies memory through the kernel's dmaengine API, from many threads, and compares every byte.
 *
 *   insmod dmacopy.ko threads=16 copies=1000 seed=7 max_size=65536 device=0000:00:03.0
 *   cat /sys/kernel/debug/dmacopy/result; rmmod dmacopy
 *
 * insmod returns when the run is over, with status 0 whatever came of it: the result says that. It
 * fails when there was no run: ENODEV without a free channel that copies, EINVAL, ENOMEM, or EINTR
 * when it was killed.
 *
 * `fault` shows that the checks find what they look for.
 *
 * A copy that has not been completed in `timeout` seconds is lost, and nothing new is begun. It may
 * yet be carried out: unless that has happened when insmod returns, the memory, the channels and the
 * module stay until the guest reboots, or until it is said that it never will be:
 *
 *   echo 1 >/sys/module/dmacopy/parameters/abandon; rmmod dmacopy
 */
#define pr_fmt(format) KBUILD_MODNAME ": " format

#include <linux/completion.h>
#include <linux/debugfs.h>
#include <linux/kthread.h>
#include <linux/ktime.h>
#include <linux/module.h>
#include <linux/rcupdate.h>
#include <linux/seq_file.h>
#include <linux/slab.h>

#include "dmacopy.h"

static unsigned int threads = 1;
module_param(threads, uint, 0444);
MODULE_PARM_DESC(threads, "threads that copy, 1 to 256");

unsigned int depth = 1;
module_param(depth, uint, 0444);
MODULE_PARM_DESC(depth, "copies that each thread has in flight, 1 to 256");

static unsigned int copies = 100;
module_param(copies, uint, 0444);
MODULE_PARM_DESC(copies, "copies of all threads together");

unsigned int min_size = 1;
module_param(min_size, uint, 0444);
MODULE_PARM_DESC(min_size, "the smallest copy, in bytes, from 1");

unsigned int max_size = 65536;
module_param(max_size, uint, 0444);
MODULE_PARM_DESC(max_size, "the largest copy, in bytes, up to 4 MiB less 4 pages");

static unsigned int seed = 1;
module_param(seed, uint, 0444);
MODULE_PARM_DESC(seed, "of sizes, places and contents");

bool polled;
module_param(polled, bool, 0444);
MODULE_PARM_DESC(polled, "look for completions all the time instead of sleeping until one comes");

unsigned int timeout = 20;
module_param(timeout, uint, 0444);
MODULE_PARM_DESC(timeout, "seconds until a copy counts as lost, 1 to 3600");

static unsigned int channels = 1;
module_param(channels, uint, 0444);
MODULE_PARM_DESC(channels, "channels to take, at most one for each thread; threads take turns");

static char *device = "";
module_param(device, charp, 0444);
MODULE_PARM_DESC(device, "whose channels to take, as the bus names it; empty: any");

unsigned int method;
module_param(method, uint, 0444);
MODULE_PARM_DESC(method, "who copies: 0 the channel, 1 the thread itself, 2 a kernel workqueue; "
                         "without a channel it is to compare rates with");

unsigned int every = 1;
module_param(every, uint, 0444);
MODULE_PARM_DESC(every, "compare every n-th copy of a thread; with more than 1 nothing around it");

unsigned int fault;
module_param(fault, uint, 0444);
MODULE_PARM_DESC(fault, "spoil each thread's first copy, to see that it is found: 1 a byte of the "
                        "target, 2 before it, 3 behind it, 4 farther away, 5 of the source, 6 the "
                        "completion does not come");

bool leave;
module_param(leave, bool, 0444);
MODULE_PARM_DESC(leave, "give the channels back as soon as every thread has its first copies in "
                        "flight, so that their driver may be taken away; there must be no more");

static bool kept; /* because of lost copies */

static int abandon_set(const char *value, const struct kernel_param *parameter)
{
    if (!xchg(&kept, false))
        return -EINVAL;
    module_put(THIS_MODULE);
    return 0;
}

static const struct kernel_param_ops abandon = {.set = abandon_set};
module_param_cb(abandon, &abandon, NULL, 0200);
MODULE_PARM_DESC(abandon, "written: lost copies will not be carried out any more, as the device has "
                          "been reset or has aborted them; rmmod gives everything back");

#define MOST 256 /* threads, and copies of each in flight */
#define LARGEST ((4u << 20) - 4 * PAGE_SIZE) /* x86 kernels allocate 4 MiB in one piece */

struct counts counts;
bool stop;

static struct dma_chan *taken[MOST];
static struct worker *workers;
struct workqueue_struct *copiers;
static struct dentry *folder;
static atomic_t running;
static atomic_t starting;
static bool holding; /* memory and channels, when insmod returns */
static DECLARE_COMPLETION(finished);

static void release_channels(void)
{
    for (unsigned int i = 0; i < channels && taken[i]; i++) {
        dma_release_channel(taken[i]);
        taken[i] = NULL;
    }
}

void under_way(void)
{
    if (leave && atomic_dec_and_test(&starting))
        release_channels();
}

static int work(void *argument)
{
    copy_all(argument);
    if (atomic_dec_and_test(&running))
        complete(&finished);
    return 0;
}

static int prepare(struct worker *worker, unsigned int index, u8 *piece)
{
    int error;

    init_waitqueue_head(&worker->wake);
    worker->seed = (u64)seed << 32 | index;
    worker->index = index;
    worker->channel = taken[index % channels];
    worker->copies = copies / threads + (index < copies % threads);
    prandom_seed_state(&worker->random, ~worker->seed);
    error = take(&worker->source, worker, PAGE_ALIGN(max_size) + 2 * PAGE_SIZE, DMA_TO_DEVICE);
    if (error)
        return error;
    contents(worker, false, piece);
    worker->slots = kcalloc(depth, sizeof(*worker->slots), GFP_KERNEL);
    if (!worker->slots)
        return -ENOMEM;
    for (unsigned int i = 0; i < depth; i++) {
        struct slot *slot = &worker->slots[i];

        slot->worker = worker;
        error = take(&slot->target, worker, PAGE_ALIGN(max_size) + 3 * PAGE_SIZE,
                     DMA_BIDIRECTIONAL);
        if (error)
            return error;
        memset(slot->target.memory, FILL, slot->target.size);
    }
    worker->task = kthread_create(work, worker, KBUILD_MODNAME "/%u", index);
    if (IS_ERR(worker->task)) {
        error = PTR_ERR(worker->task);
        worker->task = NULL;
        return error;
    }
    get_task_struct(worker->task);
    return 0;
}

/* What no copy should have touched. */
static void check_rest(u8 *piece)
{
    for (unsigned int i = 0; i < threads; i++) {
        struct worker *worker = &workers[i];

        if (!contents(worker, true, piece))
            atomic_inc(&counts.stray);
        for (unsigned int k = 0; k < depth; k++)
            if (every == 1 &&
                memchr_inv(worker->slots[k].target.memory, FILL, worker->slots[k].target.size))
                atomic_inc(&counts.stray);
        cond_resched();
    }
}

static void release(void)
{
    /* Callbacks may be on their last instructions. */
    if (copiers)
        destroy_workqueue(copiers);
    synchronize_rcu();
    for (unsigned int i = 0; workers && i < threads; i++) {
        struct worker *worker = &workers[i];

        if (worker->task) {
            kthread_stop(worker->task);
            put_task_struct(worker->task);
        }
        for (unsigned int k = 0; worker->slots && k < depth; k++)
            give_back(&worker->slots[k].target);
        kfree(worker->slots);
        give_back(&worker->source);
    }
    kfree(workers);
    release_channels();
}

static int run(u8 *piece)
{
    int error = 0;
    u64 begin;

    workers = kcalloc(threads, sizeof(*workers), GFP_KERNEL);
    if (!workers)
        return -ENOMEM;
    for (unsigned int i = 0; i < threads; i++) {
        error = prepare(&workers[i], i, piece);
        if (error)
            return error;
    }
    atomic_set(&running, threads);
    atomic_set(&starting, threads);
    begin = ktime_get_ns();
    for (unsigned int i = 0; i < threads; i++)
        wake_up_process(workers[i].task);
    if (wait_for_completion_killable(&finished)) {
        WRITE_ONCE(stop, true);
        wait_for_completion(&finished);
        error = -EINTR;
    }
    counts.nanoseconds = ktime_get_ns() - begin;
    if (!atomic_read(&counts.lost))
        check_rest(piece);
    return error;
}

static int result_show(struct seq_file *file, void *unused)
{
    seq_printf(file, "submitted %d\ndone %d\nwrong %d\nfailed %d\nrefused %d\n",
               atomic_read(&counts.submitted), atomic_read(&counts.done),
               atomic_read(&counts.wrong), atomic_read(&counts.failed),
               atomic_read(&counts.refused));
    seq_printf(file, "lost %d\nlate %d\nstray %d\nbytes %lld\nnanoseconds %llu\n",
               atomic_read(&counts.lost), atomic_read(&counts.late), atomic_read(&counts.stray),
               (long long)atomic64_read(&counts.bytes), counts.nanoseconds);
    return 0;
}
DEFINE_SHOW_ATTRIBUTE(result);

static bool wanted(struct dma_chan *candidate, void *unused)
{
    return !*device || !strcmp(device, dev_name(candidate->device->dev));
}

static bool valid(void)
{
    return threads && threads <= MOST && depth && depth <= MOST && channels &&
           channels <= threads && min_size && min_size <= max_size && max_size <= LARGEST &&
           timeout && timeout <= 3600 && fault < FAULTS && method < METHODS &&
           every && !(leave && copies > threads * depth);
}

static int request(void)
{
    dma_cap_mask_t mask;

    if (method == WORKQUEUE) {
        copiers = alloc_workqueue(KBUILD_MODNAME, WQ_UNBOUND, 0);
        return copiers ? 0 : -ENOMEM;
    }
    if (method == THREAD)
        return 0;
    dma_cap_zero(mask);
    dma_cap_set(DMA_MEMCPY, mask);
    for (unsigned int i = 0; i < channels; i++) {
        taken[i] = dma_request_channel(mask, wanted, NULL);
        if (!taken[i])
            return -ENODEV;
        pr_info("%s of %s\n", dma_chan_name(taken[i]), dev_name(taken[i]->device->dev));
    }
    return 0;
}

static int __init dmacopy_init(void)
{
    u8 *piece;
    int error;

    if (!valid())
        return -EINVAL;
    piece = kmalloc(CHUNK, GFP_KERNEL);
    if (!piece)
        return -ENOMEM;
    error = request();
    if (!error)
        error = run(piece);
    kfree(piece);
    if (atomic_read(&counts.lost) > atomic_read(&counts.late)) {
        __module_get(THIS_MODULE);
        kept = holding = true;
        error = 0;
    } else {
        release();
    }
    if (error)
        return error;
    pr_info("submitted %d, done %d, wrong %d, lost %d\n", atomic_read(&counts.submitted),
            atomic_read(&counts.done), atomic_read(&counts.wrong), atomic_read(&counts.lost));
    folder = debugfs_create_dir(KBUILD_MODNAME, NULL);
    debugfs_create_file("result", 0444, folder, NULL, &result_fops);
    return 0;
}
module_init(dmacopy_init);

static void __exit dmacopy_exit(void)
{
    debugfs_remove(folder);
    if (holding)
        release();
}
module_exit(dmacopy_exit);

MODULE_DESCRIPTION("Checks copies through the kernel's dmaengine API");
MODULE_LICENSE("GPL");
