/* ctl/render_slurm.c - a service file as one batch script that needs nothing beside it. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ctl/render.h"

enum {
    DRAIN_SECONDS_EXTRA = 90,         /* a minute is Slurm's own slack; the rest for the end */
    SIGNAL_SECONDS_MAX = 65535,       /* what --signal takes                                 */
};

/* A directive with its origin above it: sbatch reads to the end of the line. */
static void directive(struct render *r, const char *origin, const char *text)
{
    buf_print(&r->out, "# %s\n#SBATCH %s\n", origin, text);
}

static void resources(struct render *r)
{
    char text[128], where[192];
    const struct pool *p = NULL;
    for (int i = 0; i < POOL_COUNT; i++) {
        if (r->spec.pools[i].replicas && r->spec.pools[i].from && !p) p = &r->spec.pools[i];
    }
    struct buf packed = { 0 };
    pack_text(&r->pack, "node", &packed);
    snprintf(text, sizeof text, "--nodes=%llu", (unsigned long long)r->pack.hosts);
    directive(r, packed.data, text);
    buf_release(&packed);
    snprintf(text, sizeof text, "--ntasks=%llu", (unsigned long long)r->spec.workers + 1);
    directive(r, "a task per worker, and rank 0, which computes nothing", text);
    if (p) {
        snprintf(where, sizeof where, "spec.serving.%s.resources, %s:%u", p->from, r->spec.base,
                 p->line);
    }
    if (r->pack.host.gpus) {
        snprintf(text, sizeof text, "--gpus-per-node=%llu", (unsigned long long)r->pack.host.gpus);
        directive(r, r->host.gpus ? "--host-gpus" : where, text);
    }
    if (r->pack.host.memory) {
        snprintf(text, sizeof text, "--mem=%lluM",
                 (unsigned long long)((r->pack.host.memory + (1 << 20) - 1) >> 20));
        directive(r, r->host.memory ? "--host-memory" : where, text);
    }
    if (r->pack.host.cpu) {
        uint64_t cpus = (r->pack.host.cpu / (r->pack.most + 1) + 999) / 1000;
        snprintf(text, sizeof text, "--cpus-per-task=%llu", (unsigned long long)cpus);
        directive(r, r->host.cpu ? "--host-cpus" : where, text);
    }
}

static void site(struct render *r)
{
    const struct { const char *name, *value; } given[] = {
        { "partition", r->partition }, { "account", r->account }, { "time", r->time },
    };
    for (size_t i = 0; i < sizeof given / sizeof *given; i++) {
        char text[200], origin[40];
        if (!given[i].value) continue;
        snprintf(text, sizeof text, "--%s=%.150s", given[i].name, given[i].value);
        snprintf(origin, sizeof origin, "--%s of render", given[i].name);
        directive(r, origin, text);
    }
}

/* How long before the time limit the drain begins. */
static uint64_t drain_seconds(const struct render *r)
{
    uint64_t ahead = r->spec.config.drain_timeout_s + DRAIN_SECONDS_EXTRA;
    return ahead < SIGNAL_SECONDS_MAX ? ahead : SIGNAL_SECONDS_MAX;
}

static void successor(struct render *r)
{
    if (!r->consecutive) return;
    unsigned long long least = drain_seconds(r) + 1, most = 7 * 86400, value = 0;
    bool number = strspn(r->consecutive, "0123456789") == strlen(r->consecutive);
    if (number && strlen(r->consecutive) < 10) value = strtoull(r->consecutive, NULL, 10);
    if (value < least || value > most) {
        die("render: --consecutive is '%.40s'; it must be seconds from %llu (the drain begins "
            "then) to %llu", r->consecutive, least, most);
    }
    buf_print(&r->out, "# --consecutive: this long before the time limit the next job is "
              "submitted;\n# when it is live, this one drains.\n"
              "export RANKSERVE_CONSECUTIVE=%llu\n", value);
}

static void survival(struct render *r)
{
    char text[64], origin[256], drain[160];
    directive(r, "a lost node takes its workers, not the job", "--no-kill");
    render_origin(r, "drain-timeout-s", drain, sizeof drain);
    snprintf(origin, sizeof origin, "drain before the time limit: drainTimeoutS (%s) and %d s",
             drain, DRAIN_SECONDS_EXTRA);
    snprintf(text, sizeof text, "--signal=B:USR1@%llu", (unsigned long long)drain_seconds(r));
    directive(r, origin, text);
    directive(r, "preempted or its node lost: again, into the same log", "--requeue");
    directive(r, "the same", "--open-mode=append");
    directive(r, "the log", "--output=%x-%j.log");
}

enum err render_slurm(struct render *r, struct why *why)
{
    char text[300], origin[200];
    if (strlen(r->spec.name) > 200) {
        return spec_bad(&r->spec, spec_find(&r->spec, "metadata.name"), "metadata.name", why,
                        "is longer than 200 characters");
    }
    buf_print(&r->out, "#!/bin/bash\n# %s as a Slurm job, made by `rankservectl render` from %s.\n"
              "# Submit it with sbatch, or with `rankservectl slurm submit`.\n",
              r->spec.name, r->spec.base);
    snprintf(text, sizeof text, "--job-name=%s", r->spec.name);
    snprintf(origin, sizeof origin, "metadata.name, %s:%u", r->spec.base,
             spec_find(&r->spec, "metadata.name")->line);
    directive(r, origin, text);
    resources(r);
    site(r);
    survival(r);
    buf_text(&r->out, "\n# Workers of each node, in the order of their ranks; rank 0 is on the "
             "first node.\nexport RANKSERVE_HOST_WORKERS='");
    pack_list(&r->pack, &r->out);
    buf_text(&r->out, "'\n");
    if (strcmp(r->launcher, "srun") == 0) {
        buf_text(&r->out, "# --launcher: with srun the whole job ends when one rank dies.\n"
                 "export RANKSERVE_STARTER=srun\n");
    }
    successor(r);
    buf_text(&r->out, "options=(\n");
    render_options(r, "    ", true, "endpoint-file");
    buf_text(&r->out, ")\n"
             "launch=${RANKSERVE_LAUNCH:-$(command -v rankserve-launch)}\n"
             "if [ ! -x \"$launch\" ]; then\n"
             "    echo \"rankserve-launch is not in PATH: load the module, or set "
             "RANKSERVE_LAUNCH\" >&2\n    exit 1\nfi\n"
             "exec \"$launch\" \"${options[@]}\"\n");
    return OK;
}
