/* SPDX-License-Identifier: GPL-2.0 */
/* A thread that copies (copies.c), for what sets the threads up and counts (main.c). */
#pragma once

#include <linux/atomic.h>
#include <linux/dma-direction.h>
#include <linux/dmaengine.h>
#include <linux/mm.h>
#include <linux/prandom.h>
#include <linux/wait.h>
#include <linux/workqueue.h>

#define FILL 0xa5       /* what is in a target where nothing is being copied */
#define CHUNK PAGE_SIZE /* contents are made in such pieces */

/* Parameters of the module. */
extern unsigned int depth, min_size, max_size, timeout, fault, method, every;
extern bool polled, leave;

/* What `fault` may be: how each thread's first copy is spoiled. */
enum { NOTHING, TARGET, BEFORE, BEHIND, ELSEWHERE, SOURCE, COMPLETION, FAULTS };

/* What `method` may be: who copies. */
enum { CHANNEL, THREAD, WORKQUEUE, METHODS };

extern struct workqueue_struct *copiers; /* for WORKQUEUE */

struct buffer {
    struct device *device; /* NULL: no device copies */
    u8 *memory;
    size_t size;
    dma_addr_t address;
    enum dma_data_direction direction;
};

struct worker;

/* One copy in flight. The callback writes result and done, all else is its thread's. */
struct slot {
    struct worker *worker;
    struct buffer target;
    unsigned int number;
    size_t size, from, to;
    struct work_struct work;
    unsigned long deadline;
    bool busy;
    bool lost;
    enum dmaengine_tx_result result;
    int done;
};

struct worker {
    struct task_struct *task;
    struct dma_chan *channel;
    struct rnd_state random;
    struct buffer source;
    struct slot *slots;
    wait_queue_head_t wake;
    u64 seed;
    unsigned int index;
    unsigned int copies;
};

struct counts {
    atomic_t submitted; /* accepted by the channel */
    atomic_t done;      /* completed in time */
    atomic_t wrong;     /* completed as a success, and some byte in or near the target is wrong */
    atomic_t failed;    /* completed with an error */
    atomic_t refused;   /* not accepted by the channel */
    atomic_t lost;      /* not completed in time */
    atomic_t late;      /* lost ones that were completed later */
    atomic_t stray;     /* buffers with wrong bytes somewhere else when all was over */
    atomic64_t bytes;   /* of those that are done */
    u64 nanoseconds;
};

extern struct counts counts;

/* Set: nothing new is begun. */
extern bool stop;

/* Allocate memory and map it for the device of the worker's channel, if it has one; 0 or -ENOMEM. */
int take(struct buffer *buffer, struct worker *worker, size_t size,
         enum dma_data_direction direction);
void give_back(struct buffer *buffer);

/* Fill the worker's source or, with compare, say whether it is as it was filled; piece is CHUNK
 * bytes to work with. */
bool contents(struct worker *worker, bool compare, u8 *piece);

/* All copies of the worker. */
void copy_all(struct worker *worker);

/* A thread has in flight what it may have at first: called once by each. */
void under_way(void);
