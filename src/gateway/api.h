/* gateway/api.h - OpenAI's JSON on one side, plain structs on the other.
 *
 * api_json.c (text to values), api_parse.c (requests in) and api_chat.c (messages to a prompt) are
 * the files that use jansson; api_write.c writes answers.  Every number is range-checked here,
 * every message names its field.
 */
#ifndef RANKSERVE_GATEWAY_API_H
#define RANKSERVE_GATEWAY_API_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/mem.h"
#include "common/sampling.h"
#include "gateway/gateway.h"
#include "gateway/stop.h"

/* An answer that is not 200, in OpenAI's shape. */
struct api_error {
    int status;
    uint32_t retry_after_s;           /* 0: no such header */
    const char *code;                 /* NULL: null */
    char param[64];                   /* "": null */
    char message[700];
};
/* Fills it and returns false, so that a failure is one statement. */
bool api_fail(struct api_error *e, int status, const char *param, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));
void api_error_write(const struct api_error *e, struct buf *out);

enum api_kind { API_CHAT, API_COMPLETION, API_TOKENIZE };

/* Wide types as JSON has them; call.c narrows them into struct sampling. */
struct api_options {
    double temperature, top_p, min_p;
    double repetition_penalty, presence_penalty, frequency_penalty;
    double timeout_s;                 /* 0: none */
    int64_t top_k, seed, n, best_of, priority;
    int64_t max_tokens, max_completion_tokens, min_tokens; /* max: -1 absent */
    int64_t top_logprobs, prompt_logprobs;                 /* -1 absent */
    bool has_seed;
    bool logprobs, echo, stream, ignore_eos, return_token_ids;
    bool include_usage, continuous_usage;
    bool skip_special_tokens, include_stop;
    bool add_generation_prompt, continue_final_message;
    bool add_special_tokens, parse_special, return_token_strs;
};

struct api_prompt {
    struct token_list ids;
    char *text;                       /* as given, else NULL */
    size_t bytes;
    struct hash128 *keys;             /* of its KV blocks that may be cached; call.c fills them */
    uint32_t key_count;
    uint32_t held[JOBS_MAX];          /* tokens that each job holds, as the shared view says */
};

struct api_request {
    enum api_kind kind;
    struct api_options o;
    struct api_prompt *prompts;       /* chat: one */
    uint32_t prompt_count;
    struct stop_strings stops;
    int32_t stop_ids[STOP_IDS_MAX];
    uint32_t stop_id_count;
    struct logit_bias *bias;
    uint32_t bias_count;
    uint64_t cache_salt, user_hash;
    uint32_t ttft_slo_ms, tpot_slo_ms; /* 0: none */
};

/* Parses a body and tokenizes its prompts, each of at most count_max tokens; ids are below `vocab`.
 * On failure *e says why; the request is to be released either way. */
bool api_parse(const struct gateway *gw, enum api_kind kind, const char *body, size_t bytes,
               size_t count_max, uint32_t vocab, struct api_request *r, struct api_error *e);
void api_request_release(struct api_request *r);
/* The ids of a /detokenize request. */
bool api_parse_ids(const struct gateway *gw, const char *body, size_t bytes, uint32_t vocab,
                   struct token_list *ids, struct api_error *e);
/* The body of /policy.  `labels` are the service's, which a "selector" among the members must
 * match: else 409. */
struct cache_policy;
bool api_parse_policy(const char *labels, const char *body, size_t bytes, struct cache_policy *out,
                      struct api_error *e);

/* Once, before any thread: jansson's hash seed. */
void api_start(void);

/* -- answers ---------------------------------------------------------------------------------- */

/* Quoted; bytes that are not UTF-8 become U+FFFD. */
void write_string(struct buf *out, const char *text, size_t bytes);
void write_ids(struct buf *out, const int32_t *ids, size_t count);

/* One reported token and its alternatives, as they lie in a choice's buffer. */
struct api_records {
    const char *data;                 /* {struct token_record, top_count struct top_logprob} ... */
    size_t bytes;
};
bool api_record_next(const struct api_records *r, size_t *at, struct token_record *out,
                     const char **tops);

void write_chat_logprobs(struct buf *out, const struct tokenizer *t, struct api_records r,
                         uint32_t tops);
/* prompt: scores of the echoed prompt, whose first id has none; ids NULL without echo.  *offset
 * counts characters and is moved on. */
void write_completion_logprobs(struct buf *out, const struct tokenizer *t,
                               const struct token_list *prompt, struct api_records scores,
                               struct api_records r, uint32_t tops, uint64_t *offset);
void write_prompt_logprobs(struct buf *out, const struct tokenizer *t,
                           const struct token_list *prompt, struct api_records scores,
                           uint32_t tops);
void write_usage(struct buf *out, uint64_t prompt, uint64_t output, uint64_t cached);

#endif
