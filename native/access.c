/* REGION_READ, REGION_WRITE and REGION_WRITE_MULTI. */
#include <errno.h>
#include <string.h>

#include "session.h"

/* At most 8 bytes, and never more than the natural alignment of the offset allows when split. */
static uint32_t step(uint64_t offset, uint32_t left)
{
    uint32_t width = 8;

    if (left == 1 || left == 2 || left == 4 || left == 8) {
        return left; /* one access of the guest stays one access */
    }
    while (width > left || (offset & (width - 1)) != 0) {
        width /= 2;
    }
    return width;
}

static bool inside(const vdcm_session *s, const struct vdcm_access *access)
{
    uint64_t size = access->region < REGIONS ? s->regions[access->region].size : 0;

    return access->offset <= size && access->count <= size - access->offset;
}

static int outside(vdcm_session *s, const struct vdcm_message *message)
{
    return vdcm_refuse(s, message, EINVAL, "an access leaves its region");
}

/* A store to the device's C, if that takes those of this place: all of it, not just its beginning. */
static int offer(vdcm_session *s, const struct vdcm_access *access, uint32_t width, uint64_t value)
{
    const struct region *region = &s->regions[access->region];
    uint64_t at = access->offset - region->stores.offset;
    int result;

    if (at >= region->stores.size || width > region->stores.size - at || s->observed) {
        return VDCM_STORE_PASS;
    }
    result = region->store(region->argument, access->offset, width, value);
    s->counters.taken += result != VDCM_STORE_PASS;
    return result;
}

/* After a callback in which the device let go of its client, the rest of an access is nobody's. */
static int gone(const vdcm_session *s)
{
    return s->stopped ? ENODEV : 0;
}

static int write_region(vdcm_session *s, struct vdcm_access access, const uint8_t *data)
{
    while (access.count > 0) {
        uint32_t width = step(access.offset, access.count);
        uint64_t value = 0;
        int error = gone(s);

        if (error != 0) {
            return error;
        }
        memcpy(&value, data, width);
        s->counters.writes++;
        vdcm_watch_write(&s->watch, access.region, access.offset, width, value);
        error = offer(s, &access, width, value);
        if (error == VDCM_STORE_PASS) {
            error = vdcm_on_write(s->owner, (int)access.region, access.offset, (int)width, value);
        }
        if (error != 0) {
            return error;
        }
        data += width;
        access.offset += width;
        access.count -= width;
    }
    return 0;
}

int vdcm_region_read(vdcm_session *s, const struct vdcm_message *message)
{
    struct vdcm_access access;
    uint64_t end;
    uint8_t *data = s->answer + sizeof(access);

    memcpy(&access, message->payload, sizeof(access));
    if (!inside(s, &access)) {
        return outside(s, message);
    }
    memcpy(s->answer, &access, sizeof(access));
    end = access.offset + access.count;
    while (access.offset < end) {
        uint32_t width = step(access.offset, (uint32_t)(end - access.offset));
        uint64_t value = 0;
        uint64_t ns = 0;
        uint32_t times;
        int error = gone(s);

        if (error == 0) {
            s->counters.reads++;
            error = vdcm_on_read(s->owner, (int)access.region, access.offset, (int)width, &value);
        }
        if (error != 0) {
            return vdcm_answer(s, &message->header, error, NULL, 0, -1);
        }
        times = vdcm_watch_read(&s->watch, access.region, access.offset, width, value, &ns);
        if (times != 0 && gone(s) == 0) {
            (void)vdcm_on_repeat(s->owner, (int)access.region, access.offset, (int)width, value,
                                 times, ns);
        }
        memcpy(data, &value, width);
        data += width;
        access.offset += width;
    }
    return vdcm_answer(s, &message->header, 0, s->answer, sizeof(access) + access.count, -1);
}

int vdcm_region_write(vdcm_session *s, const struct vdcm_message *message)
{
    struct vdcm_access access;
    int error;

    memcpy(&access, message->payload, sizeof(access));
    if (!inside(s, &access)) {
        return outside(s, message);
    }
    error = write_region(s, access, message->payload + sizeof(access));
    return vdcm_answer(s, &message->header, error, &access, sizeof(access), -1);
}

/*
 * The answer says how many were done, so the first that fails is the last that is tried; it is an
 * error only if that was the first. Of posted ones each is on its own, as if it had come alone.
 */
int vdcm_region_write_multi(vdcm_session *s, const struct vdcm_message *message)
{
    bool posted = (message->header.flags & VDCM_FLAG_NO_REPLY) != 0;
    const uint8_t *next = message->payload;
    uint64_t count;
    uint64_t done = 0;
    int error = 0;

    memcpy(&count, next, sizeof(count));
    next += sizeof(count);
    for (uint64_t i = 0; i < count && gone(s) == 0; i++, next += sizeof(struct vdcm_write_one)) {
        struct vdcm_write_one one;

        memcpy(&one, next, sizeof(one));
        error = inside(s, &one.access) ? write_region(s, one.access, one.data) : EINVAL;
        if (error == 0) {
            done++;
        } else if (posted || done != 0) {
            vdcm_count_error(s, error); /* which the answer does not tell */
        }
        if (error != 0 && !posted) {
            break;
        }
    }
    error = done == 0 && !posted ? error : 0;
    return vdcm_answer(s, &message->header, error, &done, sizeof(done), -1);
}
