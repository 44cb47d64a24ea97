/* engine/engine.h - runs sequences on one rank: continuous batching over a backend.
 *
 * The engine owns the pool's books, the sequences and one compute thread.  The control thread (the
 * rank's main loop) calls everything here; the compute thread only computes, and alone does so, but
 * for steps that are over at once (at_once_ns).
 *
 *            engine_add                    step by step                  last token
 *   (new) ----------------> WAITING ---> RUNNING ------------------------> ended --> gone
 *      `- IMPORT -> LOADING ---engine_import_done--^    |  PREFILL: prompt done
 *                                  ^ preempted (recompute) `-> HOLDING --engine_drop--> gone
 *
 * Modes: LOCAL computes the prompt and generates.  PREFILL computes the prompt, draws the first
 * token, and holds the KV until engine_drop.  IMPORT reserves blocks, receives KV through
 * engine_import, and generates from the token after the first.
 *
 * Every step mixes decodes (first) with prefill chunks up to max_num_batched_tokens, and, beside
 * decodes, only so far as the step is predicted to end in time (pace.h).  A prompt that begins like
 * one which is being computed waits for those blocks instead of computing them again.  Admission
 * needs the whole prompt's blocks, and nobody overtakes within a priority.  When blocks run out the
 * youngest sequence is preempted and recomputed.  Without chunked prefill whole prompts go first.
 * Full blocks stay cached by key after their sequence ended (LRU from the tail of a chain).
 *
 * Always true: free + held + cached == total blocks; every sequence ends exactly once.
 * Not here: MPI and messages (src/mpi), which rank runs what (src/sched).
 */
#ifndef RANKSERVE_ENGINE_ENGINE_H
#define RANKSERVE_ENGINE_ENGINE_H

#include <stdbool.h>
#include <stdint.h>

#include "common/check.h"
#include "common/hash.h"
#include "common/ident.h"
#include "common/sampling.h"
#include "engine/backend.h"

struct engine;

struct engine_config {
    struct backend_config backend;
    const struct backend *table;
    struct hash_secret kv_secret;
    uint32_t max_model_len;
    uint32_t max_num_seqs;
    uint32_t max_num_batched_tokens;
    uint32_t long_prefill_token_threshold;  /* at most this many prompt tokens of one sequence in
                                               a step; 0: no limit of its own               */
    bool enable_chunked_prefill;      /* off: a prompt is one chunk                          */
    uint64_t step_time_target_ns;     /* of a step with decodes: prompts take no more of it than
                                         fits; 0: twice what its decodes alone would take */
    uint64_t at_once_ns;              /* steps predicted to be shorter are computed inside
                                         engine_poll: handing one over and hearing of its end
                                         takes two wake-ups.  0: none is                      */
    bool enable_prefix_caching;
};

enum seq_mode { SEQ_LOCAL, SEQ_PREFILL, SEQ_IMPORT };

struct seq_spec {
    struct req_id req;
    enum seq_mode mode;
    const int32_t *ids;               /* copied; prompt, then output already emitted (recovery) */
    uint32_t id_count, prompt_count;
    struct sampling params;           /* copied */
    const struct logit_bias *bias;    /* copied; params.bias_count                           */
    uint64_t cache_salt;
    int32_t priority;                 /* lower is earlier, as in vLLM; ties: first come      */
};

/* What the engine tells its owner, from inside engine_poll / engine_add / engine_import_done.
 * From inside token, scores and kv_progress anything but engine_poll and engine_close may be
 * called; from inside stored and dropped nothing.  All but token may be NULL. */
struct engine_sink {
    void *ctx;
    /* A new token.  record->finish != FINISH_NONE: the sequence has ended and is gone (PREFILL
     * mode: it is HOLDING after its one token; the owner drops it).  FINISH_ERROR: the backend
     * failed, and id is -1.  `cached` is how many prompt tokens came from the cache. */
    void (*token)(void *ctx, struct req_id req, const struct token_record *record,
                  const struct top_logprob *top, uint32_t cached);
    /* Scores of prompt positions (SAMPLING_PROMPT_LOGPROBS), in order; `tops` has record.top_count
     * entries for each record, one after another. */
    void (*scores)(void *ctx, struct req_id req, const struct token_record *records,
                   uint32_t count, const struct top_logprob *tops);
    /* KV of some PREFILL sequence advanced: look at engine_kv_tokens. */
    void (*kv_progress)(void *ctx);
    /* Blocks that can now be found by key, or no longer, in order. */
    void (*stored)(void *ctx, struct hash128 key, struct hash128 parent);
    void (*dropped)(void *ctx, struct hash128 key);
};

struct engine_stats {
    uint32_t blocks_total, blocks_free, blocks_held, blocks_cached;
    uint32_t seqs_waiting, seqs_running, seqs_holding, seqs_loading;
    uint32_t tokens_waiting;          /* prompt tokens not computed yet                      */
    uint64_t steps, preemptions;
    uint64_t prompt_tokens, prompt_tokens_cached;   /* of LOCAL and PREFILL, once a sequence */
    uint64_t output_tokens;           /* drawn here */
    uint64_t step_ns_sum;             /* time inside steps                                   */
    uint64_t step_started_ns;         /* 0: none running                                     */
};

/* Opens backend, pool and compute thread.  Fails with a line when a sequence of max_model_len could
 * never fit the pool (and says the size that would do). */
enum err engine_open(struct engine **out, const struct engine_config *c,
                     const struct engine_sink *sink, struct why *why);
/* Waits for the running step (bounded by one step), ends threads, frees everything. */
void engine_close(struct engine *e);

/* ERR_LIMIT: can never fit, or nothing is left to generate.  ERR_FULL: no room now (IMPORT: blocks;
 * all: sequence slots).  ERR_STALE: this req is already here.  ERR_FORMAT: counts, ids or
 * parameters that cannot be.  IMPORT sequences reserve their blocks now; `held_out` (may be NULL
 * for the other modes): leading tokens that are in the cache already and need not be sent. */
enum err engine_add(struct engine *e, const struct seq_spec *s, uint32_t *held_out);

/* Ends a sequence in whatever state; its blocks go back (after the running step).  Nothing more is
 * reported of it.  False: unknown. */
bool engine_drop(struct engine *e, struct req_id req);

/* PREFILL sequences: tokens from 0 whose KV is complete in this layer (0 when unknown).  Never gets
 * less: they are not preempted. */
uint32_t engine_kv_tokens(const struct engine *e, struct req_id req, uint32_t layer);
/* Copies them, laid out as in backend.h.  False: not all complete, nothing copied. */
bool engine_kv_read(struct engine *e, struct req_id req, uint32_t layer, uint32_t layers,
                    uint32_t first, uint32_t count, void *out);

/* IMPORT sequences: KV arrives, in each layer in order from held_out to id_count.  ERR_FORMAT:
 * not so, or byte_count is not layers * count * token_bytes.  ERR_STALE: none such loads here. */
enum err engine_import(struct engine *e, struct req_id req, uint32_t layer, uint32_t layers,
                       uint32_t first, uint32_t count, const void *bytes, uint64_t byte_count);
/* The backend's lanes, and what their calls take as `self`; NULL: there are none. */
const struct backend_lanes *engine_lanes(const struct engine *e, void **self);
/* As engine_kv_read, but out over a lane that has room. */
bool engine_lane_send(struct engine *e, struct req_id req, struct lane *lane, uint32_t layer,
                      uint32_t layers, uint32_t first, uint32_t count);
/* As engine_import, of what has arrived on a lane, which is dropped when this fails. */
enum err engine_lane_take(struct engine *e, struct req_id req, struct lane *lane, uint32_t layer,
                          uint32_t layers, uint32_t first, uint32_t count);
/* All KV is in place and this is the first token: the sequence starts to generate.  ERR_FORMAT: KV
 * is missing.  ERR_LIMIT: that token was the last allowed; nothing changed, drop it. */
enum err engine_import_done(struct engine *e, struct req_id req, int32_t first_token);

/* Holds what is cached of a prefix, under spec->req (mode PREFILL), to be read by engine_kv_read;
 * *tokens of it are there.  Ends by engine_drop.  ERR_GONE: nothing is; else as engine_add. */
enum err engine_prefix_hold(struct engine *e, const struct seq_spec *spec, uint32_t *tokens);
/* Ends an IMPORT sequence that was only to bring KV here: whole blocks that have arrived in every
 * layer stay in the cache.  Returns how many tokens of it are findable now. */
uint32_t engine_prefix_keep(struct engine *e, struct req_id req);

/* Readable (poll it) when the compute thread has news for engine_poll. */
int engine_event_fd(const struct engine *e);
/* What was called since engine_poll gave it something to do, or it left something over: to be asked
 * before its thread sleeps, which is woken by the compute thread only. */
bool engine_has_work(const struct engine *e);
/* Reports progress, collects a finished step, starts the next.  Never blocks for longer than a step
 * that was predicted to take less than at_once_ns.  True while a step is running. */
bool engine_poll(struct engine *e);

void engine_stats(const struct engine *e, struct engine_stats *out);
const struct kv_shape *engine_kv_shape(const struct engine *e);
/* What steps cost, as learned so far (pace.h); all 0 before the first one. */
struct engine_costs {
    double step_ns, decode_seq_ns, decode_position_ns, prefill_token_ns, prefill_position_ns;
    uint64_t decode_steps, prefill_steps; /* learned from: with decodes, with prompt tokens     */
};
void engine_costs(const struct engine *e, struct engine_costs *out);
/* Every block that can be found by key: what stored and dropped have told, all at once. */
void engine_keys(const struct engine *e, void *ctx,
                 void (*call)(void *ctx, struct hash128 key, struct hash128 parent));
/* backend_config.low_priority from now on, or from the end of the running step. */
void engine_low_priority(struct engine *e, int low_priority);
/* What the prefix cache may keep, from now on (common/cache_policy.h): blocks that nobody uses for
 * at most ttl_ns, at most entries_max of them, none while more than memory_threshold of the pool is
 * in use, and of a prompt the leading prefix_tokens_max.  0 is no limit; for the threshold 1 is. */
struct engine_cache_limits {
    uint64_t ttl_ns;
    uint32_t entries_max, prefix_tokens_max;
    double memory_threshold;
};
void engine_cache_limit(struct engine *e, const struct engine_cache_limits *limits);
/* Drops what has been unused for too long; engine_poll does it too. */
void engine_cache_tick(struct engine *e);
/* Drops every cached (not held) block. */
void engine_cache_clear(struct engine *e);

#endif
