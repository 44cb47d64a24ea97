/* ctl/sim.h - a job under virtual time: the shipped scheduler, index and pools, simulated engines.
 *
 *   sim.c          the subcommand: flags, which runs
 *   sim_trace.c    workloads: Mooncake-format traces, synthetic mixes
 *   sim_world.c    time, messages, rank 0 (sched_step and kv_index), what must always be true
 *   sim_worker.c   one worker: a kv_pool, prompts first come first served, decode steps
 *   sim_report.c   percentiles, goodput, reuse, balance; tables and JSON
 *
 * Everything follows from the workload, the options and the seed.  Work flows as a fluid between
 * events: a worker's step time is constant until its batch changes, so that no step is simulated
 * one by one.
 */
#ifndef RANKSERVE_CTL_SIM_H
#define RANKSERVE_CTL_SIM_H

#include <stdbool.h>
#include <stdint.h>

#include "common/check.h"
#include "common/hash.h"
#include "kv/index.h"
#include "kv/pool.h"
#include "sched/sched.h"

/* -- workloads -------------------------------------------------------------------------------- */

struct sim_job {                      /* one request of the workload */
    uint64_t arrives_ns;
    uint32_t prompt_tokens, output_tokens;
    uint32_t block_count;             /* full blocks of the prompt */
    /* sim_load_reach: leading blocks one cache of some size, or an endless one, would hold. */
    uint32_t possible, endless;
    const struct hash128 *keys;       /* (block_count) */
    const int32_t *ids;               /* (block_count): stand for the blocks' contents  */
};

struct sim_load {
    uint32_t count, block_tokens;
    struct sim_job *jobs;             /* by arrival */
    struct hash128 *keys;
    int32_t *ids;
};

/* "timestamp" (ms), "input_length", "output_length", "hash_ids" (512-token blocks) a line. */
enum err sim_load_trace(const char *path, struct sim_load *out, struct why *why);
/* Conversations of several turns over a few system prompts; `per_s` requests arrive a second. */
void sim_load_mix(uint64_t seed, uint32_t requests, double per_s, uint32_t block_tokens,
                  struct sim_load *out);
/* Alternately, `turns` times in all: long prompts with short answers, then short prompts with long
 * answers.  What eight usual workers can just serve, when five to six of them do what is asked. */
void sim_load_shift(uint64_t seed, uint32_t requests, uint32_t turns, uint32_t block_tokens,
                    struct sim_load *out);
/* job.possible for all: what one cache of this size would give each, served in order of arrival,
 * and job.endless: what was ever computed of it, by one cache of all the workload's blocks (at most
 * KV_BLOCK_COUNT_MAX, 16.7 million: beyond that the oldest are gone), in order of arrival too.  A
 * policy that computes requests in another order can reuse more than either. */
void sim_load_reach(struct sim_load *l, uint32_t cache_blocks);
void sim_load_release(struct sim_load *l);

/* -- a run ------------------------------------------------------------------------------------ */

struct sim_engine {                   /* what a simulated worker can do */
    double prefill_token_ns, prefill_context_ns;
    double step_ns, step_seq_ns;
    uint32_t chunk_tokens;            /* of prompts, a step */
    uint32_t cache_tokens, seqs;
    double link_bytes_s, kv_token_bytes;
};

struct sim_chaos {                    /* rates of misfortune; all 0: none */
    double deaths_per_s;              /* over all workers; each returns after some seconds */
    double cancel_share;              /* of requests */
    double deadline_share;
    uint64_t delay_ns;                /* more, at most, on any message */
    double slow_share;                /* of workers, at half speed and not told           */
    double switches_per_s;            /* wishes that some worker change its role          */
};

struct sim_options {
    uint32_t prefill, decode, both;
    enum sched_policy policy;
    uint32_t decode_policy;           /* as in sched_config */
    uint64_t metrics_ns;
    double speed;                     /* arrivals come this much faster than in the workload */
    uint32_t max_queue;
    uint64_t switch_interval_ns;      /* as in sched_config */
    bool no_pull;                     /* workers do not fetch blocks from each other */
    uint64_t seed;
    struct sim_engine engine;
    struct sim_chaos chaos;
};

struct sim_result {
    uint32_t requests, done, refused, lost, cancelled, expired;
    double seconds;                   /* virtual */
    double wall_s;
    double ttft_ms[4], itl_ms[4], e2e_ms[4];  /* mean, p50, p90, p99 of those done */
    double goodput;                   /* share of all: TTFT <= 2 s and mean ITL <= 50 ms        */
    double attained_per_s;            /* such requests a second */
    double reuse_possible;            /* of job.possible, the share taken from a cache          */
    double reuse_held;                /* the same, of those some worker held when it was placed */
    double reuse_endless;             /* the same, of job.endless                                */
    double hit_share;                 /* of all prompt tokens */
    double busy;                      /* mean share of time that workers computed prompts        */
    double imbalance;                 /* standard deviation / mean of that, over workers        */
    uint64_t deaths, decisions, events, mismatches;
    uint64_t switches, resumed;       /* of roles; requests that went on elsewhere for one */
};

/* Runs to the end.  A broken invariant prints the seed and the last events and does not return. */
void sim_run(const struct sim_load *load, const struct sim_options *o, struct sim_result *out);
/* After sim_load_reach: the speed at which computing what cannot be reused keeps workers busy for
 * this share of the time. */
double sim_speed_of_load(const struct sim_load *load, const struct sim_options *o, double share);
/* All workers' room for KV. */
uint32_t sim_cache_blocks(const struct sim_load *load, const struct sim_options *o);
/* A small job of any shape, with any misfortune, all from the seed. */
void sim_run_seed(uint64_t seed, uint32_t requests, struct sim_engine e, struct sim_result *out);
extern const struct sim_engine sim_engine_usual;

void sim_print_head(void);
void sim_print_row(const char *name, const struct sim_result *r);
struct json_t;
/* One object; the caller's. */
struct json_t *sim_json(const char *policy, double load, const struct sim_result *r);

/* -- inside a run ----------------------------------------------------------------------------- */

struct sim_world;
struct sim_worker;

/* sim_worker.c says these, at the world's present time. */
void world_say(struct sim_world *m, uint32_t rank, struct sched_event e);
void world_say_blocks(struct sim_world *m, uint32_t rank, const struct kv_change *c, size_t count);
void world_say_truth(struct sim_world *m, uint32_t rank, uint64_t count, struct hash128 xored);
/* KV of req has all arrived at `rank`, at a time to come. */
void world_say_kv(struct sim_world *m, uint32_t from, uint32_t rank, uint64_t at_ns,
                  struct req_id req);
/* worker_turn(rank) is wanted then; an earlier wish is forgotten. */
void world_wake(struct sim_world *m, uint32_t rank, uint64_t at_ns);
uint64_t world_now(const struct sim_world *m);
const struct sim_job *world_job(const struct sim_world *m, struct req_id req);
void world_note_cached(struct sim_world *m, struct req_id req, uint32_t blocks);

struct sim_worker *worker_open(struct sim_world *m, uint32_t rank, const struct sim_engine *e,
                               uint32_t block_tokens);
/* CHECKs that nothing is held. */
void worker_close(struct sim_worker *w, bool dead);
/* partner -1: alone.  pull_blocks > 0: it waits for worker_pulled first. */
void worker_run(struct sim_worker *w, struct req_id req, int32_t partner, uint32_t pull_blocks);
/* What it is waiting for like that; NULL: it is not, or no longer. */
const struct sim_job *worker_pulls(struct sim_worker *w, struct req_id req);
/* This many leading blocks of its prompt have come from another worker; 0: none will. */
void worker_pulled(struct sim_worker *w, struct req_id req, uint32_t blocks);
/* How many leading blocks of a prompt it holds. */
uint32_t worker_holds(struct sim_worker *w, const struct sim_job *job);
/* When so many bytes, asked for now, will have left it; its link is taken until then. */
uint64_t worker_send(struct sim_worker *w, uint64_t from_ns, double bytes);
void worker_expect(struct sim_worker *w, struct req_id req);
void worker_cancel(struct sim_worker *w, struct req_id req);
void worker_kv(struct sim_worker *w, struct req_id req);
/* The sender may let go. */
void worker_sent(struct sim_worker *w, struct req_id req);
void worker_turn(struct sim_worker *w);
/* Nothing of any request is here. */
bool worker_is_empty(const struct sim_worker *w);
double worker_busy_s(const struct sim_worker *w);
void worker_truth(const struct sim_worker *w, uint64_t *count, struct hash128 *xored);

#endif
