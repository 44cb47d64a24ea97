/* gateway/wishes.c - see wishes.h. */
#include "gateway/wishes.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "common/hash.h"
#include "common/limits.h"

static bool read_priority(const char *header, int64_t *out, struct api_error *e)
{
    static const char *const words[] = { "high", "normal", "low" };
    if (!header || *out) return true; /* the body's own field wins */
    for (int i = 0; i < 3; i++) {
        if (strcasecmp(header, words[i]) != 0) continue;
        *out = i - 1;
        return true;
    }
    char *end;
    long value = strtol(header, &end, 10);
    if (!*header || *end || value < INT32_MIN || value > INT32_MAX) {
        return api_fail(e, 400, "priority", "the priority header must be high, normal, low or an "
                        "integer");
    }
    *out = value;
    return true;
}

/* Whole milliseconds, from 1 to a day. */
static bool read_ms(const char *header, const char *name, uint32_t *out, struct api_error *e)
{
    if (!header) return true;
    char *end;
    errno = 0;
    unsigned long long value = strtoull(header, &end, 10);
    bool digits = strspn(header, "0123456789") == strlen(header);
    if (!digits || !*header || errno || value < 1 || value > TIMEOUT_MS_MAX) {
        return api_fail(e, 400, name, "the %s header must be milliseconds, 1 to %d", name,
                        TIMEOUT_MS_MAX);
    }
    *out = (uint32_t)value;
    return true;
}

/* A user of one API key is another one than the same name under another key. */
static void read_user(const struct wishes *w, struct api_request *r)
{
    struct hash_secret key = { 0 };
    if (w->api_key) key.k0 = hash_sip128(key, w->api_key, strlen(w->api_key)).lo;
    const char *id = w->fairness_id && *w->fairness_id ? w->fairness_id : NULL;
    if (!id && !w->api_key) return;   /* the field `user`, as it is */
    struct hash128 h = id ? hash_sip128(key, id, strlen(id))
                          : hash_sip128(key, &r->user_hash, sizeof r->user_hash);
    r->user_hash = h.lo ? h.lo : 1;
}

bool wishes_read(const struct wishes *w, struct api_request *r, struct api_error *e)
{
    uint32_t timeout_ms = 0;
    if (!read_priority(w->priority, &r->o.priority, e)) return false;
    if (!read_ms(w->ttft, "x-llm-d-slo-ttft-ms", &r->ttft_slo_ms, e)) return false;
    if (!read_ms(w->tpot, "x-llm-d-slo-tpot-ms", &r->tpot_slo_ms, e)) return false;
    if (!read_ms(w->timeout, "x-envoy-upstream-rq-timeout-ms", &timeout_ms, e)) return false;
    if (!(r->o.timeout_s > 0)) r->o.timeout_s = timeout_ms / 1000.0;
    read_user(w, r);
    return true;
}
