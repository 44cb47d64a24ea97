/* model/template_arena.c - memory, budget and failure of one parse or rendering. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/template_value.h"

enum { ALIGN = 16, CHUNK_BYTES = 64 << 10 };

struct tp_chunk {
    struct tp_chunk *next;
    size_t used, room;
    _Alignas(ALIGN) char data[];
};

void tp_arena_open(struct tp_arena *a, size_t limit, uint64_t steps, struct why *why)
{
    memset(a, 0, sizeof *a);
    a->limit = limit;
    a->steps_left = steps;
    a->why = why;
}

void tp_arena_close(struct tp_arena *a)
{
    while (a->chunks) {
        struct tp_chunk *next = a->chunks->next;
        free(a->chunks);
        a->chunks = next;
    }
    a->bytes = 0;
}

/* A message that was cut must not end inside a character: it goes out as JSON. */
static void drop_cut_char(char *text)
{
    size_t end = strlen(text), start = end;
    while (start > 0 && ((unsigned char)text[start - 1] & 0xc0) == 0x80) start--;
    if (start > 0 && (unsigned char)text[start - 1] >= 0xc0) start--;
    if (!tp_utf8_valid(text + start, end - start)) text[start] = '\0';
}

_Noreturn void tp_fail(struct tp_arena *a, enum err e, const char *fmt, ...)
{
    char words[sizeof a->why->text];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(words, sizeof words, fmt, ap);
    va_end(ap);
    drop_cut_char(words);
    if (a->column) why_set(a->why, e, "line %u, column %u: %s", a->line, a->column, words);
    else if (a->line) why_set(a->why, e, "line %u: %s", a->line, words);
    else why_set(a->why, e, "%s", words);
    if (a->why) drop_cut_char(a->why->text);
    a->err = e;
    longjmp(a->jump, 1);
}

_Noreturn void tp_fail_words(struct tp_arena *a, enum err e, const char *words, size_t bytes)
{
    size_t most = sizeof a->why->text - 1;
    why_set(a->why, e, "%.*s", (int)(bytes < most ? bytes : most), words);
    if (a->why) drop_cut_char(a->why->text);
    a->err = e;
    longjmp(a->jump, 1);
}

static struct tp_chunk *chunk_new(struct tp_arena *a, size_t bytes)
{
    size_t room = bytes > CHUNK_BYTES ? bytes : CHUNK_BYTES;
    if (room > a->limit - a->bytes) {
        tp_fail(a, ERR_LIMIT, "the template needs more than %zu bytes of memory", a->limit);
    }
    struct tp_chunk *c = calloc(1, sizeof *c + room);
    if (!c) tp_fail(a, ERR_MEMORY, "out of memory: %zu bytes", room);
    a->bytes += room;
    c->room = room;
    c->next = a->chunks;
    a->chunks = c;
    return c;
}

void *tp_alloc(struct tp_arena *a, size_t bytes)
{
    if (bytes > a->limit) {
        tp_fail(a, ERR_LIMIT, "the template needs more than %zu bytes of memory", a->limit);
    }
    bytes = (bytes + ALIGN - 1) & ~(size_t)(ALIGN - 1);
    struct tp_chunk *c = a->chunks;
    if (!c || c->room - c->used < bytes) c = chunk_new(a, bytes);
    void *at = c->data + c->used;
    c->used += bytes;
    return at;
}

void *tp_alloc_array(struct tp_arena *a, size_t count, size_t bytes)
{
    if (bytes && count > a->limit / bytes) bytes = count = a->limit + 1;
    return tp_alloc(a, count > a->limit ? count : count * bytes);
}

void *tp_grow(struct tp_arena *a, void *old, size_t old_bytes, size_t new_bytes)
{
    CHECK(new_bytes >= old_bytes);
    size_t held = (old_bytes + ALIGN - 1) & ~(size_t)(ALIGN - 1);
    struct tp_chunk *c = a->chunks;
    if (old && c && (char *)old + held == c->data + c->used && new_bytes <= a->limit) {
        size_t want = (new_bytes + ALIGN - 1) & ~(size_t)(ALIGN - 1);
        if (c->room - c->used >= want - held) {
            c->used += want - held;
            return old;
        }
    }
    void *at = tp_alloc(a, new_bytes);
    if (old_bytes) memcpy(at, old, old_bytes);
    return at;
}

void tp_steps(struct tp_arena *a, uint64_t steps)
{
    if (steps > a->steps_left) {
        tp_fail(a, ERR_LIMIT, "the template takes more than %d steps", TEMPLATE_STEPS_MAX);
    }
    a->steps_left -= steps;
}

void tp_pay_bytes(struct tp_arena *a, size_t bytes)
{
    tp_steps(a, bytes / TP_BYTES_PER_STEP);
}

void tp_pay_items(struct tp_arena *a, size_t items)
{
    tp_steps(a, items / TP_ITEMS_PER_STEP);
}
