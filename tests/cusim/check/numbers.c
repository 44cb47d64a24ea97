/* tests/cusim/check/numbers.c - what instructions compute, against plain C. */
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "check.h"

typedef cudaError_t numbers(const uint32_t *in, uint32_t *out, cudaStream_t s);
numbers k_integers, k_switches, k_floats, k_halves, k_warps, k_matrices, k_atomics;

enum { IN = 1024, OUT = 131072 + 256 };
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

static uint32_t dot(uint32_t x, uint32_t y, uint32_t z)
{
    for (int k = 0; k < 4; k++) z += (uint32_t)((int8_t)(x >> 8 * k) * (int8_t)(y >> 8 * k));
    return z;
}

static uint32_t field(uint32_t x, uint32_t at, uint32_t length, bool is_signed)
{
    uint32_t r = 0, top = at + length - 1 < 31 ? at + length - 1 : 31;
    if (!length) return 0;
    for (uint32_t k = 0; k < 32; k++) {
        uint32_t bit = at + k > 31 ? 0 : x >> (at + k) & 1;
        if (k >= length || at + k > 31) bit = is_signed ? x >> top & 1 : 0;
        r |= bit << k;
    }
    return r;
}

static void integers(int unused)
{
    (void)unused;
    for (int i = 0; i < IN; i++) in[i] = i % 5 ? draw() : draw() >> (i % 31);
    run(k_integers);
    for (int i = 0; i < 256; i++) {
        uint32_t x = in[i], y = in[i + 256], z = in[i + 512], *o = out + 16 * i, r = 0;
        int32_t s = (int32_t)x, t = (int32_t)y;
        uint64_t xy = (uint64_t)x << 32 | y, yx = (uint64_t)y << 32 | x;
        EXPECT(o[0] == (uint64_t)x * y >> 32);
        EXPECT(o[1] == (uint32_t)((int64_t)s * t >> 32));
        EXPECT(o[2] == (y ? x / y : 0));
        EXPECT(o[3] == (t ? (uint32_t)((int64_t)s % t) : 0));
        EXPECT(o[4] == permute(x, y, z & 0x7777));
        EXPECT(o[5] == (uint32_t)__builtin_popcount(x) + 100u * (y ? __builtin_clz(y) : 32));
        for (int k = 0; k < 32; k++) r |= (x >> k & 1) << (31 - k);
        EXPECT(o[6] == r);
        EXPECT(o[7] == dot(x, y, z));
        EXPECT(o[8] == (uint32_t)(yx << (z & 31) >> 32));
        EXPECT(o[9] == (uint32_t)(yx >> (z & 31)));
        EXPECT(o[10] == field(x, y & 31, z & 31, true));
        EXPECT(o[11] == field(x, y & 31, z & 31, false));
        uint32_t mask = (uint32_t)(((1ull << (x & 15)) - 1) << (z & 31));
        EXPECT(o[12] == ((y & ~mask) | (x << (z & 31) & mask)));
        EXPECT(o[13] == ((x & y) | (~x & z)));
        EXPECT(o[14] == ((uint32_t)(xy / (z | 1)) ^ (uint32_t)((int64_t)xy % (int64_t)(z | 1))));
        EXPECT(o[15] == ((uint32_t)((xy << (z & 63)) >> 32) ^
                         (uint32_t)((int64_t)xy >> (z & 63))));
    }
}

static uint32_t switched(uint32_t v)
{
    uint32_t r = 0;
    for (int k = 0; k < 32; k++) r |= (v >> k & 1) << (31 - k);
    switch (v % 9) {
    case 0: return v * 3 + in[1];
    case 1: return v ^ in[2];
    case 2: return v / 7 + 1;
    case 3: return ~v + in[4];
    case 4: return (uint32_t)__builtin_popcount(v) * in[5];
    case 5: return v << 3 | 1;
    case 6: return v - in[6];
    case 7: return r + in[7];
    default: return 77;
    }
}

static void switches(int unused)
{
    (void)unused;
    for (int i = 0; i < IN; i++) in[i] = draw();
    run(k_switches);
    for (int i = 0; i < 256; i++) EXPECT(out[i] == switched(in[i]));
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
        EXPECT(near(o[2], exp(x), 8));
        EXPECT(near(o[3], 1 / sqrt(fabsf(x) + 1.0f), 4));
        EXPECT(near(o[4], (double)x / y, 1));
        EXPECT(o[5] == fmaxf(x, y) - fminf(x, y));
        EXPECT(o[6] == (float)(int)x + rintf(y));
        EXPECT(fabs(o[7] - (log(fabsf(y) + 1.0) + tanh(x))) < 1e-4);
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

/* E4M3 by its definition: no infinity, one NaN. */
static double e4m3_value(uint32_t b)
{
    if ((b & 127) == 127) return NAN;
    int exponent = b >> 3 & 15, mantissa = b & 7;
    double size = exponent ? ldexp(8 + mantissa, exponent - 10) : ldexp(mantissa, -9);
    return b & 128 ? -size : size;
}

/* The nearest of all 256 codes; a tie goes to the even one; too large to the largest. */
static uint32_t nearest_fp8(double v, bool e5m2)
{
    uint32_t best = 0, last = e5m2 ? 0x7b : 0x7e;
    double distance = INFINITY;
    for (uint32_t b = 0; b <= last; b++) {
        double d = fabs(fabs(v) - (e5m2 ? half_value(b, 5, 2) : e4m3_value(b)));
        if (d < distance || (d == distance && !(b & 1))) best = b, distance = d;
    }
    if (isinf(v)) best = last;
    return best | (signbit(v) ? 128 : 0);
}

static void halves(int unused)
{
    (void)unused;
    run(k_halves);
    for (uint32_t v = 0; v < 65536; v++) {
        double f = half_value(v, 5, 10), b = half_value(v, 8, 7);
        uint32_t pair = out[v], rest = out[65536 + v];
        if (!isnan(b)) EXPECT(pair >> 16 == v);
        if (isnan(f)) continue;
        EXPECT(fabs(half_value(pair & 0xffff, 8, 7) - f) <= fabs(f) / 256 || isinf(f));
        EXPECT((rest >> 16 & 255) == nearest_fp8(f, false));
        EXPECT((rest >> 24 & 255) == nearest_fp8(f, true));
        double again = half_value(rest & 0xffff, 5, 10);
        if (fabs(b) < 65504) EXPECT(fabs(again - b) <= fmax(fabs(b) / 2048, ldexp(1, -25)));
    }
    for (uint32_t b = 0; b < 256; b++) {
        double want = e4m3_value(b);
        if (!isnan(want)) EXPECT(half_value(out[131072 + b] & 0xffff, 5, 10) == want);
    }
}

static void warps(int unused)
{
    (void)unused;
    for (int i = 0; i < 64; i++) in[i] = draw();
    run(k_warps);
    int odd_all = 0;
    for (int i = 0; i < 64; i++) odd_all += in[i] & 1;
    for (int i = 0; i < 64; i++) {
        int l = i % 32, first = i - l;
        uint32_t *o = out + 8 * i, ballot = 0, sum = 0, any = 0, all = 1;
        int32_t most = INT32_MIN;
        for (int k = 0; k < 32; k++) {
            uint32_t v = in[first + k];
            ballot |= (v & 1) << k;
            sum += v;
            if ((int32_t)v > most) most = (int32_t)v;
            any |= v > 0xfff00000u;
            all &= v != 0;
        }
        EXPECT(o[0] == in[first + (l ^ 5)]);
        EXPECT(o[1] == in[l < 3 ? i : i - 3]);
        EXPECT(o[2] == in[l % 8 + 2 < 8 ? i + 2 : i]);
        EXPECT(o[3] == in[first + l / 16 * 16 + i * 7 % 16]);
        EXPECT(o[4] == ballot);
        EXPECT(o[5] == (sum ^ (uint32_t)most));
        EXPECT(o[6] == (uint32_t)odd_all);
        EXPECT(o[7] == any + 2 * all);
    }
}

static void matrices(int unused)
{
    (void)unused;
    uint16_t h[512];
    int8_t bytes[1024];
    for (int i = 0; i < 512; i++) {     /* small whole numbers, exact in bf16 */
        float f = (float)((int)(draw() % 17) - 8);
        uint32_t bits;
        memcpy(&bits, &f, 4);
        h[i] = (uint16_t)(bits >> 16);
    }
    memcpy(in, h, sizeof h);
    memcpy(bytes, h, sizeof bytes);
    run(k_matrices);
    for (int r = 0; r < 16; r++) {
        for (int c = 0; c < 8; c++) {
            double sum = 0;
            int32_t whole = 0;
            for (int k = 0; k < 16; k++) {
                sum += half_value(h[r * 16 + k], 8, 7) * half_value(h[256 + c * 16 + k], 8, 7);
            }
            for (int k = 0; k < 32; k++) whole += bytes[r * 32 + k] * bytes[512 + c * 32 + k];
            float got;
            memcpy(&got, &out[r * 8 + c], 4);
            EXPECT(got == sum);
            EXPECT((int32_t)out[128 + r * 8 + c] == whole);
        }
    }
}

static void atomics(int unused)
{
    (void)unused;
    uint32_t sum = 0, most = 0, bits = 0, mask = 0;
    int32_t least = INT32_MAX;
    float total = 0;
    for (int i = 0; i < 256; i++) {
        uint32_t v = in[i] = draw();
        sum += v;
        if ((int32_t)v < least) least = (int32_t)v;
        if (v > most) most = v;
        bits ^= v;
        total += (float)(v & 255);
        mask |= 1u << (v & 31);
    }
    run(k_atomics);
    float got;
    memcpy(&got, &out[4], 4);
    EXPECT(out[0] == sum && (int32_t)out[1] == least && out[2] == most && out[3] == bits);
    EXPECT(got == total && out[5] == 256 % 100 && out[6] == mask);
    EXPECT(out[7] >= 1 && out[7] <= 256);
}

#define ARCHS(name, run)                                                                         \
    {name ", 8.0", NULL, run, 0, "CUSIM_CC=8.0"}, {name ", 9.0", NULL, run, 0, "CUSIM_CC=9.0"},  \
    {name ", 10.0", NULL, run, 0, "CUSIM_CC=10.0"}
const struct row number_rows[] = {
    ARCHS("integers", integers), ARCHS("switches", switches), ARCHS("floats", floats),
    ARCHS("halves and fp8", halves), ARCHS("warp operations", warps), ARCHS("matrices", matrices),
    ARCHS("atomics", atomics),
    {NULL, NULL, NULL, 0, NULL},
};
