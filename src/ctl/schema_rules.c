/* ctl/schema_rules.c - the CEL rules of our CRDs, by their text; see schema.h. */
#include <stdlib.h>
#include <string.h>

#include "ctl/schema.h"

static bool has(const struct yaml_node *map, const char *key)
{
    const struct yaml_node *n = yaml_find(map, key);
    return n && !yaml_is_null(n);
}

static double number(const struct yaml_node *map, const char *key)
{
    const struct yaml_node *n = yaml_find(map, key);
    return n && n->kind == YAML_SCALAR ? strtod(n->text, NULL) : 0;
}

static bool prefill_has_decode(const struct yaml_node *self)
{
    return !has(self, "prefill") || has(self, "decode") || has(self, "both");
}

static bool decode_has_prefill(const struct yaml_node *self)
{
    return !has(self, "decode") || has(self, "prefill") || has(self, "both");
}

static bool bounds_in_order(const struct yaml_node *self)
{
    return !has(self, "minReplicas") || !has(self, "maxReplicas") ||
           number(self, "minReplicas") <= number(self, "maxReplicas");
}

static bool enabled_has_bound(const struct yaml_node *self)
{
    const struct yaml_node *enabled = yaml_find(self, "enabled");
    bool on = enabled && enabled->kind == YAML_SCALAR && strcmp(enabled->text, "true") == 0;
    return !on || has(self, "maxReplicas");
}

static bool a_weight_counts(const struct yaml_node *self)
{
    return !has(self, "cacheLocalityWeight") || !has(self, "latencyWeight") ||
           number(self, "cacheLocalityWeight") + number(self, "latencyWeight") > 0;
}

static const struct {
    const char *text;
    schema_rule *keeps;
} rules[] = {
    { "!has(self.prefill) || has(self.decode) || has(self.both)", prefill_has_decode },
    { "!has(self.decode) || has(self.prefill) || has(self.both)", decode_has_prefill },
    { "!has(self.minReplicas) || !has(self.maxReplicas) || "
      "self.minReplicas <= self.maxReplicas", bounds_in_order },
    { "!(has(self.enabled) && self.enabled) || has(self.maxReplicas)", enabled_has_bound },
    { "!has(self.cacheLocalityWeight) || !has(self.latencyWeight) || "
      "self.cacheLocalityWeight + self.latencyWeight > 0.0", a_weight_counts },
};

schema_rule *schema_rule_find(const char *text)
{
    for (size_t i = 0; i < sizeof rules / sizeof *rules; i++) {
        if (strcmp(rules[i].text, text) == 0) return rules[i].keeps;
    }
    return NULL;
}
