/* cuda/memory.c - the arena: one allocation, carved in order; see cuda.h. */
#include "cuda/cuda.h"

/* The emulator's (tests/cusim): it then sees one piece run into the next. */
__attribute__((weak)) void cusim_carve(const void *piece, size_t bytes);

enum { ALIGNMENT = 256 };

void *arena_take(struct arena *a, uint64_t bytes)
{
    uint64_t at = a->used;
    a->used += (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    if (!a->base) return NULL;
    CHECK(a->used <= a->size);
    if (cusim_carve && bytes) cusim_carve(a->base + at, bytes);
    return a->base + at;
}

uint32_t pad_to(uint32_t n, uint32_t multiple)
{
    return (n + multiple - 1) / multiple * multiple;
}
