/* tests/cusim/check/faults.cu - kernels that are right, and wrong in one way when `bad` is set. */
#include <stdint.h>

/* The launcher of a kernel with this grid, block and dynamic shared memory. */
#define KERNEL(name, grid, block, shared)                                                        \
    static __global__ void name(int bad, int *a, int *b);                                        \
    extern "C" cudaError_t k_##name(int bad, int *a, int *b, cudaStream_t s)                     \
    {                                                                                            \
        name<<<grid, block, shared, s>>>(bad, a, b);                                             \
        return cudaGetLastError();                                                               \
    }                                                                                            \
    static __global__ void name(int bad, int *a, int *b)

#define INDEX (blockIdx.x * blockDim.x + threadIdx.x)
static const unsigned ALL = 0xffffffffu;

KERNEL(fill, 4, 256, 0) { a[INDEX] = (int)INDEX + bad; }
KERNEL(copy, 4, 256, 0) { b[INDEX] = a[INDEX]; }
KERNEL(bounds, 4, 256, 0) { a[INDEX + (bad ? 1 : 0)] = 1; }

KERNEL(shared_bounds, 1, 64, 256)
{
    extern __shared__ int s[];
    s[threadIdx.x + (bad ? 1 : 0)] = 1;
    __syncthreads();
    a[threadIdx.x] = s[threadIdx.x];
}

KERNEL(local_bounds, 1, 32, 0)
{
    int t[8];
    for (int k = 0; k < 8; k++) t[k] = a[k];
    b[threadIdx.x] = t[(threadIdx.x & 7) + bad * a[1] * 8];
}

KERNEL(uninit_shared, 1, 64, 0)
{
    __shared__ int s[64];
    if (!bad || threadIdx.x != 5) s[threadIdx.x] = 1;
    __syncthreads();
    a[threadIdx.x] = s[63 - threadIdx.x];
}

KERNEL(shared_race, 1, 64, 0)
{
    __shared__ int s[64];
    s[threadIdx.x] = 0;
    __syncthreads();
    s[threadIdx.x] = (int)threadIdx.x;
    if (!bad) __syncthreads();
    a[threadIdx.x] = s[63 - threadIdx.x];
}

KERNEL(shared_war, 1, 64, 0)
{
    __shared__ int s[64];
    s[threadIdx.x] = 1;
    __syncthreads();
    int sum = s[63 - threadIdx.x];
    if (!bad) __syncthreads();
    s[threadIdx.x] = sum + 1;
    a[threadIdx.x] = s[threadIdx.x];
}

KERNEL(block_race, 1, 64, 0)
{
    a[threadIdx.x] = 1;
    if (!bad) __syncthreads();
    b[threadIdx.x] = a[63 - threadIdx.x];
}

KERNEL(grid_race, 4, 64, 0)
{
    if (threadIdx.x == 0) a[bad ? 0 : blockIdx.x] = 1;
}

/* Each block adds its part; the last to come adds the parts up. */
KERNEL(last_block, 8, 64, 0)
{
    __shared__ int ticket;
    if (threadIdx.x == 0) {
        b[1 + blockIdx.x] = (int)blockIdx.x + 1;
        if (!bad) __threadfence();
        ticket = atomicAdd(&b[0], 1);
    }
    __syncthreads();
    if (ticket != 7 || threadIdx.x) return;
    int sum = 0;
    for (int k = 0; k < 8; k++) sum += b[1 + k];
    a[0] = sum;
}

KERNEL(atomic_mix, 1, 64, 0)
{
    __shared__ int count;
    if (threadIdx.x == 0) count = 0;
    __syncthreads();
    if (bad && threadIdx.x == 40) count += 1;
    else atomicAdd(&count, 1);
    __syncthreads();
    a[threadIdx.x] = count;
}

KERNEL(misaligned, 1, 32, 0)
{
    int4 *p = (int4 *)(a + (bad ? 1 : 0)) + threadIdx.x;
    *p = make_int4(1, 2, 3, 4);
}

/* Warp 1 goes past the first barrier and comes to the second alone. */
KERNEL(barrier, 1, 64, 0)
{
    a[threadIdx.x] = 1;
    if (!bad || threadIdx.x < 32) __syncthreads();
    b[threadIdx.x] = 1;
    __syncthreads();
    b[threadIdx.x + 64] = a[63 - threadIdx.x];
}

KERNEL(early_exit, 1, 64, 0)
{
    if (bad && threadIdx.x >= 32) return;
    __syncthreads();
    a[threadIdx.x] = 1;
}

KERNEL(shuffle_sites, 1, 32, 0)
{
    int v = (int)threadIdx.x;
    if (bad && v < 16) v = __shfl_xor_sync(ALL, v, 1) + a[0];
    else v = __shfl_xor_sync(ALL, v, 2) * 3;
    b[threadIdx.x] = v;
}

KERNEL(own_mask, 1, 32, 0)
{
    b[threadIdx.x] = __shfl_xor_sync(bad ? 0xffffu : ALL, (int)threadIdx.x, 1);
}

KERNEL(ended_lanes, 1, 32, 0)
{
    if (threadIdx.x >= 16) return;
    b[threadIdx.x] = __shfl_xor_sync(bad ? ALL : 0xffffu, (int)threadIdx.x, 1);
}

KERNEL(shuffle_inactive, 1, 32, 0)
{
    if (threadIdx.x >= 16) return;
    b[threadIdx.x] = __shfl_xor_sync(0xffffu, (int)threadIdx.x, bad ? 16 : 8);
}

/* Lanes exchange through shared memory; a warp barrier puts them in order. */
KERNEL(warp_sync, 1, 32, 0)
{
    __shared__ int s[32];
    s[threadIdx.x] = (int)threadIdx.x;
    if (!bad) __syncwarp();
    b[threadIdx.x] = s[31 - threadIdx.x];
}

KERNEL(matrix_divergent, 1, 32, 0)
{
    __shared__ __align__(16) int s[32 * 4];
    for (int k = 0; k < 4; k++) s[threadIdx.x * 4 + k] = k;
    __syncwarp();
    unsigned at = (unsigned)__cvta_generic_to_shared(s) + threadIdx.x * 16, r = 0;
    if (!bad || threadIdx.x < 31) {
        asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];" : "=r"(r) : "r"(at));
    }
    b[threadIdx.x] = (int)r;
}

/* A generic address is not an offset in shared memory. */
KERNEL(truncated, 1, 32, 0)
{
    __shared__ int s[32];
    s[threadIdx.x] = 1;
    unsigned at = bad ? (unsigned)(uintptr_t)&s[threadIdx.x]
                      : (unsigned)__cvta_generic_to_shared(&s[threadIdx.x]);
    int v;
    asm volatile("ld.shared.b32 %0, [%1];" : "=r"(v) : "r"(at) : "memory");
    b[threadIdx.x] = v;
}

KERNEL(wrong_space, 1, 32, 0)
{
    __shared__ int s[32];
    s[threadIdx.x] = 1;
    int *from = bad ? &s[threadIdx.x] : &a[threadIdx.x], v;
    asm volatile("ld.global.b32 %0, [%1];" : "=r"(v) : "l"(from) : "memory");
    b[threadIdx.x] = v + s[threadIdx.x];
}

/* bad 1: no wait at all; 2: one group too few is waited for. */
KERNEL(async_wait, 1, 32, 0)
{
    __shared__ __align__(16) int s[2][32 * 4];
    for (int k = 0; k < 2; k++) {
        unsigned at = (unsigned)__cvta_generic_to_shared(&s[k][threadIdx.x * 4]);
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16;\n"
                     "cp.async.commit_group;" :: "r"(at), "l"(a + 128 * k + threadIdx.x * 4)
                     : "memory");
    }
    if (bad == 2) asm volatile("cp.async.wait_group 1;" ::: "memory");
    if (!bad) asm volatile("cp.async.wait_group 0;" ::: "memory");
    __syncthreads();
    b[threadIdx.x] = s[1][127 - threadIdx.x];
}

KERNEL(endless, 1, 32, 0)
{
    volatile int *p = a;
    while (bad && p[0] != -1) { }
    b[threadIdx.x] = 1;
}

KERNEL(trap, 1, 32, 0)
{
    if (bad && threadIdx.x == 3) __trap();
    b[threadIdx.x] = 1;
}

/* More shared memory than a launch may have without being asked for. */
KERNEL(big_shared, 1, 32, 64 * 1024)
{
    extern __shared__ int s[];
    s[threadIdx.x] = bad;
    b[threadIdx.x] = s[threadIdx.x];
}

KERNEL(wide, 1, dim3(64, 32), 0) { a[0] = bad; }

/* Threads past the end do nothing. */
KERNEL(guarded, 5, 256, 0)
{
    if (INDEX < 1024 + (bad ? 1 : 0)) b[INDEX] = a[INDEX < 1024 ? INDEX : 0] * 2;
}

/* A launch that its launcher does not check. */
extern "C" cudaError_t k_unchecked(int *a, cudaStream_t s)
{
    fill<<<4, 256, 0, s>>>(0, a, a);
    return cudaSuccess;
}
