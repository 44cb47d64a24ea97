/* engine/cpu/simd_attend_int8.h - an attention tile over int8 keys and values in whole numbers, for
 * AVX-512 with VNNI.
 *
 * A query becomes 16 bits relative to its largest value, a tile's weights (exponentials times the
 * scale of the value) 16 bits relative to the largest of them: two bytes each, which err by less
 * than 1 % of what rounding keys and values to the nearest bytes does.  One vpdpbusd takes such
 * a plane of bytes and four dimensions of 16 keys, or four positions of 16 dimensions of
 * values: six for three queries where floats take twelve and as many conversions.
 * The sums are exact (KV_TILE_TOKENS and HEAD_DIM_MAX keep each plane's below 2^24), so bits depend
 * neither on their order nor on which queries share a register.
 */
#ifndef RANKSERVE_ENGINE_CPU_SIMD_ATTEND_INT8_H
#define RANKSERVE_ENGINE_CPU_SIMD_ATTEND_INT8_H

enum { PLANES = 2, WHOLE_SET = 4, WHOLE_WIDE = 4 };

#define WHOLE_QUERY_MOST (127 * 256.0f)           /* signed bytes, none of them beyond 127 */
#define WHOLE_WEIGHT_MOST 65535.0f

/* Queries that share registers; the higher byte's plane first. */
struct whole {
    _Alignas(64) int8_t query[WHOLE_SET][PLANES][HEAD_DIM_MAX];
    _Alignas(64) uint8_t weight[WHOLE_SET][PLANES][KV_TILE_TOKENS];
    int32_t start[WHOLE_SET][PLANES];             /* keys are 128 too large: -128 * the sum */
    float query_scale[WHOLE_SET], weight_scale[WHOLE_SET];
    uint32_t first, longest;                      /* query; positions that one of them sees */
    struct ahead ahead;
};

/* Vectors at once beside `count` queries: what the registers hold. */
INLINE int whole_wide(int count)
{
    return count < WHOLE_SET ? WHOLE_WIDE : WHOLE_WIDE / 2;
}

/* sum += the products of each four unsigned and signed bytes.  (From the intrinsic GCC makes two
 * instructions, clang one.) */
INLINE __m512i dot_fours(__m512i sum, __m512i bytes, __m512i with)
{
#ifdef __clang__
    return _mm512_dpbusd_epi32(sum, bytes, with);
#else
    __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(bytes), "v"(with));
    return sum;
#endif
}

INLINE __m512i four_everywhere(const void *at)
{
    int32_t four;
    memcpy(&four, at, sizeof four);
    return _mm512_set1_epi32(four);
}

INLINE vf planes_sum(const __m512i *plane)
{
    return vf_fma(_mm512_cvtepi32_ps(plane[0]), vf_all(256), _mm512_cvtepi32_ps(plane[1]));
}

static void whole_query(struct whole *w, uint32_t i, const float *q, uint32_t size)
{
    vf top = vf_zero();
    for (uint32_t s = 0; s < size; s += LANES) top = vf_max(top, vf_abs(vf_load(q + s)));
    float most = vf_top(top), inverse = most > KV_BYTE_LEAST ? WHOLE_QUERY_MOST / most : 0;
    __m512i sum[PLANES];
    UNROLL for (int p = 0; p < PLANES; p++) sum[p] = _mm512_setzero_si512();
    for (uint32_t s = 0; s < size; s += LANES) {
        __m512i v = _mm512_cvtps_epi32(vf_load(q + s) * vf_all(inverse));
        UNROLL for (int p = PLANES - 1; p >= 0; p--) {
            __m512i low = _mm512_srai_epi32(_mm512_slli_epi32(v, 24), 24);
            v = _mm512_srai_epi32(_mm512_sub_epi32(v, low), 8);
            sum[p] = _mm512_add_epi32(sum[p], low);
            _mm_store_si128((__m128i *)(void *)(w->query[i][p] + s), _mm512_cvtepi32_epi8(low));
        }
    }
    UNROLL for (int p = 0; p < PLANES; p++) w->start[i][p] = -128 * _mm512_reduce_add_epi32(sum[p]);
    w->query_scale[i] = inverse > 0 ? most / WHOLE_QUERY_MOST : 0;
}

INLINE const uint8_t *keys_of(const struct tile *t, uint32_t position)
{
    uint32_t in = position & (t->kv->block_tokens - 1);
    return t->block[position >> t->token_bits] + (uint64_t)in * t->kv->head_dim;
}

/* Scores of `vectors` vectors of positions from `at` on. */
INLINE void whole_scores_part(const struct tile *t, struct whole *w, int count, uint32_t at,
                              int vectors)
{
    const uint8_t *key[WHOLE_WIDE];
    __m512i sum[WHOLE_SET][WHOLE_WIDE][PLANES];
    UNROLL for (int v = 0; v < vectors; v++) {
        key[v] = keys_of(t, at + (uint32_t)v * LANES);
        UNROLL for (int i = 0; i < count; i++) {
            UNROLL for (int p = 0; p < PLANES; p++) {
                sum[i][v][p] = _mm512_set1_epi32(w->start[i][p]);
            }
        }
    }
    for (uint32_t s = 0; s < t->kv->head_dim; s += 4) {
        __m512i k[WHOLE_WIDE];
        ahead_fetch(&w->ahead, vectors);
        UNROLL for (int v = 0; v < vectors; v++) {
            __m512i stored = _mm512_loadu_si512(key[v] + s * LANES);
            k[v] = _mm512_xor_si512(stored, _mm512_set1_epi8((char)0x80));
        }
        UNROLL for (int i = 0; i < count; i++) {
            UNROLL for (int p = 0; p < PLANES; p++) {
                __m512i q = four_everywhere(&w->query[i][p][s]);
                UNROLL for (int v = 0; v < vectors; v++) {
                    sum[i][v][p] = dot_fours(sum[i][v][p], k[v], q);
                }
            }
        }
    }
    UNROLL for (int i = 0; i < count; i++) {
        UNROLL for (int v = 0; v < vectors; v++) {
            vf_store(scores_of(t, w->first + (uint32_t)i) + at + (uint32_t)v * LANES,
                     planes_sum(sum[i][v]) * vf_all(w->query_scale[i]));
        }
    }
}

/* The weights of the values as two bytes, and softmax's maximum and sum. */
static void whole_weights(const struct tile *t, struct whole *w, uint32_t i)
{
    uint32_t query = w->first + i, visible = t->visible[query], tokens = t->kv->block_tokens;
    float *scores = scores_of(t, query);
    const vf none = vf_all(-INFINITY);
    vf top = none, sum = vf_zero(), most = vf_zero();
    for (uint32_t j = 0; j < visible; j += LANES) {
        vf score = vf_load(scores + j) * vf_load(scales_of(t, j));
        vf_store(scores + j, score);
        top = vf_max(top, vf_first(score, visible - j, none));
    }
    const vf max = vf_all(vf_top(top));
    for (uint32_t j = 0; j < visible; j += LANES) {
        vf e = vf_exp(vf_first(vf_load(scores + j) - max, visible - j, none));
        vf weight = vf_first(e * vf_load(scales_of(t, j) + tokens), visible - j, vf_zero());
        ahead_fetch(&w->ahead, 1);
        vf_store(scores + j, weight);
        sum = sum + e;
        most = vf_max(most, weight);
    }
    float largest = vf_top(most), inverse = largest > 0x1p-120f ? 1 / largest : 0;
    for (uint32_t j = 0; j < w->longest; j += LANES) {
        vf part = vf_zero();
        if (j < visible) part = vf_load(scores + j) * vf_all(inverse);
        __m512i v = _mm512_cvtps_epi32(part * vf_all(WHOLE_WEIGHT_MOST));
        UNROLL for (int p = PLANES - 1; p >= 0; p--, v = _mm512_srli_epi32(v, 8)) {
            _mm_store_si128((__m128i *)(void *)(w->weight[i][p] + j), _mm512_cvtepi32_epi8(v));
        }
    }
    w->weight_scale[i] = largest / WHOLE_WEIGHT_MOST;
    t->out[query].max = vf_top(top);
    t->out[query].sum = vf_sum(sum);
}

/* `vectors` vectors of dimensions from s on. */
INLINE void whole_values_part(const struct tile *t, struct whole *w, int count, uint32_t s,
                              int vectors)
{
    __m512i sum[WHOLE_SET][WHOLE_WIDE][PLANES];
    UNROLL for (int i = 0; i < count; i++) {
        UNROLL for (int v = 0; v < vectors; v++) {
            UNROLL for (int p = 0; p < PLANES; p++) sum[i][v][p] = _mm512_setzero_si512();
        }
    }
    for (uint32_t j = 0; j < w->longest; j += 4) {
        const uint8_t *value = keys_of(t, j) + t->values + 4ull * s;
        __m512i x[WHOLE_WIDE];
        ahead_fetch(&w->ahead, vectors);
        UNROLL for (int v = 0; v < vectors; v++) x[v] = _mm512_loadu_si512(value + v * 64);
        UNROLL for (int i = 0; i < count; i++) {
            UNROLL for (int p = 0; p < PLANES; p++) {
                __m512i weight = four_everywhere(&w->weight[i][p][j]);
                UNROLL for (int v = 0; v < vectors; v++) {
                    sum[i][v][p] = dot_fours(sum[i][v][p], weight, x[v]);
                }
            }
        }
    }
    UNROLL for (int i = 0; i < count; i++) {
        UNROLL for (int v = 0; v < vectors; v++) {
            vf_store(t->out[w->first + (uint32_t)i].out + s + (uint32_t)v * LANES,
                     planes_sum(sum[i][v]) * vf_all(w->weight_scale[i]));
        }
    }
}

INLINE void whole_set(const struct tile *t, struct whole *w, int count)
{
    uint32_t at = 0, s = 0, size = t->kv->head_dim;
    const uint32_t wide = (uint32_t)whole_wide(count);
    for (uint32_t i = 0; i < (uint32_t)count; i++) {
        whole_query(w, i, t->queries[w->first + i], size);
    }
    for (; at + wide * LANES <= w->longest; at += wide * LANES) {
        whole_scores_part(t, w, count, at, (int)wide);
    }
    for (; at < w->longest; at += LANES) whole_scores_part(t, w, count, at, 1);
    for (uint32_t i = 0; i < (uint32_t)count; i++) whole_weights(t, w, i);
    for (; s + wide * LANES <= size; s += wide * LANES) {
        whole_values_part(t, w, count, s, (int)wide);
    }
    for (; s < size; s += LANES) whole_values_part(t, w, count, s, 1);
}

static void int8_tile(const struct tile *t)
{
    struct whole w;
    w.ahead = ahead_of(t);
    for (w.first = 0; w.first < t->count; w.first += WHOLE_SET) {
        uint32_t n = t->count - w.first < WHOLE_SET ? t->count - w.first : WHOLE_SET;
        w.longest = longest_of(t, w.first, n);
        switch (n) {
        case 1: whole_set(t, &w, 1); break;
        case 2: whole_set(t, &w, 2); break;
        case 3: whole_set(t, &w, 3); break;
        default: whole_set(t, &w, WHOLE_SET); break;
        }
    }
}

#endif
