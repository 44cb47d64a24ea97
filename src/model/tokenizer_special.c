/* model/tokenizer_special.c - see tokenizer_special.h. */
#include "model/tokenizer_special.h"

#include <stdlib.h>
#include <string.h>

#include "common/mem.h"

static int by_text(const void *a, const void *b)
{
    const struct special_text *x = a, *y = b;
    uint32_t both = x->bytes < y->bytes ? x->bytes : y->bytes;
    int order = memcmp(x->text, y->text, both);
    if (order) return order;
    if (x->bytes != y->bytes) return x->bytes < y->bytes ? -1 : 1;
    return x->id < y->id ? -1 : 1;
}

static bool wanted(const struct vocab *v, uint32_t id, bool control)
{
    if (v->start[id] == v->start[id + 1]) return false;
    if (v->type[id] == TOKEN_USER_DEFINED) return true;
    return control && (v->type[id] == TOKEN_CONTROL || v->type[id] == TOKEN_UNKNOWN);
}

void special_open(struct special_set *s, const struct vocab *v, bool control)
{
    *s = (struct special_set){ 0 };
    for (uint32_t i = 0; i < v->count; i++) s->count += wanted(v, i, control);
    s->texts = mem_array(s->count, sizeof *s->texts);
    uint32_t filled = 0;
    for (uint32_t i = 0; i < v->count; i++) {
        if (!wanted(v, i, control)) continue;
        size_t bytes;
        const char *text = vocab_text(v, i, &bytes);
        s->texts[filled++] = (struct special_text){
            (const unsigned char *)text, (uint32_t)bytes, (int32_t)i,
        };
    }
    qsort(s->texts, s->count, sizeof *s->texts, by_text);
    for (uint32_t i = 0; i < s->count; i++) s->first[s->texts[i].text[0] + 1]++;
    for (unsigned c = 0; c < 256; c++) s->first[c + 1] += s->first[c];
}

void special_release(struct special_set *s)
{
    free(s->texts);
    *s = (struct special_set){ 0 };
}

/* Of texts[low, high), which agree up to `depth`: the first whose byte there is not below `byte`.
 * Texts that end at `depth` come first and count as below. */
static uint32_t lower(const struct special_set *s, uint32_t low, uint32_t high, uint32_t depth,
                      unsigned byte)
{
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        const struct special_text *t = &s->texts[middle];
        if (t->bytes <= depth || t->text[depth] < byte) low = middle + 1;
        else high = middle;
    }
    return low;
}

/* The longest special text that `text` begins with, or NULL. */
static const struct special_text *longest_at(const struct special_set *s,
                                             const unsigned char *text, size_t bytes)
{
    const struct special_text *best = NULL;
    uint32_t low = s->first[text[0]], high = s->first[text[0] + 1];
    for (uint32_t depth = 1; low < high; depth++) {
        if (s->texts[low].bytes == depth) best = &s->texts[low];
        if (depth == bytes) break;
        low = lower(s, low, high, depth, text[depth]);
        high = lower(s, low, high, depth, text[depth] + 1u);
    }
    return best;
}

int32_t special_find(const struct special_set *s, const char *text, size_t bytes, size_t *from,
                     size_t *to)
{
    if (!s->count) return TOKEN_NONE;
    const unsigned char *p = (const unsigned char *)text;
    for (size_t i = 0; i < bytes; i++) {
        if (s->first[p[i]] == s->first[p[i] + 1]) continue;
        const struct special_text *found = longest_at(s, p + i, bytes - i);
        if (!found) continue;
        *from = i;
        *to = i + found->bytes;
        return found->id;
    }
    return TOKEN_NONE;
}

int32_t special_exact(const struct special_set *s, const char *text, size_t bytes)
{
    if (!bytes) return TOKEN_NONE;
    const struct special_text *found = longest_at(s, (const unsigned char *)text, bytes);
    return found && found->bytes == bytes ? found->id : TOKEN_NONE;
}
