/*
 * Memory, and who may reach it.
 *
 *   aspace.c  what a client has mapped for DMA, and the domains that are made of such memory
 *   pasid.c   PASID -> domain, the readers that go that way, and guest PASID -> host PASID
 *   faults.c  accesses that fail on purpose, for tests
 *   tape.c    a domain whose pages come from Python: one that is recorded, or replayed
 *
 * A domain is an address domain as in Scalable IOV, 2.2: what a PASID stands for. The control side
 * (the thread that serves the clients) changes domains; sweep threads reach memory through them at
 * the same time, each with a reader of its own. A change waits until no reader is in the domain,
 * and a reader that wants in waits until the change is over; nothing is freed or unmapped while a
 * reader could touch it. Therefore a thread must not make a change while its own reader is inside.
 */
#ifndef VDCM_MEMORY_H
#define VDCM_MEMORY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* cffi: begin */

/* ---- aspace.c: I/O virtual address -> memory of the guest --------------------------------- */

typedef struct vdcm_aspace vdcm_aspace;

/* Limits that keep one hostile client from using up the process's address space. */
enum { VDCM_ASPACE_MAX_RANGES = 512 };

typedef struct {
    uint64_t iova;
    uint64_t size;
    bool mapped;   /* false: announced without memory that could be shared */
    bool readable; /* by the device */
    bool writable;
} vdcm_range;

vdcm_aspace *vdcm_aspace_new(void);
/* Its domain, if it is attached to one, is left without memory. */
void vdcm_aspace_free(vdcm_aspace *as);
/* fd may be -1. The descriptor is not kept. -EEXIST on overlap, -ENOSPC beyond the limits. */
int vdcm_aspace_map(vdcm_aspace *as, uint64_t iova, uint64_t size, int fd, uint64_t offset,
                    bool readable, bool writable);
/* Removes all ranges inside [iova, iova+size); -EINVAL if one is cut, -ENOENT if there is none. */
int vdcm_aspace_unmap(vdcm_aspace *as, uint64_t iova, uint64_t size);
void vdcm_aspace_unmap_all(vdcm_aspace *as);
size_t vdcm_aspace_ranges(vdcm_aspace *as, vdcm_range *out, size_t max);
/*
 * Copies `length` bytes between the guest at `iova` and `buffer`. Either all of it is done, or an
 * error says why not and *fault is the first address that could not be reached:
 * -EFAULT not mapped, -ENXIO announced but not shared, -EACCES not permitted, -EIO the file
 * behind the mapping shrank. With -EIO a part may have been written.
 */
int vdcm_aspace_read(vdcm_aspace *as, uint64_t iova, void *buffer, uint64_t length,
                     uint64_t *fault);
int vdcm_aspace_write(vdcm_aspace *as, uint64_t iova, const void *buffer, uint64_t length,
                      uint64_t *fault);
/* The same question without the copy: for a length that is still to be allocated. */
int vdcm_aspace_check(vdcm_aspace *as, uint64_t iova, uint64_t length, bool write,
                      uint64_t *fault);

/* How the addresses of a domain are translated (Scalable IOV, 3.1). */
enum { VDCM_PASS_THROUGH, VDCM_SECOND_LEVEL, VDCM_FIRST_LEVEL, VDCM_NESTED };

typedef struct vdcm_domain vdcm_domain;

/*
 * A domain of the memory that is attached to it: second-level with a client's DMA map, pass-through
 * with memory of the VDCM's own mapped at address 0. NULL with errno EINVAL for another kind.
 */
vdcm_domain *vdcm_domain_new(int kind);
/* All PASIDs that still stand for it are taken out of the table. */
void vdcm_domain_free(vdcm_domain *domain);
/* `as` may be NULL. What was attached is let go of. -EBUSY: `as` belongs to another domain. */
int vdcm_domain_attach(vdcm_domain *domain, vdcm_aspace *as);

/* ---- faults.c: accesses that fail on purpose, for tests -------------------------------------- */

enum { VDCM_FAULT_MAX = 16 }; /* of one domain */

/* Of the accesses that touch [first, last], `after` go well and then `times` fail. */
typedef struct {
    uint64_t first;
    uint64_t last;
    uint64_t after;
    uint64_t times;
    bool reads; /* means those that read */
    bool writes;
} vdcm_dma_fault;

/*
 * An access is one call of vdcm_reach() that begins in the range (it fails with -EFAULT), or one of
 * vdcm_aspace_read() and _write() that touches it (-EREMOTEIO). The fault's number; -ENOSPC, -ENOMEM.
 */
int vdcm_fault_add(vdcm_domain *domain, const vdcm_dma_fault *rule);
/* -ENOENT: there is none of that number. */
int vdcm_fault_remove(vdcm_domain *domain, uint32_t number);
/* How many have failed by it so far. -ENOENT as above. */
int vdcm_fault_hits(vdcm_domain *domain, uint32_t number, uint64_t *hits);

/* ---- tape.c: a domain whose pages come from Python ------------------------------------------- */

/*
 * From now on vdcm_reach() asks vdcm_on_reach() for pages of `domain`, with `owner`, until the domain
 * is freed; so whoever reaches it has to be on a thread that Python may run on. -EBUSY while it has
 * faults.
 */
int vdcm_tape_begin(vdcm_domain *domain, void *owner);

/* ---- pasid.c: PASID -> domain ------------------------------------------------------------- */

enum {
    VDCM_PASID_LIMIT = 1 << 20,  /* PCI Express: a PASID has 20 bits */
    VDCM_READERS = 64,           /* at a time */
    VDCM_READER_DOMAINS = 2,     /* that one reader can be inside: source and destination */
    VDCM_GUEST_PASID_LIMIT = 1024 /* bindings of one map */
};

/*
 * What `pasid` stands for from now on; NULL takes it out of the table, and returns when no reader
 * is inside the domain any more. -EINVAL: not 20 bits; -EEXIST: it stands for one already.
 */
int vdcm_pasid_set(uint32_t pasid, vdcm_domain *domain);

/* One thread's way to memory. NULL with errno EAGAIN when there are VDCM_READERS of them. */
typedef struct vdcm_reader vdcm_reader;
vdcm_reader *vdcm_reader_new(void);
void vdcm_reader_free(vdcm_reader *reader);
/*
 * The memory at `iova` in the domain of `pasid`: *memory, and the number of bytes *here that lie
 * there in one piece (1 <= *here <= length). It stays mapped until vdcm_leave().
 * With an error nothing more is held than before:
 * -EPERM no PASID (UINT32_MAX), or one that is not in the table; -EFAULT not mapped; -EACCES not
 * permitted; -ENXIO announced but not shared; -EBUSY inside VDCM_READER_DOMAINS others; -EINVAL
 * length 0. The file behind it may shrink: touch it only inside vdcm_guarded().
 */
int vdcm_reach(vdcm_reader *reader, uint32_t pasid, uint64_t iova, uint64_t length, bool write,
               void **memory, uint64_t *here);
/* Lets go of all that was reached. A change of a domain waits for this. */
void vdcm_leave(vdcm_reader *reader);

/* Guest PASID -> host PASID of one VDEV (3.3), for work that is submitted with a PASID in it. */
typedef struct vdcm_pasid_map vdcm_pasid_map;
/* Of at most `limit` bindings, 1 to VDCM_GUEST_PASID_LIMIT. NULL with errno. */
vdcm_pasid_map *vdcm_pasid_map_new(uint32_t limit);
/* No thread translates with it any more. */
void vdcm_pasid_map_free(vdcm_pasid_map *map);
/* -EINVAL: not 20 bits; -EEXIST: `guest` is bound; -ENOSPC: `limit` are; -ENOMEM. */
int vdcm_pasid_map_bind(vdcm_pasid_map *map, uint32_t guest, uint32_t host);
/* -ENOENT: it is not bound. */
int vdcm_pasid_map_unbind(vdcm_pasid_map *map, uint32_t guest);
/* From any thread. UINT32_MAX if `guest` is not bound, or `map` is NULL. */
uint32_t vdcm_pasid_map_translate(vdcm_pasid_map *map, uint32_t guest);
/* From any thread. Is any guest PASID bound to `host`? */
bool vdcm_pasid_map_holds(vdcm_pasid_map *map, uint32_t host);

/* cffi: end */

/* In Python (pasid.py): where the page at `page` lies, valid until the step or call that reaches it
 * is over. 0 or an errno. */
int vdcm_on_reach(void *owner, uint64_t page, bool write, void **memory);

#include <stdatomic.h>

/*
 * Calls body(argument) and returns what it returns; -EIO if it touched memory whose file has been
 * cut short. body is left by a jump then, so it holds no lock and no resource. It may be called
 * inside another one's body. The calling thread must not block SIGBUS.
 */
int vdcm_guarded(int (*body)(void *argument), void *argument);

/*
 * What every kind of domain is, at the beginning of its own structure. First-level and nested
 * translation become kinds by a `reach` that walks the guest's tables; these lie in second-level
 * memory, which it enters with the reader it is given.
 */
struct vdcm_domain {
    int kind;
    uint32_t pasids; /* that stand for it; control side */
    atomic_bool changing;
    /* vdcm_reach() for one that is inside. It never waits, and reads the domain's memory only
     * inside vdcm_guarded(). */
    int (*reach)(vdcm_domain *domain, vdcm_reader *reader, uint64_t iova, uint64_t length,
                 bool write, void **memory, uint64_t *here);
    void *tape;                 /* NULL: none; its owner */
    struct vdcm_faults *faults; /* NULL: none; control side, and `reach` while there are some */
};

/* With the lock held: what a fault says of a copy between [iova, iova + length) and a buffer, 0 or
 * -EREMOTEIO with *fault. NULL is allowed. */
int vdcm_faults_look(vdcm_domain *domain, uint64_t iova, uint64_t length, bool write,
                     uint64_t *fault);

/* The control side's lock: changes come one after the other. Readers never take it. */
void vdcm_control_lock(void);
void vdcm_control_unlock(void);
/* With the lock held: keeps readers out of `domain`, and returns when none is inside; NULL is
 * allowed. vdcm_admit() lets them in again. Between the two nothing slow is done. */
void vdcm_exclude(vdcm_domain *domain);
void vdcm_admit(vdcm_domain *domain);
/* With the lock held: takes `domain`, which is going to be freed, out of the PASID table. */
void vdcm_withdraw(vdcm_domain *domain);

#endif
