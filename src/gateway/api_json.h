/* gateway/api_json.h - JSON that clients send, into jansson's values.
 *
 * What json_loadb with JSON_ALLOW_NUL makes of a text, value for value and error for error, at a
 * tenth of the time where it is long strings: a prompt, a conversation.
 */
#ifndef RANKSERVE_GATEWAY_API_JSON_H
#define RANKSERVE_GATEWAY_API_JSON_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

#include "model/tokenizer.h"

/* Is a text nested more than JSON_DEPTH_MAX levels deep?  Then it is not to be loaded. */
bool json_too_deep(const char *text, size_t bytes);

/* A list of token ids that did not become a value for each: the member "prompt" or "tokens" of the
 * whole object, of plain integers below a billion.  Zeroed before json_load; to be released. */
struct json_ids {
    struct token_list list;
    char name[33];                    /* of the string that stands in its place */
};

/* The text must not be too deep.  NULL: *error says why.  With `ids`, at most one list is put there
 * and not into the value. */
json_t *json_load(const char *text, size_t bytes, struct json_ids *ids, json_error_t *error);
/* The list whose place `v` holds, or NULL. */
const struct token_list *json_ids_at(const struct json_ids *ids, const json_t *v);

#endif
