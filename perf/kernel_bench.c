/* perf/kernel_bench.c - the matrix products alone, on one thread, for some row counts.
 *
 *   kernel_bench MODEL.gguf [OUT.json]
 *
 * Each product is compared with arithmetic in double at random places before it is timed.  Best of
 * several, by the thread's CPU time; G of multiplies and adds a second.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/mem.h"
#include "engine/cpu/kernels.h"
#include "figures.h"
#include "model/quant.h"

enum { ROWS_MOST = 512, ROUNDS = 5, CHECKS = 64 };
static const uint32_t row_counts[] = { 1, 4, 8, 16, 32, 128, ROWS_MOST };
enum { ROW_COUNTS = sizeof row_counts / sizeof *row_counts };

struct bench {
    const struct kernels *kernels;
    struct layout layout;
    float *out;
    struct figures figures;
};

static uint64_t seed = 1;

static double unit(void)              /* -1 .. 1 */
{
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (double)(int64_t)seed * 0x1p-63;
}

static uint32_t below(uint32_t n)
{
    return (uint32_t)((unit() + 1) / 2 * (n - 1));
}

static struct acts make_acts(const struct kernels *k, const struct matrix *m)
{
    struct acts a = { .k = m->in, .f = mem_array((size_t)ROWS_MOST * m->in, sizeof *a.f) };
    for (size_t i = 0; i < (size_t)ROWS_MOST * m->in; i++) a.f[i] = (float)unit();
    if (matrix_is_float(m)) return a;
    a.q = aligned_alloc(64, (size_t)ROWS_MOST / ROW_GROUP * (m->in / 32) * sizeof *a.q);
    if (!a.q) die("no memory");
    for (uint32_t r = 0; r < ROWS_MOST; r++) {
        k->quantize(a.f + (size_t)r * m->in, m->in, &a, r, 0);
    }
    return a;
}

/* The activation that the kernel saw. */
static double seen(const struct matrix *m, const struct acts *a, uint32_t row, uint32_t i)
{
    if (matrix_is_float(m)) return (double)a->f[(size_t)row * a->k + i];
    const struct act_block *b = a->q + (size_t)(row / ROW_GROUP) * (a->k / 32) + i / 32;
    return (double)b->scale[row % ROW_GROUP] * b->q[row % ROW_GROUP][i % 32];
}

static void check(const struct bench *b, const struct matrix *m, const struct acts *a,
                  uint32_t rows, const char *name)
{
    const struct gguf_tensor *t = m->from;
    size_t row_bytes = (size_t)t->bytes / m->out;
    float *weights = mem_array(m->in, sizeof *weights);
    for (int n = 0; n < CHECKS; n++) {
        uint32_t row = below(rows), column = below(m->out);
        tensor_dequantize(t->type, (const uint8_t *)t->data + row_bytes * column, weights, m->in);
        double sum = 0, size = 0;
        for (uint32_t i = 0; i < m->in; i++) {
            double term = (double)weights[i] * seen(m, a, row, i);
            sum += term;
            size += fabs(term);
        }
        double got = (double)b->out[(size_t)row * m->out + column];
        if (!(fabs(got - sum) <= 2e-5 * size)) {
            die("wrong answer: %s, %u rows, row %u, output %u: %g, not %g", name, rows, row,
                column, got, sum);
        }
    }
    free(weights);
}

/* All rows and outputs in one call. */
static void product(const struct bench *b, const struct matrix *m, const struct acts *a,
                    uint32_t rows)
{
    b->kernels->gemm(m, a, 0, rows, 0, matrix_panels(m), b->out, m->out, false);
}

static void measure(struct bench *b, const char *name, const struct matrix *m)
{
    struct acts a = make_acts(b->kernels, m);
    b->out = mem_array((size_t)ROWS_MOST * matrix_panels(m) * PANEL, sizeof *b->out);
    printf("%-8s %6u x %-6u", name, m->out, m->in);
    for (int i = 0; i < ROW_COUNTS; i++) {
        uint32_t rows = row_counts[i];
        double ops = 2.0 * m->in * m->out * rows, best = 1e9;
        uint32_t times = 1 + (uint32_t)(1e9 / ops);
        product(b, m, &a, rows);
        check(b, m, &a, rows, name);
        for (int r = 0; r < ROUNDS; r++) {
            double start = cpu_seconds(CLOCK_THREAD_CPUTIME_ID);
            for (uint32_t t = 0; t < times; t++) product(b, m, &a, rows);
            double took = (cpu_seconds(CLOCK_THREAD_CPUTIME_ID) - start) / times;
            if (took < best) best = took;
        }
        char label[64];
        snprintf(label, sizeof label, "%s_%u", name, rows);
        figure(&b->figures, label, ops / best / 1e9);
        printf(" %8.1f", ops / best / 1e9);
        fflush(stdout);
    }
    printf("\n");
    free(b->out);
    free(a.f);
    free(a.q);
}

int main(int argc, char **argv)
{
    struct why why = { "" };
    struct gguf *g;
    struct model *m;
    if (argc < 2) die("usage: kernel_bench MODEL.gguf [out.json]");
    if (gguf_open(&g, argv[1], &why) || model_open(&m, g, &why)) die("%s", why.text);
    struct bench *b = mem_alloc(sizeof *b);
    enum isa isa = layout_simd_fits(&m->h) ? isa_best() : ISA_PLAIN;
    b->kernels = isa == ISA_PLAIN ? &kernels_plain : isa == ISA_AVX2 ? &kernels_avx2
                                                                    : &kernels_avx512;
    b->figures = figures_open(argc > 2 ? argv[2] : NULL);
    layout_make(&b->layout, m, isa == ISA_PLAIN);
    void *image = aligned_alloc(4096, (b->layout.bytes + 4095) / 4096 * 4096);
    if (!image) die("no memory for the weights");
    layout_pack(&b->layout, m, image, 0, 1);
    if (layout_use(&b->layout, m, image, &why)) die("%s", why.text);
    printf("%s, one thread, G/s     rows:", isa_name(isa));
    for (int i = 0; i < ROW_COUNTS; i++) printf(" %8u", row_counts[i]);
    printf("\n");
    measure(b, "q", &b->layout.layers[0].q);
    measure(b, "gate", &b->layout.layers[0].gate);
    measure(b, "down", &b->layout.layers[0].down);
    measure(b, "head", &b->layout.head);
    figures_close(&b->figures);
    free(image);
    model_close(m);
    gguf_close(g);
    free(b);
    return 0;
}
