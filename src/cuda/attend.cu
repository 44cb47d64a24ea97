/* cuda/attend.cu - attention over paged KV on the tensor cores: prompts in tiles of queries, and
 * decoding with the sequence cut into splits.  Heads of 64 or 128, KV in F16 or FP8.
 *
 * A block is one kv head; its rows are (token, query head) pairs, so a key is read once for all
 * heads that share it. Keys come in tiles of ATTEND_TILE, two in flight. Within a split of
 * ATTEND_SPLIT positions a softmax runs along (FlashAttention-2: Dao, 2023); at its end it joins
 * the total.
 *
 * Both kinds of item are one function: in `run<.., DECODE>` the four warps share sixteen rows and
 * each has a quarter of the value's columns, else each warp has sixteen rows of its own.  Scores,
 * weights and sums of a row are made by the same instructions in the same order, and splits are
 * merged by the same function, in shared memory here or from `part_out` in `merge_parts`: the same
 * bits.  A step of one kind runs `attend` with the registers and shared memory of that kind, a step
 * of both `attend_mixed`, where decoding fills the gaps that prompts leave.
 *
 * A tile behind a row's own position leaves that row as it is (weights are exactly 0, the factor
 * exactly 1), so it does not matter which other rows are in the block.
 */
#include "cuda/device.h"

enum { THREADS = 128, TILE = ATTEND_TILE, SPLIT_TILES = ATTEND_SPLIT / ATTEND_TILE };
#define NOTHING (-1e30f)

/* Sixteen-byte chunk `chunk` of a row, exchanged so that eight rows' same chunk hits all banks. */
template <int SIZE> DEVICE uint16_t *chunk_at(uint16_t *base, int row, int chunk)
{
    return base + row * SIZE + ((chunk ^ (row & 7)) << 3);
}

template <int SIZE, bool DECODE> struct shape {
    static constexpr int rows = DECODE ? 16 : ATTEND_ROWS;
    static constexpr int columns = DECODE ? SIZE / 32 : SIZE / 8;   /* tiles of 8 of a warp */
    static constexpr int steps = SIZE / 16;
    /* The queries' place becomes the total's, once they are in registers. */
    static constexpr int first_bytes = DECODE ? rows * SIZE * 2 : rows * SIZE * 4;
    static constexpr int tile_values = TILE * SIZE;
    static constexpr int bytes = first_bytes + 4 * tile_values * 2;
};

/* The running softmax of this lane's two rows (g and g + 8) and its part of their result. */
template <int COLUMNS> struct state {
    float most[2], sum[2], out[COLUMNS][4];
};

/* --- loading --------------------------------------------------------------------------------- */

template <int SIZE, int ROWS>
DEVICE void load_queries(uint16_t *to, const attend_call &c, const attend_item &item, int group)
{
    const uint16_t *q = (const uint16_t *)c.q;
    int kv_head = blockIdx.y;
#pragma unroll
    for (int i = threadIdx.x; i < ROWS * SIZE / 8; i += THREADS) {
        int r = i / (SIZE / 8), chunk = i % (SIZE / 8), token = r / group;
        bool real = token < item.count && r < ROWS / group * group;
        int64_t head = (int64_t)(item.row + (real ? token : 0)) * c.heads + kv_head * group +
                       (real ? r % group : 0);
        copy_async(chunk_at<SIZE>(to, r, chunk), q + head * SIZE + chunk * 8, real);
    }
}

/* Eight FP8 at a time, made F16 on the way.  `from` can be read even if it is not `real`. */
template <int SIZE>
DEVICE void load_fp8(uint16_t *to, const uint8_t *from, int row, int chunk, bool real)
{
    uint2 narrow = *(const uint2 *)(from + chunk * 8);
    if (!real) narrow = make_uint2(0, 0);
    uint4 wide;
    wide.x = f16_of_fp8((uint16_t)narrow.x), wide.y = f16_of_fp8((uint16_t)(narrow.x >> 16));
    wide.z = f16_of_fp8((uint16_t)narrow.y), wide.w = f16_of_fp8((uint16_t)(narrow.y >> 16));
    store_shared(chunk_at<SIZE>(to, row, chunk), wide);
}

/* Keys and values of tile `tile`; positions from `end` on are zeros. */
template <int SIZE, bool FP8>
DEVICE void load_tile(uint16_t *key, uint16_t *value, const attend_call &c, const int32_t *blocks,
                      int tile, int end)
{
    int mask = (1 << c.kv.token_shift) - 1;
#pragma unroll 4
    for (int i = threadIdx.x; i < TILE * SIZE / 8; i += THREADS) {
        int r = i / (SIZE / 8), chunk = i % (SIZE / 8), position = tile * TILE + r;
        bool real = position < end;
        int safe = real ? position : end - 1;
        const uint8_t *block = kv_block(c.kv, blocks[safe >> c.kv.token_shift]);
        int64_t k = kv_index(c.kv, false, blockIdx.y, safe & mask);
        int64_t v = kv_index(c.kv, true, blockIdx.y, safe & mask);
        if (FP8) {
            load_fp8<SIZE>(key, block + k, r, chunk, real);
            load_fp8<SIZE>(value, block + v, r, chunk, real);
        } else {
            copy_async(chunk_at<SIZE>(key, r, chunk), block + 2 * (k + chunk * 8), real);
            copy_async(chunk_at<SIZE>(value, r, chunk), block + 2 * (v + chunk * 8), real);
        }
    }
}

/* --- one tile -------------------------------------------------------------------------------- */

/* score[i] = queries * keys 8i .. 8i+7 of the tile. */
template <int SIZE>
DEVICE void scores(const uint32_t q[SIZE / 16][4], uint16_t *key, float score[TILE / 8][4])
{
    int lane = threadIdx.x & 31;
#pragma unroll
    for (int i = 0; i < TILE / 8; i++) score[i][0] = score[i][1] = score[i][2] = score[i][3] = 0;
#pragma unroll
    for (int s = 0; s < SIZE / 16; s++)
#pragma unroll
        for (int n = 0; n < TILE / 16; n++) {
            uint32_t b[4];
            int row = n * 16 + (lane & 7) + (lane >> 4 << 3);
            load_matrix(b, chunk_at<SIZE>(key, row, 2 * s + (lane >> 3 & 1)));
            mma_f16(score[2 * n], q[s], b[0], b[1]);
            mma_f16(score[2 * n + 1], q[s], b[2], b[3]);
        }
}

/* Hides what a row may not see: keys behind seen[], counted from the tile's first. */
DEVICE void hide(float score[TILE / 8][4], const int seen[2])
{
    int t = threadIdx.x & 3;
#pragma unroll
    for (int i = 0; i < TILE / 8; i++)
#pragma unroll
        for (int e = 0; e < 4; e++)
            if (i * 8 + 2 * t + (e & 1) >= seen[e >> 1]) score[i][e] = NOTHING;
}

/* Scores become weights; the state shrinks to the new maximum. */
template <int COLUMNS>
DEVICE void soften(float score[TILE / 8][4], float scale, state<COLUMNS> &s)
{
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float most = s.most[r];
#pragma unroll
        for (int i = 0; i < TILE / 8; i++)
            most = fmaxf(most, fmaxf(score[i][2 * r], score[i][2 * r + 1]));
        most = fmaxf(most, __shfl_xor_sync(FULL_WARP, most, 1));
        most = fmaxf(most, __shfl_xor_sync(FULL_WARP, most, 2));
        float shrink = power2((s.most[r] - most) * scale);
        s.most[r] = most;
        s.sum[r] *= shrink;
#pragma unroll
        for (int i = 0; i < TILE / 8; i++) {
            score[i][2 * r] = power2((score[i][2 * r] - most) * scale);
            score[i][2 * r + 1] = power2((score[i][2 * r + 1] - most) * scale);
            s.sum[r] += score[i][2 * r] + score[i][2 * r + 1];
        }
#pragma unroll
        for (int i = 0; i < COLUMNS; i++) s.out[i][2 * r] *= shrink, s.out[i][2 * r + 1] *= shrink;
    }
}

/* out += weights * values, for this warp's columns from tile column `first` on. */
template <int SIZE, int COLUMNS>
DEVICE void add_values(const float weight[TILE / 8][4], uint16_t *value, int first,
                       state<COLUMNS> &s)
{
    int lane = threadIdx.x & 31;
#pragma unroll
    for (int k = 0; k < TILE / 16; k++) {
        const uint32_t a[4] = {
            pack_f16(weight[2 * k][0], weight[2 * k][1]),
            pack_f16(weight[2 * k][2], weight[2 * k][3]),
            pack_f16(weight[2 * k + 1][0], weight[2 * k + 1][1]),
            pack_f16(weight[2 * k + 1][2], weight[2 * k + 1][3]),
        };
#pragma unroll
        for (int n = 0; n < COLUMNS / 2; n++) {
            uint32_t b[4];
            load_matrix_across(b, chunk_at<SIZE>(value, k * 16 + (lane & 15),
                                                 first + 2 * n + (lane >> 4)));
            mma_f16(s.out[2 * n], a, b[0], b[1]);
            mma_f16(s.out[2 * n + 1], a, b[2], b[3]);
        }
    }
}

/* --- splits ---------------------------------------------------------------------------------- */

template <int COLUMNS> DEVICE void clear(state<COLUMNS> &s)
{
    s.most[0] = s.most[1] = NOTHING;
    s.sum[0] = s.sum[1] = 0;
#pragma unroll
    for (int i = 0; i < COLUMNS; i++) s.out[i][0] = s.out[i][1] = s.out[i][2] = s.out[i][3] = 0;
}

/* The four lanes of a row have each summed their own keys. */
template <int COLUMNS> DEVICE void finish_sums(state<COLUMNS> &s)
{
#pragma unroll
    for (int r = 0; r < 2; r++) {
        s.sum[r] += __shfl_xor_sync(FULL_WARP, s.sum[r], 1);
        s.sum[r] += __shfl_xor_sync(FULL_WARP, s.sum[r], 2);
    }
}

struct factors {
    float most, old_part, new_part;
};

/* The one way to merge two splits: maxima a (earlier) and b. */
DEVICE factors merge_factors(float a, float b, float scale)
{
    float most = fmaxf(a, b);
    return { most, power2((a - most) * scale), power2((b - most) * scale) };
}

DEVICE float merge(float earlier, float later, const factors &f)
{
    return fmaf(later, f.new_part, earlier * f.old_part);
}

/* total (in shared memory, each lane its own column of it) takes in the split's state.  Rows that
 * do not see the split's first position, `start`, keep what they have. */
template <int COLUMNS>
DEVICE void join(float *total, float most[2], float sum[2], const state<COLUMNS> &s,
                 const int position[2], int start, float scale)
{
#pragma unroll
    for (int r = 0; r < 2; r++) {
        if (position[r] < start) continue;
        factors f = merge_factors(most[r], s.most[r], scale);
        most[r] = f.most;
        sum[r] = merge(sum[r], s.sum[r], f);
#pragma unroll
        for (int i = 0; i < COLUMNS; i++)
#pragma unroll
            for (int e = 2 * r; e < 2 * r + 2; e++) {
                float *at = total + (i * 4 + e) * THREADS;
                *at = merge(*at, s.out[i][e], f);
            }
    }
}

template <int COLUMNS> DEVICE void keep(float *total, const state<COLUMNS> &s)
{
#pragma unroll
    for (int i = 0; i < COLUMNS; i++)
#pragma unroll
        for (int e = 0; e < 4; e++) total[(i * 4 + e) * THREADS] = s.out[i][e];
}

template <int COLUMNS> DEVICE void fetch(const float *total, state<COLUMNS> &s)
{
#pragma unroll
    for (int i = 0; i < COLUMNS; i++)
#pragma unroll
        for (int e = 0; e < 4; e++) s.out[i][e] = total[(i * 4 + e) * THREADS];
}

/* --- results --------------------------------------------------------------------------------- */

/* Rows of this lane: which token and head, or token -1. */
struct places {
    int token[2], head[2], position[2];
};

DEVICE places find_places(const attend_item &item, int first_row, int rows, int group)
{
    places p;
    int g = threadIdx.x >> 2 & 7;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        int row = first_row + g + 8 * r;
        bool real = row / group < item.count && row < rows / group * group;
        p.token[r] = real ? row / group : -1;
        p.head[r] = row % group;
        p.position[r] = item.first + (real ? row / group : 0);
    }
    return p;
}

template <int COLUMNS>
DEVICE void write_out(const attend_call &c, const attend_item &item, const places &p, int group,
                      int first, const state<COLUMNS> &s)
{
    int t = threadIdx.x & 3;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        if (p.token[r] < 0) continue;
        float inverse = 1 / s.sum[r];
        uint16_t *row = (uint16_t *)c.out + (item.row + p.token[r]) * c.out_stride +
                        (blockIdx.y * group + p.head[r]) * c.kv.head_dim;
#pragma unroll
        for (int i = 0; i < COLUMNS; i++)
            store_act(row, (first + i) * 8 + 2 * t, s.out[i][2 * r] * inverse,
                      s.out[i][2 * r + 1] * inverse, c.act_type);
    }
}

template <int COLUMNS>
DEVICE void write_part(const attend_call &c, const attend_item &item, const places &p, int group,
                       int first, const state<COLUMNS> &s)
{
    int t = threadIdx.x & 3;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        if (p.token[r] < 0) continue;
        int64_t part = item.part + item.split;
        int64_t head = part * c.heads + blockIdx.y * group + p.head[r];
        if (first == 0 && t == 0)
            *(float2 *)(c.part_state + 2 * head) = make_float2(s.most[r], s.sum[r]);
#pragma unroll
        for (int i = 0; i < COLUMNS; i++)
            *(float2 *)(c.part_out + head * c.kv.head_dim + (first + i) * 8 + 2 * t) =
                make_float2(s.out[i][2 * r], s.out[i][2 * r + 1]);
    }
}

/* True in the block that is the last of the sequence's splits, for this kv head, to have written
 * its part; it sees all of them.  The counter is 0 again then. */
DEVICE bool is_last(const attend_call &c, const attend_item &item, unsigned *done)
{
    __syncthreads();                  /* the block has written, and needs `done` no more */
    if (threadIdx.x == 0) {
        int64_t at = (int64_t)item.part * c.kv.kv_heads + blockIdx.y;
        __threadfence();
        *done = atomicInc(c.parts_done + at, item.splits - 1);
        __threadfence();
    }
    __syncthreads();
    return *done == (unsigned)item.splits - 1;
}

/* Four dimensions of a head a thread; the order of the sum is that of the splits, whoever came
 * last. */
template <int SIZE>
DEVICE void merge_parts(const attend_call &c, const attend_item &item, int group)
{
    for (int i = threadIdx.x; i < group * SIZE / 4; i += THREADS) {
        int head = blockIdx.y * group + i / (SIZE / 4), d = i % (SIZE / 4) * 4;
        int64_t at = (int64_t)item.part * c.heads + head;
        float2 total = *(const float2 *)(c.part_state + 2 * at);
        float4 out = *(const float4 *)(c.part_out + at * SIZE + d);
#pragma unroll 4
        for (int s = 1; s < item.splits; s++) {
            at += c.heads;
            float2 state = *(const float2 *)(c.part_state + 2 * at);
            float4 part = *(const float4 *)(c.part_out + at * SIZE + d);
            factors f = merge_factors(total.x, state.x, c.scale);
            total.x = f.most;
            total.y = merge(total.y, state.y, f);
            out.x = merge(out.x, part.x, f), out.y = merge(out.y, part.y, f);
            out.z = merge(out.z, part.z, f), out.w = merge(out.w, part.w, f);
        }
        float inverse = 1 / total.y;
        uint16_t *row = (uint16_t *)c.out + item.row * c.out_stride + head * SIZE + d;
        *(uint2 *)row = make_uint2(pack_f16(out.x * inverse, out.y * inverse),
                                   pack_f16(out.z * inverse, out.w * inverse));
    }
}

/* Reads the item once more, for it is not worth registers while tiles are walked. */
template <int SIZE, int COLUMNS>
DEVICE void end_split(const attend_call &c, const state<COLUMNS> &s, unsigned *done)
{
    const attend_item item = c.items[blockIdx.x];
    const int group = c.heads / c.kv.kv_heads, first = (threadIdx.x >> 5) * COLUMNS;
    const places p = find_places(item, 0, shape<SIZE, true>::rows, group);
    if (item.splits == 1) {
        write_out(c, item, p, group, first, s);
        return;
    }
    write_part(c, item, p, group, first, s);
    if (is_last(c, item, done)) merge_parts<SIZE>(c, item, group);
}

/* --- kernels --------------------------------------------------------------------------------- */

template <int SIZE, bool DECODE, bool FP8>
DEVICE void run(const attend_call &c, const attend_item &item, uint8_t *shared)
{
    using Shape = shape<SIZE, DECODE>;
    uint16_t *queries = (uint16_t *)shared, *at = queries + Shape::first_bytes / 2;
    float *total = (float *)shared + threadIdx.x;
    const int group = c.heads / c.kv.kv_heads, lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const int first_row = DECODE ? 0 : warp * 16, first = DECODE ? warp * Shape::columns : 0;
    const int32_t *blocks = c.tables + item.table;
    const int end = item.first + item.count, all = (end + TILE - 1) / TILE;
    const int begin = DECODE ? item.split * SPLIT_TILES : 0;
    const int stop = DECODE ? min(begin + SPLIT_TILES, all) : all;
    places p = { { 0, 0 }, { 0, 0 }, { item.first, item.first } };
    if (!DECODE) p = find_places(item, first_row, Shape::rows, group);   /* else at the end */
    load_queries<SIZE, Shape::rows>(queries, c, item, group);
    load_tile<SIZE, FP8>(at, at + Shape::tile_values, c, blocks, begin, end);
    copy_commit();
    uint32_t q[Shape::steps][4];
    state<Shape::columns> s;
    float most[2], sum[2];
    for (int tile = begin; tile < stop; tile++) {
        uint16_t *now = at + (tile & 1) * 2 * Shape::tile_values;
        uint16_t *next = at + (~tile & 1) * 2 * Shape::tile_values;
        if (tile + 1 < stop)
            load_tile<SIZE, FP8>(next, next + Shape::tile_values, c, blocks, tile + 1, end);
        copy_commit();
        copy_wait<1>();
        __syncthreads();
        if (tile == begin) {
#pragma unroll
            for (int i = 0; i < Shape::steps; i++)
                load_matrix(q[i], chunk_at<SIZE>(queries, first_row + (lane & 15),
                                                 2 * i + (lane >> 4)));
        }
        if (tile % SPLIT_TILES == 0) clear(s);
        float score[TILE / 8][4];
        const int seen[2] = { p.position[0] + 1 - tile * TILE, p.position[1] + 1 - tile * TILE };
        scores<SIZE>(q, now, score);
        if (tile * TILE + TILE > item.first) hide(score, seen);
        soften(score, c.scale, s);
        add_values<SIZE>(score, now + Shape::tile_values, first, s);
        __syncthreads();
        if (DECODE || ((tile + 1) % SPLIT_TILES != 0 && tile + 1 < stop)) continue;
        finish_sums(s);
        if (tile < SPLIT_TILES) {
            most[0] = s.most[0], most[1] = s.most[1], sum[0] = s.sum[0], sum[1] = s.sum[1];
            if (stop > SPLIT_TILES) keep(total, s);
        } else {
            join(total, most, sum, s, p.position, tile / SPLIT_TILES * ATTEND_SPLIT, c.scale);
        }
    }
    if (DECODE) {
        finish_sums(s);
    } else if (stop > SPLIT_TILES) {
        fetch(total, s);
        s.sum[0] = sum[0], s.sum[1] = sum[1];
    }
    if (DECODE)
        end_split<SIZE>(c, s, (unsigned *)shared);
    else
        write_out(c, item, p, group, first, s);
}

template <int SIZE, bool DECODE, bool FP8>
static __global__ void __launch_bounds__(THREADS) attend(const attend_call c)
{
    extern __shared__ __align__(128) uint8_t shared[];
    const attend_item item = c.items[blockIdx.x];
    if (item.count) run<SIZE, DECODE, FP8>(c, item, shared);
}

template <int SIZE, bool FP8>
static __global__ void __launch_bounds__(THREADS) attend_mixed(const attend_call c)
{
    extern __shared__ __align__(128) uint8_t shared[];
    const attend_item item = c.items[blockIdx.x];
    if (item.splits)
        run<SIZE, true, FP8>(c, item, shared);
    else
        run<SIZE, false, FP8>(c, item, shared);
}

/* --- launchers ------------------------------------------------------------------------------- */

extern "C" int k_attend_fits(int head_dim, int group, int element, int act_type)
{
    return (head_dim == 64 || head_dim == 128) && group <= ATTEND_GROUP_MAX &&
           element != KV_ELEMENT_F32 && act_type != ACT_F32;
}

using kernel = void (*)(attend_call);

/* The kernel for a step with tiles of prompts, splits of decoding sequences, or both. */
template <int SIZE, bool FP8> static kernel choose(bool tiles, bool splits)
{
    return !splits ? attend<SIZE, false, FP8> : !tiles ? attend<SIZE, true, FP8>
                                                       : attend_mixed<SIZE, FP8>;
}

static kernel choose(const struct kv_layer &kv, bool tiles, bool splits, int *bytes)
{
    bool fp8 = kv.element == KV_ELEMENT_FP8, large = kv.head_dim == 128;
    *bytes = large ? tiles ? shape<128, false>::bytes : shape<128, true>::bytes
                   : tiles ? shape<64, false>::bytes : shape<64, true>::bytes;
    if (large) return fp8 ? choose<128, true>(tiles, splits) : choose<128, false>(tiles, splits);
    return fp8 ? choose<64, true>(tiles, splits) : choose<64, false>(tiles, splits);
}

extern "C" cudaError_t k_attend_prepare(void)
{
    struct kv_layer kv = { 0 };
    cudaError_t e = cudaSuccess;
    for (int i = 0; i < 12 && !e; i++) {
        int bytes;
        kv.head_dim = i & 1 ? 128 : 64, kv.element = i & 2 ? KV_ELEMENT_FP8 : KV_ELEMENT_F16;
        kernel k = choose(kv, i / 4 != 1, i / 4 != 0, &bytes);
        e = cudaFuncSetAttribute((const void *)k, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 bytes);
    }
    return e;
}

extern "C" cudaError_t k_attend(const struct attend_call *c, int tiles, int splits,
                                cudaStream_t stream)
{
    int bytes;
    kernel k = choose(c->kv, tiles > 0, splits > 0, &bytes);
    k<<<dim3(tiles + splits, c->kv.kv_heads), THREADS, bytes, stream>>>(*c);
    return cudaGetLastError();
}
