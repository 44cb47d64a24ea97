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
 * Shared memory: the same inside one block.  Cells remember one writer per word: of two threads
 * that write halves of one word without a barrier, the later is remembered.
 */
#ifndef CUSIM_SHADOW_H
#define CUSIM_SHADOW_H

#include <stdbool.h>
#include <stdint.h>

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

enum touch { TOUCH_READ, TOUCH_WRITE, TOUCH_ATOMIC };

/* False when CUSIM_CHECK=0: then only bounds are looked at, by the callers. */
bool shadow_on(void);

/* One access of a thread, n <= 32, inside a region (memory_region has said so). */
void shadow_touch(struct toucher *t, uint64_t address, uint32_t bytes, enum touch touch);
/* A copy, a product, a message: many bytes of one operation; checks the region too. */
void shadow_bulk(struct toucher *t, uint64_t address, uint64_t bytes, enum touch touch);
/* Memory was given back or taken anew: nothing holds a value. */
void shadow_forget(uint64_t address, uint64_t bytes);

struct shared_cell {
    uint32_t wrote_tick, read_tick;     /* 0: not yet; ticks start at 1 << 16 */
    uint16_t writer, reader;            /* thread; reader may be MANY */
    uint8_t written, read, valid;       /* byte masks */
    uint8_t pending;                    /* bytes that an async copy will write */
    uint8_t atomic;
};
enum { MANY = 0xffff };

void shadow_shared(struct shared_cell *cells, uint32_t offset, uint32_t bytes, enum touch touch,
                   uint32_t thread, uint32_t tick);
/* cp.async: `pending` at its issue, `arrived` when the thread has waited; whole words. */
void shadow_shared_pending(struct shared_cell *cells, uint32_t offset, uint32_t bytes,
                           uint32_t thread, uint32_t tick);
void shadow_shared_arrived(struct shared_cell *cells, uint32_t offset, uint32_t bytes,
                           uint32_t thread, uint32_t tick);

#endif
