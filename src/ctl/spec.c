/* ctl/spec.c - see spec.h. */
#include "ctl/spec.h"

#include <ctype.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/limits.h"
#include "common/service.h"
#include "ctl/ctl.h"

static const char *const pool_names[POOL_COUNT] = { "prefill", "decode", "both", "spares" };

enum err spec_bad(const struct spec *s, const struct yaml_node *at, const char *path,
                  struct why *why, const char *fmt, ...)
{
    char text[320];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    return why_set(why, ERR_UNSUPPORTED, "%.100s:%u: %.100s %s", s->file,
                   at ? at->line : s->service->line, path, text);
}

static const struct yaml_node *find_below(const struct yaml_node *n, const char *path)
{
    for (const char *at = path; n && *at; at += *at == '.') {
        char key[64];
        size_t bytes = strcspn(at, ".");
        snprintf(key, sizeof key, "%.*s", (int)bytes, at);
        n = yaml_find(n, key);
        at += bytes;
    }
    return n;
}

const struct yaml_node *spec_find(const struct spec *s, const char *path)
{
    return find_below(s->service, path);
}

bool quantity_read(const char *text, double *out)
{
    static const struct { const char *suffix; double scale; } units[] = {
        { "", 1 }, { "m", 1e-3 }, { "k", 1e3 }, { "M", 1e6 }, { "G", 1e9 }, { "T", 1e12 },
        { "Ki", 1024.0 }, { "Mi", 1048576.0 }, { "Gi", 1073741824.0 }, { "Ti", 1099511627776.0 },
    };
    size_t digits = strspn(text, "0123456789.");
    char *end;
    if (digits == 0 || digits > 18) return false;
    *out = strtod(text, &end);
    for (size_t i = 0; i < sizeof units / sizeof *units; i++) {
        if (strcmp(end, units[i].suffix) != 0) continue;
        *out *= units[i].scale;
        return true;
    }
    return false;
}

const char *bytes_text(uint64_t bytes, char *out, size_t room)
{
    static const char *const units[] = { "", "Ki", "Mi", "Gi", "Ti" };
    int unit = 0;
    while (unit < 4 && bytes && bytes % 1024 == 0) {
        bytes /= 1024;
        unit++;
    }
    snprintf(out, room, "%llu%s", (unsigned long long)bytes, units[unit]);
    return out;
}

/* Fields that no program of this build uses: better refused than silently without effect.
 * `harmless` is the value that asks for nothing. */
static const struct refused {
    const char *path, *harmless, *text;
} refused[] = {
    { "spec.model.quantization", "none",
      "only none is served for now: a GGUF file says itself how it is quantized" },
    { "spec.serving.prefill.autoscaling.enabled", "false", "autoscaling is not built yet" },
    { "spec.serving.decode.autoscaling.enabled", "false", "autoscaling is not built yet" },
    { "spec.serving.both.autoscaling.enabled", "false", "autoscaling is not built yet" },
    { "spec.engine.tensorParallelSize", "1", "only 1 is supported yet" },
    { "spec.engine.pipelineParallelSize", "1", "only 1 is supported" },
    { "spec.model.tensorParallelSize", "1", "only 1 is supported yet" },
};

static enum err refuse(const struct spec *s, const struct refused *list, size_t count,
                       struct why *why)
{
    for (size_t i = 0; i < count; i++) {
        const struct yaml_node *n = spec_find(s, list[i].path);
        if (!n || yaml_is_null(n)) continue;
        bool harmless = list[i].harmless && n->kind == YAML_SCALAR &&
                        strcmp(n->text, list[i].harmless) == 0;
        if (!harmless) return spec_bad(s, n, list[i].path, why, "cannot be: %s", list[i].text);
    }
    return OK;
}

static const char *kind_of(const struct yaml_node *root)
{
    const struct yaml_node *kind = yaml_find(root, "kind");
    return kind && kind->kind == YAML_SCALAR ? kind->text : "";
}

static enum err find_documents(struct spec *s, struct why *why)
{
    for (size_t i = 0; i < yaml_document_count(s->yaml); i++) {
        const struct yaml_node *root = yaml_document(s->yaml, i);
        if (strcmp(kind_of(root), "InferenceService") == 0) s->service = root;
        if (strcmp(kind_of(root), "CachePolicy") == 0) s->policy = root;
    }
    CHECK(s->service);                /* service_read() saw one */
    return refuse(s, refused, sizeof refused / sizeof *refused, why);
}

static enum err read_need(const struct spec *s, struct pool *p, const struct yaml_node *list,
                          const char *path, struct why *why)
{
    for (const struct yaml_node *n = list ? list->first : NULL; n; n = n->next) {
        char below[160];
        double value = 0;
        snprintf(below, sizeof below, "%.80s[%.60s]", path, n->key ? n->key : "");
        bool gpu = strcmp(n->key, "nvidia.com/gpu") == 0, memory = strcmp(n->key, "memory") == 0;
        if (!gpu && !memory && strcmp(n->key, "cpu") != 0) {
            return spec_bad(s, n, below, why, "is unknown; a worker needs cpu, memory, "
                            "nvidia.com/gpu");
        }
        if (n->kind != YAML_SCALAR || !quantity_read(n->text, &value) || value <= 0 ||
            value > 1e15) {
            return spec_bad(s, n, below, why, "must be a quantity above 0, like %s",
                            gpu ? "1" : memory ? "16Gi" : "4 or 500m");
        }
        if (gpu && value != 1) {
            return spec_bad(s, n, below, why, "is %.20s, but a worker drives 1 GPU: its model is "
                            "not split (tensorParallelSize 1)", n->text);
        }
        if (gpu) p->need.gpus = 1;
        else if (memory) p->need.memory = (uint64_t)value;
        else p->need.cpu = (uint64_t)(value * 1000);
    }
    return OK;
}

/* Limits count; requests fill in what limits leave out. */
static enum err read_pool(struct spec *s, struct pool *p, struct why *why)
{
    char path[96];
    snprintf(path, sizeof path, "spec.serving.%s.resources", p->name);
    const struct yaml_node *resources = spec_find(s, path);
    if (!resources || yaml_is_null(resources)) return OK;
    if (resources->kind != YAML_MAP) return spec_bad(s, resources, path, why, "must hold fields");
    static const char *const parts[] = { "requests", "limits" };
    for (const struct yaml_node *n = resources->first; n; n = n->next) {
        snprintf(path, sizeof path, "spec.serving.%s.resources.%.30s", p->name, n->key);
        bool known = strcmp(n->key, parts[0]) == 0 || strcmp(n->key, parts[1]) == 0;
        if (!known) return spec_bad(s, n, path, why, "is unknown; there are limits and requests");
        if (n->kind != YAML_MAP) return spec_bad(s, n, path, why, "must hold fields");
    }
    p->line = resources->line;
    p->from = p->name;
    for (int i = 0; i < 2; i++) {
        snprintf(path, sizeof path, "spec.serving.%s.resources.%s", p->name, parts[i]);
        enum err e = read_need(s, p, yaml_find(resources, parts[i]), path, why);
        if (e != OK) return e;
    }
    return OK;
}

/* A spare takes anybody's place: it needs the most of each. */
static void widen_spares(struct spec *s)
{
    struct pool *spares = &s->pools[POOL_SPARES];
    for (int i = 0; i < POOL_SPARES; i++) {
        const struct pool *p = &s->pools[i];
        if (!p->replicas) continue;
        if (p->need.gpus > spares->need.gpus) spares->need.gpus = p->need.gpus;
        if (p->need.memory > spares->need.memory) spares->need.memory = p->need.memory;
        if (p->need.cpu > spares->need.cpu) spares->need.cpu = p->need.cpu;
    }
}

static enum err read_pools(struct spec *s, struct why *why)
{
    const uint64_t counts[] = { s->config.prefill, s->config.decode, s->config.both,
                                s->config.spares };
    for (int i = 0; i < POOL_COUNT; i++) {
        struct pool *p = &s->pools[i];
        *p = (struct pool){ .name = pool_names[i], .replicas = counts[i] };
        s->workers += counts[i];
        enum err e = read_pool(s, p, why);
        if (e != OK) return e;
    }
    for (int i = 0; i < POOL_COUNT; i++) {      /* who says nothing takes another's */
        for (int k = 0; k < POOL_COUNT && !s->pools[i].from; k++) {
            const struct pool *other = &s->pools[k];
            if (!other->from || strcmp(other->from, other->name) != 0) continue;
            s->pools[i].need = other->need;
            s->pools[i].line = other->line;
            s->pools[i].from = other->name;
        }
    }
    widen_spares(s);
    return OK;
}

static enum err check_gpus(struct spec *s, struct why *why)
{
    const struct pool *with = NULL, *without = NULL;
    for (int i = 0; i < POOL_COUNT; i++) {
        if (!s->pools[i].replicas) continue;
        if (s->pools[i].need.gpus) with = &s->pools[i];
        else without = &s->pools[i];
    }
    const struct yaml_node *backend = spec_find(s, "spec.engine.backend");
    char path[96];
    if (with && without) {
        snprintf(path, sizeof path, "spec.serving.%s.resources", without->name);
        return spec_bad(s, spec_find(s, path), path, why,
                        "has no nvidia.com/gpu but %s has: all workers run the same backend",
                        with->name);
    }
    if (with && backend && strcmp(backend->text, "cuda") != 0) {
        return spec_bad(s, backend, "spec.engine.backend", why, "is %.20s, but the workers ask "
                        "for GPUs: leave it out or make it cuda", backend->text);
    }
    if (without && backend && strcmp(backend->text, "cuda") == 0) {
        return spec_bad(s, backend, "spec.engine.backend", why,
                        "is cuda, but no worker asks for nvidia.com/gpu");
    }
    if (with) s->config.backend = "cuda";
    return OK;
}

static enum err read_metadata(struct spec *s, struct why *why)
{
    const struct yaml_node *name = spec_find(s, "metadata.name");
    const struct yaml_node *name_space = spec_find(s, "metadata.namespace");
    s->name = name->text;
    s->name_space = name_space && name_space->kind == YAML_SCALAR ? name_space->text : "";
    const struct yaml_node *both[] = { name, *s->name_space ? name_space : NULL };
    for (int i = 0; i < 2 && both[i]; i++) {
        const char *text = both[i]->text;
        size_t bytes = strspn(text, "abcdefghijklmnopqrstuvwxyz0123456789.-");
        if (text[bytes] || !bytes || bytes > 253 || !isalnum((unsigned char)text[0]) ||
            !isalnum((unsigned char)text[bytes - 1])) {
            return spec_bad(s, both[i], i ? "metadata.namespace" : "metadata.name", why,
                            "is '%.60s'; it must be small letters, digits, '-' and '.', at most "
                            "253", text);
        }
    }
    return OK;
}

enum err spec_read(struct spec *s, const char *path, struct why *why)
{
    *s = (struct spec){ .file = path };
    const char *slash = strrchr(path, '/');
    s->base = slash ? slash + 1 : path;
    config_defaults(&s->config);
    enum err e = read_file(path, YAML_BYTES_MAX, &s->text, why);
    if (e == OK) e = service_read(&s->config, s->text.data, s->text.size, path, why);
    if (e == OK) e = yaml_read(&s->yaml, s->text.data, s->text.size, path, why);
    if (e == OK) e = find_documents(s, why);
    if (e == OK) e = config_check(&s->config, why);
    if (e == OK) e = read_metadata(s, why);
    if (e == OK) e = read_pools(s, why);
    if (e == OK) e = check_gpus(s, why);
    if (e != OK) spec_close(s);
    return e;
}

void spec_close(struct spec *s)
{
    yaml_close(s->yaml);
    s->yaml = NULL;
    buf_release(&s->text);
}

static void camel_case(const char *name, char *out, size_t bytes)
{
    size_t used = 0;
    for (; *name && used + 1 < bytes; name++) {
        bool raise = *name == '-';
        if (raise && !*++name) break;
        out[used++] = raise ? (char)toupper((unsigned char)*name) : *name;
    }
    out[used] = '\0';
}

const char *spec_origin(const struct spec *s, const struct option *o, char *out, size_t bytes)
{
    static const char *const fields[][2] = {
        { "model", "spec.model.modelUri" },
        { "prefill", "spec.serving.prefill.replicas" },
        { "decode", "spec.serving.decode.replicas" },
        { "both", "spec.serving.both.replicas" },
        { "tensor-parallel-size", "spec.model.tensorParallelSize" },
        { "enable-prefix-caching", "spec.caching.prefixCaching.enabled" },
        { "enable-prefix-caching", "spec.caching.enabled" },
        { "max-prefix-length", "spec.caching.prefixCaching.maxPrefixLength" },
        { "redis", "spec.caching.redis.cluster" },
        { "labels", "metadata.labels" },
    };
    static const char *const policy_fields[][2] = {
        { "policy", "spec.caching.strategy" },
        { "cache-ttl", "spec.caching.ttl" },
        { "cache-max-entries", "spec.caching.maxEntries" },
        { "cache-memory-threshold", "spec.eviction.memoryThreshold" },
        { "cache-locality-weight", "spec.routing.cacheLocalityWeight" },
        { "latency-weight", "spec.routing.latencyWeight" },
    };
    char camel[64], path[96];
    if (s->given_model && strcmp(o->name, "model") == 0) {
        snprintf(out, bytes, "--model of render");
        return out;
    }
    camel_case(o->name, camel, sizeof camel);
    snprintf(path, sizeof path, "spec.engine.%s", camel);
    const struct yaml_node *n = spec_find(s, path);
    for (size_t i = 0; i < sizeof fields / sizeof *fields && !n; i++) {
        if (strcmp(fields[i][0], o->name) != 0) continue;
        n = spec_find(s, fields[i][1]);
        snprintf(path, sizeof path, "%s", fields[i][1]);
    }
    for (size_t i = 0; i < sizeof policy_fields / sizeof *policy_fields && !n; i++) {
        if (strcmp(policy_fields[i][0], o->name) != 0) continue;
        n = find_below(s->policy, policy_fields[i][1]);
        snprintf(path, sizeof path, "%s", policy_fields[i][1]);
    }
    if (n) snprintf(out, bytes, "%s, %s:%u", path, s->base, n->line);
    else if (strcmp(o->name, "backend") == 0) {
        snprintf(out, bytes, "the workers ask for nvidia.com/gpu");
    } else snprintf(out, bytes, "the default");
    return out;
}
