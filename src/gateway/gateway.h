/* gateway/gateway.h - what every part of the gateway shares.
 *
 * Owner: main.  Everything up to `lock` is read-only after start; what follows it, and all calls,
 * metrics and the link's tables, is touched under `lock` only.  One thread serves all sockets, of
 * clients and of jobs (link_client.c); helpers do what takes long (helpers.h).
 */
#ifndef RANKSERVE_GATEWAY_GATEWAY_H
#define RANKSERVE_GATEWAY_GATEWAY_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <time.h>

#include "common/config.h"
#include "common/hash.h"
#include "model/template.h"
#include "model/tokenizer.h"

struct gateway {
    struct config config;
    struct gguf *file;
    struct tokenizer *tokenizer;
    struct template *chat;            /* NULL: the model has none */
    struct shared_view *view;         /* NULL: no --redis */
    struct hash_secret kv_secret;     /* of --kv-secret-file */
    struct prefix_store *store;       /* ids of text seen before; has a lock of its own */
    struct guard *guard;
    struct auth *auth;
    struct helpers *helpers;
    struct link_client *link;
    char model_name[128];
    struct hash128 digest;            /* of the model file; zero for a vocabulary-only file */
    bool has_digest;
    uint32_t context;                 /* the file's; what counts is the job's max_model_len */
    time_t started;

    pthread_mutex_t lock;
    struct metrics *metrics;
    uint64_t calls_open;
    bool draining;
};

#endif
