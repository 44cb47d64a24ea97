/* cuda/pack.c - the order in which matrices lie on the device.
 *
 * Dense types: rows of `in` values, padded with zeros.  Blocks of 32: for each 8 rows and each 64
 * inputs, lane (g, t) of a warp finds what it needs in one piece: row g, inputs 8t .. 8t+7 of the
 * first 32, then of the second: 16 bytes for Q8_0, two words for Q4_0 and Q4_1.  In a word, value
 * 2i is at bit 4i and value 2i+1 at bit 16+4i, which the kernel's arithmetic wants.  Scales and
 * mins are planes of their own: (rows / 8, in / 32, 8).
 *
 * Rows may be put in another order: gate and up in turn (SwiGLU needs both in one thread), and the
 * halves of a head as pairs (so that one rotation fits both families; queries and keys are permuted
 * alike, which changes no product of theirs).
 */
#include <stdlib.h>
#include <string.h>

#include "common/mem.h"
#include "cuda/cuda.h"
#include "model/quant.h"

/* In the packed order, dimension d of a head comes from this one. */
static uint32_t unpaired(const struct source *s, uint32_t d)
{
    if (d >= s->rope_dims) return d;
    return d % 2 ? d / 2 + s->rope_dims / 2 : d / 2;
}

static const struct gguf_tensor *row_source(const struct source *s, uint32_t n, uint32_t *row)
{
    uint32_t which = 0;
    if (s->order == SOURCE_PAIRED) {
        *row = n / 2;
        return n / 2 < s->rows[0] ? s->t[n % 2] : NULL;
    }
    while (which < s->count && n >= s->rows[which]) n -= s->rows[which++];
    if (which == s->count) return NULL;
    *row = n;
    if (s->pair_heads[which])
        *row = n / s->head_dim * s->head_dim + unpaired(s, n % s->head_dim);
    return s->t[which];
}

static const uint8_t *row_data(const struct gguf_tensor *t, uint32_t row)
{
    uint64_t bytes = t->dims[0] / tensor_block_values(t->type) * tensor_block_bytes(t->type);
    return (const uint8_t *)t->data + row * bytes;
}

/* As F16; what is larger than the largest stays finite. */
static uint16_t f16_of(float f)
{
    return float_to_half(f > 65504.f ? 65504.f : f < -65504.f ? -65504.f : f);
}

static void pack_dense(const struct matrix *m, const struct gguf_tensor *t, uint32_t row,
                       float *values, uint8_t *to)
{
    tensor_dequantize(t->type, row_data(t, row), values, m->in);
    for (uint32_t i = 0; i < m->in; i++) {
        uint16_t half = f16_of(values[i]);
        if (m->w.type == WEIGHT_F32)
            memcpy(to + 4ull * i, &values[i], 4);
        else
            memcpy(to + 2ull * i, &half, 2);
    }
}

static void spread_q8(const int8_t q[32], uint32_t g, uint32_t half, uint8_t *unit)
{
    for (uint32_t i = 0; i < 32; i++)
        unit[(g * 4 + i / 8) * 16 + half * 8 + i % 8] = (uint8_t)q[i];
}

/* q: 16 bytes as in the file, value i low, value i + 16 high. */
static void spread_q4(const uint8_t q[16], uint32_t g, uint32_t half, uint8_t *unit)
{
    for (uint32_t lane = 0; lane < 4; lane++) {
        uint32_t word = 0;
        for (uint32_t e = 0; e < 8; e++) {
            uint32_t i = lane * 8 + e, value = i < 16 ? q[i] & 15u : (uint32_t)q[i - 16] >> 4;
            word |= value << (e / 2 * 4 + e % 2 * 16);
        }
        memcpy(unit + (g * 4 + lane) * 8 + half * 4, &word, 4);
    }
}

/* `n` counts from the first packed row of this call. */
static void pack_blocks(const struct matrix *m, const struct gguf_tensor *t, uint32_t row,
                        uint32_t n, uint8_t *q, uint16_t *scales, uint16_t *mins)
{
    const uint8_t *from = row_data(t, row);
    uint32_t unit_bytes = m->w.type == WEIGHT_Q8_0 ? 512 : 256;
    uint64_t units = (uint64_t)(n / 8) * ((uint32_t)m->w.in / 64);
    uint64_t planes = (uint64_t)(n / 8) * ((uint32_t)m->w.in / 32);
    for (uint32_t b = 0; b < m->in / 32; b++) {
        uint8_t *unit = q + (units + b / 2) * unit_bytes;
        const uint8_t *block = from + b * tensor_block_bytes(t->type);
        memcpy(&scales[(planes + b) * 8 + n % 8], block, 2);
        if (m->w.type == WEIGHT_Q4_1) memcpy(&mins[(planes + b) * 8 + n % 8], block + 2, 2);
        if (m->w.type == WEIGHT_Q8_0)
            spread_q8((const int8_t *)block + 2, n % 8, b % 2, unit);
        else
            spread_q4(block + (m->w.type == WEIGHT_Q4_1 ? 4 : 2), n % 8, b % 2, unit);
    }
}

uint64_t packed_q_bytes(const struct weights *w, uint32_t rows)
{
    uint64_t values = (uint64_t)rows * (uint32_t)w->in;
    switch (w->type) {
    case WEIGHT_F32: return 4 * values;
    case WEIGHT_Q8_0: return values;
    case WEIGHT_Q4_0:
    case WEIGHT_Q4_1: return values / 2;
    default: return 2 * values;
    }
}

/* Of one plane; 0: the type has none. */
uint64_t packed_scale_bytes(const struct weights *w, uint32_t rows)
{
    bool blocks = w->type == WEIGHT_Q8_0 || w->type == WEIGHT_Q4_0 || w->type == WEIGHT_Q4_1;
    return blocks ? (uint64_t)rows * ((uint32_t)w->in / 32) * 2 : 0;
}

void pack_rows(const struct matrix *m, uint32_t row, uint32_t count, uint8_t *q, uint16_t *scales,
               uint16_t *mins)
{
    float *values = mem_array(m->in, sizeof *values);
    uint64_t plane = packed_scale_bytes(&m->w, count), row_bytes = packed_q_bytes(&m->w, 1);
    memset(q, 0, packed_q_bytes(&m->w, count));
    memset(scales, 0, plane);
    if (m->w.type == WEIGHT_Q4_1) memset(mins, 0, plane);
    for (uint32_t i = 0; i < count; i++) {
        uint32_t from;
        const struct gguf_tensor *t = row_source(&m->from, row + i, &from);
        if (!t) continue;             /* padding */
        if (plane)
            pack_blocks(m, t, from, i, q, scales, mins);
        else
            pack_dense(m, t, from, values, q + i * row_bytes);
    }
    free(values);
}
