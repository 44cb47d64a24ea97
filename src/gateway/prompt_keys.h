/* gateway/prompt_keys.h - the keys of the KV blocks of a request's prompts, and who holds them. */
#ifndef RANKSERVE_GATEWAY_PROMPT_KEYS_H
#define RANKSERVE_GATEWAY_PROMPT_KEYS_H

#include "gateway/api.h"
#include "gateway/link_client.h"

/* Fills keys of every prompt: its full blocks, but for one that ends with the last token, which is
 * always computed. */
void prompt_keys_make(struct api_request *r, const struct link_keys *k);
/* Fills what the jobs hold of every prompt, as far as the shared view says it within some
 * milliseconds.  Takes the gateway's lock for a moment. */
void prompt_keys_look(struct gateway *gw, struct api_request *r, const struct link_keys *k);

#endif
