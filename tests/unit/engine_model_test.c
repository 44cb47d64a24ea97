/* tests/unit/engine_model_test.c - the engine over the CPU backend and a real model
 * (RANKSERVE_TEST_MODEL; skipped without): the same tokens alone, in company, in small chunks, from
 * the cache, continued elsewhere, and with KV computed by another engine. */
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/mem.h"
#include "engine/engine.h"

enum { PROMPT = 70, OUTPUT = 24, SLOTS = 8 };

struct rank {
    struct engine *e;
    int32_t out[SLOTS][OUTPUT + 1];
    float logprob[SLOTS][OUTPUT + 1];
    uint32_t count[SLOTS], cached[SLOTS], ended;
};

static struct gguf *file;
static struct model *model;
static int32_t prompt[SLOTS][PROMPT];

static int open_model(void **state)
{
    (void)state;
    const char *path = getenv("RANKSERVE_TEST_MODEL");
    struct why why;
    if (!path || !*path) return 0;
    if (gguf_open(&file, path, &why) || model_open(&model, file, &why)) return -1;
    for (int s = 0; s < SLOTS; s++)
        for (int i = 0; i < PROMPT; i++)
            prompt[s][i] = (int32_t)((uint32_t)(i * i * 31 + i * 7 + s * 911 + 100) % 30000);
    return 0;
}

static int close_model(void **state)
{
    (void)state;
    model_close(model);
    gguf_close(file);
    return 0;
}

static void on_token(void *ctx, struct req_id req, const struct token_record *r,
                     const struct top_logprob *top, uint32_t cached)
{
    (void)top;
    struct rank *k = ctx;
    assert_true(k->count[req.slot] < OUTPUT);
    assert_int_not_equal(r->finish, FINISH_ERROR);
    k->logprob[req.slot][k->count[req.slot]] = r->logprob;
    k->out[req.slot][k->count[req.slot]++] = r->id;
    k->cached[req.slot] = cached;
    k->ended += r->finish != FINISH_NONE;
}

static void rank_open(struct rank *k, uint32_t batch)
{
    memset(k, 0, sizeof *k);
    struct engine_config c = {
        .backend = {
            .model = model, .threads = 2, .isa = isa_best(), .kv_type = KV_F16,
            .block_tokens = 16, .kv_bytes = 32 << 20,
        },
        .table = backend_find("cpu"),
        .max_model_len = 256, .max_num_seqs = SLOTS, .max_num_batched_tokens = batch,
        .enable_chunked_prefill = true, .enable_prefix_caching = true,
    };
    struct engine_sink sink = { .ctx = k, .token = on_token };
    struct why why;
    if (engine_open(&k->e, &c, &sink, &why)) fail_msg("%s", why.text);
}

static struct req_id req_of(uint16_t slot)
{
    return (struct req_id){ .slot = slot, .generation = 1 };
}

/* `text` names the prompt, `emitted` ids of `out` count as produced already. */
static uint32_t rank_add(struct rank *k, uint16_t slot, enum seq_mode mode, int text,
                         const int32_t *out, uint32_t emitted)
{
    int32_t ids[PROMPT + OUTPUT];
    memcpy(ids, prompt[text], sizeof prompt[text]);
    if (emitted) memcpy(ids + PROMPT, out, emitted * sizeof *out);
    struct seq_spec s = {
        .req = req_of(slot), .mode = mode, .ids = ids, .id_count = PROMPT + emitted,
        .prompt_count = PROMPT,
        .params = {
            .max_tokens = OUTPUT, .temperature = 0.8f, .top_p = 0.95f, .repetition_penalty = 1,
            .seed = 5, .flags = SAMPLING_LOGPROBS,
        },
    };
    uint32_t held = 0;
    assert_int_equal(engine_add(k->e, &s, &held), OK);
    return held;
}

static void rank_run(struct rank *k, uint32_t ended, uint32_t first_tokens_of)
{
    while (k->ended < ended || !k->count[first_tokens_of]) {
        struct pollfd p = { .fd = engine_event_fd(k->e), .events = POLLIN };
        assert_true(engine_has_work(k->e) || poll(&p, 1, 30000) == 1);
        engine_poll(k->e);
    }
}

static void assert_same(const struct rank *a, const struct rank *b, uint32_t slot, uint32_t from)
{
    assert_int_equal(b->count[slot], OUTPUT - from);
    assert_memory_equal(a->out[0] + from, b->out[slot], (OUTPUT - from) * sizeof(int32_t));
    assert_memory_equal(a->logprob[0] + from, b->logprob[slot], (OUTPUT - from) * sizeof(float));
}

static void tokens_are_the_same_however_they_were_computed(void **state)
{
    (void)state;
    if (!model) skip();
    static struct rank alone, company, other;
    rank_open(&alone, 128);
    rank_add(&alone, 0, SEQ_LOCAL, 0, NULL, 0);
    rank_run(&alone, 1, 0);

    rank_open(&company, 24);          /* small chunks, beside others */
    for (uint16_t i = 0; i < 4; i++) rank_add(&company, i, SEQ_LOCAL, (i + 2) % 4, NULL, 0);
    rank_run(&company, 4, 0);
    assert_same(&alone, &company, 2, 0);
    rank_add(&company, 4, SEQ_LOCAL, 0, NULL, 0);            /* from the cache */
    rank_add(&company, 5, SEQ_LOCAL, 0, alone.out[0], 9);    /* continued */
    rank_run(&company, 6, 0);
    assert_int_equal(company.cached[4], 64);
    assert_same(&alone, &company, 4, 0);
    assert_same(&alone, &company, 5, 9);

    rank_open(&other, 128);           /* KV from `company` */
    assert_int_equal(rank_add(&other, 0, SEQ_IMPORT, 0, NULL, 0), 0);
    rank_add(&company, 6, SEQ_PREFILL, 0, NULL, 0);
    rank_run(&company, 6, 6);
    const struct kv_shape *shape = engine_kv_shape(company.e);
    uint64_t bytes = shape->layers * PROMPT * shape->token_bytes;
    void *kv = mem_alloc(bytes);
    assert_true(engine_kv_read(company.e, req_of(6), 0, shape->layers, 0, PROMPT, kv));
    assert_int_equal(engine_import(other.e, req_of(0), 0, shape->layers, 0, PROMPT, kv, bytes), OK);
    free(kv);
    assert_int_equal(company.out[6][0], alone.out[0][0]);
    assert_int_equal(engine_import_done(other.e, req_of(0), company.out[6][0]), OK);
    assert_true(engine_drop(company.e, req_of(6)));
    rank_run(&other, 1, 0);
    assert_same(&alone, &other, 0, 1);
    engine_close(alone.e);
    engine_close(company.e);
    engine_close(other.e);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tokens_are_the_same_however_they_were_computed),
    };
    return cmocka_run_group_tests(tests, open_model, close_model);
}
