/* What a guest does again and again, and what it did last (watch.h). */
#include "watch.h"

enum { BARS = 6 }; /* configuration space is read as often as software likes */

/* Nothing has happened since the last of `repeat`, or its value was written back. */
static bool goes_on(const struct vdcm_watch *watch, const struct vdcm_repeat *repeat)
{
    const vdcm_written *written = &watch->written;

    return repeat->stamp == watch->stamp ||
           (repeat->stamp + 1 == watch->stamp && watch->wrote == watch->stamp &&
            written->offset == repeat->offset && written->value == repeat->value &&
            (written->region << 8 | written->width) == repeat->where);
}

uint32_t vdcm_watch_read(struct vdcm_watch *watch, uint32_t region, uint64_t offset,
                         uint32_t width, uint64_t value, uint64_t *ns)
{
    struct vdcm_repeat *repeat = &watch->repeats[(offset >> 2 ^ region) % VDCM_WATCHED];
    uint32_t where = region << 8 | width;

    if (region >= BARS) {
        return 0;
    }
    watch->silent = false;
    if (repeat->offset != offset || repeat->where != where || repeat->value != value ||
        !goes_on(watch, repeat) || watch->now - repeat->last > VDCM_REPEAT_GAP) {
        *repeat = (struct vdcm_repeat){
            .offset = offset, .value = value, .stamp = watch->stamp, .since = watch->now,
            .last = watch->now, .where = where, .times = 1,
        };
        return 0;
    }
    repeat->last = watch->now;
    repeat->stamp = watch->stamp;
    repeat->times += repeat->times < UINT32_MAX;
    if (repeat->times < VDCM_FIRST_REPEAT || (repeat->times & (repeat->times - 1)) != 0) {
        return 0;
    }
    *ns = watch->now - repeat->since;
    return repeat->times;
}

void vdcm_watch_write(struct vdcm_watch *watch, uint32_t region, uint64_t offset, uint32_t width,
                      uint64_t value)
{
    watch->stamp++;
    if (region >= BARS) {
        return;
    }
    watch->written = (vdcm_written){
        .offset = offset, .value = value, .at = watch->now, .interrupts = watch->interrupts,
        .region = region, .width = width,
    };
    watch->wrote = watch->stamp;
    watch->any = true;
    watch->silent = true;
}

void vdcm_watch_interrupt(struct vdcm_watch *watch)
{
    watch->stamp++;
    watch->interrupts++;
}
