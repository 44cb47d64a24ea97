/* tests/cusim/exec_warp.c - what the lanes of a warp do together: shuffles, votes, matrices. */
#include "exec.h"
#include "report.h"

static void inactive_source(struct warp *w, int lane, int from)
{
    place.thread = w->id * LANES + (uint32_t)lane;
    report(WRONG_MASK, "lane %d reads lane %d, which does not take part", lane, from);
}

void exec_shfl(struct warp *w, const struct ins *i, uint32_t lanes)
{
    uint32_t *d = REGISTER(uint32_t, 0), value[LANES], in_range = 0;
    const uint32_t *a = REGISTER(uint32_t, 1), *b = REGISTER(uint32_t, 2);
    const uint32_t *c = REGISTER(uint32_t, 3);
    for (uint32_t rest = lanes; rest; rest &= rest - 1) {
        int l = __builtin_ctz(rest), from;
        int by = b[l] & 31, clamp = c[l] & 31, segment = c[l] >> 8 & 31;
        int last = (l & segment) | (clamp & ~segment), first = l & segment;
        bool ok;
        switch (i->mode) {
        case SHFL_UP: from = l - by, ok = from >= last; break;
        case SHFL_DOWN: from = l + by, ok = from <= last; break;
        case SHFL_BFLY: from = l ^ by, ok = from <= last; break;
        default: from = first | (by & ~segment), ok = from <= last; break;
        }
        if (!ok) from = l;
        if (!(lanes >> from & 1)) inactive_source(w, l, from);
        value[l] = a[from];
        in_range |= (uint32_t)ok << l;
    }
    EACH_LANE(d[l] = value[l])
    if (i->count) set_predicate(w, i->o[5], in_range, lanes);
}

void exec_vote(struct warp *w, const struct ins *i, uint32_t lanes)
{
    uint32_t p = predicate(w, i->o[1]);
    if (i->count) p = ~p;                           /* a negated operand */
    p &= lanes;
    if (i->mode == VOTE_BALLOT) {
        uint32_t *d = REGISTER(uint32_t, 0);
        EACH_LANE(d[l] = p)
        return;
    }
    bool yes = i->mode == VOTE_ALL ? p == lanes : i->mode == VOTE_ANY ? p : !p || p == lanes;
    set_predicate(w, i->o[0], yes ? ~0u : 0, lanes);
}

void exec_redux(struct warp *w, const struct ins *i, uint32_t lanes)
{
    uint32_t *d = REGISTER(uint32_t, 0), r = 0;
    const uint32_t *a = REGISTER(uint32_t, 1);
    bool first = true, is_signed = i->type == T_S32;
    for (uint32_t rest = lanes; rest; rest &= rest - 1, first = false) {
        uint32_t x = a[__builtin_ctz(rest)];
        bool less = is_signed ? (int32_t)x < (int32_t)r : x < r;
        switch (i->mode) {
        case FOLD_ADD: r += x; break;
        case FOLD_MIN: r = first || less ? x : r; break;
        case FOLD_MAX: r = first || !less ? x : r; break;
        case FOLD_AND: r = first ? x : r & x; break;
        case FOLD_OR: r |= x; break;
        default: r ^= x; break;
        }
    }
    EACH_LANE(d[l] = r)
}

void exec_syncwarp(struct warp *w, const struct ins *i, uint32_t lanes)
{
    (void)i, (void)lanes;
    w->tick++;
}

void exec_match(struct warp *w, const struct ins *i, uint32_t lanes)
{
    uint32_t *d = REGISTER(uint32_t, 0), same[LANES];
    EACH_LANE(
        same[l] = 0;
        for (uint32_t m = lanes; m; m &= m - 1) {
            int k = __builtin_ctz(m);
            bool equal = i->bits64 & 2 ? REGISTER(uint64_t, 1)[l] == REGISTER(uint64_t, 1)[k]
                                       : REGISTER(uint32_t, 1)[l] == REGISTER(uint32_t, 1)[k];
            same[l] |= (uint32_t)equal << k;
        })
    EACH_LANE(d[l] = same[l])
}

void exec_activemask(struct warp *w, const struct ins *i, uint32_t lanes)
{
    uint32_t *d = REGISTER(uint32_t, 0);
    EACH_LANE(d[l] = lanes)
}

/* Lane 8 m + r gives the address of row r (16 bytes) of matrix m; register m of lane l gets the two
 * halves at row l / 4, columns 2 (l % 4) and the next; transposed, the roles of both change. */
void exec_ldmatrix(struct warp *w, const struct ins *i, uint32_t lanes)
{
    uint16_t rows[32][8];
    uint64_t address[LANES];
    int rows_used = 8 * i->count;
    uint32_t readers = rows_used == LANES ? ~0u : (1u << rows_used) - 1;
    exec_addresses(w, i, i->count, i->offset, lanes, address);
    exec_count(w, i, SPACE_SHARED, address, readers, 16);
    for (int l = 0; l < rows_used; l++) {
        memcpy(rows[l], exec_address(w, i, l, address[l], 16, TOUCH_READ), 16);
    }
    for (uint32_t m = 0; m < i->count; m++) {
        uint32_t *d = REGISTER(uint32_t, m);
        for (uint32_t l = 0; l < LANES; l++) {
            uint32_t r = l >> 2, c = 2 * (l & 3);
            uint32_t low = i->mode ? rows[8 * m + c][r] : rows[8 * m + r][c];
            uint32_t high = i->mode ? rows[8 * m + c + 1][r] : rows[8 * m + r][c + 1];
            d[l] = low | high << 16;
        }
    }
}

void exec_movmatrix(struct warp *w, const struct ins *i, uint32_t lanes)
{
    uint16_t m[8][8];
    uint32_t *d = REGISTER(uint32_t, 0);
    const uint32_t *a = REGISTER(uint32_t, 1);
    (void)lanes;
    for (int l = 0; l < LANES; l++) memcpy(&m[l >> 2][2 * (l & 3)], &a[l], 4);
    for (int l = 0; l < LANES; l++) {
        d[l] = m[2 * (l & 3)][l >> 2] | (uint32_t)m[2 * (l & 3) + 1][l >> 2] << 16;
    }
}

static inline float half_of(uint32_t pair, int k, bool is_bf16)
{
    uint32_t h = k ? pair >> 16 : pair & 0xffff;
    return is_bf16 ? from_bf16(h) : from_f16(h);
}

/* D (16, 8) = A (16, K) B (K, 8) + C, in floats.  The registers of lane l = 4 g + q hold rows g
 * and g + 8, columns 2 q and 2 q + 1 of each 8 by 8 part.  ins.count is K.  Real hardware adds in
 * another order and cuts; results differ in the last bits. */
void exec_mma(struct warp *w, const struct ins *i, uint32_t lanes)
{
    float a[16][16], b[16][8], c[16][8];
    const int depth = i->count, a_regs = depth / 4, b_regs = depth / 8;
    const bool is_bf16 = i->type == T_BF16;
    const uint32_t c_at = 4 + (uint32_t)(a_regs + b_regs);
    (void)lanes;
    if (w->b->g->stats) w->b->g->stats->mma++;
    for (int k = 0; k < a_regs; k++) {
        const uint32_t *r = REGISTER(uint32_t, 4 + k);
        for (int l = 0; l < LANES; l++) {
            float *at = &a[(l >> 2) + 8 * (k & 1)][2 * (l & 3) + 8 * (k >> 1)];
            at[0] = half_of(r[l], 0, is_bf16), at[1] = half_of(r[l], 1, is_bf16);
        }
    }
    for (int k = 0; k < b_regs; k++) {
        const uint32_t *r = REGISTER(uint32_t, 4 + a_regs + k);
        for (int l = 0; l < LANES; l++) {
            float (*at)[8] = &b[2 * (l & 3) + 8 * k];
            at[0][l >> 2] = half_of(r[l], 0, is_bf16), at[1][l >> 2] = half_of(r[l], 1, is_bf16);
        }
    }
    for (int k = 0; k < 4; k++) {
        const float *r = REGISTER(float, c_at + (uint32_t)k);
        for (int l = 0; l < LANES; l++) c[(l >> 2) + 8 * (k >> 1)][2 * (l & 3) + (k & 1)] = r[l];
    }
    for (int r = 0; r < 16; r++) {
        for (int k = 0; k < depth; k++) {
            for (int s = 0; s < 8; s++) c[r][s] = __builtin_fmaf(a[r][k], b[k][s], c[r][s]);
        }
    }
    for (int k = 0; k < 4; k++) {
        float *d = REGISTER(float, k);
        for (int l = 0; l < LANES; l++) d[l] = c[(l >> 2) + 8 * (k >> 1)][2 * (l & 3) + (k & 1)];
    }
}

static int32_t byte_of(uint32_t four, int k, bool is_signed)
{
    return is_signed ? (int8_t)(four >> 8 * k) : (int32_t)(four >> 8 * k & 255);
}

/* The same with bytes and 32-bit sums: four columns a register.  K is 16 or 32. */
void exec_mma_int(struct warp *w, const struct ins *i, uint32_t lanes)
{
    int32_t a[16][32], b[32][8], c[16][8];
    const int depth = i->count, a_regs = depth / 8, b_regs = depth / 16;
    const bool a_signed = i->type == T_S8, b_signed = i->from == T_S8;
    const uint32_t c_at = 4 + (uint32_t)(a_regs + b_regs);
    (void)lanes;
    if (w->b->g->stats) w->b->g->stats->mma++;
    for (int l = 0; l < LANES; l++) {
        int g = l >> 2, q = l & 3;
        for (int j = 0; j < 4; j++) {
            for (int k = 0; k < a_regs; k++) {
                a[g + 8 * (k & 1)][4 * q + j + 16 * (k >> 1)] =
                    byte_of(REGISTER(uint32_t, 4 + k)[l], j, a_signed);
            }
            for (int k = 0; k < b_regs; k++) {
                b[4 * q + j + 16 * k][g] =
                    byte_of(REGISTER(uint32_t, 4 + a_regs + k)[l], j, b_signed);
            }
            c[g + 8 * (j >> 1)][2 * q + (j & 1)] = REGISTER(int32_t, c_at + (uint32_t)j)[l];
        }
    }
    for (int r = 0; r < 16; r++) {
        for (int k = 0; k < depth; k++) {
            for (int s = 0; s < 8; s++) c[r][s] += a[r][k] * b[k][s];
        }
    }
    for (int l = 0; l < LANES; l++) {
        for (int j = 0; j < 4; j++) {
            REGISTER(int32_t, j)[l] = c[(l >> 2) + 8 * (j >> 1)][2 * (l & 3) + (j & 1)];
        }
    }
}
