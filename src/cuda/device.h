/* cuda/device.h - what the kernels share: conversions, tensor-core and copy instructions, rotation,
 * and where things lie in the KV pool.
 *
 * All kernels are compiled without automatic fusing of multiply and add, and say fmaf where they
 * want it: two kernels that must give the same bits then do.
 */
#ifndef RANKSERVE_CUDA_DEVICE_H
#define RANKSERVE_CUDA_DEVICE_H

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "cuda/kernels.h"

#define DEVICE static __device__ __forceinline__
#define FULL_WARP 0xffffffffu
#define LOG2_E 1.4426950408889634f

/* --- instructions ---------------------------------------------------------------------------- */

DEVICE uint32_t shared_address(const void *p)
{
    return (uint32_t)__cvta_generic_to_shared(p);
}

/* Sixteen bytes to shared memory, or zeros. */
DEVICE void copy_async(void *to, const void *from, bool real)
{
    int bytes = real ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 ::"r"(shared_address(to)), "l"(from), "r"(bytes) : "memory");
}

/* Sixteen bytes at once: left to itself the compiler may store four words, with bank conflicts. */
DEVICE void store_shared(void *to, uint4 v)
{
    asm volatile("st.shared.v4.b32 [%0], {%1,%2,%3,%4};"
                 ::"r"(shared_address(to)), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w) : "memory");
}

/* So it may to global memory, and quadruple the sectors. */
DEVICE void store_global(void *to, uint4 v)
{
    asm volatile("st.global.v4.b32 [%0], {%1,%2,%3,%4};"
                 ::"l"(__cvta_generic_to_global(to)), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w)
                 : "memory");
}

DEVICE void copy_commit()
{
    asm volatile("cp.async.commit_group;" ::: "memory");
}

template <int PENDING> DEVICE void copy_wait()
{
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

DEVICE void load_matrix(uint32_t r[4], const void *p)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(p)) : "memory");
}

DEVICE void load_matrix_across(uint32_t r[4], const void *p)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(p)) : "memory");
}

/* c (16, 8) += a (16, 16) * b (16, 8). */
DEVICE void mma_f16(float c[4], const uint32_t a[4], uint32_t b0, uint32_t b1)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
                 "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/* c = a * b. */
DEVICE void mma_f16_new(float c[4], const uint32_t a[4], uint32_t b0, uint32_t b1)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
                 "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%10,%10,%10};"
                 : "=f"(c[0]), "=f"(c[1]), "=f"(c[2]), "=f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "f"(0.f));
}

/* 2^x, one instruction. */
DEVICE float power2(float x)
{
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

/* --- conversions ----------------------------------------------------------------------------- */

/* Two F32 as two F16; beyond the largest F16 they stay finite. */
DEVICE uint32_t pack_f16(float a, float b)
{
    const float most = 65504.f;
    __half2 h = __floats2half2_rn(fminf(fmaxf(a, -most), most), fminf(fmaxf(b, -most), most));
    return *(uint32_t *)&h;
}

/* Elements i, i+1 (i even) of a row of activations. */
DEVICE void store_act(void *row, int64_t i, float a, float b, int act_type)
{
    if (act_type == ACT_F32)
        *(float2 *)((float *)row + i) = make_float2(a, b);
    else
        *(uint32_t *)((uint16_t *)row + i) = pack_f16(a, b);
}

DEVICE float f16_to_float(uint16_t bits)
{
    return __half2float(__ushort_as_half(bits));
}

/* Two FP8 (E4M3) as two F16: exact.  The exponents differ by 8; a product gets zeros and the
 * smallest right. */
DEVICE uint32_t f16_of_fp8(uint16_t two)
{
    uint32_t wide = (two & 0x8000u) << 16 | (two & 0x7f00u) << 15 | (two & 0x80u) << 8 |
                    (two & 0x7fu) << 7, scale = 0x5c005c00u;
    __half2 h = __hmul2(*(__half2 *)&wide, *(__half2 *)&scale);
    return *(uint32_t *)&h;
}

/* To the nearest, ties to even; 448 is the largest. */
DEVICE uint32_t fp8_of_one(float f)
{
    uint32_t bits = __float_as_uint(f), sign = bits >> 24 & 0x80u;
    float size = fminf(fabsf(f), 448.f);
    if (size < 0.015625f) return sign | (uint32_t)__float2int_rn(size * 512.f);
    bits = __float_as_uint(size);
    return sign | ((bits + 0x7ffffu + (bits >> 20 & 1)) >> 20) - (120u << 3);
}

DEVICE uint16_t fp8_of_float(float a, float b)
{
    return (uint16_t)(fp8_of_one(b) << 8 | fp8_of_one(a));
}

/* --- the KV pool ----------------------------------------------------------------------------- */

/* Index of element 0 of a head's key (value: + the whole of K) in its block. */
DEVICE int64_t kv_index(const kv_layer &kv, bool value, int head, int place)
{
    return ((((int64_t)value * kv.kv_heads + head) << kv.token_shift) + place) * kv.head_dim;
}

DEVICE uint8_t *kv_block(const kv_layer &kv, int64_t block)
{
    return kv.base + block * kv.block_bytes;
}

/* Elements d, d+1 of the key or value of a slot. */
DEVICE void kv_store(const kv_layer &kv, int slot, bool value, int head, int d, float a, float b)
{
    int place = slot & ((1 << kv.token_shift) - 1);
    uint8_t *block = kv_block(kv, slot >> kv.token_shift);
    int64_t i = kv_index(kv, value, head, place) + d;
    if (kv.element == KV_ELEMENT_F32)
        *(float2 *)(block + 4 * i) = make_float2(a, b);
    else if (kv.element == KV_ELEMENT_F16)
        *(uint32_t *)(block + 2 * i) = pack_f16(a, b);
    else
        *(uint16_t *)(block + i) = fp8_of_float(a, b);
}

DEVICE float kv_load(const kv_layer &kv, const uint8_t *block, int64_t i)
{
    if (kv.element == KV_ELEMENT_F32) return ((const float *)block)[i];
    if (kv.element == KV_ELEMENT_F16) return f16_to_float(((const uint16_t *)block)[i]);
    return f16_to_float((uint16_t)f16_of_fp8(block[i]));
}

/* --- rotation and storing of q, k, v --------------------------------------------------------- */

/* Rotates the pair at dimensions d, d+1. */
DEVICE void rotate(const rope &r, int position, int d, float &a, float &b)
{
    if (d >= r.dims) return;
    float2 turn = *(const float2 *)(r.table + (int64_t)position * r.dims + d);
    float x = a, y = b;
    a = fmaf(x, turn.x, -(y * turn.y));
    b = fmaf(x, turn.y, y * turn.x);
}

DEVICE void store_query(const qkv_out &o, int row, int column, float a, float b)
{
    int64_t at = (int64_t)row * o.heads * o.kv.head_dim + column;
    if (o.q_is_float)
        *(float2 *)((float *)o.q + at) = make_float2(a, b);
    else
        *(uint32_t *)((uint16_t *)o.q + at) = pack_f16(a, b);
}

/* Columns column, column+1 of (q, k, v) of a row, rotated unless that is done. */
DEVICE void store_qkv(const qkv_out &o, int row, int column, bool turn, float a, float b)
{
    const struct row at = o.rows[row];
    int head = column / o.kv.head_dim, d = column - head * o.kv.head_dim;
    if (turn && head < o.heads + o.kv.kv_heads) rotate(o.rope, at.position, d, a, b);
    if (head < o.heads) {
        store_query(o, row, column, a, b);
        return;
    }
    head -= o.heads;
    bool value = head >= o.kv.kv_heads;
    if (at.slot >= 0)
        kv_store(o.kv, at.slot, value, value ? head - o.kv.kv_heads : head, d, a, b);
}

/* Two neighbouring columns of a product. */
DEVICE void emit(const gemm_out &o, int row, int column, float a, float b)
{
    if (column >= o.columns) return;
    a *= o.factor;
    b *= o.factor;
    if (o.bias) {
        a += o.bias[column];
        b += o.bias[column + 1];
    }
    if (o.kind == OUT_SWIGLU) {
        uint16_t *half = (uint16_t *)o.act + row * o.act_stride + column / 2;
        float x = a / (1 + power2(a * -LOG2_E)) * b * (o.act_type == ACT_F32 ? 1 : HIDDEN_SCALE);
        if (o.act_type == ACT_F32)
            ((float *)o.act)[row * o.act_stride + column / 2] = x;
        else
            *half = (uint16_t)pack_f16(x, 0);
    } else if (o.kind == OUT_QKV) {
        store_qkv(o.qkv, row, o.column0 + column, true, a, b);
    } else {
        float2 *to = (float2 *)(o.f32 + row * o.f32_stride + column);
        float2 old = o.kind == OUT_ADD ? *to : make_float2(0, 0);
        *to = make_float2(old.x + a, old.y + b);
    }
}

#endif
