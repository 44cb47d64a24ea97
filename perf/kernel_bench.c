/* perf/kernel_bench.c - the matrix products alone, on one thread, for some row counts.
 *
 *   kernel_bench MODEL.gguf [OUT.json]
 *
 * Every tensor type and shape of the file that the engine can compute with, whatever the model's
 * architecture; the head also with 16-bit activations ("wide"), as the engine does it.  Each product
 * is compared with arithmetic in double at random places before it is timed, in tiles of rows and
 * panels as the engine cuts them.  Best of several, by the thread's CPU time; G of multiplies and
 * adds a second, and the share of this thread's 8-bit peak.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/mem.h"
#include "engine/cpu/kernels.h"
#include "figures.h"
#include "model/quant.h"
#include "peak.h"

enum { ROWS_MOST = 512, ROUNDS = 5, CHECKS = 64, TILE_ROWS = 64, SHAPES_MAX = 64 };
#define OPERATIONS 6e8                /* of one timing, about */
static const uint32_t row_counts[] = { 1, 4, 8, 16, 32, 128, ROWS_MOST };
enum { ROW_COUNTS = sizeof row_counts / sizeof *row_counts };

struct bench {
    const struct kernels *kernels;
    enum isa isa;
    double peak;                      /* G/s of 8-bit products; 0: unknown */
    float *out;
    uint64_t stride;
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

static void *take(size_t bytes)
{
    void *at = aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
    if (!at) die("no memory");
    return at;
}

static struct acts make_acts(const struct kernels *k, const struct matrix *m, bool wide)
{
    struct acts a = { .k = m->in, .f = mem_array((size_t)ROWS_MOST * m->in, sizeof *a.f) };
    for (size_t i = 0; i < (size_t)ROWS_MOST * m->in; i++) a.f[i] = (float)unit();
    if (matrix_is_float(m)) return a;
    size_t blocks = (size_t)ROWS_MOST / ROW_GROUP * (m->in / 32);
    if (wide) {
        a.wide = take(blocks * sizeof *a.wide);
    } else {
        a.q = take(blocks * sizeof *a.q);
    }
    if (!wide && matrix_has_pairs(m)) {
        a.pairs = take(blocks / 2 * sizeof *a.pairs);
        a.units = take(ROWS_MOST / ROW_GROUP * sizeof *a.units);
    }
    k->quantize(a.f, m->in, ROWS_MOST, m->in, &a, 0, 0);
    acts_finish(k, &a, 0, ROWS_MOST);
    return a;
}

/* The activation that the kernel saw. */
static double seen(const struct matrix *m, const struct acts *a, uint32_t row, uint32_t i)
{
    if (matrix_is_float(m) || a->wide) return (double)a->f[(size_t)row * a->k + i];
    const struct act_block *b = a->q + (size_t)(row / ROW_GROUP) * (a->k / 32) + i / 32;
    return (double)b->s.scale[row % ROW_GROUP] * b->q[row % ROW_GROUP][i % 32];
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
        double got = (double)b->out[(size_t)row * b->stride + column];
        if (!(fabs(got - sum) <= (a->wide ? 4e-5 : 2e-5) * size)) {
            die("wrong answer: %s, %u rows, row %u, output %u: %g, not %g", name, rows, row,
                column, got, sum);
        }
    }
    free(weights);
}

/* As the engine does it: some panels for 64 rows, then the next ones. */
static void product(const struct bench *b, const struct matrix *m, const struct acts *a,
                    uint32_t rows)
{
    uint32_t all = matrix_panels(m), chunk = (uint32_t)((24 << 10) / m->panel_bytes);
    chunk = chunk < 1 ? 1 : chunk > 8 ? 8 : chunk;
    for (uint32_t row = 0; row < rows; row += TILE_ROWS) {
        uint32_t n = rows - row < TILE_ROWS ? rows - row : TILE_ROWS;
        for (uint32_t p = 0; p < all; p += chunk) {
            float *out = b->out + row * b->stride + (uint64_t)p * PANEL;
            b->kernels->gemm(m, a, row, n, p, all - p < chunk ? all - p : chunk, out, b->stride,
                             false);
        }
    }
}

static double best_of(const struct bench *b, const struct matrix *m, const struct acts *a,
                      uint32_t rows)
{
    double ops = 2.0 * m->in * m->out * rows, best = 1e9;
    uint32_t times = 1 + (uint32_t)(OPERATIONS / ops);
    for (int r = 0; r < ROUNDS; r++) {
        double start = cpu_seconds(CLOCK_THREAD_CPUTIME_ID);
        for (uint32_t t = 0; t < times; t++) product(b, m, a, rows);
        double took = (cpu_seconds(CLOCK_THREAD_CPUTIME_ID) - start) / times;
        if (took < best) best = took;
    }
    return ops / best / 1e9;
}

/* "blk.3.ffn_gate.weight" as "ffn_gate". */
static void short_name(const char *name, char out[64])
{
    const char *from = strncmp(name, "blk.", 4) == 0 ? strchr(name + 4, '.') : NULL;
    snprintf(out, 64, "%s", from ? from + 1 : name);
    char *end = strstr(out, ".weight");
    if (end) *end = 0;
}

static void measure(struct bench *b, const struct matrix *m, bool wide)
{
    char name[64], label[128];
    short_name(m->from->name, name);
    struct acts a = make_acts(b->kernels, m, wide);
    b->stride = (matrix_panels(m) | 1) * PANEL;
    b->out = take(ROWS_MOST * b->stride * sizeof *b->out);
    snprintf(label, sizeof label, "%s%s", name, wide ? " wide" : "");
    printf("%-18s %-5s %6u x %-5u", label, tensor_type_name(m->from->type), m->out, m->in);
    for (int i = 0; i < ROW_COUNTS; i++) {
        uint32_t rows = row_counts[i];
        product(b, m, &a, rows);
        check(b, m, &a, rows, name);
        double speed = best_of(b, m, &a, rows);
        snprintf(label, sizeof label, "%s_%s%s_%u", name, tensor_type_name(m->from->type),
                 wide ? "_wide" : "", rows);
        figure(&b->figures, label, speed);
        printf(" %6.0f", speed);
        if (b->peak > 0) printf(" %3.0f%%", 100 * speed / b->peak);
        fflush(stdout);
    }
    printf("\n");
    free(b->out);
    free(a.f);
    free(a.q);
    free(a.wide);
    free(a.pairs);
    free(a.units);
}

/* A layout of one matrix: a model that is nothing but its head. */
static void measure_tensor(struct bench *b, const struct gguf_tensor *t)
{
    struct why why = { "" };
    struct model m = { .h = { .dim = (uint32_t)t->dims[0], .ffn_dim = 32, .heads = 1,
                              .head_dim = 32 }, .output = t };
    struct layout *l = mem_alloc(sizeof *l);
    layout_make(l, &m, b->isa);
    void *image = take(l->bytes);
    layout_pack(l, &m, image, 0, 1);
    if (layout_use(l, &m, image, &why)) die("%s", why.text);
    measure(b, &l->head, false);
    bool head = strstr(t->name, "token_embd") || strstr(t->name, "output.");
    if (head && !matrix_is_float(&l->head)) measure(b, &l->head, true);
    free(image);
    free(l);
}

static bool same_shape(const struct gguf_tensor *a, const struct gguf_tensor *b)
{
    return a->type == b->type && a->dims[0] == b->dims[0] && a->dims[1] == b->dims[1];
}

static void measure_file(struct bench *b, const struct gguf *g)
{
    const struct gguf_tensor *seen_shapes[SHAPES_MAX];
    uint32_t count = 0;
    for (uint32_t i = 0; i < gguf_tensor_count(g) && count < SHAPES_MAX; i++) {
        const struct gguf_tensor *t = gguf_tensor_at(g, i);
        bool fits = t->dim_count == 2 && tensor_type_computable(t->type) && t->dims[0] % 32 == 0;
        for (uint32_t j = 0; j < count; j++) fits = fits && !same_shape(t, seen_shapes[j]);
        if (!fits) continue;
        seen_shapes[count++] = t;
        measure_tensor(b, t);
    }
}

static double peak_of(enum isa isa)
{
    uint64_t (*peak)(uint64_t) = isa >= ISA_AVX512 ? peak_int8_avx512 : peak_int8_avx2;
    double best = 0, each = isa == ISA_PLAIN ? 0 : (double)peak(1);
    for (int i = 0; i < 4 * ROUNDS && each > 0; i++) {
        double start = cpu_seconds(CLOCK_THREAD_CPUTIME_ID);
        double ops = (double)peak((uint64_t)(OPERATIONS / each));
        double speed = ops / (cpu_seconds(CLOCK_THREAD_CPUTIME_ID) - start) / 1e9;
        best = speed > best ? speed : best;
    }
    return best;
}

int main(int argc, char **argv)
{
    struct why why = { "" };
    struct gguf *g;
    if (argc < 2) die("usage: kernel_bench MODEL.gguf [out.json]");
    if (gguf_open(&g, argv[1], &why)) die("%s", why.text);
    struct bench b = { .isa = isa_best() };
    b.kernels = kernels_of(b.isa);
    b.figures = figures_open(argc > 2 ? argv[2] : NULL);
    b.peak = peak_of(b.isa);
    printf("%s, one thread, G/s; 8-bit peak %.0f\n%30s rows:", isa_name(b.isa), b.peak, "");
    for (int i = 0; i < ROW_COUNTS; i++) printf(" %11u", row_counts[i]);
    printf("\n");
    measure_file(&b, g);
    figures_close(&b.figures);
    gguf_close(g);
    return 0;
}
