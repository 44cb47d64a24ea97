/* sched/sched.h - decides which worker does what.  Pure: events in, actions out.
 *
 * Knows no clock, socket, MPI, thread, file or heap: what it returns depends on its state and its
 * arguments alone, so that a test or a simulator replays it.  Time comes in as a number; memory is
 * the caller's, sized by sched_bytes.
 *
 * Placement is a policy of one table (sched/policy.c), one for the worker that computes the prompt
 * and one for the worker that generates.  What is cached where comes from the index given at init.
 * With POLICY_COST and known rates (EV_RATES) requests wait here, not at workers: each is planned
 * on a worker at once, and handed out when that worker is about to need it (sched/plan.c).
 *
 * Whose turn it is: by priority; then the user who was served least (sched/fair.c); then whose
 * first token is due earliest, of those planned here also by length (sched/plan.c).
 *
 * A worker's blocks are charged as they are held: the prompt, some growth, and from then on what is
 * emitted.  One that refuses all the same gets nothing as large until something of it has gone.
 *
 * A request's life (sched/req.c checks every move):
 *
 *     QUEUED -place-> PREFILLING -first token-> DECODING -last token-> ENDED -all gone-> free
 *      | ^                |                        |                     ^
 *      | `--RETRY <-------+-refused, worker lost---'                     |
 *      `--------------cancel, deadline, in every state-------------------'
 *
 * A request whose worker is lost, or gives it up, is placed again under the next attempt and goes
 * on behind what was emitted.  It ends with END_WORKER_LOST only when attempts keep failing, or
 * when for LOST_WAIT_NS nobody that is alive could ever take it.  When all workers of a role are
 * lost, those of the other role do both.  A worker may change its role when the mix of work has
 * changed (sched/roles.c).
 *
 * Always true: every request gets exactly one ACT_END, then exactly one ACT_FREE once no worker
 * holds anything of it.  A worker's books (sequences, blocks) are charged when a request is placed
 * and discharged when that worker said GONE, or was lost.
 * Not here: prompts, tokens, messages (src/mpi), the index itself (kv/index.h).
 */
#ifndef RANKSERVE_SCHED_SCHED_H
#define RANKSERVE_SCHED_SCHED_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/check.h"
#include "common/ident.h"
#include "common/limits.h"

enum sched_policy {
    POLICY_COST,                      /* least cost: waits, recompute, transfer, harm to others  */
    POLICY_CACHE_AWARE,               /* the longest cached prefix; then the least work ahead    */
    POLICY_LOAD_BASED,                /* the least work ahead; for decode the fewest sequences   */
    POLICY_LATENCY_OPTIMIZED,         /* the earliest first token; for decode the shortest step  */
    POLICY_ROUND_ROBIN,
    POLICY_RANDOM,
    POLICY_LLM_D_WEIGHTED,            /* llm-d's sum: prefix 3, queue 2, kv 2                    */
    POLICY_LLM_D_AFFINITY,            /* llm-d's sticky filter (0.80), then token load           */
    POLICY_COUNT
};
/* "cost", "cache-aware", ... as in the table of policy.c; false when `name` is none of them. */
bool sched_policy_find(const char *name, enum sched_policy *out);
const char *sched_policy_name(enum sched_policy policy);

/* What one worker can do, as measured.  All > 0, but for context and link: 0 is none. */
struct sched_rates {
    double prefill_token_ns;          /* per prompt token                                        */
    double prefill_context_ns;        /* more per prompt token, per 1,024 tokens before it       */
    double step_ns, step_seq_ns;      /* of a decode step: fixed; per sequence                   */
    double kv_token_bytes;            /* of KV, all layers                                       */
    double link_bytes_s;              /* from another worker to it; 0: not measured              */
    uint32_t cores;                   /* equal: they compute on the same cores; 0: its own       */
};

struct kv_index;
struct hash128;

struct sched_config {
    uint32_t rank_count;              /* ranks 1 .. rank_count-1 are workers */
    uint32_t queue_max;               /* waiting requests; one more is refused */
    uint32_t block_tokens;
    enum sched_policy policy;         /* for the worker that computes the prompt */
    uint32_t decode_policy;           /* for the one that generates: policy + 1; 0: the same     */
    uint64_t seed;                    /* of POLICY_RANDOM and of ties */
    const struct kv_index *index;     /* NULL: nothing is known of what is cached                */
    /* CachePolicy: how much a recompute and a wait count, 0 .. 1; both 0: equally. */
    double cache_locality_weight, latency_weight;
    uint64_t ttft_target_ns;          /* 0: 2 s */
    bool pull;                        /* workers can fetch blocks from each other (POLICY_COST)  */
    uint64_t metrics_ns;              /* llm-d-weighted sees queues and KV use this old; 0: exact */
    uint64_t itl_target_ns;           /* of the loads that role switches weigh; 0: 50 ms         */
    uint64_t switch_interval_ns;      /* between two role switches, at least; 0: none by itself  */
    /* The caller's, by slot (REQ_COUNT_MAX): tokens emitted so far, of all attempts.  NULL: a new
     * attempt computes the prompt alone. */
    const uint32_t *emitted;
};

enum sched_event_type {
    EV_WORKER_UP,                     /* worker, role, blocks, seqs, max_tokens: max_model_len */
    EV_WORKER_LOST,                   /* worker                                         */
    EV_REQUEST,                       /* req, prompt_tokens, max_tokens, priority, deadline_ns,
                                         user, ttft_ns, tpot_ns;
                                         keys, key_count: of the blocks that may be cached      */
    EV_CANCEL,                        /* req: the client went away                      */
    EV_FIRST,                         /* req: its first token arrived                   */
    EV_GREW,                          /* req: its output filled another block (config.emitted) */
    EV_FINISHED,                      /* req, finish: its last token arrived            */
    EV_GONE,                          /* req, worker: it holds nothing of req now       */
    EV_REFUSED,                       /* req, worker, err: it could not take req, or gave it up */
    EV_DRAIN,                         /* no new requests; those waiting are served      */
    EV_RATES,                         /* worker, rates: measured, at start or later     */
    EV_POLICY,                        /* policy, decode_policy, weights: from now on    */
    EV_ROLE,                          /* worker, role: it shall have that one, once drained; nothing
                                         happens when its own would be left without a worker, or
                                         another one is drained                         */
};

struct sched_event {
    enum sched_event_type type;
    struct req_id req;
    int32_t worker;                   /* rank */
    enum role role;
    uint32_t blocks, seqs;
    uint32_t prompt_tokens, max_tokens;
    int32_t priority;                 /* lower is earlier */
    uint64_t deadline_ns;             /* 0: none */
    uint64_t user;                    /* whose; 0: all that say nothing, together */
    uint64_t ttft_ns, tpot_ns;        /* wanted time to the first token, and between two; 0: none */
    uint16_t finish;                  /* enum finish */
    enum err err;
    /* The caller's; unchanged until ACT_FREE of the request. */
    const struct hash128 *keys;
    uint32_t key_count;
    const struct sched_rates *rates;  /* copied */
    enum sched_policy policy;
    uint32_t decode_policy;           /* as in sched_config */
    double cache_locality_weight, latency_weight;
};

enum sched_action_type {
    ACT_RUN,                          /* worker computes req alone                      */
    ACT_PAIR,                         /* prefill computes, pushes to decode             */
    ACT_CANCEL,                       /* tell worker to drop req                        */
    ACT_END,                          /* tell the gateway: code, finish, retry_after_s  */
    ACT_FREE,                         /* nobody holds req: its slot may be used again   */
    ACT_ROLE,                         /* worker, role, stage; no req                    */
};

enum sched_role_stage {
    ROLE_DRAINS,                      /* it gets nothing new, and shall have that role  */
    ROLE_SWITCHES,                    /* it holds nothing: from now on it has that role */
    ROLE_STAYS,                       /* it keeps that role after all                   */
};

enum sched_end {                      /* why, for ACT_END; maps to enum link_code       */
    END_DONE,
    END_FULL,
    END_TOO_LONG,
    END_DRAINING,
    END_WORKER_LOST,
    END_DEADLINE,
    END_CANCELLED,
};

struct sched_action {
    enum sched_action_type type;
    struct req_id req;
    int32_t worker;                   /* RUN, CANCEL */
    int32_t prefill, decode;          /* PAIR        */
    enum sched_end end;
    uint16_t finish;
    uint32_t retry_after_s;
    uint32_t cached;                  /* RUN, PAIR: prompt tokens that worker or prefill holds   */
    uint32_t cached_most;             /* the most that any worker holds                          */
    /* RUN, PAIR: it should first fetch the prompt's leading pull_tokens from that worker, which is
     * believed to hold them: cheaper than to compute those after `cached`.  0: nobody. */
    int32_t pull_from;
    uint32_t pull_tokens;
    uint64_t pull_ns;                 /* how long that should take */
    enum role role;                   /* ROLE */
    enum sched_role_stage stage;
};

struct sched;
size_t sched_bytes(const struct sched_config *c);
/* `memory` is sched_bytes(c) bytes, aligned as malloc does; *c is copied. */
struct sched *sched_init(void *memory, const struct sched_config *c);

/* What is cached where, from now on; as config.index. */
void sched_index(struct sched *s, const struct kv_index *index);

/* Takes the events, places what waits, and hands out up to out_max actions, in order.  The caller
 * calls again (with no events) while the result equals out_max.  ACT_RUN and ACT_PAIR carry the
 * request's current attempt: later events about it use that one. */
enum { SCHED_EVENTS_MAX = 256, SCHED_ACTIONS_MAX = 1024 };
size_t sched_step(struct sched *s, uint64_t now_ns, const struct sched_event *in, size_t in_count,
                  struct sched_action *out, size_t out_max);
/* When sched_step must be called next though nothing happened (a deadline); UINT64_MAX: never. */
uint64_t sched_wake_ns(const struct sched *s);

struct sched_stats {
    uint64_t decisions, ended, refused, workers_lost;
    uint64_t no_room;                 /* placements that a worker refused for want of blocks     */
    uint64_t recovered;               /* attempts that failed and were followed by another */
    uint64_t lookups;                 /* prompts looked for in the index */
    uint32_t waiting, prefilling, decoding, ending;
    uint32_t prefill_alive, decode_alive; /* workers that can take that part; BOTH: in both */
    uint64_t role_switches;
    uint64_t resumed;                 /* what a drained worker was still at when time was up     */
    double prefill_load, decode_load; /* of the roles; above 1 targets are missed                */
};
void sched_stats(const struct sched *s, struct sched_stats *out);
/* True when no request is alive: what a drain waits for. */
bool sched_idle(const struct sched *s);

#endif
