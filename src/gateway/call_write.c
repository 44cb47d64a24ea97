/* gateway/call_write.c - the bytes of an answer: server-sent events and whole bodies.
 *
 * Shapes are OpenAI's with vLLM's extensions.  An event is a `data: {json}` line and an empty one.
 */
#include <string.h>

#include "gateway/call_state.h"

static bool is_chat(const struct call *c)
{
    return c->request.kind == API_CHAT;
}

static void head(struct call *c, struct buf *out, bool chunk)
{
    const char *object = is_chat(c) ? (chunk ? "chat.completion.chunk" : "chat.completion")
                                    : "text_completion";
    buf_print(out, "{\"id\":\"%s\",\"object\":\"%s\",\"created\":%lld,\"model\":", c->id, object,
              (long long)c->created);
    write_string(out, c->gw->model_name, strlen(c->gw->model_name));
    buf_text(out, ",\"choices\":[");
}

static const char *finish_text(enum finish f)
{
    static const char *const names[FINISH_COUNT] = { "null", "\"stop\"", "\"length\"",
                                                     "\"abort\"", "\"error\"" };
    return names[f];
}

static void stop_reason(const struct call *c, const struct choice *ch, struct buf *out)
{
    if (ch->stop_match >= 0) {
        const struct stop_string *s = &c->request.stops.item[ch->stop_match];
        write_string(out, s->text, s->bytes);
    } else if (ch->stop_id >= 0) {
        buf_print(out, "%d", ch->stop_id);
    } else {
        buf_text(out, "null");
    }
}

static struct api_records records_of(const struct buf *b)
{
    return (struct api_records){ b->data, b->size };
}

static void token_ids(const struct choice *ch, struct buf *out)
{
    struct api_records r = records_of(&ch->records);
    struct token_record record;
    const char *tops;
    buf_char(out, '[');
    for (size_t at = 0, i = 0; api_record_next(&r, &at, &record, &tops); i++) {
        buf_print(out, "%s%d", i ? "," : "", record.id);
    }
    buf_char(out, ']');
}

/* The prompt of a choice when it is to be echoed, else NULL. */
static const struct api_prompt *echoed(const struct call *c, const struct choice *ch)
{
    bool echo = c->request.kind == API_COMPLETION && c->request.o.echo && !ch->begun;
    return echo ? &c->request.prompts[ch->prompt] : NULL;
}

static void choice_text(struct call *c, struct choice *ch, struct buf *out)
{
    const struct api_prompt *prompt = echoed(c, ch);
    struct buf text = { 0 };
    if (prompt && prompt->text) buf_add(&text, prompt->text, prompt->bytes);
    else if (prompt) {
        tokenizer_decode(c->gw->tokenizer, prompt->ids.ids, prompt->ids.count, true, &text);
    }
    if (ch->text.size) buf_add(&text, ch->text.data, ch->text.size);
    write_string(out, text.data ? text.data : "", text.size);
    buf_release(&text);
}

static void choice_logprobs(struct call *c, struct choice *ch, struct buf *out)
{
    const struct tokenizer *t = c->gw->tokenizer;
    const struct api_prompt *prompt = echoed(c, ch);
    if (!c->request.o.logprobs) {
        buf_text(out, "null");
    } else if (is_chat(c)) {
        write_chat_logprobs(out, t, records_of(&ch->records), c->top_count);
    } else {
        write_completion_logprobs(out, t, prompt ? &prompt->ids : NULL,
                                  records_of(&c->scores[ch->prompt]), records_of(&ch->records),
                                  c->top_count, &ch->text_offset);
    }
}

static void choice_tail(struct call *c, struct choice *ch, struct buf *out, bool chunk)
{
    buf_text(out, ",\"logprobs\":");
    choice_logprobs(c, ch, out);
    buf_print(out, ",\"finish_reason\":%s", finish_text(ch->finish));
    if (!chunk || ch->finish) {
        buf_text(out, ",\"stop_reason\":");
        stop_reason(c, ch, out);
    }
    if (c->request.o.return_token_ids) {
        buf_text(out, ",\"token_ids\":");
        token_ids(ch, out);
    }
}

uint64_t call_prompt_tokens(const struct call *c)
{
    uint64_t sum = 0;
    for (uint32_t i = 0; i < c->request.prompt_count; i++) sum += c->request.prompts[i].ids.count;
    return sum;
}

uint64_t call_output_tokens(const struct call *c)
{
    uint64_t sum = 0;
    for (uint32_t i = 0; i < c->choice_count; i++) sum += c->choices[i].tokens;
    return c->request.o.max_tokens == 0 ? 0 : sum;
}

/* Of each prompt the first choice counts, as prompt_tokens counts each prompt once. */
uint64_t call_cached_tokens(const struct call *c)
{
    uint64_t sum = 0;
    for (uint32_t i = 0; i < c->choice_count; i += (uint32_t)c->request.o.n) {
        sum += c->choices[i].cached;
    }
    return sum;
}

static void usage(struct call *c, struct buf *out)
{
    write_usage(out, call_prompt_tokens(c), call_output_tokens(c), call_cached_tokens(c));
}

static void chunk_close(struct call *c, bool with_usage)
{
    buf_char(&c->out, ']');
    if (with_usage) {
        buf_text(&c->out, ",\"usage\":");
        usage(c, &c->out);
    } else if (c->request.o.include_usage) {
        buf_text(&c->out, ",\"usage\":null");
    }
    buf_text(&c->out, "}\n\n");
}

static void chunk_open(struct call *c)
{
    buf_text(&c->out, "data: ");
    head(c, &c->out, true);
}

/* The role, before any content: what OpenAI's clients wait for. */
static void chat_role(struct call *c, const struct choice *ch)
{
    chunk_open(c);
    buf_print(&c->out, "{\"index\":%u,\"delta\":{\"role\":\"assistant\",\"content\":\"\"},"
              "\"logprobs\":null,\"finish_reason\":null}", ch->index);
    chunk_close(c, c->request.o.continuous_usage);
}

static void prompt_token_ids(const struct call *c, const struct choice *ch, struct buf *out)
{
    const struct token_list *ids = &c->request.prompts[ch->prompt].ids;
    buf_text(out, ",\"prompt_token_ids\":");
    write_ids(out, ids->ids, ids->count);
}

void call_write_chunk(struct call *c, struct choice *ch)
{
    if (is_chat(c) && !ch->begun) chat_role(c, ch);
    bool something = ch->text.size || ch->finish || (c->request.o.echo && !ch->begun) ||
                     (call_wants_records(c) && ch->records.size);
    if (something) {
        struct buf *out = &c->out;
        size_t before = out->size;
        bool ids = c->request.o.return_token_ids && !ch->begun, repeats = ids || echoed(c, ch);
        chunk_open(c);
        if (is_chat(c)) {
            buf_print(out, "{\"index\":%u,\"delta\":{\"content\":", ch->index);
            choice_text(c, ch, out);
            buf_char(out, '}');
        } else {
            buf_print(out, "{\"index\":%u,\"text\":", ch->index);
            choice_text(c, ch, out);
        }
        choice_tail(c, ch, out, true);
        if (ids) prompt_token_ids(c, ch, out);
        buf_char(out, '}');
        chunk_close(c, c->request.o.continuous_usage);
        if (repeats) c->prompt_bytes += out->size - before;
    }
    ch->begun = ch->begun || something || is_chat(c);
    buf_clear(&ch->text);
    buf_clear(&ch->records);
}

void call_write_end(struct call *c)
{
    if (c->error.status) {
        buf_text(&c->out, "data: ");
        api_error_write(&c->error, &c->out);
        buf_text(&c->out, "\n\n");
    } else if (c->request.o.include_usage) {
        chunk_open(c);
        chunk_close(c, true);
    }
    buf_text(&c->out, "data: [DONE]\n\n");
}

static void body_choice(struct call *c, struct choice *ch, struct buf *out)
{
    const struct api_options *o = &c->request.o;
    const struct token_list *ids = &c->request.prompts[ch->prompt].ids;
    if (is_chat(c)) {
        buf_print(out, "{\"index\":%u,\"message\":{\"role\":\"assistant\",\"content\":", ch->index);
        choice_text(c, ch, out);
        buf_text(out, ",\"refusal\":null}");
    } else {
        buf_print(out, "{\"index\":%u,\"text\":", ch->index);
        choice_text(c, ch, out);
    }
    choice_tail(c, ch, out, false);
    if (!is_chat(c) && o->return_token_ids) prompt_token_ids(c, ch, out);
    if (!is_chat(c) && o->prompt_logprobs >= 0) {
        buf_text(out, ",\"prompt_logprobs\":");
        write_prompt_logprobs(out, c->gw->tokenizer, ids, records_of(&c->scores[ch->prompt]),
                              (uint32_t)o->prompt_logprobs);
    }
    buf_char(out, '}');
}

void call_write_body(struct call *c, struct buf *out)
{
    const struct api_options *o = &c->request.o;
    head(c, out, false);
    for (uint32_t i = 0; i < c->choice_count; i++) {
        if (i) buf_char(out, ',');
        body_choice(c, &c->choices[i], out);
    }
    buf_text(out, "],\"usage\":");
    usage(c, out);
    if (is_chat(c) && o->return_token_ids) prompt_token_ids(c, &c->choices[0], out);
    if (is_chat(c) && o->prompt_logprobs >= 0) {
        buf_text(out, ",\"prompt_logprobs\":");
        write_prompt_logprobs(out, c->gw->tokenizer, &c->request.prompts[0].ids,
                              records_of(&c->scores[0]), (uint32_t)o->prompt_logprobs);
    }
    buf_char(out, '}');
}
