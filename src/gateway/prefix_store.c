/* gateway/prefix_store.c - see prefix_store.h: a table of chunks, and a ring from old to new. */
#include "gateway/prefix_store.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "common/hash.h"

enum {
    CHUNK_LEAST = 48,                 /* shorter text is tokenized faster than it is found    */
    CHUNK_BYTES = 512,                /* a chunk has at least so many where it may be cut ... */
    CHUNK_CHANCES = 16,               /* and ends at one of so many places, by what is there  */
    CHUNK_BYTES_MOST = 4096,          /* behind these at any                                  */
    SLOTS = 1 << 16,
};

struct chunk {
    struct chunk *next;               /* in its slot */
    struct chunk *older, *newer;
    uint64_t hash;
    uint32_t bytes, id_count;
    int32_t ids[];                    /* (id_count), then the text (bytes) */
};

struct prefix_store {
    const struct tokenizer *tokenizer;
    struct hash_secret secret;
    size_t bytes_max;
    pthread_mutex_t lock;             /* of all below */
    struct chunk *slots[SLOTS];
    struct chunk *oldest, *newest;
    struct prefix_store_stats stats;
};

struct prefix_store *prefix_store_open(const struct tokenizer *t, size_t bytes_max)
{
    struct prefix_store *s = mem_alloc(sizeof *s);
    s->tokenizer = t;
    s->bytes_max = bytes_max;
    secret_random(&s->secret, sizeof s->secret);
    pthread_mutex_init(&s->lock, NULL);
    return s;
}

void prefix_store_close(struct prefix_store *s)
{
    if (!s) return;
    for (struct chunk *c = s->oldest, *newer; c; c = newer) {
        newer = c->newer;
        free(c);
    }
    pthread_mutex_destroy(&s->lock);
    free(s);
}

/* -- the table, under the lock ---------------------------------------------------------------- */

static size_t chunk_size(uint32_t bytes, uint32_t id_count)
{
    return sizeof(struct chunk) + id_count * sizeof(int32_t) + bytes;
}

static const char *text_of(const struct chunk *c)
{
    return (const char *)(c->ids + c->id_count);
}

static void ring_remove(struct prefix_store *s, struct chunk *c)
{
    *(c->older ? &c->older->newer : &s->oldest) = c->newer;
    *(c->newer ? &c->newer->older : &s->newest) = c->older;
}

static void ring_add(struct prefix_store *s, struct chunk *c)
{
    c->older = s->newest;
    c->newer = NULL;
    *(s->newest ? &s->newest->newer : &s->oldest) = c;
    s->newest = c;
}

static struct chunk *find(struct prefix_store *s, uint64_t hash, const char *text, size_t bytes)
{
    struct chunk *c = s->slots[hash % SLOTS];
    while (c && !(c->hash == hash && c->bytes == bytes && memcmp(text_of(c), text, bytes) == 0))
        c = c->next;
    return c;
}

static void drop_oldest(struct prefix_store *s)
{
    struct chunk *c = s->oldest, **at = &s->slots[c->hash % SLOTS];
    while (*at != c) at = &(*at)->next;
    *at = c->next;
    ring_remove(s, c);
    s->stats.bytes -= chunk_size(c->bytes, c->id_count);
    s->stats.chunks--;
    free(c);
}

static void keep(struct prefix_store *s, uint64_t hash, const char *text, size_t bytes,
                 const int32_t *ids, size_t id_count)
{
    size_t size = chunk_size((uint32_t)bytes, (uint32_t)id_count);
    if (size > s->bytes_max / 4 || find(s, hash, text, bytes)) return;
    while (s->stats.bytes + size > s->bytes_max) drop_oldest(s);
    struct chunk *c = mem_alloc(size);
    c->hash = hash;
    c->bytes = (uint32_t)bytes;
    c->id_count = (uint32_t)id_count;
    if (id_count) memcpy(c->ids, ids, id_count * sizeof *ids);
    memcpy(c->ids + id_count, text, bytes);
    c->next = s->slots[hash % SLOTS];
    s->slots[hash % SLOTS] = c;
    ring_add(s, c);
    s->stats.bytes += size;
    s->stats.chunks++;
}

/* Appends a known chunk's ids; false: it is not known. */
static bool take(struct prefix_store *s, uint64_t hash, const char *text, size_t bytes,
                 struct token_list *out)
{
    pthread_mutex_lock(&s->lock);
    struct chunk *c = find(s, hash, text, bytes);
    if (c) {
        ring_remove(s, c);
        ring_add(s, c);
        s->stats.found += c->id_count;
        token_list_append(out, c->ids, c->id_count);
    }
    pthread_mutex_unlock(&s->lock);
    return c;
}

/* -- text ------------------------------------------------------------------------------------- */

/* Does a chunk end at this place?  The bytes just before it say so: a text that comes back behind
 * another beginning soon has the chunks it had. */
static bool ends_here(const char *place)
{
    uint64_t before;
    memcpy(&before, place - sizeof before, sizeof before);
    return before * UINT64_C(0x9e3779b97f4a7c15) >> 32 < (UINT64_C(1) << 32) / CHUNK_CHANCES;
}

/* Where the chunk that begins at text[0] ends. */
static size_t chunk_end(const struct prefix_store *s, const char *text, size_t bytes)
{
    for (size_t at = CHUNK_BYTES; at < bytes; at++) {
        at = tokenizer_cut(s->tokenizer, text, bytes, at);
        if (at == bytes || at >= CHUNK_BYTES_MOST || ends_here(text + at)) return at;
    }
    return bytes;
}

static enum err encode_chunk(struct prefix_store *s, const char *text, size_t bytes,
                             size_t count_max, struct token_list *out)
{
    size_t before = out->count;
    if (bytes < CHUNK_LEAST || bytes > UINT32_MAX)
        return tokenizer_encode(s->tokenizer, text, bytes, false, count_max, out);
    uint64_t hash = hash_sip128(s->secret, text, bytes).lo;
    if (take(s, hash, text, bytes, out)) return out->count - before > count_max ? ERR_LIMIT : OK;
    enum err e = tokenizer_encode(s->tokenizer, text, bytes, false, count_max, out);
    if (e != OK) return e;
    pthread_mutex_lock(&s->lock);
    s->stats.made += out->count - before;
    keep(s, hash, text, bytes, out->ids + before, out->count - before);
    pthread_mutex_unlock(&s->lock);
    return OK;
}

enum err prefix_store_encode(struct prefix_store *s, const char *text, size_t bytes,
                             size_t count_max, struct token_list *out)
{
    size_t before = out->count;
    while (bytes) {
        size_t end = chunk_end(s, text, bytes);
        enum err e = encode_chunk(s, text, end, count_max - (out->count - before), out);
        if (e != OK) {
            out->count = before;
            return e;
        }
        text += end;
        bytes -= end;
    }
    return OK;
}

void prefix_store_stats(struct prefix_store *s, struct prefix_store_stats *out)
{
    pthread_mutex_lock(&s->lock);
    *out = s->stats;
    pthread_mutex_unlock(&s->lock);
}
