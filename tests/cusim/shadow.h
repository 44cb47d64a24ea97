/* tests/cusim/shadow.h - who wrote and who read each word of memory, and whether that was in order.
 *
 * Device memory: one cell per 4 bytes, kept per page of 4 KiB, where a page that was last touched
 * as a whole by copies has a single cell.  A cell knows the last writer, the last reader and one
 * more reader of another operation, and which bytes hold a value.  Two accesses are in order when
 *   - they belong to operations that are (clock.h), or
 *   - to one block, and are by one thread, or in different barrier intervals, or by one warp with a
 *     warp barrier in between, or
 *   - to two blocks of which the later has seen an atomic that the earlier made after a fence.
 *
 * Shared memory has cells of its own, which begin anew with each block.  Cells remember one writer
 * per word: of two threads that write halves of one word without a barrier, the later is
 * remembered.
 */
#ifndef CUSIM_SHADOW_H
#define CUSIM_SHADOW_H

#include "clock.h"

enum { BLOCK_BITS = 21, THREAD_BITS = 11 };         /* of `who`; grids have fewer blocks */

/* Who touches memory now: the operation, and inside a kernel the thread and its interval. */
struct toucher {
    op_id op;
    const struct clock *clock;
    op_id in_order;                 /* the last operation found to be before this one */
    uint32_t who;                   /* block number * 2^11 + thread */
    uint32_t tick;                  /* barriers passed * 2^16 + warp barriers passed */
    const uint64_t *seen_blocks;    /* (blocks / 64): blocks whose work this one may see */
    int device;
};

/* What cp.async writes is pending from its ISSUE until the thread has waited for its ARRIVAL. */
enum touch { TOUCH_READ, TOUCH_WRITE, TOUCH_ATOMIC, TOUCH_ISSUE, TOUCH_ARRIVAL };

struct cell {
    op_id writer, reader, reader2;      /* reader2: another operation that reader does not cover */
    uint32_t writer_who, writer_tick, reader_who, reader_tick;
    uint8_t written, read, valid;       /* bytes: of the last writer; since; that hold a value */
    uint8_t atomic : 1, pending : 1;    /* the last write was; cp.async will write */
};

/* False when CUSIM_CHECK=0: then only bounds are looked at, by the callers. */
bool shadow_on(void);

/* One aligned access of a thread, n <= 32, inside a region (memory_region has said so). */
void shadow_touch(struct toucher *t, uint64_t address, uint32_t bytes, enum touch touch);
/* The same at `offset` of the shared memory that `cells` belong to. */
void shadow_shared(struct toucher *t, struct cell *cells, uint32_t offset, uint32_t bytes,
                   enum touch touch);
/* A copy, a product, a message: many bytes of one operation; checks the region too. */
void shadow_bulk(struct toucher *t, uint64_t address, uint64_t bytes, enum touch touch);
/* Memory was given back or taken anew: nothing holds a value. */
void shadow_forget(uint64_t address, uint64_t bytes);

#endif
