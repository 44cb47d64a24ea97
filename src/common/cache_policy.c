/* common/cache_policy.c - see cache_policy.h. */
#include "common/cache_policy.h"

#include <stdio.h>
#include <string.h>

#include "common/config_table.h"
#include "common/limits.h"

static const char *const names[] = {
    "policy", "decode-policy", "max-prefix-length", "cache-ttl", "cache-max-entries",
    "cache-memory-threshold", "cache-locality-weight", "latency-weight",
};
enum { NAMES = sizeof names / sizeof *names };

void cache_policy_of(const struct config *c, struct cache_policy *out)
{
    *out = (struct cache_policy){
        .ttl_ms = c->cache_ttl_ms, .entries_max = (uint32_t)c->cache_max_entries,
        .prefix_tokens_max = (uint32_t)c->max_prefix_length,
        .memory_threshold = c->cache_memory_threshold,
        .cache_locality_weight = c->cache_locality_weight, .latency_weight = c->latency_weight,
    };
    snprintf(out->policy, sizeof out->policy, "%s", c->policy);
    snprintf(out->decode_policy, sizeof out->decode_policy, "%s", c->decode_policy);
}

static bool is_share(double x)
{
    return x >= 0 && x <= 1;
}

bool cache_policy_valid(const struct cache_policy *p)
{
    return memchr(p->policy, '\0', sizeof p->policy) &&
           memchr(p->decode_policy, '\0', sizeof p->decode_policy) &&
           is_share(p->memory_threshold) && is_share(p->cache_locality_weight) &&
           is_share(p->latency_weight) && p->entries_max <= KV_BLOCK_COUNT_MAX &&
           p->prefix_tokens_max <= SEQ_TOKENS_MAX;
}

/* The next piece of a text that ends with one of `ends`; false: there is none. */
static bool next_piece(const char **at, const char *ends, const char **piece, size_t *bytes)
{
    while (**at && strchr(ends, **at)) (*at)++;
    *piece = *at;
    *bytes = strcspn(*at, ends);
    *at += *bytes;
    return *bytes > 0;
}

bool cache_policy_selects(const char *selector, const char *labels)
{
    const char *wanted, *have;
    size_t bytes, have_bytes;
    while (next_piece(&selector, ", ", &wanted, &bytes)) {
        const char *at = labels;
        bool found = false;
        while (!found && next_piece(&at, ", ", &have, &have_bytes))
            found = have_bytes == bytes && memcmp(have, wanted, bytes) == 0;
        if (!found) return false;
    }
    return true;
}

static enum err read_line(struct config *c, const char *labels, char *line, struct why *why)
{
    char *equals = strstr(line, " = ");
    if (!equals) return why_set(why, ERR_FORMAT, "'%.60s' is not of the form name = value", line);
    *equals = '\0';
    const char *value = equals + 3;
    if (strcmp(line, "selector") == 0) {
        if (cache_policy_selects(value, labels)) return OK;
        return why_set(why, ERR_STALE, "the policy selects '%.200s'; this service has the labels "
                       "'%.200s'", value, labels);
    }
    for (int i = 0; i < NAMES; i++) {
        if (strcmp(line, names[i]) == 0)
            return option_set(c, option_find(names[i]), names[i], value, why);
    }
    return why_set(why, ERR_FORMAT, "'%.60s' is not a setting of a cache policy", line);
}

enum err cache_policy_read(struct cache_policy *out, const char *labels, const char *text,
                           size_t bytes, struct why *why)
{
    struct config c;
    char line[512];
    config_defaults(&c);
    for (size_t at = 0; at < bytes;) {
        const char *end = memchr(text + at, '\n', bytes - at);
        size_t length = end ? (size_t)(end - text) - at : bytes - at;
        if (length >= sizeof line || memchr(text + at, '\0', length))
            return why_set(why, ERR_FORMAT, "a line is too long or holds a NUL byte");
        memcpy(line, text + at, length);
        line[length] = '\0';
        at += length + 1;
        enum err e = length ? read_line(&c, labels, line, why) : OK;
        if (e != OK) return e;
    }
    if (strlen(c.policy) >= sizeof out->policy || strlen(c.decode_policy) >= sizeof out->policy)
        return why_set(why, ERR_FORMAT, "no policy has so long a name");
    cache_policy_of(&c, out);
    return OK;
}

void cache_policy_each(const struct config *c, void *ctx,
                       void (*call)(void *ctx, const char *name, const char *value))
{
    for (int i = 0; i < NAMES; i++) {
        const struct option *o = option_find(names[i]);
        struct buf value = { 0 };
        if (option_is_default(c, o)) continue;
        option_print(c, o, &value);
        buf_char(&value, '\0');
        call(ctx, names[i], value.data);
        buf_release(&value);
    }
}
