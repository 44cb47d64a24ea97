/* perf/engine_bench.c - the CPU backend alone: prefill, decode in batches and at depth.
 *
 *   engine_bench MODEL.gguf [THREADS] [OUT.json]
 *
 *   DEPTHS=1 engine_bench ...   decode at depth alone; DEPTHS=int8: with KV of that type alone
 *   ONLY=decode_32 ...          one figure alone, again and again (for A/B, and for perf record)
 *   ONLY=share ...              one stream beside reading as many bytes
 *   KV=fp8 ...                  another type of KV (f32, int8, fp8) than f16; no depths
 *
 * First the answers are compared: a prompt in one piece, alone, must give the same KV and the same
 * token as in chunks beside other sequences.  Then the times: best of several; `cpu` is from the
 * process's CPU time (as if its threads had cores of their own), which holds where other processes
 * take part of the machine.  The instruction set is the best, or RANKSERVE_ISA.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/clock.h"
#include "common/mem.h"
#include "engine/backend.h"
#include "engine/cpu/cpu.h"
#include "figures.h"
#include "peak.h"

enum { BLOCK = 16, STEP = 2048, SEQS = 32, TOKENS = 4608, PROMPT = 300, ROUNDS = 3 };
enum { DEEP = 8192, DEEP_TOKENS = DEEP + 64, DEPTH_ROUNDS = 6, DEPTH_STEPS = 12 };
enum { PAIRS = 60, PAIR_STEPS = 8, PAIR_DEPTH = 64, READ_ITEM = 1 << 20 };
static const uint32_t depths[] = { 0, 1024, 4096, DEEP };
enum { DEPTHS = sizeof depths / sizeof *depths };

struct bench {
    void *self;
    const struct model *model;
    struct kv_shape shape;
    uint32_t threads;
    int32_t ids[STEP];
    uint32_t blocks[SEQS][TOKENS / BLOCK];
    struct figures out;
    struct backend_config config;
};

/* One step, and a greedy token of the last row of each sequence, with its log-probability if it is
 * wanted in `tokens`. */
static void run_step(struct bench *b, const struct step_seq *seqs, uint32_t count,
                     const int32_t *ids, struct token_record *tokens)
{
    uint32_t rows[SEQS];
    struct sampling params = { .max_tokens = 1, .top_p = 1, .repetition_penalty = 1,
                               .flags = tokens ? SAMPLING_LOGPROBS : 0 };
    struct sample_job *jobs = mem_array(count, sizeof *jobs);
    for (uint32_t i = 0; i < count; i++) {
        rows[i] = seqs[i].row + seqs[i].count - 1;
        jobs[i] = (struct sample_job){ .logit = i, .params = &params, .history = ids,
                                       .prompt_count = 1, .history_count = 1 };
    }
    const struct step_seq *last = &seqs[count - 1];
    struct step s = { .ids = ids, .token_count = last->row + last->count, .seq_count = count,
                      .seqs = seqs, .logit_rows = rows, .logit_count = count };
    if (backend_cpu.step(b->self, &s) != OK) die("a step failed");
    if (backend_cpu.sample(b->self, jobs, count) != OK) die("sampling failed");
    for (uint32_t i = 0; tokens && i < count; i++) tokens[i] = jobs[i].record;
    free(jobs);
}

/* `seqs` sequences with `count` tokens each at `depth`, and behind them one with the last `prompt`
 * tokens of a prompt of twice as many. */
struct load {
    uint32_t seqs, depth, count, prompt;
};

static void load_step(struct bench *b, const struct load *l)
{
    struct step_seq seq[SEQS];
    uint32_t n = l->seqs;
    for (uint32_t i = 0; i < n; i++) {
        seq[i] = (struct step_seq){ l->depth, l->count, i * l->count, b->blocks[i] };
    }
    if (l->prompt) seq[n] = (struct step_seq){ l->prompt, l->prompt, n * l->count, b->blocks[n] };
    run_step(b, seq, n + (l->prompt > 0), b->ids, NULL);
}

/* --- the answers ----------------------------------------------------------------------------- */

static uint8_t *kv_of(struct bench *b, uint32_t seq, uint32_t tokens)
{
    uint8_t *kv = mem_array(b->shape.layers * b->shape.token_bytes, tokens);
    backend_cpu.kv_read(b->self, b->blocks[seq], 0, b->shape.layers, 0, tokens, kv);
    return kv;
}

static void compare(struct bench *b, const char *what, uint32_t tokens,
                    const struct token_record *x, const struct token_record *y)
{
    uint8_t *kv0 = kv_of(b, 0, tokens), *kv1 = kv_of(b, 1, tokens);
    bool same_kv = memcmp(kv0, kv1, b->shape.layers * b->shape.token_bytes * tokens) == 0;
    bool same = x->id == y->id && memcmp(&x->logprob, &y->logprob, sizeof x->logprob) == 0;
    free(kv0);
    free(kv1);
    if (!same_kv || !same) die("wrong answer: %s differs in %s", what, same ? "KV" : "the token");
}

/* Sequence 1 gets the prompt of sequence 0 in chunks, each beside a sequence of other tokens. */
static struct token_record in_chunks(struct bench *b)
{
    static const uint32_t chunks[] = { 100, 1, 136, 63 };
    struct token_record tokens[2];
    int32_t ids[PROMPT + 50];
    uint32_t done = 0;
    for (int i = 0; i < 4; i++) {
        for (uint32_t j = 0; j < 50; j++) ids[j] = (int32_t)(1000 + j);
        memcpy(ids + 50, b->ids + done, chunks[i] * sizeof *ids);
        struct step_seq seqs[] = { { (uint32_t)i * 50, 50, 0, b->blocks[2] },
                                   { done, chunks[i], 50, b->blocks[1] } };
        run_step(b, seqs, 2, ids, tokens);
        done += chunks[i];
    }
    CHECK(done == PROMPT);
    return tokens[1];
}

static void verify(struct bench *b)
{
    struct token_record whole, chunked, batch[SEQS];
    struct step_seq one = { 0, PROMPT, 0, b->blocks[0] };
    run_step(b, &one, 1, b->ids, &whole);
    chunked = in_chunks(b);
    compare(b, "a prompt in chunks", PROMPT, &whole, &chunked);

    struct step_seq seqs[SEQS];
    int32_t ids[SEQS];
    for (uint32_t i = 0; i < SEQS - 2; i++) {
        seqs[i] = (struct step_seq){ i, 1, i, b->blocks[i + 2] };
        ids[i] = (int32_t)(500 + i);
    }
    seqs[SEQS - 2] = (struct step_seq){ PROMPT, 1, SEQS - 2, b->blocks[1] };
    ids[SEQS - 2] = whole.id;
    run_step(b, seqs, SEQS - 1, ids, batch);
    one = (struct step_seq){ PROMPT, 1, 0, b->blocks[0] };
    int32_t first = whole.id;
    run_step(b, &one, 1, &first, &whole);
    compare(b, "a token among 31 streams", PROMPT + 1, &whole, &batch[SEQS - 2]);
    printf("answers agree: one piece and chunks, alone and in a batch\n");
}

/* --- the times ------------------------------------------------------------------------------- */

static void measure(struct bench *b, const char *name, struct load l, uint32_t times)
{
    const char *only = getenv("ONLY");
    if (only && strcmp(only, name) != 0) return;
    double best = 1e9, best_cpu = 1e9, tokens = (double)(l.seqs * l.count + l.prompt) * times;
    for (uint32_t i = 0; i < (only ? 4 * ROUNDS : ROUNDS); i++) {
        struct load at = l;
        uint64_t wall = clock_now_ns();
        double cpu = cpu_seconds(CLOCK_PROCESS_CPUTIME_ID);
        for (uint32_t t = 0; t < times; t++) {
            load_step(b, &at);
            if (l.count == 1 && !l.prompt) at.depth++;
        }
        double took = (double)(clock_now_ns() - wall) / 1e9;
        cpu = (cpu_seconds(CLOCK_PROCESS_CPUTIME_ID) - cpu) / b->threads;
        best = took < best ? took : best;
        best_cpu = cpu < best_cpu ? cpu : best_cpu;
    }
    char cpu_name[64];
    snprintf(cpu_name, sizeof cpu_name, "%s_cpu", name);
    figure(&b->out, name, tokens / best);
    figure(&b->out, cpu_name, tokens / best_cpu);
    printf("%-20s %8.0f tok/s  %8.0f cpu\n", name, tokens / best, tokens / best_cpu);
    fflush(stdout);
}

/* --- what part of reading's speed decoding reaches ------------------------------------------- */

struct reading {
    struct pool *pool;
    const uint8_t *memory;
    uint64_t bytes;
    uint64_t (*read)(const void *at, uint64_t bytes);
};

static void read_item(void *ctx, uint32_t item, uint32_t worker)
{
    (void)worker;
    const struct reading *r = ctx;
    uint64_t from = (uint64_t)item * READ_ITEM, left = r->bytes - from;
    r->read(r->memory + from, left < READ_ITEM ? left : READ_ITEM);
}

/* All threads read all of it, `times` times: GB/s. */
static double read_rate(struct reading *r, uint64_t (*read)(const void *, uint64_t), int times)
{
    uint64_t began = clock_now_ns();
    r->read = read;
    for (int i = 0; i < times; i++) {
        pool_run(r->pool, read_item, r, (uint32_t)((r->bytes + READ_ITEM - 1) / READ_ITEM));
    }
    return (double)r->bytes * times / (double)(clock_now_ns() - began);
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void put_values(struct bench *b, const char *name, double *of, const char *unit)
{
    char least[64], most[64];
    qsort(of, PAIRS, sizeof *of, by_value);
    snprintf(least, sizeof least, "%s_min", name);
    snprintf(most, sizeof most, "%s_max", name);
    figure(&b->out, name, of[PAIRS / 2]);
    figure(&b->out, least, of[0]);
    figure(&b->out, most, of[PAIRS - 1]);
    printf("%-20s %8.3g %s (%.3g .. %.3g)\n", name, of[PAIRS / 2], unit, of[0], of[PAIRS - 1]);
}

/* The memory's speed changes from second to second, so slices of decoding and of reading as many
 * bytes from the same kind of pages take turns.  Reading is done in two ways, half of the bytes
 * each, and the faster one counts. */
static void measure_share(struct bench *b)
{
    const char *only = getenv("ONLY");
    if ((only && strcmp(only, "share") != 0) || b->config.isa == ISA_PLAIN) return;
    double decode[PAIRS], read[PAIRS], share[PAIRS];
    uint64_t weights = backend_cpu.packed_bytes(b->model, b->config.isa);
    uint64_t kv = (uint64_t)b->shape.layers * b->shape.token_bytes * PAIR_DEPTH;
    uint64_t bytes = (weights + kv) / 4096 * 4096, room = bytes + 4096 * 4;
    uint8_t *memory = pages_take(room);
    memset(memory, 1, room);
    struct reading r = { .pool = pool_open(b->threads, 0), .memory = memory, .bytes = bytes };
    for (int i = 0; i < PAIRS; i++) {
        uint64_t began = clock_now_ns();
        for (uint32_t t = 0; t < PAIR_STEPS; t++) {
            load_step(b, &(struct load){ 1, PAIR_DEPTH + t, 1, 0 });
        }
        decode[i] = (double)bytes * PAIR_STEPS / (double)(clock_now_ns() - began);
        double plain = read_rate(&r, peak_read_avx2, PAIR_STEPS / 2);
        double ahead = read_rate(&r, peak_read_ahead_avx2, PAIR_STEPS / 2);
        read[i] = plain > ahead ? plain : ahead;
        share[i] = decode[i] / read[i];
    }
    put_values(b, "decoding_share", share, "of reading");
    put_values(b, "decoding_gb_s", decode, "GB/s");
    put_values(b, "reading_gb_s", read, "GB/s");
    pool_close(r.pool);
    pages_give(memory, room);
}

/* --- at depth -------------------------------------------------------------------------------- */

/* Real KV up to DEEP: that of a prompt, again and again.  (Pages that nobody wrote are all one page
 * of zeros, which a cache holds.) */
static void deepen(struct bench *b, const uint32_t *blocks)
{
    struct step_seq seq = { 0, 512, 0, blocks };
    uint8_t *kv = mem_array(b->shape.layers * b->shape.token_bytes, 512);
    run_step(b, &seq, 1, b->ids, NULL);
    backend_cpu.kv_read(b->self, blocks, 0, b->shape.layers, 0, 512, kv);
    for (uint32_t at = 512; at < DEEP; at += 512) {
        backend_cpu.kv_write(b->self, blocks, 0, b->shape.layers, at, 512, kv);
    }
    free(kv);
}

/* One stream at each depth, in turns, so that what else the machine does meets all of them. */
static void measure_depths(struct bench *b, const char *type)
{
    uint32_t blocks[DEEP_TOKENS / BLOCK];
    double best[DEPTHS], best_cpu[DEPTHS];
    for (uint32_t i = 0; i < DEEP_TOKENS / BLOCK; i++) blocks[i] = i;
    if (b->shape.block_count < DEEP_TOKENS / BLOCK) die("the pool is too small for depth");
    deepen(b, blocks);
    for (int i = 0; i < DEPTHS; i++) best[i] = best_cpu[i] = 1e9;
    for (int round = 0; round < DEPTH_ROUNDS * DEPTHS; round++) {
        int i = round % DEPTHS;
        uint64_t wall = clock_now_ns();
        double cpu = cpu_seconds(CLOCK_PROCESS_CPUTIME_ID);
        for (uint32_t t = 0; t < DEPTH_STEPS; t++) {
            struct step_seq seq = { depths[i] + t, 1, 0, blocks };
            run_step(b, &seq, 1, b->ids, NULL);
        }
        double took = (double)(clock_now_ns() - wall) / 1e9 / DEPTH_STEPS;
        cpu = (cpu_seconds(CLOCK_PROCESS_CPUTIME_ID) - cpu) / b->threads / DEPTH_STEPS;
        best[i] = took < best[i] ? took : best[i];
        best_cpu[i] = cpu < best_cpu[i] ? cpu : best_cpu[i];
    }
    for (int i = 0; i < DEPTHS; i++) {
        char name[64], cpu_name[72];
        snprintf(name, sizeof name, "decode_1_d%u%s%s", depths[i], type ? "_" : "",
                 type ? type : "");
        snprintf(cpu_name, sizeof cpu_name, "%s_cpu", name);
        figure(&b->out, name, 1 / best[i]);
        figure(&b->out, cpu_name, 1 / best_cpu[i]);
        printf("%-20s %8.0f tok/s  %8.0f cpu    time of depth 0 x %.2f, cpu x %.2f\n", name,
               1 / best[i], 1 / best_cpu[i], best[i] / best[0], best_cpu[i] / best_cpu[0]);
    }
    fflush(stdout);
}

static double weights_of(const struct gguf_tensor *t)
{
    return t ? (double)t->dims[0] * (double)t->dims[1] : 0;
}

/* What the work costs at least, for shares of the machine's peaks. */
static void add_costs(struct bench *b, enum isa isa)
{
    const struct hparams *h = &b->model->h;
    double weights = 0;
    for (uint32_t i = 0; i < h->layers; i++) {
        const struct layer_weights *w = &b->model->layers[i];
        weights += weights_of(w->q) + weights_of(w->k) + weights_of(w->v) + weights_of(w->o) +
                   weights_of(w->gate) + weights_of(w->up) + weights_of(w->down);
    }
    figure(&b->out, "layer_ops", 2 * weights);
    figure(&b->out, "head_ops", 2 * weights_of(b->model->output));
    figure(&b->out, "attention_ops", 4.0 * h->heads * h->head_dim * h->layers);
    figure(&b->out, "weight_bytes", (double)backend_cpu.packed_bytes(b->model, isa));
    figure(&b->out, "kv_bytes_f16", (double)kv_token_bytes(h, KV_F16) * h->layers);
    figure(&b->out, "kv_bytes_f32", (double)kv_token_bytes(h, KV_F32) * h->layers);
    figure(&b->out, "kv_bytes_int8", (double)kv_token_bytes(h, KV_INT8) * h->layers);
    figure(&b->out, "kv_bytes_fp8", (double)kv_token_bytes(h, KV_FP8) * h->layers);
}

static enum kv_type kv_type(void)
{
    static const char *const names[] = { [KV_F16] = "f16", "f32", "int8", "fp8" };
    const char *name = getenv("KV");
    for (int i = 0; name && i < 4; i++) {
        if (strcmp(name, names[i]) == 0) return (enum kv_type)i;
    }
    if (name) die("KV=%s: one of f16, f32, int8, fp8", name);
    return KV_F16;
}

static void open_backend(struct bench *b)
{
    struct why why;
    b->config = (struct backend_config){
        .model = b->model, .threads = b->threads, .isa = isa_best(), .block_tokens = BLOCK,
        .kv_bytes = UINT64_C(3) << 30, .step_tokens_max = STEP, .step_seqs_max = SEQS,
        .seq_tokens_max = DEEP_TOKENS, .kv_type = kv_type() };
    const struct backend_config c = b->config;
    uint64_t before = clock_now_ns();
    if (backend_cpu.open(&b->self, &c, &b->shape, &why)) die("%s", why.text);
    double took = (double)(clock_now_ns() - before) / 1e9;
    printf("%s, %u threads, open %.2f s\n", isa_name(c.isa), b->threads, took);
    figure(&b->out, "threads", b->threads);
    figure(&b->out, "isa", c.isa);
    figure(&b->out, "open_s", took);
    add_costs(b, c.isa);
}

static void each_kv_type(struct bench *b)
{
    static const char *const types[] = { "f16", "f32", "int8", "fp8" };
    const char *wanted = getenv("DEPTHS");
    struct why why;
    for (enum kv_type type = KV_F16; type <= KV_FP8; type++) {
        if (wanted && strcmp(wanted, "1") != 0 && strcmp(wanted, types[type]) != 0) continue;
        backend_cpu.close(b->self);
        b->config.kv_type = type;
        if (backend_cpu.open(&b->self, &b->config, &b->shape, &why)) die("%s", why.text);
        measure_depths(b, type == KV_F16 ? NULL : types[type]);
    }
}

static void lay_out(struct bench *b)
{
    int32_t vocab = (int32_t)b->model->h.vocab;
    for (uint32_t i = 0; i < STEP; i++) b->ids[i] = (int32_t)(i * 37 % 20000) % vocab;
    uint32_t per_seq = b->shape.block_count / SEQS;
    if (per_seq < PROMPT / BLOCK + 1) die("the pool is too small for this model");
    if (per_seq > TOKENS / BLOCK) per_seq = TOKENS / BLOCK;
    for (uint32_t s = 0; s < SEQS; s++) {
        for (uint32_t i = 0; i < TOKENS / BLOCK; i++) b->blocks[s][i] = s * per_seq + i % per_seq;
    }
}

int main(int argc, char **argv)
{
    struct why why = { "" };
    struct gguf *g;
    struct model *m;
    if (argc < 2) die("usage: engine_bench MODEL.gguf [threads] [out.json]");
    if (gguf_open(&g, argv[1], &why) || model_open(&m, g, &why)) die("%s", why.text);
    struct bench *b = mem_alloc(sizeof *b);
    b->model = m;
    b->threads = argc > 2 ? (uint32_t)strtoul(argv[2], NULL, 10) : 2;
    if (b->threads < 1 || b->threads > THREAD_COUNT_MAX) die("threads: 1 to %d", THREAD_COUNT_MAX);
    b->out = figures_open(argc > 3 ? argv[3] : NULL);
    open_backend(b);
    lay_out(b);
    if (!getenv("DEPTHS")) {
        if (!getenv("ONLY")) verify(b);
        measure(b, "prefill_512", (struct load){ 1, 0, 512, 0 }, 2);
        measure(b, "prefill_2048", (struct load){ 1, 0, 2048, 0 }, 1);
        measure(b, "decode_1", (struct load){ 1, 64, 1, 0 }, 40);
        measure_share(b);
        measure(b, "decode_8", (struct load){ 8, 256, 1, 0 }, 10);
        /* As llama-batched-bench: 64 .. 95. */
        measure(b, "decode_32", (struct load){ 32, 64, 1, 0 }, 4);
        /* As a step of a service with 32 clients, 200 + 64 tokens. */
        measure(b, "mixed_32", (struct load){ 31, 232, 1, 100 }, 4);
    }
    if (!getenv("ONLY") && !getenv("KV")) each_kv_type(b);
    figures_close(&b->out);
    backend_cpu.close(b->self);
    model_close(m);
    gguf_close(g);
    free(b);
    return 0;
}
