/* gateway/guard.c - see guard.h. */
#include "gateway/guard.h"

#include <stdlib.h>
#include <string.h>

struct special {
    const char *text;                 /* the tokenizer's */
    size_t bytes;
    int32_t id;
};

struct guard {
    const struct tokenizer *tokenizer;
    struct prefix_store *store;
    struct special *specials;         /* by first byte, then longest first */
    size_t count;
    size_t first[257];                /* specials with first byte b: [first[b], first[b + 1]) */
    size_t bytes_max;
};

static int special_order(const void *a, const void *b)
{
    const struct special *x = a, *y = b;
    if (x->text[0] != y->text[0]) return (unsigned char)x->text[0] - (unsigned char)y->text[0];
    return x->bytes < y->bytes ? 1 : x->bytes > y->bytes ? -1 : 0;
}

struct guard *guard_open(const struct tokenizer *t, struct prefix_store *store)
{
    struct guard *g = mem_alloc(sizeof *g);
    g->tokenizer = t;
    g->store = store;
    size_t room = 0;
    for (int32_t id = 0; id < (int32_t)tokenizer_vocab(t); id++) {
        size_t bytes = 0;
        if (!tokenizer_is_special(t, id)) continue;
        const char *text = tokenizer_piece(t, id, true, &bytes);
        if (!text || !bytes) continue;
        if (g->count == room) {
            room = room ? room * 2 : 64;
            g->specials = mem_resize(g->specials, room, sizeof *g->specials);
        }
        g->specials[g->count++] = (struct special){ text, bytes, id };
        if (bytes > g->bytes_max) g->bytes_max = bytes;
    }
    if (g->count) qsort(g->specials, g->count, sizeof *g->specials, special_order);
    for (size_t b = 0, i = 0; b < 256; b++) {
        while (i < g->count && (unsigned char)g->specials[i].text[0] == b) i++;
        g->first[b + 1] = i;
    }
    return g;
}

void guard_close(struct guard *g)
{
    if (!g) return;
    free(g->specials);
    free(g);
}

void guard_mark(unsigned which, char mark[GUARD_MARK_BYTES + 1])
{
    CHECK(which < GUARD_MARKS);
    unsigned code = 0xfdd0 + which;   /* noncharacters: never in interchanged text */
    mark[0] = (char)(0xe0 | code >> 12);
    mark[1] = (char)(0x80 | (code >> 6 & 0x3f));
    mark[2] = (char)(0x80 | (code & 0x3f));
    mark[3] = '\0';
}

static size_t char_bytes(const char *text, size_t left)
{
    size_t n = 1;
    while (n < left && ((unsigned char)text[n] & 0xc0) == 0x80) n++;
    return n;
}

static bool is_name(const char *text, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++) {
        char c = text[i];
        bool letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
        if (!letter && !(c >= '0' && c <= '9') && !strchr("_-.", c)) return false;
        if (!c) return false;
    }
    return true;
}

/* Does a special token begin at text[0], whole or cut off by the end of the string? */
static bool begins(const struct guard *g, const char *text, size_t left, bool cut_counts)
{
    unsigned char c = (unsigned char)text[0];
    for (size_t i = g->first[c]; i < g->first[c + 1]; i++) {
        const struct special *s = &g->specials[i];
        if (s->bytes <= left && memcmp(s->text, text, s->bytes) == 0) return true;
        if (cut_counts && s->bytes > left && memcmp(s->text, text, left) == 0) return true;
    }
    return false;
}

/* Does the string begin inside a special token that began before it? */
static bool goes_on(const struct guard *g, const char *text, size_t bytes)
{
    for (size_t i = 0; i < g->count; i++) {
        const struct special *s = &g->specials[i];
        for (size_t from = 1; from < s->bytes; from++) {
            size_t rest = s->bytes - from < bytes ? s->bytes - from : bytes;
            if (memcmp(s->text + from, text, rest) == 0) return true;
        }
    }
    return false;
}

void guard_text(const struct guard *g, const char *mark, const char *text, size_t bytes,
                struct buf *out)
{
    if (!bytes || !g->count) {
        buf_add(out, text, bytes);
        return;
    }
    bool name = is_name(text, bytes);
    if (!name && goes_on(g, text, bytes)) buf_add(out, mark, GUARD_MARK_BYTES);
    size_t from = 0;
    for (size_t i = 0; i < bytes; i++) {
        unsigned char c = (unsigned char)text[i];
        if (g->first[c] == g->first[c + 1]) continue;
        if (!begins(g, text + i, bytes - i, !name)) continue;
        size_t end = i + char_bytes(text + i, bytes - i);
        buf_add(out, text + from, end - from);
        buf_add(out, mark, GUARD_MARK_BYTES);
        from = end;
        i = end - 1;
    }
    buf_add(out, text + from, bytes - from);
}

/* Where the marks were, as offsets into the text without them. */
struct marks {
    size_t *at, count, room;
};

static void marks_take_out(const char *mark, const char *text, size_t bytes, struct buf *clean,
                           struct marks *marks)
{
    const char *from = text, *end = text + bytes;
    for (;;) {
        const char *hit = memmem(from, (size_t)(end - from), mark, GUARD_MARK_BYTES);
        buf_add(clean, from, (size_t)((hit ? hit : end) - from));
        if (!hit) return;
        if (marks->count == marks->room) {
            marks->room = marks->room ? marks->room * 2 : 64;
            marks->at = mem_resize(marks->at, marks->room, sizeof *marks->at);
        }
        marks->at[marks->count++] = clean->size;
        from = hit + GUARD_MARK_BYTES;
    }
}

/* The longest special token at text[i] that ends within the text and before or at `limit`. */
static const struct special *special_at(const struct guard *g, const char *text, size_t i,
                                        size_t limit)
{
    unsigned char c = (unsigned char)text[i];
    for (size_t k = g->first[c]; k < g->first[c + 1]; k++) {
        const struct special *s = &g->specials[k];
        if (s->bytes <= limit - i && memcmp(s->text, text + i, s->bytes) == 0) return s;
    }
    return NULL;
}

static enum err encode_plain(const struct guard *g, const char *text, size_t bytes,
                             size_t count_max, struct token_list *out)
{
    if (g->store) return prefix_store_encode(g->store, text, bytes, count_max, out);
    return tokenizer_encode(g->tokenizer, text, bytes, false, count_max, out);
}

static enum err encode_clean(const struct guard *g, const struct buf *clean,
                             const struct marks *marks, size_t count_max, struct token_list *out)
{
    size_t plain = 0, next = 0;       /* next: the first mark after i */
    enum err e;
    for (size_t i = 0; i < clean->size;) {
        while (next < marks->count && marks->at[next] <= i) next++;
        size_t limit = next < marks->count ? marks->at[next] : clean->size;
        const struct special *s = special_at(g, clean->data, i, limit);
        if (!s) {
            i++;
            continue;
        }
        e = encode_plain(g, clean->data + plain, i - plain, count_max - out->count, out);
        if (e != OK) return e;
        if (out->count >= count_max) return ERR_LIMIT;
        token_list_add(out, s->id);
        i += s->bytes;
        plain = i;
    }
    return encode_plain(g, clean->data + plain, clean->size - plain, count_max - out->count, out);
}

enum err guard_encode(const struct guard *g, const char *mark, const char *text, size_t bytes,
                      size_t count_max, struct token_list *out)
{
    struct buf clean = { 0 };
    struct marks marks = { 0 };
    marks_take_out(mark, text, bytes, &clean, &marks);
    CHECK(out->count <= count_max);
    enum err e = clean.size ? encode_clean(g, &clean, &marks, count_max, out) : OK;
    buf_release(&clean);
    free(marks.at);
    return e;
}
