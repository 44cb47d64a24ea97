/* engine/cpu/kv.c - the KV pool: one mapping, laid out for the attention kernels.
 *
 * Order: layer, block, kv head, then K and V of the block's tokens.  K is (tokens/lanes, S, lanes)
 * so that a vector holds one dimension of `lanes` neighbouring positions; V is (tokens, S).
 * The wire form is per layer K (count, K*S) then V (count, K*S).
 */
#include <inttypes.h>
#include <string.h>

#include "engine/cpu/cpu.h"
#include "model/quant.h"

static uint64_t head_bytes(const struct cpu *u)          /* of one head in one block */
{
    return 2ull * u->c.block_tokens * u->model->h.head_dim * u->kv_element;
}

static uint64_t block_bytes(const struct cpu *u)         /* of one block in one layer */
{
    return head_bytes(u) * u->model->h.kv_heads;
}

enum err kv_open(struct cpu *u, struct why *why)
{
    const struct hparams *h = &u->model->h;
    uint32_t tokens = u->c.block_tokens;
    if (u->c.kv_type != KV_F16 && u->c.kv_type != KV_F32) {
        return why_set(why, ERR_UNSUPPORTED,
                       "the CPU backend keeps KV in f16 or f32, not in int8 or fp8");
    }
    if (tokens < 8 || tokens > KV_BLOCK_TOKENS_MAX || (tokens & (tokens - 1))) {
        return why_set(why, ERR_LIMIT, "block size %" PRIu32 ": it must be a power of two from 8"
                       " to %d", tokens, KV_BLOCK_TOKENS_MAX);
    }
    u->kv_element = u->c.kv_type == KV_F32 ? 4 : 2;
    u->kv_lanes = tokens < 16 ? tokens : 16;
    uint64_t per_block = block_bytes(u) * h->layers, count = u->c.kv_bytes / per_block;
    if (count > KV_BLOCK_COUNT_MAX) count = KV_BLOCK_COUNT_MAX;
    if (count == 0) {
        return why_set(why, ERR_LIMIT, "KV memory of %" PRIu64 " bytes holds no block (one takes"
                       " %" PRIu64 ")", u->c.kv_bytes, per_block);
    }
    u->shape = (struct kv_shape){ .block_count = (uint32_t)count, .block_tokens = tokens,
                                  .layers = h->layers,
                                  .token_bytes = model_kv_token_bytes(h, u->kv_element) };
    u->kv_bytes = count * per_block;
    u->kv = pages_take(u->kv_bytes);
    return OK;
}

void kv_close(struct cpu *u)
{
    if (u->kv) pages_give(u->kv, u->kv_bytes);
}

struct kv_view kv_view(const struct cpu *u, uint32_t layer, uint32_t head, const uint32_t *blocks)
{
    return (struct kv_view){
        .pool = u->kv + (uint64_t)layer * u->shape.block_count * block_bytes(u) +
                head * head_bytes(u),
        .blocks = blocks, .block_stride = block_bytes(u), .block_tokens = u->c.block_tokens,
        .lanes = u->kv_lanes, .head_dim = u->model->h.head_dim, .half = u->kv_element == 2,
    };
}

/* Where one position's key (first element; the rest `lanes` apart) and value lie in a head. */
struct place {
    uint8_t *key, *value;
};

static struct place place_of(const struct kv_view *kv, uint32_t position, uint32_t element)
{
    uint32_t in_block = position % kv->block_tokens, size = kv->head_dim;
    uint8_t *block = (uint8_t *)kv->pool +
                     (uint64_t)kv->blocks[position / kv->block_tokens] * kv->block_stride;
    uint64_t k_at = (uint64_t)(in_block / kv->lanes) * kv->lanes * size + in_block % kv->lanes;
    uint64_t v_at = ((uint64_t)kv->block_tokens + in_block) * size;
    return (struct place){ block + k_at * element, block + v_at * element };
}

static void spread16(const uint16_t *from, uint32_t n, uint32_t step, uint8_t *to)
{
    for (uint32_t i = 0; i < n; i++) memcpy(to + 2ull * i * step, from + i, 2);
}

static void spread32(const float *from, uint32_t n, uint32_t step, uint8_t *to)
{
    for (uint32_t i = 0; i < n; i++) memcpy(to + 4ull * i * step, from + i, 4);
}

void kv_store(struct cpu *u, uint32_t layer, const struct row *at, const float *k, const float *v)
{
    uint32_t size = u->model->h.head_dim;
    uint16_t half[HEAD_DIM_MAX];
    for (uint32_t head = 0; head < u->model->h.kv_heads; head++) {
        struct kv_view kv = kv_view(u, layer, head, at->blocks);
        struct place to = place_of(&kv, at->position, u->kv_element);
        const float *key = k + head * size, *value = v + head * size;
        if (kv.half) {
            u->k->to_half(key, size, half);
            spread16(half, size, kv.lanes, to.key);
            u->k->to_half(value, size, half);
            memcpy(to.value, half, size * sizeof *half);
        } else {
            spread32(key, size, kv.lanes, to.key);
            memcpy(to.value, value, size * sizeof *value);
        }
    }
}

/* One head of one position between pool and wire. */
static void copy_head(const struct place *p, uint8_t *wire_k, uint8_t *wire_v, uint32_t size,
                      uint32_t lanes, uint32_t element, bool to_pool)
{
    for (uint32_t s = 0; s < size; s++) {
        uint8_t *pool = p->key + (uint64_t)s * lanes * element, *wire = wire_k + s * element;
        if (to_pool) {
            memcpy(pool, wire, element);
        } else {
            memcpy(wire, pool, element);
        }
    }
    if (to_pool) {
        memcpy(p->value, wire_v, (uint64_t)size * element);
    } else {
        memcpy(wire_v, p->value, (uint64_t)size * element);
    }
}

static void transfer(struct cpu *u, const uint32_t *blocks, uint32_t layer, uint32_t layers,
                     uint32_t first, uint32_t count, uint8_t *wire, bool to_pool)
{
    const struct hparams *h = &u->model->h;
    CHECK(layer < h->layers && layers <= h->layers - layer);
    uint64_t head = (uint64_t)h->head_dim * u->kv_element, row = head * h->kv_heads;
    for (uint32_t y = 0; y < layers; y++, wire += 2 * count * row) {
        for (uint32_t i = 0; i < h->kv_heads; i++) {
            struct kv_view kv = kv_view(u, layer + y, i, blocks);
            for (uint32_t t = 0; t < count; t++) {
                struct place p = place_of(&kv, first + t, u->kv_element);
                uint8_t *wire_k = wire + t * row + i * head;
                copy_head(&p, wire_k, wire_k + count * row, h->head_dim, kv.lanes, u->kv_element,
                          to_pool);
            }
        }
    }
}

void cpu_kv_read(void *self, const uint32_t *blocks, uint32_t layer, uint32_t layers,
                 uint32_t first, uint32_t count, void *out)
{
    transfer(self, blocks, layer, layers, first, count, out, false);
}

void cpu_kv_write(void *self, const uint32_t *blocks, uint32_t layer, uint32_t layers,
                  uint32_t first, uint32_t count, const void *in)
{
    transfer(self, blocks, layer, layers, first, count, (uint8_t *)in, true);
}
