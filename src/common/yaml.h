/* common/yaml.h - a YAML stream as a bounded tree with line numbers.
 *
 * The subset that configuration needs: maps with text keys, lists, scalars.  Anchors, aliases and
 * tags are refused: they are how a small file becomes a large one.  Duplicate keys are refused.
 * Always true: at most YAML_BYTES_MAX bytes, YAML_NODES_MAX nodes, YAML_DEPTH_MAX levels.
 * libyaml stays inside yaml.c.
 */
#ifndef RANKSERVE_COMMON_YAML_H
#define RANKSERVE_COMMON_YAML_H

#include <stdbool.h>
#include <stddef.h>

#include "common/check.h"

enum {
    YAML_BYTES_MAX = 1 << 20,
    YAML_NODES_MAX = 10000,
    YAML_DEPTH_MAX = 32,
    YAML_DOCUMENTS_MAX = 64,
};

enum yaml_kind { YAML_SCALAR, YAML_MAP, YAML_LIST };

struct yaml_node {
    enum yaml_kind kind;
    unsigned line;                    /* from 1; of the key, inside a map         */
    const char *key;                  /* inside a map, else NULL                  */
    const char *text;                 /* of a scalar; "" for an empty one         */
    bool quoted;                      /* the scalar was in quotes, or a block     */
    struct yaml_node *first, *next;   /* members of a map or list, in their order */
};

struct yaml;

/* Reads all documents; `name` stands in messages: "name:line: what is wrong". */
enum err yaml_read(struct yaml **out, const char *data, size_t bytes, const char *name,
                   struct why *why);
enum err yaml_read_file(struct yaml **out, const char *path, struct why *why);
void yaml_close(struct yaml *y);

size_t yaml_document_count(const struct yaml *y);
/* The root of document i; NULL for an empty document. */
const struct yaml_node *yaml_document(const struct yaml *y, size_t i);
/* The member of a map, or NULL: also when `map` is NULL or no map. */
const struct yaml_node *yaml_find(const struct yaml_node *map, const char *key);
/* null, ~ or nothing, not in quotes. */
bool yaml_is_null(const struct yaml_node *n);

#endif
