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

/* Is a text nested more than JSON_DEPTH_MAX levels deep?  Then it is not to be loaded. */
bool json_too_deep(const char *text, size_t bytes);

/* The text must not be too deep.  NULL: *error says why. */
json_t *json_load(const char *text, size_t bytes, json_error_t *error);

#endif
