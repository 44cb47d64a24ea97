/* gateway/auth.h - API keys: a 0600 file with one key a line, or RANKSERVE_API_KEY. */
#ifndef RANKSERVE_GATEWAY_AUTH_H
#define RANKSERVE_GATEWAY_AUTH_H

#include <stdbool.h>

#include "common/check.h"

struct auth;

/* `path` "": the environment's key, or none: then everybody may come in. */
enum err auth_open(struct auth **out, const char *path, struct why *why);
void auth_close(struct auth *a);
/* Are there keys at all? */
bool auth_asks(const struct auth *a);
/* `header` is the Authorization header, or NULL.  Takes the same time whichever key is wrong. */
bool auth_allows(const struct auth *a, const char *header);

#endif
