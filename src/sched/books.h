/* sched/books.h - what rank 0 believes: requests, workers, the queue, and actions not yet taken.
 *
 * Private to src/sched.  Books are exact, not sampled: a worker is charged the moment a request is
 * placed on it, so two decisions in a row never choose the same idle worker by mistake.
 *
 *  state       on which workers it may hold something          in the queue
 *  QUEUED      none (it may be planned on one: `plan`)         yes
 *  PREFILLING  prefill and/or decode (one and the same: RUN)   no
 *  DECODING    decode; prefill until its KV has left           no
 *  RETRY       those that have not said GONE yet               no
 *  ENDED       those that have not said GONE yet               no
 */
#ifndef RANKSERVE_SCHED_BOOKS_H
#define RANKSERVE_SCHED_BOOKS_H

#include "common/hash.h"
#include "kv/index.h"
#include "sched/sched.h"

enum req_state {
    REQ_FREE,
    REQ_QUEUED,
    REQ_PREFILLING,
    REQ_DECODING,
    REQ_RETRY,
    REQ_ENDED,
    REQ_STATE_COUNT
};

enum { NO_WORKER = -1, NO_SLOT = UINT16_MAX };

struct request {
    enum req_state state;
    struct req_id id;
    uint32_t prompt_tokens, max_tokens;       /* of the next attempt: what was emitted is prompt */
    uint32_t emitted;                 /* how much of prompt_tokens that is                      */
    uint8_t failures, fruitless;      /* attempts that failed; since the last token             */
    int32_t priority;
    uint64_t order;                   /* of arrival: first come, first served within a priority */
    uint64_t deadline_ns, not_before_ns;
    int32_t prefill, decode;          /* who holds something; equal for RUN; NO_WORKER: nobody  */
    uint32_t prefill_blocks, decode_blocks;   /* what they are charged                          */
    bool handing;                     /* its KV is on the way from prefill to decode             */
    bool prompt_charged;              /* work_* still count as work ahead on `prefill`           */
    uint32_t work_tokens;             /* prompt tokens to compute there                          */
    uint64_t work_ns;                 /* how long that takes                                     */
    uint16_t next, previous;          /* in the queue                                            */
    const struct hash128 *keys;       /* the caller's                                            */
    uint32_t key_count;
    uint32_t blocks_least, blocks_soon;   /* with one token of output; with some growth          */
    uint64_t arrived_ns;
    uint16_t flow;                    /* of its user, in sched.flows                             */
    bool paid;                        /* its prompt is in what that user has attained            */
    uint64_t due_ns;                  /* its first token should have come                        */
    uint64_t ttft_ns, tpot_ns;        /* targets of its own; 0: none                             */
    int32_t plan;                     /* the worker that will compute it; NO_WORKER: none yet    */
    uint64_t plan_key;                /* its turn among those planned there: lowest first        */
    uint16_t plan_next, plan_previous;
};

/* Within a priority lower ones are first: a client waits in the middle of a stream, whose worker or
 * room was lost; or it has waited for its turn once already, and its worker was lost. */
enum turn { TURN_STREAM, TURN_AGAIN, TURN_NEW };
static inline enum turn turn_class(const struct request *r)
{
    return r->emitted > 0 ? TURN_STREAM : r->failures > 0 ? TURN_AGAIN : TURN_NEW;
}
static inline bool goes_on(const struct request *r)
{
    return turn_class(r) != TURN_NEW;
}

struct worker {                       /* first what a decision looks at of each of them */
    bool alive;
    enum role role;
    enum role becomes;                        /* it drains to have this role; 0: it stays     */
    uint32_t blocks, seqs, tokens_max;        /* what it has                             */
    uint64_t busy_until_ns;                   /* when its prompts are done, if they started when
                                                 told                                         */
    struct sched_rates rates;
    uint32_t blocks_charged, seqs_charged;
    uint64_t prompt_tokens_charged;           /* to compute, of prompts without a first token */
    uint64_t work_charged_ns;                 /* how long those take                          */
    uint32_t prompts_charged;                 /* how many those are                           */
    uint32_t handing_blocks;                  /* of prompts that are done and not all here yet */
    uint32_t refused_blocks;                  /* no room for so many; 0: since its last GONE */
    uint64_t filled;                          /* blocks it was given to fill; ties go by it */
    uint16_t plan_head;                       /* requests planned here, by plan_key           */
    uint32_t plan_count, plan_blocks;
    uint64_t plan_ns;
    uint32_t seen_waiting;                    /* as llm-d would have scraped it               */
    double seen_use;
};

struct flow {                         /* what one user has here: sched/fair.c */
    uint64_t user, attained;          /* tokens, output twice                 */
    uint32_t live, waiting;           /* requests not ended; in the queue     */
};

/* What all workers together have to do, averaged over the last seconds. */
struct mix {
    double prompts;                   /* workers that compute prompts longer than a decode step */
    double backlog_ns;                /* of prompts, the time it takes to compute them          */
    double decoding;                  /* sequences that generate                                */
    double held, blocks;              /* these and those that will, on decode workers; blocks   */
    double waiting;                   /* requests that wait for nothing but room to generate    */
    double rising;                    /* more sequences, per second                             */
};

struct roles {
    struct mix mix;
    double held;                      /* at the last look, exactly                          */
    uint64_t looked_ns, look_ns;      /* the last look, the next one                        */
    enum role wanted;                 /* the role that lacks a worker; 0: none              */
    uint64_t wanted_ns;               /* since when                                         */
    uint64_t free_ns;                 /* no switch begins before, but for the same role     */
    enum role last;                   /* that a worker took last; 0: nobody                 */
    uint32_t moving;                  /* the worker that drains; 0: none                    */
    uint64_t drain_end_ns;
    bool resumed;                     /* its rest was sent elsewhere                        */
};

struct sched {
    struct sched_config config;
    struct request requests[REQ_COUNT_MAX];
    struct worker workers[WORKER_COUNT_MAX + 1];  /* by rank; [0] is never alive */
    uint16_t queue_head, queue_tail;
    uint32_t queue_count;
    struct flow flows[FLOW_COUNT_MAX];
    uint32_t flows_live, flows_waiting;
    uint64_t fair_floor;              /* where a user who comes back starts */
    uint64_t order_next, random_state;
    uint32_t turn;                    /* of round-robin */
    bool draining;
    bool no_prefill, no_decode;       /* nobody has that role: the others do both */
    uint64_t now_ns;                  /* of this step */
    uint64_t wake_ns;
    uint64_t timed_ns;                /* no deadline or not_before ends earlier */
    uint64_t lost_wait_ns;            /* then what nobody left can take is ended */
    struct sched_stats stats;
    uint32_t timed_count;             /* live requests with a deadline or a not_before */
    bool rated;                       /* EV_RATES has come: requests wait here, planned */
    uint32_t plan_count;
    uint64_t planned[(WORKER_COUNT_MAX + 64) / 64];   /* by rank: something is planned there */
    uint32_t kept_rank;               /* its next room to decode is for kept_slot; 0: nobody's */
    uint16_t kept_slot;               /* planned somewhere */
    uint64_t steal_ns;                /* no earlier than this is it worth to look for a move */
    uint64_t seen_ns;                 /* when the seen_* of workers were taken */
    double ttft_debt_s;               /* virtual queue: grows with first tokens later than the
                                         service's target, whatever their clients want */
    uint32_t cores_next[WORKER_COUNT_MAX + 1];    /* the next rank on the same cores, in a ring */
    struct roles roles;
    uint32_t held[WORKER_COUNT_MAX + 1];  /* by rank: leading blocks of the request in hand */
    uint32_t held_most;               /* the most of them, and a worker with so many; 0: nobody */
    int32_t held_by;
    const struct request *matched;    /* whose these are; NULL: nobody's, in this step */
    /* Actions wait here until the caller has room.  A request causes at most
     * ACTIONS_PER_REQUEST before the caller takes them, whatever happens to it. */
    uint32_t action_first, action_count;
    struct sched_action actions[];    /* ACTION_ROOM */
};

enum {
    ACTIONS_PER_REQUEST = 6,
    ACTIONS_OF_ROLES = 3 * (SCHED_EVENTS_MAX + 1),  /* an event begins or ends at most one switch */
    ACTION_ROOM = REQ_COUNT_MAX * ACTIONS_PER_REQUEST + ACTIONS_OF_ROLES
};

/* sched/sched.c */
void act(struct sched *s, struct sched_action a);
/* Ends this attempt; the next one goes on behind what was emitted.  Not a failure. */
void request_resume(struct sched *s, struct request *r);

/* sched/req.c */
void request_move(struct request *r, enum req_state to);
uint32_t request_blocks(const struct sched *s, uint32_t tokens);
/* Output tokens that room is kept for when it is placed. */
uint32_t request_growth(const struct request *r);
void queue_insert(struct sched *s, struct request *r);
void queue_remove(struct sched *s, struct request *r);
/* Charges and discharges; both leave the books consistent. */
void charge(struct sched *s, struct request *r, int32_t prefill, int32_t decode, uint64_t now_ns);
/* The first token has come: from now on the prefill worker holds the prompt for decode alone. */
void handing_begin(struct sched *s, struct request *r);
void discharge_prompt(struct sched *s, struct request *r, uint64_t now_ns);
void discharge(struct sched *s, struct request *r, int32_t worker, uint64_t now_ns);

/* The output of a request that is placed has passed the end of a block. */
void charge_grown(struct sched *s, struct request *r);
/* Its blocks, from its tokens. */
void request_measure(const struct sched *s, struct request *r);

/* sched/fair.c */
void fair_join(struct sched *s, struct request *r, uint64_t user);
void fair_leave(struct sched *s, const struct request *r);
void fair_queued(struct sched *s, const struct request *r);
void fair_unqueued(struct sched *s, const struct request *r);
void fair_placed(struct sched *s, struct request *r);
void fair_grew(struct sched *s, const struct request *r);
bool fair_before(const struct sched *s, const struct request *a, const struct request *b);
/* The request of the queue whose turn it is; NULL: none may be placed yet. */
struct request *fair_first(struct sched *s, uint64_t now_ns);
/* The same among those planned on w, of which there is one. */
struct request *fair_planned(struct sched *s, const struct worker *w);

/* sched/policy.c */
/* s->held, held_most and held_by for this request. */
void policy_match(struct sched *s, const struct request *r);
/* Looks which roles nobody has.  Call it when a worker comes, goes or changes its role. */
void policy_roles(struct sched *s);
/* Where could r go now?  False: nowhere; it waits.  RUN: *prefill == *decode.  Needs s->held. */
bool policy_place(struct sched *s, const struct request *r, uint64_t now_ns, int32_t *prefill,
                  int32_t *decode);
/* Could any worker that is alive ever hold it?  True while none is up yet. */
bool policy_fits(const struct sched *s, uint32_t prompt_tokens);
bool policy_can_take(const struct sched *s, const struct worker *w, const struct request *r);
bool policy_can_ever_take(const struct sched *s, const struct worker *w, const struct request *r);
/* ... any worker that is alive. */
bool policy_anybody_ever(const struct sched *s, const struct request *r);
/* The worker to plan r on, with room or not; NO_WORKER: none can ever take it. */
int32_t policy_plan(struct sched *s, const struct request *r, uint64_t now_ns);
bool policy_can_plan(const struct sched *s, const struct request *r, uint32_t rank);
/* The worker that generates what `prefill` computes; NO_WORKER: none has room. */
int32_t policy_partner(struct sched *s, const struct request *r, int32_t prefill,
                       uint64_t now_ns);
/* The worker with most free blocks that could ever generate r, with room now or not; 0: none. */
uint32_t policy_emptiest(const struct sched *s, const struct request *r);

#define TTFT_TARGET_NS UINT64_C(2000000000)   /* unless the configuration says */
/* The service's own, of requests that name none. */
static inline uint64_t ttft_target_ns(const struct sched *s)
{
    return s->config.ttft_target_ns ? s->config.ttft_target_ns : TTFT_TARGET_NS;
}
/* sched/cost.c: the cost model, in ns.  Needs s->held. */
extern const struct sched_rates cost_rates_guess;
#define COST_OTHERS 2.0               /* what a recompute takes from others, times itself */
#define COST_COPY 2.0                 /* what room for a second copy does, times its recompute */
uint32_t cost_cached_tokens(const struct sched *s, const struct request *r, uint32_t rank);
/* What a prompt that takes own_ns on a worker does to those who generate; below 0 when it is the
 * best that can be done for them. */
double cost_harm_ns(const struct sched *s, const struct request *r, uint32_t rank, double own_ns);
/* The cheapest way to a first token of r on a worker, once it is its turn. */
struct prompt_cost {
    double compute_ns;                /* the worker is busy for this long                    */
    double fetch_ns;                  /* r waits for this before; the worker does not        */
    double copy_ns;                   /* what blocks cost others that it will hold a second time */
    uint32_t pull_tokens;             /* fetched from s->held_by; 0: none                    */
};
struct prompt_cost cost_of_prompt(const struct sched *s, const struct request *r, uint32_t rank);
/* Its compute_ns. */
double cost_prefill_ns(const struct sched *s, const struct request *r, uint32_t rank);
/* A nanosecond that this request waits. */
double cost_of_waiting(const struct request *r);
/* Until a worker has computed what it was given. */
double cost_busy_ns(const struct worker *w, uint64_t now_ns);
/* What it costs that r waits for its turn on `rank`, and that others there wait for r. */
double cost_wait_ns(const struct sched *s, const struct request *r, uint32_t rank, double own_ns,
                    uint64_t now_ns);
/* On cores that others compute on as well: how long a prompt that takes own_ns waits for its share
 * of them, and what those lose.  The prompt may be one of theirs that is to move. */
double cost_beside_ns(const struct sched *s, uint32_t rank, double own_ns, uint64_t now_ns);
/* The policy's weights of waiting and of recomputing, at this moment. */
struct cost_weights { double wait, own; };
struct cost_weights cost_weights(const struct sched *s);
/* Exact when it is at most `enough`; else something above `enough`, found with less work. */
double cost_of_prefill(const struct sched *s, const struct request *r, uint32_t rank,
                       uint64_t now_ns, const struct cost_weights *weights, double enough);
double cost_of_decode(const struct sched *s, const struct request *r, uint32_t prefill,
                      uint32_t rank);
/* After a first token. */
void cost_learn(struct sched *s, const struct request *r, uint64_t now_ns);

/* sched/roles.c */
/* At the end of a step, when all is placed that can be.  True: somebody else takes what now. */
bool roles_turn(struct sched *s, uint64_t now_ns);
/* EV_ROLE. */
void roles_ask(struct sched *s, int32_t worker, enum role role);
/* A worker has come or gone: a switch that is on its way is called off, none begins for a while. */
void roles_disturbed(struct sched *s);
/* When roles_turn wants to be called though nothing happened; UINT64_MAX: no need. */
uint64_t roles_wake_ns(const struct sched *s);
void roles_stats(const struct sched *s, struct sched_stats *out);

/* sched/plan.c: requests that wait here for a worker that is about to need them. */
/* Needs s->held. */
void plan_add(struct sched *s, struct request *r, int32_t rank);
void plan_remove(struct sched *s, struct request *r);
void plan_all_away(struct sched *s, int32_t rank);
/* The plan_key of a request that takes own_ns. */
uint64_t plan_key_of(const struct request *r, double own_ns);
/* Chooses a worker for each request without one.  */
void plan_waiting(struct sched *s, uint64_t now_ns);
/* The next request whose worker should have it now, with that worker's partner; NULL: none. */
struct request *plan_due(struct sched *s, uint64_t now_ns, int32_t *prefill, int32_t *decode);
/* Is the next room of this worker to decode kept for another request, of no lower priority? */
bool plan_kept_from(const struct sched *s, const struct request *r, uint32_t rank);
/* When plan_due may find another though nothing happened. */
uint64_t plan_wake_ns(const struct sched *s);

#endif
