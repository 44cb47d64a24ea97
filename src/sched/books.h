/* sched/books.h - what rank 0 believes: requests, workers, the queue, and actions not yet taken.
 *
 * Private to src/sched.  Books are exact, not sampled: a worker is charged the moment a request is
 * placed on it, so two decisions in a row never choose the same idle worker by mistake.
 *
 *  state       on which workers it may hold something          in the queue
 *  QUEUED      none                                            yes
 *  PREFILLING  prefill and/or decode (one and the same: RUN)   no
 *  DECODING    decode; prefill until its KV has left           no
 *  RETRY       those that have not said GONE yet               no
 *  ENDED       those that have not said GONE yet               no
 */
#ifndef RANKSERVE_SCHED_BOOKS_H
#define RANKSERVE_SCHED_BOOKS_H

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
    uint32_t prompt_tokens, max_tokens;
    int32_t priority;
    uint64_t order;                   /* of arrival: first come, first served within a priority */
    uint64_t deadline_ns, not_before_ns;
    int32_t prefill, decode;          /* who holds something; equal for RUN; NO_WORKER: nobody  */
    uint32_t prefill_blocks, decode_blocks;   /* what they are charged                          */
    bool prompt_charged;              /* prompt_tokens still count as work ahead on `prefill`    */
    uint16_t next, previous;          /* in the queue                                            */
};

struct worker {
    bool alive;
    enum role role;
    uint32_t blocks, seqs, tokens_max;        /* what it has                             */
    uint32_t blocks_charged, seqs_charged;
    uint64_t prompt_tokens_charged;           /* prompts placed whose first token is out */
};

struct sched {
    struct sched_config config;
    struct request requests[REQ_COUNT_MAX];
    struct worker workers[WORKER_COUNT_MAX + 1];  /* by rank; [0] is never alive */
    uint16_t queue_head, queue_tail;
    uint32_t queue_count;
    uint64_t order_next, random_state;
    uint32_t turn;                    /* of round-robin */
    bool draining;
    uint64_t wake_ns;
    struct sched_stats stats;
    uint32_t timed_count;             /* live requests with a deadline or a not_before */
    /* Actions wait here until the caller has room.  A request causes at most
     * ACTIONS_PER_REQUEST before the caller takes them, whatever happens to it. */
    uint32_t action_first, action_count;
    struct sched_action actions[];    /* ACTION_ROOM */
};

enum { ACTIONS_PER_REQUEST = 6, ACTION_ROOM = REQ_COUNT_MAX * ACTIONS_PER_REQUEST };

/* sched/req.c */
void request_move(struct request *r, enum req_state to);
uint32_t request_blocks(const struct sched *s, uint32_t tokens);
void queue_insert(struct sched *s, struct request *r);
void queue_remove(struct sched *s, struct request *r);
/* Charges and discharges; both leave the books consistent. */
void charge(struct sched *s, struct request *r, int32_t prefill, int32_t decode);
void discharge_prompt(struct sched *s, struct request *r);
void discharge(struct sched *s, struct request *r, int32_t worker);

/* sched/policy.c: where could r go now?  False: nowhere; it waits.  RUN: *prefill == *decode. */
bool policy_place(struct sched *s, const struct request *r, int32_t *prefill, int32_t *decode);
/* Could any worker that is alive ever hold it?  True while none is up yet. */
bool policy_fits(const struct sched *s, uint32_t prompt_tokens);

#endif
