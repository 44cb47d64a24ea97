/* kv/shared_view_tls.c - see shared_view_tls.h.
 *
 * OpenSSL's queue of errors is per thread: it is emptied before each step, so that what is found
 * after one is of that step.  SIGPIPE is ignored by the programs (OpenSSL writes with write).
 */
#include "kv/shared_view_tls.h"

#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>

#include "common/limits.h"
#include "common/mem.h"
#include "common/private_file.h"

struct view_tls {
    SSL_CTX *context;
    const char *name;                 /* of every server; "": the host's */
    bool insecure;
};

/* -- what all connections share ---------------------------------------------------------------- */

static enum err file_error(const char *what, const char *path, struct why *why)
{
    unsigned long e = ERR_peek_error(); /* the first says most */
    const char *reason = ERR_SYSTEM_ERROR(e) ? strerror(ERR_GET_REASON(e))
                                             : ERR_reason_error_string(e);
    return why_set(why, ERR_FORMAT, "redis %s %s: %s", what, path, reason ? reason : "not PEM");
}

static int no_passphrase(char *out, int room, int writing, void *ctx)
{
    (void)out, (void)room, (void)writing, (void)ctx;
    return -1;
}

static enum err use_key(SSL_CTX *c, const char *path, struct why *why)
{
    size_t bytes;
    char *text = mem_alloc(VIEW_KEY_BYTES_MAX);
    enum err e = private_file_read("redis key file", path, text, VIEW_KEY_BYTES_MAX, &bytes, why);
    BIO *in = e ? NULL : BIO_new_mem_buf(text, (int)bytes);
    EVP_PKEY *key = in ? PEM_read_bio_PrivateKey(in, NULL, no_passphrase, NULL) : NULL;
    if (!e && !key) {
        e = why_set(why, ERR_FORMAT, "redis key file %s: not a PEM key without a passphrase", path);
    }
    if (!e && SSL_CTX_use_PrivateKey(c, key) != 1) {
        e = why_set(why, ERR_FORMAT, "redis key file %s: not the key of --redis-cert", path);
    }
    EVP_PKEY_free(key);
    BIO_free(in);
    OPENSSL_cleanse(text, VIEW_KEY_BYTES_MAX);
    free(text);
    return e;
}

static enum err load(SSL_CTX *c, const struct shared_view_tls *o, struct why *why)
{
    ERR_clear_error();
    SSL_CTX_set_default_passwd_cb(c, no_passphrase); /* the default asks at a terminal, and waits */
    if (!*o->cacert) SSL_CTX_set_default_verify_paths(c);
    else if (SSL_CTX_load_verify_locations(c, o->cacert, NULL) != 1) {
        return file_error("CA file", o->cacert, why);
    }
    if (!*o->cert) return OK;
    if (SSL_CTX_use_certificate_chain_file(c, o->cert) != 1) {
        return file_error("certificate file", o->cert, why);
    }
    return use_key(c, o->key, why);
}

enum err view_tls_open(struct view_tls **out, const struct shared_view_tls *o, struct why *why)
{
    /* A thread may still be connecting when the program ends: nothing is torn down under it. */
    OPENSSL_init_ssl(OPENSSL_INIT_NO_ATEXIT, NULL);
    SSL_CTX *c = SSL_CTX_new(TLS_client_method());
    if (!c) return why_set(why, ERR_UNSUPPORTED, "--redis: OpenSSL gives no TLS client");
    SSL_CTX_set_min_proto_version(c, TLS1_2_VERSION);
    SSL_CTX_set_options(c, SSL_OP_NO_RENEGOTIATION);
    SSL_CTX_set_mode(c, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER |
                        SSL_MODE_RELEASE_BUFFERS);
    SSL_CTX_set_verify(c, o->insecure ? SSL_VERIFY_NONE : SSL_VERIFY_PEER, NULL);
    enum err e = load(c, o, why);
    if (e) {
        SSL_CTX_free(c);
        return e;
    }
    *out = mem_alloc(sizeof **out);
    **out = (struct view_tls){ .context = c, .name = o->sni, .insecure = o->insecure };
    return OK;
}

void view_tls_close(struct view_tls *t)
{
    if (!t) return;
    SSL_CTX_free(t->context);
    free(t);
}

/* -- one connection ---------------------------------------------------------------------------- */

static enum view_step fail(struct view_fault *f, enum view_error kind, const char *text)
{
    f->kind = kind;
    snprintf(f->text, sizeof f->text, "TLS: %s", text);
    return VIEW_FAILED;
}

/* RFC 6066: no addresses in server_name. */
static bool set_name(const struct view_tls *t, SSL *s, const char *host)
{
    const char *name = *t->name ? t->name : host;
    unsigned char address[16];
    bool numeric = inet_pton(AF_INET, name, address) == 1 ||
                   inet_pton(AF_INET6, name, address) == 1;
    if (!numeric && SSL_set_tlsext_host_name(s, name) != 1) return false;
    if (t->insecure) return true;
    SSL_set_hostflags(s, X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS);
    return numeric ? X509_VERIFY_PARAM_set1_ip_asc(SSL_get0_param(s), name) == 1
                   : SSL_set1_host(s, name) == 1;
}

SSL *view_tls_begin(const struct view_tls *t, int fd, const char *host, struct view_fault *f)
{
    ERR_clear_error();
    SSL *s = SSL_new(t->context);
    if (s && SSL_set_fd(s, fd) == 1 && set_name(t, s, host)) return s;
    SSL_free(s);
    fail(f, VIEW_TLS, "this name cannot be verified");
    return NULL;
}

static enum view_step explain(const SSL *s, struct view_fault *f)
{
    unsigned long e = ERR_peek_last_error();
    int reason = ERR_GET_LIB(e) == ERR_LIB_SSL ? ERR_GET_REASON(e) : 0;
    char text[160];
    switch (reason) {
    case SSL_R_CERTIFICATE_VERIFY_FAILED:
        snprintf(text, sizeof text, "its certificate is refused: %s",
                 X509_verify_cert_error_string(SSL_get_verify_result(s)));
        return fail(f, VIEW_TLS, text);
    case SSL_R_WRONG_VERSION_NUMBER:
    case SSL_R_HTTP_REQUEST:
        return fail(f, VIEW_TLS, "what it answers is not TLS; a plain port needs redis://");
    case SSL_R_TLSV13_ALERT_CERTIFICATE_REQUIRED:
        return fail(f, VIEW_TLS, "it wants a client certificate: --redis-cert and --redis-key");
#ifdef SSL_R_UNEXPECTED_EOF_WHILE_READING
    case SSL_R_UNEXPECTED_EOF_WHILE_READING:
        return fail(f, VIEW_CONNECTION, "it closed the connection");
#endif
    }
    const char *known = ERR_reason_error_string(e);
    return fail(f, VIEW_TLS, known ? known : "the connection failed");
}

static enum view_step judge(const SSL *s, int code, struct view_fault *f)
{
    int error = errno;
    switch (SSL_get_error(s, code)) {
    case SSL_ERROR_NONE: return VIEW_DONE;
    case SSL_ERROR_WANT_READ: return VIEW_WANTS_READ;
    case SSL_ERROR_WANT_WRITE: return VIEW_WANTS_WRITE;
    case SSL_ERROR_ZERO_RETURN: return VIEW_CLOSED;
    case SSL_ERROR_SYSCALL:
        return fail(f, VIEW_CONNECTION, error ? strerror(error) : "it closed the connection");
    default: return explain(s, f);
    }
}

/* After a failure OpenSSL wants no goodbye. */
static enum view_step settle(SSL *s, enum view_step step)
{
    if (step == VIEW_FAILED) SSL_set_shutdown(s, SSL_SENT_SHUTDOWN | SSL_RECEIVED_SHUTDOWN);
    return step;
}

enum view_step view_tls_shake(SSL *s, struct view_fault *f)
{
    ERR_clear_error();
    errno = 0;
    return settle(s, judge(s, SSL_connect(s), f));
}

enum view_step view_tls_read(SSL *s, void *out, size_t room, size_t *got, struct view_fault *f)
{
    ERR_clear_error();
    errno = 0;
    return settle(s, judge(s, SSL_read_ex(s, out, room, got), f));
}

/* In TLS 1.3 a server refuses our certificate when for us the handshake is over: the reason may lie
 * unread before the reset that a write meets. */
static void ask_why(SSL *s, struct view_fault *f)
{
    struct view_fault said;
    char byte;
    size_t got;
    ERR_clear_error();
    errno = 0;
    bool known = judge(s, SSL_read_ex(s, &byte, 1, &got), &said) == VIEW_FAILED;
    if (known && said.kind == VIEW_TLS) *f = said;
}

enum view_step view_tls_write(SSL *s, const void *data, size_t bytes, size_t *sent,
                              struct view_fault *f)
{
    ERR_clear_error();
    errno = 0;
    enum view_step step = judge(s, SSL_write_ex(s, data, bytes, sent), f);
    if (step == VIEW_FAILED && f->kind == VIEW_CONNECTION) ask_why(s, f);
    return settle(s, step);
}

void view_tls_end(SSL *s)
{
    SSL_shutdown(s);                  /* says goodbye where it can; waits for nothing */
    SSL_free(s);
    ERR_clear_error();
}
