/* tests/cuda/backend_test.c - the CUDA backend against the CPU's plain path, and against itself in
 * other batches and chunks.  Runs on a GPU, or in emulation with the library of tests/cusim.
 */
#include <dlfcn.h>

#include "world.h"

/* What a comparison is of: KV type, F32 activations or not, the bound in a row's rms. */
struct terms {
    const char *name;
    enum kv_type kv;
    bool floats;
    double bound;
    bool cublas;
};

struct trial {
    struct terms terms;
    struct tiny_plan plan;
};

static const enum tensor_type bf16[] = { TENSOR_BF16 }, f16[] = { TENSOR_F16 };
static const enum tensor_type f32[] = { TENSOR_F32 }, q8_0[] = { TENSOR_Q8_0 };
static const enum tensor_type q4_0[] = { TENSOR_Q4_0 }, q4_1[] = { TENSOR_Q4_1 };
static const enum tensor_type mixed[] = { TENSOR_Q8_0, TENSOR_Q4_1, TENSOR_Q4_0, TENSOR_Q5_0,
                                          TENSOR_F16, TENSOR_Q5_1, TENSOR_F32, TENSOR_BF16 };
static const enum tensor_type k_types[] = { TENSOR_Q6_K, TENSOR_Q4_K, TENSOR_Q5_K };

static const struct trial trials[] = {
    { { "float", KV_F32, true, 1e-4 },
      { "llama", 2, 256, 4, 2, 64, 384, 300, f32, 1, 1 } },
    { { "float qwen3", KV_F32, true, 1e-4 },
      { "qwen3", 2, 96, 3, 1, 32, 160, 300, mixed, 8, 2 } },
    { { "float qwen2", KV_F32, true, 1e-4 },
      { "qwen2", 2, 160, 4, 1, 80, 96, 333, mixed, 5, 3 } },
    { { "bf16", KV_F16, false, 2e-2 },
      { "llama", 4, 256, 4, 2, 64, 384, 300, bf16, 1, 4 } },
    { { "bf16 128", KV_F16, false, 2e-2 },
      { "llama", 2, 256, 4, 1, 128, 320, 300, bf16, 1, 5 } },
    { { "f16", KV_F16, false, 2e-2 },
      { "qwen2", 2, 256, 8, 2, 64, 384, 300, f16, 1, 6 } },
    { { "q8_0", KV_F16, false, 2e-2 },
      { "llama", 2, 256, 4, 2, 64, 384, 300, q8_0, 1, 7 } },
    { { "q4_0", KV_F16, false, 2e-2 },
      { "llama", 2, 256, 4, 2, 64, 384, 300, q4_0, 1, 8 } },
    { { "q4_1", KV_F16, false, 2e-2 },
      { "qwen2", 2, 288, 6, 2, 64, 352, 300, q4_1, 1, 9 } },
    { { "mixed", KV_F16, false, 2e-2 },
      { "qwen2", 2, 160, 4, 1, 80, 96, 333, mixed, 5, 10 } },
    { { "k types", KV_F16, false, 2e-2 },
      { "qwen3", 1, 256, 8, 1, 64, 256, 400, k_types, 3, 11 } },
};
enum { TRIALS = sizeof trials / sizeof trials[0] };

/* Wherever the CPU's best leads by more than two bounds, CUDA's best is the same. */
static uint32_t greedy_differs(const struct world *cpu, const struct world *gpu, double bound)
{
    uint32_t vocab = cpu->model->h.vocab, wrong = 0;
    for (uint32_t s = 0; s < WORLD_SEQS; s++) {
        for (uint32_t t = 0; t < cpu->lengths[s]; t++) {
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

static void agrees(const struct model *m, const struct terms *t, const uint32_t *lengths,
                   const struct schedule *steps)
{
    struct world cpu, gpu;
    struct backend_config c = world_config(m, t->kv, true), g = c;
    g.float_activations = t->floats;
    g.cublas = t->cublas;
    world_open(&cpu, &backend_cpu, &c, lengths);
    world_open(&gpu, &backend_cuda, &g, lengths);
    world_run(&cpu, &(struct schedule){ .seed = 1 });
    world_run(&gpu, steps);
    double distance = world_distance(&cpu, &gpu);
    uint32_t wrong = greedy_differs(&cpu, &gpu, t->bound);
    print_message("    %s: %.2e of %.0e\n", t->name, distance, t->bound);
    world_close(&gpu);
    world_close(&cpu);
    if (!(distance <= t->bound)) fail_msg("%s: %g is more than %g", t->name, distance, t->bound);
    assert_int_equal(wrong, 0);
}

static void test_agrees(void **state)
{
    (void)state;
    static const uint32_t lengths[WORLD_SEQS] = { 75, 37, 3 };
    const char *only = getenv("TRIAL");
    for (uint32_t i = 0; i < TRIALS; i++) {
        if (only && strcmp(trials[i].terms.name, only)) continue;
        struct tiny tiny;
        tiny_open(&tiny, &trials[i].plan);
        agrees(tiny.m, &trials[i].terms, lengths,
               &(struct schedule){ .seed = 2, .chunk_max = 40, .tail = 3 });
        tiny_close(&tiny);
    }
}

/* The default model, cut behind its first layers; for F32 its vocabulary is cut too, as that is
 * slow in emulation. */
static void test_first_layers(void **state)
{
    (void)state;
    enum { LAYERS = 2, WORDS = 4096 };
    static const uint32_t lengths[WORLD_SEQS] = { 30, 11, 2 };
    static const struct terms half = { "default model", KV_F16, false, 2e-2 };
    static const struct terms whole = { "default model, float", KV_F32, true, 1e-4 };
    const struct schedule steps = { .seed = 2, .chunk_max = 30, .tail = 1 };
    const char *path = getenv("RANKSERVE_TEST_MODEL");
    if (!path || !*path) skip();
    struct gguf *g;
    struct model *m = NULL;
    struct why why = { "" };
    if (gguf_open(&g, path, &why) || model_open(&m, g, &why)) fail_msg("%s", why.text);
    assert_true(m->h.layers > LAYERS && m->h.vocab > WORDS && m->h.tied_output);
    m->h.layers = LAYERS;
    agrees(m, &half, lengths, &steps);
    struct gguf_tensor words = *m->embedding;
    words.bytes = words.bytes / words.dims[1] * WORDS;
    words.dims[1] = m->h.vocab = WORDS;
    m->embedding = m->output = &words;
    agrees(m, &whole, lengths, &steps);
    model_close(m);
    gguf_close(g);
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
    same_bits(&(struct tiny_plan){ "llama", 1, 128, 2, 1, 128, 64, 64, q4_0, 1, 24 }, KV_FP8, 1);
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

/* --- beside a running step -------------------------------------------------------------------- */

enum { AHEAD_LAYERS = 3, AHEAD = 40 };

struct ahead {
    struct world *w;
    _Atomic uint32_t layers_done;
    uint8_t *wire;
    bool began;
};

/* The first layer is done: the last one's KV is asked for, which the step will still write. */
static void read_ahead(void *ctx)
{
    struct ahead *a = ctx;
    if (a->began) return;
    a->began = true;
    assert_int_equal(a->layers_done, 1);
    backend_cuda.kv_read(a->w->self, a->w->blocks[0], AHEAD_LAYERS - 1, 1, 0, AHEAD, a->wire);
}

static void test_read_ahead(void **state)
{
    (void)state;
    struct tiny tiny;
    struct world w;
    const uint32_t lengths[WORLD_SEQS] = { AHEAD, 1, 1 };
    tiny_open(&tiny, &(struct tiny_plan){ "llama", AHEAD_LAYERS, 64, 1, 1, 64, 64, 64, q8_0, 1,
                                          61 });
    struct backend_config c = world_config(tiny.m, KV_F16, false);
    world_open(&w, &backend_cuda, &c, lengths);
    world_start(&w, 3);
    uint64_t bytes = AHEAD * w.shape.token_bytes;
    struct ahead a = { .w = &w, .wire = mem_alloc(2 * bytes) };
    struct step_seq part = { .count = AHEAD, .blocks = w.blocks[0] };
    struct step s = { .ids = w.ids[0], .token_count = AHEAD, .seq_count = 1, .seqs = &part,
                      .layers_done = &a.layers_done, .notify = read_ahead, .notify_ctx = &a };
    assert_int_equal(backend_cuda.step(w.self, &s), OK);
    backend_cuda.kv_read(w.self, w.blocks[0], AHEAD_LAYERS - 1, 1, 0, AHEAD, a.wire + bytes);
    bool same = a.began && !memcmp(a.wire, a.wire + bytes, bytes);
    free(a.wire);
    world_close(&w);
    tiny_close(&tiny);
    assert_true(same);
}

/* --- beside a later step ---------------------------------------------------------------------- */

struct beside {
    struct world *w;
    _Atomic uint32_t layers_done;
    uint8_t *wire;
    bool (*behind)(cudaStream_t, cudaEvent_t);
    bool began, waited;
};

/* The later step has done its first layer; what an earlier one wrote into the last is asked for. */
static void read_beside(void *ctx)
{
    struct beside *b = ctx;
    const struct cuda *u = b->w->self;
    if (b->began) return;
    b->began = true;
    backend_cuda.kv_read(b->w->self, b->w->blocks[0], AHEAD_LAYERS - 1, 1, 0, AHEAD, b->wire);
    b->waited = b->behind(u->copy, u->layer_event[AHEAD_LAYERS - 1]);
}

/* A prompt's first chunk is read while the next one runs, whose first block it shares. */
static void test_read_beside(void **state)
{
    (void)state;
    struct tiny tiny;
    struct world w;
    struct beside b = { .w = &w };
    const uint32_t lengths[WORLD_SEQS] = { 2 * AHEAD, 1, 1 };
    *(void **)&b.behind = dlsym(RTLD_DEFAULT, "cusim_behind");
    if (!b.behind) skip();            /* a real GPU: only the emulator knows what is ordered */
    tiny_open(&tiny, &(struct tiny_plan){ "llama", AHEAD_LAYERS, 64, 1, 1, 64, 64, 64, q8_0, 1,
                                          62 });
    struct backend_config c = world_config(tiny.m, KV_F16, false);
    world_open(&w, &backend_cuda, &c, lengths);
    world_start(&w, 3);
    uint64_t bytes = AHEAD * w.shape.token_bytes;
    b.wire = mem_alloc(2 * bytes);
    struct step_seq part = { .count = AHEAD, .blocks = w.blocks[0] };
    struct step s = { .ids = w.ids[0], .token_count = AHEAD, .seq_count = 1, .seqs = &part,
                      .layers_done = &b.layers_done };
    assert_int_equal(backend_cuda.step(w.self, &s), OK);
    part.first = AHEAD;
    s.ids += AHEAD, s.notify = read_beside, s.notify_ctx = &b;
    assert_int_equal(backend_cuda.step(w.self, &s), OK);
    backend_cuda.kv_read(w.self, w.blocks[0], AHEAD_LAYERS - 1, 1, 0, AHEAD, b.wire + bytes);
    bool same = b.began && !memcmp(b.wire, b.wire + bytes, bytes);
    free(b.wire);
    world_close(&w);
    tiny_close(&tiny);
    assert_true(same);
    assert_false(b.waited);
}

/* --- cuBLAS: windows of rows ------------------------------------------------------------------ */

static void test_cublas_agrees(void **state)
{
    (void)state;
    static const enum tensor_type blocks[] = { TENSOR_Q4_1, TENSOR_Q8_0, TENSOR_F16, TENSOR_Q4_0 };
    static const uint32_t lengths[WORLD_SEQS] = { 560, 300, 3 };
    static const struct trial wide[] = {
        { { "cublas, biases", KV_F16, false, 2e-2, true },
          { "qwen2", 1, 128, 4, 2, 64, 192, 90, blocks, 4, 41 } },
        { { "cublas, norms of heads", KV_F16, false, 2e-2, true },
          { "qwen3", 1, 128, 2, 1, 64, 96, 90, blocks, 3, 42 } },
    };
    for (uint32_t i = 0; i < 2; i++) {
        struct tiny tiny;
        tiny_open(&tiny, &wide[i].plan);
        agrees(tiny.m, &wide[i].terms, lengths, &(struct schedule){ .seed = 2 });
        tiny_close(&tiny);
    }
}

/* Two windows in a step; what the same steps gave before; with steps too short for a window, what
 * there is without cuBLAS. */
static void test_cublas_windows(void **state)
{
    (void)state;
    static const uint32_t lengths[WORLD_SEQS] = { 560, 208, 3 };
    const struct schedule once = { .seed = 1, .chunk_max = 1 << 20, .tail = 1 };
    struct tiny tiny;
    struct world w, own;
    tiny_open(&tiny, &(struct tiny_plan){ "llama", 1, 64, 1, 1, 64, 64, 64, q8_0, 1, 43 });
    struct backend_config c = world_config(tiny.m, KV_F16, false);
    world_open(&own, &backend_cuda, &c, lengths);
    world_run(&own, &once);
    c.cublas = true;
    world_open(&w, &backend_cuda, &c, lengths);
    const struct cuda *u = w.self;
    uint32_t most = 0, bytes = (uint32_t)(tiny.m->h.vocab * sizeof(float));
    float *kept = mem_alloc(560ul * bytes);
    for (uint32_t turn = 0; turn < 2; turn++) {
        uint64_t seed = once.seed;
        world_start(&w, 5 + turn);
        while (world_advance(&w, &once, &seed))
            if (u->plan.blas_rows > most) most = u->plan.blas_rows;
        if (turn == 0) memcpy(kept, w.logits[0], 560ul * bytes);
    }
    bool same = !memcmp(kept, w.logits[0], 560ul * bytes);
    bool wide = memcmp(own.logits[0], w.logits[0], 560ul * bytes) != 0;
    world_run(&w, &(struct schedule){ .seed = 9, .chunk_max = 80 });
    bool narrow = !memcmp(own.logits[0], w.logits[0], 560ul * bytes);
    free(kept);
    world_close(&w);
    world_close(&own);
    tiny_close(&tiny);
    assert_int_equal(most, 559 + 207 + 2);
    assert_true(same && wide && narrow);
    assert_int_equal(blas_rows(255), 0);
    assert_int_equal(blas_rows(256), 256);
    assert_int_equal(blas_rows(767), 512);
    assert_int_equal(blas_rows(8192), 8192);
}

/* --- launches --------------------------------------------------------------------------------- */

__attribute__((weak)) uint64_t cusim_launches(void);

/* OTHERS: embedding, last norm, logits, the best of them. */
enum { LONG = 520, SHORT = 20, LAUNCHES_MOST = 8, OTHERS = 4 };

/* A step: `prompt` tokens of one sequence, and a token behind each of the other two, which hold
 * `held` and SHORT tokens; 0: without that part. */
struct shape {
    const char *name;
    uint32_t prompt, held;
};

/* Launches of one such step without graphs. */
static uint64_t count_step(const struct tiny_plan *plan, const struct shape *shape)
{
    struct tiny tiny;
    struct world w;
    uint32_t lengths[WORLD_SEQS] = { shape->prompt + 1, shape->held + 1, SHORT + 1 };
    tiny_open(&tiny, plan);
    struct backend_config c = world_config(tiny.m, KV_F16, false);
    world_open(&w, &backend_cuda, &c, lengths);
    world_start(&w, 3);
    struct step_seq part = { .count = shape->held, .blocks = w.blocks[1] };
    uint32_t which[3] = { 1, 2, 0 }, count = 0, tokens = 0;
    int32_t ids[WORLD_STEP];
    if (shape->held) {
        world_step(&w, &part, which, 1, w.ids[1], shape->held);
        part = (struct step_seq){ .count = SHORT, .blocks = w.blocks[2] };
        world_step(&w, &part, which + 1, 1, w.ids[2], SHORT);
    }
    struct step_seq parts[3];
    for (uint32_t i = shape->held ? 0 : 2; i < (shape->prompt ? 3 : 2); i++) {
        uint32_t s = which[i], n = s ? 1 : shape->prompt, first = s ? lengths[s] - 1 : 0;
        which[count] = s;
        parts[count++] = (struct step_seq){ .first = first, .count = n, .row = tokens,
                                            .blocks = w.blocks[s] };
        memcpy(ids + tokens, w.ids[s] + first, n * sizeof *ids);
        tokens += n;
    }
    uint64_t before = cusim_launches();
    world_step(&w, parts, which, count, ids, tokens);
    uint64_t launched = cusim_launches() - before;
    world_close(&w);
    tiny_close(&tiny);
    return launched;
}

static void test_launches(void **state)
{
    (void)state;
    static const struct shape shapes[] = {
        { "a short prompt", 40, 0 },         { "a long prompt", LONG, 0 },
        { "decoding", 0, 40 },               { "decoding in splits", 0, LONG },
        { "a prompt and decoding", 40, 40 }, { "a prompt and decoding in splits", 40, LONG },
    };
    static const struct {
        const char *name;
        uint64_t layer;               /* launches of one */
        struct tiny_plan plan;
    } models[] = {
        { "plain", 7, { "llama", 1, 64, 1, 1, 64, 64, 64, q8_0, 1, 51 } },
        { "biases, all types", 7, { "qwen2", 1, 64, 1, 1, 64, 64, 64, mixed, 8, 52 } },
        { "norms of heads, all types", 8, { "qwen3", 1, 64, 1, 1, 64, 64, 64, mixed, 8, 53 } },
        { "heads of 32", 7, { "llama", 1, 32, 1, 1, 32, 32, 64, q4_1, 1, 54 } },
    };
    if (!cusim_launches) skip();      /* only the emulator counts them */
    setenv("RANKSERVE_CUDA_EAGER", "1", 1);
    for (uint32_t m = 0; m < sizeof models / sizeof *models; m++) {
        for (uint32_t s = 0; s < sizeof shapes / sizeof *shapes; s++) {
            uint64_t layer = count_step(&models[m].plan, &shapes[s]) - OTHERS;
            if (layer != models[m].layer || layer > LAUNCHES_MOST)
                fail_msg("%s, %s: %u launches a layer", models[m].name, shapes[s].name,
                         (unsigned)layer);
        }
    }
    unsetenv("RANKSERVE_CUDA_EAGER");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        { "logits are those of the CPU within the bound", test_agrees, NULL, NULL, NULL },
        { "so are those of the default model's first layers", test_first_layers, NULL, NULL, NULL },
        { "neither batch nor chunks change a bit", test_same_bits, NULL, NULL, NULL },
        { "nor with KV in fp8", test_same_bits_fp8, NULL, NULL, NULL },
        { "KV that was moved gives the same bits", test_moved_kv, NULL, NULL, NULL },
        { "a read beside a step waits for its layer", test_read_ahead, NULL, NULL, NULL },
        { "a read of an earlier step's KV waits for no later one", test_read_beside, NULL, NULL,
          NULL },
        { "with cuBLAS logits are within the bound", test_cublas_agrees, NULL, NULL, NULL },
        { "it takes whole windows of prompts' rows", test_cublas_windows, NULL, NULL, NULL },
        { "a layer is at most eight launches", test_launches, NULL, NULL, NULL },
    };
    cmocka_set_test_filter(getenv("TEST"));   /* a pattern; NULL: all */
    return cmocka_run_group_tests_name("cuda backend", tests, NULL, NULL);
}
