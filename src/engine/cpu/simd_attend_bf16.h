/* engine/cpu/simd_attend_bf16.h - an attention tile over F16 keys and values in bfloat16 products,
 * for AVX-512 with BF16.
 *
 * One vdpbf16ps multiplies two neighbouring dimensions of 16 keys, or two neighbouring positions of
 * 16 dimensions of values: half of what floats take.  Queries, keys, values and weights are rounded
 * to 8 bits of mantissa (as vLLM's attention does on such CPUs), sums are floats; softmax's sum is
 * over the rounded weights.  As in simd_attend.h sums run over pairs one after another, whatever is
 * worked on beside them, and few queries read the pool while many read a buffer of pairs.
 */
#ifndef RANKSERVE_ENGINE_CPU_SIMD_ATTEND_BF16_H
#define RANKSERVE_ENGINE_CPU_SIMD_ATTEND_BF16_H

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

/* Where pairs come from: rows of 16 (or more) elements `step` bytes apart, F16 in the pool of which
 * two make a row of pairs (`half`), or pairs. */
INLINE __m512i pair_load(const uint8_t *at, uint64_t step, bool half)
{
    if (!half) return _mm512_loadu_si512(at);
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

INLINE void round_query(const struct tile *t, uint32_t query)
{
    uint16_t *to = (uint16_t *)query_pairs(t, query);
    for (uint32_t s = 0; s < t->kv->head_dim; s += LANES) {
        store_rounded(to + s, vf_load(t->queries[query] + s));
    }
}

/* Scores of `vectors` vectors of positions from `at` on; key[v] is the first dimension.  Meanwhile
 * what lies `ahead` behind the keys is fetched. */
INLINE void score_pairs(const struct tile *t, uint32_t first, int count, const uint8_t *const *key,
                        int vectors, uint64_t step, bool half, uint64_t ahead, uint32_t at)
{
    const uint64_t row = half ? 2 * step : step;
    const uint32_t *q[SET];
    vf acc[SET][WIDE];
    UNROLL for (int i = 0; i < count; i++) {
        q[i] = query_pairs(t, first + (uint32_t)i);
        UNROLL for (int v = 0; v < vectors; v++) acc[i][v] = vf_zero();
    }
    for (uint32_t s = 0; s < t->kv->head_dim / 2; s++) {
        __m512i pairs[WIDE];
        UNROLL for (int v = 0; v < vectors; v++) {
            if (ahead) __builtin_prefetch(key[v] + s * row + ahead, 0, 2);
            pairs[v] = pair_load(key[v] + s * row, step, half);
        }
        multiply_pairs(q, s, count, pairs, vectors, acc);
    }
    UNROLL for (int i = 0; i < count; i++) {
        UNROLL for (int v = 0; v < vectors; v++) {
            vf_store(scores_of(t, first + (uint32_t)i) + at + (uint32_t)v * LANES, acc[i][v]);
        }
    }
}

/* e^x for x <= 0 to 1.1e-4 of it, a twentieth of its rounding; 0 for -infinity and NaN. */
INLINE vf weight_of(vf x)
{
    vf t = vf_max(x * vf_all(1.44269504f), vf_all(-200));
    vf n = vf_round(t), f = t - n;
    vf p = vf_fma(vf_all(5.5008951e-2f), f, vf_all(2.4221101e-1f));    /* least greatest error */
    p = vf_fma(vf_fma(p, f, vf_all(6.9328293e-1f)), f, vf_all(1));     /* of 2^f, 1 at f = 0 */
    return _mm512_scalef_ps(p, n);
}

/* Exponentials of a query's scores, rounded, in their place; 0 where it sees nothing. */
INLINE void soften_pairs(const struct tile *t, uint32_t query, uint32_t longest)
{
    const float *scores = scores_of(t, query);
    uint16_t *to = (uint16_t *)weight_pairs(t, query);
    uint32_t visible = t->visible[query];
    const vf none = vf_all(-INFINITY);
    vf top = none, sum = vf_zero();
    for (uint32_t i = 0; i < visible; i += LANES) {
        top = vf_max(top, vf_first(vf_load(scores + i), visible - i, none));
    }
    const vf max = vf_all(vf_top(top));
    for (uint32_t i = 0; i < longest; i += LANES) {
        uint32_t seen = i < visible ? visible - i : 0;
        store_rounded(to + i, weight_of(vf_first(vf_load(scores + i) - max, seen, none)));
        sum = sum + vf_load_bf16(to + i);
    }
    t->out[query].max = vf_top(top);
    t->out[query].sum = vf_sum(sum);
}

/* Adds p * V over `positions` positions from `at` (even) on; where their number is odd the last
 * pair's second one has a weight of 0 and, from the pool (`half`), does not count.  `next` (may be
 * NULL) is fetched meanwhile. */
INLINE void weigh_pairs(const struct tile *t, uint32_t query, int count, uint32_t at,
                        uint32_t positions, const uint8_t *value, const uint8_t *next,
                        uint64_t row_bytes, bool half, int vectors, vf acc[SET][WIDE])
{
    const uint32_t bytes = half ? LANES * 2 : LANES * 4;
    const uint64_t step = half ? 2 * row_bytes : row_bytes;
    const uint32_t *p[SET];
    UNROLL for (int i = 0; i < count; i++) p[i] = weight_pairs(t, query + (uint32_t)i) + at / 2;
    for (uint32_t j = 0; 2 * j < positions; j++, value += step) {
        const bool alone = half && 2 * j + 1 == positions;
        __m512i pairs[WIDE];
        for (uint32_t b = 0; next && b < (uint32_t)vectors * bytes; b += 64) {
            __builtin_prefetch(next + j * step + b, 0, 2);
            if (half) __builtin_prefetch(next + j * step + row_bytes + b, 0, 2);
        }
        UNROLL for (int v = 0; v < vectors; v++) {
            const uint8_t *from = value + (uint32_t)v * bytes;
            pairs[v] = alone ? pairs_of(vf_load_half(from), vf_zero()) :
                               pair_load(from, row_bytes, half);
        }
        multiply_pairs(p, j, count, pairs, vectors, acc);
    }
}

/* --- few queries: from the pool -------------------------------------------------------------- */

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
        score_pairs(t, 0, count, key + v, WIDE, 2 * LANES, true, t->values, v * LANES);
    }
    for (; v < vectors; v++) {
        score_pairs(t, 0, count, key + v, 1, 2 * LANES, true, t->values, v * LANES);
    }
}

INLINE void few_value_pairs(const struct tile *t, int count, uint32_t s, int vectors)
{
    uint32_t tokens = t->kv->block_tokens;
    uint64_t row_bytes = 2ull * t->kv->head_dim, first = 2ull * s;
    vf acc[SET][WIDE];
    UNROLL for (int i = 0; i < count; i++) {
        UNROLL for (int v = 0; v < vectors; v++) acc[i][v] = vf_zero();
    }
    for (uint32_t at = 0, b = 0; at < t->longest; at += tokens, b++) {
        uint32_t n = t->longest - at < tokens ? t->longest - at : tokens;
        weigh_pairs(t, 0, count, at, n, t->block[b] + t->values + first,
                    t->next[b] ? t->next[b] + first : NULL, row_bytes, true, vectors, acc);
    }
    give(t, 0, count, s, vectors, acc);
}

INLINE void few_pairs(const struct tile *t, int count)
{
    uint32_t s = 0;
    for (int i = 0; i < count; i++) round_query(t, (uint32_t)i);
    few_score_pairs(t, count);
    for (int i = 0; i < count; i++) soften_pairs(t, (uint32_t)i, t->longest);
    for (; s + WIDE * LANES <= t->kv->head_dim; s += WIDE * LANES) {
        few_value_pairs(t, count, s, WIDE);
    }
    for (; s < t->kv->head_dim; s += LANES) few_value_pairs(t, count, s, 1);
}

/* --- many queries: through a buffer of pairs -------------------------------------------------- */

/* Keys of positions at .. at+SPAN-1 (of those that exist) as pairs, (S/2, SPAN). */
static void keys_to_pairs(const struct tile *t, uint32_t at)
{
    const struct kv_view *kv = t->kv;
    uint32_t *span = (uint32_t *)(void *)t->span;
    for (uint32_t i = 0; i < SPAN && at + i < t->longest; i += LANES) {
        uint64_t first = kv_key_at(kv, (at + i) % kv->block_tokens, 0);
        const uint8_t *key = t->block[(at + i) / kv->block_tokens] + 2 * first;
        for (uint32_t s = 0; s < kv->head_dim / 2; s++, key += 4 * LANES) {
            _mm512_storeu_si512(span + s * SPAN + i, pair_load(key, 2 * LANES, true));
        }
    }
}

/* Values of positions at .. at+SPAN-1 as pairs, (SPAN/2, S).  A last one's partner is 0. */
static void values_to_pairs(const struct tile *t, uint32_t at)
{
    uint32_t size = t->kv->head_dim, tokens = t->kv->block_tokens;
    uint32_t *span = (uint32_t *)(void *)t->span;
    for (uint32_t i = 0; i < SPAN && at + i < t->longest; i += 2) {
        const uint8_t *value = t->block[(at + i) / tokens] + t->values +
                               2ull * ((at + i) % tokens) * size;
        const bool alone = at + i + 1 == t->longest;
        for (uint32_t s = 0; s < size; s += LANES, value += 2 * LANES) {
            vf second = alone ? vf_zero() : vf_load_half(value + 2 * size);
            _mm512_storeu_si512(span + i / 2 * size + s, pairs_of(vf_load_half(value), second));
        }
    }
}

INLINE void set_score_pairs(const struct tile *t, uint32_t query, int count, uint32_t at)
{
    uint32_t left = longest_of(t, query, (uint32_t)count);
    if (left <= at) return;
    left = left - at < SPAN ? left - at : SPAN;
    for (uint32_t i = 0; i < left; i += SET_WIDE * LANES) {
        const uint8_t *key[SET_WIDE];
        for (uint32_t v = 0; v < SET_WIDE; v++) {
            key[v] = (const uint8_t *)(t->span + i + v * LANES);
        }
        score_pairs(t, query, count, key, SET_WIDE, SPAN * sizeof(float), false, 0, at + i);
    }
}

INLINE void set_value_pairs(const struct tile *t, uint32_t query, int count, uint32_t at)
{
    uint32_t left = longest_of(t, query, (uint32_t)count), size = t->kv->head_dim, s = 0;
    vf acc[SET][WIDE];
    if (left <= at) return;
    left = left - at < SPAN ? left - at : SPAN;
    for (int vectors; s < size; s += (uint32_t)vectors * LANES) {
        const uint8_t *value = (const uint8_t *)(t->span + s);
        vectors = s + SET_WIDE * LANES <= size ? SET_WIDE : 1;
        if (vectors == SET_WIDE) {
            take(t, query, count, s, SET_WIDE, acc);
            weigh_pairs(t, query, count, at, left, value, NULL, 4ull * size, false, SET_WIDE, acc);
            give(t, query, count, s, SET_WIDE, acc);
        } else {
            take(t, query, count, s, 1, acc);
            weigh_pairs(t, query, count, at, left, value, NULL, 4ull * size, false, 1, acc);
            give(t, query, count, s, 1, acc);
        }
    }
}
SETS_OF(all_score_pairs, set_score_pairs)
SETS_OF(all_value_pairs, set_value_pairs)

static void many_pairs(const struct tile *t)
{
    for (uint32_t i = 0; i < t->count; i++) round_query(t, i);
    for (uint32_t at = 0; at < t->longest; at += SPAN) {
        keys_to_pairs(t, at);
        all_score_pairs(t, at);
    }
    for (uint32_t i = 0; i < t->count; i++) {
        uint32_t first = i / SET * SET, n = t->count - first < SET ? t->count - first : SET;
        soften_pairs(t, i, longest_of(t, first, n));
        memset(t->out[i].out, 0, t->kv->head_dim * sizeof(float));
    }
    for (uint32_t at = 0; at < t->longest; at += SPAN) {
        values_to_pairs(t, at);
        all_value_pairs(t, at);
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
