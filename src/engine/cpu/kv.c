/* engine/cpu/kv.c - the KV pool: one mapping, laid out for the attention kernels.
 *
 * Order: layer, block, kv head, then K and V of the block's tokens, then (8-bit types) K's scales
 * and V's, a float a token.  K is (tokens/lanes, S, lanes) so that a vector holds one dimension of
 * `lanes` neighbouring positions; V is (tokens, S).  int8 lies in fours: see kernels.h.
 *
 * On the wire, of each layer: the range cut at the borders of blocks.  A whole block is as it lies
 * in the pool; a part of n tokens is K (n, K*S), V (n, K*S) and, of 8-bit types, the floats that
 * scale them: K's (n, K), V's (n, K).
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/mem.h"
#include "engine/cpu/cpu.h"

static uint64_t block_bytes(const struct cpu *u)         /* of one block in one layer */
{
    return u->c.block_tokens * kv_token_bytes(&u->model->h, u->c.kv_type);
}

static uint64_t head_bytes(const struct cpu *u)          /* of one head in one block */
{
    return block_bytes(u) / u->model->h.kv_heads;
}

/* What is promised here is paid for when blocks are used: more than there is must not be. */
static enum err kv_memory(struct cpu *u, uint64_t bytes, struct why *why)
{
    uint64_t all = (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE);
    if (bytes > all)
        return why_set(why, ERR_MEMORY, "kv-cache-memory-bytes is %" PRIu64 ", and this host has %"
                       PRIu64 " bytes of memory", u->c.kv_bytes, all);
    u->kv_bytes = bytes;
    u->kv = pages_try(bytes);
    u->kv_touched = mem_array(u->shape.layers, sizeof *u->kv_touched);
    for (uint32_t i = 0; i < u->shape.layers; i++)
        u->kv_touched[i] = bytes / u->shape.layers * i;
    if (u->kv) return OK;
    return why_set(why, ERR_MEMORY, "no memory for a KV cache of %" PRIu64 " bytes: %s", bytes,
                   strerror(errno));
}

enum err kv_open(struct cpu *u, struct why *why)
{
    const struct hparams *h = &u->model->h;
    uint32_t tokens = u->c.block_tokens;
    if (tokens < 8 || tokens > KV_BLOCK_TOKENS_MAX || (tokens & (tokens - 1))) {
        return why_set(why, ERR_LIMIT, "block size %" PRIu32 ": it must be a power of two from 8"
                       " to %d", tokens, KV_BLOCK_TOKENS_MAX);
    }
    u->kv_lanes = tokens < 16 ? tokens : 16;
    uint64_t per_block = block_bytes(u) * h->layers, count = u->c.kv_bytes / per_block;
    uint64_t need = (u->c.seq_tokens_max + tokens - 1) / tokens;
    if (count > KV_BLOCK_COUNT_MAX) count = KV_BLOCK_COUNT_MAX;
    if (count == 0) {
        return why_set(why, ERR_LIMIT, "kv-cache-memory-bytes is %" PRIu64 ", less than a block of"
                       " %" PRIu32 " tokens; a sequence of %" PRIu32 " needs at least %" PRIu64,
                       u->c.kv_bytes, tokens, u->c.seq_tokens_max, need * per_block);
    }
    u->shape = (struct kv_shape){ .block_count = (uint32_t)count, .block_tokens = tokens,
                                  .layers = h->layers,
                                  .token_bytes = kv_token_bytes(h, u->c.kv_type) };
    return kv_memory(u, count * per_block, why);
}

void kv_close(struct cpu *u)
{
    if (u->kv) pages_give(u->kv, u->kv_bytes);
    free(u->kv_touched);
}

/* The next huge page of the layer that is ready least far: the next prompt needs some of each. */
bool cpu_kv_touch(void *self, uint32_t blocks)
{
    struct cpu *u = self;
    uint64_t layer_bytes = u->shape.block_count * block_bytes(u), base = (uintptr_t)u->kv;
    uint64_t least = UINT64_MAX;
    uint32_t layer = 0;
    CHECK(blocks <= u->shape.block_count);
    for (uint32_t i = 0; i < u->shape.layers; i++) {
        uint64_t ready = u->kv_touched[i] - i * layer_bytes;
        if (ready >= least) continue;
        least = ready;
        layer = i;
    }
    if (least >= blocks * block_bytes(u)) return false;
    uint64_t at = u->kv_touched[layer], in = (base + at) % HUGE_PAGE, end = at - in + HUGE_PAGE;
    at = at < in ? 0 : at - in;
    u->kv_touched[layer] = end;
    return pages_touch(u->kv + at, (end < u->kv_bytes ? end : u->kv_bytes) - at);
}

struct kv_view kv_view(const struct cpu *u, uint32_t layer, uint32_t head, const uint32_t *blocks,
                       uint32_t end)
{
    return (struct kv_view){
        .pool = u->kv + (uint64_t)layer * u->shape.block_count * block_bytes(u) +
                head * head_bytes(u),
        .blocks = blocks, .block_stride = block_bytes(u), .block_tokens = u->c.block_tokens,
        .lanes = u->kv_lanes, .head_dim = u->model->h.head_dim, .end = end,
        .type = u->c.kv_type,
    };
}

/* Where one position's key, value (its first elements) and scales lie in a head. */
struct place {
    uint8_t *key, *value, *key_scale, *value_scale;
};

static struct place place_of(const struct kv_view *kv, uint32_t position)
{
    uint32_t tokens = kv->block_tokens, in = position % tokens;
    uint32_t element = kv_element_bytes(kv->type);
    uint8_t *block = (uint8_t *)kv->pool + kv->blocks[position / tokens] * kv->block_stride;
    uint8_t *scales = block + 2ull * tokens * kv->head_dim * element + 4ull * in;
    return (struct place){ block + kv_key_at(kv, in, 0) * element,
                           block + kv_value_at(kv, in, 0) * element, scales,
                           scales + 4ull * tokens };
}

/* `count` pieces of some bytes (a constant), in the pool `apart` bytes from each other. */
static inline void spread_pieces(uint8_t *at, uint64_t apart, uint8_t *row, uint64_t bytes,
                                 uint32_t count, bool to_pool)
{
    for (; count > 0; count--, at += apart, row += bytes) {
        if (to_pool) memcpy(at, row, bytes);
        else memcpy(row, at, bytes);
    }
}

/* n elements one after another, to (or from) the pool, where `run` of them lie side by side and
 * such runs `step` elements apart. */
static void spread(uint8_t *at, uint32_t run, uint32_t step, uint8_t *row, uint32_t n,
                   uint32_t element, bool to_pool)
{
    if (run == step) run = step = n;
    uint64_t bytes = (uint64_t)run * element, apart = (uint64_t)step * element;
    uint32_t count = n / run;
    switch (bytes) {
    case 1: spread_pieces(at, apart, row, 1, count, to_pool); break;
    case 2: spread_pieces(at, apart, row, 2, count, to_pool); break;
    case 4: spread_pieces(at, apart, row, 4, count, to_pool); break;
    default: spread_pieces(at, apart, row, bytes, count, to_pool);
    }
}

static void spread_key(const struct kv_view *kv, uint8_t *at, uint8_t *row, bool to_pool)
{
    uint32_t run = kv_key_fours(kv);
    spread(at, run, run * kv->lanes, row, kv->head_dim, kv_element_bytes(kv->type), to_pool);
}

static void spread_value(const struct kv_view *kv, uint8_t *at, uint8_t *row, bool to_pool)
{
    spread(at, 1, kv_fours(kv->type), row, kv->head_dim, kv_element_bytes(kv->type), to_pool);
}

/* One head's key (with the queries that share it) or value as stored; the scale is written if the
 * type has one. */
static void narrow(const struct cpu *u, const float *x, const float *queries, uint32_t count,
                   uint8_t *out, uint8_t *scale)
{
    uint32_t size = u->model->h.head_dim;
    enum kv_type type = u->c.kv_type;
    if (kv_is_scaled(type)) {
        float s = u->k->to_byte(type, x, size, queries, count, out);
        memcpy(scale, &s, sizeof s);
    } else if (type == KV_F16) {
        u->k->to_half(x, size, (uint16_t *)(void *)out);
    } else {
        memcpy(out, x, size * sizeof *x);
    }
}

void kv_store(struct cpu *u, uint32_t layer, const struct row *at, const float *qkv)
{
    const struct hparams *h = &u->model->h;
    uint32_t size = h->head_dim;
    uint32_t group = h->heads / h->kv_heads;
    uint32_t count = group < KEY_QUERIES_MAX ? group : KEY_QUERIES_MAX;
    const float *k = qkv + h->heads * size, *v = k + h->kv_heads * size;
    _Alignas(64) uint8_t row[HEAD_DIM_MAX * sizeof(float)];
    for (uint32_t head = 0; head < h->kv_heads; head++) {
        struct kv_view kv = kv_view(u, layer, head, at->blocks, 0);
        struct place to = place_of(&kv, at->position);
        narrow(u, k + head * size, qkv + head * group * size, count, row, to.key_scale);
        spread_key(&kv, to.key, row, true);
        narrow(u, v + head * size, NULL, 0, row, to.value_scale);
        spread_value(&kv, to.value, row, true);
    }
}

/* One head of one token between pool and wire. */
static void wire_head(const struct place *p, const struct kv_view *kv, struct place wire,
                      bool to_pool)
{
    spread_key(kv, p->key, wire.key, to_pool);
    spread_value(kv, p->value, wire.value, to_pool);
    if (!kv_is_scaled(kv->type)) return;
    spread(p->key_scale, 1, 1, wire.key_scale, 1, 4, to_pool);
    spread(p->value_scale, 1, 1, wire.value_scale, 1, 4, to_pool);
}

/* Some tokens of a block in one layer. */
static void wire_tokens(struct cpu *u, const uint32_t *blocks, uint32_t layer, uint32_t first,
                        uint32_t count, uint8_t *wire, bool to_pool)
{
    const struct hparams *h = &u->model->h;
    uint64_t head = (uint64_t)h->head_dim * kv_element_bytes(u->c.kv_type);
    uint64_t part = count * head * h->kv_heads, scales = 4ull * count * h->kv_heads;
    for (uint32_t i = 0; i < h->kv_heads; i++) {
        struct kv_view kv = kv_view(u, layer, i, blocks, 0);
        for (uint32_t t = 0; t < count; t++) {
            struct place p = place_of(&kv, first + t);
            uint64_t at = (uint64_t)t * h->kv_heads + i;
            uint8_t *scale = wire + 2 * part + 4 * at;
            wire_head(&p, &kv, (struct place){ wire + at * head, wire + part + at * head,
                                               scale, scale + scales }, to_pool);
        }
    }
}

/* A whole block in one layer, as it lies there: most of what is moved. */
static void wire_block(struct cpu *u, uint32_t block, uint32_t layer, uint8_t *wire, bool to_pool)
{
    uint8_t *at = u->kv + ((uint64_t)layer * u->shape.block_count + block) * block_bytes(u);
    memcpy(to_pool ? at : wire, to_pool ? wire : at, block_bytes(u));
}

static void transfer(struct cpu *u, const uint32_t *blocks, uint32_t layer, uint32_t layers,
                     uint32_t first, uint32_t count, uint8_t *wire, bool to_pool)
{
    uint32_t size = u->c.block_tokens, end = first + count;
    CHECK(layer < u->model->h.layers && layers <= u->model->h.layers - layer);
    for (uint32_t y = layer; y < layer + layers; y++) {
        for (uint32_t at = first, n; at < end; at += n, wire += n * u->shape.token_bytes) {
            n = size - at % size < end - at ? size - at % size : end - at;
            if (n == size) wire_block(u, blocks[at / size], y, wire, to_pool);
            else wire_tokens(u, blocks, y, at, n, wire, to_pool);
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
