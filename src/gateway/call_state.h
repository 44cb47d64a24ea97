/* gateway/call_state.h - what a call is made of; for call.c and call_write.c only. */
#ifndef RANKSERVE_GATEWAY_CALL_STATE_H
#define RANKSERVE_GATEWAY_CALL_STATE_H

#include "gateway/call.h"
#include "gateway/link_client.h"

struct choice {
    uint32_t index, prompt;
    uint64_t stream;                  /* on the link; 0: ended */
    uint32_t tried;                   /* jobs that it was sent to, as link_client_submit has it */
    struct utf8_stream utf8;
    struct stop_scan scan;
    struct buf text;                  /* streaming: not sent yet; else all of it */
    struct buf records;               /* token_records with tops, as text above */
    uint32_t tokens;
    enum finish finish;               /* FINISH_NONE while it runs */
    int stop_match;                   /* index of the stop string, or -1 */
    int32_t stop_id;                  /* the request's own stop token, or -1 */
    uint64_t last_token_ns, text_offset;
    uint32_t cached;
    int32_t prefill_rank, decode_rank;
    bool begun;                       /* streaming: its first chunk is written */
};

struct call {
    struct gateway *gw;
    struct call *next, *before;       /* all calls of the gateway */
    struct api_request request;
    struct sampling params;           /* of all choices but for the seed */
    uint32_t *max_tokens;             /* per prompt */
    struct link_keys keys;            /* that the prompts' keys were made from */
    struct choice *choices;
    uint32_t choice_count, running;
    struct buf *scores;               /* per prompt: token_records of the prompt */
    uint32_t top_count;               /* alternatives asked for, per token */
    char id[48], request_id[72];
    time_t created;
    uint64_t since_ns, submitted_ns, first_token_ns;
    uint64_t watched;

    struct buf out;                   /* of the stream, from out_at on */
    size_t out_at;
    size_t prompt_bytes;              /* of events that repeat a prompt: nobody is slow for those */
    bool begun;                       /* a token arrived: the status is 200 */
    bool done, gone;
    struct api_error error;           /* status 0: none */
    int status;                       /* as answered, for log and metrics */
    void (*wake)(void *arg);
    void *wake_arg;
};

static inline bool call_wants_records(const struct call *c)
{
    return c->request.o.logprobs || c->request.o.return_token_ids;
}

uint64_t call_prompt_tokens(const struct call *c);
uint64_t call_output_tokens(const struct call *c);
uint64_t call_cached_tokens(const struct call *c);

/* Appends one `data:` event with what the choice has got since its last one. */
void call_write_chunk(struct call *c, struct choice *ch);
/* The end of a stream: usage when asked for, or the error; then [DONE]. */
void call_write_end(struct call *c);
void call_write_body(struct call *c, struct buf *out);

#endif
