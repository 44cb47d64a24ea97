/* cuda/move.cu - KV between the paged pool and one contiguous buffer, sixteen bytes at a time.
 *
 * The buffer: per layer K (count, K*S), then V.  A thread moves neighbouring pieces, so both sides
 * are read and written in whole sectors.
 */
#include "cuda/device.h"

enum { THREADS = 256 };

template <typename PIECE, bool GATHER>
static __global__ void __launch_bounds__(THREADS) move_kv(const move_call c, int row_pieces,
                                                          int element_bytes)
{
    int head_pieces = row_pieces / c.kv.kv_heads, layer = blockIdx.y;
    int64_t half = (int64_t)c.count * row_pieces;
    PIECE *wire = (PIECE *)c.wire + layer * 2 * half;
    for (int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x; i < 2 * half;
         i += (int64_t)gridDim.x * THREADS) {
        bool value = i >= half;
        int64_t in_half = value ? i - half : i;
        int token = (int)(in_half / row_pieces), piece = (int)(in_half % row_pieces);
        int head = piece / head_pieces, position = c.first + token;
        int place = position & ((1 << c.kv.token_shift) - 1);
        uint8_t *block = kv_block(c.kv, c.blocks[position >> c.kv.token_shift]) +
                         layer * c.layer_bytes;
        PIECE *pool = (PIECE *)(block + kv_index(c.kv, value, head, place) * element_bytes) +
                      piece % head_pieces;
        if (GATHER)
            wire[i] = *pool;
        else
            *pool = wire[i];
    }
}

template <bool GATHER> static cudaError_t move(const struct move_call *c, cudaStream_t stream)
{
    int element = c->kv.element == KV_ELEMENT_F32 ? 4 : c->kv.element == KV_ELEMENT_F16 ? 2 : 1;
    int head_bytes = c->kv.head_dim * element;
    bool wide = head_bytes % 16 == 0;
    int row_pieces = c->kv.kv_heads * head_bytes / (wide ? 16 : 2);
    int64_t pieces = 2ll * c->count * row_pieces, blocks = (pieces + THREADS - 1) / THREADS;
    dim3 grid((unsigned)(blocks < 1024 ? blocks : 1024), c->layers);
    if (wide)
        move_kv<uint4, GATHER><<<grid, THREADS, 0, stream>>>(*c, row_pieces, element);
    else
        move_kv<uint16_t, GATHER><<<grid, THREADS, 0, stream>>>(*c, row_pieces, element);
    return cudaGetLastError();
}

extern "C" cudaError_t k_kv_gather(const struct move_call *c, cudaStream_t stream)
{
    return move<true>(c, stream);
}

extern "C" cudaError_t k_kv_scatter(const struct move_call *c, cudaStream_t stream)
{
    return move<false>(c, stream);
}
