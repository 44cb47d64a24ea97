/* ctl/policy.c - rankservectl policy: a CachePolicy document put in force in a running service. */
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/cache_policy.h"
#include "common/service.h"
#include "ctl/ctl.h"
#include "ctl/endpoint.h"
#include "ctl/http_client.h"

static void add(void *ctx, const char *name, const char *value)
{
    json_object_set_new(ctx, name, json_string(value));
}

static int send_policy(const struct endpoint *at, const char *text)
{
    struct http_request r = { .base = at->url, .uds = at->uds, .path = "/policy", .body = text,
                              .api_key = at->api_key, .timeout_s = 10 };
    struct http_answer a;
    struct why why;
    if (http_ask(&r, &a, &why) != OK) die("policy: %s", why.text);
    int code = a.status == 200 ? 0 : 1;
    if (code) {
        fprintf(stderr, "rankservectl: policy: the service answered %ld: %.*s\n", a.status,
                (int)(a.body.size < 600 ? a.body.size : 600), a.body.size ? a.body.data : "");
    }
    buf_release(&a.body);
    return code;
}

int ctl_policy(int argc, char **argv)
{
    const char *url = NULL, *endpoint_file = NULL, *key_file = NULL, *file = NULL;
    bool print = false;
    const struct flag flags[] = {
        { "file", &file, NULL, "FILE", "a CachePolicy document (also -f)" },
        { "print", NULL, &print, NULL, "only print the settings that would be sent" },
        { "url", &url, NULL, "URL", "the service [http://127.0.0.1:8000]; unix:PATH for a socket" },
        { "endpoint-file", &endpoint_file, NULL, "FILE", "where `up` wrote how it is reached" },
        { "api-key-file", &key_file, NULL, "FILE", "its first key is sent; or RANKSERVE_API_KEY" },
        { NULL },
    };
    for (int i = 1; i < argc; i++)
        if (strcmp(argv[i], "-f") == 0) argv[i] = "--file";
    if (flags_read(flags, "policy -f FILE [options]", argc, argv)) {
        die("policy: unexpected word '%.60s'", argv[1]);
    }
    if (!file) die("policy: which one?  -f FILE names a CachePolicy document");
    struct config c;
    struct why why;
    struct buf selector = { 0 };
    if (service_load_policy(&c, file, &selector, &why) != OK) die("policy: %s", why.text);
    json_t *policy = json_object();
    if (selector.data[0]) add(policy, "selector", selector.data);
    cache_policy_each(&c, policy, add);
    char *text = json_dumps(policy, 0);
    int code = 0;
    if (print) {
        puts(text);
    } else {
        struct endpoint at;
        endpoint_find(&at, url, endpoint_file, key_file);
        code = send_policy(&at, text);
    }
    json_decref(policy);
    free(text);
    buf_release(&selector);
    return code;
}
