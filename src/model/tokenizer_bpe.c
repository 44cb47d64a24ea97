/* model/tokenizer_bpe.c - see tokenizer_bpe.h.
 *
 * A piece is a list of symbols, linked by index.  Each symbol knows the rank of the pair that it
 * begins; the heap holds (rank, position) and may hold entries that are out of date, which are
 * known by their rank no longer being the symbol's.
 */
#include "model/tokenizer_bpe.h"

#include <stdlib.h>
#include <string.h>

#include "common/limits.h"
#include "common/mem.h"

#define KEY_MERGES "tokenizer.ggml.merges"

enum { MERGES_MAX = 2 * VOCAB_MAX };
#define NONE UINT32_MAX          /* no symbol; no pair; in bpe_pair.rank: a free slot */

struct bpe_pair {
    uint32_t left, right, rank, into;
};

struct bpe_symbol {
    uint32_t id, prev, next;
    uint32_t rank, into;         /* of the pair (this, next); rank NONE: they do not merge */
};

/* The slot of this pair, or the free one where it belongs. */
static struct bpe_pair *pair_slot(const struct bpe *b, uint32_t left, uint32_t right)
{
    uint32_t mask = (UINT32_C(1) << (64 - b->pair_shift)) - 1;
    uint32_t i = (uint32_t)((b->factor[0] * left + b->factor[1] * right) >> b->pair_shift);
    for (;; i = (i + 1) & mask) {
        struct bpe_pair *pair = &b->pairs[i];
        if (pair->rank == NONE || (pair->left == left && pair->right == right)) return pair;
    }
}

static void pairs_open(struct bpe *b, uint64_t merges)
{
    uint32_t bits = 4;
    while ((UINT64_C(1) << bits) < 2 * merges) bits++;
    size_t slots = (size_t)1 << bits;
    b->pair_shift = 64 - bits;
    b->pairs = mem_array(slots, sizeof *b->pairs);
    for (size_t i = 0; i < slots; i++) b->pairs[i].rank = NONE;
    secret_random(b->factor, sizeof b->factor);
    b->factor[0] |= 1;
    b->factor[1] |= 1;
}

/* "left right": the space never is part of either, since the printable form has none. */
static enum err merge_add(struct bpe *b, const struct vocab *v, uint32_t rank,
                          struct gguf_text merge, struct why *why)
{
    const char *space = merge.bytes ? memchr(merge.data, ' ', merge.bytes) : NULL;
    if (!space || space == merge.data || space == merge.data + merge.bytes - 1) {
        return why_set(why, ERR_FORMAT, "merge %u of %s is not \"left right\"", rank, KEY_MERGES);
    }
    if (merge.bytes > 2 * TOKEN_BYTES_MAX) return OK;   /* its result is no token */
    struct gguf_text left = { merge.data, (uint64_t)(space - merge.data) };
    struct gguf_text right = { space + 1, merge.bytes - left.bytes - 1 };
    char text[2 * TOKEN_BYTES_MAX];
    size_t left_bytes, right_bytes;
    if (!vocab_bytes_of(left, text, &left_bytes)) return OK;
    if (!vocab_bytes_of(right, text + left_bytes, &right_bytes)) return OK;
    int32_t left_id = vocab_find(v, text, left_bytes);
    int32_t right_id = vocab_find(v, text + left_bytes, right_bytes);
    int32_t into = vocab_find(v, text, left_bytes + right_bytes);
    if (left_id == TOKEN_NONE || right_id == TOKEN_NONE || into == TOKEN_NONE) return OK;
    struct bpe_pair *pair = pair_slot(b, (uint32_t)left_id, (uint32_t)right_id);
    if (pair->rank == NONE) {
        *pair = (struct bpe_pair){ (uint32_t)left_id, (uint32_t)right_id, rank, (uint32_t)into };
    }
    return OK;
}

static enum err merges_read(struct bpe *b, const struct gguf *g, const struct vocab *v,
                            uint64_t count, struct why *why)
{
    struct gguf_text *merges = mem_array(count, sizeof *merges);
    enum err e = OK;
    if (!gguf_array_texts(g, KEY_MERGES, merges)) {
        e = why_set(why, ERR_FORMAT, "%s is not an array of texts", KEY_MERGES);
    }
    for (uint32_t i = 0; i < count && e == OK; i++) e = merge_add(b, v, i, merges[i], why);
    free(merges);
    return e;
}

enum err bpe_open(struct bpe *b, const struct gguf *g, const struct vocab *v, struct why *why)
{
    *b = (struct bpe){ 0 };
    for (unsigned i = 0; i < 256; i++) {
        unsigned char byte = (unsigned char)i;
        b->byte_id[i] = vocab_find(v, &byte, 1);
        b->byte_missing += b->byte_id[i] == TOKEN_NONE;
    }
    uint64_t count = gguf_array_count(g, KEY_MERGES);
    if (count > MERGES_MAX) {
        return why_set(why, ERR_LIMIT, "%s has %llu entries; at most %d are allowed", KEY_MERGES,
                       (unsigned long long)count, MERGES_MAX);
    }
    pairs_open(b, count);
    enum err e = count ? merges_read(b, g, v, count, why) : OK;
    if (e != OK) bpe_release(b);
    return e;
}

void bpe_release(struct bpe *b)
{
    free(b->pairs);
    *b = (struct bpe){ 0 };
}

void bpe_work_release(struct bpe_work *w)
{
    free(w->symbols);
    free(w->heap);
    *w = (struct bpe_work){ 0 };
}

static void heap_push(struct bpe_work *w, uint64_t entry)
{
    if (w->heap_count == w->heap_room) {
        w->heap_room = w->heap_room ? 2 * w->heap_room : 64;
        w->heap = mem_resize(w->heap, w->heap_room, sizeof *w->heap);
    }
    size_t at = w->heap_count++;
    while (at && w->heap[(at - 1) / 2] > entry) {
        w->heap[at] = w->heap[(at - 1) / 2];
        at = (at - 1) / 2;
    }
    w->heap[at] = entry;
}

static uint64_t heap_pop(struct bpe_work *w)
{
    uint64_t top = w->heap[0], last = w->heap[--w->heap_count];
    size_t at = 0;
    for (;;) {
        size_t child = 2 * at + 1;
        if (child >= w->heap_count) break;
        if (child + 1 < w->heap_count && w->heap[child + 1] < w->heap[child]) child++;
        if (w->heap[child] >= last) break;
        w->heap[at] = w->heap[child];
        at = child;
    }
    w->heap[at] = last;
    return top;
}

/* The pair that begins at `at` is new: looks it up, and queues it if it merges. */
static void pair_refresh(const struct bpe *b, struct bpe_work *w, uint32_t at)
{
    struct bpe_symbol *s = &w->symbols[at];
    s->rank = NONE;
    if (s->next == NONE) return;
    const struct bpe_pair *pair = pair_slot(b, s->id, w->symbols[s->next].id);
    if (pair->rank == NONE) return;
    s->rank = pair->rank;
    s->into = pair->into;
    heap_push(w, (uint64_t)pair->rank << 32 | at);
}

static uint32_t symbols_fill(const struct bpe *b, struct bpe_work *w, const char *piece,
                             size_t bytes)
{
    CHECK(bytes < INT32_MAX);
    if (bytes > w->symbol_room) {
        w->symbol_room = bytes < 64 ? 64 : bytes;
        w->symbols = mem_resize(w->symbols, w->symbol_room, sizeof *w->symbols);
    }
    uint32_t count = 0;
    for (size_t i = 0; i < bytes; i++) {
        int32_t id = b->byte_id[(unsigned char)piece[i]];
        if (id == TOKEN_NONE) continue;
        w->symbols[count] = (struct bpe_symbol){
            .id = (uint32_t)id, .prev = count - 1, .next = count + 1, .rank = NONE,
        };
        count++;
    }
    if (count) w->symbols[count - 1].next = NONE;
    return count;
}

static void merge_at(const struct bpe *b, struct bpe_work *w, uint32_t at)
{
    struct bpe_symbol *s = &w->symbols[at], *gone = &w->symbols[s->next];
    s->id = s->into;
    s->next = gone->next;
    gone->rank = NONE;
    if (s->next != NONE) w->symbols[s->next].prev = at;
    pair_refresh(b, w, at);
    if (s->prev != NONE) pair_refresh(b, w, s->prev);
}

void bpe_encode(const struct bpe *b, struct bpe_work *w, const char *piece, size_t bytes,
                struct token_list *out)
{
    uint32_t count = symbols_fill(b, w, piece, bytes);
    w->heap_count = 0;
    for (uint32_t i = 0; i < count; i++) pair_refresh(b, w, i);
    while (w->heap_count) {
        uint64_t top = heap_pop(w);
        uint32_t at = (uint32_t)top;
        if (w->symbols[at].rank == (uint32_t)(top >> 32)) merge_at(b, w, at);
    }
    for (uint32_t i = count ? 0 : NONE; i != NONE; i = w->symbols[i].next) {
        token_list_add(out, (int32_t)w->symbols[i].id);
    }
}
