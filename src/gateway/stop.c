/* gateway/stop.c - one Knuth-Morris-Pratt automaton per stop string; see stop.h. */
#include "gateway/stop.h"

#include <stdlib.h>
#include <string.h>

static uint16_t advance(const struct stop_string *s, uint16_t matched, char c)
{
    while (matched && s->text[matched] != c) matched = s->back[matched - 1];
    return s->text[matched] == c ? (uint16_t)(matched + 1) : 0;
}

bool stop_strings_add(struct stop_strings *s, const char *text, size_t bytes)
{
    if (s->count >= STOP_STRINGS_MAX || !bytes || bytes > STOP_STRING_BYTES_MAX) return false;
    struct stop_string *item = &s->item[s->count++];
    item->text = mem_text_n(text, bytes);
    item->bytes = (uint32_t)bytes;
    item->back = mem_array(bytes, sizeof *item->back);
    for (size_t i = 1; i < bytes; i++) item->back[i] = advance(item, item->back[i - 1], text[i]);
    return true;
}

void stop_strings_release(struct stop_strings *s)
{
    for (uint32_t i = 0; i < s->count; i++) {
        free(s->item[i].text);
        free(s->item[i].back);
    }
    *s = (struct stop_strings){ 0 };
}

void stop_scan_release(struct stop_scan *scan)
{
    buf_release(&scan->held);
}

/* The longest string that ends with the byte just added, or -1. */
static int step(struct stop_scan *scan, const struct stop_strings *s, char c)
{
    int found = -1;
    for (uint32_t i = 0; i < s->count; i++) {
        scan->matched[i] = advance(&s->item[i], scan->matched[i], c);
        bool whole = scan->matched[i] == s->item[i].bytes;
        if (whole && (found < 0 || s->item[i].bytes > s->item[found].bytes)) found = (int)i;
    }
    return found;
}

static void release_front(struct stop_scan *scan, size_t bytes, struct buf *out)
{
    buf_add(out, scan->held.data, bytes);
    scan->held.size -= bytes;
    memmove(scan->held.data, scan->held.data + bytes, scan->held.size);
}

int stop_scan_add(struct stop_scan *scan, const struct stop_strings *s, const char *text,
                  size_t bytes, struct buf *out)
{
    if (!bytes) return -1;
    if (!s->count) {
        buf_add(out, text, bytes);
        return -1;
    }
    size_t from = scan->held.size;
    buf_add(&scan->held, text, bytes);
    for (size_t i = 0; i < bytes; i++) {
        int found = step(scan, s, text[i]);
        if (found < 0) continue;
        size_t end = from + i + 1;
        release_front(scan, s->include ? end : end - s->item[found].bytes, out);
        buf_clear(&scan->held);
        return found;
    }
    size_t keep = 0;
    for (uint32_t i = 0; i < s->count; i++) {
        if (scan->matched[i] > keep) keep = scan->matched[i];
    }
    release_front(scan, scan->held.size - keep, out);
    return -1;
}

void stop_scan_end(struct stop_scan *scan, struct buf *out)
{
    if (scan->held.size) release_front(scan, scan->held.size, out);
    memset(scan->matched, 0, sizeof scan->matched);
}
