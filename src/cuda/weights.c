/* cuda/weights.c - every matrix and vector of the model: its type on the device, its place in the
 * arena, and its upload through pinned memory.
 *
 * Blocks of Q8_0, Q4_0 and Q4_1 stay blocks, F16 stays F16, all else becomes F16: exact for BF16
 * (but for values below 6e-5, which keep an absolute error of 3e-8).  With F32 activations all is
 * F32.  Tensors that are one product (q, k and v; gate and up) have one type: F16 when they differ.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/mem.h"
#include "cuda/cuda.h"
#include "model/quant.h"

static int weight_type(const struct cuda *u, enum tensor_type t)
{
    if (u->act == ACT_F32) return WEIGHT_F32;
    if (t == TENSOR_Q8_0) return WEIGHT_Q8_0;
    if (t == TENSOR_Q4_0) return WEIGHT_Q4_0;
    if (t == TENSOR_Q4_1) return WEIGHT_Q4_1;
    return WEIGHT_F16;
}

/* Adds a tensor's rows; the first decides the type unless the next differs. */
static void matrix_add(const struct cuda *u, struct matrix *m, const struct gguf_tensor *t,
                       bool paired_heads)
{
    const struct hparams *h = &u->model->h;
    struct source *s = &m->from;
    int type = weight_type(u, t->type);
    m->w.type = s->count && m->w.type != type ? (int)WEIGHT_F16 : type;
    s->t[s->count] = t;
    s->rows[s->count] = (uint32_t)t->dims[1];
    s->head_dim = h->head_dim;
    s->rope_dims = h->rope_dims;
    s->pair_heads[s->count++] = paired_heads && h->rope == ROPE_HALVES;
    m->out += (uint32_t)t->dims[1];
    m->in = (uint32_t)t->dims[0];
}

static void matrix_carve(struct cuda *u, struct matrix *m)
{
    struct weights *w = &m->w;
    w->out = (int)pad_to(m->out, GEMM_PAD_OUT);
    w->in = (int)pad_to(m->in, GEMM_PAD_IN);
    w->q = arena_take(&u->arena, packed_q_bytes(w, (uint32_t)w->out));
    uint64_t plane = packed_scale_bytes(w, (uint32_t)w->out);
    if (plane) w->scales = arena_take(&u->arena, plane);
    if (w->type == WEIGHT_Q4_1) w->mins = arena_take(&u->arena, plane);
}

static void single_carve(struct cuda *u, struct matrix *m, const struct gguf_tensor *t)
{
    matrix_add(u, m, t, false);
    matrix_carve(u, m);
}

static float *floats_carve(struct cuda *u, uint32_t count)
{
    return arena_take(&u->arena, pad_to(count, 64) * sizeof(float));
}

static void layer_carve(struct cuda *u, struct layer *y, const struct layer_weights *w)
{
    const struct hparams *h = &u->model->h;
    memset(y, 0, sizeof *y);
    matrix_add(u, &y->qkv, w->q, true);
    matrix_add(u, &y->qkv, w->k, true);
    matrix_add(u, &y->qkv, w->v, false);
    matrix_carve(u, &y->qkv);
    single_carve(u, &y->o, w->o);
    y->gate_up.from.order = SOURCE_PAIRED;
    matrix_add(u, &y->gate_up, w->gate, false);
    matrix_add(u, &y->gate_up, w->up, false);
    matrix_carve(u, &y->gate_up);
    single_carve(u, &y->down, w->down);
    y->attn_norm = floats_carve(u, h->dim);
    y->ffn_norm = floats_carve(u, h->dim);
    bool bias = w->q_bias || w->k_bias || w->v_bias;
    if (bias) y->qkv_bias = floats_carve(u, (h->heads + 2 * h->kv_heads) * h->head_dim);
    if (w->o_bias) y->o_bias = floats_carve(u, h->dim);
    if (w->q_norm) y->q_norm = floats_carve(u, h->head_dim);
    if (w->k_norm) y->k_norm = floats_carve(u, h->head_dim);
}

void weights_carve(struct cuda *u)
{
    const struct model *m = u->model;
    memset(&u->embedding, 0, sizeof u->embedding);
    memset(&u->head, 0, sizeof u->head);
    single_carve(u, &u->embedding, m->embedding);
    if (m->output == m->embedding)
        u->head = u->embedding;
    else
        single_carve(u, &u->head, m->output);
    for (uint32_t i = 0; i < m->h.layers; i++) layer_carve(u, &u->layers[i], &m->layers[i]);
    u->output_norm = floats_carve(u, m->h.dim);
    u->rope_table = arena_take(&u->arena, (uint64_t)u->c.seq_tokens_max * m->h.rope_dims *
                                              sizeof(float));
}

/* --- upload ---------------------------------------------------------------------------------- */

/* Through the pinned buffer, which is free again when this returns. */
static enum err send(struct cuda *u, void *to, const void *from, uint64_t bytes, struct why *why)
{
    for (uint64_t done = 0; done < bytes; done += STAGE_BYTES) {
        uint64_t some = bytes - done < STAGE_BYTES ? bytes - done : STAGE_BYTES;
        memcpy(u->stage_host, (const uint8_t *)from + done, some);
        cudaError_t e = cudaMemcpyAsync((uint8_t *)to + done, u->stage_host, some,
                                        cudaMemcpyHostToDevice, u->compute);
        if (!e) e = cudaStreamSynchronize(u->compute);
        if (e) return why_set(why, ERR_IO, "cuda: sending weights: %s", cudaGetErrorString(e));
    }
    return OK;
}

/* Stripes of rows, each about the size of the pinned buffer. */
static enum err matrix_send(struct cuda *u, const struct matrix *m, struct why *why)
{
    const struct weights *w = &m->w;
    uint64_t per_8 = packed_q_bytes(w, 8), plane_8 = packed_scale_bytes(w, 8);
    uint32_t stripe = (uint32_t)(STAGE_BYTES / per_8) * 8;
    if (stripe < 8) stripe = 8;
    uint8_t *q = mem_array(stripe / 8, per_8);
    uint16_t *scales = mem_array(stripe / 8, plane_8 + 1), *mins = mem_array(stripe / 8,
                                                                           plane_8 + 1);
    enum err e = OK;
    for (uint32_t row = 0; !e && row < (uint32_t)w->out; row += stripe) {
        uint32_t rows = (uint32_t)w->out - row < stripe ? (uint32_t)w->out - row : stripe;
        uint64_t plane_at = row / 8 * plane_8, plane = rows / 8 * plane_8;
        pack_rows(m, row, rows, q, scales, mins);
        e = send(u, (uint8_t *)(uintptr_t)w->q + row / 8 * per_8, q, rows / 8 * per_8, why);
        if (!e && plane)
            e = send(u, (uint8_t *)(uintptr_t)w->scales + plane_at, scales, plane, why);
        if (!e && w->mins) e = send(u, (uint8_t *)(uintptr_t)w->mins + plane_at, mins, plane, why);
    }
    free(q);
    free(scales);
    free(mins);
    return e;
}

/* `at` in `out` gets the tensor's values, heads' halves as pairs if asked. */
static void floats_put(const struct cuda *u, const struct gguf_tensor *t, bool pairs, float *out)
{
    const struct hparams *h = &u->model->h;
    if (!t) return;
    uint32_t n = (uint32_t)t->dims[0], half = h->rope_dims / 2;
    float *values = mem_array(n, sizeof *values);
    tensor_dequantize(t->type, t->data, values, n);
    for (uint32_t i = 0; i < n; i++) {
        uint32_t d = i % h->head_dim;
        bool moved = pairs && h->rope == ROPE_HALVES && d < h->rope_dims;
        out[i] = values[moved ? i - d + (d % 2 ? d / 2 + half : d / 2) : i];
    }
    free(values);
}

static enum err vector_send(struct cuda *u, float *to, const struct gguf_tensor *t, bool pairs,
                            struct why *why)
{
    if (!to) return OK;
    uint32_t count = pad_to((uint32_t)t->dims[0], 64);
    float *values = mem_array(count, sizeof *values);
    floats_put(u, t, pairs, values);
    enum err e = send(u, to, values, count * sizeof *values, why);
    free(values);
    return e;
}

static enum err bias_send(struct cuda *u, float *to, const struct layer_weights *w,
                          struct why *why)
{
    const struct hparams *h = &u->model->h;
    uint32_t q = h->heads * h->head_dim, k = h->kv_heads * h->head_dim;
    if (!to) return OK;
    uint32_t count = pad_to(q + 2 * k, 64);
    float *values = mem_array(count, sizeof *values);
    floats_put(u, w->q_bias, true, values);
    floats_put(u, w->k_bias, true, values + q);
    floats_put(u, w->v_bias, false, values + q + k);
    enum err e = send(u, to, values, count * sizeof *values, why);
    free(values);
    return e;
}

static enum err layer_send(struct cuda *u, struct layer *y, const struct layer_weights *w,
                           struct why *why)
{
    enum err e = matrix_send(u, &y->qkv, why);
    if (!e) e = matrix_send(u, &y->o, why);
    if (!e) e = matrix_send(u, &y->gate_up, why);
    if (!e) e = matrix_send(u, &y->down, why);
    if (!e) e = vector_send(u, y->attn_norm, w->attn_norm, false, why);
    if (!e) e = vector_send(u, y->ffn_norm, w->ffn_norm, false, why);
    if (!e) e = bias_send(u, y->qkv_bias, w, why);
    if (!e) e = vector_send(u, y->o_bias, w->o_bias, false, why);
    if (!e) e = vector_send(u, y->q_norm, w->q_norm, true, why);
    if (!e) e = vector_send(u, y->k_norm, w->k_norm, true, why);
    return e;
}

/* Cosines and sines of every position, made as the CPU makes them. */
static enum err rope_send(struct cuda *u, struct why *why)
{
    const struct hparams *h = &u->model->h;
    uint32_t half = h->rope_dims / 2, stripe = 256;
    float *values = mem_array((uint64_t)stripe * h->rope_dims + 1, sizeof *values);
    enum err e = OK;
    for (uint32_t first = 0; !e && half && first < u->c.seq_tokens_max; first += stripe) {
        uint32_t left = u->c.seq_tokens_max - first, count = left < stripe ? left : stripe;
        for (uint32_t p = 0; p < count; p++) {
            for (uint32_t i = 0; i < half; i++) {
                double angle = (double)(first + p) * (double)h->rope_freq[i];
                values[(uint64_t)p * h->rope_dims + 2 * i] = (float)cos(angle);
                values[(uint64_t)p * h->rope_dims + 2 * i + 1] = (float)sin(angle);
            }
        }
        e = send(u, u->rope_table + (uint64_t)first * h->rope_dims, values,
                 (uint64_t)count * h->rope_dims * sizeof *values, why);
    }
    free(values);
    return e;
}

enum err weights_upload(struct cuda *u, struct why *why)
{
    const struct model *m = u->model;
    enum err e = matrix_send(u, &u->embedding, why);
    if (!e && m->output != m->embedding) e = matrix_send(u, &u->head, why);
    for (uint32_t i = 0; !e && i < m->h.layers; i++)
        e = layer_send(u, &u->layers[i], &m->layers[i], why);
    if (!e) e = vector_send(u, u->output_norm, m->output_norm, false, why);
    return e ? e : rope_send(u, why);
}
