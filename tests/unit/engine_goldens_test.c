/* tests/unit/engine_goldens_test.c - the CPU backend against log-probabilities of an fp32 oracle.
 *
 * Needs RANKSERVE_TEST_MODEL (the default model) and the goldens made for it.  The float path is
 * plain C and slow: it takes the beginning of a long text, and all of it in the long suite (with
 * sanitizers, which would need half an hour, the beginning).
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>

#include <cmocka.h>
#include <jansson.h>

#include "common/clock.h"
#include "common/mem.h"
#include "engine/backend.h"

enum { BLOCK = 16, CHUNK = 512, POSITIONS_MAX = 8192, FLOAT_POSITIONS = CHUNK + 50 };

struct figures {
    uint32_t positions, clear, clear_agreed;   /* clear: the oracle's top two are > 0.05 apart */
    double difference;                         /* sum of |delta log-probability|               */
    double prefill_s;
    double logprobs[POSITIONS_MAX];
};

static double number_at(const json_t *top, size_t position, size_t rank)
{
    const json_t *entry = json_array_get(json_array_get(top, position), rank);
    return json_number_value(json_array_get(entry, 1));
}

static int32_t id_at(const json_t *top, size_t position)
{
    const json_t *entry = json_array_get(json_array_get(top, position), 0);
    return (int32_t)json_integer_value(json_array_get(entry, 0));
}

static void judge(const json_t *golden, uint32_t position, const struct sample_job *job,
                  struct figures *f)
{
    const json_t *top = json_object_get(golden, "top");
    if (number_at(top, position, 0) - number_at(top, position, 1) > 0.05) {
        f->clear++;
        f->clear_agreed += job->top[0].id == id_at(top, position);
    }
    const json_t *actual = json_array_get(json_object_get(golden, "actual"), position + 1);
    if (!json_is_number(actual)) return;
    f->logprobs[f->positions++] = (double)job->record.logprob;
    f->difference += fabs((double)job->record.logprob - json_number_value(actual));
}

static void run_golden(void *self, const json_t *golden, uint32_t most, struct figures *f)
{
    const json_t *list = json_object_get(golden, "ids");
    uint32_t count = (uint32_t)json_array_size(list);
    int32_t *ids = mem_array(count + 1, sizeof *ids);
    for (uint32_t i = 0; i < count; i++)
        ids[i] = (int32_t)json_integer_value(json_array_get(list, i));
    if (count > most) count = most;
    uint32_t blocks[8192 / BLOCK], rows[CHUNK];
    for (uint32_t i = 0; i < 8192 / BLOCK; i++) blocks[i] = (i * 7 + 3) % (8192 / BLOCK);
    struct sample_job *jobs = mem_array(CHUNK, sizeof *jobs);
    for (uint32_t first = 0, n; first < count; first += n) {
        n = count - first < CHUNK ? count - first : CHUNK;
        for (uint32_t i = 0; i < n; i++) {
            rows[i] = i;
            jobs[i] = (struct sample_job){ .logit = i, .score_only = true,
                                           .score_id = ids[first + i + 1],
                                           .position = first + i + 1, .score_top_count = 1 };
        }
        struct step_seq seq = { .first = first, .count = n, .blocks = blocks };
        struct step s = { .ids = ids + first, .token_count = n, .seq_count = 1, .seqs = &seq,
                          .logit_rows = rows, .logit_count = n };
        uint64_t before = clock_now_ns();
        assert_int_equal(backend_cpu.step(self, &s), OK);
        f->prefill_s += (double)(clock_now_ns() - before) / 1e9;
        assert_int_equal(backend_cpu.sample(self, jobs, n), OK);
        for (uint32_t i = 0; i < n; i++) judge(golden, first + i, &jobs[i], f);
    }
    free(jobs);
    free(ids);
}

struct run {
    enum isa isa;
    bool floats;
    enum kv_type kv_type;
};

static bool whole_texts(void)
{
#ifdef __SANITIZE_ADDRESS__
    return false;
#else
    return getenv("RANKSERVE_TEST_LONG") != NULL;
#endif
}

/* All six texts.  False: not on this machine, or no model. */
static bool run_all(const struct run *r, struct figures *f)
{
    const char *path = getenv("RANKSERVE_TEST_MODEL"), *goldens = getenv("RANKSERVE_TEST_GOLDENS");
    if (!path || r->isa > isa_best()) return false;
    json_t *all = json_load_file(goldens ? goldens : "tests/data/goldens.json", 0, NULL);
    assert_non_null(all);
    struct why why = { "" };
    struct gguf *g;
    struct model *m = NULL;
    if (gguf_open(&g, path, &why) || model_open(&m, g, &why)) fail_msg("%s", why.text);
    struct backend_config c = { .model = m, .threads = 2, .isa = r->isa,
                                .float_activations = r->floats, .kv_type = r->kv_type,
                                .block_tokens = BLOCK, .kv_bytes = 512 << 20,
                                .step_tokens_max = CHUNK, .step_seqs_max = 8,
                                .seq_tokens_max = 8192 };
    struct kv_shape shape;
    void *self;
    if (backend_cpu.open(&self, &c, &shape, &why)) fail_msg("%s", why.text);
    *f = (struct figures){ 0 };
    size_t i;
    json_t *golden;
    uint32_t most = r->floats && !whole_texts() ? FLOAT_POSITIONS : POSITIONS_MAX;
    json_array_foreach(all, i, golden) run_golden(self, golden, most, f);
    backend_cpu.close(self);
    model_close(m);
    gguf_close(g);
    json_decref(all);
    return true;
}

/* The same for F16, which others are compared with: once for each instruction set. */
static const struct figures *run_f16(enum isa isa)
{
    static struct figures f[ISA_COUNT];
    bool ran = f[isa].positions > 0 || run_all(&(struct run){ isa, false, KV_F16 }, &f[isa]);
    return ran ? &f[isa] : NULL;
}

static double mean(const struct figures *f)
{
    return f->difference / f->positions;
}

static double agreed(const struct figures *f)
{
    return (double)f->clear_agreed / f->clear;
}

static void check(const char *name, const struct figures *f, double agreement, double difference)
{
    if (!f) skip();
    print_message("%s: top-1 %.2f %% of %u clear, mean |delta| %.5f over %u, %.0f tok/s\n", name,
                  100 * agreed(f), f->clear, mean(f), f->positions, f->positions / f->prefill_s);
    assert_true(agreed(f) >= agreement);
    assert_true(mean(f) <= difference);
}

static void float_path_agrees_with_the_oracle(void **state)
{
    (void)state;
    static struct figures f;
    bool ran = run_all(&(struct run){ ISA_PLAIN, true, KV_F32 }, &f);
    check("plain float", ran ? &f : NULL, 0.995, 0.005);
}

static void avx2_stays_within_8_bit_bounds(void **state)
{
    (void)state;
    check("avx2", run_f16(ISA_AVX2), 0.975, 0.065);
}

static void avx512_stays_within_8_bit_bounds(void **state)
{
    (void)state;
    check("avx512", run_f16(ISA_AVX512), 0.975, 0.065);
}

static void bfloat16_attention_stays_within_8_bit_bounds(void **state)
{
    (void)state;
    check("avx512_bf16", run_f16(ISA_AVX512_BF16), 0.975, 0.065);
}

/* What a KV type adds to the distance from the oracle, and how far it is from F16. */
static void check_kv(enum kv_type type, const char *name, double agreement, double more)
{
    static struct figures f;
    for (enum isa isa = ISA_AVX2; isa <= isa_best(); isa++) {
        const struct figures *f16 = run_f16(isa);
        if (!f16) skip();
        assert_true(run_all(&(struct run){ isa, false, type }, &f));
        assert_int_equal(f.positions, f16->positions);
        double apart = 0;
        for (uint32_t i = 0; i < f.positions; i++) apart += fabs(f.logprobs[i] - f16->logprobs[i]);
        apart /= f.positions;
        print_message("%s, KV %s: mean |delta| %.5f, %+.5f over f16's; |delta| to f16 %.5f;"
                      " top-1 %.2f %%\n", isa_name(isa), name, mean(&f), mean(&f) - mean(f16),
                      apart, 100 * agreed(&f));
        assert_true(mean(&f) - mean(f16) <= more);
        assert_true(agreed(&f) >= agreement);
    }
}

static void int8_kv_adds_little(void **state)
{
    (void)state;
    check_kv(KV_INT8, "int8", 0.97, 0.012);
}

static void fp8_kv_adds_little(void **state)
{
    (void)state;
    check_kv(KV_FP8, "fp8", 0.96, 0.03);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(float_path_agrees_with_the_oracle),
        cmocka_unit_test(avx2_stays_within_8_bit_bounds),
        cmocka_unit_test(avx512_stays_within_8_bit_bounds),
        cmocka_unit_test(bfloat16_attention_stays_within_8_bit_bounds),
        cmocka_unit_test(int8_kv_adds_little),
        cmocka_unit_test(fp8_kv_adds_little),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
