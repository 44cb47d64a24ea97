/* common/service.c - reads InferenceService and CachePolicy into the settings; see service.h. */
#include "common/service.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#include "common/cache_policy.h"
#include "common/config_table.h"
#include "common/log.h"
#include "common/suggest.h"
#include "common/yaml.h"

#define API_VERSION "serving.llm-d.ai/v1alpha1"

enum { PATH_BYTES_MAX = 256 };

enum field_kind {
    FIELD_MAP,                        /* members are rows of their own       */
    FIELD_OPTION,                     /* sets the option `word`              */
    FIELD_TEXT,
    FIELD_COUNT,                      /* a whole number from 1               */
    FIELD_WEIGHT,                     /* a number from 0                     */
    FIELD_SWITCH,
    FIELD_CHOICE,                     /* one of the words in `word`          */
    FIELD_STRATEGY,                   /* a policy's name, or prefix-aware: the default one */
    FIELD_ENGINE,                     /* options by their camelCase names    */
    FIELD_ANY,                        /* whatever is below: not ours to read */
};

struct field {
    const char *path;
    enum field_kind kind;
    const char *word;
    const char *later;                /* who will use it; NULL: it is used   */
};

#define POOL(name)                                                                               \
    { "spec.serving." name, FIELD_MAP },                                                         \
    { "spec.serving." name ".replicas", FIELD_OPTION, name },                                    \
    { "spec.serving." name ".resources", FIELD_ANY, .later = "launching on Kubernetes or Slurm" }, \
    { "spec.serving." name ".autoscaling", FIELD_MAP },                                          \
    { "spec.serving." name ".autoscaling.enabled", FIELD_SWITCH, .later = "autoscaling" },       \
    { "spec.serving." name ".autoscaling.minReplicas", FIELD_COUNT, .later = "autoscaling" },    \
    { "spec.serving." name ".autoscaling.maxReplicas", FIELD_COUNT, .later = "autoscaling" },    \
    { "spec.serving." name ".autoscaling.targetLatency", FIELD_TEXT, .later = "autoscaling" }

#define HEAD                                                                                     \
    { "apiVersion", FIELD_TEXT }, { "kind", FIELD_TEXT }, { "metadata", FIELD_ANY },             \
    { "status", FIELD_ANY }, { "spec", FIELD_MAP }

static const struct field inference_service[] = {
    HEAD,
    { "spec.model", FIELD_MAP },
    { "spec.model.modelUri", FIELD_OPTION, "model" },
    { "spec.model.quantization", FIELD_CHOICE, "none gptq awq fp8",
      .later = "safetensors models (a GGUF file says itself how it is quantized)" },
    { "spec.model.tensorParallelSize", FIELD_OPTION, "tensor-parallel-size" },
    { "spec.serving", FIELD_MAP },
    POOL("prefill"),
    POOL("decode"),
    POOL("both"),
    { "spec.caching", FIELD_MAP },
    { "spec.caching.enabled", FIELD_SWITCH },
    { "spec.caching.redis", FIELD_MAP },
    { "spec.caching.redis.cluster", FIELD_OPTION, "redis" },
    { "spec.caching.prefixCaching", FIELD_MAP },
    { "spec.caching.prefixCaching.enabled", FIELD_OPTION, "enable-prefix-caching" },
    { "spec.caching.prefixCaching.maxPrefixLength", FIELD_OPTION, "max-prefix-length" },
    { "spec.engine", FIELD_ENGINE },
    { NULL },
};

static const struct field cache_policy[] = {
    HEAD,
    { "spec.selector", FIELD_MAP },
    { "spec.selector.matchLabels", FIELD_ANY },
    { "spec.caching", FIELD_MAP },
    { "spec.caching.strategy", FIELD_STRATEGY },
    { "spec.caching.ttl", FIELD_OPTION, "cache-ttl" },
    { "spec.caching.maxEntries", FIELD_OPTION, "cache-max-entries" },
    { "spec.eviction", FIELD_MAP },
    { "spec.eviction.policy", FIELD_CHOICE, "lru" },
    { "spec.eviction.memoryThreshold", FIELD_OPTION, "cache-memory-threshold" },
    { "spec.routing", FIELD_MAP },
    { "spec.routing.cacheLocalityWeight", FIELD_OPTION, "cache-locality-weight" },
    { "spec.routing.latencyWeight", FIELD_OPTION, "latency-weight" },
    { NULL },
};

/* One document being read. */
struct reading {
    struct config *config;
    const char *name;                 /* of the file */
    const struct field *fields;
    struct why *why;
};

static enum err bad(const struct reading *r, const struct yaml_node *n, const char *path,
                    const char *text)
{
    return why_set(r->why, ERR_FORMAT, "%.160s:%u: %s %s", r->name, n->line, path, text);
}

static void camel_case(const char *name, char *out, size_t bytes)
{
    size_t used = 0;
    bool raise = false;
    for (; *name && used + 1 < bytes; name++) {
        if (*name == '-') {
            raise = true;
            continue;
        }
        out[used++] = raise ? (char)toupper((unsigned char)*name) : *name;
        raise = false;
    }
    out[used] = '\0';
}

/* Options that have a field of their own, or that programs set between themselves. */
static bool engine_takes(const struct option *o)
{
    static const char *const elsewhere[] = {
        "model", "prefill", "decode", "both", "tensor-parallel-size",
        "run-dir", "link", "link-listen", "name", "secret-file", "status-file", "job-id",
        "labels", "max-prefix-length", "cache-ttl", "cache-max-entries", "cache-memory-threshold",
        "cache-locality-weight", "latency-weight", "redis",
    };
    for (size_t i = 0; i < sizeof elsewhere / sizeof *elsewhere; i++) {
        if (strcmp(o->name, elsewhere[i]) == 0) return false;
    }
    return true;
}

static enum err set_option(const struct reading *r, const struct yaml_node *n, const char *path,
                           const struct option *o)
{
    char label[PATH_BYTES_MAX + 200];
    if (n->kind != YAML_SCALAR) return bad(r, n, path, "must be a single value");
    snprintf(label, sizeof label, "%.160s:%u: %s", r->name, n->line, path);
    return option_set(r->config, o, label, n->text, r->why);
}

static enum err read_engine(const struct reading *r, const struct yaml_node *map, const char *path)
{
    size_t count;
    const struct option *o = option_table(&count);
    if (map->kind != YAML_MAP) return bad(r, map, path, "must hold fields");
    for (const struct yaml_node *n = map->first; n; n = n->next) {
        char below[PATH_BYTES_MAX], camel[64];
        static _Thread_local char best[64];
        struct suggest s = { .wrong = n->key };
        const struct option *found = NULL;
        for (size_t i = 0; i < count && !found; i++) {
            if (!engine_takes(&o[i])) continue;
            camel_case(o[i].name, camel, sizeof camel);
            if (strcmp(camel, n->key) == 0) found = &o[i];
            suggest_offer(&s, camel);
            if (s.best == camel) {
                snprintf(best, sizeof best, "%s", camel);
                s.best = best;
            }
        }
        snprintf(below, sizeof below, "%.100s.%.60s", path, n->key);
        if (!found) {
            char tail[128], text[192];
            snprintf(text, sizeof text, "is unknown%s", suggest_text(&s, "", tail, sizeof tail));
            return bad(r, n, below, text);
        }
        enum err e = set_option(r, n, below, found);
        if (e != OK) return e;
    }
    return OK;
}

static const struct field *find_field(const struct reading *r, const char *path)
{
    for (const struct field *f = r->fields; f->path; f++) {
        if (strcmp(f->path, path) == 0) return f;
    }
    return NULL;
}

static enum err unknown_field(const struct reading *r, const struct yaml_node *n, const char *path,
                              size_t parent_bytes)
{
    char tail[128], text[192];
    struct suggest s = { .wrong = n->key };
    for (const struct field *f = r->fields; f->path; f++) {
        bool sibling = strncmp(f->path, path, parent_bytes) == 0;
        if (sibling && !strchr(f->path + parent_bytes, '.')) {
            suggest_offer(&s, f->path + parent_bytes);
        }
    }
    snprintf(text, sizeof text, "is unknown%s", suggest_text(&s, "", tail, sizeof tail));
    return bad(r, n, path, text);
}

static bool is_switch(const char *text)
{
    return strcmp(text, "true") == 0 || strcmp(text, "false") == 0;
}

static bool is_count(const char *text)
{
    size_t digits = strspn(text, "0123456789");
    return digits && digits < 10 && !text[digits] && strtoul(text, NULL, 10) >= 1;
}

static bool is_weight(const char *text)
{
    char *end;
    double value = strtod(text, &end);
    return end != text && !*end && value >= 0 && value <= 1e9;
}

static bool is_choice(const char *text, const char *words)
{
    size_t bytes = strlen(text);
    for (const char *at = words; *at; at += *at == ' ') {
        size_t word = strcspn(at, " ");
        if (word == bytes && strncmp(at, text, bytes) == 0) return true;
        at += word;
    }
    return false;
}

/* What Kubernetes would refuse by its schema is refused here too: "2" is no number. */
static enum err read_option(const struct reading *r, const struct yaml_node *n, const char *path,
                            const char *name)
{
    const struct option *o = option_find(name);
    CHECK(o);
    if (n->kind != YAML_SCALAR) return bad(r, n, path, "must be a single value");
    if (o->kind == OPTION_COUNT && (n->quoted || !is_count(n->text))) {
        return bad(r, n, path, "must be a whole number from 1");
    }
    if (o->kind == OPTION_SWITCH && (n->quoted || !is_switch(n->text))) {
        return bad(r, n, path, "must be true or false");
    }
    return set_option(r, n, path, o);
}

static enum err read_scalar(const struct reading *r, const struct yaml_node *n, const char *path,
                            const struct field *f)
{
    if (n->kind != YAML_SCALAR) return bad(r, n, path, "must be a single value");
    if (f->kind == FIELD_SWITCH && (n->quoted || !is_switch(n->text))) {
        return bad(r, n, path, "must be true or false");
    }
    if (f->kind == FIELD_COUNT && (n->quoted || !is_count(n->text))) {
        return bad(r, n, path, "must be a whole number from 1");
    }
    if (f->kind == FIELD_WEIGHT && (n->quoted || !is_weight(n->text))) {
        return bad(r, n, path, "must be a number from 0");
    }
    if (f->kind == FIELD_CHOICE && !is_choice(n->text, f->word)) {
        char text[128];
        snprintf(text, sizeof text, "is '%.30s'; it must be one of: %s", n->text, f->word);
        return bad(r, n, path, text);
    }
    return OK;
}

static enum err read_map(const struct reading *r, const struct yaml_node *map, const char *path);

static enum err read_member(const struct reading *r, const struct yaml_node *n, const char *parent)
{
    char path[PATH_BYTES_MAX];
    size_t parent_bytes = *parent ? strlen(parent) + 1 : 0;
    snprintf(path, sizeof path, "%.120s%s%.60s", parent, *parent ? "." : "", n->key);
    const struct field *f = find_field(r, path);
    if (!f) return unknown_field(r, n, path, parent_bytes);
    if (f->kind == FIELD_ANY && !f->later) return OK;
    if (yaml_is_null(n)) return OK;
    if (f->later) {
        bool none = f->kind == FIELD_CHOICE && strcmp(n->text ? n->text : "", "none") == 0;
        if (!none) {
            log_info("%s:%u: %s has no effect yet: it comes with %s", r->name, n->line, path,
                     f->later);
        }
    }
    switch (f->kind) {
    case FIELD_ANY: return OK;
    case FIELD_MAP: return read_map(r, n, path);
    case FIELD_ENGINE: return read_engine(r, n, path);
    case FIELD_OPTION: return read_option(r, n, path, f->word);
    case FIELD_STRATEGY:
        if (n->kind == YAML_SCALAR && strcmp(n->text, "prefix-aware") == 0) return OK;
        return read_option(r, n, path, "policy");
    default: return read_scalar(r, n, path, f);
    }
}

static enum err read_map(const struct reading *r, const struct yaml_node *map, const char *path)
{
    if (map->kind != YAML_MAP) return bad(r, map, path, "must hold fields");
    enum err e = OK;
    for (const struct yaml_node *n = map->first; n && e == OK; n = n->next) {
        e = read_member(r, n, path);
    }
    return e;
}

/* The pairs of a map as "k=v,k=v". */
static enum err read_pairs(const struct reading *r, const struct yaml_node *map, const char *path,
                           struct buf *out)
{
    char below[PATH_BYTES_MAX];
    for (const struct yaml_node *n = map ? map->first : NULL; n; n = n->next) {
        snprintf(below, sizeof below, "%.100s.%.60s", path, n->key ? n->key : "");
        if (!n->key || n->kind != YAML_SCALAR || strpbrk(n->text, ", \n") ||
            strlen(n->text) > 63)
            return bad(r, n, below, "must be a label: up to 63 characters, no comma, no space");
        buf_print(out, "%s%s=%s", out->size ? "," : "", n->key, n->text);
    }
    if (out->size >= 4096) return bad(r, map, path, "is longer than 4095 characters");
    buf_char(out, '\0');
    return OK;
}

static enum err read_labels(const struct reading *r, const struct yaml_node *service)
{
    struct buf labels = { 0 };
    const struct yaml_node *map = yaml_find(yaml_find(service, "metadata"), "labels");
    enum err e = read_pairs(r, map, "metadata.labels", &labels);
    if (e == OK) r->config->labels = config_keep(labels.data, strlen(labels.data));
    buf_release(&labels);
    return e;
}

static enum err read_selector(const struct reading *r, const struct yaml_node *policy,
                              struct buf *out)
{
    const struct yaml_node *selector = yaml_find(yaml_find(policy, "spec"), "selector");
    return read_pairs(r, yaml_find(selector, "matchLabels"), "spec.selector.matchLabels", out);
}

/* Is this policy for another service?  It is read all the same, for its mistakes. */
static enum err read_policy(struct reading *r, const struct yaml_node *root)
{
    struct config before = *r->config;
    struct buf selector = { 0 };
    enum err e = read_map(r, root, "");
    if (e == OK) e = read_selector(r, root, &selector);
    if (e == OK && !cache_policy_selects(selector.data, r->config->labels)) {
        log_info("%s:%u: this CachePolicy selects %s: it is not for this service", r->name,
                 root->line, selector.data);
        *r->config = before;
    }
    buf_release(&selector);
    return e;
}

static enum err check_head(const struct reading *r, const struct yaml_node *root)
{
    const struct yaml_node *version = yaml_find(root, "apiVersion");
    const struct yaml_node *name = yaml_find(yaml_find(root, "metadata"), "name");
    if (!version || version->kind != YAML_SCALAR || strcmp(version->text, API_VERSION) != 0) {
        return bad(r, version ? version : root, "apiVersion", "must be " API_VERSION);
    }
    if (!name || yaml_is_null(name) || name->kind != YAML_SCALAR) {
        return bad(r, root, "metadata.name", "is missing");
    }
    return OK;
}

static enum err read_document(struct reading *r, const struct yaml_node *root, int *services,
                              int *policies)
{
    if (root->kind != YAML_MAP) {
        return why_set(r->why, ERR_FORMAT, "%.160s:%u: not an InferenceService document", r->name,
                       root->line);
    }
    const struct yaml_node *kind = yaml_find(root, "kind");
    const char *text = kind && kind->kind == YAML_SCALAR ? kind->text : "";
    bool service = strcmp(text, "InferenceService") == 0;
    if (!service && strcmp(text, "CachePolicy") != 0) {
        return bad(r, kind ? kind : root, "kind", "must be InferenceService or CachePolicy");
    }
    int *seen = service ? services : policies;
    if ((*seen)++) {
        return why_set(r->why, ERR_FORMAT, "%.160s:%u: a second %s; one file describes one service",
                       r->name, kind->line, text);
    }
    r->fields = service ? inference_service : cache_policy;
    enum err e = check_head(r, root);
    if (e == OK) e = service ? read_map(r, root, "") : read_policy(r, root);
    if (e != OK || !service) return e;
    const struct yaml_node *caching = yaml_find(yaml_find(root, "spec"), "caching");
    const struct yaml_node *enabled = yaml_find(caching, "enabled");
    if (enabled && strcmp(enabled->text, "false") == 0) r->config->enable_prefix_caching = false;
    return OK;
}

static enum err read_documents(struct config *c, const struct yaml *y, const char *name,
                               struct why *why)
{
    struct reading r = { .config = c, .name = name, .why = why };
    int services = 0, policies = 0;
    enum err e = OK;
    for (size_t i = 0; i < yaml_document_count(y) && e == OK; i++) {
        const struct yaml_node *root = yaml_document(y, i), *kind = yaml_find(root, "kind");
        if (kind && kind->kind == YAML_SCALAR && strcmp(kind->text, "InferenceService") == 0)
            e = read_labels(&r, root);
    }
    for (size_t i = 0; i < yaml_document_count(y) && e == OK; i++) {
        const struct yaml_node *root = yaml_document(y, i);
        if (root) e = read_document(&r, root, &services, &policies);
    }
    if (e == OK && !services) {
        e = why_set(why, ERR_FORMAT, "%.200s: holds no InferenceService document", name);
    }
    return e;
}

enum err service_read(struct config *c, const char *data, size_t bytes, const char *name,
                      struct why *why)
{
    struct yaml *y;
    enum err e = yaml_read(&y, data, bytes, name, why);
    if (e != OK) return e;
    e = read_documents(c, y, name, why);
    yaml_close(y);
    return e;
}

enum err service_load(struct config *c, const char *path, struct why *why)
{
    struct yaml *y;
    enum err e = yaml_read_file(&y, path, why);
    if (e != OK) return e;
    e = read_documents(c, y, path, why);
    yaml_close(y);
    return e;
}

enum err service_load_policy(struct config *c, const char *path, struct buf *selector,
                             struct why *why)
{
    struct yaml *y;
    enum err e = yaml_read_file(&y, path, why);
    if (e != OK) return e;
    config_defaults(c);
    const struct yaml_node *root = yaml_document_count(y) ? yaml_document(y, 0) : NULL;
    const struct yaml_node *kind = yaml_find(root, "kind");
    struct reading r = { .config = c, .name = path, .fields = cache_policy, .why = why };
    bool one = yaml_document_count(y) == 1 && kind && kind->kind == YAML_SCALAR &&
               strcmp(kind->text, "CachePolicy") == 0;
    if (!one) e = why_set(why, ERR_FORMAT, "%.160s: must hold one CachePolicy document", path);
    if (e == OK) e = check_head(&r, root);
    if (e == OK) e = read_map(&r, root, "");
    if (e == OK) e = read_selector(&r, root, selector);
    yaml_close(y);
    return e;
}
