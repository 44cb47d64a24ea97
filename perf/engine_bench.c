/* perf/engine_bench.c - the CPU backend alone: prefill, decode at depth, batches.
 *
 *   engine_bench MODEL.gguf [threads] [isa]
 *
 * Best of several; `cpu` is from the process's CPU time (as if its threads had cores of their own),
 * which holds where other processes take part of the machine.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/clock.h"
#include "common/mem.h"
#include "engine/backend.h"

enum { BLOCK = 16, STEP = 2048, SEQS = 32, TOKENS = 4608 };

struct bench {
    void *self;
    uint32_t threads;
    int32_t ids[STEP];
    uint32_t blocks[SEQS][TOKENS / BLOCK];
};

static double cpu_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

/* One step of `seqs` sequences with `count` tokens each at `depth`, and a greedy token for each. */
static void one_step(struct bench *b, uint32_t seqs, uint32_t depth, uint32_t count)
{
    struct step_seq seq[SEQS];
    uint32_t rows[SEQS];
    struct sampling params = { .max_tokens = 1, .top_p = 1, .repetition_penalty = 1 };
    struct sample_job *jobs = mem_array(seqs, sizeof *jobs);
    for (uint32_t i = 0; i < seqs; i++) {
        seq[i] = (struct step_seq){ depth, count, i * count, b->blocks[i] };
        rows[i] = i * count + count - 1;
        jobs[i].logit = i;
        jobs[i].params = &params;
        jobs[i].history = b->ids;
        jobs[i].prompt_count = jobs[i].history_count = 1;
    }
    struct step s = { .ids = b->ids, .token_count = seqs * count, .seq_count = seqs, .seqs = seq,
                      .logit_rows = rows, .logit_count = seqs };
    CHECK(backend_cpu.step(b->self, &s) == OK);
    CHECK(backend_cpu.sample(b->self, jobs, seqs) == OK);
    free(jobs);
}

static void measure(struct bench *b, const char *what, uint32_t seqs, uint32_t depth,
                    uint32_t count, uint32_t times)
{
    double best = 1e9, best_cpu = 1e9;
    for (uint32_t i = 0; i < 3; i++) {
        uint64_t wall = clock_now_ns();
        double cpu = cpu_now();
        for (uint32_t t = 0; t < times; t++) one_step(b, seqs, depth + (count == 1 ? t : 0), count);
        double took = (double)(clock_now_ns() - wall) / 1e9;
        cpu = (cpu_now() - cpu) / b->threads;
        best = took < best ? took : best;
        best_cpu = cpu < best_cpu ? cpu : best_cpu;
    }
    double tokens = (double)seqs * count * times;
    printf("%-28s %8.0f tok/s  %8.0f cpu\n", what, tokens / best, tokens / best_cpu);
    fflush(stdout);
}

int main(int argc, char **argv)
{
    struct why why = { "" };
    struct gguf *g;
    struct model *m;
    if (argc < 2) die("usage: engine_bench MODEL.gguf [threads]");
    if (gguf_open(&g, argv[1], &why) || model_open(&m, g, &why)) die("%s", why.text);
    struct bench *b = mem_alloc(sizeof *b);
    b->threads = argc > 2 ? (uint32_t)strtoul(argv[2], NULL, 10) : 2;
    struct backend_config c = { .model = m, .threads = b->threads, .isa = isa_best(),
                                .block_tokens = BLOCK, .kv_bytes = UINT64_C(3) << 30,
                                .step_tokens_max = STEP, .step_seqs_max = SEQS,
                                .seq_tokens_max = TOKENS };
    struct kv_shape shape;
    uint64_t before = clock_now_ns();
    if (backend_cpu.open(&b->self, &c, &shape, &why)) die("%s", why.text);
    printf("%s, %u threads, open %.2f s\n", isa_name(c.isa), b->threads,
           (double)(clock_now_ns() - before) / 1e9);
    for (uint32_t i = 0; i < STEP; i++) b->ids[i] = (int32_t)(i * 37 % 20000);
    uint32_t per_seq = shape.block_count / SEQS;
    if (per_seq > TOKENS / BLOCK) per_seq = TOKENS / BLOCK;
    for (uint32_t s = 0; s < SEQS; s++) {
        for (uint32_t i = 0; i < TOKENS / BLOCK; i++) b->blocks[s][i] = s * per_seq + i % per_seq;
    }
    measure(b, "prefill 512", 1, 0, 512, 2);
    measure(b, "prefill 2048", 1, 0, 2048, 1);
    measure(b, "decode, 1 stream", 1, 64, 1, 40);
    measure(b, "decode, 1 at depth 4096", 1, 4096, 1, 10);
    measure(b, "decode, 8 streams", 8, 256, 1, 10);
    measure(b, "decode, 32 streams", 32, 256, 1, 4);
    backend_cpu.close(b->self);
    model_close(m);
    gguf_close(g);
    free(b);
    return 0;
}
