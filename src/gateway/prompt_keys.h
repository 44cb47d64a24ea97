/* gateway/prompt_keys.h - the keys of the KV blocks of a request's prompts, made once, here. */
#ifndef RANKSERVE_GATEWAY_PROMPT_KEYS_H
#define RANKSERVE_GATEWAY_PROMPT_KEYS_H

#include "gateway/api.h"
#include "gateway/link_client.h"

/* Fills keys of every prompt: its full blocks, but for one that ends with the last token, which is
 * always computed. */
void prompt_keys_make(struct api_request *r, const struct link_keys *k);

#endif
