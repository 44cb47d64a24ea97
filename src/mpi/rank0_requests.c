/* mpi/rank0_requests.c - the table of live requests, and the one order of each one's tokens.
 *
 * Tokens of a request come from two ranks over two edges: the first from prefill, the others from
 * decode.  Each carries its position; one that is ahead waits, one that was seen is dropped.
 */
#include <stdlib.h>
#include <string.h>

#include "common/clock.h"
#include "common/log.h"
#include "common/mem.h"
#include "mpi/rank0.h"

void requests_open(struct rank0 *z)
{
    z->requests = mem_array(REQ_COUNT_MAX, sizeof *z->requests);
    z->streams = mem_array(REQ_COUNT_MAX, sizeof *z->streams);
    z->emitted = mem_array(REQ_COUNT_MAX, sizeof *z->emitted);
    z->free_slots = mem_array(REQ_COUNT_MAX, sizeof *z->free_slots);
    for (int i = 0; i < REQ_COUNT_MAX; i++) {
        z->requests[i].id = (struct req_id){ .slot = (uint16_t)i, .generation = 1 };
        z->free_slots[i] = (uint16_t)(REQ_COUNT_MAX - 1 - i);
    }
    z->free_count = REQ_COUNT_MAX;
}

struct request *request_add(struct rank0 *z, int gateway, const struct link_request *m)
{
    if (z->free_count == 0) return NULL;
    struct request *r = &z->requests[z->free_slots[--z->free_count]];
    struct req_id id = r->id;
    *r = (struct request){
        .used = true, .id = id, .gateway = gateway, .stream = m->head.stream,
        .id_count = m->id_count, .id_room = m->id_count + 64, .prompt_count = m->id_count,
        .cache_salt = m->cache_salt, .priority = m->priority, .params = m->params,
        .prefill = -1, .decode = -1, .arrived_ns = clock_now_ns(), .score_next = 1,
    };
    z->streams[id.slot] = r->stream;
    if (id.slot >= z->slot_end) z->slot_end = id.slot + 1u;
    z->emitted[id.slot] = 0;
    r->ids = mem_array(r->id_room, sizeof *r->ids);
    memcpy(r->ids, link_request_ids(m), m->id_count * sizeof *r->ids);
    if (m->params.bias_count) {
        r->bias = mem_array(m->params.bias_count, sizeof *r->bias);
        memcpy(r->bias, link_request_bias(m), m->params.bias_count * sizeof *r->bias);
    }
    index_keys_of(z, r, m);
    return r;
}

struct request *request_find(struct rank0 *z, struct req_id id)
{
    struct request *r = id.slot < REQ_COUNT_MAX ? &z->requests[id.slot] : NULL;
    return r && r->used && req_id_equal(r->id, id) ? r : NULL;
}

struct request *request_of_stream(struct rank0 *z, int gateway, uint64_t stream)
{
    for (uint32_t i = 0; i < z->slot_end; i++) {
        if (z->streams[i] != stream) continue;
        struct request *r = &z->requests[i];
        if (r->used && !r->answered && r->gateway == gateway) return r;
    }
    return NULL;
}

static void drop_early(struct request *r)
{
    while (r->early) {
        struct early *e = r->early;
        r->early = e->next;
        free(e);
    }
}

void request_restart(struct request *r, struct req_id id, int32_t prefill, int32_t decode)
{
    drop_early(r);
    r->id = id;
    r->started = false;
    r->prefill = prefill;
    r->decode = decode;
}

void request_free(struct rank0 *z, struct request *r)
{
    drop_early(r);
    free(r->ids);
    free(r->bias);
    free(r->keys);
    struct req_id next = { .slot = r->id.slot, .generation = r->id.generation + 1 };
    *r = (struct request){ .id = next };
    z->streams[next.slot] = 0;
    if (next.generation == 0) return; /* used up: a number is never used twice */
    z->free_slots[z->free_count++] = next.slot;
}

/* -- tokens ----------------------------------------------------------------------------------- */

static void pass_on(struct rank0 *z, const struct request *r, enum link_type type,
                    const struct token_record *record, const void *top)
{
    struct {
        struct link_tokens head;
        uint8_t body[sizeof *record + TOP_LOGPROBS_MAX * sizeof(struct top_logprob)];
    } frame;
    size_t tops = record->top_count * sizeof(struct top_logprob);
    size_t bytes = sizeof frame.head + sizeof *record + tops;
    link_head_set(&frame.head.head, type, r->stream, bytes);
    frame.head.count = 1;
    frame.head.reserved = 0;
    memcpy(frame.body, record, sizeof *record);
    memcpy(frame.body + sizeof *record, top, tops);
    links_send(z, r->gateway, &frame, bytes);
}

static void first_token(struct rank0 *z, struct request *r)
{
    r->started = true;
    act_event(z, (struct sched_event){ .type = EV_FIRST, .req = r->id });
    shared_view_announce(z->view, r->keys, r->key_count);
    if (r->id_count > r->prompt_count + 1) return; /* not of the first attempt */
    lines_add(z, &(struct line){ .req = r->id, .first = true, .cached = r->cached,
                                 .prompt = r->prompt_count,
                                 .ns = clock_now_ns() - r->arrived_ns });
}

/* The token that is next in order. */
static void take(struct rank0 *z, struct request *r, int from, const struct token_record *record,
                 const void *top)
{
    if (r->id_count == r->id_room) {
        r->id_room += r->id_room / 2;
        r->ids = mem_resize(r->ids, r->id_room, sizeof *r->ids);
    }
    if (record->finish != FINISH_ERROR) { /* else it is no token: the backend failed */
        r->ids[r->id_count++] = record->id;
        z->emitted[r->id.slot]++;
        if (r->id_count % z->job->config.block_size == 0)
            act_event(z, (struct sched_event){ .type = EV_GREW, .req = r->id });
        pass_on(z, r, LINK_TOKENS, record, top);
        if (!r->started) first_token(z, r);
    }
    if (record->finish == FINISH_NONE) return;
    /* Over with the prefill's token: decode has reserved for nothing. */
    if (from == r->prefill && r->decode != r->prefill) act_cancel(z, r, r->decode);
    act_event(z, (struct sched_event){ .type = EV_FINISHED, .req = r->id,
                                       .finish = record->finish });
    r->ended = true; /* nothing of this request follows but END */
}

static void keep_early(struct request *r, const struct token_record *record, const void *top)
{
    struct early **at = &r->early;
    while (*at && (*at)->record.position < record->position) at = &(*at)->next;
    if (*at && (*at)->record.position == record->position) return;
    size_t tops = record->top_count * sizeof(struct top_logprob);
    struct early *e = mem_alloc(sizeof *e + tops);
    e->next = *at;
    e->record = *record;
    memcpy(e->top, top, tops);
    *at = e;
}

/* Only decode's token can have come before the one in front of it. */
static void take_early(struct rank0 *z, struct request *r)
{
    while (r->early && r->early->record.position <= r->id_count && !r->ended) {
        struct early *e = r->early;
        r->early = e->next;
        if (e->record.position == r->id_count) take(z, r, r->decode, &e->record, e->top);
        free(e);
    }
}

void requests_on_tokens(struct rank0 *z, int from, const struct msg_tokens *m)
{
    struct msg_token one;
    const void *top;
    for (size_t at = 0; msg_token_next(m, &at, &one, &top);) {
        struct request *r = request_find(z, one.req);
        bool ours = r && (from == r->prefill || from == r->decode);
        if (!ours) {
            z->stale++;
            continue;
        }
        if (r->ended || one.record.position < r->id_count) continue;
        /* A later attempt finds its own prompt in the cache: that saved nothing. */
        if (from == r->prefill && r->id_count == r->prompt_count) r->cached = one.cached;
        if (one.record.position > r->id_count) {
            keep_early(r, &one.record, top);
            continue;
        }
        take(z, r, from, &one.record, top);
        take_early(z, r);
    }
}

void requests_on_scores(struct rank0 *z, const struct msg_tokens *m)
{
    struct msg_token one;
    const void *top;
    for (size_t at = 0; msg_token_next(m, &at, &one, &top);) {
        struct request *r = request_find(z, one.req);
        if (!r || r->ended || one.record.position < r->score_next) continue;
        r->score_next = one.record.position + 1;
        pass_on(z, r, LINK_SCORES, &one.record, top);
    }
}
