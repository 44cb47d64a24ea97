/* perf/attend_bench.c - the attention tile alone, on one thread, for each KV type.
 *
 *   attend_bench [OUT.json] [HEAD_DIM] [HEADS_PER_KV_HEAD]
 *
 * Prefill: many queries walk 2,048 positions, as one item of a prompt's chunk does; G of multiplies
 * and adds a second, and what part of the FMA peak (measured between the rounds) that is.  Decode:
 * one position's queries walk 4,096 positions of each of 90 (layer, head) pairs, which no cache
 * holds; GB/s of KV read.  Best of several, by the thread's CPU time.  Each type's result is
 * compared with the plain kernel's first.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/mem.h"
#include "engine/cpu/cpu.h"
#include "figures.h"
#include "peak.h"

enum { BLOCK = 16, PREFILL = 2048, DECODE = 4096, PAIRS = 90, ROUNDS = 7 };

struct bench {
    enum isa isa;
    const struct kernels *k;
    uint32_t size, heads;
    uint8_t *pool;
    uint64_t pool_bytes;
    float *room;
    const float *q[QUERIES_MAX];
    float *outs;                      /* (3, QUERIES_MAX, S) */
    struct figures figures;
};

static uint64_t head_bytes(const struct bench *b, enum kv_type type)
{
    uint64_t scale = kv_is_scaled(type) ? sizeof(float) : 0;
    return 2ull * BLOCK * (b->size * kv_element_bytes(type) + scale);
}

static uint64_t seed = 1;

static float unit(void)               /* -1 .. 1 */
{
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (float)((double)(int64_t)seed * 0x1p-63);
}

/* Any bytes make int8 and fp8; floats must be sensible. */
static void fill(struct bench *b, enum kv_type type)
{
    uint64_t part = 2ull * BLOCK * b->size * kv_element_bytes(type);
    for (uint64_t at = 0; at + head_bytes(b, type) <= b->pool_bytes; at += head_bytes(b, type)) {
        float *scales = (float *)(void *)(b->pool + at + part);
        for (uint64_t i = 0; i < part; i++) b->pool[at + i] = (uint8_t)((i * 37 + at) % 251);
        for (uint64_t i = 0; type == KV_F16 && i < part; i += 2) b->pool[at + i + 1] &= 0xbb;
        for (uint64_t i = 0; type == KV_F32 && i < part; i += 4) {
            b->pool[at + i + 3] = 0x3e | (b->pool[at + i + 3] & 0x80);
        }
        for (int i = 0; kv_is_scaled(type) && i < 2 * BLOCK; i++) scales[i] = 0.01f;
    }
}

/* `count` queries walk `positions` positions of one head; the result is in the first outs. */
static void walk(const struct bench *b, const struct kernels *k, const struct kv_view *of,
                 uint32_t count, uint32_t positions, struct partial *state)
{
    struct kv_view kv = *of;
    uint32_t visible[QUERIES_MAX];
    struct partial part[QUERIES_MAX];
    for (uint32_t i = 0; i < count; i++) {
        visible[i] = KV_TILE_TOKENS;
        state[i].out = b->outs + (uint64_t)i * b->size;
        part[i].out = b->outs + (uint64_t)(QUERIES_MAX + i) * b->size;
    }
    kv.next_pool = kv.pool, kv.next_blocks = kv.blocks, kv.next_end = kv.end;
    for (uint32_t tile = 0; tile < positions / KV_TILE_TOKENS; tile++) {
        kv.next_tile = tile + 1;
        k->tile(&kv, tile, b->q, visible, count, tile ? part : state, b->room);
        for (uint32_t i = 0; tile && i < count; i++) k->merge(&state[i], &part[i], b->size);
    }
}

static void check(const struct bench *b, const struct kv_view *kv, uint32_t count)
{
    struct partial state[QUERIES_MAX];
    double most = b->isa == ISA_AVX512_BF16 && kv->type == KV_F16 ? 1e-2 : 1e-4;
    float *kept = b->outs + 2ull * QUERIES_MAX * b->size, sums[QUERIES_MAX];
    walk(b, &kernels_plain, kv, count, 512, state);
    memcpy(kept, b->outs, (uint64_t)count * b->size * sizeof *kept);
    for (uint32_t i = 0; i < count; i++) sums[i] = state[i].sum;
    walk(b, b->k, kv, count, 512, state);
    for (uint32_t i = 0; i < count * b->size; i++) {
        double want = (double)kept[i] / (double)sums[i / b->size];
        double got = (double)b->outs[i] / (double)state[i / b->size].sum;
        if (!(fabs(got - want) <= most)) die("wrong answer: %g, not %g", got, want);
    }
}

static double peak(const struct bench *b)
{
    uint64_t (*run)(uint64_t) = b->isa >= ISA_AVX512 ? peak_f32_avx512 : peak_f32_avx2;
    double start = cpu_seconds(CLOCK_THREAD_CPUTIME_ID);
    uint64_t done = run(2000000);
    return (double)done / (cpu_seconds(CLOCK_THREAD_CPUTIME_ID) - start) / 1e9;
}

static void measure(struct bench *b, enum kv_type type, const char *name)
{
    struct partial state[QUERIES_MAX];
    uint32_t blocks[DECODE / BLOCK], many = QUERIES_MAX / b->heads * b->heads;
    double prefill = 1e9, decode = 1e9, most = 0;
    double ops = 4.0 * many * PREFILL * b->size;
    uint64_t one = head_bytes(b, type) * (DECODE / BLOCK);
    for (uint32_t i = 0; i < DECODE / BLOCK; i++) blocks[i] = i;
    struct kv_view kv = { .pool = b->pool, .blocks = blocks, .block_stride = head_bytes(b, type),
                          .block_tokens = BLOCK, .lanes = 16, .head_dim = b->size,
                          .end = DECODE, .type = type };
    fill(b, type);
    check(b, &kv, many);
    check(b, &kv, b->heads);
    for (int r = 0; r < ROUNDS; r++) {
        double at = peak(b);
        most = at > most ? at : most;
        double start = cpu_seconds(CLOCK_THREAD_CPUTIME_ID);
        for (int i = 0; i < 4; i++) walk(b, b->k, &kv, many, PREFILL, state);
        double took = (cpu_seconds(CLOCK_THREAD_CPUTIME_ID) - start) / 4;
        prefill = took < prefill ? took : prefill;
        start = cpu_seconds(CLOCK_THREAD_CPUTIME_ID);
        for (uint64_t i = 0; i < PAIRS; i++) {
            struct kv_view deep = kv;
            deep.pool = b->pool + i * one;
            walk(b, b->k, &deep, b->heads, DECODE, state);
        }
        took = cpu_seconds(CLOCK_THREAD_CPUTIME_ID) - start;
        decode = took < decode ? took : decode;
    }
    double rate = ops / prefill / 1e9, bytes = (double)one * PAIRS / decode / 1e9;
    char label[64];
    printf("%-5s prefill %7.1f GFLOP/s (%3.0f %% of %.1f)   decode %6.2f GB/s, %6.3f ms a token\n",
           name, rate, 100 * rate / most, most, bytes, 1e3 * decode);
    fflush(stdout);
    snprintf(label, sizeof label, "attend_prefill_%s", name);
    figure(&b->figures, label, rate);
    snprintf(label, sizeof label, "attend_decode_%s_gbs", name);
    figure(&b->figures, label, bytes);
}

int main(int argc, char **argv)
{
    struct bench *b = mem_alloc(sizeof *b);
    *b = (struct bench){ .isa = isa_best(), .size = 64, .heads = 3 };
    b->figures = figures_open(argc > 1 && argv[1][0] ? argv[1] : NULL);
    if (argc > 2) b->size = (uint32_t)strtoul(argv[2], NULL, 10);
    if (argc > 3) b->heads = (uint32_t)strtoul(argv[3], NULL, 10);
    if (b->size < 16 || b->size % 16 || b->size > HEAD_DIM_MAX || b->heads < 1 ||
        b->heads > QUERIES_MAX || b->isa == ISA_PLAIN) {
        die("usage: attend_bench [out.json] [head size] [heads per kv head], on AVX2 or better");
    }
    b->k = kernels_of(b->isa);
    b->room = pages_take(tile_room(b->size) * sizeof(float));
    b->outs = pages_take(3ull * QUERIES_MAX * b->size * sizeof(float));
    b->pool_bytes = PAIRS * head_bytes(b, KV_F32) * (DECODE / BLOCK);
    b->pool = pages_take(b->pool_bytes);
    float *q = mem_array((uint64_t)QUERIES_MAX * b->size, sizeof *q);
    for (uint64_t i = 0; i < (uint64_t)QUERIES_MAX * b->size; i++) q[i] = unit() / 4;
    for (uint32_t i = 0; i < QUERIES_MAX; i++) b->q[i] = q + (uint64_t)i * b->size;
    printf("%s, one thread, heads of %u, %u to a KV head\n", isa_name(b->isa), b->size, b->heads);
    measure(b, KV_F32, "f32");
    measure(b, KV_F16, "f16");
    measure(b, KV_INT8, "int8");
    measure(b, KV_FP8, "fp8");
    figures_close(&b->figures);
    free(q);
    pages_give(b->pool, b->pool_bytes);
    free(b);
    return 0;
}
