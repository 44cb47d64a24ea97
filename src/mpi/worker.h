/* mpi/worker.h - a rank that computes: messages in, engine, messages out.
 *
 *   worker.c       the loop, the dispatch, heartbeats
 *   worker_seq.c   sequences from first message to GONE
 *   worker_push.c  KV to the decode rank while later layers compute
 *   worker_pull.c  KV of a prefix from a worker that holds it
 *   worker_lane.c  what both send and receive through: lanes between GPUs, or messages
 *   link_meter.c   how fast KV leaves, from both
 *   worker_blocks.c  which blocks can be found here, told to rank 0 (blocks.h)
 *
 * Always true: for each (request, attempt) that rank 0 sent here there is exactly one REFUSE or
 * exactly one GONE, unless the job ends first; GONE comes after the request's last token.
 */
#ifndef RANKSERVE_MPI_WORKER_H
#define RANKSERVE_MPI_WORKER_H

#include "common/mem.h"
#include "engine/engine.h"
#include "mpi/blocks.h"
#include "mpi/job.h"
#include "mpi/link_meter.h"
#include "mpi/loop.h"
#include "mpi/port.h"
#include "mpi/weights.h"

struct push;
struct pull;
struct export;
struct ways;

struct wseq {                         /* by slot */
    struct req_id req;                /* generation 0: nothing here */
    enum seq_mode mode;
    int32_t peer;
    bool in_engine;                   /* the engine still knows it */
    bool complete;                    /* IMPORT: all KV is here */
    struct push *push;                /* PREFILL */
    struct pull *pull;                /* of its beginning; until that is over */
    struct req_id ready;              /* a READY that came before its PREFILL */
    uint32_t ready_held;
};

struct worker {
    struct job *job;
    struct loop *loop;
    struct port *port;
    struct weights weights;
    struct engine *engine;
    struct watch engine_watch;
    struct wseq *seqs;                /* REQ_COUNT_MAX */
    struct push *pushes;              /* all, in the order they are served */
    struct pull *pulls;
    struct export *exports;           /* what others pull from here */
    struct ways *ways;                /* lanes to and from other ranks */
    struct blocks_out blocks;
    struct buf tokens;                /* records not sent yet */
    uint32_t token_count;
    struct req_id *gone;              /* to be said after the tokens */
    uint32_t gone_count, gone_room;
    bool rank_lost;                   /* some rank died: leave without MPI */
    bool leaving;
    int exit_code;
    uint64_t stale, kv_sent, kv_lanes, kv_received, pulls_late;
    struct link_meter link;
    uint64_t ping_ns;
};

_Noreturn void worker_run(struct job *j, struct port *port, const struct weights *w);

/* worker_seq.c */
void worker_on_run(struct worker *w, const struct msg_seq *m);
void worker_on_expect(struct worker *w, const struct msg_seq *m);
void worker_on_prefill(struct worker *w, const struct msg_seq *m);
void worker_on_cancel(struct worker *w, struct req_id req);
/* `payload`: what the message brings with it; nothing of one that names a lane. */
void worker_on_kv(struct worker *w, int from, const struct msg_kv *m, const void *payload);
void worker_on_kvend(struct worker *w, int from, const struct msg_kvend *m);
void worker_on_ready(struct worker *w, int from, const struct msg_ready *m);
void worker_on_lost(struct worker *w, int rank);
void worker_token(void *ctx, struct req_id req, const struct token_record *record,
                  const struct top_logprob *top, uint32_t cached);
void worker_scores(void *ctx, struct req_id req, const struct token_record *records,
                   uint32_t count, const struct top_logprob *tops);
/* Gives a sequence that was entered to the engine; false: it was refused and is gone. */
bool worker_admit(struct worker *w, struct wseq *s, const struct msg_seq *m);
/* The sequence here with this id, or NULL. */
struct wseq *worker_find(struct worker *w, struct req_id req);
/* Drops it from the engine and says GONE. */
void worker_end(struct worker *w, struct wseq *s);
/* The same, but says REFUSE: this attempt failed here. */
void worker_give_up(struct worker *w, struct wseq *s, enum err e);
/* Sends what the last calls left: tokens, then GONEs. */
void worker_flush(struct worker *w);

/* worker_blocks.c */
void worker_stored(void *ctx, struct hash128 key, struct hash128 parent);
void worker_dropped(void *ctx, struct hash128 key);
/* Sends what has changed. */
void worker_blocks_flush(struct worker *w);
void worker_blocks_few(struct worker *w);                     /* only when few wait; no ring */
void worker_on_snapshot(struct worker *w);

/* worker_push.c */
void push_open(struct worker *w, struct wseq *s, uint32_t total);
void push_ready(struct wseq *s, uint32_t held);
/* A test wants that this READY never comes. */
bool push_ready_withheld(struct req_id req);
void push_first_token(struct wseq *s, const struct token_record *record);
void push_close(struct worker *w, struct wseq *s);
/* Sends whatever is complete and has room. */
void push_all(struct worker *w);

/* worker_pull.c */
/* Begins the pull that the message asks for; false: there is none to begin.  When it is over, one
 * way or the other, worker_admit is called. */
bool pull_open(struct worker *w, struct wseq *s, const struct msg_seq *m);
void pull_close(struct worker *w, struct wseq *s);
void pull_on_kv(struct worker *w, int from, const struct msg_kv *m, const void *payload);
void pull_on_kvend(struct worker *w, int from, const struct msg_kvend *m);
void worker_on_pull(struct worker *w, int from, const struct msg_pull *m);
/* Starts sequences whose pull is late. */
void pulls_turn(struct worker *w, uint64_t now_ns);
/* When to call it though nothing happened. */
uint64_t pulls_wake_ns(const struct worker *w);
void exports_turn(struct worker *w);
void pulls_on_lost(struct worker *w, int rank);

/* worker_lane.c: after the engine is open. */
void ways_open(struct worker *w);
/* Of the library that carries lanes; 0: there are none. */
int ways_version(const struct worker *w);
/* There will soon be KV for this rank. */
void kv_prepare(struct worker *w, int to);
bool kv_has_room(struct worker *w, int to);
/* The most KV that one kv_send may take now. */
uint64_t kv_room_bytes(struct worker *w, int to);
/* Sends what `range` says (all but its head, lane and number), which must be complete. */
uint64_t kv_send(struct worker *w, int to, const struct msg_kv *range);
/* engine_import, of what came with the message or over the lane it names. */
enum err kv_import(struct worker *w, const struct msg_kv *m, const void *payload);
void worker_on_lane(struct worker *w, int from, const struct msg_lane *m);
/* A head came: its transfer will. */
void ways_announced(struct worker *w, int from, const struct msg_kv *m);
/* True: the KVEND waits for KV that was announced before it. */
bool ways_hold_end(struct worker *w, int from, const struct msg_kvend *m);
void ways_turn(struct worker *w);
void ways_on_lost(struct worker *w, int rank);

#endif
