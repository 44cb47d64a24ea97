/* engine/cpu/pack.c - see pack.h. */
#include "engine/cpu/pack.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/mem.h"
#include "engine/cpu/kernels.h"
#include "model/quant.h"

struct image_head {
    char magic[8];
    uint32_t version, isa;
    struct hash128 digest;
    uint64_t bytes;
    uint8_t pad[24];
};
_Static_assert(sizeof(struct image_head) == 64, "panels stay aligned");

static const char image_magic[8] = "rspanel";
enum { IMAGE_VERSION = 5 };

static uint64_t round_up(uint64_t n, uint64_t to)
{
    return (n + to - 1) / to * to;
}

bool layout_simd_fits(const struct hparams *h)
{
    return h->dim % 32 == 0 && h->ffn_dim % 32 == 0 && h->head_dim % 16 == 0 &&
           h->heads * h->head_dim % 32 == 0 && h->head_dim <= HEAD_DIM_MAX;
}

static void choose_kind(struct matrix *m, enum tensor_type type)
{
    static const struct { enum panel_kind kind; enum panel_scales scales; } forms[] = {
        [TENSOR_F32] = { PANEL_F32, 0 }, [TENSOR_F16] = { PANEL_F16, 0 },
        [TENSOR_BF16] = { PANEL_BF16, 0 },
        [TENSOR_Q4_0] = { PANEL_Q4, SCALES_HALF }, [TENSOR_Q4_1] = { PANEL_Q4, SCALES_HALF_MIN },
        [TENSOR_Q5_0] = { PANEL_Q5, SCALES_HALF }, [TENSOR_Q5_1] = { PANEL_Q5, SCALES_HALF_MIN },
        [TENSOR_Q8_0] = { PANEL_Q8, SCALES_HALF }, [TENSOR_Q4_K] = { PANEL_Q4, SCALES_K },
        [TENSOR_Q5_K] = { PANEL_Q5, SCALES_K },    [TENSOR_Q6_K] = { PANEL_Q6, SCALES_K6 },
    };
    m->kind = forms[type].kind;
    m->scales = forms[type].scales;
}

/* What AVX-512 does two blocks at a time. */
static void choose_pairs(struct matrix *m)
{
    if (m->kind != PANEL_Q4 || m->in % 64 != 0) return;
    if (m->scales == SCALES_HALF) m->scales = SCALES_PAIR;
    if (m->scales == SCALES_HALF_MIN) m->scales = SCALES_PAIR_MIN;
}

/* Of all blocks of a panel. */
static uint64_t scale_bytes(const struct matrix *m)
{
    uint64_t blocks = m->in / 32;
    switch (m->scales) {
    case SCALES_HALF: return blocks * HALF_BYTES;
    case SCALES_HALF_MIN: return blocks * HALF_MIN_BYTES;
    case SCALES_K: return blocks / 8 * K_BYTES;
    case SCALES_PAIR: return PAIR_HEAD + blocks / 2 * PAIR_BYTES;
    case SCALES_PAIR_MIN: return PAIR_MIN_HEAD + blocks / 2 * PAIR_MIN_BYTES;
    default: return blocks / 8 * K6_BYTES;
    }
}

static void place(struct layout *l, struct matrix *m, const struct gguf_tensor *t)
{
    *m = (struct matrix){ .out = (uint32_t)t->dims[1], .in = (uint32_t)t->dims[0], .from = t,
                          .offset = l->bytes, .kind = PANEL_F32 };
    if (l->isa != ISA_PLAIN) choose_kind(m, t->type);
    if (l->isa == ISA_AVX512) choose_pairs(m);
    if (m->kind == PANEL_F32) {
        m->panel_bytes = (uint64_t)m->in * PANEL * 4;
    } else if (matrix_is_float(m)) {
        m->panel_bytes = (uint64_t)m->in * PANEL * 2;
    } else {
        m->panel_bytes = (uint64_t)(m->in / 32) * panel_quant_bytes(m->kind) + scale_bytes(m);
    }
    m->panel_bytes = round_up(m->panel_bytes, 64);
    l->bytes += m->panel_bytes * matrix_panels(m);
}

/* The matrices in the order of the image. */
static struct matrix *matrix_at(struct layout *l, uint32_t i)
{
    if (i == 0) return &l->head;
    struct layer_matrices *y = &l->layers[(i - 1) / 7];
    struct matrix *const all[7] = { &y->q, &y->k, &y->v, &y->o, &y->gate, &y->up, &y->down };
    return all[(i - 1) % 7];
}

static uint32_t matrix_count(const struct model *m)
{
    return 1 + 7 * m->h.layers;
}

void layout_make(struct layout *l, const struct model *m, enum isa isa)
{
    memset(l, 0, sizeof *l);
    l->isa = isa == ISA_AVX512_BF16 ? ISA_AVX512 : isa;    /* weights lie the same way */
    l->bytes = sizeof(struct image_head);
    place(l, &l->head, m->output);
    for (uint32_t i = 0; i < m->h.layers; i++) {
        const struct layer_weights *w = &m->layers[i];
        struct layer_matrices *y = &l->layers[i];
        place(l, &y->q, w->q);
        place(l, &y->k, w->k);
        place(l, &y->v, w->v);
        place(l, &y->o, w->o);
        place(l, &y->gate, w->gate);
        place(l, &y->up, w->up);
        place(l, &y->down, w->down);
    }
}

/* Values 32*b .. of a row as whole numbers, with the scales as they stand in the file. */
struct unpacked {
    uint8_t q[32];
    uint16_t d, m;                    /* F16                                                  */
    uint8_t scale[2];                 /* K: scale and min; K6: of the two halves              */
};

static void unpack_nibbles(const uint8_t q[16], uint8_t out[32])
{
    for (int i = 0; i < 16; i++) {
        out[i] = q[i] & 15;
        out[i + 16] = q[i] >> 4;
    }
}

static void unpack_fifth(const uint8_t high[4], uint8_t out[32])
{
    for (int i = 0; i < 32; i++) out[i] |= (uint8_t)((high[i / 8] >> i % 8 & 1) << 4);
}

/* Part b % 8 of a Q4_K block, or of a Q5_K block, which has `high` as well. */
static void unpack_k(const uint8_t scales[12], const uint8_t *q, const uint8_t *high, uint32_t b,
                     struct unpacked *u)
{
    uint32_t part = b % 8;
    unsigned scale, min;
    quant_scale_min_k4(scales, (int)part, &scale, &min);
    u->scale[0] = (uint8_t)scale;
    u->scale[1] = (uint8_t)min;
    for (uint32_t i = 0; i < 32; i++) {
        u->q[i] = q[part / 2 * 32 + i] >> part % 2 * 4 & 15;
        if (high) u->q[i] |= (uint8_t)((high[i] >> part & 1) << 4);
    }
}

static void unpack_q4_k(const uint8_t *at, uint32_t b, struct unpacked *u)
{
    struct block_q4_k k;
    memcpy(&k, at, sizeof k);
    u->d = k.d, u->m = k.dmin;
    unpack_k(k.scales, k.q, NULL, b, u);
}

static void unpack_q5_k(const uint8_t *at, uint32_t b, struct unpacked *u)
{
    struct block_q5_k k;
    memcpy(&k, at, sizeof k);
    u->d = k.d, u->m = k.dmin;
    unpack_k(k.scales, k.q, k.high, b, u);
}

static void unpack_q6_k(const uint8_t *at, uint32_t b, struct unpacked *u)
{
    struct block_q6_k k;
    uint32_t part = b % 8, half = part / 4, run = part % 4;
    memcpy(&k, at, sizeof k);
    u->d = k.d;
    memcpy(u->scale, &k.scales[2 * part], 2);
    const uint8_t *low = k.low + half * 64 + run % 2 * 32, *high = k.high + half * 32;
    for (uint32_t i = 0; i < 32; i++) {
        u->q[i] = (uint8_t)((low[i] >> run / 2 * 4 & 15) | (high[i] >> 2 * run & 3) << 4);
    }
}

static void unpack(const struct gguf_tensor *t, const uint8_t *row, uint32_t b,
                   struct unpacked *u)
{
    uint32_t parts = tensor_block_values(t->type) / 32;
    const uint8_t *at = row + (uint64_t)(b / parts) * tensor_block_bytes(t->type);
    *u = (struct unpacked){ .d = 0 };
    switch (t->type) {
    case TENSOR_Q4_0:
        memcpy(&u->d, at, 2);
        unpack_nibbles(at + 2, u->q);
        break;
    case TENSOR_Q4_1:
        memcpy(&u->d, at, 2);
        memcpy(&u->m, at + 2, 2);
        unpack_nibbles(at + 4, u->q);
        break;
    case TENSOR_Q5_0:
        memcpy(&u->d, at, 2);
        unpack_nibbles(at + 6, u->q);
        unpack_fifth(at + 2, u->q);
        break;
    case TENSOR_Q5_1:
        memcpy(&u->d, at, 2);
        memcpy(&u->m, at + 2, 2);
        unpack_nibbles(at + 8, u->q);
        unpack_fifth(at + 4, u->q);
        break;
    case TENSOR_Q8_0:
        memcpy(&u->d, at, 2);
        memcpy(u->q, at + 2, 32);
        break;
    case TENSOR_Q4_K: unpack_q4_k(at, b, u); break;
    case TENSOR_Q5_K: unpack_q5_k(at, b, u); break;
    case TENSOR_Q6_K: unpack_q6_k(at, b, u); break;
    default: CHECK(!"a type with quants");
    }
}

/* Four values of a line into place `at` (of output o) of a block whose bytes are still zero. */
static void pack_four(enum panel_kind kind, const uint8_t q[4], uint32_t line, uint8_t *at)
{
    for (uint32_t i = 0; i < 4; i++) {
        uint32_t low = q[i] & 15u, high = q[i] >> 4;
        if (kind == PANEL_Q8) {
            at[64 * line + i] = q[i];
            continue;
        }
        at[64 * (line % 4) + i] |= (uint8_t)(line < 4 ? low : low << 4);
        if (kind == PANEL_Q5) at[256 + i] |= (uint8_t)(high << line);
        if (kind == PANEL_Q6) at[256 + 64 * (line / 4) + i] |= (uint8_t)(high << 2 * (line % 4));
    }
}

static void pack_scales(enum panel_scales form, const struct unpacked *u, uint32_t b, uint32_t o,
                        uint8_t *out)
{
    uint8_t *at;
    switch (form) {
    case SCALES_HALF: memcpy(out + (uint64_t)b * HALF_BYTES + 2 * o, &u->d, 2); return;
    case SCALES_HALF_MIN:
        at = out + (uint64_t)b * HALF_MIN_BYTES + 2 * o;
        memcpy(at, &u->d, 2);
        memcpy(at + 2 * PANEL, &u->m, 2);
        return;
    case SCALES_K:
        out += (uint64_t)(b / 8) * K_BYTES;
        memcpy(out + 2 * o, &u->d, 2);
        memcpy(out + 2 * PANEL + 2 * o, &u->m, 2);
        at = out + K_HEAD_BYTES + b % 8 * 2 * PANEL + o;
        break;
    default:
        out += (uint64_t)(b / 8) * K6_BYTES;
        memcpy(out + 2 * o, &u->d, 2);
        at = out + K6_HEAD_BYTES + b % 8 * 2 * PANEL + o;
    }
    at[0] = u->scale[0];
    at[PANEL] = u->scale[1];
}

/* n numbers of an output as whole ones, and what those are to be multiplied by; see pack.h.  NaN if
 * one of them is not finite: no whole number says so. */
static float pack_whole(const float *x, uint32_t n, uint32_t step, uint8_t *out)
{
    float top = 0;
    for (uint32_t i = 0; i < n; i++) {
        if (!isfinite(x[i])) return NAN;
        top = fmaxf(top, fabsf(x[i]));
    }
    for (uint32_t i = 0; i < n; i++) {
        int16_t whole = top > 0 ? (int16_t)lrintf(x[i] / top * PAIR_MOST) : 0;
        memcpy(out + (uint64_t)(i / 2) * step + (i % 2 ? 0 : 2), &whole, sizeof whole);
    }
    return top / PAIR_MOST;
}

/* Of output o: the scales of all blocks, and their minimums as those of w = d*(q - 8) + m. */
static void pack_pairs(const struct matrix *m, const float *d, const float *low, uint32_t o,
                       uint8_t *out)
{
    float *unit = (float *)(void *)out + o;
    uint32_t blocks = m->in / 32;
    out += 512 + 4 * o;
    if (m->scales == SCALES_PAIR) {
        *unit = pack_whole(d, blocks, PAIR_STEP, out + PAIR_HEAD);
    } else {
        unit[0] = pack_whole(d, blocks, PAIR_MIN_STEP, out + PAIR_MIN_HEAD);
        unit[PANEL] = pack_whole(low, blocks, PAIR_MIN_STEP, out + PAIR_MIN_HEAD + PAIR_BYTES);
    }
}

/* Do the blocks of one of a panel's outputs differ too much in size for whole-number scales?
 * (Blocks of zeros do not count; what is no number shows in either form.) */
static bool differ_too_much(const struct matrix *m, uint32_t panel)
{
    const struct gguf_tensor *t = m->from;
    uint32_t blocks = m->in / 32, bytes = tensor_block_bytes(t->type);
    for (uint32_t o = panel * PANEL; o < panel * PANEL + PANEL && o < m->out; o++) {
        const uint8_t *block = (const uint8_t *)t->data + (uint64_t)o * blocks * bytes;
        float least = INFINITY, most = 0;
        for (uint32_t b = 0; b < blocks; b++, block += bytes) {
            uint16_t half[2] = { 0 };
            memcpy(half, block, m->scales == SCALES_PAIR_MIN ? 4 : 2);
            float d = half_to_float(half[0]), low = half_to_float(half[1]);
            float size = 8 * fabsf(d) + (m->scales == SCALES_PAIR_MIN ? fabsf(low + 8 * d) : 0);
            most = fmaxf(most, size);
            if (size > 0) least = fminf(least, size);
        }
        if (most > PAIR_RANGE * least) return true;
    }
    return false;
}

/* `room`: floats, two for each block. */
static void pack_quant_panel(const struct matrix *m, uint32_t panel, float *room, uint8_t *out)
{
    const struct gguf_tensor *t = m->from;
    uint32_t blocks = m->in / 32, quant_bytes = panel_quant_bytes(m->kind);
    uint64_t row_bytes = (uint64_t)(m->in / tensor_block_values(t->type)) *
                         tensor_block_bytes(t->type);
    const bool pairs = matrix_has_pairs(m) && !differ_too_much(m, panel);
    const enum panel_scales form = pairs || !matrix_has_pairs(m) ? m->scales :
                                   panel_form_instead(m->scales);
    uint8_t *quants = out, *scales;
    if (form != m->scales) {
        *(float *)(void *)out = PAIR_NOT;
        quants += panel_head_bytes(m->scales);
    }
    scales = quants + (uint64_t)blocks * quant_bytes;
    for (uint32_t o = 0; o < PANEL && panel * PANEL + o < m->out; o++) {
        const uint8_t *row = (const uint8_t *)t->data + (panel * PANEL + o) * row_bytes;
        for (uint32_t b = 0; b < blocks; b++) {
            struct unpacked u;
            unpack(t, row, b, &u);
            uint8_t *at = quants + 4 * o + (pairs ? pair_quants_at(m->scales, b) :
                                                    (uint64_t)b * quant_bytes);
            for (uint32_t line = 0; line < 8; line++) pack_four(m->kind, u.q + 4 * line, line, at);
            if (!pairs) {
                pack_scales(form, &u, b, o, scales);
                continue;
            }
            room[b] = half_to_float(u.d);
            room[blocks + b] = half_to_float(u.m) + 8 * room[b];
        }
        if (pairs) pack_pairs(m, room, room + blocks, o, out);
    }
}

static void pack_float_panel(const struct matrix *m, uint32_t panel, float *row, uint8_t *out)
{
    const struct gguf_tensor *t = m->from;
    uint64_t row_bytes = (uint64_t)(m->in / tensor_block_values(t->type)) *
                         tensor_block_bytes(t->type);
    for (uint32_t o = 0; o < PANEL && panel * PANEL + o < m->out; o++) {
        const uint8_t *at = (const uint8_t *)t->data + (panel * PANEL + o) * row_bytes;
        if (m->kind == PANEL_F32) {
            tensor_dequantize(t->type, at, row, m->in);
            for (uint32_t k = 0; k < m->in; k++) {
                memcpy(out + ((uint64_t)k * PANEL + o) * 4, row + k, 4);
            }
        } else {
            for (uint32_t k = 0; k < m->in; k++) {
                memcpy(out + ((uint64_t)k * PANEL + o) * 2, at + 2 * (uint64_t)k, 2);
            }
        }
    }
}

void layout_pack(const struct layout *l, const struct model *m, void *out, uint32_t part,
                 uint32_t parts)
{
    CHECK(parts > 0 && part < parts);
    if (part == 0) {
        struct image_head head = { .version = IMAGE_VERSION, .isa = l->isa,
                                   .digest = m->digest, .bytes = l->bytes };
        memcpy(head.magic, image_magic, sizeof head.magic);
        memcpy(out, &head, sizeof head);
    }
    uint32_t widest = m->h.dim > m->h.ffn_dim ? m->h.dim : m->h.ffn_dim;
    if (widest < m->h.heads * m->h.head_dim) widest = m->h.heads * m->h.head_dim;
    float *row = mem_array(widest, sizeof *row);
    uint64_t at = 0;
    for (uint32_t i = 0; i < matrix_count(m); i++) {
        const struct matrix *w = matrix_at((struct layout *)l, i);
        for (uint32_t panel = 0; panel < matrix_panels(w); panel++, at++) {
            if (at % parts != part) continue;
            uint8_t *to = (uint8_t *)out + w->offset + panel * w->panel_bytes;
            memset(to, 0, w->panel_bytes);
            if (matrix_is_float(w)) {
                pack_float_panel(w, panel, row, to);
            } else {
                pack_quant_panel(w, panel, row, to);
            }
        }
    }
    free(row);
}

enum err layout_use(struct layout *l, const struct model *m, const void *image, struct why *why)
{
    struct image_head head;
    memcpy(&head, image, sizeof head);
    if (memcmp(head.magic, image_magic, sizeof head.magic) != 0 || head.version != IMAGE_VERSION) {
        return why_set(why, ERR_FORMAT, "packed weights: not an image of this program's version");
    }
    if (!hash_equal(head.digest, m->digest)) {
        return why_set(why, ERR_FORMAT, "packed weights: of another model");
    }
    if (head.isa != l->isa || head.bytes != l->bytes) {
        return why_set(why, ERR_FORMAT, "packed weights: for another instruction set");
    }
    for (uint32_t i = 0; i < matrix_count(m); i++) {
        struct matrix *w = matrix_at(l, i);
        w->data = (const uint8_t *)image + w->offset;
    }
    return OK;
}
