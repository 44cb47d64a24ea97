/* model/utf8_stream.c - strict UTF-8: one step, valid runs, and the stream of tokenizer.h.
 *
 * Always true between calls: the bytes a stream holds back are the beginning of some character.
 */
#include <stdint.h>
#include <string.h>

#include "model/tokenizer.h"
#include "model/tokenizer_utf8.h"

#define REPLACEMENT "\xEF\xBF\xBD" /* U+FFFD */

int utf8_step(const unsigned char *p, size_t bytes)
{
    unsigned lead = p[0];
    if (lead < 0x80) return 1;
    if (lead < 0xC2 || lead > 0xF4) return -1;
    int need = lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
    /* The second byte's range is what rules out overlong forms, surrogates and > U+10FFFF. */
    unsigned low = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
    unsigned high = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
    for (int i = 1; i < need; i++) {
        if ((size_t)i == bytes) return 0;
        if (p[i] < low || p[i] > high) return -i;
        low = 0x80;
        high = 0xBF;
    }
    return need;
}

size_t utf8_valid_run(const char *text, size_t bytes)
{
    const unsigned char *p = (const unsigned char *)text;
    size_t at = 0;
    while (at < bytes) {
        uint64_t word;
        while (bytes - at >= sizeof word) {
            memcpy(&word, p + at, sizeof word);
            if (word & UINT64_C(0x8080808080808080)) break;
            at += sizeof word;
        }
        if (at == bytes) break;
        int step = utf8_step(p + at, bytes - at);
        if (step <= 0) break;
        at += (size_t)step;
    }
    return at;
}

/* Empties `held` of everything that is decided. */
static void settle(struct utf8_stream *s, struct buf *out)
{
    while (s->held_count) {
        int step = utf8_step(s->held, s->held_count);
        if (step == 0) return;
        unsigned gone = (unsigned)(step > 0 ? step : -step);
        if (step > 0) buf_add(out, s->held, gone);
        else buf_text(out, REPLACEMENT);
        s->held_count -= gone;
        memmove(s->held, s->held + gone, s->held_count);
    }
}

void utf8_stream_add(struct utf8_stream *s, const char *bytes, size_t count, struct buf *out)
{
    CHECK(s->held_count < sizeof s->held);
    size_t at = 0;
    while (at < count) {
        if (!s->held_count) {
            size_t run = utf8_valid_run(bytes + at, count - at);
            buf_add(out, bytes + at, run);
            at += run;
            if (at == count) return;
        }
        s->held[s->held_count++] = (unsigned char)bytes[at++];
        settle(s, out);
    }
}

void utf8_stream_end(struct utf8_stream *s, struct buf *out)
{
    if (s->held_count) buf_text(out, REPLACEMENT);
    s->held_count = 0;
}
