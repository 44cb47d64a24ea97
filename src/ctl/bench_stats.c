/* ctl/bench_stats.c - samples, percentiles, goodput; see bench.h. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "ctl/bench.h"

void samples_add(struct samples *s, double value)
{
    if (s->count == s->room) {
        if (s->room == BENCH_SAMPLES_MAX) {
            s->dropped++;
            return;
        }
        s->room = s->room ? s->room * 2 : 1024;
        s->at = mem_resize(s->at, s->room, sizeof *s->at);
    }
    s->at[s->count++] = (float)value;
    s->sorted = false;
}

void samples_release(struct samples *s)
{
    free(s->at);
    *s = (struct samples){ 0 };
}

static int by_value(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

double samples_percentile(struct samples *s, double percent)
{
    if (!s->count) return 0;
    if (!s->sorted) qsort(s->at, s->count, sizeof *s->at, by_value);
    s->sorted = true;
    double place = percent / 100 * (double)(s->count - 1);
    size_t below = (size_t)place;
    if (below + 1 >= s->count) return s->at[s->count - 1];
    double part = place - (double)below;
    return s->at[below] + part * ((double)s->at[below + 1] - s->at[below]);
}

double samples_mean(const struct samples *s)
{
    double sum = 0;
    for (size_t i = 0; i < s->count; i++) sum += s->at[i];
    return s->count ? sum / (double)s->count : 0;
}

static bool within(double value, double limit)
{
    return limit == 0 || value <= limit;
}

bool slo_met(const struct bench_slo *slo, const struct bench_times *t)
{
    return within(t->ttft, slo->ttft) && within(t->tpot, slo->tpot) &&
           within(t->itl_max, slo->itl) && within(t->e2el, slo->e2el);
}

bool slo_parse(struct bench_slo *slo, const char *text)
{
    const struct {
        const char *name;
        double *limit;
    } names[] = { { "ttft:", &slo->ttft }, { "tpot:", &slo->tpot }, { "itl:", &slo->itl },
                  { "e2el:", &slo->e2el } };
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        size_t bytes = strlen(names[i].name);
        if (strncmp(text, names[i].name, bytes) != 0) continue;
        char *end;
        double value = strtod(text + bytes, &end);
        if (end == text + bytes || *end || !isfinite(value) || value <= 0) return false;
        *names[i].limit = value;
        return true;
    }
    return false;
}
