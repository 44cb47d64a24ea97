/* cuda/transfer.c - KV out of the pool and into it, through pinned memory, on the copy stream.
 *
 * Called by the control thread while a step runs.  A read of what that step writes waits (on the
 * device) for its layers; what earlier steps wrote is there, and the running step's layers are no
 * concern of such a read.  The next step waits for what was written.  The staging memory holds the
 * sequence's blocks in front and the bytes behind; more than fits goes in several turns.  On the
 * wire a layer is K (count, K*S), then V (count, K*S), elements as stored.
 */
#include <string.h>

#include "cuda/cuda.h"

struct turn {
    const uint32_t *blocks;
    uint32_t layer, first, count;
};

static uint64_t blocks_bytes(const struct cuda *u)
{
    uint64_t blocks = (u->c.seq_tokens_max + u->c.block_tokens - 1) / u->c.block_tokens;
    return (blocks * sizeof(int32_t) + 255) / 256 * 256;
}

static struct move_call move_of(const struct cuda *u, const struct turn *t)
{
    return (struct move_call){
        .kv = kv_layer_of(u, t->layer), .layer_bytes = (int64_t)u->layer_bytes,
        .blocks = (const int32_t *)u->stage, .first = (int)t->first, .count = (int)t->count,
        .layers = 1, .wire = u->stage + blocks_bytes(u),
    };
}

static void send_blocks(struct cuda *u, const uint32_t *blocks, uint32_t end)
{
    uint32_t count = (end + u->c.block_tokens - 1) / u->c.block_tokens;
    memcpy(u->stage_host, blocks, count * sizeof *blocks);
    MUST(u, cudaMemcpyAsync(u->stage, u->stage_host, count * sizeof *blocks,
                            cudaMemcpyHostToDevice, u->copy));
}

/* Does the running step write any of these positions?  Only one sequence writes into a block. */
static bool being_written(const struct cuda *u, const struct turn *t)
{
    for (uint32_t i = 0; i < u->write_count; i++) {
        const struct written *w = &u->writes[i];
        if (t->first < w->end && w->first < t->first + t->count &&
            t->blocks[w->first / u->c.block_tokens] == w->block)
            return true;
    }
    return false;
}

/* With the lock held, so that the event is the running step's and not yet the next one's. */
static void await_layer(struct cuda *u, const struct turn *t)
{
    pthread_mutex_lock(&u->lock);
    if (being_written(u, t))
        MUST(u, cudaStreamWaitEvent(u->copy, u->layer_event[t->layer], 0));
    pthread_mutex_unlock(&u->lock);
}

static void read_turn(struct cuda *u, const struct turn *t, uint8_t *key, uint8_t *value)
{
    uint64_t half = t->count * u->shape.token_bytes / 2;
    uint8_t *host = u->stage_host + blocks_bytes(u), *device = u->stage + blocks_bytes(u);
    struct move_call m = move_of(u, t);
    await_layer(u, t);
    MUST(u, k_kv_gather(&m, u->copy));
    MUST(u, cudaMemcpyAsync(host, device, 2 * half, cudaMemcpyDeviceToHost, u->copy));
    MUST(u, cudaStreamSynchronize(u->copy));
    memcpy(key, host, half);
    memcpy(value, host + half, half);
}

static void write_turn(struct cuda *u, const struct turn *t, const uint8_t *key,
                       const uint8_t *value)
{
    uint64_t half = t->count * u->shape.token_bytes / 2;
    uint8_t *host = u->stage_host + blocks_bytes(u), *device = u->stage + blocks_bytes(u);
    struct move_call m = move_of(u, t);
    memcpy(host, key, half);
    memcpy(host + half, value, half);
    MUST(u, cudaMemcpyAsync(device, host, 2 * half, cudaMemcpyHostToDevice, u->copy));
    MUST(u, k_kv_scatter(&m, u->copy));
    MUST(u, cudaEventRecord(u->written, u->copy));
    MUST(u, cudaStreamSynchronize(u->copy));
}

/* Layer by layer, as many positions at once as fit.  `wire` is (layers, K then V). */
static void transfer(struct cuda *u, const uint32_t *blocks, uint32_t layer, uint32_t layers,
                     uint32_t first, uint32_t count, uint8_t *wire, bool out)
{
    uint64_t row = u->shape.token_bytes / 2, half = count * row;
    uint32_t most = (uint32_t)((STAGE_BYTES - blocks_bytes(u)) / u->shape.token_bytes);
    CHECK(layer < u->model->h.layers && layers <= u->model->h.layers - layer && most > 0);
    CHECK((uint64_t)first + count <= pad_to(u->c.seq_tokens_max, u->c.block_tokens));
    if (count == 0 || layers == 0) return;    /* the staging memory is free only behind a turn */
    MUST(u, cudaSetDevice(u->device));
    send_blocks(u, blocks, first + count);
    for (uint32_t i = 0; i < layers; i++, wire += 2 * half) {
        for (uint32_t done = 0; done < count; done += most) {
            struct turn t = { .blocks = blocks, .layer = layer + i, .first = first + done,
                              .count = count - done < most ? count - done : most };
            uint8_t *key = wire + done * row, *value = wire + half + done * row;
            if (out)
                read_turn(u, &t, key, value);
            else
                write_turn(u, &t, key, value);
        }
    }
}

void cuda_kv_read(void *self, const uint32_t *blocks, uint32_t layer, uint32_t layers,
                  uint32_t first, uint32_t count, void *out)
{
    transfer(self, blocks, layer, layers, first, count, out, true);
}

void cuda_kv_write(void *self, const uint32_t *blocks, uint32_t layer, uint32_t layers,
                   uint32_t first, uint32_t count, const void *in)
{
    transfer(self, blocks, layer, layers, first, count, (uint8_t *)(uintptr_t)in, false);
}
