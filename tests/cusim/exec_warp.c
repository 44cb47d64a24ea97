/* tests/cusim/exec_warp.c - what the lanes of a warp do together: shuffles, votes, matrices. */
#include "exec.h"
#include "report.h"

static void inactive_source(struct warp *w, int lane, int from)
{
    place.thread = w->id * LANES + (uint32_t)lane;
    report(WRONG_MASK, "lane %d reads lane %d, which does not take part", lane, from);
}

enum { SHFL_UP, SHFL_DOWN, SHFL_BFLY, SHFL_IDX };

static void shfl(struct warp *w, const struct ins *i, uint32_t lanes)
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
    if (i->second) set_predicate(w, i->second, in_range, lanes);
}

enum { VOTE_ALL, VOTE_ANY, VOTE_UNI };

static void vote(struct warp *w, const struct ins *i, uint32_t lanes)
{
    uint32_t p = (i->negated ? ~predicate(w, i->o[1]) : predicate(w, i->o[1])) & lanes;
    bool yes = i->mode == VOTE_ALL ? p == lanes : i->mode == VOTE_ANY ? p : !p || p == lanes;
    set_predicate(w, i->o[0], yes ? ~0u : 0, lanes);
}

static void ballot(struct warp *w, const struct ins *i, uint32_t lanes)
{
    uint32_t p = (i->negated ? ~predicate(w, i->o[1]) : predicate(w, i->o[1])) & lanes;
    uint32_t *d = REGISTER(uint32_t, 0);
    EACH_LANE(d[l] = p)
}

static void redux(struct warp *w, const struct ins *i, uint32_t lanes)
{
    uint32_t *d = REGISTER(uint32_t, 0), rest = lanes & (lanes - 1);
    const uint32_t *a = REGISTER(uint32_t, 1);
    uint64_t r = a[__builtin_ctz(lanes)];
    FOR_LANES(l, rest) r = fold(i->mode, i->type, r, a[l]);
    EACH_LANE(d[l] = (uint32_t)r)
}

static void syncwarp(struct warp *w, const struct ins *i, uint32_t lanes)
{
    (void)i, (void)lanes;
    w->tick++;
}

/* Lane 8 m + r gives the address of row r (16 bytes) of matrix m.  A register, seen as 8 x 8
 * halves, is a matrix. */
static void ldmatrix(struct warp *w, const struct ins *i, uint32_t lanes)
{
    uint16_t rows[32][8];
    uint64_t address[LANES];
    int rows_used = 8 * i->count;
    uint32_t readers = rows_used == LANES ? ~0u : (1u << rows_used) - 1;
    exec_addresses(w, i, ADDRESS, lanes, address);
    exec_count(w, SPACE_SHARED, address, readers, 16);
    for (int l = 0; l < rows_used; l++) {
        memcpy(rows[l], exec_address(w, i, l, address[l], 16, TOUCH_READ), 16);
    }
    for (int m = 0; m < i->count; m++) {
        uint16_t *d = REGISTER(uint16_t, m);
        for (int k = 0; k < 64; k++) {
            d[k] = i->option ? rows[8 * m + k % 8][k / 8] : rows[8 * m + k / 8][k % 8];
        }
    }
}

/* D (16, 8) = A (16, K) B (K, 8) + C: registers 0 to 3 are D, then 4 of A, 2 of B, 4 of C.  A
 * register of A holds 8 rows, one of B 8 columns, each of K / 2 numbers side by side; C and D are
 * parted into even and odd columns.  Real hardware adds in another order and cuts; results differ
 * in the last bits. */
enum { A_AT = 4, B_AT = 8, C_AT = 10 };
#define PLACE_OF_C(r, s) [(r) % 8 * 4 + (s) / 2]

static inline float from_half(uint32_t h, bool is_bf16)
{
    return is_bf16 ? from_bf16(h) : from_f16(h);
}

static inline void multiply(struct warp *w, const struct ins *i, bool is_bf16)
{
    float a[16][16], b[16][8], c[16][8];
    for (int k = 0; k < 16; k++) {
        for (int r = 0; r < 16; r++) {
            a[r][k] = from_half(REGISTER(uint16_t, A_AT + r / 8 + k / 8 * 2)[r % 8 * 8 + k % 8],
                                is_bf16);
        }
        for (int s = 0; s < 8; s++) {
            b[k][s] = from_half(REGISTER(uint16_t, B_AT + k / 8)[s * 8 + k % 8], is_bf16);
        }
    }
    for (int r = 0; r < 16; r++) {
        for (int s = 0; s < 8; s++) {
            c[r][s] = REGISTER(float, C_AT + r / 8 * 2 + s % 2) PLACE_OF_C(r, s);
        }
        for (int k = 0; k < 16; k++) {
            for (int s = 0; s < 8; s++) c[r][s] = __builtin_fmaf(a[r][k], b[k][s], c[r][s]);
        }
        for (int s = 0; s < 8; s++) {
            REGISTER(float, r / 8 * 2 + s % 2) PLACE_OF_C(r, s) = c[r][s];
        }
    }
}

static void mma(struct warp *w, const struct ins *i, uint32_t lanes)
{
    (void)lanes;
    if (w->b->g->stats) w->b->g->stats->mma++;
    if (i->from == T_BF16) multiply(w, i, true);
    else multiply(w, i, false);
}

/* The same with bytes and 32-bit sums. */
static void mma_bytes(struct warp *w, const struct ins *i, uint32_t lanes)
{
    int32_t d[4][LANES];
    (void)lanes;
    if (w->b->g->stats) w->b->g->stats->mma++;
    for (int r = 0; r < 16; r++) {
        for (int s = 0; s < 8; s++) {
            int part = r / 8 * 2 + s % 2;
            int32_t sum = REGISTER(int32_t, C_AT + part) PLACE_OF_C(r, s);
            for (int k = 0; k < 32; k++) {
                sum += REGISTER(int8_t, A_AT + r / 8 + k / 16 * 2)[r % 8 * 16 + k % 16] *
                       REGISTER(int8_t, B_AT + k / 16)[s * 16 + k % 16];
            }
            d[part] PLACE_OF_C(r, s) = sum;
        }
    }
    for (int part = 0; part < 4; part++) memcpy(REGISTER(int32_t, part), d[part], sizeof d[part]);
}

const struct row warp_rows[] = {
    {"shfl sync", "b32", "4444m", shfl, "up down bfly idx", .flow = FLOW_WARP},
    {"vote sync", "pred", "pPm", vote, "all any uni", .flow = FLOW_WARP},
    {"vote sync ballot", "b32", "4Pm", ballot, .flow = FLOW_WARP},
    {"redux sync", "b32 u32 s32", "44m", redux, FOLDS, .flow = FLOW_WARP},
    {"bar warp sync", "", "m", syncwarp, .flow = FLOW_WARP},
    {"ldmatrix sync aligned m8n8", "b16", "Va", ldmatrix, "x1 x2 x4", "trans",
     "shared shared::cta", FLOW_ALIGNED},
    {"mma sync aligned m16n8k16 row col", "f32 f16 bf16", "V4V4V2V4", mma, .flow = FLOW_ALIGNED},
    {"mma sync aligned m16n8k32 row col", "s32 s8", "V4V4V2V4", mma_bytes, .flow = FLOW_ALIGNED},
    {NULL},
};
