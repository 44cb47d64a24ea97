/* wire/msg.h - everything that rank 0 and the workers say to each other.
 *
 *   rank 0  --RUN----> worker          compute prompt and output here        (struct msg_seq)
 *   rank 0  --EXPECT-> decode          reserve; KV comes from msg.peer       (struct msg_seq)
 *   rank 0  --PREFILL> prefill         compute, push KV to msg.peer          (struct msg_seq)
 *   rank 0  --CANCEL-> worker          drop it, whatever its state           (struct msg_req)
 *   rank 0  --LOST---> worker          that rank is dead: no transfers       (struct msg_rank)
 *   rank 0  --POLICY-> worker          what the prefix cache may keep        (struct msg_policy)
 *   rank 0  --ROLE---> worker          what it computes from now on          (struct msg_role)
 *   rank 0  --PING---> worker          liveness                              (struct msg_ping)
 *   rank 0  --EXIT---> worker          leave with this code                  (struct msg_exit)
 *   rank 0  --SNAPSHOT> worker         say all keys again                    (struct msg_snapshot)
 *   decode  --READY--> prefill, rank 0 reserved; holds this prefix           (struct msg_ready)
 *   worker  --PULL---> worker          send me what you have of this     (struct msg_pull)
 *   prefill --KV-----> decode          layers x tokens, on the data communicator (struct msg_kv)
 *   worker  --LANE---> worker          opening and ending a way for KV alone (struct msg_lane)
 *   worker  --SLOT---> worker          a message that lies in memory of both (struct msg_slot)
 *   prefill --KVEND--> decode          all sent; the first token             (struct msg_kvend)
 *   worker  --UP-----> rank 0          engine is open                        (struct msg_up)
 *   worker  --TOKENS-> rank 0          one per step, all its sequences       (struct msg_tokens)
 *   worker  --SCORES-> rank 0          prompt_logprobs                       (struct msg_tokens)
 *   worker  --REFUSE-> rank 0          cannot take it                        (struct msg_refuse)
 *   worker  --GONE---> rank 0          holds nothing of this request now     (struct msg_req)
 *   worker  --BLOCKS-> rank 0          keys stored and dropped, in order     (struct msg_blocks)
 *   worker  --STATS--> rank 0          heartbeat with numbers                (struct msg_stats)
 *   worker  --FATAL--> rank 0          one line, then it leaves              (struct msg_fatal)
 *
 * Layout is fixed, little-endian; bodies follow their struct.  Receive side: msg_as_* returns a
 * typed pointer into the buffer or NULL when anything does not fit; nothing else may cast.
 */
#ifndef RANKSERVE_WIRE_MSG_H
#define RANKSERVE_WIRE_MSG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/cache_policy.h"
#include "common/hash.h"
#include "common/ident.h"
#include "common/limits.h"
#include "common/sampling.h"

enum { MSG_MAGIC = 0x524b5331, MSG_VERSION = 1 };

enum msg_type {
    MSG_RUN = 1,
    MSG_EXPECT,
    MSG_PREFILL,
    MSG_CANCEL,
    MSG_LOST,
    MSG_PING,
    MSG_EXIT,
    MSG_READY,
    MSG_KV,
    MSG_KVEND,
    MSG_UP,
    MSG_TOKENS,
    MSG_SCORES,
    MSG_REFUSE,
    MSG_GONE,
    MSG_BLOCKS,
    MSG_STATS,
    MSG_FATAL,
    MSG_SNAPSHOT,
    MSG_PULL,
    MSG_POLICY,
    MSG_LANE,
    MSG_ROLE,
    MSG_SLOT,
    MSG_TYPE_COUNT
};

struct msg_head {
    uint32_t magic;
    uint16_t version, type;
    uint32_t bytes;                   /* of the whole message, this head included  */
    uint32_t seq;                     /* per edge, from 1; a gap is a bug          */
    uint32_t epoch;                   /* of the sender's incarnation in the job    */
    uint32_t reserved;
};
_Static_assert(sizeof(struct msg_head) == 24, "wire layout is fixed");

struct msg_seq {                      /* RUN, EXPECT, PREFILL */
    struct msg_head head;
    struct req_id req;
    uint64_t cache_salt;
    int32_t peer;                     /* the other rank of the pair; -1 for RUN    */
    int32_t priority;
    uint32_t prompt_count, id_count;  /* ids = prompt, then output already emitted */
    int32_t pull_from;                /* RUN, PREFILL: this worker holds ...       */
    uint32_t pull_tokens;             /* ... the first so many ids' KV; 0: no pull */
    uint32_t pull_late_us;            /* compute them when it takes longer         */
    uint32_t reserved;
    struct sampling params;
    /* then params.bias_count struct logit_bias, then id_count int32_t ids */
};
const struct logit_bias *msg_seq_bias(const struct msg_seq *m);
const int32_t *msg_seq_ids(const struct msg_seq *m);
size_t msg_seq_bytes(uint32_t bias_count, uint32_t id_count);

/* The bit of an attempt that tells a pull's KV from a push's. */
enum { PULL_BIT = ATTEMPT_MAX + 1 };
struct msg_pull {                     /* then id_count int32_t ids */
    struct msg_head head;
    struct req_id req;                /* attempt has PULL_BIT */
    uint64_t cache_salt;
    uint32_t held_tokens;             /* not to be sent */
    uint32_t id_count;                /* the last id's own KV is not wanted */
};
const int32_t *msg_pull_ids(const struct msg_pull *m);
size_t msg_pull_bytes(uint32_t id_count);

struct msg_req { struct msg_head head; struct req_id req; };                /* CANCEL, GONE */
struct msg_rank { struct msg_head head; int32_t rank; uint32_t reserved; }; /* LOST */
struct msg_ping { struct msg_head head; uint64_t sent_ns; };
struct msg_policy { struct msg_head head; struct cache_policy policy; };
struct msg_exit { struct msg_head head; int32_t code; uint32_t reserved; };
struct msg_snapshot { struct msg_head head; };
struct msg_role {
    struct msg_head head;
    uint32_t role;                    /* enum role; the worker holds nothing when it changes */
    uint32_t modest;                  /* 1: its host's cores are decode's first            */
};

struct msg_ready {
    struct msg_head head;
    struct req_id req;
    uint32_t held_tokens;             /* leading tokens decode already has         */
    uint32_t reserved;
};

struct msg_kv {
    struct msg_head head;             /* bytes: with the payload                   */
    struct req_id req;
    uint32_t layer, layers;
    uint32_t first, count;            /* tokens                                    */
    uint32_t lane, number;            /* the bytes come as this lane's transfer of this number,
                                         from 1; lane 0: they follow                */
    /* then layers * count * token_bytes of the backend's kv_read */
};

/* A lane (engine/lanes.h) is named by a number that its sender never uses again.  OPEN and END go
 * with the KV, in order; ACCEPT and REFUSE are the receiver's, at any time. */
enum lane_word { LANE_OPEN = 1, LANE_END, LANE_ACCEPT, LANE_REFUSE, LANE_WORDS };
struct msg_lane {
    struct msg_head head;
    uint32_t lane, word;              /* enum lane_word                            */
    int32_t version;                  /* OPEN: of the library that carries it      */
    uint32_t reserved;
    uint8_t name[128];                /* OPEN: where to meet                       */
};

struct msg_slot {
    struct msg_head head;
    uint32_t slot;                    /* of the sender's outbox (mpi/outbox.h)     */
    uint32_t bytes;                   /* of the message there, its head included   */
};

struct msg_kvend {
    struct msg_head head;
    struct req_id req;
    int32_t first_token;
    uint16_t finish;                  /* not NONE: nothing is left to generate     */
    uint16_t reserved;
};

struct msg_rates {                    /* as measured; all 0: not yet */
    double prefill_token_ns;          /* per prompt token                          */
    double prefill_context_ns;        /* more, per 1,024 tokens before it          */
    double step_ns, step_seq_ns;      /* of a decode step: fixed; per sequence     */
    uint64_t prefill_steps, decode_steps; /* how many steps that was learned from   */
};

struct msg_up {
    struct msg_head head;
    uint32_t blocks_total, block_tokens;
    uint32_t max_num_seqs, max_model_len;
    uint64_t kv_token_bytes;          /* all layers                                */
    struct hash128 model_digest;
    uint32_t kv_type;                 /* enum kv_type: part of what keys cover     */
    int32_t lanes_version;            /* of the library for lanes; 0: none         */
    uint32_t cores;                   /* not 0: ranks of a host with the same number do not have
                                         cores enough for all at once              */
    int32_t pid;                      /* the process, on its host                  */
};

/* TOKENS and SCORES: `count` times {struct msg_token, then record.top_count struct top_logprob},
 * packed, walked with msg_token_next. */
struct msg_tokens { struct msg_head head; uint32_t count, reserved; };
struct msg_token {
    struct req_id req;
    uint32_t cached;                  /* prompt tokens that came from the cache    */
    struct token_record record;
};
_Static_assert(sizeof(struct msg_token) == 32, "wire layout is fixed");
/* *at starts at 0; copies the next record out and points *top at its alternatives (read them with
 * memcpy); false at the end.  Bounds were checked by msg_as_tokens. */
bool msg_token_next(const struct msg_tokens *m, size_t *at, struct msg_token *out,
                    const void **top);

struct msg_refuse {
    struct msg_head head;
    struct req_id req;
    uint32_t err;                     /* enum err                                  */
    uint32_t reserved;
};

struct msg_blocks {                   /* then count struct block_change */
    struct msg_head head;
    uint64_t stream_seq;              /* of the first change; consecutive, from 1  */
    uint32_t count;
    uint32_t flags;                   /* BLOCKS_ALL */
};
/* Forget what was known of this worker: this message and the next ones name all it holds. */
enum { BLOCKS_ALL = 1 };
struct block_change { struct hash128 key, parent; uint64_t stored; /* 1 stored, 0 dropped */ };

struct msg_stats {
    struct msg_head head;
    uint64_t ping_ns;                 /* sent_ns of the last PING seen             */
    uint64_t step_age_ns;             /* how long the running step has run; 0 idle */
    uint32_t blocks_total, blocks_free, blocks_held, blocks_cached;
    uint32_t seqs_waiting, seqs_running, seqs_holding, seqs_loading;
    uint32_t tokens_waiting, role;
    uint64_t steps, preemptions, step_ns_sum;
    uint64_t prompt_tokens, prompt_tokens_cached, output_tokens;
    uint64_t kv_bytes_sent, kv_bytes_received;
    uint64_t kv_bytes_lanes;          /* of those sent: over lanes                 */
    uint64_t stale_refused, wakeups;
    /* The stream of BLOCKS up to here: number of its next change, and what it leaves stored. */
    uint64_t stream_seq, key_count;
    struct hash128 keys_xored;
    struct msg_rates rates;
    double link_bytes_s;              /* of the last push that the link held up; 0: none */
    int32_t link_peer;                /* whom it went to */
    uint32_t reserved;
};

struct msg_fatal { struct msg_head head; char text[256]; };

/* The head of a message to send: fills magic, version, type and bytes (seq, epoch: the port). */
void msg_head_set(struct msg_head *h, enum msg_type type, size_t bytes);
/* The type of a received message, or 0 when head and length do not agree. */
enum msg_type msg_type_of(const void *data, size_t bytes);
const char *msg_type_name(enum msg_type t);

const struct msg_seq *msg_as_seq(const void *data, size_t bytes);
const struct msg_req *msg_as_req(const void *data, size_t bytes);
const struct msg_rank *msg_as_rank(const void *data, size_t bytes);
const struct msg_ping *msg_as_ping(const void *data, size_t bytes);
const struct msg_policy *msg_as_policy(const void *data, size_t bytes);
const struct msg_role *msg_as_role(const void *data, size_t bytes);
const struct msg_exit *msg_as_exit(const void *data, size_t bytes);
const struct msg_snapshot *msg_as_snapshot(const void *data, size_t bytes);
const struct msg_ready *msg_as_ready(const void *data, size_t bytes);
const struct msg_pull *msg_as_pull(const void *data, size_t bytes);
/* The payload's length is engine_import's to check; with a lane there is none. */
const struct msg_kv *msg_as_kv(const void *data, size_t bytes);
/* The message in the slot is to be looked at by itself. */
const struct msg_slot *msg_as_slot(const void *data, size_t bytes);
const struct msg_kvend *msg_as_kvend(const void *data, size_t bytes);
const struct msg_lane *msg_as_lane(const void *data, size_t bytes);
const struct msg_up *msg_as_up(const void *data, size_t bytes);
const struct msg_tokens *msg_as_tokens(const void *data, size_t bytes);
const struct msg_refuse *msg_as_refuse(const void *data, size_t bytes);
const struct msg_blocks *msg_as_blocks(const void *data, size_t bytes);
const struct msg_stats *msg_as_stats(const void *data, size_t bytes);
const struct msg_fatal *msg_as_fatal(const void *data, size_t bytes);

#endif
