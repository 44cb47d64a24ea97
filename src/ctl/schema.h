/* ctl/schema.h - documents against the structural schemas of Kubernetes' CRDs, offline.
 *
 * Knows what our CRDs use: type, properties, required, enum, minimum, maximum, minLength,
 * maxLength, pattern, items, minItems, additionalProperties, x-kubernetes-int-or-string and
 * -preserve-unknown-fields.  As the API server with strict validation, it refuses unknown fields.
 * CEL rules are not interpreted: each has its function in schema_rules.c.
 */
#ifndef RANKSERVE_CTL_SCHEMA_H
#define RANKSERVE_CTL_SCHEMA_H

#include "common/check.h"
#include "common/yaml.h"

enum { SCHEMA_COUNT = 3 };

struct schema_text {
    const char *name, *text, *end;
};
extern const struct schema_text schema_texts[SCHEMA_COUNT];

struct schemas;

/* What is wrong with a field: "is 'x'; it must be ...". */
typedef void schema_report(void *ctx, unsigned line, const char *path, const char *text);

struct schemas *schemas_open(void);
void schemas_close(struct schemas *s);
/* False when no schema is for this document's apiVersion and kind. */
bool schemas_know(const struct schemas *s, const struct yaml_node *document);
/* Reports every fault; returns how many. */
unsigned schemas_check(const struct schemas *s, const struct yaml_node *document,
                       schema_report *report, void *ctx);

/* Does `value` keep the CEL rule with this text?  NULL function: nobody wrote one. */
typedef bool schema_rule(const struct yaml_node *value);
schema_rule *schema_rule_find(const char *text);

#endif
