/* common/yaml.c - libyaml's events into a bounded tree; see yaml.h. */
#include "common/yaml.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <yaml.h>

#include "common/mem.h"

struct yaml {
    const char *name;
    struct yaml_node **made;          /* every node, to be freed */
    size_t made_count, made_room;
    struct yaml_node *documents[YAML_DOCUMENTS_MAX];
    size_t document_count;
    struct yaml_node *open[YAML_DEPTH_MAX];     /* maps and lists not yet closed  */
    struct yaml_node *last[YAML_DEPTH_MAX];     /* their last member              */
    size_t depth;
    char *key;                        /* the key whose value comes next; NULL: none */
    unsigned key_line;
};

static enum err fail(const struct yaml *y, unsigned line, enum err e, struct why *why,
                     const char *text)
{
    return why_set(why, e, "%.200s:%u: %s", y->name, line, text);
}

static struct yaml_node *add_node(struct yaml *y, enum yaml_kind kind, unsigned line)
{
    if (y->made_count == y->made_room) {
        y->made_room = y->made_room ? y->made_room * 2 : 64;
        y->made = mem_resize(y->made, y->made_room, sizeof *y->made);
    }
    struct yaml_node *n = mem_alloc(sizeof *n);
    n->kind = kind;
    n->line = line;
    y->made[y->made_count++] = n;
    return n;
}

/* Puts a new node where the stream is: a document's root, a list's item, a map's value. */
static enum err place(struct yaml *y, struct yaml_node *n, struct why *why)
{
    if (y->made_count > YAML_NODES_MAX) return fail(y, n->line, ERR_LIMIT, why, "too many values");
    if (y->depth == 0) {
        y->documents[y->document_count - 1] = n;
        return OK;
    }
    struct yaml_node *parent = y->open[y->depth - 1];
    struct yaml_node **last = &y->last[y->depth - 1];
    if (parent->kind == YAML_MAP) {
        n->key = y->key;
        n->line = y->key_line;
        y->key = NULL;
    }
    if (*last) (*last)->next = n;
    else parent->first = n;
    *last = n;
    return OK;
}

static bool wants_key(const struct yaml *y)
{
    return y->depth && y->open[y->depth - 1]->kind == YAML_MAP && !y->key;
}

static enum err take_key(struct yaml *y, const char *text, unsigned line, struct why *why)
{
    const struct yaml_node *before = yaml_find(y->open[y->depth - 1], text);
    if (before) {
        return why_set(why, ERR_FORMAT, "%.200s:%u: '%.60s' is here twice (first in line %u)",
                       y->name, line, text, before->line);
    }
    y->key = mem_text(text);
    y->key_line = line;
    return OK;
}

static enum err take_scalar(struct yaml *y, const yaml_event_t *event, unsigned line,
                            struct why *why)
{
    const char *text = (const char *)event->data.scalar.value;
    if (event->data.scalar.anchor) return fail(y, line, ERR_FORMAT, why, "anchors are not allowed");
    if (event->data.scalar.tag) return fail(y, line, ERR_FORMAT, why, "tags are not allowed");
    if (strlen(text) != event->data.scalar.length) {
        return fail(y, line, ERR_FORMAT, why, "a text holds a NUL character");
    }
    if (wants_key(y)) return take_key(y, text, line, why);
    struct yaml_node *n = add_node(y, YAML_SCALAR, line);
    n->text = mem_text(text);
    n->quoted = event->data.scalar.style != YAML_PLAIN_SCALAR_STYLE;
    return place(y, n, why);
}

static enum err take_open(struct yaml *y, const yaml_event_t *event, unsigned line,
                          struct why *why)
{
    bool map = event->type == YAML_MAPPING_START_EVENT;
    const void *anchor = map ? event->data.mapping_start.anchor : event->data.sequence_start.anchor;
    const void *tag = map ? event->data.mapping_start.tag : event->data.sequence_start.tag;
    if (anchor) return fail(y, line, ERR_FORMAT, why, "anchors are not allowed");
    if (tag) return fail(y, line, ERR_FORMAT, why, "tags are not allowed");
    if (wants_key(y)) return fail(y, line, ERR_FORMAT, why, "a key must be a text");
    if (y->depth == YAML_DEPTH_MAX) return fail(y, line, ERR_LIMIT, why, "nested too deeply");
    struct yaml_node *n = add_node(y, map ? YAML_MAP : YAML_LIST, line);
    enum err e = place(y, n, why);
    if (e != OK) return e;
    y->open[y->depth] = n;
    y->last[y->depth++] = NULL;
    return OK;
}

static enum err take_event(struct yaml *y, const yaml_event_t *event, struct why *why)
{
    unsigned line = (unsigned)event->start_mark.line + 1;
    switch (event->type) {
    case YAML_DOCUMENT_START_EVENT:
        if (y->document_count == YAML_DOCUMENTS_MAX) {
            return fail(y, line, ERR_LIMIT, why, "too many documents");
        }
        y->document_count++;
        return OK;
    case YAML_ALIAS_EVENT: return fail(y, line, ERR_FORMAT, why, "aliases are not allowed");
    case YAML_SCALAR_EVENT: return take_scalar(y, event, line, why);
    case YAML_MAPPING_START_EVENT:
    case YAML_SEQUENCE_START_EVENT: return take_open(y, event, line, why);
    case YAML_MAPPING_END_EVENT:
    case YAML_SEQUENCE_END_EVENT: y->depth--; return OK;
    default: return OK;
    }
}

static enum err syntax_error(const struct yaml *y, const yaml_parser_t *p, struct why *why)
{
    unsigned line = (unsigned)p->problem_mark.line + 1;
    return why_set(why, ERR_FORMAT, "%.200s:%u: %s%s%s", y->name, line,
                   p->problem ? p->problem : "not YAML", p->context ? ", " : "",
                   p->context ? p->context : "");
}

enum err yaml_read(struct yaml **out, const char *data, size_t bytes, const char *name,
                   struct why *why)
{
    if (bytes > YAML_BYTES_MAX) {
        return why_set(why, ERR_LIMIT, "%.200s: longer than %d bytes", name, YAML_BYTES_MAX);
    }
    yaml_parser_t parser;
    if (!yaml_parser_initialize(&parser)) die("out of memory");
    yaml_parser_set_input_string(&parser, (const unsigned char *)data, bytes);
    struct yaml *y = mem_alloc(sizeof *y);
    y->name = name;
    enum err e = OK;
    for (bool more = true; more && e == OK;) {
        yaml_event_t event;
        if (!yaml_parser_parse(&parser, &event)) {
            e = syntax_error(y, &parser, why);
            break;
        }
        more = event.type != YAML_STREAM_END_EVENT;
        e = take_event(y, &event, why);
        yaml_event_delete(&event);
    }
    yaml_parser_delete(&parser);
    if (e == OK) *out = y;
    else yaml_close(y);
    return e;
}

enum err yaml_read_file(struct yaml **out, const char *path, struct why *why)
{
    FILE *in = fopen(path, "re");
    if (!in) return why_set(why, ERR_IO, "%.200s: %s", path, strerror(errno));
    char *data = mem_alloc(YAML_BYTES_MAX + 1);
    size_t bytes = fread(data, 1, YAML_BYTES_MAX + 1, in);
    enum err e = ferror(in) ? why_set(why, ERR_IO, "%.200s: cannot be read", path)
                            : yaml_read(out, data, bytes, path, why);
    fclose(in);
    free(data);
    return e;
}

void yaml_close(struct yaml *y)
{
    if (!y) return;
    for (size_t i = 0; i < y->made_count; i++) {
        free((char *)y->made[i]->key);
        free((char *)y->made[i]->text);
        free(y->made[i]);
    }
    free(y->made);
    free(y->key);
    free(y);
}

size_t yaml_document_count(const struct yaml *y)
{
    return y->document_count;
}

const struct yaml_node *yaml_document(const struct yaml *y, size_t i)
{
    CHECK(i < y->document_count);
    const struct yaml_node *n = y->documents[i];
    return yaml_is_null(n) ? NULL : n;
}

const struct yaml_node *yaml_find(const struct yaml_node *map, const char *key)
{
    if (!map || map->kind != YAML_MAP) return NULL;
    for (const struct yaml_node *n = map->first; n; n = n->next) {
        if (strcmp(n->key, key) == 0) return n;
    }
    return NULL;
}

bool yaml_is_null(const struct yaml_node *n)
{
    if (!n) return true;
    if (n->kind != YAML_SCALAR || n->quoted) return false;
    return !*n->text || strcmp(n->text, "~") == 0 || strcmp(n->text, "null") == 0;
}
