/* gateway/api_chat.h - chat messages to token ids, through the model's template. */
#ifndef RANKSERVE_GATEWAY_API_CHAT_H
#define RANKSERVE_GATEWAY_API_CHAT_H

#include "gateway/api.h"

struct json_t;

/* `root` is the request's object: messages, tools, chat_template_kwargs, documents.  Appends the
 * prompt's ids.  ERR_LIMIT: more than count_max (*e is not filled); other failures fill *e. */
enum err chat_encode(const struct gateway *gw, const struct json_t *root,
                     const struct api_options *o, size_t count_max, struct token_list *ids,
                     struct api_error *e);

#endif
