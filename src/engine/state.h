/* engine/state.h - what the files of src/engine share: the engine, a sequence, the running step.
 *
 * Owner: the control thread owns all of it, except that from step_start to the moment step_finished
 * is true, `step`'s arrays belong to the compute thread (with the ids, blocks, parameters of the
 * sequences in it, which nobody changes meanwhile: a dropped sequence stays until the collect).
 * Not here: the public functions (engine.h).
 */
#ifndef RANKSERVE_ENGINE_STATE_H
#define RANKSERVE_ENGINE_STATE_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "engine/engine.h"
#include "engine/pace.h"
#include "kv/key.h"
#include "kv/pool.h"

enum seq_state { SEQ_WAITING, SEQ_RUNNING, SEQ_HOLDING, SEQ_LOADING, SEQ_STATE_COUNT };

struct seq {
    struct req_id req;
    enum seq_mode mode;
    enum seq_state state;
    bool in_step;                     /* part of the running step, or being collected        */
    bool dropped;                     /* unknown to the owner; freed when it leaves the step */
    bool store_ended;                 /* a key was taken by other contents: store no more    */
    bool counted;                     /* admitted once: its prompt is in the stats           */
    bool again;                       /* was preempted: what it finds cached is no news      */
    uint64_t passed_over;             /* number of the step that waits for its blocks        */
    int32_t priority;
    uint64_t arrival;                 /* order among equal priorities                        */

    struct sampling params;
    struct logit_bias *bias;          /* (params.bias_count)                                 */
    int32_t *ids;                     /* (limit): prompt, then output                        */
    uint32_t *blocks;                 /* blocks of `limit` tokens; block_count are held      */
    struct hash128 root;
    struct hash128 *keys;             /* of full blocks; key_count are computed              */
    uint32_t *arrived;                /* IMPORT: (layers) tokens in place, from 0            */

    uint32_t limit;                   /* id_count never passes it                            */
    uint32_t prompt_count;
    uint32_t fill_count;              /* ids at engine_add: whose KV is moved, if any is     */
    uint32_t id_count;
    uint32_t target;                  /* ids when last queued: up to here it is prefill      */
    uint32_t computed;                /* tokens whose KV is in the blocks                    */
    uint32_t step_count;              /* tokens in the running step                          */
    uint32_t block_count, stored_count, key_count;
    uint32_t cached;                  /* prompt tokens found in the cache, not computed here */
    uint32_t score_next;              /* next prompt position to score; prompt_count: none   */

    struct seq *prev, *next;          /* in engine.lists[state]                              */
    struct seq *slot_next;            /* in engine.slots[req.slot]                           */
};

struct seq_list {
    struct seq *head, *tail;
    uint32_t count;
};

struct step_part {                    /* a sequence's part of the step */
    struct seq *seq;
    uint32_t job_first, job_count;    /* score jobs in order, then the draw if there is one */
};

struct engine_step {
    struct step step;
    int32_t *ids;                     /* (step_tokens_max)  */
    struct step_seq *seqs;            /* (step_seqs_max)    */
    struct step_part *parts;          /* (step_seqs_max)    */
    uint32_t *logit_rows;             /* (step_seqs_max)    */
    struct sample_job *jobs;          /* (step_seqs_max): one for each logit row             */
    bool prefill;                     /* has PREFILL sequences: somebody pushes their KV     */
    bool ends_prompt;                 /* has the last tokens of some prompt                  */
    struct pace_load load;
    double target_ns, short_target_ns; /* no tokens of a long, a short prompt past these     */
    enum err err;                     /* out                                                 */
    uint64_t started_ns, ended_ns;
};

enum { SCORES_AT_ONCE = 64 };         /* records in one call of sink.scores */

struct engine {
    struct engine_config config;
    struct engine_sink sink;
    void *backend;
    struct kv_shape shape;
    struct kv_scope scope;
    struct kv_pool *pool;
    uint32_t prefix_blocks_max;       /* of a sequence, that are stored */
    uint32_t vocab;                   /* ids are below it */

    struct seq *slots[REQ_COUNT_MAX]; /* chains by req.slot                                  */
    struct seq_list lists[SEQ_STATE_COUNT]; /* WAITING, RUNNING: by priority, then arrival   */
    uint32_t seq_count;
    uint64_t arrivals;
    struct engine_stats stats;        /* the counters of it; the rest is filled when asked   */
    struct token_record scores[SCORES_AT_ONCE];
    struct top_logprob score_tops[SCORES_AT_ONCE * TOP_LOGPROBS_MAX];

    struct engine_step step;
    struct pace pace;
    uint32_t mixed_steps;             /* with decodes and prompts, since one without prompts */
    bool step_running;
    bool work;                        /* engine_poll may find something to start             */
    int low_priority;                 /* wanted; config.backend has the one in force         */
    bool kv_advanced;                 /* tell sink.kv_progress                               */
    uint32_t layers_seen;             /* of the running step, when last told                 */

    int event_fd;
    _Atomic bool event_rung;          /* written to, or about to be, and not yet read        */
    _Atomic uint32_t layers_done;
    _Atomic bool step_finished;
    pthread_t thread;
    pthread_mutex_t lock;             /* of the flags below and `touch`                      */
    pthread_cond_t wake;
    bool step_given, leave;
    uint32_t touch;                   /* under it, too: make these blocks' memory ready; 0: none */
    uint32_t touch_asked;
};

/* seq.c: sequences, their lists and their blocks. */
enum err seq_new(struct engine *e, const struct seq_spec *spec, struct seq **out);
void seq_free(struct engine *e, struct seq *s);        /* off its list; blocks go back       */
void seq_forget(struct engine *e, struct seq *s);      /* the owner knows it no longer       */
struct seq *seq_find(const struct engine *e, struct req_id req);
void seq_move(struct engine *e, struct seq *s, enum seq_state state);
bool seq_before(const struct seq *a, const struct seq *b);
/* Takes blocks for `tokens` tokens, sharing what the cache has; all or nothing. */
bool seq_reserve(struct engine *e, struct seq *s, uint32_t tokens);
/* Holds what is cached of its beginning, and nothing more; its tokens. */
uint32_t seq_hold_cached(struct engine *e, struct seq *s);
/* Tokens that a sequence without blocks would find in the cache now. */
uint32_t seq_cached(struct engine *e, struct seq *s);
void seq_release(struct engine *e, struct seq *s);     /* all its blocks                     */
void seq_store(struct engine *e, struct seq *s);       /* full computed blocks get findable  */
/* Takes blocks that others computed since; the tokens found so. */
uint32_t seq_adopt(struct engine *e, struct seq *s);
/* `s` and `other` have the same text up to the end of this block, with the same salt. */
bool seq_same_block(struct engine *e, struct seq *s, struct seq *other, uint32_t block);
static inline bool seq_scores(const struct seq *s) { return s->score_next < s->prompt_count; }

/* batch.c: fills e->step; false when there is nothing to compute. */
bool batch_compose(struct engine *e);
/* collect.c: takes over the results of the finished step. */
void batch_collect(struct engine *e);

/* compute.c: the compute thread and the event. */
enum err compute_open(struct engine *e, struct why *why);
void compute_close(struct engine *e);
/* Between two steps: a new compute thread, with e->low_priority. */
void compute_renew(struct engine *e);
/* Starts the composed step; true if it was so short that it has ended already. */
bool compute_start(struct engine *e);
/* Nothing is here: the compute thread makes memory ready for what comes, piece after piece. */
void compute_touch(struct engine *e);
/* Something is: no more pieces. */
void compute_touch_stop(struct engine *e);
void event_ring(struct engine *e);
void event_take(struct engine *e);

#endif
