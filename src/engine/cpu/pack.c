/* engine/cpu/pack.c - see pack.h. */
#include "engine/cpu/pack.h"

#include <stdlib.h>
#include <string.h>

#include "common/mem.h"
#include "engine/cpu/kernels.h"
#include "model/quant.h"

struct image_head {
    char magic[8];
    uint32_t version, plain;
    struct hash128 digest;
    uint64_t bytes;
    uint8_t pad[24];
};
_Static_assert(sizeof(struct image_head) == 64, "panels stay aligned");

static const char image_magic[8] = "rspanel";
enum { IMAGE_VERSION = 1 };

static uint64_t round_up(uint64_t n, uint64_t to)
{
    return (n + to - 1) / to * to;
}

bool layout_simd_fits(const struct hparams *h)
{
    return h->dim % 32 == 0 && h->ffn_dim % 32 == 0 && h->head_dim % 16 == 0 &&
           h->heads * h->head_dim % 32 == 0 && h->head_dim <= HEAD_DIM_MAX;
}

/* A format as panels; Q6_K, whose scales change every 16 values, and the K types' odd widths that
 * are not whole blocks become floats. */
static void choose_kind(struct matrix *m, enum tensor_type type)
{
    m->kind = PANEL_F32;
    switch (type) {
    case TENSOR_Q4_0: m->kind = PANEL_Q4, m->zero = 8, m->half_scales = true; break;
    case TENSOR_Q4_1: m->kind = PANEL_Q4, m->minimums = m->half_scales = true; break;
    case TENSOR_Q5_0: m->kind = PANEL_Q8, m->zero = 16, m->half_scales = true; break;
    case TENSOR_Q5_1: m->kind = PANEL_Q8, m->minimums = m->half_scales = true; break;
    case TENSOR_Q8_0: m->kind = PANEL_Q8, m->zero = 128, m->half_scales = true; break;
    case TENSOR_Q4_K: m->kind = PANEL_Q4, m->minimums = true; break;
    case TENSOR_Q5_K: m->kind = PANEL_Q8, m->minimums = true; break;
    case TENSOR_F16: m->kind = PANEL_F16; break;
    case TENSOR_BF16: m->kind = PANEL_BF16; break;
    case TENSOR_F32:
    case TENSOR_Q6_K: break;
    }
}

static uint32_t quant_bytes(const struct matrix *m)         /* of a block of a panel */
{
    return PANEL * 32 / (m->kind == PANEL_Q4 ? 2 : 1);
}

static uint32_t scale_bytes(const struct matrix *m)
{
    return PANEL * (m->half_scales ? 2 : 4) * (m->minimums ? 2 : 1);
}

static void place(struct layout *l, struct matrix *m, const struct gguf_tensor *t)
{
    *m = (struct matrix){ .out = (uint32_t)t->dims[1], .in = (uint32_t)t->dims[0], .from = t,
                          .offset = l->bytes, .kind = PANEL_F32 };
    if (!l->plain) choose_kind(m, t->type);
    if (m->kind == PANEL_F32) {
        m->panel_bytes = (uint64_t)m->in * PANEL * 4;
    } else if (matrix_is_float(m)) {
        m->panel_bytes = (uint64_t)m->in * PANEL * 2;
    } else {
        m->panel_bytes = (uint64_t)(m->in / 32) * (quant_bytes(m) + scale_bytes(m));
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

void layout_make(struct layout *l, const struct model *m, bool plain)
{
    memset(l, 0, sizeof *l);
    l->plain = plain;
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

/* Values 32*b .. of a row as whole numbers with scale and minimum; halves are left as halves. */
struct unpacked {
    uint8_t q[32];
    float d, m;
    uint16_t half_d, half_m;
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

static void unpack_k(const struct gguf_tensor *t, const uint8_t *row, uint32_t b,
                     struct unpacked *u)
{
    struct block_q5_k k;               /* Q4_K is the same without `high` */
    int part = (int)(b % 8);
    memset(k.high, 0, sizeof k.high);
    if (t->type == TENSOR_Q5_K) {
        memcpy(&k, row + b / 8 * sizeof k, sizeof k);
    } else {
        struct block_q4_k k4;
        memcpy(&k4, row + b / 8 * sizeof k4, sizeof k4);
        k.d = k4.d, k.dmin = k4.dmin;
        memcpy(k.scales, k4.scales, sizeof k.scales);
        memcpy(k.q, k4.q, sizeof k.q);
    }
    unsigned scale, min;
    quant_scale_min_k4(k.scales, part, &scale, &min);
    u->d = half_to_float(k.d) * (float)scale;
    u->m = -(half_to_float(k.dmin) * (float)min);
    for (int i = 0; i < 32; i++) {
        u->q[i] = (uint8_t)((k.q[part / 2 * 32 + i] >> part % 2 * 4 & 15) |
                            (k.high[i] >> part & 1) << 4);
    }
}

static void unpack_q8(const uint8_t *row, uint32_t b, struct unpacked *u)
{
    struct block_q8_0 x;
    memcpy(&x, row + b * sizeof x, sizeof x);
    u->half_d = x.d;
    for (int i = 0; i < 32; i++) u->q[i] = (uint8_t)(x.q[i] + 128);
}

static void unpack(const struct gguf_tensor *t, const uint8_t *row, uint32_t b,
                   struct unpacked *u)
{
    *u = (struct unpacked){ .d = 0 };
    const uint8_t *at = row + (uint64_t)b * tensor_block_bytes(t->type);
    switch (t->type) {
    case TENSOR_Q4_0:
        memcpy(&u->half_d, at, 2);
        unpack_nibbles(at + 2, u->q);
        break;
    case TENSOR_Q4_1:
        memcpy(&u->half_d, at, 2);
        memcpy(&u->half_m, at + 2, 2);
        unpack_nibbles(at + 4, u->q);
        break;
    case TENSOR_Q5_0:
        memcpy(&u->half_d, at, 2);
        unpack_nibbles(at + 6, u->q);
        unpack_fifth(at + 2, u->q);
        break;
    case TENSOR_Q5_1:
        memcpy(&u->half_d, at, 2);
        memcpy(&u->half_m, at + 2, 2);
        unpack_nibbles(at + 8, u->q);
        unpack_fifth(at + 4, u->q);
        break;
    case TENSOR_Q8_0: unpack_q8(row, b, u); break;
    case TENSOR_Q4_K:
    case TENSOR_Q5_K: unpack_k(t, row, b, u); break;
    default: CHECK(!"a type with quants");
    }
}

static void pack_quants(const struct matrix *m, const struct unpacked *u, uint32_t o, uint8_t *out)
{
    for (uint32_t j = 0; j < 8; j++) {
        for (uint32_t i = 0; i < 4; i++) {
            uint8_t value = u->q[4 * j + i];
            if (m->kind == PANEL_Q8) {
                out[(j * PANEL + o) * 4 + i] = value;
            } else {
                out[(j % 4 * PANEL + o) * 4 + i] |= (uint8_t)(j < 4 ? value : value << 4);
            }
        }
    }
}

static void pack_scales(const struct matrix *m, const struct unpacked *u, uint32_t o, uint8_t *out)
{
    if (m->half_scales) {
        memcpy(out + 2 * o, &u->half_d, 2);
        if (m->minimums) memcpy(out + 2 * (PANEL + o), &u->half_m, 2);
    } else {
        memcpy(out + 4 * o, &u->d, 4);
        if (m->minimums) memcpy(out + 4 * (PANEL + o), &u->m, 4);
    }
}

static void pack_quant_panel(const struct matrix *m, uint32_t panel, uint8_t *out)
{
    const struct gguf_tensor *t = m->from;
    uint32_t blocks = m->in / 32;
    uint64_t row_bytes = (uint64_t)(m->in / tensor_block_values(t->type)) *
                         tensor_block_bytes(t->type);
    uint8_t *scales = out + (uint64_t)blocks * quant_bytes(m);
    for (uint32_t o = 0; o < PANEL && panel * PANEL + o < m->out; o++) {
        const uint8_t *row = (const uint8_t *)t->data + (panel * PANEL + o) * row_bytes;
        for (uint32_t b = 0; b < blocks; b++) {
            struct unpacked u;
            unpack(t, row, b, &u);
            pack_quants(m, &u, o, out + (uint64_t)b * quant_bytes(m));
            pack_scales(m, &u, o, scales + (uint64_t)b * scale_bytes(m));
        }
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
        struct image_head head = { .version = IMAGE_VERSION, .plain = l->plain,
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
                pack_quant_panel(w, panel, to);
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
    if (head.plain != l->plain || head.bytes != l->bytes) {
        return why_set(why, ERR_FORMAT, "packed weights: for another instruction set");
    }
    for (uint32_t i = 0; i < matrix_count(m); i++) {
        struct matrix *w = matrix_at(l, i);
        w->data = (const uint8_t *)image + w->offset;
    }
    return OK;
}
