/* tests/unit/wire_msg_test.c - what arrives between ranks is checked before it is read. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/check.h"
#include "common/mem.h"
#include "wire/msg.h"

static const struct req_id req = { .slot = 7, .attempt = 1, .generation = 3 };

static struct sampling plain_params(void)
{
    return (struct sampling){ .top_p = 1, .repetition_penalty = 1, .max_tokens = 4 };
}

/* One valid message of every type, in memory of exactly its size. */
static void *make(enum msg_type type, size_t bytes)
{
    struct msg_head *h = mem_alloc(bytes);
    msg_head_set(h, type, bytes);
    return h;
}

static struct msg_seq *make_seq(enum msg_type type, uint16_t bias_count, uint32_t id_count)
{
    struct msg_seq *m = make(type, msg_seq_bytes(bias_count, id_count));
    m->req = req;
    m->prompt_count = m->id_count = id_count;
    m->params = plain_params();
    m->params.bias_count = bias_count;
    return m;
}

static struct msg_tokens *make_tokens(enum msg_type type)
{
    size_t tops = 2 * sizeof(struct top_logprob);
    size_t bytes = sizeof(struct msg_tokens) + 2 * sizeof(struct msg_token) + tops;
    struct msg_tokens *m = make(type, bytes);
    m->count = 2;
    struct msg_token one = { .req = req, .cached = 16, .record = { .id = 5, .top_count = 2 } };
    memcpy(m + 1, &one, sizeof one);
    one.record = (struct token_record){ .id = 6, .finish = FINISH_STOP };
    memcpy((char *)(m + 1) + sizeof one + tops, &one, sizeof one);
    return m;
}

static void *make_any(enum msg_type type)
{
    switch (type) {
    case MSG_RUN: case MSG_EXPECT: case MSG_PREFILL: return make_seq(type, 2, 5);
    case MSG_CANCEL: case MSG_GONE: return make(type, sizeof(struct msg_req));
    case MSG_LOST: return make(type, sizeof(struct msg_rank));
    case MSG_PING: return make(type, sizeof(struct msg_ping));
    case MSG_EXIT: return make(type, sizeof(struct msg_exit));
    case MSG_READY: return make(type, sizeof(struct msg_ready));
    case MSG_KV: {
        struct msg_kv *m = make(type, sizeof *m + 64);
        m->layers = m->count = 1;
        return m;
    }
    case MSG_KVEND: return make(type, sizeof(struct msg_kvend));
    case MSG_LANE: {
        struct msg_lane *m = make(type, sizeof *m);
        m->lane = 1, m->word = LANE_OPEN;
        return m;
    }
    case MSG_UP: {
        struct msg_up *m = make(type, sizeof *m);
        m->blocks_total = 10, m->block_tokens = 16, m->max_num_seqs = 4, m->max_model_len = 160;
        return m;
    }
    case MSG_TOKENS: case MSG_SCORES: return make_tokens(type);
    case MSG_REFUSE: return make(type, sizeof(struct msg_refuse));
    case MSG_BLOCKS: {
        struct msg_blocks *m = make(type, sizeof *m + 2 * sizeof(struct block_change));
        m->count = 2, m->stream_seq = 1;
        return m;
    }
    case MSG_SNAPSHOT: return make(type, sizeof(struct msg_snapshot));
    case MSG_PULL: {
        struct msg_pull *m = make(type, msg_pull_bytes(3));
        m->req = (struct req_id){ 1, PULL_BIT | 1, 1 }, m->id_count = 3;
        return m;
    }
    case MSG_POLICY: {
        struct msg_policy *m = make(type, sizeof *m);
        m->policy.memory_threshold = 0.5;
        return m;
    }
    case MSG_ROLE: {
        struct msg_role *m = make(type, sizeof *m);
        m->role = ROLE_DECODE;
        return m;
    }
    case MSG_SLOT: return make(type, sizeof(struct msg_slot));
    case MSG_STATS: return make(type, sizeof(struct msg_stats));
    case MSG_FATAL: return make(type, sizeof(struct msg_fatal));
    default: fail_msg("no such type"); return NULL;
    }
}

static const void *as_any(enum msg_type type, const void *data, size_t bytes)
{
    switch (type) {
    case MSG_RUN: case MSG_EXPECT: case MSG_PREFILL: return msg_as_seq(data, bytes);
    case MSG_CANCEL: case MSG_GONE: return msg_as_req(data, bytes);
    case MSG_LOST: return msg_as_rank(data, bytes);
    case MSG_PING: return msg_as_ping(data, bytes);
    case MSG_EXIT: return msg_as_exit(data, bytes);
    case MSG_POLICY: return msg_as_policy(data, bytes);
    case MSG_ROLE: return msg_as_role(data, bytes);
    case MSG_READY: return msg_as_ready(data, bytes);
    case MSG_KV: return msg_as_kv(data, bytes);
    case MSG_KVEND: return msg_as_kvend(data, bytes);
    case MSG_SLOT: return msg_as_slot(data, bytes);
    case MSG_LANE: return msg_as_lane(data, bytes);
    case MSG_UP: return msg_as_up(data, bytes);
    case MSG_TOKENS: case MSG_SCORES: return msg_as_tokens(data, bytes);
    case MSG_REFUSE: return msg_as_refuse(data, bytes);
    case MSG_BLOCKS: return msg_as_blocks(data, bytes);
    case MSG_STATS: return msg_as_stats(data, bytes);
    case MSG_FATAL: return msg_as_fatal(data, bytes);
    case MSG_SNAPSHOT: return msg_as_snapshot(data, bytes);
    case MSG_PULL: return msg_as_pull(data, bytes);
    default: return NULL;
    }
}

static void every_type_is_read_back_by_its_own_reader_only(void **state)
{
    (void)state;
    for (int t = 1; t < MSG_TYPE_COUNT; t++) {
        struct msg_head *h = make_any((enum msg_type)t);
        assert_int_equal(msg_type_of(h, h->bytes), t);
        assert_string_not_equal(msg_type_name((enum msg_type)t), "?");
        for (int other = 1; other < MSG_TYPE_COUNT; other++) {
            const void *got = as_any((enum msg_type)other, h, h->bytes);
            bool same_reader = as_any((enum msg_type)t, h, h->bytes) && got;
            if (other == t) assert_ptr_equal(got, h);
            if (got) assert_true(same_reader);
        }
        free(h);
    }
}

static void a_message_cut_at_any_byte_is_refused(void **state)
{
    (void)state;
    for (int t = 1; t < MSG_TYPE_COUNT; t++) {
        struct msg_head *h = make_any((enum msg_type)t);
        for (size_t cut = 0; cut < h->bytes; cut++) {
            struct msg_head *part = mem_alloc(cut + 1); /* its own memory: a sanitizer sees more */
            struct msg_head *exact = mem_resize(part, cut ? cut : 1, 1);
            memcpy(exact, h, cut);
            assert_null(as_any((enum msg_type)t, exact, cut));
            if (cut >= sizeof *h) {
                exact->bytes = (uint32_t)cut; /* a head that agrees with the cut */
                const void *got = as_any((enum msg_type)t, exact, cut);
                if (t != MSG_KV) assert_null(got);
            }
            free(exact);
        }
        free(h);
    }
}

static void a_sequence_with_counts_that_do_not_fit_is_refused(void **state)
{
    (void)state;
    struct msg_seq *m = make_seq(MSG_RUN, 2, 5);
    size_t bytes = m->head.bytes;
    assert_non_null(msg_as_seq(m, bytes));
    assert_ptr_equal(msg_seq_ids(m), (const char *)m + bytes - 5 * sizeof(int32_t));
#define REFUSED(field, bad)                                                                      \
    do {                                                                                         \
        struct msg_seq kept = *m;                                                                \
        m->field = (bad);                                                                        \
        assert_null(msg_as_seq(m, bytes));                                                       \
        *m = kept;                                                                               \
    } while (0)
    REFUSED(id_count, 0);
    REFUSED(id_count, 4);
    REFUSED(id_count, 6);
    REFUSED(id_count, UINT32_MAX);
    REFUSED(id_count, 0x40000005u); /* times four wraps to the right length in 32 bits */
    REFUSED(prompt_count, 0);
    REFUSED(prompt_count, 6);
    REFUSED(req.generation, 0);
    REFUSED(req.slot, REQ_COUNT_MAX);
    REFUSED(params.bias_count, 3);
    REFUSED(params.bias_count, UINT16_MAX);
    REFUSED(params.stop_id_count, STOP_IDS_MAX + 1);
    REFUSED(params.eos_id_count, 1);
    REFUSED(params.top_count, TOP_LOGPROBS_MAX + 1);
    REFUSED(params.prompt_top_count, TOP_LOGPROBS_MAX + 1);
    REFUSED(params.max_tokens, 0);
    REFUSED(params.temperature, -1.0f);
    REFUSED(params.temperature, 0.0f / 0.0f);
    REFUSED(params.repetition_penalty, 0.0f);
#undef REFUSED
    assert_non_null(msg_as_seq(m, bytes));
    free(m);
}

static void kv_ranges_stay_within_layers_and_positions(void **state)
{
    (void)state;
    struct msg_kv *m = make_any(MSG_KV);
    size_t bytes = m->head.bytes;
    m->layer = MODEL_LAYERS_MAX - 1;
    assert_non_null(msg_as_kv(m, bytes));
    m->layers = 2;
    assert_null(msg_as_kv(m, bytes));
    m->layer = UINT32_MAX, m->layers = 1;
    assert_null(msg_as_kv(m, bytes));
    m->layer = 0, m->first = SEQ_TOKENS_MAX;
    assert_null(msg_as_kv(m, bytes));
    m->first = UINT32_MAX;
    assert_null(msg_as_kv(m, bytes));
    m->first = 0, m->count = 0;
    assert_null(msg_as_kv(m, bytes));
    m->count = 1, m->number = 1;      /* a number, and no lane */
    assert_null(msg_as_kv(m, bytes));
    m->lane = 1;                      /* a lane, and bytes */
    assert_null(msg_as_kv(m, bytes));
    m->head.bytes = sizeof *m;
    assert_non_null(msg_as_kv(m, sizeof *m));
    m->number = 0;
    assert_null(msg_as_kv(m, sizeof *m));
    free(m);
}

static void tokens_are_walked_with_their_alternatives(void **state)
{
    (void)state;
    struct msg_tokens *m = make_tokens(MSG_TOKENS);
    struct msg_token one;
    const void *top = NULL;
    size_t at = 0;
    assert_non_null(msg_as_tokens(m, m->head.bytes));
    assert_true(msg_token_next(m, &at, &one, &top));
    assert_int_equal(one.record.id, 5);
    assert_ptr_equal(top, (char *)(m + 1) + sizeof one);
    assert_true(msg_token_next(m, &at, &one, &top));
    assert_int_equal(one.record.id, 6);
    assert_int_equal(one.record.finish, FINISH_STOP);
    assert_false(msg_token_next(m, &at, &one, &top));

    m->count = 3;
    assert_null(msg_as_tokens(m, m->head.bytes));
    m->count = 1;
    assert_null(msg_as_tokens(m, m->head.bytes));
    m->count = UINT32_MAX;
    assert_null(msg_as_tokens(m, m->head.bytes));
    free(m);
}

static void random_bytes_never_pass_the_head_by_luck_and_never_crash(void **state)
{
    (void)state;
    uint64_t x = 88172645463325252ull;
    for (int round = 0; round < 200000; round++) {
        uint64_t words[48];
        for (int i = 0; i < 48; i++) {
            x ^= x << 13, x ^= x >> 7, x ^= x << 17;
            words[i] = x;
        }
        size_t bytes = 24 + x % (sizeof words - 24);
        enum msg_type t = (enum msg_type)(1 + (x >> 32) % (MSG_TYPE_COUNT - 1));
        if (round % 4) {
            msg_head_set((struct msg_head *)words, t, bytes); /* past the head's checks */
        } else {
            assert_int_equal(msg_type_of(words, bytes), 0);
        }
        const struct msg_tokens *m = as_any(t, words, bytes);
        if (!m || (t != MSG_TOKENS && t != MSG_SCORES)) continue;
        struct msg_token one;
        const void *top;
        for (size_t at = 0; msg_token_next(m, &at, &one, &top);) { }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_type_is_read_back_by_its_own_reader_only),
        cmocka_unit_test(a_message_cut_at_any_byte_is_refused),
        cmocka_unit_test(a_sequence_with_counts_that_do_not_fit_is_refused),
        cmocka_unit_test(kv_ranges_stay_within_layers_and_positions),
        cmocka_unit_test(tokens_are_walked_with_their_alternatives),
        cmocka_unit_test(random_bytes_never_pass_the_head_by_luck_and_never_crash),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
