/* gateway/api_policy.c - the body of POST /policy, {"cache-ttl": "1h", ...}, as a cache policy. */
#include <jansson.h>
#include <string.h>

#include "common/cache_policy.h"
#include "gateway/api.h"

/* A member as the line that common/cache_policy.h reads. */
static bool add_line(struct buf *lines, const char *name, const json_t *value)
{
    if (json_is_string(value) && !strchr(json_string_value(value), '\n')) {
        buf_print(lines, "%s = %s\n", name, json_string_value(value));
    } else if (json_is_number(value)) {
        buf_print(lines, "%s = %.17g\n", name, json_number_value(value));
    } else {
        return false;
    }
    return true;
}

bool api_parse_policy(const char *labels, const char *body, size_t bytes, struct cache_policy *out,
                      struct api_error *e)
{
    struct buf lines = { 0 };
    struct why why;
    json_error_t bad;
    const char *name;
    json_t *value, *root = json_loadb(body, bytes, JSON_REJECT_DUPLICATES, &bad);
    bool ok = json_is_object(root);
    if (!ok) api_fail(e, 400, NULL, "the body must be a JSON object");
    if (ok) json_object_foreach(root, name, value) {
        if (!ok || add_line(&lines, name, value)) continue;
        ok = api_fail(e, 400, NULL, "%.60s must be one line of text or a number", name);
    }
    enum err read = ok ? cache_policy_read(out, labels, lines.data, lines.size, &why) : OK;
    if (read != OK)
        ok = api_fail(e, read == ERR_STALE ? 409 : 400, NULL, "%.250s", why.text);
    json_decref(root);
    buf_release(&lines);
    return ok;
}
