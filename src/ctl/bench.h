/* ctl/bench.h - rankservectl bench: a load generator for any server that speaks OpenAI's HTTP.
 *
 *   bench.c         flags, and the run from start to report
 *   bench_work.c    what is asked, and when: prompts, bodies, arrivals; a function of the seed
 *   bench_stream.c  one answer as it arrives: server-sent events and their times
 *   bench_stats.c   samples, percentiles, goodput
 *   bench_run.c     the loop: sends what is due, at most so many at once
 *   bench_report.c  the table and the JSON
 *
 * Names of flags and figures are those of `vllm bench serve`.  Every request streams.  Memory is
 * bounded by the limits below, time by --duration.
 */
#ifndef RANKSERVE_CTL_BENCH_H
#define RANKSERVE_CTL_BENCH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/limits.h"
#include "common/mem.h"

enum {
    BENCH_PROMPTS_MAX = 1000000,
    BENCH_CONCURRENCY_MAX = 1024,
    BENCH_TOKENS_MAX = SEQ_TOKENS_MAX,
    BENCH_SECONDS_MAX = 24 * 3600,
    BENCH_SAMPLES_MAX = 16 << 20,     /* of one figure; later ones are counted, not kept */
    BENCH_ERROR_KINDS_MAX = 16,
    BENCH_ERROR_BYTES = 96,
    BENCH_LINE_BYTES_MAX = 4 << 20,   /* of one server-sent event */
};

/* Limits of a good request, milliseconds; 0: none. */
struct bench_slo {
    double ttft, tpot, itl, e2el;
};

struct bench_options {
    const char *model;
    bool chat, text_prompts, ignore_eos;
    uint32_t num_prompts, input_len, output_len, shared_prefix_len;
    uint32_t token_first, token_last; /* ids of prompts made of ids */
    uint32_t max_concurrency;
    double request_rate;              /* a second; 0: as fast as --max-concurrency lets */
    double burstiness;                /* shape of the gamma distribution; 1: Poisson    */
    uint32_t long_prompts, long_input_len, long_output_len;
    double long_interval_s;
    struct bench_slo slo;
    uint64_t seed;
    double duration_s;
    uint32_t warmup;
};

/* bench_stats.c ------------------------------------------------------------------------------- */

struct samples {
    float *at;
    size_t count, room;
    uint64_t dropped;
    bool sorted;
};
void samples_add(struct samples *s, double value);
void samples_release(struct samples *s);
/* 0..100, linear between neighbours; 0 when there are no samples. */
double samples_percentile(struct samples *s, double percent);
double samples_mean(const struct samples *s);

/* One request's times, milliseconds. */
struct bench_times {
    double ttft, tpot, e2el, itl_max;
};
bool slo_met(const struct bench_slo *slo, const struct bench_times *t);
/* "ttft:200", "itl:50", ...; false when it is none. */
bool slo_parse(struct bench_slo *slo, const char *text);

/* bench_work.c -------------------------------------------------------------------------------- */

/* `random` is the state of common/splitmix.h. */
double draw_gamma(uint64_t *random, double shape);
/* Seconds to the next arrival; mean 1/request_rate. */
double draw_interval(uint64_t *random, double request_rate, double burstiness);

enum { WORK_WARMUP = 1 << 30, WORK_LONG = 1 << 29 };   /* prompts of these kinds start here */

/* `words_per_token` turns lengths into words of text prompts. */
struct work {
    const struct bench_options *o;
    double words_per_token;
};
/* Words of a made-up text of `count` words; the same for the same seed and index. */
void work_text(uint64_t seed, uint32_t index, uint32_t count, struct buf *out);
/* The JSON of request `index`; the caller frees it. */
char *work_body(const struct work *w, uint32_t index);

/* bench_stream.c ------------------------------------------------------------------------------ */

/* One answer.  The first chunk with text is the first token; gaps lie between such chunks. */
struct stream {
    struct buf line;
    uint64_t sent_ns, first_ns, last_ns;
    uint32_t chunks;                  /* that carried text                        */
    uint32_t prompt_tokens, output_tokens;   /* from usage; 0: the server gave none */
    double itl_max_ms;
    bool done;                        /* "[DONE]" was seen */
    char error[BENCH_ERROR_BYTES];    /* "": none so far   */
    void (*gap)(void *context, uint64_t from_ns, uint64_t to_ns);
    void *context;
};
/* Starts anew; keeps gap, context and memory. */
void stream_start(struct stream *s, uint64_t now_ns);
/* Bytes that arrived at `now_ns`; false when they cannot be an answer. */
bool stream_take(struct stream *s, const char *data, size_t bytes, uint64_t now_ns);
void stream_end(struct stream *s);    /* a last line without its end is an event too */
uint32_t stream_tokens(const struct stream *s);
struct bench_times stream_times(const struct stream *s, uint64_t end_ns);

/* bench_run.c --------------------------------------------------------------------------------- */

struct error_kind {
    char text[BENCH_ERROR_BYTES];
    uint64_t count;
};

struct bench_result {
    uint64_t sent, completed, failed, cut, good;   /* cut: still ran at the end of time */
    uint64_t input_tokens, output_tokens;          /* output: also of those cut          */
    double duration_s;
    uint32_t running_max;
    double late_max_ms;               /* sent after it was due, by at most this          */
    struct samples ttft, tpot, itl, e2el;
    /* Long prompts only: gaps of the streams before and during, and the long ones' own figures. */
    struct samples itl_before, itl_during, long_ttft, long_e2el;
    struct error_kind errors[BENCH_ERROR_KINDS_MAX];
    uint32_t error_kinds;
    char first_error[BENCH_ERROR_BYTES * 8];
    bool interrupted;
};

struct endpoint;
/* Runs warm-up and load; `result` starts zeroed. */
void bench_run(const struct endpoint *at, const struct work *work, struct bench_result *result);
void bench_result_release(struct bench_result *r);
void bench_count_error(struct bench_result *r, const char *kind, const char *detail);

/* bench_report.c ------------------------------------------------------------------------------ */

void bench_print(const struct bench_options *o, struct bench_result *r);
/* The JSON text; the caller frees it. */
char *bench_json(const struct bench_options *o, struct bench_result *r);

#endif
