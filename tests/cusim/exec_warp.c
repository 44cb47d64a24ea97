/* tests/cusim/exec_warp.c - what the lanes of a warp do together: shuffles, matrices. */
#include "exec.h"

/* Each lane takes the value of the lane whose number differs in the bits of the second operand. */
EXEC(shfl)
{
    uint32_t *d = REGISTER(uint32_t, 0), value[LANES], in_range = 0;
    const uint32_t *a = REGISTER(uint32_t, 1), *b = REGISTER(uint32_t, 2);
    const uint32_t *c = REGISTER(uint32_t, 3);
    FOR_LANES(l, lanes) {
        int clamp = c[l] & 31, segment = c[l] >> 8 & 31, from = l ^ (b[l] & 31);
        bool ok = from <= ((l & segment) | (clamp & ~segment));
        if (!ok) from = l;
        at_lane(w, l);
        report_if(!(lanes >> from & 1), WRONG_MASK,
                  "lane %d reads lane %d, which does not take part", l, from);
        value[l] = a[from];
        in_range |= (uint32_t)ok << l;
    }
    EACH_LANE(d[l] = value[l])
    if (i->second) set_predicate(w, i->second, in_range, lanes);
}

EXEC(syncwarp) { w->tick++; }

/* Lane 8 m + r gives the address of row r (16 bytes) of matrix m.  A register, seen as 8 x 8
 * halves, is a matrix. */
EXEC(ldmatrix)
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

EXEC(mma)
{
    float a[16][16], b[16][8], c[16][8];
    if (w->b->g->stats) w->b->g->stats->mma++;
    for (int k = 0; k < 16; k++) {
        for (int r = 0; r < 16; r++) {
            a[r][k] = from_f16(REGISTER(uint16_t, A_AT + r / 8 + k / 8 * 2)[r % 8 * 8 + k % 8]);
        }
        for (int s = 0; s < 8; s++) {
            b[k][s] = from_f16(REGISTER(uint16_t, B_AT + k / 8)[s * 8 + k % 8]);
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

const struct row warp_rows[] = {
    {"shfl sync", "b32", "4444m", shfl, "bfly", .flow = FLOW_WARP},
    {"bar warp sync", "", "m", syncwarp, .flow = FLOW_WARP},
    {"ldmatrix sync aligned m8n8", "b16", "Va", ldmatrix, "x1 x2 x4", "trans",
     "shared shared::cta", FLOW_ALIGNED},
    {"mma sync aligned m16n8k16 row col", "f32 f16", "V4V4V2V4", mma, .flow = FLOW_ALIGNED},
    {NULL},
};
