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

static int64_t as_signed(uint64_t v, enum type t)
{
    return type_bytes(t) == 8 ? (int64_t)v : (int32_t)v;
}

static uint64_t add_values(uint64_t old, uint64_t v, enum type t)
{
    double d, e;
    uint64_t bits;
    switch (t) {
    case T_F32: return float_bits(as_float((uint32_t)old) + as_float((uint32_t)v));
    case T_F16: return to_f16(from_f16((uint32_t)old) + from_f16((uint32_t)v));
    case T_BF16: return to_bf16(from_bf16((uint32_t)old) + from_bf16((uint32_t)v));
    case T_F16X2:
        return (to_f16(from_f16((uint32_t)old) + from_f16((uint32_t)v)) & 0xffff) |
               to_f16(from_f16((uint32_t)old >> 16) + from_f16((uint32_t)v >> 16)) << 16;
    case T_BF16X2:
        return (to_bf16(from_bf16(old & 0xffff) + from_bf16(v & 0xffff)) & 0xffff) |
               to_bf16(from_bf16((uint32_t)old >> 16) + from_bf16((uint32_t)v >> 16)) << 16;
    case T_F64:
        memcpy(&d, &old, 8);
        memcpy(&e, &v, 8);
        d += e;
        memcpy(&bits, &d, 8);
        return bits;
    default: return old + v;
    }
}

static uint64_t fold(const struct ins *i, uint64_t old, uint64_t v, uint64_t third)
{
    enum type t = i->type;
    bool is_signed = t == T_S32 || t == T_S64;
    bool less = is_signed ? as_signed(v, t) < as_signed(old, t) : v < old;
    switch (i->mode & 15) {
    case FOLD_ADD: return add_values(old, v, t);
    case FOLD_MIN: return less ? v : old;
    case FOLD_MAX: return less ? old : v;
    case FOLD_AND: return old & v;
    case FOLD_OR: return old | v;
    case FOLD_XOR: return old ^ v;
    case ATOM_EXCH: return v;
    case ATOM_CAS: return old == v ? third : old;
    case ATOM_INC: return old >= v ? 0 : old + 1;
    default: return !old || old > v ? v : old - 1;
    }
}

static uint64_t operand(struct warp *w, const struct ins *i, uint32_t k, int l)
{
    if (i->bits64 >> k & 1) return REGISTER(uint64_t, k)[l];
    uint32_t v = REGISTER(uint32_t, k)[l];
    return type_bytes(i->type) == 2 ? v & 0xffff : v;
}

/* ins: o[0] result (or nothing), o[1] address, o[2] value, o[3] the other value of cas; several
 * values side by side (count) are as many atomics, and have no result. */
void exec_atomic(struct warp *w, const struct ins *i, uint32_t lanes)
{
    uint64_t address[LANES];
    uint32_t size = (uint32_t)type_bytes(i->type);
    exec_addresses(w, i, 1, i->offset, lanes, address);
    exec_count(w, i, i->space, address, lanes, size * i->count);
    for (uint32_t rest = lanes; rest; rest &= rest - 1) {
        int l = __builtin_ctz(rest);
        if (i->mode & ATOM_ORDERED) w->b->fenced = true;
        for (uint32_t k = 0; k < i->count; k++) {
            uint8_t *at = exec_address(w, i, l, address[l] + k * size, size, TOUCH_ATOMIC);
            uint64_t old = 0, v = operand(w, i, 2 + k, l);
            memcpy(&old, at, size);
            uint64_t new = fold(i, old, v, i->operands > 3 ? operand(w, i, 3, l) : 0);
            memcpy(at, &new, size);
            if (i->mode & ATOM_NO_RESULT) continue;
            if (i->bits64 & 1) REGISTER(uint64_t, 0)[l] = old;
            else REGISTER(uint32_t, 0)[l] = (uint32_t)old;
        }
        if (is_device(address[l])) meet_blocks(w->b, address[l]);
    }
}

void exec_fence(struct warp *w, const struct ins *i, uint32_t lanes)
{
    (void)i, (void)lanes;
    w->b->fenced = true;
}

void exec_nothing(struct warp *w, const struct ins *i, uint32_t lanes)
{
    (void)w, (void)i, (void)lanes;
}

void exec_isspacep(struct warp *w, const struct ins *i, uint32_t lanes)
{
    const uint64_t *a = REGISTER(uint64_t, 1);
    uint32_t yes = 0;
    EACH_LANE(
        uint64_t window = a[l] >> 40;
        bool shared = window == SHARED_WINDOW >> 40;
        bool local = window == LOCAL_WINDOW >> 40;
        bool is = i->space == SPACE_SHARED ? shared : i->space == SPACE_LOCAL ? local
                                                                              : !shared && !local;
        yes |= (uint32_t)is << l)
    set_predicate(w, i->o[0], yes, lanes);
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
