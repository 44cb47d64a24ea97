/* engine/cpu/kernels.h - the arithmetic of one instruction set: a table of row and tile operations.
 *
 * Four tables: plain C (the oracle), AVX2, AVX-512 with VNNI, and that with BF16 for attention over
 * F16.  Every operation gives each row (and
 * each query) the same bits whatever other rows are computed beside it: sums over K, over positions
 * and over lanes have one fixed order.  Threads, phases and memory are elsewhere (step.c).
 */
#ifndef RANKSERVE_ENGINE_CPU_KERNELS_H
#define RANKSERVE_ENGINE_CPU_KERNELS_H

#include <stdbool.h>
#include <stdint.h>

#include "common/limits.h"
#include "engine/backend.h"
#include "engine/cpu/pack.h"

enum {
    ROW_GROUP = 16,                   /* rows whose 8-bit activations lie side by side        */
    QUERIES_MAX = 192,                /* that one attention tile call works on                */
    TILE_SPAN = 64,                   /* positions whose elements it keeps as floats          */
    HEAD_DIM_MAX = 512,
    KEY_QUERIES_MAX = 16,             /* that the rounding of a key looks at                  */
};

/* Brings a line here that will be written. */
static inline void fetch_to_write(const void *at)
{
#if defined __x86_64__
    __asm__ volatile("prefetchw %0" : : "m"(*(const char *)at));
#else
    __builtin_prefetch(at, 1, 3);
#endif
}

/* Of 32 values x ~ scale * v of each of 16 rows. */
struct act_scales {
    float scale[ROW_GROUP];
    float sum[ROW_GROUP];             /* scale * (v0 + .. + v31), for weights w = d*q + m     */
    int32_t start[ROW_GROUP];         /* -128 * (v0 + .. + v31), for weights w = d*(q - zero) */
    int32_t start_low[ROW_GROUP];     /* the same of v0 .. v15 alone                          */
};

/* The values themselves in 8 bits; a kernel reaches 16 rows from one pointer. */
struct act_block {
    struct act_scales s;
    int8_t q[ROW_GROUP][32];
};

/* In 16 bits.  AVX-512 has v = 256*high + low in two bytes; AVX2 has whole ones, of each four the
 * first, third, second, fourth. */
struct wide_block {
    struct act_scales s;
    union {
        struct { int8_t high[ROW_GROUP][32], low[ROW_GROUP][32]; };
        int16_t pairs[ROW_GROUP][32];
    };
};

/* Of two neighbouring blocks of each of 16 rows, for PAIR forms of weights (pack.h): two whole
 * numbers of 16 bits, the first block's in the upper half. */
struct act_pair {
    int32_t start[ROW_GROUP];         /* -8 * (v0 + .. + v31); of the second + 0x8000         */
    int32_t scale[ROW_GROUP];         /* in the row's unit: its largest is PAIR_MOST          */
    int32_t sum[ROW_GROUP];           /* scale * (v0 + .. + v31), likewise                    */
};

struct act_units {
    float scale[ROW_GROUP];           /* times 2^15, which a product of two scales loses      */
    float sum[ROW_GROUP];
};

/* The input rows of a matrix product in the forms that its matrices want; NULL: not wanted. */
struct acts {
    uint32_t k;                       /* values per row                                       */
    float *f;                         /* (rows, k)                                            */
    struct act_block *q;              /* (rows/16, k/32)                                      */
    struct wide_block *wide;          /* (rows/16, k/32); if there, products use it           */
    struct act_pair *pairs;           /* (rows/16, k/64), beside q                            */
    struct act_units *units;          /* (rows/16): of `pairs`                                */
};

/* K of a head's block lies as (tokens/lanes, S, lanes), V as (tokens, S); int8 in fours, as integer
 * products want it: K (tokens/lanes, S/4, lanes, 4) if S is in fours, V (tokens/4, S, 4).  8-bit
 * types are followed by the floats of their scales, keys' (tokens) and values' (tokens): kv.c. */
struct kv_view {
    const uint8_t *pool;              /* this layer, this head                                */
    const uint32_t *blocks;           /* of the sequence                                      */
    uint64_t block_stride;            /* bytes                                                */
    uint32_t block_tokens, lanes, head_dim;
    uint32_t end;                     /* positions that blocks[] is known to hold             */
    enum kv_type type;
    /* What the same thread reads next, a tile of any sequence's head in this layer, to be fetched
     * meanwhile; next_end 0: nothing is known. */
    const uint8_t *next_pool;
    const uint32_t *next_blocks;
    uint32_t next_tile, next_end;
};

/* Elements that lie beside each other: neighbouring dimensions of a key, one dimension of
 * neighbouring positions' values. */
static inline uint32_t kv_fours(enum kv_type type)
{
    return type == KV_INT8 ? 4 : 1;
}

/* The dimensions of a key that lie beside each other: the plain path has heads of any even size, of
 * which fours might not be all. */
static inline uint32_t kv_key_fours(const struct kv_view *kv)
{
    return kv->head_dim % 4 == 0 ? kv_fours(kv->type) : 1;
}

/* Where in a block, in elements, a position's key has dimension s. */
static inline uint64_t kv_key_at(const struct kv_view *kv, uint32_t in, uint32_t s)
{
    uint32_t lanes = kv->lanes, n = kv_key_fours(kv);
    return (uint64_t)(in / lanes) * lanes * kv->head_dim +
           ((uint64_t)(s / n) * lanes + in % lanes) * n + s % n;
}

/* ... and its value. */
static inline uint64_t kv_value_at(const struct kv_view *kv, uint32_t in, uint32_t s)
{
    uint32_t n = kv_fours(kv->type);
    return (uint64_t)(kv->block_tokens + in / n * n) * kv->head_dim + (uint64_t)s * n + in % n;
}

/* Floats of scratch memory that a tile call wants: for scores, elements, rounded queries; or for
 * pairs of all keys, and of all values in panels of 64 dimensions. */
static inline uint64_t tile_room(uint32_t head_dim)
{
    uint64_t scores = (uint64_t)QUERIES_MAX * KV_TILE_TOKENS +
                      (uint64_t)(TILE_SPAN + QUERIES_MAX / 2) * head_dim;
    uint64_t pairs = (uint64_t)KV_TILE_TOKENS / 2 * (2 * head_dim + 63);
    return scores > pairs ? scores : pairs;
}

/* An infinity in the pool would be NaN in every sum that it has a weight of 0 in: in those of the
 * queries before it, too, when they are computed beside one that sees it. */
#define HALF_MOST 65504.0f

/* What the largest element of a position's key or value becomes (fp8: or up to an octave less);
 * all below KV_BYTE_LEAST: zeros. */
#define KV_INT8_MOST 127.0f
#define KV_FP8_MOST 1.75f
#define KV_BYTE_LEAST 1e-30f

/* Scales that fp8 chooses from, over the least: a quarter of an octave apart. */
enum { FP8_SCALES = 4 };
#define FP8_SCALE_LIST { 1, 1.18920712f, 1.41421356f, 1.68179283f }
#define FP8_INVERSE_LIST { 1, 0.84089642f, 0.70710678f, 0.59460356f }

/* How much the rounding of a key minds what its own queries do not see of the error (mean over
 * directions; 1: as much as what they see), and of how many elements one may change. */
#define KEY_UNSEEN 2.0f
enum { KEY_FLIP_EVERY = 16 };

/* A softmax in progress: sum and out are relative to exp(max). */
struct partial {
    float max, sum;
    float *out;                       /* (S)                                                  */
};

struct kernels {
    void (*norm)(const float *x, const float *weight, float eps, uint32_t n, float *out);
    /* Rows row .. row+rows-1 of acts (q, or wide if there), n columns from `first` (a multiple of
     * 32) on, from x: (rows, stride).  Plain: NULL. */
    void (*quantize)(const float *x, uint64_t stride, uint32_t rows, uint32_t n,
                     const struct acts *a, uint32_t row, uint32_t first);
    /* Makes `pairs` and `units` of rows row .. row+rows-1, which are in q.  NULL: no such forms. */
    void (*pair)(const struct acts *a, uint32_t row, uint32_t rows);
    void (*swiglu)(const float *gate, const float *up, uint32_t n, float *out);
    void (*scale)(const float *x, float by, uint32_t n, float *out);
    /* Rotates the first `dims` of each head's S values (pairs: i with i ^ 1; else i with
     * i + dims/2) and multiplies all by `scale`: x[i] * cosines[i] + partner * sines[i], signs
     * being in `sines`. */
    void (*rotate)(float *x, uint32_t heads, const float *cosines, const float *sines,
                   uint32_t dims, uint32_t size, bool pairs, float scale);
    /* The Walsh-Hadamard transform of a head's S values (of each part whose length is the largest
     * power of two in S), in place.  It keeps dot products, and spreads single large values. */
    void (*mix)(float *x, uint32_t n);
    /* Beyond the largest F16 (HALF_MOST) they stay finite; NaN stays NaN. */
    void (*to_half)(const float *x, uint32_t n, uint16_t *out);
    /* KV_INT8 or KV_FP8 (see simd_kv.h): n bytes, and what they are to be multiplied by.  An
     * element becomes the nearest code, or (some of a key's) the one on its other side: so that
     * `queries` (count, n; at most KEY_QUERIES_MAX) notice the error less. */
    float (*to_byte)(enum kv_type type, const float *x, uint32_t n, const float *queries,
                     uint32_t count, uint8_t *out);
    /* out(r, c) for rows row0 .. (row0 a multiple of 16) and the outputs of some panels; `out` is
     * the place of row0 and of the first panel's first output.  `add`: added to what is there. */
    void (*gemm)(const struct matrix *m, const struct acts *a, uint32_t row0, uint32_t rows,
                 uint32_t panel0, uint32_t panels, float *out, uint64_t stride, bool add);
    /* Positions tile*256 .. of a sequence, for up to QUERIES_MAX queries (already scaled); query i
     * sees the first visible[i] (1..256) of them.  `room` is tile_room() floats. */
    void (*tile)(const struct kv_view *kv, uint32_t tile, const float *const *queries,
                 const uint32_t *visible, uint32_t count, struct partial *out, float *room);
    /* Adds a later tile to what came before. */
    void (*merge)(struct partial *into, const struct partial *tile, uint32_t head_dim);
};

/* Rows row .. row+rows-1 of `a` have all their values: what follows from them together. */
static inline void acts_finish(const struct kernels *k, const struct acts *a, uint32_t row,
                               uint32_t rows)
{
    if (a->pairs) k->pair(a, row, rows);
}

extern const struct kernels kernels_plain, kernels_avx2, kernels_avx512, kernels_avx512_bf16;

/* Of an instruction set (never above isa_best()). */
static inline const struct kernels *kernels_of(enum isa isa)
{
    static const struct kernels *const all[ISA_COUNT] = {
        [ISA_PLAIN] = &kernels_plain, [ISA_AVX2] = &kernels_avx2,
        [ISA_AVX512] = &kernels_avx512, [ISA_AVX512_BF16] = &kernels_avx512_bf16,
    };
    return all[isa];
}

#endif
