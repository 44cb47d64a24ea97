/* tests/unit/kv_shared_view_tls_test.c - the shared view over TLS: real servers, right and wrong.
 *
 * The servers have no other TCP port, so whatever reaches them came in TLS.  The certificates are
 * made here, by openssl: of two authorities (ca, ca2), for 127.0.0.1 and redis.test but where the
 * name says otherwise.
 */
#include "redis_world.h"

/* -- certificates ------------------------------------------------------------------------------ */

static const char *const recipe =
    "cd %s && ec='-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2' && "
    "authority() { openssl req -x509 $ec -subj /CN=$1 -keyout $1.key -out $1.pem; } && "
    "signed() { openssl req -x509 $ec -CA $2.pem -CAkey $2.key -subj /CN=$1 -keyout $1.key "
    "  -out $1.pem -addext subjectAltName=$3; } && "
    "right=DNS:redis.test,IP:127.0.0.1 && authority ca && authority ca2 && "
    "signed server ca $right && signed server2 ca2 $right && signed client ca DNS:client && "
    "signed elsewhere ca DNS:elsewhere.test,IP:127.0.0.2 && "
    "openssl req $ec -keyout old.key -out old.csr -subj /CN=old -addext subjectAltName=$right && "
    "openssl x509 -req -in old.csr -CA ca.pem -CAkey ca.key -days -1 -copy_extensions copy "
    "  -out old.pem && "
    "openssl ec -in client.key -aes128 -passout pass:pw -out locked.key && chmod 600 *.key";

static void make_certificates(void)
{
    char command[2048], quiet[2100];
    snprintf(command, sizeof command, recipe, folder);
    snprintf(quiet, sizeof quiet, "( %s ) > /dev/null 2>&1", command);
    if (system("command -v openssl > /dev/null") == 0) assert_int_equal(system(quiet), 0);
}

static const char *in_folder(const char *name)
{
    static char paths[16][128];
    static int next;
    char *path = paths[next++ % 16];
    snprintf(path, sizeof paths[0], "%s/%s", folder, name);
    return path;
}

/* A server with the certificate NAME; `more`: what else, up to NULL. */
static const char *const *flags_of(const char *name, const char *const *more)
{
    static const char *flags[32];
    static char files[2][128];
    snprintf(files[0], sizeof files[0], "%s/%s.pem", folder, name);
    snprintf(files[1], sizeof files[1], "%s/%s.key", folder, name);
    int n = 0;
    flags[n++] = "--tls-cert-file";
    flags[n++] = files[0];
    flags[n++] = "--tls-key-file";
    flags[n++] = files[1];
    flags[n++] = "--tls-ca-cert-file";
    flags[n++] = in_folder("ca.pem");
    while (more && *more) flags[n++] = *more++;
    flags[n] = NULL;
    return flags;
}

static const char *const anybody[] = { "--tls-auth-clients", "no", NULL };

static void tls_start(struct server *s, const char *name, const char *const *more)
{
    if (access(in_folder("old.pem"), R_OK) != 0) skip();
    s->secure = true;
    server_start(s, flags_of(name, more));
}

/* -- who is believed --------------------------------------------------------------------------- */

static const struct shared_view_tls nothing = NO_TLS;

static struct shared_view_tls trust(void)
{
    struct shared_view_tls t = NO_TLS;
    t.cacert = in_folder("ca.pem");
    return t;
}

/* Connects: "" when that went well, else the line.  *kind: what is expected, then what came; a busy
 * machine may be late, so only who expects VIEW_TIMEOUT has it after one attempt. */
static const char *attempt_at(const char *host, int port, struct shared_view_tls tls,
                              enum view_error *kind)
{
    int tries = *kind == VIEW_TIMEOUT ? 1 : 10;
    static struct view_net n;
    static char url[64], text[sizeof n.text];
    struct view_address a;
    struct why why;
    snprintf(url, sizeof url, "rediss://%s:%d", host, port);
    struct shared_view_config c = { .url = url, .password_file = "", .tls = tls };
    if (view_address_read(&a, &c, &why) != OK) fail_msg("%s", why.text);
    bool good = false;
    for (; !good && tries > 0; tries = n.why == VIEW_TIMEOUT ? tries - 1 : 0) {
        good = view_net_connect(&n, &a, clock_now_ns() + PATIENCE_S * NS_PER_S);
    }
    snprintf(text, sizeof text, "%s", good ? "" : n.text);
    *kind = n.why;
    if (good) view_net_close(&n);
    return text;
}

static void expect_refused(const struct server *s, struct shared_view_tls tls,
                           enum view_error kind, const char *says)
{
    enum view_error got = kind;
    const char *text = attempt_at("127.0.0.1", s->port, tls, &got);
    if (!strstr(text, says) || strchr(text, '\n')) fail_msg("'%s' instead of '%s'", text, says);
    assert_int_equal(got, kind);
}

static void expect_good(const struct server *s, struct shared_view_tls tls)
{
    enum view_error kind = VIEW_OTHER;
    const char *text = attempt_at("127.0.0.1", s->port, tls, &kind);
    assert_string_equal(text, "");
}

static void options_that_do_not_fit_are_refused_with_a_line(void **state)
{
    (void)state;
    if (access(in_folder("old.pem"), R_OK) != 0) skip();
    const char *key = in_folder("client.key"), *cert = in_folder("client.pem");
    const char *open_key = in_folder("open.key"), *nowhere = in_folder("nowhere");
    char copy[300];
    snprintf(copy, sizeof copy, "cp %s %s && chmod 640 %s", key, open_key, open_key);
    assert_int_equal(system(copy), 0);
    const struct { const char *url; struct shared_view_tls tls; const char *says; } bad[] = {
        { "redis://h", { in_folder("ca.pem"), "", "", "", false }, "need rediss://" },
        { "h", { "", "", "", "", true }, "need rediss://" },
        { "unix:/run/r", { "", "", "", "name", false }, "need rediss://" },
        { "rediss://h", { nowhere, "", "", "", false }, "No such file" },
        { "rediss://h", { key, "", "", "", false }, "client.key" },
        { "rediss://h", { "", cert, "", "", false }, "need each other" },
        { "rediss://h", { "", "", key, "", false }, "need each other" },
        { "rediss://h", { "", nowhere, key, "", false }, "No such file" },
        { "rediss://h", { "", cert, nowhere, "", false }, "No such file" },
        { "rediss://h", { "", cert, open_key, "", false }, "chmod 600" },
        { "rediss://h", { "", cert, in_folder("ca.key"), "", false }, "not the key of" },
        { "rediss://h", { "", cert, in_folder("locked.key"), "", false }, "passphrase" },
        { "rediss://h", { in_folder("ca.pem"), "", "", "", true }, "--redis-insecure" },
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct view_address a;
        struct why why = { "nothing" };
        struct shared_view_config c = { .url = bad[i].url, .password_file = "",
                                        .tls = bad[i].tls };
        assert_int_not_equal(view_address_read(&a, &c, &why), OK);
        if (!strstr(why.text, bad[i].says)) fail_msg("%s: %s", bad[i].says, why.text);
    }
}

static void a_server_is_believed_when_its_chain_and_name_are_right(void **state)
{
    struct server *s = *state;
    struct shared_view_tls tls = trust();
    tls_start(s, "server", anybody);
    expect_good(s, tls);
    tls.sni = "redis.test";
    expect_good(s, tls);
    tls.sni = "REDIS.test";
    expect_good(s, tls);
    tls.sni = "127.0.0.1";            /* an address is verified as one */
    expect_good(s, tls);
    tls.sni = "127.0.0.2";
    expect_refused(s, tls, VIEW_TLS, "IP address mismatch");
    tls.sni = "other.test";
    expect_refused(s, tls, VIEW_TLS, "hostname mismatch");
    tls.sni = "dis.test";
    expect_refused(s, tls, VIEW_TLS, "hostname mismatch");
    enum view_error kind = VIEW_TLS;
    assert_non_null(strstr(attempt_at("localhost", s->port, trust(), &kind), "hostname mismatch"));
    tls = trust();
    tls.cacert = in_folder("ca2.pem");
    expect_refused(s, tls, VIEW_TLS, "its certificate is refused");
    expect_refused(s, nothing, VIEW_TLS, "its certificate is refused"); /* by the system's */
    tls = nothing;
    tls.insecure = true;
    expect_good(s, tls);
}

static void a_certificate_that_expired_or_is_for_another_is_refused(void **state)
{
    struct server *s = *state;
    tls_start(&s[0], "old", anybody);
    expect_refused(&s[0], trust(), VIEW_TLS, "expired");
    tls_start(&s[1], "elsewhere", anybody);
    expect_refused(&s[1], trust(), VIEW_TLS, "IP address mismatch");
    tls_start(&s[2], "server2", anybody);
    expect_refused(&s[2], trust(), VIEW_TLS, "its certificate is refused");
}

static void a_server_may_want_a_certificate_of_ours(void **state)
{
    struct server *s = *state;
    struct shared_view_tls tls = trust();
    static const char *const old[] = { "--tls-protocols", "TLSv1.2", NULL };
    tls_start(s, "server", NULL);
    expect_refused(s, tls, VIEW_TLS, "--redis-cert");
    tls.cert = in_folder("server2.pem");
    tls.key = in_folder("server2.key");
    expect_refused(s, tls, VIEW_TLS, "TLS: ");
    tls.cert = in_folder("client.pem");
    tls.key = in_folder("client.key");
    expect_good(s, tls);
    tls_start(&s[1], "server", old);  /* there it is told within the handshake */
    expect_good(&s[1], tls);
    expect_refused(&s[1], trust(), VIEW_TLS, "TLS: ");
}

/* -- what is no TLS ---------------------------------------------------------------------------- */

/* A port where each connection gets `says` and is closed; NULL: it is not even taken. */
static int strange_port(const char *says, pid_t *pid)
{
    struct sockaddr_in a = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    socklen_t bytes = sizeof a;
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&a, sizeof a), 0);
    assert_int_equal(listen(fd, 16), 0);
    getsockname(fd, (struct sockaddr *)&a, &bytes);
    *pid = fork();
    if (*pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        while (!says) pause();
        for (;;) {
            char hello[4096];
            int c = accept(fd, NULL, NULL);
            if (read(c, hello, sizeof hello) < 0 || write(c, says, strlen(says)) < 0) { }
            close(c);
        }
    }
    close(fd);
    return ntohs(a.sin_port);
}

static void what_is_no_tls_is_a_line_in_time(void **state)
{
    struct server *s = *state;
    const struct { const char *answer; enum view_error kind; const char *says; } strange[] = {
        { "", VIEW_CONNECTION, "it closed the connection" },
        { "-ERR unknown command\r\n", VIEW_TLS, "is not TLS" },
        { "HTTP/1.1 400 Bad Request\r\n\r\n", VIEW_TLS, "is not TLS" },
        { "\x16\x03\x03", VIEW_CONNECTION, "it closed the connection" },
        { NULL, VIEW_TIMEOUT, "is it a TLS port?" },
    };
    if (access(in_folder("old.pem"), R_OK) != 0) skip();
    for (size_t i = 0; i < sizeof strange / sizeof *strange; i++) {
        struct server stranger = { 0 };
        stranger.port = strange_port(strange[i].answer, &stranger.pid);
        expect_refused(&stranger, trust(), strange[i].kind, strange[i].says);
        server_kill(&stranger);
    }
    server_start(s, NULL);            /* a plain server takes the hello for an unended line */
    enum view_error kind = VIEW_TIMEOUT;
    assert_string_not_equal(attempt_at("127.0.0.1", s->port, trust(), &kind), "");
    tls_start(&s[1], "server", anybody);
    char url[64];
    snprintf(url, sizeof url, "redis://127.0.0.1:%d", s[1].port);
    struct shared_view *plain = view_at(url, "", NULL, 0, 600);
    WAIT(stats(plain).errors[VIEW_CONNECTION] > 0); /* and the other way round */
    assert_false(stats(plain).connected);
    shared_view_close(plain);
}

static void what_a_stranger_says_stays_one_line(void **state)
{
    (void)state;
    static struct view_net n;
    struct server stranger = { 0 };
    struct view_address a;
    struct why why;
    char url[64];
    stranger.port = strange_port("-NOAUTH one\n2026-01-01 error \033[31mtwo\r\n", &stranger.pid);
    snprintf(url, sizeof url, "redis://127.0.0.1:%d", stranger.port);
    struct shared_view_config c = { .url = url, .password_file = "", .tls = NO_TLS };
    assert_int_equal(view_address_read(&a, &c, &why), OK);
    n.why = VIEW_TIMEOUT;
    for (int tries = 0; tries < 10 && n.why == VIEW_TIMEOUT; tries++) {
        assert_false(view_net_connect(&n, &a, clock_now_ns() + PATIENCE_S * NS_PER_S));
    }
    assert_non_null(strstr(n.text, "NOAUTH one?2026-01-01 error ?[31mtwo"));
    server_kill(&stranger);
}

/* -- views ------------------------------------------------------------------------------------- */

static struct shared_view *secure_view(const char *url, struct shared_view_tls tls,
                                       const char *job)
{
    struct shared_view_config c = { .url = url, .password_file = "", .tls = tls, .job = job,
                                    .epoch = 1, .ttl_s = 600 };
    return view_open(&c);
}

static void a_view_heals_when_the_server_and_its_certificate_do(void **state)
{
    struct server *s = *state;
    char url[64], command[400];
    uint32_t blocks[2];
    struct shared_view_tls tls = trust();
    tls.cacert = in_folder("believed.pem");
    snprintf(command, sizeof command, "cp %s %s", in_folder("ca.pem"), tls.cacert);
    assert_int_equal(system(command), 0);
    tls_start(s, "server", anybody);
    snprintf(url, sizeof url, "rediss://127.0.0.1:%d", s->port);
    struct shared_view *one = secure_view(url, tls, "one"), *g = secure_view(url, tls, NULL);
    announce(one, 0, KEYS);
    assert_int_equal(held(g, KEYS, 0), KEYS);
    kill(s->pid, SIGSTOP);
    assert_false(shared_view_look(g, keys, 20, jobs, 2, 5 * NS_PER_MS, blocks));
    assert_int_equal(stats(g).errors[VIEW_TIMEOUT], 1);
    kill(s->pid, SIGCONT);
    assert_int_equal(held(g, 20, 0), 20);
    server_kill(s);
    shared_view_announce(one, keys, 20);
    WAIT(!look(g, 20, blocks) && !stats(one).connected);
    s->flags = flags_of("server2", anybody); /* another authority's, which is not believed yet */
    server_run(s);
    WAIT(stats(g).errors[VIEW_TLS] > 0);
    assert_false(stats(g).connected);
    snprintf(command, sizeof command, "cp %s %s", in_folder("ca2.pem"), tls.cacert);
    assert_int_equal(system(command), 0);
    assert_int_equal(held(g, 20, 0), 0); /* it forgot all */
    WAIT(stats(one).connected);
    announce(one, 0, 20);
    assert_int_equal(held(g, 20, 0), 20);
    shared_view_close(one);
    shared_view_close(g);
}

static void a_cluster_speaks_tls_at_every_node_and_moves_are_followed(void **state)
{
    struct server *s = *state;
    static const char *const member[] = { "--cluster-enabled", "yes", "--tls-cluster", "yes",
                                          "--cluster-node-timeout", "2000", NULL };
    char url[96];
    uint32_t blocks[2];
    if (access(in_folder("old.pem"), R_OK) != 0) skip();
    for (int i = 0; i < NODES; i++) s[i].secure = true;
    cluster_start(s, flags_of("server", member));
    struct shared_view_tls tls = trust();
    tls.cert = in_folder("client.pem");
    tls.key = in_folder("client.key");
    snprintf(url, sizeof url, "rediss://127.0.0.1:1,127.0.0.1:%d", s[1].port);
    struct shared_view *one = secure_view(url, tls, "one"), *g = secure_view(url, tls, NULL);
    announce(one, 0, 300);
    assert_int_equal(held(g, 300, 0), 300);
    for (int i = 0; i < NODES; i++) {
        assert_true(tell(&s[i], "DBSIZE") > 50);
        tell(&s[i], "FLUSHALL");
    }
    char name[64];
    int bytes = snprintf(name, sizeof name, "{%016llx%016llx}", (unsigned long long)keys[0].lo,
                         (unsigned long long)keys[0].hi);
    int slot = view_slot(name, (size_t)bytes), from = owner(keys[0]), to = (from + 1) % NODES;
    move_slot(s, slot, from, to, false); /* the key is not there: ASK */
    announce(one, 0, 1);
    assert_int_equal(tell(&s[to], "DBSIZE"), 1);
    move_slot(s, slot, from, to, true); /* from now on MOVED */
    WAIT(look(g, 1, blocks) && blocks[0] == 1);
    assert_int_equal(stats(one).errors[VIEW_MOVED] + stats(one).errors[VIEW_TLS], 0);
    shared_view_close(one);
    shared_view_close(g);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(options_that_do_not_fit_are_refused_with_a_line),
#define WITH_SERVER(test) cmocka_unit_test_setup_teardown(test, setup, teardown)
        WITH_SERVER(a_server_is_believed_when_its_chain_and_name_are_right),
        WITH_SERVER(a_certificate_that_expired_or_is_for_another_is_refused),
        WITH_SERVER(a_server_may_want_a_certificate_of_ours),
        WITH_SERVER(what_is_no_tls_is_a_line_in_time),
        cmocka_unit_test(what_a_stranger_says_stays_one_line),
        WITH_SERVER(a_view_heals_when_the_server_and_its_certificate_do),
        WITH_SERVER(a_cluster_speaks_tls_at_every_node_and_moves_are_followed),
    };
    signal(SIGPIPE, SIG_IGN);         /* as the programs do */
    world_open();
    make_certificates();
    return world_close(cmocka_run_group_tests(tests, NULL, NULL));
}
