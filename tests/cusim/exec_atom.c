/* tests/cusim/exec_atom.c - atomics, fences, and what other blocks learn through them.
 *
 * A block whose plain writes lie before a fence publishes, with each atomic on a global address,
 * all that it knows; a block that makes an atomic there learns it.  That is what "the last block
 * adds the parts up" rests on.
 */
#include "exec.h"

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

enum { ADD, INC };

/* The result, the address, the value. */
EXEC(atomic)
{
    uint64_t address[LANES];
    uint32_t *d = REGISTER(uint32_t, 0);
    const uint32_t *v = REGISTER(uint32_t, 1);
    exec_addresses(w, i, ADDRESS, lanes, address);
    exec_count(w, i->space, address, lanes, sizeof *d);
    FOR_LANES(l, lanes) {
        uint8_t *at = exec_address(w, i, l, address[l], sizeof *d, TOUCH_ATOMIC);
        uint32_t old, new;
        memcpy(&old, at, sizeof old);
        if (i->mode == ADD) new = old + v[l];
        else new = old >= v[l] ? 0 : old + 1;
        memcpy(at, &new, sizeof new);
        d[l] = old;
        if (is_device(address[l])) meet_blocks(w->b, address[l]);
    }
}

const struct row atomic_rows[] = {
    {"atom", "u32", "4a4", atomic, "add inc", .ignored = "global shared shared::cta"}, {NULL},
};
