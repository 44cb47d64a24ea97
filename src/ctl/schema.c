/* ctl/schema.c - see schema.h. */
#include "ctl/schema.h"

#include <regex.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/mem.h"
#include "common/suggest.h"

enum { PATH_BYTES = 512, TEXT_BYTES = 400 };

struct schema {
    struct yaml *yaml;
    const char *kind;
    char api_version[128];
    const struct yaml_node *root;     /* openAPIV3Schema */
};

struct schemas {
    struct schema list[SCHEMA_COUNT];
};

/* One document being checked. */
struct checking {
    schema_report *report;
    void *ctx;
    unsigned faults;
};

static const char *text_of(const struct yaml_node *map, const char *key)
{
    const struct yaml_node *n = yaml_find(map, key);
    return n && n->kind == YAML_SCALAR ? n->text : NULL;
}

static bool says(const struct yaml_node *schema, const char *key)
{
    const char *text = text_of(schema, key);
    return text && strcmp(text, "true") == 0;
}

struct schemas *schemas_open(void)
{
    struct schemas *s = mem_alloc(sizeof *s);
    for (int i = 0; i < SCHEMA_COUNT; i++) {
        const struct schema_text *t = &schema_texts[i];
        struct schema *one = &s->list[i];
        struct why why;
        if (yaml_read(&one->yaml, t->text, (size_t)(t->end - t->text), t->name, &why) != OK) {
            die("%s", why.text);
        }
        const struct yaml_node *spec = yaml_find(yaml_document(one->yaml, 0), "spec");
        const struct yaml_node *versions = yaml_find(spec, "versions");
        CHECK(versions && versions->first);
        one->kind = text_of(yaml_find(spec, "names"), "kind");
        one->root = yaml_find(yaml_find(versions->first, "schema"), "openAPIV3Schema");
        snprintf(one->api_version, sizeof one->api_version, "%.60s/%.60s", text_of(spec, "group"),
                 text_of(versions->first, "name"));
        CHECK(one->kind && one->root);
    }
    return s;
}

void schemas_close(struct schemas *s)
{
    for (int i = 0; i < SCHEMA_COUNT; i++) yaml_close(s->list[i].yaml);
    free(s);
}

static const struct schema *find(const struct schemas *s, const struct yaml_node *document)
{
    const char *kind = text_of(document, "kind"), *version = text_of(document, "apiVersion");
    for (int i = 0; kind && version && i < SCHEMA_COUNT; i++) {
        bool same = strcmp(s->list[i].kind, kind) == 0;
        if (same && strcmp(s->list[i].api_version, version) == 0) return &s->list[i];
    }
    return NULL;
}

bool schemas_know(const struct schemas *s, const struct yaml_node *document)
{
    return find(s, document) != NULL;
}

static void fault(struct checking *c, const struct yaml_node *at, const char *path,
                  const char *fmt, ...) __attribute__((format(printf, 4, 5)));

static void fault(struct checking *c, const struct yaml_node *at, const char *path,
                  const char *fmt, ...)
{
    char text[TEXT_BYTES];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    c->faults++;
    c->report(c->ctx, at->line, path, text);
}

static bool is_integer(const char *text)
{
    size_t sign = *text == '-' || *text == '+', digits = strspn(text + sign, "0123456789");
    return digits > 0 && digits < 18 && !text[sign + digits];
}

static bool is_number(const char *text)
{
    size_t allowed = strspn(text, "+-.0123456789eE");
    char *end;
    strtod(text, &end);
    return *text && !text[allowed] && end != text && !*end;
}

static bool is_boolean(const char *text)
{
    return strcmp(text, "true") == 0 || strcmp(text, "false") == 0;
}

/* What an unquoted scalar is to YAML, where a text is wanted. */
static const char *scalar_type(const struct yaml_node *n)
{
    if (n->quoted) return "string";
    if (is_integer(n->text)) return "integer";
    if (is_number(n->text)) return "number";
    return is_boolean(n->text) ? "boolean" : "string";
}

static void enum_text(const struct yaml_node *list, char *out, size_t bytes)
{
    size_t used = 0;
    *out = '\0';
    for (const struct yaml_node *n = list->first; n && used < bytes - 1; n = n->next) {
        int wrote = snprintf(out + used, bytes - used, "%s%s", used ? ", " : "", n->text);
        used += wrote > 0 ? (size_t)wrote : 0;
    }
}

static bool in_enum(const struct yaml_node *list, const char *text)
{
    for (const struct yaml_node *n = list->first; n; n = n->next) {
        if (strcmp(n->text, text) == 0) return true;
    }
    return false;
}

static bool matches(const char *pattern, const char *text)
{
    regex_t r;
    int rc = regcomp(&r, pattern, REG_EXTENDED | REG_NOSUB);
    CHECK(rc == 0);                   /* our own schema's pattern */
    bool found = regexec(&r, text, 0, NULL, 0) == 0;
    regfree(&r);
    return found;
}

static void check_range(struct checking *c, const struct yaml_node *schema,
                        const struct yaml_node *n, const char *path)
{
    const char *low = text_of(schema, "minimum"), *high = text_of(schema, "maximum");
    double value = strtod(n->text, NULL);
    bool under = low && value < strtod(low, NULL), over = high && value > strtod(high, NULL);
    if (!under && !over) return;
    if (low && high) {
        fault(c, n, path, "is %.40s; it must be from %s to %s", n->text, low, high);
    } else if (low) {
        fault(c, n, path, "is %.40s; it must be at least %s", n->text, low);
    } else {
        fault(c, n, path, "is %.40s; it must be at most %s", n->text, high);
    }
}

static void check_text(struct checking *c, const struct yaml_node *schema,
                       const struct yaml_node *n, const char *path)
{
    const char *least = text_of(schema, "minLength"), *most = text_of(schema, "maxLength");
    const char *pattern = text_of(schema, "pattern");
    size_t bytes = strlen(n->text);
    if (least && bytes < strtoul(least, NULL, 10)) {
        fault(c, n, path, "is too short; it must have at least %s character%s", least,
              strcmp(least, "1") == 0 ? "" : "s");
    } else if (most && bytes > strtoul(most, NULL, 10)) {
        fault(c, n, path, "is %zu bytes long; it must have at most %s", bytes, most);
    } else if (pattern && !matches(pattern, n->text)) {
        fault(c, n, path, "is '%.60s'; it must match %s", n->text, pattern);
    }
}

static void check_scalar(struct checking *c, const struct yaml_node *schema,
                         const struct yaml_node *n, const char *path)
{
    const char *type = text_of(schema, "type");
    const char *is = scalar_type(n);
    const struct yaml_node *words = yaml_find(schema, "enum");
    char list[256];
    if (words && (n->kind != YAML_SCALAR || !in_enum(words, n->text))) {
        enum_text(words, list, sizeof list);
        fault(c, n, path, "is '%.60s'; it must be one of: %s", n->text, list);
        return;
    }
    if (says(schema, "x-kubernetes-int-or-string")) {
        if (strcmp(is, "integer") == 0) check_range(c, schema, n, path);
        else check_text(c, schema, n, path);
        return;
    }
    if (!type) return;
    bool right = strcmp(type, is) == 0 ||
                 (strcmp(type, "number") == 0 && strcmp(is, "integer") == 0);
    if (!right) {
        const char *hint = strcmp(type, "string") == 0 ? " (put it in quotes)"
                           : n->quoted ? " (without quotes)" : "";
        fault(c, n, path, "is '%.60s'; it must be of type %s%s", n->text, type, hint);
    } else if (strcmp(type, "string") == 0) {
        check_text(c, schema, n, path);
    } else if (strcmp(type, "boolean") != 0) {
        check_range(c, schema, n, path);
    }
}

static void check_node(struct checking *c, const struct yaml_node *schema,
                       const struct yaml_node *n, const char *path);

static void unknown(struct checking *c, const struct yaml_node *properties,
                    const struct yaml_node *n, const char *path)
{
    char tail[128];
    struct suggest s = { .wrong = n->key };
    for (const struct yaml_node *p = properties ? properties->first : NULL; p; p = p->next) {
        suggest_offer(&s, p->key);
    }
    fault(c, n, path, "is unknown%s", suggest_text(&s, "", tail, sizeof tail));
}

static void check_map(struct checking *c, const struct yaml_node *schema,
                      const struct yaml_node *map, const char *path)
{
    const struct yaml_node *properties = yaml_find(schema, "properties");
    const struct yaml_node *others = yaml_find(schema, "additionalProperties");
    const struct yaml_node *required = yaml_find(schema, "required");
    bool open = says(schema, "x-kubernetes-preserve-unknown-fields") || (!properties && !others);
    char below[PATH_BYTES];
    for (const struct yaml_node *n = map->first; n; n = n->next) {
        const struct yaml_node *member = properties ? yaml_find(properties, n->key) : NULL;
        snprintf(below, sizeof below, "%.400s%s%.100s", path, *path ? "." : "", n->key);
        if (!member) member = others;
        if (member) check_node(c, member, n, below);
        else if (!open) unknown(c, properties, n, below);
    }
    for (const struct yaml_node *r = required ? required->first : NULL; r; r = r->next) {
        const struct yaml_node *there = yaml_find(map, r->text);
        if (there && !yaml_is_null(there)) continue;
        snprintf(below, sizeof below, "%.400s%s%.100s", path, *path ? "." : "", r->text);
        fault(c, map, below, "is missing");
    }
}

static void check_list(struct checking *c, const struct yaml_node *schema,
                       const struct yaml_node *list, const char *path)
{
    const struct yaml_node *items = yaml_find(schema, "items");
    const char *least = text_of(schema, "minItems");
    unsigned long count = 0;
    for (const struct yaml_node *n = list->first; n; n = n->next, count++) {
        char below[PATH_BYTES];
        snprintf(below, sizeof below, "%.400s[%lu]", path, count);
        if (items) check_node(c, items, n, below);
    }
    if (least && count < strtoul(least, NULL, 10)) {
        fault(c, list, path, "has %lu members; it must have at least %s", count, least);
    }
}

static void check_rules(struct checking *c, const struct yaml_node *schema,
                        const struct yaml_node *n, const char *path)
{
    const struct yaml_node *rules = yaml_find(schema, "x-kubernetes-validations");
    for (const struct yaml_node *r = rules ? rules->first : NULL; r; r = r->next) {
        schema_rule *keeps = schema_rule_find(text_of(r, "rule"));
        CHECK(keeps);                 /* a rule of our own CRD without its function */
        if (!keeps(n)) fault(c, n, path, "breaks a rule: %s", text_of(r, "message"));
    }
}

static void check_node(struct checking *c, const struct yaml_node *schema,
                       const struct yaml_node *n, const char *path)
{
    static const char *const kinds[] = { "a single value", "an object", "a list" };
    const char *type = text_of(schema, "type");
    enum yaml_kind want = YAML_SCALAR;
    if (type && strcmp(type, "object") == 0) want = YAML_MAP;
    if (type && strcmp(type, "array") == 0) want = YAML_LIST;
    if (yaml_is_null(n)) return;      /* as if it were not there */
    if (!type && !says(schema, "x-kubernetes-int-or-string")) return;
    if (n->kind != want) {
        fault(c, n, path, "is %s; it must be %s%s%s", kinds[n->kind],
              want == YAML_SCALAR ? "of type " : kinds[want],
              want == YAML_SCALAR ? (type ? type : "integer or string") : "", "");
        return;
    }
    unsigned before = c->faults;
    if (want == YAML_MAP) check_map(c, schema, n, path);
    else if (want == YAML_LIST) check_list(c, schema, n, path);
    else check_scalar(c, schema, n, path);
    if (c->faults == before) check_rules(c, schema, n, path);
}

unsigned schemas_check(const struct schemas *s, const struct yaml_node *document,
                       schema_report *report, void *ctx)
{
    struct checking c = { .report = report, .ctx = ctx };
    const struct schema *schema = find(s, document);
    CHECK(schema);
    check_node(&c, schema->root, document, "");
    const struct yaml_node *metadata = yaml_find(document, "metadata");
    if (!metadata || metadata->kind != YAML_MAP || !text_of(metadata, "name")) {
        fault(&c, metadata ? metadata : document, "metadata.name", "is missing");
    }
    return c.faults;
}
