/* tests/unit/ctl_sim_test.c - the simulator: a million requests over many seeds, and its inputs.
 *
 * What must always be true is CHECKed inside a run (sim_world.c): a broken invariant prints the
 * seed and the last events and ends the program.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "ctl/sim.h"

static void no_seed_breaks_an_invariant(void **state)
{
    (void)state;
    uint64_t seeds = getenv("RANKSERVE_TEST_LONG") ? 3000 : 1000;
    uint64_t requests = 0, done = 0, deaths = 0, lost = 0, cancelled = 0, expired = 0, refused = 0;
    uint64_t switches = 0, resumed = 0;
    for (uint64_t seed = 1; seed <= seeds; seed++) {
        struct sim_result r;
        sim_run_seed(seed, 1000, sim_engine_usual, &r);
        assert_int_equal(r.mismatches, 0);
        requests += r.requests;
        done += r.done;
        deaths += r.deaths;
        lost += r.lost;
        cancelled += r.cancelled;
        expired += r.expired;
        refused += r.refused;
        switches += r.switches;
        resumed += r.resumed;
    }
    assert_int_equal(requests, seeds * 1000);
    assert_int_equal(done + lost + cancelled + expired + refused, requests);
    /* The misfortunes did happen. */
    assert_true(done > requests / 4 && deaths > seeds && lost && cancelled && expired && refused);
    assert_true(switches > seeds && resumed > 0);
}

static struct sim_result shifting(uint32_t requests, uint32_t turns, double speed,
                                  uint64_t interval_ns)
{
    struct sim_load load;
    struct sim_result r;
    struct sim_options o = { .prefill = 4, .decode = 4, .policy = POLICY_COST, .seed = 1,
                             .speed = speed, .max_queue = REQ_COUNT_MAX,
                             .switch_interval_ns = interval_ns, .engine = sim_engine_usual };
    sim_load_shift(5, requests, turns, 16, &load);
    sim_load_reach(&load, sim_cache_blocks(&load, &o));
    sim_run(&load, &o, &r);
    sim_load_release(&load);
    assert_int_equal(r.done, r.requests);
    return r;
}

static void roles_follow_the_mix_of_work(void **state)
{
    (void)state;
    struct sim_result fixed = shifting(7000, 2, 1, 0);
    struct sim_result moves = shifting(7000, 2, 1, 6000000000);
    print_message("goodput %.3f, %.3f with %d switches; TTFT p99 %.0f and %.0f ms\n", fixed.goodput,
                  moves.goodput, (int)moves.switches, fixed.ttft_ms[3], moves.ttft_ms[3]);
    assert_int_equal(fixed.switches, 0);
    assert_true(moves.switches >= 2 && moves.switches <= 12);
    assert_true(moves.goodput > fixed.goodput + 0.05);
    assert_true(moves.ttft_ms[3] < 0.7 * fixed.ttft_ms[3]);
}

/* The same requests, long and short mixed: from well below to well above what they can serve. */
static void roles_settle_under_a_steady_mix(void **state)
{
    (void)state;
    for (double speed = 0.6; speed < 1.7; speed += 0.5) {
        struct sim_result fixed = shifting(4000, 1000, speed, 0);
        struct sim_result moves = shifting(4000, 1000, speed, 6000000000);
        print_message("speed %.2f: goodput %.3f and %.3f, %d switches\n", speed, fixed.goodput,
                      moves.goodput, (int)moves.switches);
        assert_true(moves.switches <= 2);
        assert_true(moves.goodput > fixed.goodput - 0.02);
    }
}

static void a_run_repeats_exactly(void **state)
{
    (void)state;
    for (uint64_t seed = 30; seed < 40; seed++) {
        struct sim_result a, b;
        sim_run_seed(seed, 300, sim_engine_usual, &a);
        sim_run_seed(seed, 300, sim_engine_usual, &b);
        a.wall_s = b.wall_s = 0;
        assert_memory_equal(&a, &b, sizeof a);
    }
}

static enum err load_text(const char *text, struct sim_load *out, struct why *why)
{
    char path[] = "/tmp/rankserve-sim-XXXXXX";
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, text, strlen(text)), (ssize_t)strlen(text));
    close(fd);
    enum err e = sim_load_trace(path, out, why);
    unlink(path);
    return e;
}

static void a_trace_is_read_and_what_it_shares_is_known(void **state)
{
    (void)state;
    struct sim_load l;
    struct why why;
    const char *text =
        "{\"timestamp\": 5, \"input_length\": 1100, \"output_length\": 3, \"hash_ids\": [1,2,3]}\n"
        "\n"
        "{\"timestamp\": 0, \"input_length\": 1024, \"output_length\": 0, \"hash_ids\": [1,2]}";
    assert_int_equal(load_text(text, &l, &why), OK);
    assert_int_equal(l.count, 2);
    assert_int_equal(l.jobs[0].prompt_tokens, 1024);       /* by arrival */
    assert_int_equal(l.jobs[0].output_tokens, 1);
    assert_int_equal(l.jobs[1].block_count, 2);
    assert_true(hash_equal(l.jobs[0].keys[1], l.jobs[1].keys[1]));
    sim_load_reach(&l, 10);
    assert_int_equal(l.jobs[0].possible, 0);
    assert_int_equal(l.jobs[1].possible, 2);
    sim_load_release(&l);
}

static void a_broken_trace_is_refused_with_its_line(void **state)
{
    (void)state;
    static const char *const broken[] = {
        "", "{", "[]", "{\"timestamp\": 0}",
        "{\"timestamp\": -1, \"input_length\": 1, \"output_length\": 1, \"hash_ids\": []}",
        "{\"timestamp\": 0, \"input_length\": 0, \"output_length\": 1, \"hash_ids\": []}",
        "{\"timestamp\": 0, \"input_length\": 1e9, \"output_length\": 1, \"hash_ids\": []}",
        "{\"timestamp\": 0, \"input_length\": 512, \"output_length\": 1, \"hash_ids\": []}",
        "{\"timestamp\": 0, \"input_length\": 512, \"output_length\": 1, \"hash_ids\": [\"a\"]}",
        "{\"timestamp\": 0, \"input_length\": 512, \"output_length\": 1, \"hash_ids\": 7}",
    };
    for (size_t i = 0; i < sizeof broken / sizeof *broken; i++) {
        struct sim_load l;
        struct why why = { "" };
        assert_int_not_equal(load_text(broken[i], &l, &why), OK);
        assert_true(why.text[0]);
        if (i > 0) assert_non_null(strstr(why.text, ":1:"));
        assert_null(l.jobs);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(no_seed_breaks_an_invariant),
        cmocka_unit_test(roles_follow_the_mix_of_work),
        cmocka_unit_test(roles_settle_under_a_steady_mix),
        cmocka_unit_test(a_run_repeats_exactly),
        cmocka_unit_test(a_trace_is_read_and_what_it_shares_is_known),
        cmocka_unit_test(a_broken_trace_is_refused_with_its_line),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
