/* gateway/slots.c - see slots.h. */
#include "gateway/slots.h"

#include <stdlib.h>
#include <string.h>

#include "common/check.h"

void slots_open(struct slots *s, size_t entry_bytes)
{
    *s = (struct slots){ .bytes = entry_bytes };
    s->free_list = mem_array((size_t)SLOTS_CHUNK * SLOTS_CHUNKS, sizeof *s->free_list);
}

void slots_close(struct slots *s)
{
    for (int i = 0; i < SLOTS_CHUNKS; i++) {
        free(s->chunk[i]);
        free(s->number[i]);
    }
    free(s->free_list);
    *s = (struct slots){ 0 };
}

static bool grow(struct slots *s)
{
    uint32_t chunk = s->made / SLOTS_CHUNK;
    if (chunk >= SLOTS_CHUNKS) return false;
    s->chunk[chunk] = mem_array(SLOTS_CHUNK, s->bytes);
    s->number[chunk] = mem_array(SLOTS_CHUNK, sizeof(uint64_t));
    for (uint32_t i = SLOTS_CHUNK; i-- > 0;) s->free_list[s->free_count++] = s->made + i;
    s->made += SLOTS_CHUNK;
    return true;
}

uint64_t slots_take(struct slots *s, void **entry)
{
    if (!s->free_count && !grow(s)) return 0;
    uint32_t at = s->free_list[--s->free_count];
    uint64_t number = ++s->serial << 16 | at;
    s->number[at / SLOTS_CHUNK][at % SLOTS_CHUNK] = number;
    *entry = s->chunk[at / SLOTS_CHUNK] + at % SLOTS_CHUNK * s->bytes;
    memset(*entry, 0, s->bytes);
    return number;
}

void *slots_find(const struct slots *s, uint64_t number)
{
    uint32_t at = number & 0xffff;
    if (!number || at >= s->made) return NULL;
    if (s->number[at / SLOTS_CHUNK][at % SLOTS_CHUNK] != number) return NULL;
    return s->chunk[at / SLOTS_CHUNK] + at % SLOTS_CHUNK * s->bytes;
}

void slots_give(struct slots *s, uint64_t number)
{
    CHECK(slots_find(s, number));
    uint32_t at = number & 0xffff;
    s->number[at / SLOTS_CHUNK][at % SLOTS_CHUNK] = 0;
    s->free_list[s->free_count++] = at;
}

uint64_t slots_walk(const struct slots *s, uint32_t *at)
{
    while (*at < s->made) {
        uint32_t i = (*at)++;
        uint64_t number = s->number[i / SLOTS_CHUNK][i % SLOTS_CHUNK];
        if (number) return number;
    }
    return 0;
}
