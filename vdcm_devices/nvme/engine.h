/*
 * Inside the data path: the controller, its queues, the commands under way, and what the rooms have of
 * each other. Everything but what is atomic belongs to the sweep while it may run a queue of the
 * controller, and to the control thread otherwise.
 */
#ifndef NVME_ENGINE_H
#define NVME_ENGINE_H

#include <stdatomic.h>
#include <stddef.h>
#include <string.h>

#include "channel.h"
#include "fastpath.h"
#include "queue.h"

#define NVME_NONE UINT64_MAX

enum {
    NVME_DOORBELLS = 2 * (NVME_MAX_QUEUES + 1),
    NVME_FETCH = 32,     /* submission queue entries that are fetched in one go, at most */
    NVME_POST = 8,       /* completions that are gathered before they are posted, at most */
    NVME_TASKS = 32,     /* commands of one queue that are under way in files, at most */
    NVME_CHUNK = 128 << 10, /* bytes that a command moves in one go */
    NVME_LIST = 16,      /* PRP entries that are read in one go; SGL descriptors: half as many */
    NVME_DESCRIPTORS = 4096, /* of an SGL, segments among them: an endless one ends */
    NVME_OVERHEAD = 512, /* units that a command costs apart from its bytes */
    NVME_CUT = 16 << 10, /* units that a touch of memory costs that was cut short: a signal's time */
    NVME_PAGE = 4096     /* no mapping of guest memory is finer */
};

enum {
    NVME_FLUSH = 0x00,
    NVME_WRITE = 0x01,
    NVME_READ = 0x02,
    NVME_COMPARE = 0x05,
    NVME_WRITE_ZEROES = 0x08,
    NVME_DATASET_MANAGEMENT = 0x09,
    NVME_VERIFY = 0x0c
};

/* Status Code Type and Status Code (NVMe 1.4, 4.6.1), and Do Not Retry. */
enum {
    NVME_MORE = -2,    /* not finished: goes on at the next call */
    NVME_WAITS = -1,   /* not finished: goes on when its request to a file is */
    NVME_SUCCESS = 0,
    NVME_DNR = 0x4000,
    NVME_INVALID_OPCODE = 0x001 | NVME_DNR,
    NVME_INVALID_FIELD = 0x002 | NVME_DNR,
    NVME_DATA_TRANSFER_ERROR = 0x004,
    NVME_INTERNAL_ERROR = 0x006,
    NVME_INVALID_NAMESPACE = 0x00b | NVME_DNR,
    NVME_INVALID_SEGMENT = 0x00d | NVME_DNR,
    NVME_INVALID_DESCRIPTOR_COUNT = 0x00e | NVME_DNR,
    NVME_INVALID_SGL_LENGTH = 0x00f | NVME_DNR,
    NVME_INVALID_SGL_TYPE = 0x011 | NVME_DNR,
    NVME_INVALID_PRP_OFFSET = 0x013 | NVME_DNR,
    NVME_WRITE_PROTECTED = 0x020 | NVME_DNR,
    NVME_LBA_OUT_OF_RANGE = 0x080 | NVME_DNR,
    NVME_CAPACITY_EXCEEDED = 0x081,
    NVME_WRITE_FAULT = 0x280,
    NVME_UNRECOVERED_READ = 0x281,
    NVME_COMPARE_FAILURE = 0x285
};

/* A submission queue entry (NVMe 1.4, 4.2). */
typedef struct {
    uint8_t opcode;
    uint8_t flags; /* FUSE in 1:0, PSDT in 7:6 */
    uint16_t cid;
    uint32_t nsid;
    uint32_t cdw2, cdw3;
    uint64_t mptr;
    uint64_t dptr[2];
    uint32_t cdw10, cdw11, cdw12, cdw13, cdw14, cdw15;
} nvme_command;

/* A completion queue entry (4.6); the phase is bit 0 of `status`. */
typedef struct {
    uint32_t result;
    uint32_t reserved;
    uint16_t sqhd;
    uint16_t sqid;
    uint16_t cid;
    uint16_t status;
} nvme_completion;

/* A range of Dataset Management (6.7). */
typedef struct {
    uint32_t attributes;
    uint32_t blocks;
    uint64_t lba;
} nvme_range;

typedef struct {
    nvme_store *store; /* NULL: there is no such namespace */
    uint8_t *memory;   /* its first byte, in a store that is memory */
    uint64_t offset;
    uint64_t blocks;
    uint32_t shift;
    uint32_t lost; /* losses of the store that the guest has been told of */
    bool read_only;
} nvme_namespace;

typedef struct nvme_files nvme_files;

struct nvme_controller {
    const vdcm_services *services;
    nvme_settings settings;
    nvme_namespace namespaces[NVME_MAX_NAMESPACES + 1];
    nvme_cq *cqs[NVME_MAX_QUEUES + 1];
    nvme_sq *sqs[NVME_MAX_QUEUES + 1];
    _Atomic uint32_t own_words[NVME_DOORBELLS];
    _Atomic uint32_t *words; /* own ones, or on a page of the guest's */
    uint64_t shadow;         /* guest addresses; 0: no doorbell buffers */
    uint64_t eventidx;
    bool fatal;
    nvme_files *left; /* by queues that are gone, with requests under way */
    nvme_counters counters; /* read by other threads: nvme_add() */
};

struct nvme_cq {
    nvme_controller *controller;
    uint32_t id;
    uint32_t entries;
    uint64_t address;
    bool interrupts;
    bool coalesced;
    uint32_t users; /* submission queues */
    uint32_t tail;
    uint32_t head; /* as seen last */
    uint16_t phase;
    uint64_t bad_head;  /* a value of its doorbell that was reported, or NVME_NONE */
    uint32_t eventidx;  /* as published */
    uint32_t gathered;  /* completions that no interrupt has told of yet */
    uint64_t since;     /* ns, the first of them */
    uint64_t called;    /* ns, when the last interrupt was raised; 0: never */
    uint32_t called_at_head;
};

/* Where the data of a command lies, from its first byte to its last (4.3, 4.4). */
typedef struct {
    uint64_t address; /* of a piece of it */
    uint64_t here;    /* bytes of the piece that are left */
    uint64_t left;    /* bytes behind the piece */
    uint64_t list;    /* guest address of what is to be read next */
    uint32_t count;   /* of `entries`; SGL: words */
    uint32_t next;
    uint32_t descriptors; /* SGL: in the segment, not read yet */
    uint32_t walked;      /* SGL: in all */
    bool sgl;
    bool last;   /* SGL: it is the last segment */
    bool bucket; /* SGL: the piece is nowhere */
    bool to_host;
    uint64_t entries[NVME_LIST];
} nvme_pointer;

/* A command that is being executed. */
typedef struct {
    nvme_command c;
    const nvme_namespace *n;
    uint64_t at;     /* byte of the store (of its memory: of the namespace) */
    uint64_t length; /* bytes in all */
    uint64_t done;
    uint16_t location; /* parameter error location, 0xffff: none */
    uint16_t range;    /* index in `buffer`, or of the namespace that is flushed */
    bool fua;
    nvme_pointer pointer;
    uint8_t *buffer; /* NVME_CHUNK in a file task, else one page */
    /* In a file. */
    bool active;
    bool dropped;  /* by abort: it ends with its request */
    bool syncing;
    bool punching; /* as long as the file can do that */
    nvme_request request;
} nvme_task;

/* A submission queue's means for I/O in files. */
struct nvme_files {
    nvme_channel *channel;
    uint8_t *buffers;
    nvme_files *next; /* of a controller's that are left */
    nvme_task tasks[NVME_TASKS];
};

struct nvme_sq {
    nvme_controller *controller;
    nvme_cq *cq;
    uint32_t id;
    uint32_t entries;
    uint64_t address;
    vdcm_worker *worker; /* while the engine is called */
    vdcm_queue *engine;  /* the control thread's; NULL: Python kicks it */
    uint64_t held;       /* units since leave() */
    uint64_t cuts;       /* touches of memory that was cut short */
    uint64_t bad_tail;   /* a value of its doorbell that was reported, or NVME_NONE */
    uint32_t eventidx;   /* as published */
    bool full;           /* completions wait for a place in the CQ */
    bool no_task;        /* the next command waits for a file task */
    bool busy;           /* `current` is being executed */
    uint32_t next;       /* of `fetched` */
    uint32_t count;
    uint32_t n_done;
    uint32_t n_active; /* file tasks, the dropped ones not among them */
    _Atomic uint32_t tail; /* accepted */
    _Atomic uint32_t head; /* fetched */
    _Atomic uint32_t under_way;
    _Atomic uint32_t in_files;
    _Atomic uint64_t completed;
    nvme_files *files; /* NULL: no namespace is in a file */
    nvme_completion done[NVME_POST + NVME_TASKS];
    nvme_task current;
    _Alignas(64) nvme_command fetched[NVME_FETCH];
    _Alignas(64) uint8_t page[NVME_PAGE]; /* of `current` */
};

/* One writer. */
static inline void nvme_add(uint64_t *counter, uint64_t n)
{
    __atomic_store_n(counter, __atomic_load_n(counter, __ATOMIC_RELAXED) + n, __ATOMIC_RELAXED);
}

/* ---- controller.c ---------------------------------------------------------------------------- */

/* Is a namespace in a file? */
bool nvme_uses_files(const nvme_controller *c);
/* 0 if a queue can be made of that, `there` being who has its identifier; else an errno value. */
int nvme_check_queue(uint32_t id, uint64_t address, uint32_t entries, const void *there);

/* ---- access.c: guest memory ------------------------------------------------------------------ */

/* reach() of the services for what the ADI's secondary PASID stands for. */
int nvme_reach(nvme_sq *q, uint64_t address, uint64_t length, bool write, void **memory,
               uint64_t *here);
/* In guarded(): 0 or -EIO. */
int nvme_copy(nvme_sq *q, void *to, const void *from, uint64_t length);
/* The same into a store that is memory. */
int nvme_stream(nvme_sq *q, void *to, const void *from, uint64_t length);
/* 1 if they differ. */
int nvme_compare(nvme_sq *q, const void *a, const void *b, uint64_t length);
/* Between `buffer` and guest memory in the secondary address space: 0 or a negative errno. */
int nvme_read(nvme_sq *q, uint64_t address, void *buffer, uint64_t length);
/* A word that both sides look at. */
int nvme_load(nvme_sq *q, uint64_t address, uint32_t *value);
int nvme_store_word(nvme_sq *q, uint64_t address, uint32_t value);
/* Counts `units` of work with memory held, and lets go of it in time. */
void nvme_held(nvme_sq *q, uint64_t units);

/* ---- pointer.c ------------------------------------------------------------------------------- */

/* A status. `length` bytes, 1 or more. */
int nvme_pointer_begin(nvme_sq *q, nvme_task *t, uint64_t length, bool to_host);
/* The next piece of memory, of `most` bytes at most: a status. *memory is NULL if data for the host is
 * to be dropped. */
int nvme_pointer_next(nvme_sq *q, nvme_task *t, uint64_t most, void **memory, uint64_t *length);
/* Moves `length` bytes between the command's data and `buffer`: a status. */
int nvme_pointer_move(nvme_sq *q, nvme_task *t, void *buffer, uint64_t length);
/* Compares: NVME_COMPARE_FAILURE if they differ. */
int nvme_pointer_compare(nvme_sq *q, nvme_task *t, const void *buffer, uint64_t length);

/* ---- command.c, memory.c, file.c ------------------------------------------------------------- */

/* Checks the command of `t`, and finds its namespace: a status, or NVME_MORE. */
int nvme_check(nvme_sq *q, nvme_task *t);
/* The ranges of a Dataset Management are in t->buffer, and right: a status, or NVME_MORE. */
int nvme_fetch_ranges(nvme_sq *q, nvme_task *t);
/* Goes on with a command to memory for about `limit` units, and adds what it did: a status, or
 * NVME_MORE. */
int nvme_memory_step(nvme_sq *q, nvme_task *t, uint64_t limit, uint64_t *units);
/* The same for a file: begins with a request, or goes on after it: a status, or NVME_WAITS. */
int nvme_file_begin(nvme_sq *q, nvme_task *t, uint64_t *units);
int nvme_file_step(nvme_sq *q, nvme_task *t, uint64_t *units);

/* ---- cq.c ------------------------------------------------------------------------------------ */

/* The value of a doorbell: 0, or an error of memory. */
int nvme_doorbell(nvme_sq *q, uint32_t doorbell, uint32_t *value);
/* Publishes an event index. */
int nvme_publish(nvme_sq *q, uint32_t doorbell, uint32_t value);
/* Looks where the head is now: is there a place? */
bool nvme_cq_room(nvme_sq *q);
/* `t` has ended with `status`: its completion is gathered. */
void nvme_complete(nvme_sq *q, nvme_task *t, int status);
/* Posts what has been gathered, as far as there are places. */
void nvme_post(nvme_sq *q);
/* The interrupt of what has been posted, if it is time. */
void nvme_signal(nvme_sq *q);
/* Queue memory is not to be reached: nothing more is done by this controller. */
void nvme_die(nvme_sq *q, uint32_t queue, uint64_t address, int error);
void nvme_drop(nvme_sq *q);

/* ---- tasks.c --------------------------------------------------------------------------------- */

/* The means for I/O in files: 0 or a negative errno. */
int nvme_tasks_open(nvme_sq *q);
/* One that nobody uses; NULL if there is none. */
nvme_task *nvme_task_free(nvme_sq *q);
/* The command of `t` begins. */
void nvme_task_begin(nvme_sq *q, nvme_task *t, uint64_t *units);
/* Goes on with what has come back from files, about `budget` units of it; how many it were. */
uint64_t nvme_tasks_go_on(nvme_sq *q, uint64_t budget);
/* They end with their requests, without completions. */
void nvme_tasks_drop(nvme_sq *q);
/* Brings nvme_sq_state.in_files up to date. */
void nvme_tasks_count(nvme_sq *q);
/* The queue goes: what is under way is the controller's. */
void nvme_tasks_leave(nvme_sq *q);
/* Is a command to `n` under way? */
bool nvme_files_use(const nvme_files *f, const nvme_namespace *n);
/* Waits until the controller is drained. */
void nvme_tasks_wait(nvme_controller *c);

struct nvme_store {
    uint64_t bytes;
    uint8_t *memory; /* NULL: a file */
    int fd;
    bool device;
    nvme_pool *pool; /* NULL: io_uring */
    _Atomic uint32_t lost; /* times that the system could not bring to the disk what it had taken */
};

#endif
