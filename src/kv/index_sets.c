/* kv/index_sets.c - see index_sets.h.  Bitmaps are found by the xor of their members' hashes. */
#include "kv/index_sets.h"

#include <stdlib.h>
#include <string.h>

#include "common/check.h"
#include "common/mem.h"
#include "common/splitmix.h"

enum { NONE = UINT32_MAX };

void sets_open(struct sets *s, uint32_t max)
{
    uint32_t buckets = 16;
    while (buckets < max) buckets *= 2;
    *s = (struct sets){ .max = max, .free = NONE, .bucket_mask = buckets - 1 };
    s->maps = mem_array(max, sizeof *s->maps);
    s->buckets = mem_array(buckets, sizeof *s->buckets);
    memset(s->buckets, 0xff, buckets * sizeof *s->buckets);
    for (uint32_t i = max; i-- > 0;) {
        s->maps[i].next = s->free;
        s->free = i;
    }
}

void sets_close(struct sets *s)
{
    free(s->maps);
    free(s->buckets);
}

uint64_t sets_bytes(const struct sets *s)
{
    return s->max * sizeof *s->maps + (s->bucket_mask + UINT64_C(1)) * sizeof *s->buckets;
}

/* -- bitmaps ---------------------------------------------------------------------------------- */

static uint64_t rank_hash(uint32_t rank)
{
    uint64_t state = rank * UINT64_C(0x9e3779b97f4a7c15); /* behind `rank` draws from 0 */
    return splitmix_next(&state);
}

static bool is_map(uint64_t word)
{
    return (word & 0xffff) == SET_MARK;
}

static uint32_t map_number(uint64_t word)
{
    return (uint32_t)(word >> 32);
}

static uint64_t word_of_map(uint32_t number)
{
    return (uint64_t)number << 32 | SET_MARK;
}

static void bit_flip(uint64_t *bits, uint32_t rank)
{
    bits[rank / 64] ^= UINT64_C(1) << (rank % 64);
}

static uint32_t *bucket(struct sets *s, uint64_t hash)
{
    return &s->buckets[hash & s->bucket_mask];
}

static void link_map(struct sets *s, uint32_t i)
{
    uint32_t *head = bucket(s, s->maps[i].hash);
    s->maps[i].next = *head;
    *head = i;
}

static void unlink_map(struct sets *s, uint32_t i)
{
    uint32_t *at = bucket(s, s->maps[i].hash);
    while (*at != i) at = &s->maps[*at].next;
    *at = s->maps[i].next;
}

static void release_map(struct sets *s, uint32_t i)
{
    struct bitmap *m = &s->maps[i];
    CHECK(m->refs > 0);
    if (--m->refs > 0) return;
    unlink_map(s, i);
    m->next = s->free;
    s->free = i;
    s->used--;
}

/* One more reference to the bitmap with these members; NONE: no room. */
static uint32_t hold_map(struct sets *s, const uint64_t *bits, uint64_t hash)
{
    uint32_t i = *bucket(s, hash);
    while (i != NONE && (s->maps[i].hash != hash
                         || memcmp(s->maps[i].bits, bits, sizeof s->maps[i].bits) != 0))
        i = s->maps[i].next;
    if (i == NONE) {
        if (s->free == NONE) return NONE;
        i = s->free;
        struct bitmap *m = &s->maps[i];
        s->free = m->next;
        s->used++;
        memcpy(m->bits, bits, sizeof m->bits);
        m->hash = hash;
        link_map(s, i);
    }
    s->maps[i].refs++;
    return i;
}

/* -- words ------------------------------------------------------------------------------------ */

static bool counts(const struct sets *s, uint16_t holder)
{
    return holder && s->live[holder & RANK_MASK] == holder;
}

/* The live holders of an inline word, ascending; returns how many. */
static uint32_t unpack(const struct sets *s, uint64_t word, uint16_t *out)
{
    uint32_t count = 0;
    for (; word; word >>= 16)
        if (counts(s, (uint16_t)word)) out[count++] = (uint16_t)word;
    return count;
}

static uint64_t pack(const uint16_t *holders, uint32_t count)
{
    uint64_t word = 0;
    while (count--) word = word << 16 | holders[count];
    return word;
}

static void insert_sorted(uint16_t *holders, uint32_t *count, uint16_t holder)
{
    uint32_t at = (*count)++;
    for (; at > 0 && holders[at - 1] > holder; at--) holders[at] = holders[at - 1];
    holders[at] = holder;
}

bool set_has(const struct sets *s, uint64_t word, uint32_t rank)
{
    if (is_map(word)) return s->maps[map_number(word)].bits[rank / 64] >> (rank % 64) & 1;
    for (; word; word >>= 16)
        if ((word & RANK_MASK) == rank && counts(s, (uint16_t)word)) return true;
    return false;
}

bool set_is_empty(const struct sets *s, uint64_t word)
{
    if (!is_map(word)) {
        uint16_t holders[SET_INLINE_MAX];
        return unpack(s, word, holders) == 0;
    }
    const struct bitmap *m = &s->maps[map_number(word)];
    for (int i = 0; i < SET_WORDS; i++)
        if (m->bits[i]) return false;
    return true;
}

void set_members(const struct sets *s, uint64_t word, uint64_t bits[SET_WORDS])
{
    if (is_map(word)) {
        memcpy(bits, s->maps[map_number(word)].bits, SET_WORDS * sizeof *bits);
        return;
    }
    memset(bits, 0, SET_WORDS * sizeof *bits);
    for (; word; word >>= 16)
        if (counts(s, (uint16_t)word)) bit_flip(bits, word & RANK_MASK);
}

void set_scrub(const struct sets *s, uint64_t *word)
{
    if (is_map(*word)) return;
    uint16_t holders[SET_INLINE_MAX];
    *word = pack(holders, unpack(s, *word, holders));
}

void set_drop(struct sets *s, uint64_t word)
{
    if (is_map(word)) release_map(s, map_number(word));
}

bool set_add(struct sets *s, uint64_t *word, uint32_t rank)
{
    uint64_t bits[SET_WORDS], hash = 0;
    if (!is_map(*word)) {
        uint16_t holders[SET_INLINE_MAX + 1];
        uint32_t count = unpack(s, *word, holders);
        insert_sorted(holders, &count, s->live[rank]);
        if (count <= SET_INLINE_MAX) {
            *word = pack(holders, count);
            return true;
        }
        set_members(s, *word, bits);
        for (uint32_t i = 0; i < count; i++) hash ^= rank_hash(holders[i] & RANK_MASK);
    } else {
        memcpy(bits, s->maps[map_number(*word)].bits, sizeof bits);
        hash = s->maps[map_number(*word)].hash ^ rank_hash(rank);
    }
    bit_flip(bits, rank);
    uint32_t map = hold_map(s, bits, hash);
    if (map == NONE) return false;
    set_drop(s, *word);
    *word = word_of_map(map);
    return true;
}

/* The inline word of a bitmap's members if they are few enough. */
static bool shrink(const struct sets *s, const uint64_t *bits, uint64_t *out)
{
    uint16_t holders[SET_INLINE_MAX];
    uint32_t count = 0;
    for (uint32_t i = 0; i < SET_WORDS; i++) {
        for (uint64_t left = bits[i]; left; left &= left - 1) {
            if (count == SET_INLINE_MAX) return false;
            uint32_t rank = i * 64 + (uint32_t)__builtin_ctzll(left);
            insert_sorted(holders, &count, s->live[rank]);
        }
    }
    *out = pack(holders, count);
    return true;
}

bool set_remove(struct sets *s, uint64_t *word, uint32_t rank)
{
    uint64_t bits[SET_WORDS], few;
    if (!is_map(*word)) {
        uint16_t holders[SET_INLINE_MAX];
        uint32_t kept = 0, count = unpack(s, *word, holders);
        for (uint32_t i = 0; i < count; i++)
            if ((holders[i] & RANK_MASK) != rank) holders[kept++] = holders[i];
        *word = pack(holders, kept);
        return true;
    }
    const struct bitmap *m = &s->maps[map_number(*word)];
    memcpy(bits, m->bits, sizeof bits);
    bit_flip(bits, rank);
    if (!shrink(s, bits, &few)) {
        uint32_t map = hold_map(s, bits, m->hash ^ rank_hash(rank));
        if (map == NONE) return false;
        few = word_of_map(map);
    }
    set_drop(s, *word);
    *word = few;
    return true;
}

void sets_forget(struct sets *s, uint32_t rank)
{
    s->live[rank] = 0;
    for (uint32_t i = 0; i < s->max; i++) {
        struct bitmap *m = &s->maps[i];
        if (!m->refs || !(m->bits[rank / 64] >> (rank % 64) & 1)) continue;
        unlink_map(s, i);
        bit_flip(m->bits, rank);
        m->hash ^= rank_hash(rank);
        link_map(s, i);               /* may equal another one now: both stay, to be found or not */
    }
}
