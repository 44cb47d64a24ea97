/* tests/cuda/backend_test.c - the CUDA backend against the CPU's plain path, and against itself
 * in other batches and chunks.  Runs on a GPU, or in emulation with the library of tests/cusim.
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
    { "bf16", { "llama", 2, 256, 4, 2, 64, 384, 300, bf16, 1, 4 }, KV_F16, false, 2e-2 },
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
    print_message("    %s: %.2e of %.0e\n", t->name, distance, t->bound);
    if (!(distance <= t->bound)) fail_msg("%s: %g is more than %g", t->name, distance, t->bound);
    world_close(&gpu);
    world_close(&cpu);
    tiny_close(&tiny);
}

static void test_agrees(void **state)
{
    (void)state;
    const char *only = getenv("TRIAL");
    for (uint32_t i = 0; i < TRIALS; i++)
        if (!only || !strcmp(trials[i].name, only)) agrees(&trials[i]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        { "logits are those of the CPU within the bound", test_agrees, NULL, NULL, NULL },
    };
    return cmocka_run_group_tests_name("cuda backend", tests, NULL, NULL);
}
