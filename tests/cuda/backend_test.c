/* tests/cuda/backend_test.c - the CUDA backend against the CPU's plain path, and against itself in
 * other batches and chunks.  Runs on a GPU, or in emulation with the library of tests/cusim.
 */
#include "world.h"

struct trial {
    const char *name;
    struct tiny_plan plan;
    enum kv_type kv;
    bool floats;
    double bound;                     /* times a row's rms */
};

static const enum tensor_type bf16[] = { TENSOR_BF16 }, f16[] = { TENSOR_F16 };
static const enum tensor_type f32[] = { TENSOR_F32 }, q8_0[] = { TENSOR_Q8_0 };
static const enum tensor_type q4_0[] = { TENSOR_Q4_0 }, q4_1[] = { TENSOR_Q4_1 };
static const enum tensor_type mixed[] = { TENSOR_Q8_0, TENSOR_Q4_1, TENSOR_Q4_0, TENSOR_Q5_0,
                                          TENSOR_F16, TENSOR_Q5_1, TENSOR_F32, TENSOR_BF16 };
static const enum tensor_type k_types[] = { TENSOR_Q6_K, TENSOR_Q4_K, TENSOR_Q5_K };

static const struct trial trials[] = {
    { "float", { "llama", 2, 256, 4, 2, 64, 384, 300, f32, 1, 1 }, KV_F32, true, 1e-4 },
    { "float qwen3", { "qwen3", 2, 96, 3, 1, 32, 160, 300, mixed, 8, 2 }, KV_F32, true, 1e-4 },
    { "float qwen2", { "qwen2", 2, 160, 4, 1, 80, 96, 333, mixed, 5, 3 }, KV_F32, true, 1e-4 },
    { "bf16", { "llama", 4, 256, 4, 2, 64, 384, 300, bf16, 1, 4 }, KV_F16, false, 2e-2 },
    { "bf16 128", { "llama", 2, 256, 4, 1, 128, 320, 300, bf16, 1, 5 }, KV_F16, false, 2e-2 },
    { "f16", { "qwen2", 2, 256, 8, 2, 64, 384, 300, f16, 1, 6 }, KV_F16, false, 2e-2 },
    { "q8_0", { "llama", 2, 256, 4, 2, 64, 384, 300, q8_0, 1, 7 }, KV_F16, false, 2e-2 },
    { "q4_0", { "llama", 2, 256, 4, 2, 64, 384, 300, q4_0, 1, 8 }, KV_F16, false, 2e-2 },
    { "q4_1", { "qwen2", 2, 288, 6, 2, 64, 352, 300, q4_1, 1, 9 }, KV_F16, false, 2e-2 },
    { "mixed", { "qwen2", 2, 160, 4, 1, 80, 96, 333, mixed, 5, 10 }, KV_F16, false, 2e-2 },
    { "k types", { "qwen3", 1, 256, 8, 1, 64, 256, 400, k_types, 3, 11 }, KV_F16, false, 2e-2 },
};
enum { TRIALS = sizeof trials / sizeof trials[0] };
static const uint32_t lengths[WORLD_SEQS] = { 75, 37, 3 };

/* Wherever the CPU's best leads by more than two bounds, CUDA's best is the same. */
static uint32_t greedy_differs(const struct world *cpu, const struct world *gpu, double bound)
{
    uint32_t vocab = cpu->model->h.vocab, wrong = 0;
    for (uint32_t s = 0; s < WORLD_SEQS; s++) {
        for (uint32_t t = 0; t < lengths[s]; t++) {
            const float *x = cpu->logits[s] + (uint64_t)t * vocab;
            const float *y = gpu->logits[s] + (uint64_t)t * vocab;
            uint32_t best = 0, other = 0;
            double sum = 0, second = -INFINITY;
            for (uint32_t i = 0; i < vocab; i++) {
                sum += (double)x[i] * (double)x[i];
                if (x[i] > x[best]) best = i;
                if (y[i] > y[other]) other = i;
            }
            for (uint32_t i = 0; i < vocab; i++)
                if (i != best && (double)x[i] > second) second = (double)x[i];
            bool clear = (double)x[best] - second > 2 * bound * sqrt(sum / vocab);
            wrong += clear && best != other;
        }
    }
    return wrong;
}

static void agrees(const struct trial *t)
{
    struct tiny tiny;
    struct world cpu, gpu;
    tiny_open(&tiny, &t->plan);
    struct backend_config c = world_config(tiny.m, t->kv, true), g = c;
    g.float_activations = t->floats;
    world_open(&cpu, &backend_cpu, &c, lengths);
    world_open(&gpu, &backend_cuda, &g, lengths);
    world_run(&cpu, &(struct schedule){ .seed = 1 });
    world_run(&gpu, &(struct schedule){ .seed = 2, .chunk_max = 40, .tail = 3 });
    double distance = world_distance(&cpu, &gpu);
    uint32_t wrong = greedy_differs(&cpu, &gpu, t->bound);
    print_message("    %s: %.2e of %.0e\n", t->name, distance, t->bound);
    world_close(&gpu);
    world_close(&cpu);
    tiny_close(&tiny);
    if (!(distance <= t->bound)) fail_msg("%s: %g is more than %g", t->name, distance, t->bound);
    assert_int_equal(wrong, 0);
}

static void test_agrees(void **state)
{
    (void)state;
    const char *only = getenv("TRIAL");
    for (uint32_t i = 0; i < TRIALS; i++)
        if (!only || !strcmp(trials[i].name, only)) agrees(&trials[i]);
}

/* Long enough for two splits; short tails decode, in graphs. */
static const uint32_t long_lengths[WORLD_SEQS] = { 580, 70, 21 };

static void same_bits(const struct tiny_plan *p, enum kv_type kv, uint32_t schedules)
{
    struct tiny tiny;
    struct world w;
    float *kept[WORLD_SEQS];
    tiny_open(&tiny, p);
    struct backend_config c = world_config(tiny.m, kv, false);
    world_open(&w, &backend_cuda, &c, long_lengths);
    world_run(&w, &(struct schedule){ .seed = 1 });
    for (uint32_t s = 0; s < WORLD_SEQS; s++) {
        size_t bytes = (size_t)w.lengths[s] * p->vocab * sizeof(float);
        kept[s] = mem_alloc(bytes);
        memcpy(kept[s], w.logits[s], bytes);
    }
    bool same = true;
    for (uint32_t i = 0; i < schedules; i++) {
        world_run(&w, &(struct schedule){ .seed = 10 + i, .chunk_max = i % 2 ? 30 : 300,
                                          .tail = 8 + 4 * i });
        same &= world_same_bits(&w, (const float *const *)kept);
    }
    world_close(&w);
    for (uint32_t s = 0; s < WORLD_SEQS; s++) free(kept[s]);
    tiny_close(&tiny);
    assert_true(same);
}

static void test_same_bits(void **state)
{
    (void)state;
    same_bits(&(struct tiny_plan){ "llama", 1, 128, 4, 2, 64, 128, 100, bf16, 1, 21 }, KV_F16, 3);
    same_bits(&(struct tiny_plan){ "llama", 1, 320, 2, 1, 128, 64, 64, q8_0, 1, 22 }, KV_F16, 1);
}

static void test_same_bits_fp8(void **state)
{
    (void)state;
    same_bits(&(struct tiny_plan){ "qwen2", 1, 128, 4, 1, 64, 64, 64, q4_1, 1, 23 }, KV_FP8, 1);
}

/* What one backend reads, another writes: the second's logits have the first's bits. */
static void test_moved_kv(void **state)
{
    (void)state;
    enum { MOVED = 40 };
    struct tiny tiny;
    struct world from, to;
    const uint32_t short_lengths[WORLD_SEQS] = { MOVED + 2, 5, 1 };
    tiny_open(&tiny, &(struct tiny_plan){ "llama", 3, 128, 4, 2, 64, 128, 100, q4_0, 1, 31 });
    struct backend_config c = world_config(tiny.m, KV_F16, false);
    world_open(&from, &backend_cuda, &c, short_lengths);
    world_open(&to, &backend_cuda, &c, short_lengths);
    world_run(&from, &(struct schedule){ .seed = 1, .tail = 2 });
    world_start(&to, 99);
    uint8_t *wire = mem_array(MOVED * 3, from.shape.token_bytes);
    backend_cuda.kv_read(from.self, from.blocks[0], 0, 3, 0, MOVED, wire);
    for (uint32_t layer = 0; layer < 3; layer++)
        backend_cuda.kv_write(to.self, to.blocks[0], layer, 1, 0, MOVED,
                              wire + layer * MOVED * to.shape.token_bytes);
    to.done[0] = MOVED;
    uint64_t seed = 7;
    while (world_advance(&to, &(struct schedule){ .tail = 1 }, &seed)) { }
    uint32_t vocab = tiny.m->h.vocab;
    bool same = !memcmp(from.logits[0] + MOVED * vocab, to.logits[0] + MOVED * vocab,
                        2 * vocab * sizeof(float));
    free(wire);
    world_close(&from);
    world_close(&to);
    tiny_close(&tiny);
    assert_true(same);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        { "logits are those of the CPU within the bound", test_agrees, NULL, NULL, NULL },
        { "neither batch nor chunks change a bit", test_same_bits, NULL, NULL, NULL },
        { "nor with KV in fp8", test_same_bits_fp8, NULL, NULL, NULL },
        { "KV that was moved gives the same bits", test_moved_kv, NULL, NULL, NULL },
    };
    return cmocka_run_group_tests_name("cuda backend", tests, NULL, NULL);
}
