/* ctl/bench_report.c - the table and the JSON; see bench.h. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <jansson.h>

#include "ctl/bench.h"

static const struct {
    const char *name;
    double percent;
} columns[] = { { "p50", 50 }, { "p90", 90 }, { "p95", 95 }, { "p99", 99 }, { "max", 100 } };
enum { COLUMN_COUNT = sizeof columns / sizeof *columns, FIGURE_COUNT = 8 };

struct figure {
    const char *name, *title;
    struct samples *samples;
};

static void figures_of(struct bench_result *r, struct figure out[FIGURE_COUNT])
{
    const struct figure all[FIGURE_COUNT] = {
        { "ttft", "time to first token", &r->ttft },
        { "tpot", "time per output token", &r->tpot },
        { "itl", "between tokens", &r->itl },
        { "e2el", "whole request", &r->e2el },
        { "itl_before", "between tokens, before", &r->itl_before },
        { "itl_during", "between tokens, during", &r->itl_during },
        { "long_ttft", "long: first token", &r->long_ttft },
        { "long_e2el", "long: whole request", &r->long_e2el },
    };
    memcpy(out, all, sizeof all);
}

static double per_second(double amount, const struct bench_result *r)
{
    return r->duration_s > 0 ? amount / r->duration_s : 0;
}

static bool has_slo(const struct bench_slo *s)
{
    return s->ttft > 0 || s->tpot > 0 || s->itl > 0 || s->e2el > 0;
}

/* How much worse the streams' 99th percentile got; 0: not measured. */
static double interference(struct bench_result *r)
{
    double before = samples_percentile(&r->itl_before, 99);
    return before > 0 ? samples_percentile(&r->itl_during, 99) / before : 0;
}

void bench_print(const struct bench_options *o, struct bench_result *r)
{
    struct figure figures[FIGURE_COUNT];
    figures_of(r, figures);
    printf("%llu requests: %llu completed, %llu failed, %llu cut off; %.2f s, at most %u at once\n",
           (unsigned long long)r->sent, (unsigned long long)r->completed,
           (unsigned long long)r->failed, (unsigned long long)r->cut, r->duration_s,
           r->running_max);
    printf("%.2f requests/s, %.2f output tokens/s (%llu in, %llu out)\n",
           per_second((double)r->completed, r), per_second((double)r->output_tokens, r),
           (unsigned long long)r->input_tokens, (unsigned long long)r->output_tokens);
    if (has_slo(&o->slo)) {
        printf("%.2f requests/s good (%llu of %llu)\n", per_second((double)r->good, r),
               (unsigned long long)r->good, (unsigned long long)r->completed);
    }
    if (o->request_rate > 0) printf("sent late by at most %.1f ms\n", r->late_max_ms);
    printf("\n%-24s %9s", "milliseconds", "mean");
    for (int i = 0; i < COLUMN_COUNT; i++) printf(" %9s", columns[i].name);
    printf("\n");
    for (int f = 0; f < FIGURE_COUNT; f++) {
        struct samples *s = figures[f].samples;
        if (!s->count) continue;
        printf("%-24s %9.2f", figures[f].title, samples_mean(s));
        for (int i = 0; i < COLUMN_COUNT; i++) {
            printf(" %9.2f", samples_percentile(s, columns[i].percent));
        }
        printf("\n");
    }
    if (interference(r) > 0) printf("\nbetween tokens, p99: %.2f x\n", interference(r));
    for (uint32_t i = 0; i < r->error_kinds; i++) {
        printf("%s%llu x %s\n", i ? "" : "\nfailed: ", (unsigned long long)r->errors[i].count,
               r->errors[i].text);
    }
    if (*r->first_error) printf("first: %s\n", r->first_error);
}

static void set_real(json_t *out, const char *name, double value)
{
    json_object_set_new(out, name, json_real(value));
}

static void add_count(json_t *out, const char *name, uint64_t value)
{
    json_object_set_new(out, name, json_integer((json_int_t)value));
}

static void add_figure(json_t *out, const struct figure *f)
{
    char name[64];
    snprintf(name, sizeof name, "mean_%s_ms", f->name);
    set_real(out, name, samples_mean(f->samples));
    snprintf(name, sizeof name, "median_%s_ms", f->name);
    set_real(out, name, samples_percentile(f->samples, 50));
    for (int i = 0; i < COLUMN_COUNT; i++) {
        snprintf(name, sizeof name, "%s_%s_ms", columns[i].name, f->name);
        set_real(out, name, samples_percentile(f->samples, columns[i].percent));
    }
    snprintf(name, sizeof name, "%s_count", f->name);
    add_count(out, name, f->samples->count + f->samples->dropped);
}

static void add_options(json_t *out, const struct bench_options *o)
{
    char date[32];
    time_t now = time(NULL);
    struct tm parts;
    strftime(date, sizeof date, "%Y-%m-%dT%H:%M:%SZ", gmtime_r(&now, &parts));
    json_object_set_new(out, "date", json_string(date));
    json_object_set_new(out, "endpoint_type", json_string(o->chat ? "chat" : "completions"));
    json_object_set_new(out, "model_id", json_string(o->model));
    add_count(out, "num_prompts", o->num_prompts);
    add_count(out, "input_len", o->input_len);
    add_count(out, "output_len", o->output_len);
    add_count(out, "shared_prefix_len", o->shared_prefix_len);
    add_count(out, "max_concurrency", o->max_concurrency);
    if (o->request_rate > 0) set_real(out, "request_rate", o->request_rate);
    else json_object_set_new(out, "request_rate", json_string("inf"));
    set_real(out, "burstiness", o->burstiness);
    add_count(out, "seed", o->seed);
    if (!o->long_prompts) return;
    add_count(out, "long_prompts", o->long_prompts);
    add_count(out, "long_input_len", o->long_input_len);
    add_count(out, "long_output_len", o->long_output_len);
    set_real(out, "long_interval_s", o->long_interval_s);
}

static void add_counts(json_t *out, const struct bench_options *o, const struct bench_result *r)
{
    add_count(out, "sent", r->sent);
    add_count(out, "completed", r->completed);
    add_count(out, "failed", r->failed);
    add_count(out, "cut_off", r->cut);
    add_count(out, "total_input_tokens", r->input_tokens);
    add_count(out, "total_output_tokens", r->output_tokens);
    add_count(out, "max_concurrent_requests", r->running_max);
    set_real(out, "duration", r->duration_s);
    set_real(out, "request_throughput", per_second((double)r->completed, r));
    set_real(out, "output_throughput", per_second((double)r->output_tokens, r));
    set_real(out, "total_token_throughput",
             per_second((double)(r->input_tokens + r->output_tokens), r));
    if (has_slo(&o->slo)) {
        add_count(out, "good", r->good);
        set_real(out, "request_goodput", per_second((double)r->good, r));
    }
    if (o->request_rate > 0) set_real(out, "max_send_delay_ms", r->late_max_ms);
}

char *bench_json(const struct bench_options *o, struct bench_result *r)
{
    struct figure figures[FIGURE_COUNT];
    figures_of(r, figures);
    json_t *out = json_object(), *errors = json_object();
    add_options(out, o);
    add_counts(out, o, r);
    for (int f = 0; f < FIGURE_COUNT; f++) {
        if (f < 4 || figures[f].samples->count) add_figure(out, &figures[f]);
    }
    if (interference(r) > 0) set_real(out, "itl_p99_ratio", interference(r));
    for (uint32_t i = 0; i < r->error_kinds; i++) {
        add_count(errors, r->errors[i].text, r->errors[i].count);
    }
    json_object_set_new(out, "errors", errors);
    if (*r->first_error) json_object_set_new(out, "first_error", json_string(r->first_error));
    char *text = json_dumps(out, JSON_INDENT(1) | JSON_REAL_PRECISION(9));
    json_decref(out);
    return text;
}
