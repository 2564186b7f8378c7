/*
 * Commands of a submission queue that are under way in files: each is a task with a buffer, and has one
 * request at a time in the queue's channel. A queue that goes leaves them to its controller, which
 * keeps them until the last request has come back: what the kernel may still write is not forgotten.
 */
#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "engine.h"

enum { BUFFERS = NVME_TASKS * NVME_CHUNK };

static nvme_channel *new_channel(const nvme_controller *c)
{
    for (uint32_t i = 1; i <= NVME_MAX_NAMESPACES; i++) {
        const nvme_namespace *n = &c->namespaces[i];

        if (n->store != NULL && n->memory == NULL) {
            return nvme_channel_new(n->store->pool, NVME_TASKS);
        }
    }
    errno = EINVAL;
    return NULL;
}

static void free_files(nvme_files *f)
{
    munmap(f->buffers, BUFFERS);
    free(f);
}

int nvme_tasks_open(nvme_sq *q)
{
    nvme_files *f;

    if (q->files != NULL) {
        return 0;
    }
    f = calloc(1, sizeof(*f));
    if (f == NULL) {
        return -ENOMEM;
    }
    f->buffers = mmap(NULL, BUFFERS, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (f->buffers == MAP_FAILED) {
        free(f);
        return -ENOMEM;
    }
    f->channel = new_channel(q->controller);
    if (f->channel == NULL) {
        int error = errno;

        free_files(f);
        return -error;
    }
    for (uint32_t i = 0; i < NVME_TASKS; i++) {
        f->tasks[i].buffer = f->buffers + (size_t)i * NVME_CHUNK;
    }
    q->files = f;
    return 0;
}

nvme_task *nvme_task_free(nvme_sq *q)
{
    for (uint32_t i = 0; i < NVME_TASKS; i++) {
        if (!q->files->tasks[i].active) {
            return &q->files->tasks[i];
        }
    }
    return NULL;
}

static nvme_task *task_of(nvme_request *request)
{
    return (nvme_task *)(void *)((uint8_t *)request - offsetof(nvme_task, request));
}

static uint32_t count_active(const nvme_files *f)
{
    uint32_t count = 0;

    for (uint32_t i = 0; i < NVME_TASKS; i++) {
        count += f->tasks[i].active;
    }
    return count;
}

bool nvme_files_use(const nvme_files *f, const nvme_namespace *n)
{
    for (uint32_t i = 0; i < NVME_TASKS; i++) {
        const nvme_task *t = &f->tasks[i];

        if (t->active && (t->n == n || t->n == NULL)) {
            return true;
        }
    }
    return false;
}

void nvme_tasks_count(nvme_sq *q)
{
    atomic_store_explicit(&q->in_files, count_active(q->files), memory_order_relaxed);
}

/* `t` has a status, or waits for its request. */
static void end(nvme_sq *q, nvme_task *t, int status)
{
    if (status == NVME_WAITS) {
        nvme_channel_submit(q->files->channel, &t->request);
        return;
    }
    t->active = false;
    q->n_active--;
    q->no_task = false;
    nvme_complete(q, t, status);
}

void nvme_task_begin(nvme_sq *q, nvme_task *t, uint64_t *units)
{
    t->active = true;
    q->n_active++;
    end(q, t, nvme_file_begin(q, t, units));
}

uint64_t nvme_tasks_go_on(nvme_sq *q, uint64_t budget)
{
    uint64_t units = 0;
    nvme_request *request;

    while (units < budget && (request = nvme_channel_take(q->files->channel)) != NULL) {
        nvme_task *t = task_of(request);

        if (t->dropped) {
            t->active = t->dropped = false;
            q->no_task = false;
            continue;
        }
        end(q, t, nvme_file_step(q, t, &units));
        units++;
    }
    return units;
}

void nvme_tasks_drop(nvme_sq *q)
{
    for (uint32_t i = 0; i < NVME_TASKS; i++) {
        q->files->tasks[i].dropped = q->files->tasks[i].active;
    }
}

/* ---- when the queue is gone ------------------------------------------------------------------ */

void nvme_tasks_leave(nvme_sq *q)
{
    q->files->next = q->controller->left;
    q->controller->left = q->files;
    q->files = NULL;
    (void)nvme_controller_drained(q->controller);
}

static bool drained(nvme_files *f)
{
    nvme_request *request;

    nvme_channel_push(f->channel); /* the kernel may not have taken all of them yet */
    while ((request = nvme_channel_take(f->channel)) != NULL) {
        task_of(request)->active = false;
    }
    return count_active(f) == 0;
}

bool nvme_controller_drained(nvme_controller *c)
{
    nvme_files **link = &c->left;

    while (*link != NULL) {
        nvme_files *f = *link;

        if (!drained(f)) {
            link = &f->next;
            continue;
        }
        *link = f->next;
        nvme_channel_free(f->channel);
        free_files(f);
    }
    return c->left == NULL;
}

void nvme_tasks_wait(nvme_controller *c)
{
    while (!nvme_controller_drained(c)) {
        nvme_channel_wait(c->left->channel);
    }
}
