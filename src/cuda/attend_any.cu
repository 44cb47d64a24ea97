/* cuda/attend_any.cu - attention for any head size, any group, F32 too: the exact path, and what
 * the tensor-core kernels (cuda/attend.cu) do not take.
 *
 * A block is one token and one query head.  It walks the sequence in tiles upwards, a warp a key,
 * then a thread a dimension; nothing depends on how the prompt was cut.
 */
#include "cuda/device.h"

enum { KEYS = 128, HEAD_MAX = 256, WARPS = KEYS / 32 };

struct walk {
    float most, sum, out[HEAD_MAX / KEYS];
};

DEVICE float block_max(float v, float *part)
{
#pragma unroll
    for (int i = 16; i; i >>= 1) v = fmaxf(v, __shfl_xor_sync(FULL_WARP, v, i));
    if ((threadIdx.x & 31) == 0) part[threadIdx.x >> 5] = v;
    __syncthreads();
    v = part[0];
#pragma unroll
    for (int i = 1; i < WARPS; i++) v = fmaxf(v, part[i]);
    return v;
}

/* One key's score, by a warp; the same in every lane. */
DEVICE float score(const attend_call &c, const float *query, const int32_t *blocks, int head,
                   int position)
{
    int place = position & ((1 << c.kv.token_shift) - 1);
    const uint8_t *block = kv_block(c.kv, blocks[position >> c.kv.token_shift]);
    int64_t at = kv_index(c.kv, false, head, place);
    float sum = 0;
    for (int d = threadIdx.x & 31; d < c.kv.head_dim; d += 32)
        sum = fmaf(query[d], kv_load(c.kv, block, at + d), sum);
#pragma unroll
    for (int i = 16; i; i >>= 1) sum += __shfl_xor_sync(FULL_WARP, sum, i);
    return sum * c.scale;
}

/* weight (KEYS): of the tile's positions, of which `count` are seen. */
DEVICE void add_values(const attend_call &c, const float *weight, const int32_t *blocks, int head,
                       int first, int count, walk &w)
{
    for (int t = 0; t < count; t++) {
        int position = first + t, place = position & ((1 << c.kv.token_shift) - 1);
        const uint8_t *block = kv_block(c.kv, blocks[position >> c.kv.token_shift]);
        int64_t at = kv_index(c.kv, true, head, place);
        w.sum += weight[t];
#pragma unroll
        for (int i = 0; i < HEAD_MAX / KEYS; i++) {
            int d = threadIdx.x + i * KEYS;
            if (d < c.kv.head_dim)
                w.out[i] = fmaf(weight[t], kv_load(c.kv, block, at + d), w.out[i]);
        }
    }
}

static __global__ void __launch_bounds__(KEYS) attend_any(const attend_call c)
{
    __shared__ float query[HEAD_MAX], weight[KEYS], part[WARPS];
    const attend_item item = c.items[blockIdx.x];
    if (item.count == 0) return;
    int head = blockIdx.y, size = c.kv.head_dim, kv_head = head / (c.heads / c.kv.kv_heads);
    const int32_t *blocks = c.tables + item.table;
    int64_t q_at = ((int64_t)item.row * c.heads + head) * size;
    for (int d = threadIdx.x; d < size; d += KEYS)
        query[d] = c.act_type == ACT_F32 ? ((const float *)c.q)[q_at + d]
                                         : f16_to_float(((const uint16_t *)c.q)[q_at + d]);
    __syncthreads();
    walk w = { -INFINITY, 0, { 0 } };
    for (int first = 0; first <= item.first; first += KEYS) {
        int count = min(KEYS, item.first + 1 - first);
        for (int k = threadIdx.x >> 5; k < count; k += WARPS) {
            float one = score(c, query, blocks, kv_head, first + k);
            if ((threadIdx.x & 31) == 0) weight[k] = one;
        }
        __syncthreads();
        float s = (int)threadIdx.x < count ? weight[threadIdx.x] : -INFINITY;
        float most = fmaxf(w.most, block_max(s, part)), shrink = power2(w.most - most);
        weight[threadIdx.x] = power2(s - most);
        w.most = most;
        w.sum *= shrink;
#pragma unroll
        for (int i = 0; i < HEAD_MAX / KEYS; i++) w.out[i] *= shrink;
        __syncthreads();
        add_values(c, weight, blocks, kv_head, first, count, w);
        __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < HEAD_MAX / KEYS; i++) {
        int d = threadIdx.x + i * KEYS;
        if (d >= size) continue;
        int64_t at = item.row * c.out_stride + head * size + d;
        if (c.act_type == ACT_F32)
            ((float *)c.out)[at] = w.out[i] / w.sum;
        else
            ((uint16_t *)c.out)[at] = (uint16_t)pack_f16(w.out[i] / w.sum, 0);
    }
}

extern "C" cudaError_t k_attend_any(const struct attend_call *c, int items, cudaStream_t stream)
{
    attend_any<<<dim3(items, c->heads), KEYS, 0, stream>>>(*c);
    return cudaGetLastError();
}
