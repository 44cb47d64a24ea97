/* cuda/gemm.cu - products with weights in F16 or as the file has them: Q8_0, Q4_0, Q4_1; and F32.
 *
 * out (rows, columns) = in (rows, k) * W (columns, k) on the tensor cores.  Blocks of 32 weights
 * stay integers, which F16 holds exactly; their scale is applied to the block's F32 sum, so none of
 * these weights is ever rounded.
 *
 * The order of a sum is fixed (cuda/kernels.h): slices of GEMM_SLICE inputs, each summed upwards
 * from zero, then added upwards. gemm_few gives neighbouring slices to its eight warps, gemm_many
 * does them one after another. Neither the number of rows nor the variant changes a bit.
 *
 * Lane (g, t) of a warp holds inputs 8t .. 8t+7 of each 32: sixteen bytes at once, for the rows of
 * `in` and of W alike.  The instruction's own order of k is a permutation of it.
 */
#include "cuda/blocks.h"

enum { WARPS = 8, THREADS = 32 * WARPS, COLUMN_TILES = 4, WARP_COLUMNS = 8 * COLUMN_TILES };
enum { ROUND_SLICES = 2 * WARPS, SUM_STRIDE = WARP_COLUMNS + 8 };   /* + 8: no bank conflicts */
enum { MANY_TILES = 2, MANY_ROW_WARPS = 4, MANY_ROWS = 16 * MANY_TILES * MANY_ROW_WARPS };

struct inputs {
    const uint16_t *at;
    int64_t stride;
    int rows;
};

/* Scales (or mins) of this lane's two columns for block k / 32. */
DEVICE float2 fetch_scales(const weights &w, const void *plane, int column0, int k, int t)
{
    int64_t i = ((int64_t)(column0 / 8) * (w.in / 32) + k / 32) * 8 + 2 * t;
    uint32_t two = *(const uint32_t *)((const uint16_t *)plane + i);
    return make_float2(f16_to_float((uint16_t)two), f16_to_float((uint16_t)(two >> 16)));
}

/* --- one slice ------------------------------------------------------------------------------- */

/* Where this lane's inputs begin in row g of each row tile, and how far it is to row g + 8.  Rows
 * behind the last are the last once more: nothing of theirs is kept. */
template <int TILES> struct lane_rows {
    const uint16_t *at[TILES];
    int next[TILES];
};

template <int TILES> DEVICE void find_rows(const inputs &in, int row0, lane_rows<TILES> &to)
{
    int lane = threadIdx.x & 31;
#pragma unroll
    for (int i = 0; i < TILES; i++) {
        int row = min(row0 + 16 * i + lane / 4, in.rows - 1), other = min(row + 8, in.rows - 1);
        to.at[i] = in.at + row * in.stride + lane % 4 * 8;
        to.next[i] = (other - row) * (int)in.stride;
    }
}

/* a[0]: row g, a[1]: row g + 8; eight inputs each. */
DEVICE void fetch_inputs(const uint16_t *at, int next, uint4 a[2])
{
    a[0] = *(const uint4 *)at;
    a[1] = *(const uint4 *)(at + next);
}

/* c += 32 inputs, or with `fresh` c = 32 inputs: two instructions. */
DEVICE void multiply(float c[4], const uint4 a[2], const uint32_t b[4], bool fresh)
{
    const uint32_t first[4] = { a[0].x, a[1].x, a[0].y, a[1].y };
    const uint32_t second[4] = { a[0].z, a[1].z, a[0].w, a[1].w };
    if (fresh)
        mma_f16_new(c, first, b[0], b[1]);
    else
        mma_f16(c, first, b[0], b[1]);
    mma_f16(c, second, b[2], b[3]);
}

/* 32 inputs of one row tile, weights that need no scale. */
template <int TYPE>
DEVICE void dense_32(const lane_weights<TYPE> lane_w[COLUMN_TILES], int half, const uint4 a[2],
                     float sum[COLUMN_TILES][4])
{
#pragma unroll
    for (int j = 0; j < COLUMN_TILES; j++) {
        uint32_t b[4];
        expand<TYPE>(lane_w[j], half, b);
        multiply(sum[j], a, b, false);
    }
}

/* 32 inputs of one column tile of blocks, for all row tiles: what is made of the weights is made
 * once. */
template <int TYPE, int TILES>
DEVICE void block_of_32(const weights &w, const lane_weights<TYPE> &lane_w,
                        const uint4 a[TILES][2], const float ones[TILES][4], int j, int column0,
                        int k, int half, float sum[TILES][COLUMN_TILES][4])
{
    int t = threadIdx.x & 3;
    uint32_t b[4];
    float2 d = fetch_scales(w, w.scales, column0, k, t), m = make_float2(0, 0);
    expand<TYPE>(lane_w, half, b);
    if constexpr (TYPE == WEIGHT_Q4_1) m = fetch_scales(w, w.mins, column0, k, t);
#pragma unroll
    for (int i = 0; i < TILES; i++) {
        float *to = sum[i][j], part[4];
        multiply(part, a[i], b, true);
        to[0] = fmaf(part[0], d.x, to[0]), to[1] = fmaf(part[1], d.y, to[1]);
        to[2] = fmaf(part[2], d.x, to[2]), to[3] = fmaf(part[3], d.y, to[3]);
        if constexpr (TYPE == WEIGHT_Q4_1) {
            to[0] = fmaf(ones[i][0], m.x, to[0]), to[1] = fmaf(ones[i][1], m.y, to[1]);
            to[2] = fmaf(ones[i][2], m.x, to[2]), to[3] = fmaf(ones[i][3], m.y, to[3]);
        }
    }
}

/* Inputs k .. k+31 into sum[row tile][column tile]. */
template <int TYPE, int TILES>
DEVICE void step_of_32(const weights &w, const lane_weights<TYPE> lane_w[COLUMN_TILES],
                       const lane_rows<TILES> &rows, int column0, int k, int half,
                       float sum[TILES][COLUMN_TILES][4])
{
    const uint32_t one[4] = { 0x3c003c00u, 0x3c003c00u, 0x3c003c00u, 0x3c003c00u };
    uint4 a[TILES][2];
    float ones[TILES][4];
#pragma unroll
    for (int i = 0; i < TILES; i++) {
        fetch_inputs(rows.at[i] + k, rows.next[i], a[i]);
        if constexpr (TYPE == WEIGHT_Q4_1) multiply(ones[i], a[i], one, true);
        if constexpr (TYPE == WEIGHT_F16) dense_32<TYPE>(lane_w, half, a[i], sum[i]);
    }
    if constexpr (TYPE != WEIGHT_F16)
#pragma unroll
        for (int j = 0; j < COLUMN_TILES; j++)
            block_of_32<TYPE, TILES>(w, lane_w[j], a, ones, j, column0 + 8 * j, k, half, sum);
}

template <int TYPE, int TILES>
DEVICE void step_of_64(const weights &w, const lane_rows<TILES> &rows, int column0, int k,
                       float sum[TILES][COLUMN_TILES][4])
{
    lane_weights<TYPE> lane_w[COLUMN_TILES];
#pragma unroll
    for (int j = 0; j < COLUMN_TILES; j++)
        fetch<TYPE>(w, column0 + 8 * j, k, threadIdx.x & 31, lane_w[j]);
#pragma unroll
    for (int half = 0; half < 2; half++)
        step_of_32<TYPE, TILES>(w, lane_w, rows, column0, k + 32 * half, half, sum);
}

template <int TYPE, int TILES>
DEVICE void slice(const weights &w, const lane_rows<TILES> &rows, int column0, int index,
                  float sum[TILES][COLUMN_TILES][4])
{
    int end = min((index + 1) * GEMM_SLICE, w.in);
#pragma unroll
    for (int i = 0; i < TILES; i++)
#pragma unroll
        for (int j = 0; j < COLUMN_TILES; j++)
            sum[i][j][0] = sum[i][j][1] = sum[i][j][2] = sum[i][j][3] = 0;
#pragma unroll 1   /* two would not fit the registers */
    for (int k = index * GEMM_SLICE; k < end; k += 64)
        step_of_64<TYPE, TILES>(w, rows, column0, k, sum);
}

/* --- kernels --------------------------------------------------------------------------------- */

/* Sixteen rows, 32 columns, a slice a warp. */
template <int TYPE>
static __global__ void __launch_bounds__(THREADS, 2)
gemm_few(const weights w, const inputs in, const gemm_out out)
{
    __shared__ float sums[ROUND_SLICES][16][SUM_STRIDE];
    int warp = threadIdx.x >> 5, g = threadIdx.x >> 2 & 7, t = threadIdx.x & 3;
    int column0 = blockIdx.x * WARP_COLUMNS, row0 = blockIdx.y * 16;
    int row = threadIdx.x >> 4, column = 2 * (threadIdx.x & 15);
    int slices = (w.in + GEMM_SLICE - 1) / GEMM_SLICE;
    float2 total = make_float2(0, 0);
    lane_rows<1> rows;
    find_rows(in, row0, rows);
    for (int base = 0; base < slices; base += ROUND_SLICES) {
        int end = min(base + ROUND_SLICES, slices);
        if (base) __syncthreads();
        for (int s = base + warp; s < end; s += WARPS) {
            float sum[1][COLUMN_TILES][4];
            slice<TYPE, 1>(w, rows, column0, s, sum);
#pragma unroll
            for (int j = 0; j < COLUMN_TILES; j++) {
                float *to = &sums[s - base][g][8 * j + 2 * t];
                *(float2 *)to = make_float2(sum[0][j][0], sum[0][j][1]);
                *(float2 *)(to + 8 * SUM_STRIDE) = make_float2(sum[0][j][2], sum[0][j][3]);
            }
        }
        __syncthreads();
        for (int s = base; s < end; s++) {
            float2 part = *(const float2 *)&sums[s - base][row][column];
            total.x += part.x;
            total.y += part.y;
        }
    }
    if (row0 + row < in.rows) emit(out, row0 + row, column0 + column, total.x, total.y);
}

/* 128 rows, 64 columns: a warp has 32 of each. */
template <int TYPE>
static __global__ void __launch_bounds__(THREADS)
gemm_many(const weights w, const inputs in, const gemm_out out)
{
    int warp = threadIdx.x >> 5, g = threadIdx.x >> 2 & 7, t = threadIdx.x & 3;
    int row0 = blockIdx.y * MANY_ROWS + warp / 2 * 16 * MANY_TILES;
    int column0 = blockIdx.x * 2 * WARP_COLUMNS + warp % 2 * WARP_COLUMNS;
    int slices = (w.in + GEMM_SLICE - 1) / GEMM_SLICE;
    float total[MANY_TILES][COLUMN_TILES][4] = { 0 };
    lane_rows<MANY_TILES> rows;
    if (row0 >= in.rows) return;
    find_rows(in, row0, rows);
    for (int s = 0; s < slices; s++) {
        float sum[MANY_TILES][COLUMN_TILES][4];
        slice<TYPE, MANY_TILES>(w, rows, column0, s, sum);
#pragma unroll
        for (int i = 0; i < MANY_TILES; i++)
#pragma unroll
            for (int j = 0; j < COLUMN_TILES; j++)
#pragma unroll
                for (int e = 0; e < 4; e++) total[i][j][e] += sum[i][j][e];
    }
#pragma unroll
    for (int i = 0; i < MANY_TILES; i++)
#pragma unroll
        for (int j = 0; j < COLUMN_TILES; j++) {
            int row = row0 + 16 * i + g, column = column0 + 8 * j + 2 * t;
            const float *c = total[i][j];
            if (row < in.rows) emit(out, row, column, c[0], c[1]);
            if (row + 8 < in.rows) emit(out, row + 8, column, c[2], c[3]);
        }
}

enum { FLOAT_ROWS = 16, FLOAT_COLUMNS = 32, FLOAT_STEP = 32 };

/* The exact path: plain F32, one sum upwards over k. */
static __global__ void __launch_bounds__(THREADS)
gemm_float(const weights w, const float *in, int64_t stride, int rows, const gemm_out out)
{
    __shared__ float a[FLOAT_ROWS][FLOAT_STEP + 1], b[FLOAT_COLUMNS][FLOAT_STEP + 1];
    int row0 = blockIdx.y * FLOAT_ROWS, column0 = blockIdx.x * FLOAT_COLUMNS;
    int row = threadIdx.x >> 4, pair = threadIdx.x & 15;
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    float x = 0, y = 0;
    for (int k = 0; k < w.in; k += FLOAT_STEP) {
        for (int r = warp; r < FLOAT_ROWS; r += WARPS)
            a[r][lane] = row0 + r < rows ? in[(row0 + r) * stride + k + lane] : 0;
        for (int c = warp; c < FLOAT_COLUMNS; c += WARPS)
            b[c][lane] = ((const float *)w.q)[(int64_t)(column0 + c) * w.in + k + lane];
        __syncthreads();
        for (int i = 0; i < FLOAT_STEP; i++) {
            x = fmaf(a[row][i], b[2 * pair][i], x);
            y = fmaf(a[row][i], b[2 * pair + 1][i], y);
        }
        __syncthreads();
    }
    if (row0 + row < rows) emit(out, row0 + row, column0 + 2 * pair, x, y);
}

/* --- launchers ------------------------------------------------------------------------------- */

template <int TYPE>
static cudaError_t launch(const weights &w, const inputs &in, const gemm_out &out, cudaStream_t st)
{
    if (in.rows <= GEMM_SMALL_ROWS)
        gemm_few<TYPE><<<dim3(w.out / WARP_COLUMNS, (in.rows + 15) / 16), THREADS, 0, st>>>(
            w, in, out);
    else
        gemm_many<TYPE><<<dim3(w.out / (2 * WARP_COLUMNS), (in.rows + MANY_ROWS - 1) / MANY_ROWS),
                          THREADS, 0, st>>>(w, in, out);
    return cudaGetLastError();
}

extern "C" cudaError_t k_gemm(const struct weights *w, const void *in, int64_t in_stride, int rows,
                              const struct gemm_out *out, cudaStream_t stream)
{
    const inputs a = { (const uint16_t *)in, in_stride, rows };
    switch (w->type) {
    case WEIGHT_F16: return launch<WEIGHT_F16>(*w, a, *out, stream);
    case WEIGHT_Q8_0: return launch<WEIGHT_Q8_0>(*w, a, *out, stream);
    case WEIGHT_Q4_0: return launch<WEIGHT_Q4_0>(*w, a, *out, stream);
    case WEIGHT_Q4_1: return launch<WEIGHT_Q4_1>(*w, a, *out, stream);
    default: break;
    }
    gemm_float<<<dim3(w->out / FLOAT_COLUMNS, (rows + FLOAT_ROWS - 1) / FLOAT_ROWS), THREADS, 0,
                 stream>>>(*w, (const float *)in, in_stride, rows, *out);
    return cudaGetLastError();
}
