/* tests/unit/sched_cores_test.c - a prefill and a decode worker on the same cores: which of them
 * computes a prompt, and when both may.
 */
#include "sched_world.h"

#define MS UINT64_C(1000000)
enum { PREFILL = 1, DECODE = 2, KEYS = 200, BLOCK = 16 };

struct pair {
    struct world *w;
    struct kv_index *index;
    struct hash128 keys[KEYS];
};

static void hold(struct pair *p, uint32_t rank, uint32_t blocks)
{
    struct kv_change changes[KEYS];
    for (uint32_t i = 0; i < blocks; i++)
        changes[i] = (struct kv_change){ p->keys[i], i ? p->keys[i - 1] : (struct hash128){ 0 },
                                         1 };
    kv_index_up(p->index, rank, 1, 1);
    assert_int_equal(kv_index_apply(p->index, rank, 1, 1, changes, blocks), OK);
}

/* A token of a prompt takes 1 ms, a step 6; prefill holds as many blocks as decode. */
static void pair_open(struct pair *p, uint32_t cores_prefill, uint32_t cores_decode, uint32_t held)
{
    *p = (struct pair){ .w = world_make(false), .index = kv_index_open(1000, RANKS) };
    for (uint32_t i = 0; i < KEYS; i++) p->keys[i] = (struct hash128){ i + 1, 7 };
    hold(p, PREFILL, held);
    hold(p, DECODE, held);
    sched_index(p->w->s, p->index);
    up(p->w, PREFILL, ROLE_PREFILL, 2000, 64);
    up(p->w, DECODE, ROLE_DECODE, 2000, 64);
    struct sched_rates rates = { .prefill_token_ns = 1e6, .step_ns = 6e6, .step_seq_ns = 1e5,
                                 .kv_token_bytes = 2e4, .link_bytes_s = 1e9 };
    for (int32_t rank = 1; rank < 3; rank++) {
        rates.cores = rank == PREFILL ? cores_prefill : cores_decode;
        tell(p->w, (struct sched_event){ .type = EV_RATES, .worker = rank, .rates = &rates });
    }
}

static void pair_close(struct pair *p)
{
    world_free(p->w);
    kv_index_close(p->index);
}

static void ask(struct pair *p, uint16_t slot, uint32_t tokens)
{
    struct sched_event e = request(slot, 0);
    e.prompt_tokens = tokens;
    e.keys = p->keys;
    e.key_count = tokens / BLOCK;
    tell(p->w, e);
}

static void assert_run(const struct world *w, uint16_t slot, int32_t worker)
{
    const struct sched_action *a = done(w, ACT_RUN);
    assert_non_null(a);
    assert_null(done(w, ACT_PAIR));
    assert_int_equal(a->req.slot, slot);
    assert_int_equal(a->worker, worker);
}

static void assert_nothing(struct world *w, uint64_t ns)
{
    for (uint64_t at = 0; at < ns; at += 5 * MS) {
        assert_null(done(w, ACT_RUN));
        assert_null(done(w, ACT_PAIR));
        wait_ns(w, 5 * MS);
    }
}

static void short_rests_follow_one_another_where_the_beginning_is(void **state)
{
    (void)state;
    struct pair p;
    pair_open(&p, 1, 1, 93);
    ask(&p, 0, 93 * BLOCK + 100);
    assert_run(p.w, 0, DECODE);
    ask(&p, 1, 93 * BLOCK + 100);     /* two at once would take each twice as long */
    assert_nothing(p.w, 60 * MS);
    ask(&p, 2, 93 * BLOCK + 100);
    about(p.w, EV_FIRST, 0, DECODE);
    assert_run(p.w, 1, DECODE);
    wait_ns(p.w, MS);
    assert_nothing(p.w, 60 * MS);
    about(p.w, EV_FIRST, 1, DECODE);
    assert_run(p.w, 2, DECODE);
    pair_close(&p);
}

static void assert_pair(uint32_t cores_prefill, uint32_t cores_decode, uint32_t held, uint32_t rest)
{
    struct pair p;
    pair_open(&p, cores_prefill, cores_decode, held);
    ask(&p, 0, held * BLOCK + rest);
    assert_non_null(done(p.w, ACT_PAIR));
    assert_null(done(p.w, ACT_RUN));
    pair_close(&p);
}

static void other_prompts_go_to_the_prefill_worker(void **state)
{
    (void)state;
    assert_pair(1, 2, 93, 100);       /* cores of their own */
    assert_pair(0, 0, 93, 100);
    assert_pair(1, 1, 3, 100);        /* most of it is to be computed */
    assert_pair(1, 1, 93, 400);       /* the rest is not short */
}

static void a_long_prompt_waits_for_another_on_the_same_cores(void **state)
{
    (void)state;
    struct pair p;
    pair_open(&p, 1, 1, 0);
    ask(&p, 9, 200);                  /* decodes meanwhile */
    about(p.w, EV_FIRST, 9, PREFILL);
    about(p.w, EV_GONE, 9, PREFILL);
    for (uint16_t slot = 0; slot < 5; slot++) ask(&p, slot, 3000);
    wait_ns(p.w, MS);
    assert_nothing(p.w, 2900 * MS);
    assert_int_equal(p.w->s->workers[DECODE].prompts_charged, 0);
    assert_int_equal(p.w->s->workers[DECODE].plan_count, 0);
    about(p.w, EV_FIRST, 0, PREFILL);
    assert_non_null(done(p.w, ACT_PAIR));
    pair_close(&p);
}

/* What is short does not wait for seconds: half the cores now is better. */
static void a_short_prompt_passes_a_long_one_on_the_decode_worker(void **state)
{
    (void)state;
    struct pair p;
    pair_open(&p, 1, 1, 0);
    ask(&p, 0, 3000);
    ask(&p, 1, 60);
    assert_run(p.w, 1, DECODE);
    pair_close(&p);
}

/* A decode worker that generates takes its share anyway; so it helps out when much is waiting. */
static void a_busy_decode_worker_takes_what_would_wait_long(void **state)
{
    (void)state;
    struct pair p;
    pair_open(&p, 1, 1, 0);
    ask(&p, 0, 200);
    about(p.w, EV_FIRST, 0, PREFILL);
    about(p.w, EV_GONE, 0, PREFILL);
    for (uint16_t slot = 1; slot < 9 && !done(p.w, ACT_RUN); slot++) ask(&p, slot, 200);
    const struct sched_action *a = done(p.w, ACT_RUN);
    assert_non_null(a);
    assert_int_equal(a->worker, DECODE);
    pair_close(&p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(short_rests_follow_one_another_where_the_beginning_is),
        cmocka_unit_test(other_prompts_go_to_the_prefill_worker),
        cmocka_unit_test(a_long_prompt_waits_for_another_on_the_same_cores),
        cmocka_unit_test(a_short_prompt_passes_a_long_one_on_the_decode_worker),
        cmocka_unit_test(a_busy_decode_worker_takes_what_would_wait_long),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
