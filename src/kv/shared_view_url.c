/* kv/shared_view_url.c - where Redis is: settings, the address, the password, the slot of a key. */
#include <string.h>

#include "common/private_file.h"
#include "kv/shared_view_net.h"

enum { DEFAULT_PORT = 6379, DB_MAX = 1 << 16 };

/* One line of a file that only its owner may read. */
static enum err read_password(struct view_address *a, const char *path, struct why *why)
{
    size_t got;
    enum err e = private_file_read("redis password file", path, a->password, sizeof a->password,
                                   &got, why);
    if (e) return e;
    a->password[got] = '\0';
    a->password[strcspn(a->password, "\r\n")] = '\0';
    if (*a->password) return OK;
    return why_set(why, ERR_FORMAT, "redis password file %s: its first line is empty", path);
}

/* A whole number up to `most`. */
static bool read_number(const char *text, size_t bytes, uint32_t most, uint32_t *out)
{
    uint32_t n = 0;
    if (bytes == 0) return false;
    for (size_t i = 0; i < bytes; i++) {
        if (text[i] < '0' || text[i] > '9') return false;
        n = n * 10 + (uint32_t)(text[i] - '0');
        if (n > most) return false;
    }
    *out = n;
    return true;
}

/* HOST, HOST:PORT, [V6] or [V6]:PORT. */
static bool read_place(const char *text, size_t bytes, struct view_place *out)
{
    const char *end = text + bytes, *host = text, *port = NULL, *close = NULL;
    if (bytes && *text == '[') {
        host++;
        close = memchr(text, ']', bytes);
        if (!close) return false;
        port = close + 1 < end ? close + 1 : NULL;
        if (port && *port != ':') return false;
    } else {
        port = memchr(text, ':', bytes);
    }
    size_t host_bytes = (size_t)((close ? close : port ? port : end) - host);
    uint32_t number = DEFAULT_PORT;
    if (port && !read_number(port + 1, (size_t)(end - port - 1), UINT16_MAX, &number)) return false;
    if (host_bytes == 0 || host_bytes >= sizeof out->host || number == 0) return false;
    memcpy(out->host, host, host_bytes);
    out->host[host_bytes] = '\0';
    out->port = (uint16_t)number;
    return true;
}

static enum err read_hosts(struct view_address *a, const char *url, const char *hosts, size_t bytes,
                           struct why *why)
{
    for (const char *end = hosts + bytes; hosts <= end;) {
        const char *comma = memchr(hosts, ',', (size_t)(end - hosts));
        const char *stop = comma ? comma : end;
        if (a->seed_count == VIEW_SEEDS_MAX) {
            return why_set(why, ERR_LIMIT, "--redis %.200s: more than %d addresses", url,
                           VIEW_SEEDS_MAX);
        }
        if (!read_place(hosts, (size_t)(stop - hosts), &a->seeds[a->seed_count++])) {
            return why_set(why, ERR_FORMAT, "--redis %.200s: '%.*s' is not HOST or HOST:PORT", url,
                           (int)(stop - hosts), hosts);
        }
        hosts = stop + 1;
    }
    return OK;
}

static enum err read_user(struct view_address *a, const char *url, size_t bytes, const char *user,
                          struct why *why)
{
    if (memchr(user, ':', bytes)) {   /* and it is not repeated here */
        return why_set(why, ERR_FORMAT, "--redis: a password in the address is seen by everybody; "
                       "put it into --redis-password-file");
    }
    if (bytes >= sizeof a->user) return why_set(why, ERR_LIMIT, "--redis %.200s: long user", url);
    memcpy(a->user, user, bytes);
    return OK;
}

static enum err read_url(struct view_address *a, const char *url, struct why *why)
{
    static const char scheme[] = "redis://", secure[] = "rediss://";
    const char *at = url;
    if (strncmp(url, "unix:", 5) == 0) {
        if (!url[5] || strlen(url + 5) >= sizeof a->path) {
            return why_set(why, ERR_FORMAT, "--redis %.200s: unix:PATH needs a path of at most %zu "
                           "bytes", url, sizeof a->path - 1);
        }
        memcpy(a->path, url + 5, strlen(url + 5));
        return OK;
    }
    a->secure = strncmp(url, secure, sizeof secure - 1) == 0;
    if (a->secure) at += sizeof secure - 1;
    else if (strncmp(url, scheme, sizeof scheme - 1) == 0) at += sizeof scheme - 1;
    else if (strstr(url, "://")) {
        return why_set(why, ERR_FORMAT, "--redis %.200s: only redis://, rediss:// and unix: are "
                       "known", url);
    }
    size_t bytes = strcspn(at, "/");
    const char *db = at + bytes, *sign = memchr(at, '@', bytes);
    if (*db && db[1] && !read_number(db + 1, strlen(db + 1), DB_MAX, &a->db)) {
        return why_set(why, ERR_FORMAT, "--redis %.200s: '%s' is no database number", url, db + 1);
    }
    if (sign) {
        enum err e = read_user(a, url, (size_t)(sign - at), at, why);
        if (e) return e;
        bytes -= (size_t)(sign + 1 - at);
        at = sign + 1;
    }
    return read_hosts(a, url, at, bytes, why);
}

/* What was asked for is done or refused: a CA file beside redis:// would protect nothing. */
static enum err check_tls(const struct view_address *a, const char *url, struct why *why)
{
    const struct shared_view_tls *t = &a->tls;
    bool given = *t->cacert || *t->cert || *t->key || *t->sni || t->insecure;
    struct view_tls *tls;
    if (given && !a->secure) {
        return why_set(why, ERR_FORMAT, "--redis %.200s: options of TLS (--redis-cacert, "
                       "--redis-cert, ...) need rediss://", url);
    }
    if (!*t->cert != !*t->key) {
        return why_set(why, ERR_FORMAT, "--redis-cert and --redis-key need each other");
    }
    if (t->insecure && *t->cacert) {
        return why_set(why, ERR_FORMAT, "--redis-insecure verifies nothing: leave out it or "
                       "--redis-cacert");
    }
    if (!a->secure) return OK;
    enum err e = view_tls_open(&tls, t, why);
    if (e == OK) view_tls_close(tls);
    return e;
}

struct shared_view_config shared_view_settings(const struct config *c)
{
    return (struct shared_view_config){
        .url = c->redis, .password_file = c->redis_password_file,
        .tls = { .cacert = c->redis_cacert, .cert = c->redis_cert, .key = c->redis_key,
                 .sni = c->redis_sni, .insecure = c->redis_insecure },
    };
}

enum err view_address_read(struct view_address *a, const struct shared_view_config *c,
                           struct why *why)
{
    *a = (struct view_address){ .tls = c->tls };
    enum err e = read_url(a, c->url, why);
    if (e == OK && *c->password_file) e = read_password(a, c->password_file, why);
    if (e == OK && *a->user && !*a->password) {
        e = why_set(why, ERR_FORMAT, "--redis %.200s: a user needs --redis-password-file", c->url);
    }
    return e ? e : check_tls(a, c->url, why);
}

/* Redis Cluster specification: HASH_SLOT = CRC16(tag) mod 16384, polynomial 0x1021. */
uint16_t view_slot(const char *key, size_t bytes)
{
    const char *open = memchr(key, '{', bytes);
    const char *close = open ? memchr(open, '}', bytes - (size_t)(open - key)) : NULL;
    if (close && close > open + 1) {
        key = open + 1;
        bytes = (size_t)(close - key);
    }
    uint16_t crc = 0;
    for (size_t i = 0; i < bytes; i++) {
        crc ^= (uint16_t)((unsigned char)key[i] << 8);
        for (int bit = 0; bit < 8; bit++) {
            crc = (uint16_t)(crc & 0x8000 ? crc << 1 ^ 0x1021 : crc << 1);
        }
    }
    return crc % VIEW_SLOTS;
}
