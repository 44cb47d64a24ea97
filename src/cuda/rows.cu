/* cuda/rows.cu - kernels over single rows: embedding, RMSNorm, rotation with norms, argmax. */
#include "cuda/blocks.h"

enum { THREADS = 256, WARPS = THREADS / 32 };

/* --- single weights -------------------------------------------------------------------------- */

/* Where input k of row n lies among the packed blocks; cuda/pack.c writes this order. */
DEVICE int64_t packed_index(const weights &w, int n, int k, int *place)
{
    int in_block = k % 32;
    *place = (k / 32 % 2) * 8 + in_block % 8;
    return ((int64_t)(n / 8) * (w.in / 64) + k / 64) * 32 + n % 8 * 4 + in_block / 8;
}

DEVICE float weight_at(const weights &w, int n, int k)
{
    int64_t dense = (int64_t)n * w.in + k;
    if (w.type == WEIGHT_F32) return ((const float *)w.q)[dense];
    if (w.type == WEIGHT_F16) return f16_to_float(((const uint16_t *)w.q)[dense]);
    int place;
    int64_t i = packed_index(w, n, k, &place);
    float d = block_scale(w, w.scales, n, k);
    if (w.type == WEIGHT_Q8_0) return d * (float)((const int8_t *)w.q)[i * 16 + place];
    uint32_t word = ((const uint32_t *)w.q)[i * 2 + place / 8];
    int nibble = word >> (place % 8 / 2 * 4 + place % 2 * 16) & 15;
    if (w.type == WEIGHT_Q4_0) return d * (float)(nibble - 8);
    return d * (float)nibble + block_scale(w, w.mins, n, k);
}

static __global__ void __launch_bounds__(THREADS)
embed(const weights w, const struct row *rows, int dim, float *x)
{
    int id = rows[blockIdx.x].id;
    for (int i = threadIdx.x; i < dim; i += THREADS)
        x[(int64_t)blockIdx.x * dim + i] = weight_at(w, id, i);
}

/* --- RMSNorm --------------------------------------------------------------------------------- */

/* The sum over the block, the same in every thread; one fixed order. */
DEVICE float block_sum(float v)
{
    __shared__ float part[WARPS];
#pragma unroll
    for (int i = 16; i; i >>= 1) v += __shfl_xor_sync(FULL_WARP, v, i);
    if ((threadIdx.x & 31) == 0) part[threadIdx.x >> 5] = v;
    __syncthreads();
    v = 0;
#pragma unroll
    for (int i = 0; i < WARPS; i++) v += part[i];
    return v;
}

static __global__ void __launch_bounds__(THREADS)
norm(const float *x, const float *weight, const int32_t *pick, int dim, float eps, void *out,
     int64_t out_stride, int act_type)
{
    int64_t from = pick ? pick[blockIdx.x] : (int)blockIdx.x;
    const float4 *row = (const float4 *)(x + from * dim);
    float sum = 0;
    for (int i = threadIdx.x; i < dim / 4; i += THREADS) {
        float4 v = row[i];
        sum = fmaf(v.x, v.x, sum), sum = fmaf(v.y, v.y, sum);
        sum = fmaf(v.z, v.z, sum), sum = fmaf(v.w, v.w, sum);
    }
    float inverse = 1 / sqrtf(block_sum(sum) / dim + eps);
    int64_t bytes = act_type == ACT_F32 ? 4 : 2;
    uint8_t *to = (uint8_t *)out + blockIdx.x * out_stride * bytes;
    for (int i = threadIdx.x; i < dim / 4; i += THREADS) {
        float4 v = row[i], w = ((const float4 *)weight)[i];
        v.x = v.x * inverse * w.x, v.y = v.y * inverse * w.y;
        v.z = v.z * inverse * w.z, v.w = v.w * inverse * w.w;
        if (act_type == ACT_F32)
            ((float4 *)to)[i] = v;
        else
            ((uint2 *)to)[i] = make_uint2(pack_f16(v.x, v.y), pack_f16(v.z, v.w));
    }
}

/* --- Qwen3: heads are normed before they are turned ------------------------------------------- */

/* A warp a head of (q, k, v). */
static __global__ void __launch_bounds__(THREADS)
rope_store(const float *qkv, int64_t stride, const float *q_norm, const float *k_norm, float eps,
           const qkv_out out)
{
    int heads = out.heads + 2 * out.kv.kv_heads, size = out.kv.head_dim, lane = threadIdx.x & 31;
    int head = blockIdx.y * WARPS + (threadIdx.x >> 5);
    if (head >= heads) return;
    const float *x = qkv + blockIdx.x * stride + head * size;
    const float *weight = head < out.heads ? q_norm : k_norm;
    if (head >= out.heads + out.kv.kv_heads) weight = NULL;
    float sum = 0;
    for (int i = lane; i < size; i += 32) sum = fmaf(x[i], x[i], sum);
#pragma unroll
    for (int i = 16; i; i >>= 1) sum += __shfl_xor_sync(FULL_WARP, sum, i);
    float inverse = 1 / sqrtf(sum / size + eps);
    for (int i = 2 * lane; i < size; i += 64) {
        float a = x[i], b = x[i + 1];
        if (weight) a = a * inverse * weight[i], b = b * inverse * weight[i + 1];
        store_qkv(out, blockIdx.x, head * size + i, true, a, b);
    }
}

/* --- argmax ---------------------------------------------------------------------------------- */

struct best {
    float logit;
    int id;
};

DEVICE struct best better(struct best a, struct best b)
{
    return b.logit > a.logit || (b.logit == a.logit && b.id < a.id) ? b : a;
}

DEVICE struct best warp_best(struct best own)
{
#pragma unroll
    for (int i = 16; i; i >>= 1) {
        struct best other;
        other.logit = __shfl_xor_sync(FULL_WARP, own.logit, i);
        other.id = __shfl_xor_sync(FULL_WARP, own.id, i);
        own = better(own, other);
    }
    return own;
}

static __global__ void __launch_bounds__(THREADS)
argmax(const float *logits, int64_t stride, int vocab, int32_t *out)
{
    __shared__ float part_logit[WARPS];
    __shared__ int part_id[WARPS];
    const float *row = logits + blockIdx.x * stride;
    struct best own = { -INFINITY, 0 };
    for (int i = threadIdx.x; i < vocab; i += THREADS)
        if (row[i] > own.logit) own.logit = row[i], own.id = i;
    own = warp_best(own);
    if ((threadIdx.x & 31) == 0) {
        part_logit[threadIdx.x >> 5] = own.logit;
        part_id[threadIdx.x >> 5] = own.id;
    }
    __syncthreads();
    if (threadIdx.x) return;
    for (int i = 1; i < WARPS; i++) {
        struct best other = { part_logit[i], part_id[i] };
        own = better(own, other);
    }
    out[blockIdx.x] = own.id;
}

/* --- launchers ------------------------------------------------------------------------------- */

extern "C" cudaError_t k_embed(const struct weights *w, const struct row *rows, int count, int dim,
                               float *x, cudaStream_t stream)
{
    embed<<<count, THREADS, 0, stream>>>(*w, rows, dim, x);
    return cudaGetLastError();
}

extern "C" cudaError_t k_norm(const float *x, const float *weight, const int32_t *pick, int count,
                              int dim, float eps, void *out, int64_t out_stride, int act_type,
                              cudaStream_t stream)
{
    norm<<<count, THREADS, 0, stream>>>(x, weight, pick, dim, eps, out, out_stride, act_type);
    return cudaGetLastError();
}

extern "C" cudaError_t k_rope_store(float *qkv, int64_t stride, int count, const float *q_norm,
                                    const float *k_norm, float eps, const struct qkv_out *out,
                                    cudaStream_t stream)
{
    int heads = out->heads + 2 * out->kv.kv_heads;
    rope_store<<<dim3(count, (heads + WARPS - 1) / WARPS), THREADS, 0, stream>>>(
        qkv, stride, q_norm, k_norm, eps, *out);
    return cudaGetLastError();
}

extern "C" cudaError_t k_argmax(const float *logits, int64_t stride, int vocab, int count,
                                int32_t *out, cudaStream_t stream)
{
    argmax<<<count, THREADS, 0, stream>>>(logits, stride, vocab, out);
    return cudaGetLastError();
}
