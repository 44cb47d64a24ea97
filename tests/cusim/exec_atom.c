/* tests/cusim/exec_atom.c - atomics, fences, and what other blocks learn through them.
 *
 * A block whose plain writes lie before a fence publishes, with each atomic on a global address,
 * all that it knows; a block that makes an atomic there learns it.  That is what "the last block
 * adds the parts up" rests on.
 */
#include <stdlib.h>

#include "exec.h"
#include "report.h"

struct released {
    uint64_t address;
    uint64_t *blocks;
    struct released *next;
};

static uint32_t block_words(const struct grid *g)
{
    const uint32_t *n = g->launch->grid;
    return (n[0] * n[1] * n[2] + 63) / 64;
}

static void meet_blocks(struct block *b, uint64_t address)
{
    struct grid *g = b->g;
    struct released *r = g->released;
    uint32_t words = block_words(g);
    while (r && r->address != address) r = r->next;
    if (!r) {
        r = must_alloc(sizeof *r);
        *r = (struct released){address, must_alloc(words * sizeof(uint64_t)), g->released};
        g->released = r;
    }
    if (!b->seen) b->seen = must_alloc(words * sizeof(uint64_t));
    for (uint32_t k = 0; k < words; k++) b->seen[k] |= r->blocks[k];
    if (!b->fenced) return;
    for (uint32_t k = 0; k < words; k++) r->blocks[k] |= b->seen[k];
    r->blocks[b->number / 64] |= 1ull << b->number % 64;
}

void exec_atom_close(struct grid *g)
{
    while (g->released) {
        struct released *r = g->released;
        g->released = r->next;
        free(r->blocks);
        free(r);
    }
}

#define ATOMICS FOLDS " exch cas inc dec"
#define ORDERS "relaxed acquire release acq_rel"
enum { RELAXED = 1 };

uint64_t fold(enum fold how, enum type t, uint64_t old, uint64_t v)
{
    int64_t a = (int64_t)old, b = (int64_t)v;
    if (t == T_S32) a = (int32_t)old, b = (int32_t)v;
    bool less = is_signed(t) ? b < a : v < old;
    switch (how) {
    case FOLD_ADD:
        if (t != T_F32) return old + v;
        return float_bits(as_float((uint32_t)old) + as_float((uint32_t)v));
    case FOLD_MIN: return less ? v : old;
    case FOLD_MAX: return less ? old : v;
    case FOLD_AND: return old & v;
    case FOLD_OR: return old | v;
    case FOLD_XOR: return old ^ v;
    case FOLD_EXCH: return v;
    case FOLD_INC: return old >= v ? 0 : old + 1;
    default: return !old || old > v ? v : old - 1;
    }
}

static uint64_t value_of(struct warp *w, const struct ins *i, uint32_t k, int l)
{
    return i->bits64 >> k & 1 ? REGISTER(uint64_t, k)[l] : REGISTER(uint32_t, k)[l];
}

/* The result (nothing, of red), the value, and of cas what it is replaced with; several values side
 * by side are as many atomics. */
static void atomic(struct warp *w, const struct ins *i, uint32_t lanes)
{
    uint64_t address[LANES];
    uint32_t size = type_bytes(i->type), count = i->count ? i->count : 1;
    exec_addresses(w, i, ADDRESS, lanes, address);
    exec_count(w, i->space, address, lanes, size * count);
    FOR_LANES(l, lanes) {
        if (i->option > RELAXED) w->b->fenced = true;
        for (uint32_t k = 0; k < count; k++) {
            uint8_t *at = exec_address(w, i, l, address[l] + k * size, size, TOUCH_ATOMIC);
            uint64_t old = 0, v = value_of(w, i, 1 + k, l), new;
            memcpy(&old, at, size);
            if (i->mode == FOLD_CAS) new = old == v ? value_of(w, i, 2, l) : old;
            else new = fold(i->mode, i->type, old, v);
            memcpy(at, &new, size);
            if (i->count) continue;                     /* red */
            if (i->bits64 & 1) REGISTER(uint64_t, 0)[l] = old;
            else REGISTER(uint32_t, 0)[l] = (uint32_t)old;
        }
        if (is_device(address[l])) meet_blocks(w->b, address[l]);
    }
}

#define ATOMIC(name, operands)                                                                   \
    {name, "b32 u32 s32 f32 b64 u64 s64", operands, atomic, ATOMICS, ORDERS,                     \
     "global shared shared::cta gpu cta sys v2 v4"}
const struct row atomic_rows[] = {
    ATOMIC("atom", "vav"), ATOMIC("atom", "vavv"), ATOMIC("red", "-aV"), {NULL},
};
