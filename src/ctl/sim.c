/* ctl/sim.c - `rankservectl sim`: policies of the scheduler compared under virtual time. */
#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ctl/ctl.h"
#include "ctl/sim.h"

enum { POINTS_MAX = 32, SEED_REQUESTS = 1000 };

static const char *trace, *mix, *workers, *prefill, *decode, *policies, *decode_policy, *loads;
static const char *speed, *seed, *seeds, *json_file, *metrics_ms, *prefill_rate, *cache_tokens;
static const char *link_gb, *context, *shift, *turns, *interval_s;
static bool chaos, no_pull, no_switch;

static const struct flag flags[] = {
    { "trace", &trace, NULL, "FILE", "replay a trace in Mooncake's format (JSON lines)" },
    { "mix", &mix, NULL, "N", "N requests of synthetic conversations instead" },
    { "shift", &shift, NULL, "N", "N requests: long prompts, then long answers, and so on" },
    { "turns", &turns, NULL, "N", "how many such turns; 4" },
    { "workers", &workers, NULL, "N", "workers that do both parts; 8" },
    { "prefill", &prefill, NULL, "N", "workers that compute prompts only; 0" },
    { "decode", &decode, NULL, "N", "workers that generate only; 0" },
    { "policy", &policies, NULL, "NAMES", "policies to compare, with commas; all" },
    { "decode-policy", &decode_policy, NULL, "NAME", "for the decode part; the same" },
    { "load", &loads, NULL, "SHARES", "of the prompt capacity, e.g. 0.7,0.9; as in the trace" },
    { "speed", &speed, NULL, "X", "arrivals this much faster than in the trace; 1" },
    { "seed", &seed, NULL, "N", "of everything random; 1" },
    { "seeds", &seeds, NULL, "N", "N runs of small synthetic jobs with misfortunes, and no table" },
    { "chaos", NULL, &chaos, NULL, "workers die and return, clients cancel, messages are late" },
    { "no-pull", NULL, &no_pull, NULL, "workers do not fetch cached blocks from each other" },
    { "no-role-switch", NULL, &no_switch, NULL, "workers keep their roles" },
    { "role-switch-interval-s", &interval_s, NULL, "S", "between two such changes; 6" },
    { "metrics-ms", &metrics_ms, NULL, "MS", "age of what llm-d-weighted sees; 50" },
    { "prefill-rate", &prefill_rate, NULL, "TOKENS", "of a prompt, a second and worker; 16000" },
    { "context-us", &context, NULL, "US", "more per prompt token and 1,024 tokens before it; 0.5" },
    { "cache-tokens", &cache_tokens, NULL, "N", "of KV a worker has room for; 500000" },
    { "link-gb", &link_gb, NULL, "GB", "a second from prefill to decode; 25" },
    { "json", &json_file, NULL, "FILE", "write all results there" },
    { 0 },
};

static double number(const char *text, const char *name, double least, double most,
                     double otherwise)
{
    if (!text) return otherwise;
    char *end;
    errno = 0;
    double x = strtod(text, &end);
    if (errno || end == text || *end || !(x >= least && x <= most))
        die("sim: --%s is '%.40s'; it must be a number from %g to %g", name, text, least, most);
    return x;
}

static enum sched_policy policy_named(const char *name)
{
    enum sched_policy p;
    if (sched_policy_find(name, &p)) return p;
    char known[256] = "";
    size_t at = 0;
    for (int i = 0; i < POLICY_COUNT && at < sizeof known; i++)
        at += (size_t)snprintf(known + at, sizeof known - at, " %s",
                               sched_policy_name((enum sched_policy)i));
    die("sim: no policy '%.40s'; there are:%s", name, known);
}

static struct sim_options options(void)
{
    struct sim_engine e = sim_engine_usual;
    double rate = number(prefill_rate, "prefill-rate", 1, 5e7, 16000);
    e.prefill_token_ns = 1e9 / rate - e.step_ns / e.chunk_tokens;
    if (e.prefill_token_ns < 1) e.prefill_token_ns = 1;
    e.prefill_context_ns = 1e3 * number(context, "context-us", 0, 1e6, 0.5);
    e.cache_tokens = (uint32_t)number(cache_tokens, "cache-tokens", 1024, 1e9, 500000);
    e.link_bytes_s = 1e9 * number(link_gb, "link-gb", 1e-3, 1e4, 25);
    struct sim_options o = {
        .prefill = (uint32_t)number(prefill, "prefill", 0, WORKER_COUNT_MAX, 0),
        .decode = (uint32_t)number(decode, "decode", 0, WORKER_COUNT_MAX, 0),
        .metrics_ns = (uint64_t)(1e6 * number(metrics_ms, "metrics-ms", 0, 1e6, 50)),
        .speed = number(speed, "speed", 1e-6, 1e6, 1), .max_queue = REQ_COUNT_MAX,
        .seed = (uint64_t)number(seed, "seed", 0, 1e15, 1), .engine = e,
        .no_pull = no_pull,
        .switch_interval_ns = (uint64_t)(1e9 * number(interval_s, "role-switch-interval-s", 1e-3,
                                                      86400, 6)),
    };
    o.both = (uint32_t)number(workers, "workers", 0, WORKER_COUNT_MAX,
                              o.prefill + o.decode > 0 ? 0 : 8);
    if (o.prefill + o.decode + o.both < 1 || o.prefill + o.decode + o.both > WORKER_COUNT_MAX)
        die("sim: there must be 1 to %d workers", WORKER_COUNT_MAX);
    if ((o.prefill == 0) != (o.decode == 0) && o.both == 0)
        die("sim: --prefill and --decode go together");
    if (no_switch) o.switch_interval_ns = 0;
    if (decode_policy) o.decode_policy = policy_named(decode_policy) + 1;
    if (chaos)
        o.chaos = (struct sim_chaos){ .deaths_per_s = 0.2, .cancel_share = 0.05,
                                      .deadline_share = 0.02, .delay_ns = 2000000,
                                      .slow_share = 0.1, .switches_per_s = 0.2 };
    return o;
}

/* A broken invariant ends the program. */
static int run_seeds(uint64_t first, uint32_t count)
{
    uint64_t requests = 0, deaths = 0, events = 0, decisions = 0;
    for (uint64_t s = first; s < first + count; s++) {
        struct sim_result r;
        sim_run_seed(s, SEED_REQUESTS, sim_engine_usual, &r);
        requests += r.requests;
        deaths += r.deaths;
        events += r.events;
        decisions += r.decisions;
    }
    printf("%u seeds, %llu requests, %llu decisions, %llu events, %llu deaths: every request "
           "answered once, every block home, books empty, index exact\n", count,
           (unsigned long long)requests, (unsigned long long)decisions,
           (unsigned long long)events, (unsigned long long)deaths);
    return 0;
}

static void compare(struct sim_load *load, struct sim_options o, double share, json_t *rows)
{
    char names[512];
    sim_load_reach(load, sim_cache_blocks(load, &o));
    if (share > 0) o.speed = sim_speed_of_load(load, &o, share);
    printf("\nload %.2f: %u requests, %u both + %u prefill + %u decode, arrivals x %.2f\n", share,
           load->count, o.both, o.prefill, o.decode, o.speed);
    sim_print_head();
    snprintf(names, sizeof names, "%s", policies ? policies : "");
    for (int i = 0; !policies && i < POLICY_COUNT; i++) {
        size_t at = strlen(names);
        snprintf(names + at, sizeof names - at, "%s%s", i ? "," : "",
                 sched_policy_name((enum sched_policy)i));
    }
    char *rest = NULL;
    for (char *name = strtok_r(names, ",", &rest); name; name = strtok_r(NULL, ",", &rest)) {
        struct sim_result r;
        o.policy = policy_named(name);
        sim_run(load, &o, &r);
        sim_print_row(name, &r);
        json_array_append_new(rows, sim_json(name, share, &r));
    }
}

static void write_json(json_t *rows)
{
    struct why why;
    char *text = json_dumps(rows, JSON_INDENT(1) | JSON_REAL_PRECISION(6));
    if (!text || write_file_atomic(json_file, text, strlen(text), &why) != OK)
        die("sim: %s", text ? why.text : "no memory");
    free(text);
}

int ctl_sim(int argc, char **argv)
{
    int words = flags_read(flags, "sim [--trace FILE | --mix N | --shift N] [options]", argc, argv);
    if (words > 0) die("sim: '%.40s' is not an option", argv[1]);
    struct sim_options o = options();
    uint32_t seed_count = (uint32_t)number(seeds, "seeds", 0, 1e9, 0);
    if (seed_count > 0) return run_seeds(o.seed, seed_count);
    struct sim_load load;
    struct why why;
    if (trace && sim_load_trace(trace, &load, &why) != OK) die("sim: %s", why.text);
    if (shift)
        sim_load_shift(o.seed, (uint32_t)number(shift, "shift", 1, 1e7, 0),
                       (uint32_t)number(turns, "turns", 1, 1e6, 4), 16, &load);
    else if (!trace)
        sim_load_mix(o.seed, (uint32_t)number(mix, "mix", 1, 1e7, 10000), 10, 16, &load);
    json_t *rows = json_array();
    const char *at = loads ? loads : "0";
    for (int i = 0; i < POINTS_MAX && *at; i++) {
        char one[32];
        size_t bytes = strcspn(at, ",");
        snprintf(one, sizeof one, "%.*s", (int)bytes, at);
        compare(&load, o, number(one, "load", 0, 10, 0), rows);
        at += bytes + (at[bytes] == ',');
    }
    if (json_file) write_json(rows);
    json_decref(rows);
    sim_load_release(&load);
    return 0;
}
