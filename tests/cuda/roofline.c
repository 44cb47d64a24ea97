/* tests/cuda/roofline.c - one kernel at a model's true size, for counting in emulation.
 *
 *   roofline gemm TYPE ROWS OUT IN          TYPE: f16 q8_0 q4_0 q4_1
 *   roofline unpack TYPE OUT IN             weights to F16, for cuBLAS
 *   roofline attend KV TOKENS LENGTH        KV: f16 fp8; TOKENS 0: eight sequences decode
 *
 * Prints the bytes that must cross the device's memory once; tests/cuda/roofline.py reads that and
 * the emulator's counters.  All data are zeros: no count depends on them.
 */
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/check.h"
#include "cuda/kernels.h"

enum { HEADS = 32, KV_HEADS = 8, SIZE = 128, GROUP = HEADS / KV_HEADS, SHIFT = 4, DECODING = 8 };

static cudaStream_t stream;
static uint64_t crossed;
static void *taken[16];
static int taken_count;

static void must(cudaError_t e)
{
    if (e) die("roofline: %s", cudaGetErrorString(e));
}

/* Zeros; `once`: what of it a kernel must read or write at least. */
static void *zeros(uint64_t bytes, uint64_t once)
{
    void *at;
    must(cudaMalloc(&at, bytes));
    must(cudaMemsetAsync(at, 0, bytes, stream));
    crossed += once;
    CHECK(taken_count < 16);
    return taken[taken_count++] = at;
}

static void *upload(const void *from, uint64_t bytes)
{
    void *at = zeros(bytes, bytes), *pinned;
    must(cudaMallocHost(&pinned, bytes));
    memcpy(pinned, from, bytes);
    must(cudaMemcpyAsync(at, pinned, bytes, cudaMemcpyHostToDevice, stream));
    must(cudaStreamSynchronize(stream));
    must(cudaFreeHost(pinned));
    return at;
}

static int number(const char *text, int most)
{
    long n = strtol(text, NULL, 10);
    if (n < 0 || n > most) die("roofline: %s: from 0 to %d", text, most);
    return (int)n;
}

static struct weights make_weights(const char *name, int out, int in)
{
    static const struct { const char *name; int type; uint32_t bits, mins; } types[] = {
        { "f16", WEIGHT_F16, 16, 0 }, { "q8_0", WEIGHT_Q8_0, 8, 0 },
        { "q4_0", WEIGHT_Q4_0, 4, 0 }, { "q4_1", WEIGHT_Q4_1, 4, 1 },
    };
    uint32_t t = 0;
    while (t < 3 && strcmp(types[t].name, name)) t++;
    uint64_t all = (uint64_t)out * (uint64_t)in, blocks = all / 32 * 2;
    struct weights w = { .type = types[t].type, .out = out, .in = in };
    w.q = zeros(all * types[t].bits / 8, all * types[t].bits / 8);
    if (types[t].bits < 16) w.scales = zeros(blocks, blocks);
    if (types[t].mins) w.mins = zeros(blocks, blocks);
    return w;
}

static void run_gemm(char **argv)
{
    int rows = number(argv[1], 4096), out = number(argv[2], 65536), in = number(argv[3], 65536);
    uint64_t input = 2ull * (uint64_t)rows * (uint64_t)in, result = 4ull * (uint64_t)(rows * out);
    struct weights w = make_weights(argv[0], out, in);
    struct gemm_out o = { .kind = OUT_STORE, .columns = out, .factor = 1, .f32_stride = out,
                          .f32 = zeros(result, result) };
    must(k_gemm(&w, zeros(input, input), in, rows, &o, stream));
}

static void run_unpack(char **argv)
{
    int out = number(argv[1], 65536), in = number(argv[2], 65536);
    uint64_t bytes = 2ull * (uint64_t)out * (uint64_t)in;
    struct weights w = make_weights(argv[0], out, in);
    must(k_unpack(&w, 0, out, zeros(bytes, bytes), stream));
}

/* Items of a prompt's `tokens` behind what `length` holds before them, or of decoding. */
static int make_items(struct attend_item *items, int tokens, int length)
{
    int count = 0, each = ATTEND_ROWS / GROUP, splits = (length + ATTEND_SPLIT - 1) / ATTEND_SPLIT;
    for (int i = 0; i < tokens; i += each)
        items[count++] = (struct attend_item){
            .row = i, .count = tokens - i < each ? tokens - i : each,
            .first = length - tokens + i };
    for (int i = 0; tokens == 0 && i < DECODING * splits; i++)
        items[count++] = (struct attend_item){
            .row = i / splits, .count = 1, .first = length - 1, .split = i % splits,
            .table = i / splits * (length >> SHIFT), .splits = splits,
            .part = i / splits * splits };
    return count;
}

static void run_attend(char **argv)
{
    static struct attend_item items[4096];
    static int32_t tables[65536];
    bool fp8 = !strcmp(argv[0], "fp8");
    int tokens = number(argv[1], 4096), length = number(argv[2], 8192) >> SHIFT << SHIFT;
    if (length == 0 || tokens > length) die("roofline: more tokens than positions");
    int sequences = tokens ? 1 : DECODING, rows = tokens ? tokens : DECODING;
    int blocks = sequences * (length >> SHIFT), count = make_items(items, tokens, length);
    for (int i = 0; i < blocks; i++) tables[i] = i;
    int64_t block_bytes = 2ll * KV_HEADS * SIZE * (fp8 ? 1 : 2) << SHIFT;
    uint64_t kv = (uint64_t)(blocks * block_bytes), row = 2ull * HEADS * SIZE;
    uint64_t parts = tokens ? 0 : (uint64_t)count * HEADS;
    uint64_t counters = 4ull * (uint64_t)count * KV_HEADS;
    struct attend_call c = {
        .q = zeros((uint64_t)rows * row, (uint64_t)rows * row), .out_stride = HEADS * SIZE,
        .out = zeros((uint64_t)rows * row, (uint64_t)rows * row), .act_type = ACT_F16,
        .heads = HEADS, .scale = 0.1f,
        .kv = { .base = zeros(kv, kv), .block_bytes = block_bytes, .token_shift = SHIFT,
                .kv_heads = KV_HEADS, .head_dim = SIZE,
                .element = fp8 ? KV_ELEMENT_FP8 : KV_ELEMENT_F16 },
        .items = upload(items, (uint64_t)count * sizeof *items),
        .tables = upload(tables, (uint64_t)blocks * sizeof *tables),
        .part_out = zeros(parts * SIZE * 4 + 16, parts * SIZE * 4),
        .part_state = zeros(parts * 8 + 8, parts * 8),
        .parts_done = zeros(counters, 0),
    };
    must(k_attend_prepare());
    must(k_attend(&c, tokens ? count : 0, tokens ? 0 : count, stream));
}

int main(int argc, char **argv)
{
    bool gemm = argc == 6 && !strcmp(argv[1], "gemm");
    bool unpack = argc == 5 && !strcmp(argv[1], "unpack");
    if (!gemm && !unpack && !(argc == 5 && !strcmp(argv[1], "attend")))
        die("roofline gemm TYPE ROWS OUT IN | unpack TYPE OUT IN | attend KV TOKENS LENGTH");
    must(cudaSetDevice(0));
    must(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    if (gemm)
        run_gemm(argv + 2);
    else if (unpack)
        run_unpack(argv + 2);
    else
        run_attend(argv + 2);
    must(cudaStreamSynchronize(stream));
    while (taken_count) must(cudaFree(taken[--taken_count]));
    must(cudaStreamDestroy(stream));
    printf("%" PRIu64 "\n", crossed);
    return 0;
}
