/* common/limits.h - every maximum in the program, and how they must relate.
 *
 * A limit that is reached is an answer (400, 413, 429, 503), never a crash.  Loops, queues and
 * messages are sized from here; a new relation between two limits gets a _Static_assert.
 */
#ifndef RANKSERVE_COMMON_LIMITS_H
#define RANKSERVE_COMMON_LIMITS_H

#include <stdint.h>

enum {
    /* The job. */
    WORKER_COUNT_MAX = 1024,          /* ranks that compute; rank 0 is not one of them */
    REQ_COUNT_MAX = 4096,             /* live requests in the job                      */
    GATEWAY_COUNT_MAX = 16,           /* gateways connected to one job                 */
    FLOW_COUNT_MAX = 1024,            /* users told apart while their requests wait    */
    TIMEOUT_MS_MAX = 86400000,        /* the longest a request may ask for             */
    JOBS_MAX = 16,                    /* jobs that one gateway is connected to         */
    JOB_FILES_MAX = 1024,             /* entries of a --jobs directory that are read   */
    JOB_FILE_BYTES_MAX = 65536,       /* one of them                                   */

    /* A sequence. */
    SEQ_TOKENS_MAX = 131072,          /* prompt + output; --max-model-len is at most this */
    STOP_IDS_MAX = 8,                 /* token ids that end a sequence (eos included)  */
    LOGIT_BIAS_MAX = 300,             /* entries, as OpenAI allows                     */
    TOP_LOGPROBS_MAX = 20,            /* alternatives per token, as vLLM's --max-logprobs */

    /* KV. */
    KV_BLOCK_TOKENS_DEFAULT = 16,
    KV_BLOCK_TOKENS_MAX = 256,        /* a power of two from 8; divides the attention tile */
    KV_TILE_TOKENS = 256,             /* attention's absolute tile, see DESIGN "same bits" */
    KV_BLOCK_COUNT_MAX = 1 << 24,     /* per rank */
    KV_BYTES_DEFAULT = 1 << 30,       /* per worker that computes on a CPU */
    KV_AHEAD_TOKENS = 4096,           /* an idle worker has memory ready for more, at least */
    LANES_MAX = 16,                   /* ways from this GPU to others', each direction one */
    LANE_QUEUE_MAX = 64,              /* transfers announced on one, and not arrived   */
    LANE_PART_BYTES_MAX = 8 << 20,    /* one transfer                                  */
    INDEX_BLOCK_COUNT_MAX = 1 << 26,  /* in rank 0's index; 37 bytes each, when used */

    VIEW_TTL_S = 600,                 /* of an entry; less when --cache-ttl is      */
    VIEW_RING_KEYS = 1 << 16,         /* announced, and not yet sent to Redis       */
    VIEW_BATCH_KEYS = 1000,           /* in one round trip                          */
    VIEW_REPLY_BYTES_MAX = 1 << 20,   /* from Redis, and not yet taken              */
    VIEW_SEEDS_MAX = 16,              /* addresses of one cluster that may be given */
    VIEW_NODES_MAX = 128,             /* of a cluster: masters that are talked to   */
    VIEW_KEY_BYTES_MAX = 65536,       /* of a file of a private key                 */

    /* An engine step. */
    STEP_TOKENS_MAX = 8192,           /* --max-num-batched-tokens is at most this */
    STEP_SEQS_MAX = 1024,             /* --max-num-seqs is at most this           */
    THREAD_COUNT_MAX = 256,

    /* A model file. */
    MODEL_TENSORS_MAX = 65536,
    MODEL_KEYS_MAX = 65536,
    MODEL_LAYERS_MAX = 256,
    VOCAB_MAX = 1 << 20,
    TOKEN_BYTES_MAX = 4096,           /* text of one token */

    /* Messages. */
    MSG_BYTES_MAX = 1 << 20,          /* rank 0 <-> worker, head included         */
    KV_MSG_BYTES_MAX = 64 << 20,      /* one layer of one prefill chunk           */
    LINK_BYTES_MAX = 1 << 20,         /* gateway <-> rank 0, head included        */
    POLICY_WAITING_MAX = 64 << 10,    /* unread by a job that is to get a policy  */
    SECRET_BYTES = 32,                /* per-job secret of the link               */

    /* The gateway. */
    PREFIX_STORE_BYTES_MAX = 64 << 20, /* text that was tokenized, with its ids   */

    /* HTTP. */
    HTTP_BODY_BYTES_MAX = 32 << 20,
    HTTP_CONNECTIONS_MAX = 4096,
    JSON_DEPTH_MAX = 64,
    CHAT_MESSAGES_MAX = 4096,
    CHOICES_MAX = 128,                /* n in one request; prompts x n in /v1/completions */
    PROMPT_LOGPROBS_MAX = 4 << 20,    /* of prompts, in one answer                   */
    STOP_STRINGS_MAX = 16,
    STOP_STRING_BYTES_MAX = 1024,

    /* The chat-template interpreter. */
    TEMPLATE_BYTES_MAX = 1 << 20,
    TEMPLATE_STEPS_MAX = 2000000,     /* expression nodes evaluated per rendering */
    TEMPLATE_OUTPUT_BYTES_MAX = 16 << 20,
    TEMPLATE_DEPTH_MAX = 64,
};

_Static_assert(SEQ_TOKENS_MAX * sizeof(int32_t) + 65536 <= MSG_BYTES_MAX,
               "a prompt and its parameters fit one message");
_Static_assert(SEQ_TOKENS_MAX * (1 + TOP_LOGPROBS_MAX) <= PROMPT_LOGPROBS_MAX,
               "a longest prompt may have the most log-probabilities");
_Static_assert(MSG_BYTES_MAX <= LINK_BYTES_MAX, "what a worker says fits the link");
_Static_assert(REQ_COUNT_MAX <= UINT16_MAX, "a request slot fits the wire's u16");
_Static_assert(KV_TILE_TOKENS % KV_BLOCK_TOKENS_MAX == 0, "a tile is whole blocks");

#endif
