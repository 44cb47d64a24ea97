/* mpi/rank0.h - the rank that schedules: gateways on one side, workers on the other.
 *
 *   rank0.c           the loop, workers' messages, heartbeats, how the job ends
 *   rank0_requests.c  the table of requests: prompts, emitted tokens, order of tokens
 *   rank0_act.c       events to the scheduler, its actions to workers and gateways
 *   rank0_policy.c    the policy of cache and placement, at start and when it changes
 *   rank0_link.c      gateways: handshake, frames in, frames out
 *   rank0_roles.c     workers that change between prefill and decode
 *   rank0_rates.c     how fast workers are, told to the scheduler
 *   rank0_index.c     which worker holds which block; keys of prompts
 *
 * Always true: every REQUEST of a gateway is answered with exactly one END while that gateway stays
 * connected; a slot is free again only when no worker holds anything of its request.
 */
#ifndef RANKSERVE_MPI_RANK0_H
#define RANKSERVE_MPI_RANK0_H

#include "mpi/blocks.h"
#include "mpi/job.h"
#include "mpi/loop.h"
#include "mpi/port.h"
#include "kv/key.h"
#include "kv/shared_view.h"
#include "mpi/weights.h"
#include "sched/sched.h"
#include "wire/link.h"

/* A worker is asked this often, and lost when it was silent between four of our own ticks in a
 * row: when rank 0 itself was late, only one tick has passed.  A tick at which its process waits
 * for a processor does not count among the four. */
#define TICK_NS (200 * NS_PER_MS)
enum { TICKS_SILENT_MAX = 4 };
/* For those that wait for a processor, too; and the last one is given more in any case: to take it
 * for lost ends the job. */
enum { TICKS_SILENT_LAST_MAX = 50 };

struct peer_worker {
    bool alive, up;
    bool spare;                       /* waits for the place of one that is lost */
    enum role role;                   /* a spare has none yet */
    uint32_t silent_ticks, starved_ticks;
    uint64_t heard_ns;                /* at the last tick */
    struct msg_up about;
    struct msg_stats stats;
    struct sched_rates rates;         /* as told to the scheduler */
    double link_bytes_s;              /* of pushes to it; 0: none was measured */
};

struct early {                        /* a token that came before the one in front of it */
    struct early *next;
    struct token_record record;
    struct top_logprob top[];
};

struct request {
    bool used;
    bool ended;                       /* its last token has passed, or END */
    bool answered;                    /* END has passed */
    bool started;                     /* a token of this attempt has passed */
    struct req_id id;
    int gateway;                      /* index; -1: it has gone */
    uint64_t stream;
    int32_t *ids;                     /* prompt, then all that was emitted */
    uint32_t id_count, id_room, prompt_count;
    uint32_t score_next;              /* position of the next prompt score to pass on */
    uint32_t cached;                  /* prompt tokens that were not computed                 */
    uint32_t cached_most;             /* that some worker held when it was placed             */
    uint64_t cache_salt;
    int32_t priority;
    struct sampling params;
    struct logit_bias *bias;
    struct hash128 *keys;             /* of the blocks that may be cached; key_count          */
    uint32_t key_count;
    int32_t prefill, decode;          /* -1: none yet */
    uint64_t arrived_ns;
    struct early *early;              /* ascending positions */
};

struct gateway;

enum { LINES_MAX = 32 };
struct line {                         /* of the log, about a request */
    struct req_id req;
    bool first;                       /* its first token; else its end */
    uint16_t code, finish;
    uint32_t prompt, cached, output;
    uint64_t ns;                      /* since it arrived */
};

struct rank0 {
    struct job *job;
    struct loop *loop;
    struct port *port;
    struct weights weights;
    struct watch signals;
    struct sched *sched;
    struct sched_event *events;       /* not yet shown to the scheduler */
    uint32_t event_count, event_room;
    struct peer_worker *workers;      /* by rank */
    struct request *requests;         /* REQ_COUNT_MAX */
    uint64_t *streams;                /* by slot; 0: none.  Searched for every REQUEST and CANCEL */
    uint32_t *emitted;                /* by slot: tokens passed on; the scheduler reads it */
    uint16_t *free_slots;
    uint32_t free_count;
    uint32_t slot_end;                /* behind the last slot that was ever used */
    struct blocks_in blocks;          /* the index, once every worker is up */
    struct shared_view *view;         /* what is told to other jobs' gateways; NULL: no Redis */
    uint64_t epoch;                   /* of this run: entries of another one count for nothing */
    struct gateway *gateways;         /* GATEWAY_COUNT_MAX */
    struct watch listener, far_listener; /* --link, --link-listen */
    char *link_path;                  /* Unix socket to remove at the end */
    struct cache_policy policy;       /* in force */
    bool policy_changed;              /* since the start: workers that come later are told */
    enum job_state state;
    bool draining, rank_lost, over;
    int over_code;
    char over_why[256];
    uint32_t max_model_len;           /* the smallest of the workers */
    uint32_t signal_count;
    uint64_t signal_ns, drain_end_ns, tick_ns, state_ns;
    uint64_t workers_lost, stale;
    struct line lines[LINES_MAX];     /* to be written behind the frames they are about */
    uint32_t line_count;
    uint64_t reuse_possible, reuse_captured; /* tokens, over all requests that ended          */
    struct {
        uint64_t preemptions, prompt, cached, output, kv, lanes, step_ns, stale, wakeups;
    } past;
};

_Noreturn void rank0_run(struct job *j, struct port *port, const struct weights *w);
/* The job will end with this code and line; the first reason stays. */
void rank0_over(struct rank0 *z, int code, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
void rank0_lost(struct rank0 *z, int rank, const char *how);
/* Writes {"code":..,"why":".."} where the configuration says, whole or not at all. */
void rank0_status_file(const struct config *c, int code, const char *why);

/* rank0_requests.c */
void requests_open(struct rank0 *z);
/* NULL: all slots are taken. */
struct request *request_add(struct rank0 *z, int gateway, const struct link_request *m);
struct request *request_find(struct rank0 *z, struct req_id id);
/* Another attempt begins, behind what was emitted: what waits of the last one is forgotten. */
void request_restart(struct request *r, struct req_id id, int32_t prefill, int32_t decode);
struct request *request_of_stream(struct rank0 *z, int gateway, uint64_t stream);
void request_free(struct rank0 *z, struct request *r);
void requests_on_tokens(struct rank0 *z, int from, const struct msg_tokens *m);
void requests_on_scores(struct rank0 *z, const struct msg_tokens *m);

/* rank0_act.c */
/* Only queues: nothing is freed or sent before act_step. */
void act_event(struct rank0 *z, struct sched_event e);
/* Runs the scheduler over all events and carries out what it wants. */
void act_step(struct rank0 *z);
void act_cancel(struct rank0 *z, const struct request *r, int worker);
void act_end(struct rank0 *z, struct request *r, enum link_code code, enum finish finish,
             uint32_t retry_after_s);

/* Logs `l` when the turn's frames are out: to make its text takes longer than to queue a frame. */
void lines_add(struct rank0 *z, const struct line *l);
void lines_write(struct rank0 *z);

/* rank0_rates.c */
/* After a STATS of this worker. */
void rates_learn(struct rank0 *z, int from);
/* A push to this worker went at this speed. */
void rates_learn_link(struct rank0 *z, int to, double bytes_s);

/* rank0_index.c */
/* When every worker is up. */
void index_open(struct rank0 *z);
void index_on_blocks(struct rank0 *z, int from, const struct msg_blocks *m);
void index_on_stats(struct rank0 *z, int from, const struct msg_stats *m);
void index_lost(struct rank0 *z, int rank);
/* Connects to the shared view, when there is to be one. */
enum err index_share(struct rank0 *z, struct why *why);
void index_fill_state(const struct rank0 *z, struct link_state *m);
/* What must be equal for a block to be of use to a request here. */
struct kv_scope index_scope(const struct rank0 *z);
/* Could these be the keys of this prompt? */
bool index_keys_fit(const struct rank0 *z, const struct link_request *m);
/* Fills r->keys from the frame, or computes them. */
void index_keys_of(struct rank0 *z, struct request *r, const struct link_request *m);

/* rank0_policy.c */
/* The settings at start: what the scheduler gets.  ERR_FORMAT: no policy has this name. */
enum err policy_start(struct rank0 *z, struct sched_config *s, struct why *why);
/* From now on; a policy whose names are unknown is refused with a line in the log. */
void policy_change(struct rank0 *z, const struct cache_policy *p);
/* Tells a worker that has come up what differs from its settings. */
void policy_tell(struct rank0 *z, int worker);

/* rank0_roles.c */
/* ACT_ROLE. */
void roles_on_action(struct rank0 *z, const struct sched_action *a);
/* Tells the workers of a host (by any rank of it) their roles and who goes first there. */
void roles_tell(struct rank0 *z, int rank);

/* rank0_link.c */
enum err links_open(struct rank0 *z, struct why *why);
void links_listen(struct rank0 *z);                   /* from now on gateways may connect */
/* Every gateway sees the end at once, however long the ranks take to leave. */
void links_close(struct rank0 *z);
/* Sends what is queued, closes what broke; call it once per turn of the loop. */
void links_turn(struct rank0 *z);
/* Ends handshakes that take too long. */
void links_tick(struct rank0 *z, uint64_t now_ns);
bool links_connected(const struct rank0 *z);
bool links_sent_all(const struct rank0 *z);
/* Queues a frame for a gateway (index; -1 and gone ones are ignored). */
void links_send(struct rank0 *z, int gateway, const void *frame, size_t bytes);
/* STATE to every gateway. */
void links_state(struct rank0 *z);

#endif
