/* ctl/pack.c - see pack.h. */
#include "ctl/pack.h"

#include <stdio.h>

static uint64_t larger(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

static bool says_nothing(const struct need *n)
{
    return !n->gpus && !n->memory && !n->cpu;
}

static bool fits(const struct need *used, const struct need *more, const struct need *host)
{
    return (!host->gpus || used->gpus + more->gpus <= host->gpus) &&
           (!host->memory || used->memory + more->memory <= host->memory) &&
           (!host->cpu || used->cpu + more->cpu <= host->cpu);
}

static enum err must_fit(const struct spec *s, const struct pool *p, const struct need *host,
                         struct why *why)
{
    char path[96], a[32], b[32];
    snprintf(path, sizeof path, "spec.serving.%s.resources", p->from ? p->from : p->name);
    const struct yaml_node *at = spec_find(s, path);
    if (fits(&(struct need){ 0 }, &p->need, host)) return OK;
    if (host->memory && p->need.memory > host->memory) {
        return spec_bad(s, at, path, why, "asks for memory %s, but a host has %s (--host-memory)",
                        bytes_text(p->need.memory, a, sizeof a),
                        bytes_text(host->memory, b, sizeof b));
    }
    return spec_bad(s, at, path, why, "asks for cpu %gm, but a host has %gm (--host-cpus)",
                    (double)p->need.cpu, (double)host->cpu);
}

static void add(struct need *to, const struct need *n)
{
    to->gpus += n->gpus;
    to->memory += n->memory;
    to->cpu += n->cpu;
}

static void widen(struct need *to, const struct need *n)
{
    to->gpus = larger(to->gpus, n->gpus);
    to->memory = larger(to->memory, n->memory);
    to->cpu = larger(to->cpu, n->cpu);
}

enum err pack(const struct spec *s, const struct need *host, struct packing *out, struct why *why)
{
    struct need size = *host, largest = { 0 }, used = { 0 }, all = { 0 }, fullest = { 0 };
    *out = (struct packing){ 0 };
    for (int i = 0; i < POOL_COUNT; i++) {
        if (s->pools[i].replicas) widen(&largest, &s->pools[i].need);
    }
    bool alone = says_nothing(&size) && says_nothing(&largest); /* nobody knows a size */
    if (says_nothing(&size)) size = largest;
    for (int i = 0; i < POOL_COUNT; i++) {
        const struct pool *p = &s->pools[i];
        enum err e = p->replicas ? must_fit(s, p, &size, why) : OK;
        if (e != OK) return e;
        /* Who asks for nothing has a host alone: nobody knows how many would fit. */
        bool weightless = says_nothing(&p->need);
        for (uint64_t k = 0; k < p->replicas; k++) {
            CHECK(out->hosts < WORKER_COUNT_MAX);
            if (!out->hosts || alone || weightless || !fits(&used, &p->need, &size)) {
                out->hosts++;
                used = (struct need){ 0 };
            }
            out->workers[out->hosts - 1]++;
            out->most = larger(out->most, out->workers[out->hosts - 1]);
            add(&used, &p->need);
            add(&all, &p->need);
            widen(&fullest, &used);
        }
    }
    out->host = fullest;
    if (size.gpus) out->host.gpus = size.gpus;
    if (size.memory) out->host.memory = size.memory;
    if (size.cpu) out->host.cpu = size.cpu;
    out->idle.gpus = out->host.gpus * out->hosts - all.gpus;
    out->idle.memory = out->host.memory * out->hosts - all.memory;
    out->idle.cpu = out->host.cpu * out->hosts - all.cpu;
    return OK;
}

void pack_list(const struct packing *p, struct buf *out)
{
    for (uint64_t i = 0; i < p->hosts; i++) {
        buf_print(out, "%s%u", i ? " " : "", (unsigned)p->workers[i]);
    }
}

static void need_text(const struct need *n, struct buf *out)
{
    char bytes[32];
    const char *comma = "";
    if (n->gpus) {
        buf_print(out, "%llu GPU%s", (unsigned long long)n->gpus, n->gpus > 1 ? "s" : "");
        comma = ", ";
    }
    if (n->memory) {
        buf_print(out, "%s%s of memory", comma, bytes_text(n->memory, bytes, sizeof bytes));
        comma = ", ";
    }
    if (n->cpu) buf_print(out, "%s%g CPUs", comma, (double)n->cpu / 1000);
}

void pack_text(const struct packing *p, const char *noun, struct buf *out)
{
    buf_print(out, "%llu %s%s", (unsigned long long)p->hosts, noun, p->hosts > 1 ? "s" : "");
    if (!says_nothing(&p->host)) {
        buf_text(out, p->hosts > 1 ? ", each with " : " with ");
        need_text(&p->host, out);
    }
    buf_text(out, "; unused by workers: ");
    if (says_nothing(&p->idle)) buf_text(out, "nothing");
    else need_text(&p->idle, out);
}
