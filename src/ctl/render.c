/* ctl/render.c - rankservectl render: a service file to a Slurm script, Kubernetes manifests, or
 * the command that starts it here.  See render.h. */
#include "ctl/render.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/log.h"
#include "common/suggest.h"
#include "common/version.h"
#include "ctl/ctl.h"

const char *render_origin(const struct render *r, const char *option, char *out, size_t bytes)
{
    const struct option *o = option_find(option);
    CHECK(o);
    return spec_origin(&r->spec, o, out, bytes);
}

static bool listed(const char *words, const char *name)
{
    size_t bytes = strlen(name);
    for (const char *at = words; *at; at += *at == ' ') {
        size_t word = strcspn(at, " ");
        if (word == bytes && strncmp(at, name, bytes) == 0) return true;
        at += word;
    }
    return false;
}

/* In single quotes, which both the shell and YAML read; each has its own way out of them. */
static void quoted(struct buf *out, const char *name, const char *value, bool shell)
{
    buf_print(out, "'--%s=", name);
    for (; *value; value++) {
        if (*value != '\'') buf_char(out, *value);
        else buf_text(out, shell ? "'\\''" : "''");
    }
    buf_char(out, '\'');
}

void render_options(struct render *r, const char *before, bool shell, const char *skip)
{
    size_t count;
    const struct option *o = option_table(&count);
    for (size_t i = 0; i < count; i++) {
        struct buf value = { 0 };
        char origin[200];
        if (!(o[i].programs & PROGRAM_CTL) || listed(skip, o[i].name)) continue;
        if (option_is_default(&r->spec.config, &o[i])) continue;
        option_print(&r->spec.config, &o[i], &value);
        buf_text(&r->out, before);
        quoted(&r->out, o[i].name, value.data ? value.data : "", shell);
        buf_print(&r->out, "  # %s\n", spec_origin(&r->spec, &o[i], origin, sizeof origin));
        buf_release(&value);
    }
}

/* A command can have no comments inside; they stand above it, in the same order. */
enum err render_local(struct render *r, struct why *why)
{
    size_t count;
    const struct option *o = option_table(&count);
    (void)why;
    buf_print(&r->out, "#!/bin/bash\n# %s on this machine, as %s says.  The same in short: "
              "rankservectl up -f %s\n", r->spec.name, r->spec.base, r->spec.base);
    buf_text(&r->out, "options=(\n");
    render_options(r, "    ", true, "");
    buf_text(&r->out, ")\n");
    for (size_t i = 0; i < count; i++) {
        char origin[200];
        bool worker = strcmp(o[i].name, "both") == 0 && !r->spec.config.prefill;
        if (worker && strcmp(spec_origin(&r->spec, &o[i], origin, sizeof origin),
                             "the default") == 0) {
            buf_text(&r->out, "# No worker is asked for: one does everything.\n");
        }
    }
    for (int i = 0; i < POOL_COUNT; i++) {
        const struct pool *p = &r->spec.pools[i];
        if (!p->replicas || !p->from || strcmp(p->from, p->name) != 0) continue;
        buf_print(&r->out, "# spec.serving.%s.resources (%s:%u) has no effect here: workers share "
                  "the machine.\n", p->name, r->spec.base, p->line);
    }
    buf_text(&r->out, "exec rankservectl up \"${options[@]}\"\n");
    return OK;
}

/* hf:// and its like would need the network at start; pvc:// is Kubernetes' own. */
static enum err check_model(struct render *r, bool kubernetes, struct why *why)
{
    struct config *c = &r->spec.config;
    const char *at = strstr(c->model, "://");
    const struct yaml_node *n = spec_find(&r->spec, "spec.model.modelUri");
    if (!at) {
        if (!*c->model || *c->model == '/') return OK;
        return kubernetes || r->launcher
                   ? spec_bad(&r->spec, n, "spec.model.modelUri", why, "is '%.80s'; it must be a "
                              "whole path: other machines have other folders", c->model)
                   : OK;
    }
    bool claim = strncmp(c->model, "pvc://", 6) == 0;
    if (!claim || !kubernetes) {
        return spec_bad(&r->spec, n, "spec.model.modelUri", why, "is '%.80s', which cannot be "
                        "fetched: fetch it first and give %s (--model)", c->model,
                        kubernetes ? "pvc://CLAIM/PATH or a path in the image"
                                   : "its path there");
    }
    const char *slash = strchr(at + 3, '/');
    if (!slash || slash == at + 3 || !slash[1] || strstr(slash, "..")) {
        return spec_bad(&r->spec, n, "spec.model.modelUri", why, "is '%.80s'; it must be "
                        "pvc://CLAIM/PATH", c->model);
    }
    char whole[4200];
    r->claim = config_keep(at + 3, (size_t)(slash - at - 3));
    snprintf(whole, sizeof whole, "/models%.4000s", slash);
    c->model = config_keep(whole, strlen(whole));
    return OK;
}

static uint64_t flag_amount(const char *flag, const char *text, double scale)
{
    double value;
    if (!text) return 0;
    if (!quantity_read(text, &value) || value <= 0 || value > 1e15) {
        die("render: --%s is '%.40s'; it must be a quantity, like 8 or 512Gi", flag, text);
    }
    return (uint64_t)(value * scale);
}

static const struct target {
    const char *name;
    enum err (*run)(struct render *r, struct why *why);
} targets[] = {
    { "slurm", render_slurm }, { "k8s", render_k8s }, { "local", render_local },
};

static const struct target *find_target(const char *name)
{
    struct suggest s = { .wrong = name };
    char tail[128];
    for (size_t i = 0; i < sizeof targets / sizeof *targets; i++) {
        if (strcmp(targets[i].name, name) == 0) return &targets[i];
        suggest_offer(&s, targets[i].name);
    }
    die("render: --target is '%.40s'; it must be slurm, k8s or local%s", name,
        suggest_text(&s, "", tail, sizeof tail));
}

static void print_out(struct render *r)
{
    if (fwrite(r->out.data, 1, r->out.size, stdout) != r->out.size) die("standard output: full?");
}

int ctl_render(int argc, char **argv)
{
    struct render r = { .image = "rankserve:" RANKSERVE_VERSION };
    const char *file = NULL, *target = NULL, *model = NULL;
    const char *gpus = NULL, *memory = NULL, *cpus = NULL;
    const struct flag flags[] = {
        { "file", &file, NULL, "FILE", "the InferenceService (also -f)" },
        { "target", &target, NULL, "NAME", "slurm, k8s or local" },
        { "model", &model, NULL, "PATH", "where the model is there [spec.model.modelUri]" },
        { "host-gpus", &gpus, NULL, "N", "GPUs of a node or pod; default: as the largest worker" },
        { "host-memory", &memory, NULL, "BYTES", "its memory, like 256Gi" },
        { "host-cpus", &cpus, NULL, "N", "its CPUs" },
        { "image", &r.image, NULL, "NAME", "k8s: the container image" },
        { "partition", &r.partition, NULL, "NAME", "slurm: where the job runs" },
        { "account", &r.account, NULL, "NAME", "slurm: who pays" },
        { "time", &r.time, NULL, "TIME", "slurm: the job's limit, like 12:00:00" },
        { "consecutive", &r.consecutive, NULL, "SECONDS",
          "slurm: submit the next job this long before the time limit" },
        { "launcher", &r.launcher, NULL, "NAME", "slurm: mpirun; or srun: survives nothing" },
        { NULL },
    };
    struct why why;
    static char whole[] = "--file";
    log_set_level("warn");            /* what has no effect is refused, not mentioned */
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "-f") == 0) argv[i] = whole;
        if (strcmp(argv[i], "--file") == 0) i++;
    }
    if (flags_read(flags, "render -f FILE --target slurm|k8s|local [options]", argc, argv)) {
        die("render: unexpected word '%.60s'", argv[1]);
    }
    if (!file) die("render: say which file: rankservectl render -f service.yaml --target slurm");
    if (!target) die("render: say for what: --target slurm, k8s or local");
    const struct target *t = find_target(target);
    if (t->run == render_slurm && !r.launcher) r.launcher = "mpirun";
    if (r.launcher && strcmp(r.launcher, "mpirun") != 0 && strcmp(r.launcher, "srun") != 0) {
        die("render: --launcher is '%.40s'; it must be mpirun or srun", r.launcher);
    }
    r.host.gpus = flag_amount("host-gpus", gpus, 1);
    r.host.memory = flag_amount("host-memory", memory, 1);
    r.host.cpu = flag_amount("host-cpus", cpus, 1000);
    enum err e = spec_read(&r.spec, file, &why);
    if (e == OK && model) {
        r.spec.config.model = model;
        r.spec.given_model = true;
    }
    if (e == OK) e = check_model(&r, t->run == render_k8s, &why);
    if (e == OK) e = pack(&r.spec, &r.host, &r.pack, &why);
    if (e == OK) e = t->run(&r, &why);
    if (e != OK) die("%s", why.text);
    print_out(&r);
    buf_release(&r.out);
    spec_close(&r.spec);
    return 0;
}
