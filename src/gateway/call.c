/* gateway/call.c - see call.h.  What an answer looks like is in call_write.c. */
#include "gateway/call.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "common/clock.h"
#include "common/log.h"
#include "gateway/call_state.h"
#include "gateway/metrics.h"
#include "gateway/prompt_keys.h"

static struct call *all_calls;        /* under the gateway's lock */

static void wake(struct call *c)
{
    void (*fn)(void *) = c->wake;
    c->wake = NULL;
    if (fn) fn(c->wake_arg);
}

static void forget_streams(struct call *c)
{
    for (uint32_t i = 0; i < c->choice_count; i++) {
        struct choice *ch = &c->choices[i];
        if (ch->stream) link_client_forget(c->gw->link, ch->stream);
        ch->stream = 0;
    }
    c->running = 0;
}

/* -- onto the link, under the lock ------------------------------------------------------------- */

/* Alternatives to tokens of prompts, for prompt_logprobs or an echo's logprobs; -1: no scores. */
static int64_t tops_of_prompts(const struct api_request *r)
{
    const struct api_options *o = &r->o;
    bool echoed = r->kind == API_COMPLETION && o->echo && o->logprobs;
    if (!echoed || o->prompt_logprobs > o->top_logprobs) return o->prompt_logprobs;
    return o->top_logprobs > 0 ? o->top_logprobs : 0;
}

/* They are asked for once per prompt. */
static void scores_of(const struct api_request *r, struct sampling *s)
{
    int64_t tops = tops_of_prompts(r);
    if (tops < 0) return;
    s->flags |= SAMPLING_PROMPT_LOGPROBS;
    s->prompt_top_count = (uint16_t)tops;
}

/* What is left of the request's time for the next job; 0: there is no end to it. */
static uint64_t timeout_ms(const struct call *c, const struct choice *ch)
{
    uint64_t all = (uint64_t)(c->request.o.timeout_s * 1000);
    if (all == 0 || !ch->tried) return all;
    uint64_t past = (clock_now_ns() - c->submitted_ns) / NS_PER_MS;
    return past < all ? all - past : 1;
}

static bool submit(struct call *c, struct choice *ch)
{
    const struct api_request *r = &c->request;
    const struct api_prompt *prompt = &r->prompts[ch->prompt];
    const struct token_list *ids = &prompt->ids;
    size_t bytes = link_request_bytes(r->bias_count, prompt->key_count, (uint32_t)ids->count);
    struct link_request *frame = mem_alloc(bytes);
    frame->cache_salt = r->cache_salt;
    frame->user_hash = r->user_hash;
    frame->timeout_ms = timeout_ms(c, ch);
    frame->priority = (int32_t)r->o.priority;
    frame->ttft_slo_ms = r->ttft_slo_ms;
    frame->tpot_slo_ms = r->tpot_slo_ms;
    frame->id_count = (uint32_t)ids->count;
    frame->key_count = prompt->key_count;
    frame->params = c->params;
    frame->params.seed += ch->index;
    frame->params.max_tokens = c->max_tokens[ch->prompt];
    if (ch->index % (uint32_t)r->o.n == 0) scores_of(r, &frame->params);
    if (r->bias_count) {
        memcpy((void *)link_request_bias(frame), r->bias, r->bias_count * sizeof *r->bias);
    }
    if (prompt->key_count) {
        memcpy((void *)link_request_keys(frame), prompt->keys,
               prompt->key_count * sizeof *prompt->keys);
    }
    memcpy((void *)link_request_ids(frame), ids->ids, ids->count * sizeof *ids->ids);
    ch->stream = link_client_submit(c->gw->link, frame, &c->keys, prompt->held, c, ch->index,
                                    &ch->tried);
    free(frame);
    return ch->stream;
}

/* -- tokens in, under the lock, on the link's thread ------------------------------------------- */

static void fail(struct call *c, const struct api_error *e)
{
    forget_streams(c);
    c->error = *e;
    c->done = true;
    if (c->begun && c->request.o.stream) call_write_end(c);
    wake(c);
}

static void finish(struct call *c)
{
    c->done = true;
    if (c->request.o.stream) call_write_end(c);
    wake(c);
}

/* The text of a token, through UTF-8 and stop strings, into ch->text. */
static void add_text(struct call *c, struct choice *ch, const char *text, size_t bytes)
{
    struct buf whole = { 0 };
    utf8_stream_add(&ch->utf8, text, bytes, &whole);
    if (ch->tokens <= (uint32_t)c->request.o.min_tokens) {
        stop_scan_end(&ch->scan, &ch->text);
        if (whole.size) buf_add(&ch->text, whole.data, whole.size);
    } else {
        ch->stop_match = stop_scan_add(&ch->scan, &c->request.stops, whole.data, whole.size,
                                       &ch->text);
    }
    buf_release(&whole);
}

static void end_text(struct call *c, struct choice *ch)
{
    struct buf rest = { 0 };
    utf8_stream_end(&ch->utf8, &rest);
    if (rest.size) {
        ch->stop_match = stop_scan_add(&ch->scan, &c->request.stops, rest.data, rest.size,
                                       &ch->text);
    }
    if (ch->stop_match < 0) stop_scan_end(&ch->scan, &ch->text);
    buf_release(&rest);
}

static bool is_own_stop(const struct call *c, int32_t id)
{
    for (uint32_t i = 0; i < c->request.stop_id_count; i++) {
        if (c->request.stop_ids[i] == id) return true;
    }
    return false;
}

static void add_times(struct call *c, struct choice *ch)
{
    uint64_t now = clock_now_ns();
    if (ch->last_token_ns) {
        metrics_next_token(c->gw->metrics, (double)(now - ch->last_token_ns) / NS_PER_S, now);
    } else {
        metrics_first_token(c->gw->metrics, (double)(now - c->since_ns) / NS_PER_S);
    }
    if (!c->first_token_ns) c->first_token_ns = now;
    ch->last_token_ns = now;
}

static void add_token(struct call *c, struct choice *ch, const struct token_record *record,
                      const void *tops)
{
    const struct api_options *o = &c->request.o;
    ch->tokens++;
    add_times(c, ch);
    bool scoring_only = o->max_tokens == 0;
    if (call_wants_records(c) && !scoring_only) {
        buf_add(&ch->records, record, sizeof *record);
        buf_add(&ch->records, tops, record->top_count * sizeof(struct top_logprob));
    }
    bool hidden = record->finish == FINISH_STOP && !o->include_stop;
    if (!hidden && !scoring_only) {
        size_t bytes = 0;
        const char *text = tokenizer_piece(c->gw->tokenizer, record->id, !o->skip_special_tokens,
                                           &bytes);
        if (bytes) add_text(c, ch, text, bytes);
    }
    if (ch->stop_match >= 0) {
        ch->finish = FINISH_STOP;
        link_client_cancel(c->gw->link, ch->stream);
    } else if (record->finish != FINISH_NONE) {
        end_text(c, ch);
        ch->finish = ch->stop_match >= 0 ? FINISH_STOP : (enum finish)record->finish;
        bool own = ch->finish == FINISH_STOP && ch->stop_match < 0 && is_own_stop(c, record->id);
        if (own) ch->stop_id = record->id;
    }
}

static void on_scores(struct call *c, struct choice *ch, const struct link_tokens *t)
{
    struct buf *scores = &c->scores[ch->prompt];
    buf_add(scores, t + 1, t->head.bytes - sizeof *t);
}

static void on_tokens(void *owner, uint32_t index, const struct link_tokens *t)
{
    struct call *c = owner;
    struct choice *ch = &c->choices[index];
    if (t->head.type == LINK_SCORES) {
        on_scores(c, ch, t);
        return;
    }
    struct token_record record;
    const void *tops;
    size_t at = 0;
    bool news = false;
    while (!ch->finish && link_record_next(t, &at, &record, &tops)) {
        add_token(c, ch, &record, tops);
        news = true;
    }
    if (!news || !c->request.o.stream) return;
    c->begun = true;
    call_write_chunk(c, ch);
    if (c->out.size - c->out_at > CALL_QUEUE_BYTES_MAX + c->prompt_bytes) {
        log_warn("client reads too slowly request=%s", c->request_id);
        forget_streams(c);
        c->gone = true;
    }
    wake(c);
}

static void error_of(const struct link_end *e, struct api_error *out)
{
    static const struct { int status; const char *text; } answers[LINK_CODE_COUNT] = {
        [LINK_OK] = { 500, "the request ended without a result" },
        [LINK_REFUSED_FULL] = { 429, "the service is full: too many requests are waiting" },
        [LINK_REFUSED_LENGTH] = { 400, "the request needs more KV cache than a worker has" },
        [LINK_REFUSED_STATE] = { 503, "the service is starting or draining" },
        [LINK_WORKER_LOST] = { 500, "the worker that computed this request was lost; try again" },
        [LINK_TIMEOUT] = { 504, "the request's time is over" },
        [LINK_CANCELLED] = { 500, "the request was cancelled" },
        [LINK_BAD_REQUEST] = { 500, "the job refused the request as malformed" },
    };
    api_fail(out, answers[e->code].status, NULL, "%s", answers[e->code].text);
    out->retry_after_s = e->retry_after_s;
    if (!out->retry_after_s && (out->status == 429 || out->status == 503)) out->retry_after_s = 1;
}

/* A job that refused a request, or was lost before it said a token, costs nobody anything when
 * another job can do it. */
static bool goes_elsewhere(struct call *c, struct choice *ch, const struct link_end *e)
{
    bool unheard = ch->tokens == 0 && c->scores[ch->prompt].size == 0;
    bool other = e->code == LINK_REFUSED_STATE || e->code == LINK_REFUSED_FULL ||
                 e->code == LINK_WORKER_LOST;
    if (!other || !unheard || ch->finish) return false;
    submit(c, ch);
    if (ch->stream) log_info("request=%s goes to another job", c->request_id);
    return ch->stream;
}

static void on_end(void *owner, uint32_t index, const struct link_end *e)
{
    struct call *c = owner;
    struct choice *ch = &c->choices[index];
    ch->stream = 0;
    if (goes_elsewhere(c, ch, e)) return;
    ch->cached = e->cached_tokens;
    ch->prefill_rank = e->prefill_rank;
    ch->decode_rank = e->decode_rank;
    bool fine = e->code == LINK_OK && (e->finish == FINISH_STOP || e->finish == FINISH_LENGTH);
    if (!ch->finish && !fine) {
        struct api_error error;
        error_of(e, &error);
        metrics_choice(c->gw->metrics, FINISH_ERROR, 0, 0, ch->tokens);
        fail(c, &error);
        return;
    }
    if (!ch->finish) {
        end_text(c, ch);
        ch->finish = ch->stop_match >= 0 ? FINISH_STOP : (enum finish)e->finish;
        if (c->request.o.stream) {
            c->begun = true;
            call_write_chunk(c, ch);
            wake(c);
        }
    }
    metrics_choice(c->gw->metrics, ch->finish,
                   (uint32_t)c->request.prompts[ch->prompt].ids.count, ch->cached, ch->tokens);
    if (--c->running == 0) finish(c);
}

static void on_gone(void *owner)
{
    struct call *c = owner;
    c->watched = 0;
    c->gone = true;
    forget_streams(c);
    wake(c);
}

const struct link_owner call_link_owner = { on_tokens, on_end, on_gone };

/* -- bytes out --------------------------------------------------------------------------------- */

enum call_step call_step(const struct call *c)
{
    if (c->gone) return CALL_GONE;
    if (c->request.o.stream && c->begun) return c->done ? CALL_STREAMED : CALL_STREAM;
    return c->done ? CALL_REPLY : CALL_WAIT;
}

void call_sleep(struct call *c, void (*fn)(void *arg), void *arg)
{
    c->wake = fn;
    c->wake_arg = arg;
}

long call_read(struct call *c, char *out, size_t room)
{
    size_t bytes = c->out.size - c->out_at;
    if (c->gone) return -2;
    if (!bytes) return c->done ? -1 : 0;
    if (bytes > room) bytes = room;
    memcpy(out, c->out.data + c->out_at, bytes);
    c->out_at += bytes;
    if (c->out_at == c->out.size) {
        buf_clear(&c->out);
        c->out_at = 0;
    }
    return (long)bytes;
}

bool call_ends(const struct call *c)
{
    return c->done && c->out.size == c->out_at;
}

struct buf call_take_stream(struct call *c)
{
    struct buf all = c->out;
    c->out = (struct buf){ 0 };
    return all;
}

size_t call_reply_size(const struct call *c)
{
    const struct api_options *o = &c->request.o;
    size_t sum = 0;
    for (uint32_t i = 0; i < c->choice_count; i++) {
        const struct choice *ch = &c->choices[i];
        const struct api_prompt *prompt = &c->request.prompts[ch->prompt];
        sum += ch->text.size + ch->records.size + c->scores[ch->prompt].size;
        if (o->echo || o->return_token_ids) sum += prompt->ids.count * sizeof *prompt->ids.ids;
    }
    return sum;
}

int call_reply(struct call *c, struct buf *body, struct api_error *e)
{
    if (c->error.status) *e = c->error;
    else call_write_body(c, body);
    c->status = c->error.status ? c->error.status : 200;
    return c->status;
}

void call_ranks(const struct call *c, int *prefill, int *decode)
{
    *prefill = c->choices[0].prefill_rank;
    *decode = c->choices[0].decode_rank;
}

/* -- from JSON to streams ---------------------------------------------------------------------- */

/* max_tokens of one prompt, once its length is known. */
static bool budget(const struct api_request *r, size_t prompt, uint32_t context, uint32_t *out,
                   struct api_error *e)
{
    const struct api_options *o = &r->o;
    const char *field = r->kind == API_CHAT ? "messages" : "prompt";
    int64_t asked = o->max_completion_tokens > 0 ? o->max_completion_tokens : o->max_tokens;
    if (prompt >= context) {
        api_fail(e, 400, field, "This model's maximum context length is %u tokens. However, the "
                 "prompt has %zu tokens.", context, prompt);
        e->code = "context_length_exceeded";
        return false;
    }
    uint32_t room = context - (uint32_t)prompt;
    if (asked < 0) asked = r->kind == API_CHAT || room < 16 ? room : 16;
    if (asked > room) {
        const char *name = o->max_completion_tokens > 0 ? "max_completion_tokens" : "max_tokens";
        return api_fail(e, 400, name, "%s is too large: %lld. This model's maximum context length "
                        "is %u tokens and the prompt has %zu tokens.", name, (long long)asked,
                        context, prompt);
    }
    if (o->min_tokens > asked) {
        return api_fail(e, 400, "min_tokens", "min_tokens must be at most max_tokens (%lld), got "
                        "%lld", (long long)asked, (long long)o->min_tokens);
    }
    *out = asked ? (uint32_t)asked : 1;
    return true;
}

/* Each choice repeats those of its prompt. */
static bool scores_fit(const struct api_request *r, struct api_error *e)
{
    uint64_t each = (uint64_t)(tops_of_prompts(r) + 1), sum = 0;
    for (uint32_t i = 0; i < r->prompt_count; i++) {
        sum += each * r->prompts[i].ids.count * (uint64_t)r->o.n;
    }
    if (sum <= PROMPT_LOGPROBS_MAX) return true;
    return api_fail(e, 400, r->o.prompt_logprobs < 0 ? "logprobs" : "prompt_logprobs",
                    "one answer has at most %d log-probabilities of prompts; this one would have "
                    "%llu", PROMPT_LOGPROBS_MAX, (unsigned long long)sum);
}

static void sampling_of(const struct gateway *gw, const struct api_request *r, struct sampling *s)
{
    const struct api_options *o = &r->o;
    *s = (struct sampling){
        .seed = (uint64_t)o->seed,
        .temperature = (float)o->temperature,
        .top_p = (float)o->top_p,
        .min_p = (float)o->min_p,
        .repetition_penalty = (float)o->repetition_penalty,
        .presence_penalty = (float)o->presence_penalty,
        .frequency_penalty = (float)o->frequency_penalty,
        .top_k = (int32_t)o->top_k,
        .min_tokens = (uint32_t)o->min_tokens,
        .bias_count = (uint16_t)r->bias_count,
    };
    if (o->ignore_eos) s->flags |= SAMPLING_IGNORE_EOS;
    if (o->logprobs) {
        s->flags |= SAMPLING_LOGPROBS;
        s->top_count = (uint16_t)(o->top_logprobs > 0 ? o->top_logprobs : 0);
    }
    s->eos_id_count = (uint16_t)tokenizer_end_ids(gw->tokenizer, s->stop_ids, STOP_IDS_MAX);
    s->stop_id_count = s->eos_id_count;
    for (uint32_t i = 0; i < r->stop_id_count; i++) {
        s->stop_ids[s->stop_id_count++] = r->stop_ids[i];
    }
    if (o->has_seed) return;
    s->seed = gw->config.seed;
    if (!s->seed) secret_random(&s->seed, sizeof s->seed);
}

static bool unavailable(const struct gateway *gw, struct api_error *e)
{
    enum job_state state = link_client_state(gw->link);
    if (!gw->draining && state == JOB_LIVE) return false;
    bool draining = gw->draining || state == JOB_DRAINING;
    api_fail(e, 503, NULL, "the service is %s", draining ? "shutting down" : "starting");
    e->retry_after_s = draining ? 5 : 1;
    return true;
}

static bool submit_all(struct call *c, struct api_error *e)
{
    sampling_of(c->gw, &c->request, &c->params);
    c->submitted_ns = clock_now_ns();
    if (unavailable(c->gw, e)) return false;
    for (uint32_t i = 0; i < c->choice_count; i++) {
        struct choice *ch = &c->choices[i];
        if (submit(c, ch)) {
            c->running++;
            continue;
        }
        api_fail(e, 503, NULL, "too many requests are on their way to the job");
        e->retry_after_s = 1;
        forget_streams(c);
        return false;
    }
    return true;
}

static struct call *call_make(struct gateway *gw, const struct call_origin *origin)
{
    struct call *c = mem_alloc(sizeof *c);
    c->gw = gw;
    c->created = time(NULL);
    c->since_ns = origin->since_ns;
    snprintf(c->request_id, sizeof c->request_id, "%s", origin->request_id);
    return c;
}

static void call_free(struct call *c)
{
    for (uint32_t i = 0; i < c->choice_count; i++) {
        struct choice *ch = &c->choices[i];
        stop_scan_release(&ch->scan);
        buf_release(&ch->text);
        buf_release(&ch->records);
    }
    for (uint32_t i = 0; c->scores && i < c->request.prompt_count; i++) {
        buf_release(&c->scores[i]);
    }
    free(c->choices);
    free(c->max_tokens);
    free(c->scores);
    buf_release(&c->out);
    api_request_release(&c->request);
    free(c);
}

static void make_choices(struct call *c)
{
    const struct api_request *r = &c->request;
    uint64_t random;
    secret_random(&random, sizeof random);
    snprintf(c->id, sizeof c->id, "%s-%016llx", r->kind == API_CHAT ? "chatcmpl" : "cmpl",
             (unsigned long long)random);
    c->top_count = r->o.top_logprobs > 0 ? (uint32_t)r->o.top_logprobs : 0;
    c->scores = mem_array(r->prompt_count, sizeof *c->scores);
    c->choice_count = r->prompt_count * (uint32_t)r->o.n;
    c->choices = mem_array(c->choice_count, sizeof *c->choices);
    for (uint32_t i = 0; i < c->choice_count; i++) {
        c->choices[i] = (struct choice){ .index = i, .prompt = i / (uint32_t)r->o.n,
                                         .stop_match = -1, .stop_id = -1, .prefill_rank = -1,
                                         .decode_rank = -1 };
    }
}

/* Everything that needs no lock. */
static bool prepare(struct call *c, enum api_kind kind, const char *body, size_t bytes,
                    const struct call_origin *origin, struct api_error *e)
{
    struct gateway *gw = c->gw;
    uint32_t context = gw->context, vocab = tokenizer_vocab(gw->tokenizer);
    pthread_mutex_lock(&gw->lock);
    link_client_job(gw->link, &context, &vocab);
    bool known = link_client_keys(gw->link, &c->keys);
    pthread_mutex_unlock(&gw->lock);
    struct api_request *r = &c->request;
    if (!api_parse(gw, kind, body, bytes, (size_t)context * 4, vocab, r, e)) return false;
    if (!wishes_read(&origin->wishes, r, e)) return false;
    c->max_tokens = mem_array(r->prompt_count, sizeof *c->max_tokens);
    for (uint32_t i = 0; i < r->prompt_count; i++) {
        if (!budget(r, r->prompts[i].ids.count, context, &c->max_tokens[i], e)) return false;
    }
    if (!scores_fit(r, e)) return false;
    if (known) {
        prompt_keys_make(r, &c->keys);
        prompt_keys_look(gw, r, &c->keys);
    }
    make_choices(c);
    return true;
}

struct call *call_open(struct gateway *gw, enum api_kind kind, const char *body, size_t bytes,
                       const struct call_origin *origin, struct api_error *e)
{
    struct call *c = call_make(gw, origin);
    bool ok = prepare(c, kind, body, bytes, origin, e);
    pthread_mutex_lock(&gw->lock);
    ok = ok && submit_all(c, e);
    if (ok) {
        c->watched = link_client_watch(gw->link, origin->fd, c);
        c->next = all_calls;
        if (all_calls) all_calls->before = c;
        all_calls = c;
        gw->calls_open++;
    } else {
        metrics_request(gw->metrics, e->status, FINISH_NONE, 0);
    }
    pthread_mutex_unlock(&gw->lock);
    if (ok) return c;
    call_free(c);
    return NULL;
}

static void log_call(const struct call *c, double seconds)
{
    double first = c->first_token_ns ? (double)(c->first_token_ns - c->since_ns) / 1e6 : -1;
    log_info("request=%s status=%d prompt=%llu cached=%llu output=%llu choices=%u first_ms=%.1f "
             "ms=%.1f%s", c->request_id, c->status, (unsigned long long)call_prompt_tokens(c),
             (unsigned long long)call_cached_tokens(c), (unsigned long long)call_output_tokens(c),
             c->choice_count, first, seconds * 1000, c->done ? "" : " client=gone");
}

void call_close(struct call *c)
{
    struct gateway *gw = c->gw;
    double seconds = (double)(clock_now_ns() - c->since_ns) / NS_PER_S;
    pthread_mutex_lock(&gw->lock);
    forget_streams(c);
    link_client_unwatch(gw->link, c->watched);
    if (!c->status) c->status = c->begun || c->done ? 200 : 499;
    enum finish f = !c->done ? FINISH_ABORT : c->error.status ? FINISH_ERROR : c->choices[0].finish;
    metrics_request(gw->metrics, c->status, f, seconds);
    if (c->before) c->before->next = c->next;
    else all_calls = c->next;
    if (c->next) c->next->before = c->before;
    gw->calls_open--;
    pthread_mutex_unlock(&gw->lock);
    log_call(c, seconds);
    call_free(c);
}

void call_abort_all(struct gateway *gw)
{
    struct api_error e;
    api_fail(&e, 503, NULL, "the service is shutting down");
    (void)gw;
    for (struct call *c = all_calls; c; c = c->next) {
        if (!c->done) fail(c, &e);
    }
}
