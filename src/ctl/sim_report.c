/* ctl/sim_report.c - what a run of the simulator came to, as a row of a table and as JSON. */
#include <jansson.h>
#include <stdio.h>

#include "ctl/sim.h"

void sim_print_head(void)
{
    printf("%-18s %9s %9s %9s %8s %8s %9s %7s %7s %7s %8s %6s %6s %5s %8s %9s\n", "policy",
           "ttft.mean", "ttft.p50", "ttft.p99", "itl.p50", "itl.p99", "e2e.p50", "good%", "reuse%",
           "held%", "endless%", "busy%", "imbal", "fail", "switches", "x real");
}

void sim_print_row(const char *name, const struct sim_result *r)
{
    printf("%-18s %9.0f %9.0f %9.0f %8.1f %8.1f %9.0f %7.1f %7.1f %7.1f %8.1f %6.1f %6.2f %5u "
           "%8llu %9.0f\n",
           name, r->ttft_ms[0], r->ttft_ms[1], r->ttft_ms[3], r->itl_ms[1], r->itl_ms[3],
           r->e2e_ms[1], 100 * r->goodput, 100 * r->reuse_possible, 100 * r->reuse_held,
           100 * r->reuse_endless, 100 * r->busy, r->imbalance, r->requests - r->done,
           (unsigned long long)r->switches, r->seconds / r->wall_s);
    fflush(stdout);
}

static json_t *spread(const double v[4])
{
    return json_pack("{s:f, s:f, s:f, s:f}", "mean", v[0], "p50", v[1], "p90", v[2], "p99", v[3]);
}

struct json_t *sim_json(const char *policy, double load, const struct sim_result *r)
{
    return json_pack(
        "{s:s, s:f, s:i, s:i, s:i, s:i, s:i, s:i, s:o, s:o, s:o, s:f, s:f, s:f, s:f, s:f, s:f, "
        "s:f, s:f, s:f, s:f, s:I, s:I, s:I, s:I}",
        "policy", policy, "load", load, "requests", (int)r->requests, "done", (int)r->done,
        "refused", (int)r->refused, "lost", (int)r->lost, "cancelled", (int)r->cancelled,
        "expired", (int)r->expired, "ttft_ms", spread(r->ttft_ms), "itl_ms", spread(r->itl_ms),
        "e2e_ms", spread(r->e2e_ms), "goodput", r->goodput, "attained_per_s", r->attained_per_s,
        "reuse_of_possible", r->reuse_possible, "reuse_of_held", r->reuse_held,
        "reuse_of_endless", r->reuse_endless, "hit_share", r->hit_share, "busy", r->busy,
        "imbalance", r->imbalance, "virtual_s", r->seconds, "wall_s", r->wall_s, "deaths",
        (json_int_t)r->deaths, "decisions", (json_int_t)r->decisions,
        "index_mismatches", (json_int_t)r->mismatches, "role_switches", (json_int_t)r->switches);
}
