/* wire/link.h - the framed protocol between a gateway and rank 0, over a Unix or TCP stream.
 *
 *   gateway --HELLO(nonce g)-------> rank 0
 *   gateway <-CHALLENGE(nonce r, proof of job)- rank 0      proof = SipHash128(secret; "job" g r)
 *   gateway --PROOF(proof of gateway)---------> rank 0      proof = SipHash128(secret; "gw"  r g)
 *   gateway <-WELCOME--------------- rank 0                 or the connection is closed
 *
 *   gateway --REQUEST--> rank 0      stream = a number of the gateway's, never reused while open
 *   gateway --CANCEL---> rank 0      the client went away
 *   gateway --POLICY---> rank 0      the prefix cache and the placement, from now on
 *   gateway <-TOKENS---- rank 0      in order of position, no repeats
 *   gateway <-SCORES---- rank 0      prompt_logprobs, in order
 *   gateway <-END------- rank 0      exactly once per REQUEST; nothing of that stream follows
 *   gateway <-STATE----- rank 0      at WELCOME, on change, and every LINK_STATE_MS with numbers
 *
 * A frame is struct link_head and its body; lengths are checked before memory is taken.  A peer
 * that breaks the protocol is disconnected with one line in the log.  The secret is SECRET_BYTES
 * bytes, of which the first 16 key the proof of the job and the last 16 that of the gateway.
 */
#ifndef RANKSERVE_WIRE_LINK_H
#define RANKSERVE_WIRE_LINK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/cache_policy.h"
#include "common/check.h"
#include "common/hash.h"
#include "common/limits.h"
#include "common/mem.h"
#include "common/sampling.h"

enum { LINK_MAGIC = 0x524b4c31, LINK_VERSION = 3, LINK_STATE_MS = 500 };

enum link_type {
    LINK_HELLO = 1,
    LINK_CHALLENGE,
    LINK_PROOF,
    LINK_WELCOME,
    LINK_REQUEST,
    LINK_CANCEL,
    LINK_TOKENS,
    LINK_SCORES,
    LINK_END,
    LINK_STATE,
    LINK_POLICY,
    LINK_TYPE_COUNT
};

struct link_head {
    uint32_t magic;
    uint16_t version, type;
    uint32_t bytes;                   /* of the whole frame */
    uint32_t reserved;
    uint64_t stream;                  /* 0 where there is none */
};
_Static_assert(sizeof(struct link_head) == 24, "wire layout is fixed");

struct link_hello { struct link_head head; uint8_t nonce[16]; };
struct link_challenge { struct link_head head; uint8_t nonce[16]; struct hash128 proof; };
struct link_proof { struct link_head head; struct hash128 proof; };

struct link_welcome {
    struct link_head head;
    struct hash128 model_digest;      /* the gateway's own file must agree */
    uint32_t max_model_len, block_tokens;
    uint32_t vocab;
    uint32_t kv_type;                 /* with digest and block_tokens: what keys cover */
    char job_id[32];
    uint64_t epoch;                   /* of this run of the job: random                     */
    struct hash128 keys_proof;        /* link_keys_proof of its secret: equal ones, equal keys */
};

struct link_request {
    struct link_head head;
    uint64_t cache_salt;
    uint64_t user_hash;               /* fairness key; 0: none                         */
    uint64_t timeout_ms;              /* at most TIMEOUT_MS_MAX; 0: none               */
    int32_t priority;                 /* lower is earlier                              */
    uint32_t id_count;                /* prompt                                        */
    uint32_t key_count;               /* block keys computed by the gateway; may be 0  */
    uint32_t ttft_slo_ms, tpot_slo_ms; /* wanted times; 0: none                        */
    uint32_t reserved;
    struct sampling params;
    /* then params.bias_count logit_bias, key_count hash128, id_count int32_t */
};
const struct logit_bias *link_request_bias(const struct link_request *r);
const struct hash128 *link_request_keys(const struct link_request *r);
const int32_t *link_request_ids(const struct link_request *r);
size_t link_request_bytes(uint32_t bias_count, uint32_t key_count, uint32_t id_count);

/* TOKENS, SCORES: count times {token_record, its tops}, walked with link_record_next. */
struct link_tokens { struct link_head head; uint32_t count, reserved; };
bool link_record_next(const struct link_tokens *t, size_t *at, struct token_record *out,
                      const void **top);

struct link_policy { struct link_head head; struct cache_policy policy; };

enum link_code {                      /* how a stream ended */
    LINK_OK = 0,                      /* finish says why */
    LINK_REFUSED_FULL,                /* queue full: 429 with retry_after */
    LINK_REFUSED_LENGTH,              /* never fits: 400 */
    LINK_REFUSED_STATE,               /* starting or draining: 503 */
    LINK_WORKER_LOST,                 /* 500 / error event */
    LINK_TIMEOUT,
    LINK_CANCELLED,
    LINK_BAD_REQUEST,                 /* ids out of range, ... : a bug of the gateway */
    LINK_CODE_COUNT
};
struct link_end {
    struct link_head head;
    uint16_t code;                    /* enum link_code */
    uint16_t finish;                  /* enum finish    */
    uint32_t retry_after_s;
    uint32_t prompt_tokens, cached_tokens, output_tokens;
    int32_t prefill_rank, decode_rank; /* -1: none */
    uint32_t reserved;
};

enum job_state { JOB_STARTING = 1, JOB_LIVE, JOB_DRAINING };
struct link_state {
    struct link_head head;
    uint32_t state;                   /* enum job_state; LIVE: a request can be served */
    uint32_t worker_count, workers_alive;
    uint32_t requests_running, requests_waiting;
    uint32_t prefill_queue_depth, decode_active;
    uint32_t blocks_total, blocks_free, blocks_held, blocks_cached; /* over all workers */
    uint32_t requests_no_room;        /* placements that a worker refused for want of blocks */
    uint32_t workers_prefill, workers_decode, workers_both, workers_spare; /* alive, by role now */
    uint64_t role_switches;
    uint64_t kv_bytes_total, kv_bytes_used;
    uint64_t decisions, prompt_tokens, prompt_tokens_cached, output_tokens;
    uint64_t preemptions, stale_refused, kv_bytes_sent, step_ns_sum, uptime_ns;
    uint64_t workers_lost, requests_replaced, wakeups;
    /* The index: blocks that can be found, its memory, how often it had to be mended, lookups, and
     * how often it was compared with what a worker holds. */
    uint64_t index_blocks, index_bytes, index_mismatches, index_lookups, index_checks;
    uint64_t reuse_possible, reuse_captured; /* prompt tokens that some worker held; of these,
                                                those that were not computed again           */
    /* The shared view: 1 when Redis is connected; keys it took, keys lost, failures. */
    uint64_t redis_connected, redis_announced, redis_dropped, redis_errors;
    uint64_t kv_bytes_lanes;          /* of kv_bytes_sent: from GPU to GPU by NCCL */
};

void link_head_set(struct link_head *h, enum link_type type, uint64_t stream, size_t bytes);
struct hash128 link_proof_of_job(const uint8_t secret[SECRET_BYTES], const uint8_t gateway[16],
                                 const uint8_t job[16]);
struct hash128 link_proof_of_gateway(const uint8_t secret[SECRET_BYTES], const uint8_t job[16],
                                     const uint8_t gateway[16]);
/* The secret of the keys of KV blocks (kv/key.h): SipHash128 of "kv" under the first 16 bytes. */
struct hash_secret link_kv_secret(const uint8_t secret[SECRET_BYTES]);
/* Tells whether two sides make the same keys, and nothing else. */
struct hash128 link_keys_proof(struct hash_secret kv_secret);
/* Reads a 0600 file of 2*SECRET_BYTES hex digits; anything else is refused with a line. */
enum err link_secret_read(const char *path, uint8_t secret[SECRET_BYTES], struct why *why);

/* Takes whole frames out of a byte stream.  Feed what was read; then call next until it gives NULL.
 * A frame is valid until the next call.  ERR_FORMAT: not our protocol, or over a limit. */
struct link_reader {
    struct buf in;
    size_t taken;
};
void link_reader_release(struct link_reader *r);
enum err link_reader_feed(struct link_reader *r, const void *data, size_t bytes);
/* *out is NULL when no whole frame is there yet. */
enum err link_reader_next(struct link_reader *r, const struct link_head **out);

/* NULL when lengths, counts or values do not fit. */
const struct link_hello *link_as_hello(const struct link_head *h);
const struct link_challenge *link_as_challenge(const struct link_head *h);
const struct link_proof *link_as_proof(const struct link_head *h);
const struct link_welcome *link_as_welcome(const struct link_head *h);
const struct link_request *link_as_request(const struct link_head *h);
const struct link_policy *link_as_policy(const struct link_head *h);
const struct link_tokens *link_as_tokens(const struct link_head *h);
const struct link_end *link_as_end(const struct link_head *h);
const struct link_state *link_as_state(const struct link_head *h);

#endif
