/* mpi/worker_blocks.c - what this rank's pool stores and drops, told to rank 0 in order. */
#include "common/log.h"
#include "mpi/worker.h"

enum { FEW = 64 };                    /* a token waits for so many without harm */

void worker_stored(void *ctx, struct hash128 key, struct hash128 parent)
{
    struct worker *w = ctx;
    blocks_out_stored(&w->blocks, key, parent);
}

void worker_dropped(void *ctx, struct hash128 key)
{
    struct worker *w = ctx;
    blocks_out_dropped(&w->blocks, key);
}

static void post(struct worker *w, uint32_t count)
{
    size_t bytes = sizeof(struct msg_blocks) + count * sizeof(struct block_change);
    struct msg_blocks *m = port_message(w->port, MSG_BLOCKS, bytes);
    blocks_out_take(&w->blocks, m, count);
    port_send_more(w->port, 0, PORT_CONTROL, m);
}

void worker_blocks_flush(struct worker *w)
{
    for (uint32_t count; blocks_out_next(&w->blocks, &count);) post(w, count);
    port_ring(w->port, 0);
}

void worker_blocks_few(struct worker *w)
{
    uint32_t count;
    if (blocks_out_next(&w->blocks, &count) && count <= FEW) post(w, count);
}

void worker_on_snapshot(struct worker *w)
{
    worker_blocks_flush(w);           /* numbers go on from here */
    blocks_out_restart(&w->blocks);
    engine_keys(w->engine, &w->blocks, blocks_out_stored);
    log_warn("rank 0 asked for all keys count=%llu", (unsigned long long)w->blocks.key_count);
}
