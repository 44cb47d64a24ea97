/* tests/cusim/check/numbers.c - what instructions compute, against plain C. */
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "check.h"

typedef cudaError_t numbers(const uint32_t *in, uint32_t *out, cudaStream_t s);
numbers k_integers, k_switches, k_floats, k_halves, k_warps, k_matrices, k_atomics;

enum { IN = 1024, OUT = 131072 };
static uint32_t in[IN], out[OUT];

static uint32_t draw(void)
{
    static uint64_t state = 42;
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(state >> 32);
}

static void run(numbers *kernel)
{
    cudaStream_t s = new_stream();
    uint32_t *a = on_device(sizeof in), *b = on_device(sizeof out), *h = pinned(sizeof out);
    memcpy(h, in, sizeof in);
    CK(cudaMemcpyAsync(a, h, sizeof in, cudaMemcpyHostToDevice, s));
    CK(cudaMemsetAsync(b, 0, sizeof out, s));
    CK(cudaStreamSynchronize(s));
    CK(kernel(a, b, s));
    CK(cudaMemcpyAsync(h, b, sizeof out, cudaMemcpyDeviceToHost, s));
    CK(cudaStreamSynchronize(s));
    memcpy(out, h, sizeof out);
    CK(cudaFree(a));
    CK(cudaFree(b));
    CK(cudaFreeHost(h));
}

static uint32_t permute(uint32_t x, uint32_t y, uint32_t z)
{
    uint8_t bytes[8];
    uint32_t r = 0;
    memcpy(bytes, &x, 4);
    memcpy(bytes + 4, &y, 4);
    for (int k = 0; k < 4; k++) r |= (uint32_t)bytes[z >> 4 * k & 7] << 8 * k;
    return r;
}

static void integers(int unused)
{
    (void)unused;
    for (int i = 0; i < IN; i++) in[i] = i % 5 ? draw() : draw() >> (i % 31);
    run(k_integers);
    for (int i = 0; i < 256; i++) {
        uint32_t x = in[i], y = in[i + 256], z = in[i + 512], *o = out + 8 * i;
        int32_t s = (int32_t)x, t = (int32_t)y;
        uint64_t xy = (uint64_t)x << 32 | y, yx = (uint64_t)y << 32 | x;
        EXPECT(o[0] == (y ? x / y : 0));
        EXPECT(o[1] == (t ? (uint32_t)((int64_t)s % t) : 0));
        EXPECT(o[2] == permute(x, y, z & 0x7777));
        EXPECT(o[3] == (uint32_t)(yx << (z & 31) >> 32));
        uint32_t mask = (uint32_t)(((1ull << (x & 15)) - 1) << (z & 31));
        EXPECT(o[4] == ((y & ~mask) | (x << (z & 31) & mask)));
        EXPECT(o[5] == ((uint32_t)(xy / (z | 1)) ^ (uint32_t)((int64_t)xy / (int64_t)(z | 1))));
        EXPECT(o[6] == ((uint32_t)((xy << (z & 63)) >> 32) ^ (uint32_t)(xy >> (z & 63))));
        EXPECT(o[7] == (x ^ y) + (x < z ? x : z) * 3 + (y > z ? y : z));
    }
}

static uint32_t switched(uint32_t v, uint32_t which)
{
    switch (which) {
    case 0: return v * 3 + in[1];
    case 1: return v ^ in[2];
    case 2: return v / 7 + 1;
    case 3: return ~v + in[4];
    case 4: return v * in[5];
    case 5: return v << 3 | 1;
    case 6: return v - in[6];
    case 7: return v % 1000 + in[7];
    default: return 77;
    }
}

static void switches(int unused)
{
    (void)unused;
    for (int i = 0; i < IN; i++) in[i] = i / 256 == 1 ? draw() % 9 : draw();
    run(k_switches);
    for (int i = 0; i < 256; i++) EXPECT(out[i] == switched(in[i], in[i + 256]));
}

static bool near(float got, double want, double ulps)
{
    if (isnan(want)) return isnan(got);
    if (isinf((float)want)) return got == (float)want;
    return fabs(got - want) <= ulps * (fabs(want) * ldexp(1, -23) + ldexp(1, -149));
}

static void floats(int unused)
{
    (void)unused;
    for (int i = 0; i < 256; i++) {
        float f = i < 16 ? (float)(i - 8) * 40 : ((float)draw() / 4294967296.0f - 0.5f) * 60;
        memcpy(&in[i], &f, 4);
    }
    run(k_floats);
    for (int i = 0; i < 256; i++) {
        float x, y, o[8];
        memcpy(&x, &in[i], 4);
        memcpy(&y, &in[255 - i], 4);
        memcpy(o, out + 8 * i, sizeof o);
        EXPECT(near(o[0], fma(x, y, 1.5), 1));
        EXPECT(near(o[1], exp2(x), 4));
        EXPECT(o[2] == 1 / (x * x + 1) || near(o[2], 1 / ((double)x * x + 1), 2));
        EXPECT(near(o[3], sqrt(fabsf(x) + 1.0f), 1));
        EXPECT(near(o[4], (double)x / y, 1));
        EXPECT(o[5] == fmaxf(x, y) - fminf(x, y));
        EXPECT(o[6] == rintf(x) - (float)i);
        EXPECT(o[7] == (x < y ? -x : y));
    }
}

/* Halves by their definition: value = mantissa * 2^exponent. */
static double half_value(uint32_t h, int exponent_bits, int mantissa_bits)
{
    int bias = (1 << (exponent_bits - 1)) - 1, exponent = (int)(h >> mantissa_bits);
    int mantissa = (int)(h & ((1u << mantissa_bits) - 1));
    exponent &= (1 << exponent_bits) - 1;
    double sign = h >> (exponent_bits + mantissa_bits) & 1 ? -1 : 1;
    if (exponent == (1 << exponent_bits) - 1) return mantissa ? NAN : sign * INFINITY;
    if (!exponent) return sign * ldexp(mantissa, 1 - bias - mantissa_bits);
    return sign * ldexp(mantissa + (1 << mantissa_bits), exponent - bias - mantissa_bits);
}

/* Within half a unit of the last place. */
static bool half_near(double got, double want)
{
    if (fabs(want) >= 65520) return isinf(got) && signbit(got) == signbit(want);
    return fabs(got - want) <= fmax(fabs(want) / 2048, ldexp(1, -25));
}

static void halves(int unused)
{
    (void)unused;
    run(k_halves);
    for (uint32_t v = 0; v < 65536; v++) {
        double f = half_value(v, 5, 10);
        if (isnan(f) || isinf(f)) continue;
        double low = half_value(out[v] & 0xffff, 5, 10), high = half_value(out[v] >> 16, 5, 10);
        double square = half_value(out[65536 + v] & 0xffff, 5, 10);
        EXPECT((out[v] & 0xffff) == v);
        EXPECT(half_near(high, (double)((float)f * 0.7f)));
        if (fabs(low) < 200) EXPECT(fabs(square - (low - low * low)) <= low * low / 1000 + 1e-3);
    }
}

static void warps(int unused)
{
    (void)unused;
    for (int i = 0; i < 64; i++) in[i] = draw();
    run(k_warps);
    for (int i = 0; i < 64; i++) {
        EXPECT(out[2 * i] == in[i ^ 5]);
        EXPECT(out[2 * i + 1] == in[i ^ 4]);
    }
}

static void matrices(int unused)
{
    (void)unused;
    static const uint16_t halves_of[] = {0, 0x3c00, 0x4000, 0x4200, 0x4400, 0x4500, 0x4600, 0x4700};
    uint16_t h[512];
    for (int i = 0; i < 512; i++) {     /* whole numbers from -7 to 7 */
        h[i] = (uint16_t)(halves_of[draw() % 8] | (draw() & 1) << 15);
    }
    memcpy(in, h, sizeof h);
    run(k_matrices);
    for (int r = 0; r < 16; r++) {
        for (int c = 0; c < 8; c++) {
            double rows = 0, columns = 0;
            for (int k = 0; k < 16; k++) {
                double a = half_value(h[r * 16 + k], 5, 10);
                rows += a * half_value(h[256 + c * 16 + k], 5, 10);
                columns += a * half_value(h[256 + k * 8 + c], 5, 10);
            }
            float got[2];
            memcpy(&got[0], &out[r * 8 + c], 4);
            memcpy(&got[1], &out[128 + r * 8 + c], 4);
            EXPECT(got[0] == rows && got[1] == columns);
        }
    }
}

static void atomics(int unused)
{
    (void)unused;
    uint32_t sum = 0;
    for (int i = 0; i < 256; i++) sum += in[i] = draw();
    run(k_atomics);
    EXPECT(out[0] == sum && out[1] == 256 % 100);
}

#define ARCHS(name, run)                                                                         \
    {name ", 8.0", NULL, run, 0, "CUSIM_CC=8.0"}, {name ", 9.0", NULL, run, 0, "CUSIM_CC=9.0"},  \
    {name ", 10.0", NULL, run, 0, "CUSIM_CC=10.0"}
const struct row number_rows[] = {
    ARCHS("integers", integers), ARCHS("switches", switches), ARCHS("floats", floats),
    ARCHS("halves", halves), ARCHS("warp operations", warps), ARCHS("matrices", matrices),
    ARCHS("atomics", atomics),
    {NULL, NULL, NULL, 0, NULL},
};
