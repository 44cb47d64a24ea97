/* ctl/bench_stream.c - one answer as it arrives, and its times; see bench.h. */
#include <stdio.h>
#include <string.h>

#include <jansson.h>

#include "common/clock.h"
#include "ctl/bench.h"

void stream_start(struct stream *s, uint64_t now_ns)
{
    struct buf line = s->line;
    buf_clear(&line);
    line.limit = BENCH_LINE_BYTES_MAX;
    *s = (struct stream){ .line = line, .sent_ns = now_ns, .gap = s->gap, .context = s->context };
}

static void note_token(struct stream *s, uint64_t now_ns)
{
    if (s->chunks++ == 0) {
        s->first_ns = now_ns;
    } else {
        double ms = (double)(now_ns - s->last_ns) / (double)NS_PER_MS;
        if (ms > s->itl_max_ms) s->itl_max_ms = ms;
        if (s->gap) s->gap(s->context, s->last_ns, now_ns);
    }
    s->last_ns = now_ns;
}

/* A completion's token may have no text of its own yet (half a UTF-8 letter); a chat's chunk
 * without text may be the role alone, and a last chunk may carry the reason only. */
static bool is_token(const json_t *choice)
{
    const json_t *text = json_object_get(choice, "text");
    if (json_is_string(text)) {
        const json_t *reason = json_object_get(choice, "finish_reason");
        return json_string_length(text) || !json_is_string(reason);
    }
    const json_t *delta = json_object_get(choice, "delta");
    return json_string_length(json_object_get(delta, "content")) ||
           json_string_length(json_object_get(delta, "reasoning_content")) ||
           json_array_size(json_object_get(delta, "tool_calls"));
}

static uint32_t count_of(const json_t *usage, const char *name)
{
    json_int_t n = json_integer_value(json_object_get(usage, name));
    return n < 0 ? 0 : n > UINT32_MAX ? UINT32_MAX : (uint32_t)n;
}

static void take_event(struct stream *s, const char *text, size_t bytes, uint64_t now_ns)
{
    while (bytes && *text == ' ') text++, bytes--;
    if (bytes >= 6 && memcmp(text, "[DONE]", 6) == 0) {
        s->done = true;
        return;
    }
    json_t *event = json_loadb(text, bytes, JSON_ALLOW_NUL, NULL);
    const json_t *error = json_object_get(event, "error");
    const json_t *usage = json_object_get(event, "usage");
    const json_t *choice = json_array_get(json_object_get(event, "choices"), 0);
    if (!event) {
        snprintf(s->error, sizeof s->error, "event is not JSON");
    } else if (error) {
        const char *words = json_string_value(json_object_get(error, "message"));
        snprintf(s->error, sizeof s->error, "error event: %.60s", words ? words : "no message");
    } else if (choice && is_token(choice)) {
        note_token(s, now_ns);
    }
    if (json_is_object(usage)) {
        s->prompt_tokens = count_of(usage, "prompt_tokens");
        s->output_tokens = count_of(usage, "completion_tokens");
    }
    json_decref(event);
}

static void take_line(struct stream *s, uint64_t now_ns)
{
    size_t bytes = s->line.size;
    if (bytes && s->line.data[bytes - 1] == '\r') bytes--;
    if (bytes >= 5 && memcmp(s->line.data, "data:", 5) == 0) {
        take_event(s, s->line.data + 5, bytes - 5, now_ns);
    } else if (bytes >= 6 && memcmp(s->line.data, "error:", 6) == 0) {
        snprintf(s->error, sizeof s->error, "error event");
    }
    buf_clear(&s->line);
}

bool stream_take(struct stream *s, const char *data, size_t bytes, uint64_t now_ns)
{
    while (bytes) {
        const char *end = memchr(data, '\n', bytes);
        size_t piece = end ? (size_t)(end - data) : bytes;
        if (!buf_add(&s->line, data, piece)) {
            snprintf(s->error, sizeof s->error, "event over %d MiB", BENCH_LINE_BYTES_MAX >> 20);
            return false;
        }
        if (end) take_line(s, now_ns);
        data += piece + (end != NULL);
        bytes -= piece + (end != NULL);
    }
    return true;
}

void stream_end(struct stream *s)
{
    if (s->line.size) take_line(s, s->last_ns);
}

uint32_t stream_tokens(const struct stream *s)
{
    return s->output_tokens ? s->output_tokens : s->chunks;
}

struct bench_times stream_times(const struct stream *s, uint64_t end_ns)
{
    double ms = (double)NS_PER_MS;
    uint64_t first = s->chunks ? s->first_ns : end_ns;
    uint64_t last = s->chunks ? s->last_ns : end_ns;
    uint32_t tokens = stream_tokens(s);
    struct bench_times t = { .ttft = (double)(first - s->sent_ns) / ms,
                             .e2el = (double)(last - s->sent_ns) / ms,
                             .itl_max = s->itl_max_ms };
    if (tokens > 1) t.tpot = (t.e2el - t.ttft) / (tokens - 1);
    return t;
}
