/* ctl/http_load.c - libcurl, multi interface; see http_load.h. */
#include "ctl/http_load.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <curl/curl.h>

#include "common/mem.h"

enum { DETAIL_BYTES_MAX = 512, CONNECT_SECONDS_MAX = 5, SILENCE_SECONDS_MAX = 600 };

struct post {
    struct http_load *load;
    CURL *easy;
    void *context;
    size_t detail_bytes;
    char detail[DETAIL_BYTES_MAX + 1];
    struct post *next, *previous;     /* of those that run */
};

struct http_load {
    struct http_load_config c;
    CURLM *multi;
    struct curl_slist *headers;
    struct post *posts;
    uint32_t post_count;
};

struct http_load *http_load_open(const struct http_load_config *c)
{
    struct http_load *l = mem_alloc(sizeof *l);
    l->c = *c;
    l->multi = curl_multi_init();
    if (!l->multi) die("libcurl cannot start");
    curl_multi_setopt(l->multi, CURLMOPT_MAXCONNECTS, (long)c->posts_max);
    l->headers = curl_slist_append(NULL, "Content-Type: application/json");
    l->headers = curl_slist_append(l->headers, "Expect:");   /* no round trip before a long body */
    if (c->api_key) {
        struct buf key = { 0 };
        buf_print(&key, "Authorization: Bearer %s", c->api_key);
        l->headers = curl_slist_append(l->headers, key.data);
        buf_release(&key);
    }
    return l;
}

static void post_end(struct post *p)
{
    struct http_load *l = p->load;
    if (p->previous) p->previous->next = p->next;
    else l->posts = p->next;
    if (p->next) p->next->previous = p->previous;
    l->post_count--;
    curl_multi_remove_handle(l->multi, p->easy);
    curl_easy_cleanup(p->easy);
    free(p);
}

void http_load_close(struct http_load *l)
{
    while (l->posts) post_end(l->posts);
    curl_multi_cleanup(l->multi);
    curl_slist_free_all(l->headers);
    free(l);
}

static long status_of(const struct post *p)
{
    long status = 0;
    curl_easy_getinfo(p->easy, CURLINFO_RESPONSE_CODE, &status);
    return status;
}

static size_t take_piece(char *data, size_t size, size_t count, void *at)
{
    struct post *p = at;
    size_t bytes = size * count;
    if (status_of(p) == 200) return p->load->c.data(p->context, data, bytes) ? bytes : 0;
    size_t kept = DETAIL_BYTES_MAX - p->detail_bytes;
    if (kept > bytes) kept = bytes;
    memcpy(p->detail + p->detail_bytes, data, kept);
    p->detail_bytes += kept;
    return bytes;
}

static void set_up(struct post *p, const char *path, const char *body)
{
    const struct http_load_config *c = &p->load->c;
    struct buf url = { 0 };
    size_t base = strlen(c->base);
    while (base && c->base[base - 1] == '/') base--;
    buf_add(&url, c->base, base);
    buf_text(&url, path);
    curl_easy_setopt(p->easy, CURLOPT_URL, url.data);
    buf_release(&url);
    curl_easy_setopt(p->easy, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(p->easy, CURLOPT_HTTPHEADER, p->load->headers);
    curl_easy_setopt(p->easy, CURLOPT_PROTOCOLS_STR, "http,https");
    curl_easy_setopt(p->easy, CURLOPT_CONNECTTIMEOUT, (long)CONNECT_SECONDS_MAX);
    curl_easy_setopt(p->easy, CURLOPT_LOW_SPEED_LIMIT, 1L);
    curl_easy_setopt(p->easy, CURLOPT_LOW_SPEED_TIME, (long)SILENCE_SECONDS_MAX);
    curl_easy_setopt(p->easy, CURLOPT_WRITEFUNCTION, take_piece);
    curl_easy_setopt(p->easy, CURLOPT_WRITEDATA, p);
    curl_easy_setopt(p->easy, CURLOPT_PRIVATE, p);
    curl_easy_setopt(p->easy, CURLOPT_POSTFIELDS, body);
    curl_easy_setopt(p->easy, CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)strlen(body));
    if (c->uds) {
        curl_easy_setopt(p->easy, CURLOPT_UNIX_SOCKET_PATH, c->uds);
        curl_easy_setopt(p->easy, CURLOPT_PROXY, "");
    }
}

void http_load_post(struct http_load *l, const char *path, const char *body, void *context)
{
    CHECK(l->post_count < l->c.posts_max);
    struct post *p = mem_alloc(sizeof *p);
    *p = (struct post){ .load = l, .context = context, .next = l->posts,
                        .easy = curl_easy_init() };
    if (!p->easy) die("libcurl cannot start");
    if (l->posts) l->posts->previous = p;
    l->posts = p;
    l->post_count++;
    set_up(p, path, body);
    curl_multi_add_handle(l->multi, p->easy);
}

/* The post is gone before `done` is told, which may want its place. */
static void finish(struct post *p, CURLcode code)
{
    char error[160], detail[DETAIL_BYTES_MAX + 1];
    struct http_load *l = p->load;
    void *context = p->context;
    long status = status_of(p);
    bool whole = code == CURLE_OK && status == 200;
    if (code == CURLE_OK) snprintf(error, sizeof error, "http %ld", status);
    else snprintf(error, sizeof error, "%s", curl_easy_strerror(code));
    memcpy(detail, p->detail, p->detail_bytes);
    detail[p->detail_bytes] = '\0';
    post_end(p);
    l->c.done(context, whole ? NULL : error, detail);
}

void http_load_poll(struct http_load *l, int timeout_ms)
{
    int running, left;
    curl_multi_perform(l->multi, &running);
    CURLMsg *m = curl_multi_info_read(l->multi, &left);
    if (!m) {
        curl_multi_poll(l->multi, NULL, 0, timeout_ms, NULL);
        curl_multi_perform(l->multi, &running);
        m = curl_multi_info_read(l->multi, &left);
    }
    for (; m; m = curl_multi_info_read(l->multi, &left)) {
        struct post *p = NULL;
        CURLcode code = m->data.result;
        curl_easy_getinfo(m->easy_handle, CURLINFO_PRIVATE, (char **)&p);
        if (m->msg == CURLMSG_DONE) finish(p, code);
    }
}
