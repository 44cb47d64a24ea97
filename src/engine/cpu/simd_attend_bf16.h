/* engine/cpu/simd_attend_bf16.h - an attention tile over F16 keys and values in bfloat16 products,
 * for AVX-512 with BF16.
 *
 * One vdpbf16ps multiplies two neighbouring dimensions of 16 keys, or two neighbouring positions
 * of 16 dimensions of values: half of what floats take.  Queries (times log2(e): softmax is with
 * powers of two), keys, values and weights are rounded to 8 bits of mantissa (as vLLM's attention
 * does on such CPUs), sums are floats; softmax's sum is over the rounded weights.  As in
 * simd_attend.h sums run over pairs one after another, whatever is worked on beside them.  Few
 * queries read the pool; many read buffers of pairs, six at a time, and soften six while the next
 * ones' scores are made (simd_attend_set.h).
 */
#ifndef RANKSERVE_ENGINE_CPU_SIMD_ATTEND_BF16_H
#define RANKSERVE_ENGINE_CPU_SIMD_ATTEND_BF16_H

#include "engine/cpu/simd_attend_set.h"

/* Each lane: `first` in its lower half, `second` in its upper one. */
INLINE __m512i pairs_of(vf first, vf second)
{
    _Alignas(64) static const uint16_t order[32] = {
        0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
        8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31 };
    __m512i halves = (__m512i)_mm512_cvtne2ps_pbh(second, first);
    return _mm512_permutexvar_epi16(_mm512_load_si512(order), halves);
}

INLINE void store_rounded(uint16_t *at, vf x)
{
    _mm256_storeu_si256((__m256i *)(void *)at, (__m256i)_mm512_cvtneps_pbh(x));
}

INLINE vf dot_pairs(vf sum, __m512i a, uint32_t b)
{
    return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)_mm512_set1_epi32((int32_t)b));
}

/* Of two rows of 16 (or more) elements `step` bytes apart. */
INLINE __m512i pair_load(const uint8_t *at, uint64_t step)
{
    return pairs_of(vf_load_half(at), vf_load_half(at + step));
}

/* acc[i][v] += pair j of x[i] times the pairs at from[v]. */
INLINE void multiply_pairs(const uint32_t *const *x, uint32_t j, int count, const __m512i *pairs,
                           int vectors, vf acc[SET][WIDE])
{
    UNROLL for (int i = 0; i < count; i++) {
        UNROLL for (int v = 0; v < vectors; v++) {
            acc[i][v] = dot_pairs(acc[i][v], pairs[v], x[i][j]);
        }
    }
}

INLINE uint32_t *query_pairs(const struct tile *t, uint32_t query)
{
    float *behind = t->span + (uint64_t)SPAN * t->kv->head_dim;
    return (uint32_t *)(void *)behind + (uint64_t)query * (t->kv->head_dim / 2);
}

/* The weights of a query, where its scores were. */
INLINE uint32_t *weight_pairs(const struct tile *t, uint32_t query)
{
    return (uint32_t *)(void *)scores_of(t, query);
}

INLINE void round_query(const struct tile *t, uint32_t query, uint16_t *to)
{
    for (uint32_t s = 0; s < t->kv->head_dim; s += LANES) {
        store_rounded(to + s, vf_load(t->queries[query] + s) * vf_all(1.44269504f));
    }
}

/* 2^x for x <= 0 as struct power has it; 0 for -infinity and NaN. */
INLINE vf weight_of(vf x)
{
    vf t = vf_max(x, vf_all(power_of_two.least)), m = t + vf_all(power_of_two.round);
    vf n = m - vf_all(power_of_two.round), f = t - n;
    vf value = _mm512_permutexvar_ps((__m512i)m, vf_load(power_of_two.value));
    vf slope = _mm512_permutexvar_ps((__m512i)m, vf_load(power_of_two.slope));
    return _mm512_scalef_ps(vf_fma(f, slope, value), n);
}

/* The sums of rows of weights, each of some vectors. */
INLINE void weights_sums(const uint16_t *weights, uint32_t vectors, int rows, float *sums)
{
    const uint32_t ones = 0x3f803f80;
    vf sum[SET];
    UNROLL for (int i = 0; i < rows; i++) sum[i] = vf_zero();
    for (uint32_t v = 0; v < vectors; v += 2) {
        const __mmask16 there = v + 1 < vectors ? 0xffff : 0xff;
        UNROLL for (int i = 0; i < rows; i++) {
            const uint16_t *at = weights + ((uint32_t)i * vectors + v) * LANES;
            sum[i] = dot_pairs(sum[i], _mm512_maskz_loadu_epi32(there, at), ones);
        }
    }
    UNROLL for (int i = 0; i < rows; i++) sums[i] = vf_sum(sum[i]);
}

/* A query's softmax is with powers of two: its rounding multiplies it by log2(e). */
INLINE void put_maximum(const struct tile *t, uint32_t query, float top)
{
    t->out[query].max = top * 0.693147181f;
}

/* Powers of two of a query's scores, rounded, in their place; 0 where it sees nothing. */
INLINE void soften_pairs(const struct tile *t, uint32_t query, uint32_t longest)
{
    const float *scores = scores_of(t, query);
    uint16_t *to = (uint16_t *)weight_pairs(t, query);
    uint32_t visible = t->visible[query];
    const vf none = vf_all(-INFINITY);
    vf top = none;
    for (uint32_t i = 0; i < visible; i += LANES) {
        top = vf_max(top, vf_first(vf_load(scores + i), visible - i, none));
    }
    const vf max = vf_all(vf_top(top));
    for (uint32_t i = 0; i < longest; i += LANES) {
        uint32_t seen = i < visible ? visible - i : 0;
        store_rounded(to + i, weight_of(vf_first(vf_load(scores + i), seen, none) - max));
    }
    put_maximum(t, query, vf_top(top));
    weights_sums(to, (longest + LANES - 1) / LANES, 1, &t->out[query].sum);
}

/* --- few queries: from the pool -------------------------------------------------------------- */

/* Scores of `vectors` vectors of positions from `at` on; key[v] is the first dimension.  The
 * values of these positions are fetched meanwhile. */
INLINE void few_scores_part(const struct tile *t, int count, const uint8_t *const *key,
                            int vectors, uint32_t at)
{
    const uint32_t *q[SET];
    vf acc[SET][WIDE];
    UNROLL for (int i = 0; i < count; i++) {
        q[i] = query_pairs(t, (uint32_t)i);
        UNROLL for (int v = 0; v < vectors; v++) acc[i][v] = vf_zero();
    }
    for (uint32_t s = 0; s < t->kv->head_dim / 2; s++) {
        __m512i pairs[WIDE];
        UNROLL for (int v = 0; v < vectors; v++) {
            const uint8_t *from = key[v] + s * 4 * LANES;
            __builtin_prefetch(from + t->values, 0, 2);
            pairs[v] = pair_load(from, 2 * LANES);
        }
        multiply_pairs(q, s, count, pairs, vectors, acc);
    }
    UNROLL for (int i = 0; i < count; i++) {
        UNROLL for (int v = 0; v < vectors; v++) {
            vf_store(scores_of(t, (uint32_t)i) + at + (uint32_t)v * LANES, acc[i][v]);
        }
    }
}

INLINE void few_score_pairs(const struct tile *t, int count)
{
    const struct kv_view *kv = t->kv;
    const uint8_t *key[KV_TILE_TOKENS / LANES];
    uint32_t vectors = (t->longest + LANES - 1) / LANES, v = 0;
    for (uint32_t i = 0; i < vectors; i++) {
        uint64_t at = kv_key_at(kv, i * LANES % kv->block_tokens, 0);
        key[i] = t->block[i * LANES / kv->block_tokens] + 2 * at;
    }
    for (; v + WIDE <= vectors; v += WIDE) {
        few_scores_part(t, count, key + v, WIDE, v * LANES);
    }
    switch (vectors - v) {
    case 1: few_scores_part(t, count, key + v, 1, v * LANES); break;
    case 2: few_scores_part(t, count, key + v, 2, v * LANES); break;
    case 3: few_scores_part(t, count, key + v, 3, v * LANES); break;
    }
}

/* Adds p * V over `positions` positions from `at` (even) on, a block's at most; where their number
 * is odd, a last one's partner does not count.  `next` (may be NULL) is fetched meanwhile. */
INLINE void few_weigh_pairs(const struct tile *t, int count, uint32_t at, uint32_t positions,
                            const uint8_t *value, const uint8_t *next, int vectors,
                            vf acc[SET][WIDE])
{
    const uint64_t row_bytes = 2ull * t->kv->head_dim;
    const uint32_t *p[SET];
    UNROLL for (int i = 0; i < count; i++) p[i] = weight_pairs(t, (uint32_t)i) + at / 2;
    for (uint32_t j = 0; 2 * j < positions; j++, value += 2 * row_bytes) {
        const bool alone = 2 * j + 1 == positions;
        __m512i pairs[WIDE];
        for (uint32_t b = 0; next && b < (uint32_t)vectors * 2 * LANES; b += 64) {
            __builtin_prefetch(next + j * 2 * row_bytes + b, 0, 2);
            __builtin_prefetch(next + j * 2 * row_bytes + row_bytes + b, 0, 2);
        }
        UNROLL for (int v = 0; v < vectors; v++) {
            const uint8_t *from = value + v * 2 * LANES;
            pairs[v] = alone ? pairs_of(vf_load_half(from), vf_zero()) : pair_load(from, row_bytes);
        }
        multiply_pairs(p, j, count, pairs, vectors, acc);
    }
}

INLINE void few_value_pairs(const struct tile *t, int count, uint32_t s, int vectors)
{
    uint32_t tokens = t->kv->block_tokens;
    uint64_t first = 2ull * s;
    vf acc[SET][WIDE];
    UNROLL for (int i = 0; i < count; i++) {
        UNROLL for (int v = 0; v < vectors; v++) acc[i][v] = vf_zero();
    }
    for (uint32_t at = 0, b = 0; at < t->longest; at += tokens, b++) {
        uint32_t n = t->longest - at < tokens ? t->longest - at : tokens;
        few_weigh_pairs(t, count, at, n, t->block[b] + t->values + first,
                        t->next[b] ? t->next[b] + first : NULL, vectors, acc);
    }
    give(t, 0, count, s, vectors, acc);
}

INLINE void few_pairs(const struct tile *t, int count)
{
    uint32_t s = 0;
    for (int i = 0; i < count; i++) {
        round_query(t, (uint32_t)i, (uint16_t *)query_pairs(t, (uint32_t)i));
    }
    few_score_pairs(t, count);
    for (int i = 0; i < count; i++) soften_pairs(t, (uint32_t)i, t->longest);
    for (; s + WIDE * LANES <= t->kv->head_dim; s += WIDE * LANES) {
        few_value_pairs(t, count, s, WIDE);
    }
    for (; s < t->kv->head_dim; s += LANES) few_value_pairs(t, count, s, 1);
}

/* --- many queries: through buffers of pairs --------------------------------------------------- */

enum { PANEL_VECTORS = 4, PANEL_WIDE = PANEL_VECTORS * LANES };

/* Six queries, or as many as are left; what is missing counts as queries of zeros. */
struct set {
    uint32_t first, count, longest, vectors;      /* of positions that one of them sees       */
    float scores[SET * KV_TILE_TOKENS];           /* (SET, vectors, LANES)                    */
};

struct sets {
    const struct tile *t;
    uint32_t *keys, *values;          /* (positions/64, S/2, 64), (S/64, positions/2, 64)     */
    struct set set[2];                /* whose scores are made, and which become weights      */
    struct softening soft;
    _Alignas(64) uint16_t queries[SET * HEAD_DIM_MAX];
    uint16_t weights[SET * KV_TILE_TOKENS];       /* as the scores                            */
    float tops[SET * KV_TILE_TOKENS / LANES + LANES], spare[HEAD_DIM_MAX];
};

static void keys_to_pairs(const struct sets *w)
{
    const struct kv_view *kv = w->t->kv;
    for (uint32_t i = 0; i < w->t->longest; i += LANES) {
        uint64_t first = kv_key_at(kv, i % kv->block_tokens, 0);
        const uint8_t *key = w->t->block[i / kv->block_tokens] + 2 * first;
        uint32_t *to = w->keys + (uint64_t)(i / PANEL_WIDE) * (kv->head_dim / 2) * PANEL_WIDE +
                       i % PANEL_WIDE;
        for (uint32_t s = 0; s < kv->head_dim; s += 2, key += 4 * LANES, to += PANEL_WIDE) {
            _mm512_storeu_si512(to, pair_load(key, 2 * LANES));
        }
    }
}

/* A last one's partner is 0. */
static void values_to_pairs(const struct sets *w)
{
    const struct tile *t = w->t;
    uint32_t size = t->kv->head_dim, tokens = t->kv->block_tokens;
    for (uint32_t i = 0; i < t->longest; i += 2) {
        const uint8_t *value = t->block[i / tokens] + t->values + 2ull * (i % tokens) * size;
        const bool alone = i + 1 == t->longest;
        for (uint32_t s = 0; s < size; s += LANES, value += 2 * LANES) {
            uint32_t row = s / PANEL_WIDE * (KV_TILE_TOKENS / 2) + i / 2;
            vf second = alone ? vf_zero() : vf_load_half(value + 2 * size);
            _mm512_storeu_si512(w->values + row * PANEL_WIDE + s % PANEL_WIDE,
                                pairs_of(vf_load_half(value), second));
        }
    }
}

static void set_open(struct sets *w, struct set *set, uint32_t first)
{
    const struct tile *t = w->t;
    uint32_t size = t->kv->head_dim, left = t->count - first;
    set->first = first;
    set->count = left < SET ? left : SET;
    set->longest = longest_of(t, first, set->count);
    set->vectors = (set->longest + LANES - 1) / LANES;
    for (uint32_t i = 0; i < set->count; i++) round_query(t, first + i, w->queries + i * size);
    for (uint32_t i = set->count; i < SET; i++) {
        memset(w->queries + i * size, 0, 2ull * size);
    }
}

/* Makes a set's scores, and weights of those before. */
static void set_scores_pairs(struct sets *w, struct set *set)
{
    uint32_t size = w->t->kv->head_dim, count;
    for (uint32_t v = 0; v < set->vectors; v += count) {
        float *out[SET];
        count = set->vectors - v < PANEL_VECTORS ? set->vectors - v : PANEL_VECTORS;
        for (uint32_t i = 0; i < SET; i++) out[i] = set->scores + (i * set->vectors + v) * LANES;
        set_products((int)count, (const uint32_t *)(const void *)w->queries, 2ull * size,
                     w->keys + (uint64_t)v * LANES * (size / 2), size / 2, &w->soft, out);
    }
}

/* Takes out what a query does not see. */
static void hide(float *scores, uint32_t from, uint32_t to)
{
    const vf none = vf_all(-INFINITY);
    for (uint32_t i = from / LANES * LANES; i < to; i += LANES) {
        vf_store(scores + i, vf_first(vf_load(scores + i), from > i ? from - i : 0, none));
    }
}

/* The set's scores are there: maximums, and what is to be softened.  (Six at a time, as each waits
 * for itself.) */
static void set_tops(struct sets *w, struct set *set)
{
    const struct tile *t = w->t;
    const uint32_t row = set->vectors * LANES;
    vf top[SET];
    for (uint32_t i = 0; i < set->count; i++) {
        hide(set->scores + i * row, t->visible[set->first + i], row);
    }
    UNROLL for (uint32_t i = 0; i < SET; i++) top[i] = vf_load(set->scores + i * row);
    for (uint32_t at = LANES; at < row; at += LANES) {
        UNROLL for (uint32_t i = 0; i < SET; i++) {
            top[i] = vf_max(top[i], vf_load(set->scores + i * row + at));
        }
    }
    UNROLL for (uint32_t i = 0; i < SET; i++) {
        float most = vf_top(top[i]);
        vf_store(w->tops + i * set->vectors, vf_all(most));      /* and what the next one mends */
        if (i < set->count) put_maximum(t, set->first + i, most);
    }
    w->soft = (struct softening){ .scores = set->scores, .tops = w->tops, .weights = w->weights,
                                  .left = (uint64_t)SET * set->vectors };
}

static void soften_rest(struct softening *s)
{
    for (; s->left; s->left--, s->scores += LANES, s->tops++, s->weights += LANES) {
        store_rounded(s->weights, weight_of(vf_load(s->scores) - vf_all(*s->tops)));
    }
}

static void set_values_pairs(struct sets *w, const struct set *set)
{
    const struct tile *t = w->t;
    uint32_t size = t->kv->head_dim;
    struct softening none = { .left = 0 };
    float sums[SET];
    weights_sums(w->weights, set->vectors, SET, sums);
    for (uint32_t i = 0; i < set->count; i++) t->out[set->first + i].sum = sums[i];
    for (uint32_t s = 0; s < size; s += PANEL_WIDE) {
        uint32_t vectors = size - s < PANEL_WIDE ? (size - s) / LANES : PANEL_VECTORS;
        float *out[SET];
        for (uint32_t i = 0; i < SET; i++) {
            out[i] = i < set->count ? t->out[set->first + i].out + s : w->spare;
        }
        set_products((int)vectors, (const uint32_t *)(const void *)w->weights,
                     2ull * set->vectors * LANES, w->values + s * (KV_TILE_TOKENS / 2),
                     (set->longest + 1) / 2, &none, out);
    }
}

/* Each set's scores become weights while the next one's are made. */
static void many_pairs(const struct tile *t)
{
    struct sets w;
    uint64_t keys = (uint64_t)t->kv->head_dim / 2 * KV_TILE_TOKENS;
    w.t = t;
    w.keys = (uint32_t *)(void *)t->scores;
    w.values = w.keys + keys;
    w.soft.left = 0;
    keys_to_pairs(&w);
    values_to_pairs(&w);
    struct set *now = &w.set[0], *next = &w.set[1];
    set_open(&w, now, 0);
    set_scores_pairs(&w, now);
    set_tops(&w, now);
    for (bool more = true; more;) {
        uint32_t behind = now->first + now->count;
        more = behind < t->count;
        if (more) {
            set_open(&w, next, behind);
            set_scores_pairs(&w, next);
        }
        soften_rest(&w.soft);
        if (more) set_tops(&w, next);             /* while the scores are near */
        set_values_pairs(&w, now);
        struct set *done = now;
        now = next;
        next = done;
    }
}

static void f16_tile(const struct tile *t)
{
    switch (t->count) {
    case 1: few_pairs(t, 1); break;
    case 2: few_pairs(t, 2); break;
    case 3: few_pairs(t, 3); break;
    case 4: few_pairs(t, 4); break;
    default: many_pairs(t);
    }
}

#endif
