/* engine/cpu/simd_attend.h - one attention tile, for the instruction set of the including file.
 *
 * Scores: a vector holds neighbouring positions, the sum runs over the head's dimensions one after
 * another.  Values: a vector holds dimensions, the sum runs over positions one after another.  So
 * neither depends on how many queries or vectors are worked on at once.
 */
#include "engine/cpu/simd.h"

enum { WIDE = LANES / 4 };            /* vectors at once: as many as registers allow */

INLINE vf kv_element(const uint8_t *at, bool half)
{
    return half ? vf_load_half(at) : vf_load((const float *)(const void *)at);
}

/* Scores of `vectors` vectors of positions for `count` queries; key[v] is the first dimension. */
INLINE void score(const float *const *queries, int count, const uint8_t *const *key, int vectors,
                  uint32_t size, uint64_t step, bool half, float (*scores)[KV_TILE_TOKENS],
                  uint32_t at)
{
    vf acc[QUERY_SET][WIDE];
    UNROLL for (int i = 0; i < count; i++) {
        UNROLL for (int v = 0; v < vectors; v++) acc[i][v] = vf_zero();
    }
    for (uint32_t s = 0; s < size; s++) {
        vf k[WIDE];
        UNROLL for (int v = 0; v < vectors; v++) k[v] = kv_element(key[v] + s * step, half);
        UNROLL for (int i = 0; i < count; i++) {
            vf q = vf_all(queries[i][s]);
            UNROLL for (int v = 0; v < vectors; v++) acc[i][v] = vf_fma(q, k[v], acc[i][v]);
        }
    }
    UNROLL for (int i = 0; i < count; i++) {
        UNROLL for (int v = 0; v < vectors; v++) {
            vf_store(scores[i] + at + (uint32_t)v * LANES, acc[i][v]);
        }
    }
}

/* Adds p * V over the positions of one block for `vectors` vectors of dimensions. */
INLINE void weigh(float (*p)[KV_TILE_TOKENS], int count, uint32_t at, uint32_t positions,
                  const uint8_t *value, uint64_t row_bytes, int vectors, bool half,
                  struct partial *out, uint32_t first)
{
    vf acc[QUERY_SET][WIDE];
    const uint32_t bytes = LANES * (half ? 2 : 4);
    UNROLL for (int i = 0; i < count; i++) {
        UNROLL for (int v = 0; v < vectors; v++) {
            acc[i][v] = vf_load(out[i].out + first + (uint32_t)v * LANES);
        }
    }
    for (uint32_t t = 0; t < positions; t++) {
        vf w[WIDE];
        UNROLL for (int v = 0; v < vectors; v++) {
            w[v] = kv_element(value + t * row_bytes + (uint32_t)v * bytes, half);
        }
        UNROLL for (int i = 0; i < count; i++) {
            vf weight = vf_all(p[i][at + t]);
            UNROLL for (int v = 0; v < vectors; v++) acc[i][v] = vf_fma(weight, w[v], acc[i][v]);
        }
    }
    UNROLL for (int i = 0; i < count; i++) {
        UNROLL for (int v = 0; v < vectors; v++) {
            vf_store(out[i].out + first + (uint32_t)v * LANES, acc[i][v]);
        }
    }
}

INLINE const uint8_t *block_at(const struct kv_view *kv, uint32_t position)
{
    return kv->pool + (uint64_t)kv->blocks[position / kv->block_tokens] * kv->block_stride;
}

/* Exponentials of one query's scores, in place; positions it does not see get 0. */
INLINE void soften(float *scores, uint32_t visible, uint32_t longest, struct partial *out)
{
    const vf none = vf_all(-INFINITY);
    vf top = none, sum = vf_zero();
    for (uint32_t t = 0; t < visible; t += LANES) {
        top = vf_max(top, vf_first(vf_load(scores + t), visible - t, none));
    }
    out->max = vf_top(top);
    const vf max = vf_all(out->max);
    for (uint32_t t = 0; t < longest; t += LANES) {
        uint32_t seen = t < visible ? visible - t : 0;
        vf e = vf_exp(vf_first(vf_load(scores + t) - max, seen, none));
        sum = sum + e;
        vf_store(scores + t, e);
    }
    out->sum = vf_sum(sum);
}

INLINE void tile_scores(const struct kv_view *kv, uint32_t start, const float *const *queries,
                        int count, uint32_t longest, bool half, float (*scores)[KV_TILE_TOKENS])
{
    const uint32_t element = half ? 2 : 4;
    const uint8_t *key[KV_TILE_TOKENS / LANES];
    uint32_t vectors = (longest + LANES - 1) / LANES, v = 0;
    for (uint32_t i = 0; i < vectors; i++) {
        uint32_t position = start + i * LANES, in = position % kv->block_tokens;
        uint64_t at = (uint64_t)(in / kv->lanes) * kv->lanes * kv->head_dim + in % kv->lanes;
        key[i] = block_at(kv, position) + at * element;
    }
    uint64_t step = (uint64_t)kv->lanes * element;
    for (; v + WIDE <= vectors; v += WIDE) {
        score(queries, count, key + v, WIDE, kv->head_dim, step, half, scores, v * LANES);
    }
    for (; v < vectors; v++) {
        score(queries, count, key + v, 1, kv->head_dim, step, half, scores, v * LANES);
    }
}

INLINE void tile_values(const struct kv_view *kv, uint32_t start, float (*p)[KV_TILE_TOKENS],
                        int count, uint32_t longest, bool half, struct partial *out)
{
    const uint32_t element = half ? 2 : 4, size = kv->head_dim;
    uint64_t row_bytes = (uint64_t)size * element;
    for (uint32_t t = 0; t < longest; t += kv->block_tokens) {
        uint32_t n = longest - t < kv->block_tokens ? longest - t : kv->block_tokens, s = 0;
        const uint8_t *value = block_at(kv, start + t) + kv->block_tokens * row_bytes;
        for (; s + WIDE * LANES <= size; s += WIDE * LANES) {
            weigh(p, count, t, n, value + s * element, row_bytes, WIDE, half, out, s);
        }
        for (; s < size; s += LANES) {
            weigh(p, count, t, n, value + s * element, row_bytes, 1, half, out, s);
        }
    }
}

INLINE void tile_of(const struct kv_view *kv, uint32_t tile, const float *const *queries,
                    const uint32_t *visible, int count, bool half, struct partial *out)
{
    float scores[QUERY_SET][KV_TILE_TOKENS];
    uint32_t start = tile * KV_TILE_TOKENS, longest = 0;
    for (int i = 0; i < count; i++) longest = visible[i] > longest ? visible[i] : longest;
    tile_scores(kv, start, queries, count, longest, half, scores);
    for (int i = 0; i < count; i++) {
        soften(scores[i], visible[i], longest, &out[i]);
        memset(out[i].out, 0, kv->head_dim * sizeof(float));
    }
    tile_values(kv, start, scores, count, longest, half, out);
}

static void attend_tile(const struct kv_view *kv, uint32_t tile, const float *const *queries,
                        const uint32_t *visible, uint32_t count, struct partial *out)
{
    switch (count + (kv->half ? 0 : 4)) {
    case 1: tile_of(kv, tile, queries, visible, 1, true, out); break;
    case 2: tile_of(kv, tile, queries, visible, 2, true, out); break;
    case 3: tile_of(kv, tile, queries, visible, 3, true, out); break;
    case 4: tile_of(kv, tile, queries, visible, 4, true, out); break;
    case 5: tile_of(kv, tile, queries, visible, 1, false, out); break;
    case 6: tile_of(kv, tile, queries, visible, 2, false, out); break;
    case 7: tile_of(kv, tile, queries, visible, 3, false, out); break;
    case 8: tile_of(kv, tile, queries, visible, 4, false, out); break;
    default: CHECK(!"1 to 4 queries");
    }
}

static void attend_merge(struct partial *into, const struct partial *later, uint32_t size)
{
    float max = into->max > later->max ? into->max : later->max;
    vf a = vf_exp(vf_all(into->max - max)), b = vf_exp(vf_all(later->max - max));
    float sums[2][LANES];
    vf_store(sums[0], a * vf_all(into->sum));
    vf_store(sums[1], b * vf_all(later->sum));
    into->max = max;
    into->sum = sums[0][0] + sums[1][0];
    for (uint32_t s = 0; s < size; s += LANES) {
        vf_store(into->out + s, vf_load(into->out + s) * a + vf_load(later->out + s) * b);
    }
}
