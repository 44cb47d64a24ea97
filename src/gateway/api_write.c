/* gateway/api_write.c - answers: structs to JSON text; see api.h.
 *
 * Written piece by piece into a buffer: a token's worth of JSON is some dozen bytes, and a tree for
 * each would cost more than it says.
 */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "gateway/api.h"

/* Length of the valid UTF-8 character at text, or 0. */
static size_t character(const unsigned char *text, size_t left)
{
    unsigned char c = text[0];
    size_t n = c < 0x80 ? 1 : c >= 0xc2 && c < 0xe0 ? 2 : (c & 0xf0) == 0xe0 ? 3
             : c >= 0xf0 && c < 0xf5 ? 4 : 0;
    if (!n || n > left) return 0;
    for (size_t i = 1; i < n; i++) {
        if ((text[i] & 0xc0) != 0x80) return 0;
    }
    if (c == 0xe0 && text[1] < 0xa0) return 0;
    if (c == 0xed && text[1] >= 0xa0) return 0;
    if (c == 0xf0 && text[1] < 0x90) return 0;
    if (c == 0xf4 && text[1] >= 0x90) return 0;
    return n;
}

static void escaped(struct buf *out, unsigned char c)
{
    static const char letters[] = "btn\0fr";   /* 8, 9, 10, -, 12, 13 */
    if (c == '"' || c == '\\') buf_print(out, "\\%c", c);
    else if (c >= 8 && c <= 13 && letters[c - 8]) buf_print(out, "\\%c", letters[c - 8]);
    else buf_print(out, "\\u%04x", c);
}

void write_string(struct buf *out, const char *text, size_t bytes)
{
    const unsigned char *at = (const unsigned char *)text, *end = at + bytes;
    const unsigned char *plain = at;
    buf_char(out, '"');
    while (at < end) {
        size_t n = character(at, (size_t)(end - at));
        if (n && *at >= 0x20 && *at != '"' && *at != '\\') {
            at += n;
            continue;
        }
        buf_add(out, plain, (size_t)(at - plain));
        if (n) escaped(out, *at);
        else buf_text(out, "\xef\xbf\xbd");
        plain = ++at;
    }
    buf_add(out, plain, (size_t)(at - plain));
    buf_char(out, '"');
}

void write_ids(struct buf *out, const int32_t *ids, size_t count)
{
    buf_char(out, '[');
    for (size_t i = 0; i < count; i++) buf_print(out, "%s%d", i ? "," : "", ids[i]);
    buf_char(out, ']');
}

static const char *error_type(int status)
{
    switch (status) {
    case 401: return "authentication_error";
    case 404: return "not_found_error";
    case 429: return "rate_limit_error";
    case 503: return "service_unavailable_error";
    default: return status < 500 ? "invalid_request_error" : "internal_server_error";
    }
}

void api_error_write(const struct api_error *e, struct buf *out)
{
    buf_text(out, "{\"error\":{\"message\":");
    write_string(out, e->message, strlen(e->message));
    buf_print(out, ",\"type\":\"%s\",\"param\":", error_type(e->status));
    if (e->param[0]) write_string(out, e->param, strlen(e->param));
    else buf_text(out, "null");
    if (e->code) buf_print(out, ",\"code\":\"%s\"}}", e->code);
    else buf_print(out, ",\"code\":%d}}", e->status);
}

bool api_record_next(const struct api_records *r, size_t *at, struct token_record *out,
                     const char **tops)
{
    if (*at >= r->bytes) return false;
    CHECK(r->bytes - *at >= sizeof *out);
    memcpy(out, r->data + *at, sizeof *out);
    *tops = r->data + *at + sizeof *out;
    *at += sizeof *out + out->top_count * sizeof(struct top_logprob);
    CHECK(*at <= r->bytes);
    return true;
}

static struct top_logprob top_at(const char *tops, uint32_t i)
{
    struct top_logprob top;
    memcpy(&top, tops + i * sizeof top, sizeof top);
    return top;
}

/* JSON has no infinity; vLLM writes -9999 for a token that cannot be. */
static void number(struct buf *out, float logprob)
{
    if (!isfinite(logprob) || logprob < -9999.0f) logprob = -9999.0f;
    buf_print(out, "%.9g", (double)logprob);
}

static bool valid_utf8(const char *text, size_t bytes)
{
    for (size_t at = 0, n; at < bytes; at += n) {
        n = character((const unsigned char *)text + at, bytes - at);
        if (!n) return false;
    }
    return true;
}

/* A part of a character is named by its bytes, as OpenAI's older API does: keys stay distinct. */
static void token_name(struct buf *out, const struct tokenizer *t, int32_t id)
{
    size_t bytes = 0;
    const char *text = tokenizer_piece(t, id, true, &bytes);
    if (valid_utf8(text, bytes)) {
        write_string(out, text, bytes);
        return;
    }
    buf_text(out, "\"bytes:");
    for (size_t i = 0; i < bytes; i++) buf_print(out, "\\\\x%02x", (unsigned char)text[i]);
    buf_char(out, '"');
}

static void chat_token(struct buf *out, const struct tokenizer *t, int32_t id, float logprob)
{
    size_t bytes = 0;
    const char *text = tokenizer_piece(t, id, true, &bytes);
    buf_text(out, "{\"token\":");
    write_string(out, text, bytes);
    buf_text(out, ",\"logprob\":");
    number(out, logprob);
    buf_text(out, ",\"bytes\":[");
    for (size_t i = 0; i < bytes; i++) {
        buf_print(out, "%s%u", i ? "," : "", (unsigned char)text[i]);
    }
    buf_char(out, ']');
}

void write_chat_logprobs(struct buf *out, const struct tokenizer *t, struct api_records r,
                         uint32_t tops)
{
    struct token_record record;
    const char *top;
    buf_text(out, "{\"content\":[");
    for (size_t at = 0, i = 0; api_record_next(&r, &at, &record, &top); i++) {
        if (i) buf_char(out, ',');
        chat_token(out, t, record.id, record.logprob);
        buf_text(out, ",\"top_logprobs\":[");
        for (uint32_t k = 0; k < record.top_count && k < tops; k++) {
            struct top_logprob p = top_at(top, k);
            if (k) buf_char(out, ',');
            chat_token(out, t, p.id, p.logprob);
            buf_char(out, '}');
        }
        buf_text(out, "]}");
    }
    buf_text(out, "]}");
}

/* -- completions: four lists beside each other ------------------------------------------------- */

struct lists {
    struct buf tokens, logprobs, tops, offsets;
    const struct tokenizer *tokenizer;
    uint32_t count, top_count;
    uint64_t *offset;
};

static uint64_t characters(const char *text, size_t bytes)
{
    uint64_t n = 0;
    for (size_t i = 0; i < bytes; i++) n += ((unsigned char)text[i] & 0xc0) != 0x80;
    return n;
}

static void tops_object(struct lists *l, const struct token_record *record, const char *tops)
{
    bool seen = false;
    uint32_t count = record->top_count < l->top_count ? record->top_count : l->top_count;
    buf_char(&l->tops, '{');
    for (uint32_t k = 0; k < count; k++) {
        struct top_logprob p = top_at(tops, k);
        seen |= p.id == record->id;
        if (k) buf_char(&l->tops, ',');
        token_name(&l->tops, l->tokenizer, p.id);
        buf_char(&l->tops, ':');
        number(&l->tops, p.logprob);
    }
    if (!seen) {                      /* the token itself is always among them */
        if (count) buf_char(&l->tops, ',');
        token_name(&l->tops, l->tokenizer, record->id);
        buf_char(&l->tops, ':');
        number(&l->tops, record->logprob);
    }
    buf_char(&l->tops, '}');
}

/* record NULL: a token without a probability, the first of the prompt. */
static void lists_add(struct lists *l, int32_t id, const struct token_record *record,
                      const char *tops)
{
    const char *comma = l->count++ ? "," : "";
    size_t bytes = 0;
    const char *text = tokenizer_piece(l->tokenizer, id, true, &bytes);
    buf_text(&l->tokens, comma);
    token_name(&l->tokens, l->tokenizer, id);
    buf_print(&l->offsets, "%s%llu", comma, (unsigned long long)*l->offset);
    *l->offset += characters(text, bytes);
    buf_text(&l->logprobs, comma);
    buf_text(&l->tops, comma);
    if (record) {
        number(&l->logprobs, record->logprob);
        tops_object(l, record, tops);
    } else {
        buf_text(&l->logprobs, "null");
        buf_text(&l->tops, "null");
    }
}

static void part(struct buf *out, const char *name, struct buf *list)
{
    buf_print(out, "\"%s\":[", name);
    if (list->size) buf_add(out, list->data, list->size);
    buf_char(out, ']');
    buf_release(list);
}

void write_completion_logprobs(struct buf *out, const struct tokenizer *t,
                               const struct token_list *prompt, struct api_records scores,
                               struct api_records r, uint32_t tops, uint64_t *offset)
{
    struct lists l = { .tokenizer = t, .top_count = tops, .offset = offset };
    struct token_record record;
    const char *top;
    size_t at = 0;
    bool have = prompt && api_record_next(&scores, &at, &record, &top);
    for (size_t i = 0; prompt && i < prompt->count; i++) {
        while (have && record.position < i) have = api_record_next(&scores, &at, &record, &top);
        bool scored = have && record.position == i;
        lists_add(&l, prompt->ids[i], scored ? &record : NULL, top);
    }
    at = 0;
    while (api_record_next(&r, &at, &record, &top)) lists_add(&l, record.id, &record, top);
    buf_char(out, '{');
    part(out, "tokens", &l.tokens);
    buf_char(out, ',');
    part(out, "token_logprobs", &l.logprobs);
    buf_char(out, ',');
    part(out, "top_logprobs", &l.tops);
    buf_char(out, ',');
    part(out, "text_offset", &l.offsets);
    buf_char(out, '}');
}

static void prompt_entry(struct buf *out, const struct tokenizer *t, int32_t id, float logprob,
                         uint32_t rank)
{
    size_t bytes = 0;
    const char *text = tokenizer_piece(t, id, true, &bytes);
    buf_print(out, "\"%d\":{\"logprob\":", id);
    number(out, logprob);
    buf_print(out, ",\"rank\":%u,\"decoded_token\":", rank);
    write_string(out, text, bytes);
    buf_char(out, '}');
}

void write_prompt_logprobs(struct buf *out, const struct tokenizer *t,
                           const struct token_list *prompt, struct api_records scores,
                           uint32_t tops)
{
    struct token_record record;
    const char *top;
    size_t at = 0;
    bool have = api_record_next(&scores, &at, &record, &top);
    buf_char(out, '[');
    for (size_t i = 0; i < prompt->count; i++) {
        if (i) buf_char(out, ',');
        while (have && record.position < i) have = api_record_next(&scores, &at, &record, &top);
        if (!have || record.position != i) {
            buf_text(out, "null");
            continue;
        }
        buf_char(out, '{');
        prompt_entry(out, t, record.id, record.logprob, record.rank);
        for (uint32_t k = 0; k < record.top_count && k < tops; k++) {
            struct top_logprob p = top_at(top, k);
            if (p.id == record.id) continue;
            buf_char(out, ',');
            prompt_entry(out, t, p.id, p.logprob, k + 1);
        }
        buf_char(out, '}');
    }
    buf_char(out, ']');
}

void write_usage(struct buf *out, uint64_t prompt, uint64_t output, uint64_t cached)
{
    buf_print(out,
              "{\"prompt_tokens\":%llu,\"total_tokens\":%llu,\"completion_tokens\":%llu,"
              "\"prompt_tokens_details\":{\"cached_tokens\":%llu}}",
              (unsigned long long)prompt, (unsigned long long)(prompt + output),
              (unsigned long long)output, (unsigned long long)cached);
}
