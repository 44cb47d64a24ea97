/* ctl/http_client.c - libcurl, easy interface; see http_client.h. */
#include "ctl/http_client.h"

#include <stdio.h>
#include <string.h>

#include <curl/curl.h>

enum { ANSWER_BYTES_MAX = 64 << 20, SILENCE_SECONDS_MAX = 600, CONNECT_SECONDS_MAX = 5 };

struct exchange {
    CURL *curl;
    const struct http_request *request;
    struct http_answer *answer;
};

static size_t take_piece(char *data, size_t size, size_t count, void *at)
{
    struct exchange *x = at;
    long status = 0;
    size_t bytes = size * count;
    curl_easy_getinfo(x->curl, CURLINFO_RESPONSE_CODE, &status);
    bool ok = status == 200 && x->request->on_data
                  ? x->request->on_data(x->request->context, data, bytes)
                  : buf_add(&x->answer->body, data, bytes);
    return ok ? bytes : 0;
}

static int may_go_on(void *at, curl_off_t a, curl_off_t b, curl_off_t c, curl_off_t d)
{
    (void)a, (void)b, (void)c, (void)d;
    const struct exchange *x = at;
    return x->request->stop && *x->request->stop;
}

static struct curl_slist *make_headers(const struct http_request *r)
{
    struct curl_slist *headers = NULL;
    struct buf key = { 0 };
    if (r->body) headers = curl_slist_append(headers, "Content-Type: application/json");
    if (r->api_key) {
        buf_print(&key, "Authorization: Bearer %s", r->api_key);
        headers = curl_slist_append(headers, key.data);
    }
    buf_release(&key);
    return headers;
}

static void set_up(CURL *curl, struct exchange *x, const char *url, struct curl_slist *headers)
{
    const struct http_request *r = x->request;
    curl_easy_setopt(curl, CURLOPT_URL, url);
    curl_easy_setopt(curl, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(curl, CURLOPT_HTTPHEADER, headers);
    curl_easy_setopt(curl, CURLOPT_PROTOCOLS_STR, "http,https");
    curl_easy_setopt(curl, CURLOPT_CONNECTTIMEOUT, (long)CONNECT_SECONDS_MAX);
    curl_easy_setopt(curl, CURLOPT_TIMEOUT, r->timeout_s);
    curl_easy_setopt(curl, CURLOPT_LOW_SPEED_LIMIT, 1L);
    curl_easy_setopt(curl, CURLOPT_LOW_SPEED_TIME, (long)SILENCE_SECONDS_MAX);
    curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, take_piece);
    curl_easy_setopt(curl, CURLOPT_WRITEDATA, x);
    curl_easy_setopt(curl, CURLOPT_XFERINFOFUNCTION, may_go_on);
    curl_easy_setopt(curl, CURLOPT_XFERINFODATA, x);
    curl_easy_setopt(curl, CURLOPT_NOPROGRESS, 0L);
    if (r->uds) {
        curl_easy_setopt(curl, CURLOPT_UNIX_SOCKET_PATH, r->uds);
        curl_easy_setopt(curl, CURLOPT_PROXY, "");
    }
    if (r->body) curl_easy_setopt(curl, CURLOPT_POSTFIELDS, r->body);
}

enum err http_ask(const struct http_request *r, struct http_answer *a, struct why *why)
{
    *a = (struct http_answer){ .body = { .limit = ANSWER_BYTES_MAX } };
    CURL *curl = curl_easy_init();
    if (!curl) die("libcurl cannot start");
    struct exchange x = { .curl = curl, .request = r, .answer = a };
    struct buf url = { 0 };
    size_t base = strlen(r->base);
    while (base && r->base[base - 1] == '/') base--;
    buf_add(&url, r->base, base);
    buf_text(&url, r->path);
    struct curl_slist *headers = make_headers(r);
    set_up(curl, &x, url.data, headers);
    CURLcode code = curl_easy_perform(curl);
    curl_easy_getinfo(curl, CURLINFO_RESPONSE_CODE, &a->status);
    enum err e = OK;
    if (code == CURLE_ABORTED_BY_CALLBACK || code == CURLE_WRITE_ERROR) {
        e = why_set(why, ERR_AGAIN, "stopped");
    } else if (code != CURLE_OK) {
        e = why_set(why, ERR_GONE, "%.200s: %s", url.data, curl_easy_strerror(code));
    }
    buf_add(&a->body, "", 0);
    curl_slist_free_all(headers);
    curl_easy_cleanup(curl);
    buf_release(&url);
    return e;
}
