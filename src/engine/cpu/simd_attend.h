/* engine/cpu/simd_attend.h - one attention tile, for the instruction set of the including file.
 *
 * Scores: a vector holds neighbouring positions, the sum runs over the head's dimensions one after
 * another.  Values: a vector holds dimensions, the sum runs over positions one after another.  So
 * neither depends on how many queries or vectors are worked on at once, nor on whether elements
 * become floats on their way to the registers (few queries: reading memory is the cost) or once for
 * all queries in a buffer (many: arithmetic is).  Scales multiply finished scores, and weights.
 */
#include "engine/cpu/simd_kv.h"

enum {
    FEW = 4,                          /* at most so many queries read the pool directly       */
    SET = 6,                          /* queries that share what a register holds             */
    WIDE = 4,                         /* vectors at once: as many as the registers allow      */
    SET_WIDE = LANES / 4,             /* ... beside a whole set                               */
    SPAN = TILE_SPAN,                 /* positions that are converted at a time               */
};

/* What a tile's parts need: blocks of this tile and of what is read after it, to be fetched. */
struct tile {
    const struct kv_view *kv;
    const uint8_t *block[KV_TILE_TOKENS / 8], *next[KV_TILE_TOKENS / 8];
    uint64_t values, scales;          /* offsets in a block: of V, of the scales              */
    uint32_t token_bits;              /* 2^this: tokens of a block                            */
    const float *const *queries;
    const uint32_t *visible;
    uint32_t count, longest;
    struct partial *out;
    float *scores;                    /* (count, KV_TILE_TOKENS)                              */
    float *span;                      /* (SPAN, S) or (S, SPAN)                               */
};

INLINE float *scores_of(const struct tile *t, uint32_t query)
{
    return t->scores + (uint64_t)query * KV_TILE_TOKENS;
}

INLINE uint32_t longest_of(const struct tile *t, uint32_t first, uint32_t count)
{
    uint32_t longest = 0;
    for (uint32_t i = first; i < first + count; i++) {
        longest = t->visible[i] > longest ? t->visible[i] : longest;
    }
    return longest;
}

/* The scales of keys from a position on; those of their values are a block's tokens further. */
INLINE const float *scales_of(const struct tile *t, uint32_t position)
{
    const uint8_t *block = t->block[position >> t->token_bits];
    uint32_t in = position & (t->kv->block_tokens - 1);
    return (const float *)(const void *)(block + t->scales) + in;
}

/* Fetches the scales of block b of the next tile, if that is known. */
INLINE void prefetch_scales(const struct tile *t, uint32_t b)
{
    uint32_t bytes = 2 * t->kv->block_tokens * sizeof(float);
    for (uint32_t i = 0; t->next[b] && i < bytes; i += 64) {
        __builtin_prefetch(t->next[b] + t->scales + i, 0, 2);
    }
}

/* What is read after a tile, line by line as it lies in memory. */
struct ahead {
    const struct tile *t;
    const uint8_t *line, *end;        /* of a block; line NULL: there is nothing more         */
    uint32_t block, bytes;            /* of a head in a block                                 */
};

INLINE void ahead_block(struct ahead *a)
{
    bool some = a->block < (uint32_t)KV_TILE_TOKENS >> a->t->token_bits;
    a->line = some ? a->t->next[a->block] : NULL;
    a->end = a->line ? a->line + a->bytes : NULL;
}

INLINE struct ahead ahead_of(const struct tile *t)
{
    uint32_t scales = kv_is_scaled(t->kv->type) ? 2 * sizeof(float) : 0;
    struct ahead a = { .t = t, .bytes = (uint32_t)t->scales + t->kv->block_tokens * scales };
    ahead_block(&a);
    return a;
}

/* Asks for the next lines, into the second cache. */
INLINE void ahead_fetch(struct ahead *a, int lines)
{
    for (int i = 0; i < lines && a->line; i++) {
        __builtin_prefetch(a->line, 0, 2);
        a->line += 64;
        if (a->line >= a->end) {
            a->block++;
            ahead_block(a);
        }
    }
}

/* acc[i][v] += x[i][j] * what is from[v] (`sub` as in kv_load).  The fewer of the two wait in
 * registers beside the sums. */
INLINE void multiply(const float *const *x, uint32_t j, int count, const uint8_t *const *from,
                     uint32_t sub, int vectors, enum kv_type type, vf acc[SET][WIDE])
{
    vf kept[SET];
    if (count < vectors) {
        UNROLL for (int i = 0; i < count; i++) kept[i] = vf_all(x[i][j]);
        UNROLL for (int v = 0; v < vectors; v++) {
            vf y = kv_load(from[v], type, sub);
            UNROLL for (int i = 0; i < count; i++) acc[i][v] = vf_fma(kept[i], y, acc[i][v]);
        }
        return;
    }
    UNROLL for (int v = 0; v < vectors; v++) kept[v] = kv_load(from[v], type, sub);
    UNROLL for (int i = 0; i < count; i++) {
        vf y = vf_all(x[i][j]);
        UNROLL for (int v = 0; v < vectors; v++) acc[i][v] = vf_fma(y, kept[v], acc[i][v]);
    }
}

/* Scores of `vectors` vectors of positions for `count` queries; key[v] is the first dimension.
 * Meanwhile the values of these positions, `ahead` behind the keys, are fetched. */
INLINE void score(const struct tile *t, uint32_t first, int count, const uint8_t *const *key,
                  int vectors, uint64_t step, enum kv_type type, uint64_t ahead, uint32_t at)
{
    const float *q[SET];
    vf acc[SET][WIDE];
    UNROLL for (int i = 0; i < count; i++) {
        q[i] = t->queries[first + (uint32_t)i];
        UNROLL for (int v = 0; v < vectors; v++) acc[i][v] = vf_zero();
    }
    for (uint32_t s = 0; s < t->kv->head_dim; s += 4) {
        for (int v = 0; ahead && v < vectors; v++) {
            for (uint32_t b = 0; b < LANES * 4 * kv_element_bytes(type); b += 64) {
                __builtin_prefetch(key[v] + s * step + ahead + b, 0, 2);
            }
        }
        UNROLL for (uint32_t j = 0; j < 4; j++) {
            const uint8_t *from[WIDE];
            const uint32_t sub = j % kv_fours(type);
            UNROLL for (int v = 0; v < vectors; v++) from[v] = key[v] + (s + j - sub) * step;
            multiply(q, s + j, count, from, sub, vectors, type, acc);
        }
    }
    UNROLL for (int i = 0; i < count; i++) {
        UNROLL for (int v = 0; v < vectors; v++) {
            vf_store(scores_of(t, first + (uint32_t)i) + at + (uint32_t)v * LANES, acc[i][v]);
        }
    }
}

/* Exponentials of a query's scores, in place; positions it does not see get 0. */
INLINE void soften(const struct tile *t, uint32_t query, uint32_t longest, bool scaled)
{
    float *scores = scores_of(t, query);
    uint32_t visible = t->visible[query], tokens = t->kv->block_tokens;
    const vf none = vf_all(-INFINITY);
    vf top = none, sum = vf_zero();
    for (uint32_t i = 0; scaled && i < longest; i += LANES) {
        vf_store(scores + i, vf_load(scores + i) * vf_load(scales_of(t, i)));
    }
    for (uint32_t i = 0; i < visible; i += LANES) {
        top = vf_max(top, vf_first(vf_load(scores + i), visible - i, none));
    }
    const vf max = vf_all(vf_top(top));
    for (uint32_t i = 0; i < longest; i += LANES) {
        uint32_t seen = i < visible ? visible - i : 0;
        vf e = vf_exp(vf_first(vf_load(scores + i) - max, seen, none));
        sum = sum + e;
        if (scaled) e = e * vf_load(scales_of(t, i) + tokens);
        vf_store(scores + i, e);
    }
    t->out[query].max = vf_top(top);
    t->out[query].sum = vf_sum(sum);
}

/* Adds p * V over `positions` positions from `at` for `vectors` vectors of dimensions; `next` (may
 * be NULL) is fetched meanwhile. */
INLINE void weigh(const struct tile *t, uint32_t query, int count, uint32_t at, uint32_t positions,
                  const uint8_t *value, const uint8_t *next, uint64_t row_bytes, int vectors,
                  enum kv_type type, vf acc[SET][WIDE])
{
    const uint32_t fours = kv_fours(type), bytes = LANES * kv_element_bytes(type) * fours;
    const float *p[SET];
    UNROLL for (int i = 0; i < count; i++) p[i] = scores_of(t, query + (uint32_t)i) + at;
    for (uint32_t i = 0; i < positions; i += fours, value += fours * row_bytes) {
        const uint8_t *from[WIDE];
        for (uint32_t b = 0; next && b < (uint32_t)vectors * bytes; b += 64) {
            __builtin_prefetch(next + i * row_bytes + b, 0, 2);
        }
        UNROLL for (int v = 0; v < vectors; v++) from[v] = value + (uint32_t)v * bytes;
        UNROLL for (uint32_t sub = 0; sub < fours; sub++) {
            if (i + sub < positions) multiply(p, i + sub, count, from, sub, vectors, type, acc);
        }
    }
}

INLINE void take(const struct tile *t, uint32_t query, int count, uint32_t s, int vectors,
                 vf acc[SET][WIDE])
{
    UNROLL for (int i = 0; i < count; i++) {
        UNROLL for (int v = 0; v < vectors; v++) {
            acc[i][v] = vf_load(t->out[query + (uint32_t)i].out + s + (uint32_t)v * LANES);
        }
    }
}

INLINE void give(const struct tile *t, uint32_t query, int count, uint32_t s, int vectors,
                 vf acc[SET][WIDE])
{
    UNROLL for (int i = 0; i < count; i++) {
        UNROLL for (int v = 0; v < vectors; v++) {
            vf_store(t->out[query + (uint32_t)i].out + s + (uint32_t)v * LANES, acc[i][v]);
        }
    }
}

/* --- few queries: from the pool -------------------------------------------------------------- */

INLINE uint32_t few_wide(int count)
{
    return count < 4 ? WIDE : SET_WIDE;
}

INLINE void few_scores(const struct tile *t, int count, enum kv_type type)
{
    const struct kv_view *kv = t->kv;
    const uint8_t *key[KV_TILE_TOKENS / LANES];
    uint32_t vectors = (t->longest + LANES - 1) / LANES, v = 0;
    uint64_t step = (uint64_t)kv->lanes * kv_element_bytes(type);
    for (uint32_t i = 0; i < vectors; i++) {
        uint64_t at = kv_key_at(kv, i * LANES % kv->block_tokens, 0);
        key[i] = t->block[i * LANES / kv->block_tokens] + at * kv_element_bytes(type);
    }
    const uint32_t wide = few_wide(count);
    for (; v + wide <= vectors; v += wide) {
        score(t, 0, count, key + v, (int)wide, step, type, t->values, v * LANES);
    }
    for (; v < vectors; v++) score(t, 0, count, key + v, 1, step, type, t->values, v * LANES);
}

INLINE void few_values_part(const struct tile *t, int count, enum kv_type type, uint32_t s,
                            int vectors)
{
    uint32_t tokens = t->kv->block_tokens, element = kv_element_bytes(type);
    uint64_t row_bytes = (uint64_t)t->kv->head_dim * element;
    uint64_t first = (uint64_t)s * element * kv_fours(type);
    vf acc[SET][WIDE];
    UNROLL for (int i = 0; i < count; i++) {
        UNROLL for (int v = 0; v < vectors; v++) acc[i][v] = vf_zero();
    }
    for (uint32_t at = 0, b = 0; at < t->longest; at += tokens, b++) {
        uint32_t n = t->longest - at < tokens ? t->longest - at : tokens;
        if (kv_is_scaled(type)) prefetch_scales(t, b);
        weigh(t, 0, count, at, n, t->block[b] + t->values + first,
              t->next[b] ? t->next[b] + first : NULL, row_bytes, vectors, type, acc);
    }
    give(t, 0, count, s, vectors, acc);
}

INLINE void few(const struct tile *t, int count, enum kv_type type)
{
    uint32_t s = 0;
    few_scores(t, count, type);
    for (int i = 0; i < count; i++) soften(t, (uint32_t)i, t->longest, kv_is_scaled(type));
    const uint32_t wide = few_wide(count);
    for (; s + wide * LANES <= t->kv->head_dim; s += wide * LANES) {
        few_values_part(t, count, type, s, (int)wide);
    }
    for (; s < t->kv->head_dim; s += LANES) few_values_part(t, count, type, s, 1);
}

#define FEW_OF(name, type)                                                                        \
    static void name(const struct tile *t)                                                        \
    {                                                                                             \
        switch (t->count) {                                                                       \
        case 1: few(t, 1, type); break;                                                           \
        case 2: few(t, 2, type); break;                                                           \
        case 3: few(t, 3, type); break;                                                           \
        default: few(t, 4, type); break;                                                          \
        }                                                                                         \
    }
FEW_OF(few_f32, KV_F32)
#ifndef __AVX512BF16__
FEW_OF(few_f16, KV_F16)
#endif
FEW_OF(few_fp8, KV_FP8)
#ifndef __AVX512F__
FEW_OF(few_int8, KV_INT8)
#endif

/* --- many queries: through a buffer of floats ------------------------------------------------ */

/* Keys of positions at .. at+SPAN-1 (of those that exist) as (S, SPAN). */
INLINE void convert_keys(const struct tile *t, uint32_t at, enum kv_type type)
{
    const struct kv_view *kv = t->kv;
    uint64_t step = (uint64_t)kv->lanes * kv_element_bytes(type);
    for (uint32_t i = 0; i < SPAN && at + i < t->longest; i += LANES) {
        uint64_t first = kv_key_at(kv, (at + i) % kv->block_tokens, 0);
        const uint8_t *key = t->block[(at + i) / kv->block_tokens] + first * kv_element_bytes(type);
        for (uint32_t s = 0; s < kv->head_dim; s++) {
            uint32_t sub = s % kv_fours(type);
            vf_store(t->span + s * SPAN + i, kv_load(key + (s - sub) * step, type, sub));
        }
    }
}

/* Values of positions at .. at+SPAN-1 as (SPAN, S). */
INLINE void convert_values(const struct tile *t, uint32_t at, enum kv_type type)
{
    uint32_t size = t->kv->head_dim, tokens = t->kv->block_tokens, n = kv_element_bytes(type);
    for (uint32_t i = 0; i < SPAN && at + i < t->longest; i++) {
        uint32_t fours = kv_fours(type), sub = i % fours;
        const uint8_t *value = t->block[(at + i) / tokens] + t->values +
                               (uint64_t)((at + i - sub) % tokens) * size * n;
        for (uint32_t s = 0; s < size; s += LANES) {
            vf_store(t->span + i * size + s, kv_load(value + (uint64_t)s * n * fours, type, sub));
        }
    }
}

#define CONVERT_OF(name, what)                                                                    \
    static void name(const struct tile *t, uint32_t at)                                           \
    {                                                                                             \
        switch (t->kv->type) {                                                                    \
        case KV_F32: what(t, at, KV_F32); break;                                                  \
        case KV_F16: what(t, at, KV_F16); break;                                                  \
        case KV_INT8: what(t, at, KV_INT8); break;                                                \
        case KV_FP8: what(t, at, KV_FP8); break;                                                  \
        }                                                                                         \
    }
CONVERT_OF(keys_to_span, convert_keys)
CONVERT_OF(values_to_span, convert_values)

/* Scores of a set's queries with the keys in the span. */
INLINE void set_scores(const struct tile *t, uint32_t query, int count, uint32_t at)
{
    uint32_t left = longest_of(t, query, (uint32_t)count);
    if (left <= at) return;
    left = left - at < SPAN ? left - at : SPAN;
    for (uint32_t i = 0; i < left; i += SET_WIDE * LANES) {
        const uint8_t *key[SET_WIDE];
        for (uint32_t v = 0; v < SET_WIDE; v++) {
            key[v] = (const uint8_t *)(t->span + i + v * LANES);
        }
        score(t, query, count, key, SET_WIDE, SPAN * sizeof(float), KV_F32, 0, at + i);
    }
}

INLINE void set_values(const struct tile *t, uint32_t query, int count, uint32_t at)
{
    uint32_t left = longest_of(t, query, (uint32_t)count), size = t->kv->head_dim, s = 0;
    uint64_t row_bytes = size * sizeof(float);
    vf acc[SET][WIDE];
    if (left <= at) return;
    left = left - at < SPAN ? left - at : SPAN;
    for (; s + SET_WIDE * LANES <= size; s += SET_WIDE * LANES) {
        take(t, query, count, s, SET_WIDE, acc);
        weigh(t, query, count, at, left, (const uint8_t *)(t->span + s), NULL, row_bytes,
              SET_WIDE, KV_F32, acc);
        give(t, query, count, s, SET_WIDE, acc);
    }
    for (; s < size; s += LANES) {
        take(t, query, count, s, 1, acc);
        weigh(t, query, count, at, left, (const uint8_t *)(t->span + s), NULL, row_bytes, 1,
              KV_F32, acc);
        give(t, query, count, s, 1, acc);
    }
}

#define SETS_OF(name, what)                                                                       \
    static void name(const struct tile *t, uint32_t at)                                           \
    {                                                                                             \
        uint32_t q = 0;                                                                           \
        for (; q + SET <= t->count; q += SET) what(t, q, SET, at);                                \
        switch (t->count - q) {                                                                   \
        case 1: what(t, q, 1, at); break;                                                         \
        case 2: what(t, q, 2, at); break;                                                         \
        case 3: what(t, q, 3, at); break;                                                         \
        case 4: what(t, q, 4, at); break;                                                         \
        case 5: what(t, q, 5, at); break;                                                         \
        }                                                                                         \
    }
SETS_OF(all_scores, set_scores)
SETS_OF(all_values, set_values)

static void many(const struct tile *t)
{
    bool scaled = kv_is_scaled(t->kv->type);
    for (uint32_t at = 0; at < t->longest; at += SPAN) {
        keys_to_span(t, at);
        all_scores(t, at);
    }
    for (uint32_t i = 0; i < t->count; i++) {
        uint32_t first = i / SET * SET, n = t->count - first < SET ? t->count - first : SET;
        soften(t, i, longest_of(t, first, n), scaled);
        memset(t->out[i].out, 0, t->kv->head_dim * sizeof(float));
    }
    for (uint32_t at = 0; at < t->longest; at += SPAN) {
        values_to_span(t, at);
        all_values(t, at);
    }
}

#ifdef __AVX512F__
#include "engine/cpu/simd_attend_int8.h"
#else
static void int8_tile(const struct tile *t)
{
    if (t->count > FEW) many(t);
    else few_int8(t);
}
#endif

#ifdef __AVX512BF16__
#include "engine/cpu/simd_attend_bf16.h"
#else
static void f16_tile(const struct tile *t)
{
    if (t->count > FEW) many(t);
    else few_f16(t);
}
#endif

/* --- the table's entries --------------------------------------------------------------------- */

static void attend_tile(const struct kv_view *kv, uint32_t tile, const float *const *queries,
                        const uint32_t *visible, uint32_t count, struct partial *out, float *room)
{
#ifdef __AVX512F__
    if (kv->lanes < LANES) {              /* blocks of 8 tokens are narrower than a vector */
        kernels_avx2.tile(kv, tile, queries, visible, count, out, room);
        return;
    }
#endif
    uint64_t part = (uint64_t)kv->block_tokens * kv->head_dim * kv_element_bytes(kv->type);
    struct tile t = { .kv = kv, .values = part, .scales = 2 * part, .queries = queries,
                      .token_bits = (uint32_t)__builtin_ctz(kv->block_tokens),
                      .visible = visible, .count = count, .out = out, .scores = room,
                      .span = room + (uint64_t)count * KV_TILE_TOKENS };
    uint32_t start = tile * KV_TILE_TOKENS, tokens = kv->block_tokens;
    CHECK(count >= 1 && count <= QUERIES_MAX);
    t.longest = longest_of(&t, 0, count);
    for (uint32_t i = 0; i < t.longest; i += tokens) {
        t.block[i / tokens] = kv->pool + kv->blocks[(start + i) / tokens] * kv->block_stride;
    }
    start = kv->next_tile * KV_TILE_TOKENS;
    for (uint32_t i = 0; i < KV_TILE_TOKENS && start + i < kv->next_end; i += tokens) {
        uint64_t block = kv->next_blocks[(start + i) / tokens];
        t.next[i / tokens] = kv->next_pool + block * kv->block_stride;
    }
    if (kv->type == KV_INT8) {
        int8_tile(&t);
    } else if (kv->type == KV_F16) {
        f16_tile(&t);
    } else if (count > FEW) {
        many(&t);
    } else if (kv->type == KV_F32) {
        few_f32(&t);
    } else {
        few_fp8(&t);
    }
}

/* Of both exponentials one is of 0, and exactly 1. */
ENTRY void attend_merge(struct partial *into, const struct partial *later, uint32_t size)
{
    bool grows = later->max > into->max;
    float max = grows ? later->max : into->max;
    vf less = vf_exp(vf_all((grows ? into->max : later->max) - max));
    vf a = grows ? less : vf_all(1), b = grows ? vf_all(1) : less;
    float from_a = a[0] * into->sum, from_b = b[0] * later->sum;
    into->max = max;
    into->sum = from_a + from_b;
    for (uint32_t s = 0; s < size; s += LANES) {
        vf_store(into->out + s, vf_load(into->out + s) * a + vf_load(later->out + s) * b);
    }
}
