/* engine/cpu/plain.c - the oracle: float arithmetic in simple loops, no special instructions.
 *
 * Loops run over independent outputs inside, so the compiler may use vectors without changing any
 * sum's order.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine/cpu/kernels.h"
#include "model/quant.h"

static void norm(const float *x, const float *weight, float eps, uint32_t n, float *out)
{
    double sum = 0;
    for (uint32_t i = 0; i < n; i++) sum += (double)x[i] * x[i];
    float inverse = (float)(1 / sqrt(sum / n + (double)eps));
    for (uint32_t i = 0; i < n; i++) out[i] = x[i] * inverse * weight[i];
}

static void scale(const float *x, float by, uint32_t n, float *out)
{
    for (uint32_t i = 0; i < n; i++) out[i] = x[i] * by;
}

static void swiglu(const float *gate, const float *up, uint32_t n, float *out)
{
    for (uint32_t i = 0; i < n; i++) out[i] = gate[i] / (1 + expf(-gate[i])) * up[i];
}

static void rotate(float *x, uint32_t heads, const float *cosines, const float *sines,
                   uint32_t dims, uint32_t size, bool pairs, float scale)
{
    uint32_t apart = pairs ? 1 : dims / 2;
    for (; heads > 0; heads--, x += size) {
        for (uint32_t i = 0; i < dims; i += 2) {
            uint32_t p = pairs ? i : i / 2, q = p + apart;
            float a = x[p], b = x[q];
            x[p] = a * cosines[p] + b * sines[p];
            x[q] = b * cosines[q] + a * sines[q];
        }
        for (uint32_t i = 0; i < size; i++) x[i] *= scale;
    }
}

static void mix(float *x, uint32_t n)
{
    uint32_t part = n & -n;
    float norm = 1 / sqrtf((float)part);
    for (uint32_t step = 1; step < part; step *= 2) {
        for (uint32_t i = 0; i < n; i++) {
            if (i & step) continue;
            float a = x[i], b = x[i + step];
            x[i] = a + b;
            x[i + step] = a - b;
        }
    }
    for (uint32_t i = 0; i < n; i++) x[i] *= norm;
}

static void to_half(const float *x, uint32_t n, uint16_t *out)
{
    for (uint32_t i = 0; i < n; i++) {
        out[i] = float_to_half(fabsf(x[i]) > HALF_MOST ? copysignf(HALF_MOST, x[i]) : x[i]);
    }
}

/* Sixteen lanes side by side, each with its own sum; aligned only as floats are. */
typedef float panel_lanes __attribute__((vector_size(4 * PANEL), aligned(4), may_alias));

/* Four rows of one panel, two at a time (so many sums fit the registers). */
static void panel_rows(const float *w, uint32_t k, const float *const x[4], float acc[4][PANEL])
{
    for (int r = 0; r < 4; r += 2) {
        panel_lanes a = { 0 }, b = { 0 };
        for (uint64_t i = 0; i < k; i++) {
            panel_lanes weights = *(const panel_lanes *)(w + i * PANEL);
            a += x[r][i] * weights;
            b += x[r + 1][i] * weights;
        }
        memcpy(acc[r], &a, sizeof a);
        memcpy(acc[r + 1], &b, sizeof b);
    }
}

static void gemm(const struct matrix *m, const struct acts *a, uint32_t row0, uint32_t rows,
                 uint32_t panel0, uint32_t panels, float *out, uint64_t stride, bool add)
{
    CHECK(m->kind == PANEL_F32);
    for (uint32_t p = 0; p < panels; p++) {
        const float *w = (const float *)(m->data + (panel0 + p) * m->panel_bytes);
        uint32_t columns = m->out - (panel0 + p) * PANEL;
        if (columns > PANEL) columns = PANEL;
        for (uint32_t r = 0; r < rows; r += 4) {
            const float *x[4];
            float acc[4][PANEL];
            for (uint32_t i = 0; i < 4; i++) {
                x[i] = a->f + (uint64_t)(row0 + (r + i < rows ? r + i : r)) * a->k;
            }
            panel_rows(w, m->in, x, acc);
            for (uint32_t i = 0; i < 4 && r + i < rows; i++) {
                float *to = out + (r + i) * stride + (uint64_t)p * PANEL;
                for (uint32_t o = 0; o < columns; o++) to[o] = add ? to[o] + acc[i][o] : acc[i][o];
            }
        }
    }
}

static float fp8_value(uint8_t code)
{
    return half_to_float((uint16_t)((code & 0x7f) << 7 | (code & 0x80) << 8));
}

static float code_value(enum kv_type type, uint8_t code)
{
    return type == KV_INT8 ? (float)(int8_t)code : fp8_value(code);
}

static uint8_t code_of(enum kv_type type, float y)
{
    if (type == KV_INT8) return (uint8_t)(int8_t)lrintf(fminf(fmaxf(y, -127), 127));
    uint32_t half = float_to_half(y), size = half & 0x7fff;
    size = (size + 0x3f + (size >> 7 & 1)) >> 7;
    return (uint8_t)((size < 0x7e ? size : 0x7e) | (half >> 8 & 0x80));
}

static void to_codes(enum kv_type type, const float *x, uint32_t n, float inverse, uint8_t *out)
{
    for (uint32_t i = 0; i < n; i++) out[i] = code_of(type, x[i] * inverse);
}

static const float fp8_scales[] = FP8_SCALE_LIST, fp8_inverses[] = FP8_INVERSE_LIST;

static int fp8_best_scale(const float *x, uint32_t n, float inverse)
{
    int best = 0;
    float least = INFINITY;
    for (int s = 0; s < FP8_SCALES; s++) {
        float sum = 0;
        for (uint32_t i = 0; i < n; i++) {
            float y = x[i] * (inverse * fp8_inverses[s]);
            float error = (fp8_value(code_of(KV_FP8, y)) - y) * fp8_scales[s];
            sum += error * error;
        }
        if (sum < least) best = s;
        least = sum < least ? sum : least;
    }
    return best;
}

/* The code on the other side of y; `code` itself when there is none. */
static uint8_t other_code(enum kv_type type, uint8_t code, float y)
{
    float v = code_value(type, code);
    if (type == KV_INT8) {
        int other = (int8_t)code + (v > y ? -1 : 1);
        return abs(other) > 127 ? code : (uint8_t)other;
    }
    uint32_t size = code & 0x7f, other = fabsf(y) > fabsf(v) ? size + 1 : size - 1;
    return size <= 8 || other > 0x7e ? code : (uint8_t)(other | (code & 0x80));
}

/* Changes, one after another, the element whose other code helps most: see simd_kv.h. */
static void shape(enum kv_type type, const float *x, uint32_t n, float inverse,
                  const float *queries, uint32_t count, uint8_t *codes)
{
    float seen[KEY_QUERIES_MAX] = { 0 }, unseen = 0;
    uint8_t others[HEAD_DIM_MAX];
    for (uint32_t i = 0; i < n; i++) {
        float error = code_value(type, codes[i]) - x[i] * inverse;
        others[i] = other_code(type, codes[i], x[i] * inverse);
        for (uint32_t h = 0; h < count; h++) {
            seen[h] += queries[h * n + i] * error;
            unseen += KEY_UNSEEN * queries[h * n + i] * queries[h * n + i] / (float)n;
        }
    }
    for (uint32_t flips = 0; flips < n / KEY_FLIP_EVERY; flips++) {
        float least = -1e-6f * unseen, change = 0;
        uint32_t best = n;
        for (uint32_t i = 0; i < n; i++) {
            float v = code_value(type, codes[i]), to = code_value(type, others[i]) - v;
            float gain = unseen * to * (2 * (v - x[i] * inverse) + to);
            for (uint32_t h = 0; h < count; h++) {
                float q = queries[h * n + i] * to;
                gain += q * (2 * seen[h] + q);
            }
            if (!(gain < least)) continue;
            least = gain;
            best = i;
            change = to;
        }
        if (best == n) return;
        for (uint32_t h = 0; h < count; h++) seen[h] += queries[h * n + best] * change;
        uint8_t was = codes[best];
        codes[best] = others[best];
        others[best] = was;
    }
}

static float to_byte(enum kv_type type, const float *x, uint32_t n, const float *queries,
                     uint32_t count, uint8_t *out)
{
    float amax = 0, most = type == KV_INT8 ? KV_INT8_MOST : KV_FP8_MOST;
    for (uint32_t i = 0; i < n; i++) amax = fabsf(x[i]) > amax ? fabsf(x[i]) : amax;
    float inverse = amax > KV_BYTE_LEAST ? most / amax : 0;
    int scale = type == KV_FP8 ? fp8_best_scale(x, n, inverse) : 0;
    inverse *= fp8_inverses[scale];
    to_codes(type, x, n, inverse, out);
    if (inverse > 0) shape(type, x, n, inverse, queries, count, out);
    return inverse > 0 ? amax / most * fp8_scales[scale] : 0;
}

static float element(const struct kv_view *kv, const uint8_t *base, uint64_t i)
{
    float f;
    uint16_t h;
    switch (kv->type) {
    case KV_F32: memcpy(&f, base + 4 * i, 4); return f;
    case KV_F16: memcpy(&h, base + 2 * i, 2); return half_to_float(h);
    default: return code_value(kv->type, base[i]);
    }
}

/* A position's key (which 0) or value (1) as floats. */
static void fetch(const struct kv_view *kv, uint32_t position, uint32_t which, float *out)
{
    uint32_t in = position % kv->block_tokens, size = kv->head_dim;
    const uint8_t *block = kv->pool +
                           (uint64_t)kv->blocks[position / kv->block_tokens] * kv->block_stride;
    float scale = 1;
    if (kv_is_scaled(kv->type)) {
        uint64_t scales = 2ull * kv->block_tokens * size;
        memcpy(&scale, block + scales + 4ull * (which * kv->block_tokens + in), 4);
    }
    for (uint32_t s = 0; s < size; s++) {
        uint64_t at = which ? kv_value_at(kv, in, s) : kv_key_at(kv, in, s);
        out[s] = element(kv, block, at) * scale;
    }
}

static float dot(const float *a, const float *b, uint32_t n)
{
    float lanes[8] = { 0 }, sum = 0;
    uint32_t i = 0;
    for (; i + 8 <= n; i += 8) {
        for (int j = 0; j < 8; j++) lanes[j] += a[i + (uint32_t)j] * b[i + (uint32_t)j];
    }
    for (; i < n; i++) sum += a[i] * b[i];
    for (int j = 0; j < 8; j++) sum += lanes[j];
    return sum;
}

/* Exponentials of a query's scores, in place. */
static void soften(float *scores, uint32_t visible, struct partial *out)
{
    float max = -INFINITY, sum = 0;
    for (uint32_t t = 0; t < visible; t++) max = scores[t] > max ? scores[t] : max;
    for (uint32_t t = 0; t < visible; t++) sum += scores[t] = expf(scores[t] - max);
    out->max = max;
    out->sum = sum;
}

static void tile(const struct kv_view *kv, uint32_t tile_index, const float *const *queries,
                 const uint32_t *visible, uint32_t count, struct partial *out, float *room)
{
    float (*scores)[KV_TILE_TOKENS] = (void *)room, kept[HEAD_DIM_MAX];
    uint32_t longest = 0, size = kv->head_dim;
    for (uint32_t i = 0; i < count; i++) longest = visible[i] > longest ? visible[i] : longest;
    for (uint32_t t = 0; t < longest; t++) {
        fetch(kv, tile_index * KV_TILE_TOKENS + t, 0, kept);
        for (uint32_t i = 0; i < count; i++) scores[i][t] = dot(queries[i], kept, size);
    }
    for (uint32_t i = 0; i < count; i++) {
        soften(scores[i], visible[i], &out[i]);
        memset(out[i].out, 0, size * sizeof(float));
    }
    for (uint32_t t = 0; t < longest; t++) {
        fetch(kv, tile_index * KV_TILE_TOKENS + t, 1, kept);
        for (uint32_t i = 0; i < count; i++) {
            float p = t < visible[i] ? scores[i][t] : 0;
            for (uint32_t s = 0; s < size; s++) out[i].out[s] += p * kept[s];
        }
    }
}

static void merge(struct partial *into, const struct partial *later, uint32_t head_dim)
{
    float max = into->max > later->max ? into->max : later->max;
    float a = expf(into->max - max), b = expf(later->max - max);
    into->max = max;
    into->sum = into->sum * a + later->sum * b;
    for (uint32_t s = 0; s < head_dim; s++) into->out[s] = into->out[s] * a + later->out[s] * b;
}

const struct kernels kernels_plain = {
    .norm = norm, .swiglu = swiglu, .scale = scale, .rotate = rotate, .mix = mix,
    .to_half = to_half, .to_byte = to_byte,
    .gemm = gemm, .tile = tile, .merge = merge,
};
