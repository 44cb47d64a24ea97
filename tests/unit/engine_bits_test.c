/* tests/unit/engine_bits_test.c - same bits of KV and logits whatever the batch, the chunks, the
 * blocks and the number of threads; and the paths agree with the plain one.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#include "engine/cpu/cpu.h"
#include "tiny_model.h"

/* Under the thread sanitizer, which looks at the threads and not at the values, less of it. */
#if defined(__SANITIZE_THREAD__)
#define BRIEF 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define BRIEF 1
#endif
#endif
#ifndef BRIEF
#define BRIEF 0
#endif

/* Sequences longer than TAIL end in small steps, as decoding does: tiles are then shared out. */
enum { TAIL = BRIEF ? 290 : 560, SEQS = 4, TOKENS_MAX = 700, STEP_MAX = 1200, BLOCKS = 512 };
static const uint32_t lengths[SEQS] = { TAIL + (BRIEF ? 10 : 40), 37, 1, BRIEF ? 9 : 90 };

struct trial {
    enum isa isa;
    bool floats;
    enum kv_type kv_type;
    uint32_t threads, block_tokens;
    bool whole;                       /* each prompt in one step of its own */
    uint64_t seed;
};

struct score {
    struct token_record record;
    struct top_logprob top[TOP_LOGPROBS_MAX];
};

/* All that a run of the four sequences leaves behind. */
struct outcome {
    uint8_t *kv[SEQS];
    uint64_t kv_bytes[SEQS];
    struct score *scores[SEQS];
};

struct run {
    void *self;
    const struct tiny_plan *plan;
    struct kv_shape shape;
    uint32_t blocks[SEQS][TOKENS_MAX / 8 + 1], done[SEQS];
    int32_t ids[SEQS][TOKENS_MAX + 1];
    uint64_t seed;
    struct outcome out;
};

static void open_run(struct run *r, const struct tiny *t, const struct tiny_plan *p,
                     const struct trial *c)
{
    *r = (struct run){ .plan = p, .seed = c->seed };
    struct backend_config config = {
        .model = t->m, .threads = c->threads, .isa = c->isa, .float_activations = c->floats,
        .kv_type = c->kv_type, .block_tokens = c->block_tokens, .step_tokens_max = STEP_MAX,
        .step_seqs_max = SEQS, .seq_tokens_max = TOKENS_MAX,
        .kv_bytes = (uint64_t)BLOCKS * c->block_tokens * p->layers *
                    kv_token_bytes(&t->m->h, KV_F32),
    };
    struct why why = { "" };
    if (backend_cpu.open(&r->self, &config, &r->shape, &why)) fail_msg("%s", why.text);
    assert_true(r->shape.block_count >= BLOCKS);
    uint32_t free_blocks[BLOCKS], left = BLOCKS;
    uint64_t ids = 5;
    for (uint32_t i = 0; i < BLOCKS; i++) free_blocks[i] = i;
    for (uint32_t s = 0; s < SEQS; s++) {
        for (uint32_t i = 0; i <= lengths[s]; i++) {
            r->ids[s][i] = (int32_t)(tiny_random(&ids) % p->vocab);
        }
        for (uint32_t i = 0; i * c->block_tokens < lengths[s]; i++) {
            uint32_t pick = (uint32_t)(tiny_random(&r->seed) % left);
            r->blocks[s][i] = free_blocks[pick];
            free_blocks[pick] = free_blocks[--left];
        }
        r->out.scores[s] = mem_array(lengths[s], sizeof(struct score));
    }
}

static void run_step(struct run *r, const struct step_seq *seqs, const uint32_t *which,
                     uint32_t count, const int32_t *ids, uint32_t tokens)
{
    static uint32_t rows[STEP_MAX];
    struct sample_job *jobs = mem_array(tokens, sizeof *jobs);
    for (uint32_t i = 0; i < tokens; i++) rows[i] = i;
    for (uint32_t i = 0; i < count; i++) {
        for (uint32_t t = 0; t < seqs[i].count; t++) {
            jobs[seqs[i].row + t] = (struct sample_job){
                .logit = seqs[i].row + t, .score_only = true, .score_top_count = TOP_LOGPROBS_MAX,
                .score_id = r->ids[which[i]][seqs[i].first + t + 1],
                .position = seqs[i].first + t + 1 };
        }
    }
    _Atomic uint32_t layers_done = 0;
    struct step s = { .ids = ids, .token_count = tokens, .seq_count = count, .seqs = seqs,
                      .logit_rows = rows, .logit_count = tokens, .layers_done = &layers_done };
    assert_int_equal(backend_cpu.step(r->self, &s), OK);
    assert_int_equal(layers_done, r->shape.layers);
    assert_int_equal(backend_cpu.sample(r->self, jobs, tokens), OK);
    for (uint32_t i = 0; i < count; i++) {
        for (uint32_t t = 0; t < seqs[i].count; t++) {
            struct score *to = &r->out.scores[which[i]][seqs[i].first + t];
            to->record = jobs[seqs[i].row + t].record;
            memcpy(to->top, jobs[seqs[i].row + t].top, sizeof to->top);
        }
    }
    free(jobs);
}

/* A step of random chunks of random sequences; false: all are done. */
static bool random_step(struct run *r, bool whole)
{
    struct step_seq seqs[SEQS];
    uint32_t which[SEQS], count = 0, tokens = 0;
    static int32_t ids[STEP_MAX];
    bool left = false;
    for (uint32_t i = 0, s = (uint32_t)(tiny_random(&r->seed) % SEQS); i < SEQS; i++) {
        s = (s + 1) % SEQS;
        uint32_t rest = lengths[s] - r->done[s];
        left |= rest > 0;
        if (rest == 0 || (whole && count > 0) || tiny_random(&r->seed) % 4 == 0) continue;
        uint64_t limit = tiny_random(&r->seed) % 3 ? 40 : 700;
        if (r->done[s] >= TAIL) limit = 3;
        uint32_t n = whole ? rest : 1 + (uint32_t)(tiny_random(&r->seed) % limit);
        if (n > rest) n = rest;
        if (!whole && r->done[s] < TAIL && r->done[s] + n > TAIL) n = TAIL - r->done[s];
        seqs[count] = (struct step_seq){ .first = r->done[s], .count = n, .row = tokens,
                                         .blocks = r->blocks[s] };
        memcpy(ids + tokens, r->ids[s] + r->done[s], n * sizeof *ids);
        which[count++] = s;
        tokens += n;
        r->done[s] += n;
    }
    if (count) run_step(r, seqs, which, count, ids, tokens);
    return left;
}

static void run_trial(const struct tiny *t, const struct tiny_plan *p, const struct trial *c,
                      struct outcome *out)
{
    struct run r;
    open_run(&r, t, p, c);
    while (random_step(&r, c->whole)) {}
    for (uint32_t s = 0; s < SEQS; s++) {
        r.out.kv_bytes[s] = r.shape.token_bytes * lengths[s] * r.shape.layers;
        r.out.kv[s] = mem_alloc(r.out.kv_bytes[s]);
        backend_cpu.kv_read(r.self, r.blocks[s], 0, r.shape.layers, 0, lengths[s], r.out.kv[s]);
    }
    backend_cpu.close(r.self);
    *out = r.out;
}

static void release(struct outcome *o)
{
    for (uint32_t s = 0; s < SEQS; s++) {
        free(o->kv[s]);
        free(o->scores[s]);
    }
}

static void assert_same_bits(const struct outcome *a, const struct outcome *b)
{
    for (uint32_t s = 0; s < SEQS; s++) {
        assert_int_equal(a->kv_bytes[s], b->kv_bytes[s]);
        assert_memory_equal(a->scores[s], b->scores[s], lengths[s] * sizeof(struct score));
        assert_memory_equal(a->kv[s], b->kv[s], a->kv_bytes[s]);
    }
}

static const enum tensor_type mixed[] = { TENSOR_Q8_0, TENSOR_Q4_1, TENSOR_Q4_0, TENSOR_Q5_0,
                                          TENSOR_F16,  TENSOR_Q5_1, TENSOR_F32,  TENSOR_BF16 };
static const enum tensor_type k_types[] = { TENSOR_Q6_K, TENSOR_Q4_K, TENSOR_Q5_K };
static const struct tiny_plan plans[] = {
    { "llama", 2, 96, 3, 1, 32, 160, 500, mixed, 8, 1 },
    { "qwen2", 2, 160, 4, 1, 80, 96, 333, mixed, 5, 2 },
    { "qwen3", 1, 256, 8, 1, 96, 256, 400, k_types, 3, 3 },
    { "llama", 2, 64, 2, 2, 128, 64, 300, mixed + 1, 1, 4 },
};
enum { PLANS = sizeof plans / sizeof plans[0] };

static void check_isa(enum isa isa)
{
    if (isa > isa_best() || (BRIEF && isa == ISA_PLAIN)) skip();
    for (uint32_t i = 0; i < (BRIEF ? 2 : PLANS); i++) {
        struct tiny t;
        struct outcome expected, got;
        struct trial c = { .isa = isa, .threads = 1, .whole = true, .seed = 9,
                           .block_tokens = 16u << i % 3, .kv_type = KV_F16 + i };
        if (isa == ISA_AVX512_BF16) c.kv_type = KV_F16;    /* the others are AVX-512's */
        tiny_open(&t, &plans[i]);
        run_trial(&t, &plans[i], &c, &expected);
        for (uint32_t trial = 0; trial < (BRIEF || isa == ISA_PLAIN ? 2 : 4); trial++) {
            c.whole = false;
            c.threads = BRIEF ? 3 : 1 + trial % 4;
            c.seed = 100 + trial;
            run_trial(&t, &plans[i], &c, &got);
            assert_same_bits(&expected, &got);
            release(&got);
        }
        release(&expected);
        tiny_close(&t);
    }
}

static void plain_bits_do_not_depend_on_the_batch(void **state)
{
    (void)state;
    check_isa(ISA_PLAIN);
}

static void avx2_bits_do_not_depend_on_the_batch(void **state)
{
    (void)state;
    check_isa(ISA_AVX2);
}

static void avx512_bits_do_not_depend_on_the_batch(void **state)
{
    (void)state;
    check_isa(ISA_AVX512);
}

static void bfloat16_bits_do_not_depend_on_the_batch(void **state)
{
    (void)state;
    check_isa(ISA_AVX512_BF16);
}

/* Mean difference of the scored ids' log-probabilities. */
static double distance(const struct outcome *a, const struct outcome *b)
{
    double sum = 0;
    uint32_t count = 0;
    for (uint32_t s = 0; s < SEQS; s++) {
        for (uint32_t i = 0; i < lengths[s]; i++, count++) {
            sum += fabs((double)a->scores[s][i].record.logprob -
                        (double)b->scores[s][i].record.logprob);
        }
    }
    return sum / count;
}

static void every_path_agrees_with_the_plain_one(void **state)
{
    (void)state;
    if (BRIEF) skip();
    static const enum tensor_type floats[] = { TENSOR_F32, TENSOR_F16, TENSOR_BF16 };
    struct tiny_plan p = { "llama", 2, 96, 3, 1, 32, 160, 500, floats, 3, 7 };
    for (uint32_t block = 8; block <= 256; block *= 2) {
        struct tiny t;
        struct outcome plain, got;
        struct trial c = { .threads = 2, .seed = 3, .block_tokens = block };
        tiny_open(&t, &p);
        run_trial(&t, &p, &c, &plain);
        for (c.isa = ISA_AVX2; c.isa <= isa_best(); c.isa++) {
            run_trial(&t, &p, &c, &got);
            assert_true(distance(&plain, &got) < (c.isa == ISA_AVX512_BF16 ? 0.03 : 1e-3));
            release(&got);
        }
        release(&plain);
        tiny_close(&t);
    }
    for (uint32_t i = 0; i < PLANS; i++) {
        struct tiny t;
        struct outcome plain, got;
        struct trial c = { .threads = 2, .seed = 3, .block_tokens = 32, .floats = true };
        tiny_open(&t, &plans[i]);
        run_trial(&t, &plans[i], &c, &plain);
        for (c.isa = ISA_AVX2, c.floats = false; c.isa <= isa_best(); c.isa++) {
            run_trial(&t, &plans[i], &c, &got);
            assert_true(distance(&plain, &got) < 0.05);
            release(&got);
        }
        release(&plain);
        tiny_close(&t);
    }
}

/* Moves positions 13 .. 112 out of the pool and back, `step` at a time. */
static void move_in_pieces(struct run *r, uint32_t step, uint8_t *bytes)
{
    uint64_t token = r->shape.token_bytes * r->shape.layers;
    for (uint32_t turn = 0; turn < 3; turn++) {
        if (turn == 1) {
            uint8_t *zeros = mem_alloc(100 * token);
            backend_cpu.kv_write(r->self, r->blocks[0], 0, r->shape.layers, 13, 100, zeros);
            free(zeros);
            continue;
        }
        for (uint32_t at = 13, n; at < 113; at += n) {
            n = 113 - at < step ? 113 - at : step;
            uint8_t *piece = bytes + (at - 13) * token;
            if (turn == 0)
                backend_cpu.kv_read(r->self, r->blocks[0], 0, r->shape.layers, at, n, piece);
            else
                backend_cpu.kv_write(r->self, r->blocks[0], 0, r->shape.layers, at, n, piece);
        }
    }
}

static bool is_resident(const struct cpu *u)
{
    uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE), pages = (u->kv_bytes + page - 1) / page;
    unsigned char *in = mem_alloc(pages);
    assert_int_equal(mincore(u->kv, u->kv_bytes, in), 0);
    uint64_t here = 0;
    for (uint64_t i = 0; i < pages; i++) here += in[i] & 1;
    free(in);
    return here == pages;
}

/* Side by side: the next prompt needs some of every layer. */
static void check_layers_even(const struct cpu *u)
{
    uint64_t layer = u->kv_bytes / u->shape.layers, least = layer, most = 0;
    for (uint32_t i = 0; i < u->shape.layers; i++) {
        uint64_t ready = u->kv_touched[i] - i * layer;
        if (ready < least) least = ready;
        if (ready > most) most = ready;
    }
    assert_true(most - least <= HUGE_PAGE);
}

static void touching_memory_keeps_what_is_in_it(void **state)
{
    (void)state;
    struct tiny t;
    struct run r;
    struct trial c = { .threads = 1, .block_tokens = 256, .seed = 8, .kv_type = KV_F32 };
    tiny_open(&t, &plans[1]);
    open_run(&r, &t, &plans[1], &c);
    uint64_t layer = 256 * r.shape.token_bytes, bytes = layer * r.shape.layers, seed = 4;
    uint64_t pages = r.shape.block_count * bytes / 4096;
    uint8_t *in = mem_alloc(bytes), *out = mem_alloc(bytes);
    for (uint64_t k = 0; k < bytes; k++) in[k] = (uint8_t)tiny_random(&seed);
    backend_cpu.kv_write(r.self, &(uint32_t){ BLOCKS - 1 }, 0, r.shape.layers, 0, 256, in);
    uint32_t half = 0, all = 0;
    while (backend_cpu.kv_touch(r.self, BLOCKS / 2)) {
        check_layers_even(r.self);
        assert_true(++half <= pages);
    }
    while (backend_cpu.kv_touch(r.self, BLOCKS)) assert_true(++all <= pages);
    assert_false(backend_cpu.kv_touch(r.self, 1));
    backend_cpu.kv_read(r.self, &(uint32_t){ BLOCKS - 1 }, 0, r.shape.layers, 0, 256, out);
    assert_memory_equal(in, out, bytes);
    if (all) assert_true(is_resident(r.self));    /* else the kernel does not do it */
    free(in);
    free(out);
    for (uint32_t s = 0; s < SEQS; s++) free(r.out.scores[s]);
    backend_cpu.close(r.self);
    tiny_close(&t);
}

static void kv_that_is_written_is_read_back(void **state)
{
    (void)state;
    static const enum tensor_type floats[] = { TENSOR_F32 };
    static const struct tiny_plan odd = { "llama", 2, 60, 2, 2, 30, 44, 100, floats, 1, 6 };
    for (uint32_t i = 0; i < 8; i++) {
        const struct tiny_plan *p = i < 4 ? &plans[1] : &odd;
        struct tiny t;
        struct run r;
        struct trial c = { .threads = 1, .block_tokens = 8u << i % 4, .seed = 8,
                           .kv_type = KV_F16 + i % 4 };
        tiny_open(&t, p);
        open_run(&r, &t, p, &c);
        uint64_t bytes = r.shape.token_bytes * 100 * r.shape.layers, seed = 4;
        uint8_t *in = mem_alloc(bytes), *out = mem_alloc(bytes), *pieces = mem_alloc(bytes);
        for (uint64_t k = 0; k < bytes; k++) in[k] = (uint8_t)tiny_random(&seed);
        backend_cpu.kv_write(r.self, r.blocks[0], 0, r.shape.layers, 13, 100, in);
        static const uint32_t steps[] = { 100, 1, 16, 19, 64 };
        for (uint32_t k = 0; k < sizeof steps / sizeof *steps; k++) {
            move_in_pieces(&r, steps[k], pieces);
            backend_cpu.kv_read(r.self, r.blocks[0], 0, r.shape.layers, 13, 100, out);
            assert_memory_equal(in, out, bytes);
        }
        free(in);
        free(out);
        free(pieces);
        for (uint32_t s = 0; s < SEQS; s++) free(r.out.scores[s]);
        backend_cpu.close(r.self);
        tiny_close(&t);
    }
}

static void packed_weights_are_checked_and_shared(void **state)
{
    (void)state;
    struct tiny t[2];
    struct tiny_plan other = plans[0];
    other.seed = 77;
    tiny_open(&t[0], &plans[0]);
    tiny_open(&t[1], &other);
    enum isa isa = isa_best();
    uint64_t bytes = backend_cpu.packed_bytes(t[0].m, isa);
    uint8_t *image = aligned_alloc(64, (bytes + 63) / 64 * 64);
    for (uint32_t part = 0; part < 3; part++) backend_cpu.pack(t[0].m, isa, image, part, 3);
    struct backend_config c = { .model = t[0].m, .packed = image, .threads = 1, .isa = isa,
                                .block_tokens = 16, .kv_bytes = 1 << 20, .step_tokens_max = 8,
                                .step_seqs_max = 1, .seq_tokens_max = 64 };
    struct kv_shape shape;
    struct why why;
    void *self;
    assert_int_equal(backend_cpu.open(&self, &c, &shape, &why), OK);
    backend_cpu.close(self);
    c.model = t[1].m;
    assert_int_equal(backend_cpu.open(&self, &c, &shape, &why), ERR_FORMAT);
    assert_non_null(strstr(why.text, "another model"));
    if (isa >= ISA_AVX512) {
        c.model = t[0].m;
        assert_true(backend_cpu.packed_bytes(t[0].m, ISA_AVX2) <= bytes);
        backend_cpu.pack(t[0].m, ISA_AVX2, image, 0, 1);
        assert_int_equal(backend_cpu.open(&self, &c, &shape, &why), ERR_FORMAT);
        assert_non_null(strstr(why.text, "another instruction set"));
    }
    c.packed = NULL;
    c.kv_bytes = 100;
    assert_int_equal(backend_cpu.open(&self, &c, &shape, &why), ERR_LIMIT);
    free(image);
    tiny_close(&t[0]);
    tiny_close(&t[1]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(plain_bits_do_not_depend_on_the_batch),
        cmocka_unit_test(avx2_bits_do_not_depend_on_the_batch),
        cmocka_unit_test(avx512_bits_do_not_depend_on_the_batch),
        cmocka_unit_test(bfloat16_bits_do_not_depend_on_the_batch),
        cmocka_unit_test(every_path_agrees_with_the_plain_one),
        cmocka_unit_test(touching_memory_keeps_what_is_in_it),
        cmocka_unit_test(kv_that_is_written_is_read_back),
        cmocka_unit_test(packed_weights_are_checked_and_shared),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
