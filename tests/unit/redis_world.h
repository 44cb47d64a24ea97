/* tests/unit/redis_world.h - real Redis servers, alone or as a cluster, and views of them.
 *
 * The tests themselves speak to a server by its Unix socket; views come by TCP, in TLS when the
 * server's `flags` say so (there is no other port then).
 */
#ifndef RANKSERVE_TESTS_REDIS_WORLD_H
#define RANKSERVE_TESTS_REDIS_WORLD_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <arpa/inet.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/mem.h"
#include "kv/shared_view_net.h"

enum { KEYS = 4096, PATIENCE_S = 20, NODES = 3 };

static struct hash128 keys[KEYS];
static const struct shared_view_job jobs[] = { { "one", 1 }, { "two", 2 } };
static char folder[64];

/* -- servers ----------------------------------------------------------------------------------- */

struct server {
    pid_t pid;
    int port;
    const char *const *flags;         /* more of them, up to NULL; NULL: none */
    bool secure;                      /* the port speaks TLS */
};

/* One whose cluster bus, 10000 above, is a port as well. */
static inline int free_port(void)
{
    for (;;) {
        struct sockaddr_in a = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
        socklen_t bytes = sizeof a;
        int fd = socket(AF_INET, SOCK_STREAM, 0);
        assert_int_equal(bind(fd, (struct sockaddr *)&a, sizeof a), 0);
        getsockname(fd, (struct sockaddr *)&a, &bytes);
        close(fd);
        if (ntohs(a.sin_port) < 50000) return ntohs(a.sin_port);
    }
}

static inline redisContext *admin(const struct server *s)
{
    uint64_t until = clock_now_ns() + PATIENCE_S * NS_PER_S;
    char path[96];
    snprintf(path, sizeof path, "%s/%d.sock", folder, s->port);
    while (clock_now_ns() < until) {
        redisContext *c = redisConnectUnix(path);
        if (c && !c->err) return c;
        if (c) redisFree(c);
        usleep(10000);
    }
    fail_msg("no server at port %d", s->port);
    return NULL;
}

/* Any command; the answer is only looked at when it is an integer. */
static inline long long tell(const struct server *s, const char *fmt, ...)
{
    redisContext *c = admin(s);
    va_list ap;
    va_start(ap, fmt);
    redisReply *r = redisvCommand(c, fmt, ap);
    va_end(ap);
    long long value = r && r->type == REDIS_REPLY_INTEGER ? r->integer : 0;
    if (r && r->type == REDIS_REPLY_ERROR) fail_msg("%s: %s", fmt, r->str);
    if (r) freeReplyObject(r);
    redisFree(c);
    return value;
}

static inline void server_run(struct server *s)
{
    char port[12], path[96], file[32];
    snprintf(port, sizeof port, "%d", s->port);
    snprintf(path, sizeof path, "%s/%d.sock", folder, s->port);
    snprintf(file, sizeof file, "nodes-%d.conf", s->port);
    const char *argv[48] = { "redis-server", "--port", s->secure ? "0" : port, "--tls-port",
                             s->secure ? port : "0", "--unixsocket", path, "--bind", "127.0.0.1",
                             "--save", "", "--appendonly", "no", "--dir", folder,
                             "--cluster-config-file", file };
    const char *const *more = s->flags;
    for (int i = 17; more && *more; i++) argv[i] = *more++;
    s->pid = fork();
    if (s->pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        int null = open("/dev/null", O_WRONLY);
        dup2(null, 1);
        execvp(argv[0], (char **)argv);
        _exit(127);
    }
    redisFree(admin(s));
}

static inline void server_start(struct server *s, const char *const *flags)
{
    if (system("command -v redis-server > /dev/null") != 0) skip();
    s->port = free_port();
    s->flags = flags;
    server_run(s);
}

static inline void server_kill(struct server *s)
{
    if (s->pid <= 0) return;
    kill(s->pid, SIGKILL);
    waitpid(s->pid, NULL, 0);
    s->pid = 0;
}

/* -- views ------------------------------------------------------------------------------------- */

#define NO_TLS { .cacert = "", .cert = "", .key = "", .sni = "" }

static inline struct shared_view *view_open(const struct shared_view_config *c)
{
    struct shared_view *v;
    struct why why;
    if (shared_view_open(&v, c, &why) != OK) fail_msg("%s", why.text);
    return v;
}

static inline struct shared_view *view_at(const char *url, const char *password_file,
                                          const char *job, uint64_t epoch, uint32_t ttl_s)
{
    struct shared_view_config c = { .url = url, .password_file = password_file, .tls = NO_TLS,
                                    .job = job, .epoch = epoch, .ttl_s = ttl_s };
    return view_open(&c);
}

static inline struct shared_view *view(const struct server *s, const char *job, uint64_t epoch)
{
    char url[64];
    snprintf(url, sizeof url, "redis://127.0.0.1:%d/0", s->port);
    return view_at(url, "", job, epoch, 600);
}

static inline struct shared_view_stats stats(struct shared_view *v)
{
    struct shared_view_stats s;
    shared_view_stats(v, &s);
    return s;
}

#define WAIT(condition)                                                                          \
    do {                                                                                         \
        uint64_t until_ = clock_now_ns() + PATIENCE_S * NS_PER_S;                                \
        while (!(condition) && clock_now_ns() < until_) usleep(5000);                            \
        assert_true(condition);                                                                  \
    } while (0)

static inline void announce(struct shared_view *v, uint32_t from, uint32_t count)
{
    uint64_t before = stats(v).announced;
    shared_view_announce(v, keys + from, count);
    WAIT(stats(v).announced >= before + count);
}

static inline bool look(struct shared_view *v, uint32_t count, uint32_t blocks[2])
{
    return shared_view_look(v, keys, count, jobs, 2, NS_PER_S, blocks);
}

static inline uint32_t held(struct shared_view *v, uint32_t count, int job)
{
    uint32_t blocks[2];
    WAIT(look(v, count, blocks));
    return blocks[job];
}

/* -- clusters ---------------------------------------------------------------------------------- */

static inline bool says(const struct server *s, const char *command, const char *text)
{
    redisContext *c = admin(s);
    redisReply *r = redisCommand(c, command);
    bool found = r && r->str && strstr(r->str, text);
    if (r) freeReplyObject(r);
    redisFree(c);
    return found;
}

static inline void node_name(const struct server *s, char out[48])
{
    redisContext *c = admin(s);
    redisReply *r = redisCommand(c, "CLUSTER MYID");
    snprintf(out, 48, "%s", r->str);
    freeReplyObject(r);
    redisFree(c);
}

/* Three masters with a third of the slots each. */
static inline void cluster_start(struct server s[NODES], const char *const *flags)
{
    for (int i = 0; i < NODES; i++) server_start(&s[i], flags);
    for (int i = 0; i < NODES; i++) {
        tell(&s[i], "CLUSTER SET-CONFIG-EPOCH %d", i + 1);
        tell(&s[i], "CLUSTER ADDSLOTSRANGE %d %d", i * VIEW_SLOTS / NODES,
             (i + 1) * VIEW_SLOTS / NODES - 1);
        if (i) tell(&s[0], "CLUSTER MEET 127.0.0.1 %d", s[i].port);
    }
    for (int i = 0; i < NODES; i++) {
        WAIT(says(&s[i], "CLUSTER INFO", "cluster_slots_ok:16384") &&
             says(&s[i], "CLUSTER INFO", "cluster_state:ok"));
    }
}

static inline int owner(const struct hash128 key)
{
    char name[64];
    int bytes = snprintf(name, sizeof name, "{%016llx%016llx}", (unsigned long long)key.lo,
                         (unsigned long long)key.hi);
    return view_slot(name, (size_t)bytes) * NODES / VIEW_SLOTS;
}

static inline void move_slot(const struct server *s, int slot, int from, int to, bool finish)
{
    char a[48], b[48];
    node_name(&s[from], a);
    node_name(&s[to], b);
    tell(&s[to], "CLUSTER SETSLOT %d IMPORTING %s", slot, a);
    tell(&s[from], "CLUSTER SETSLOT %d MIGRATING %s", slot, b);
    if (!finish) return;
    tell(&s[to], "CLUSTER SETSLOT %d NODE %s", slot, b);
    tell(&s[from], "CLUSTER SETSLOT %d NODE %s", slot, b);
}

/* -- all --------------------------------------------------------------------------------------- */

static inline int setup(void **state)
{
    *state = calloc(NODES, sizeof(struct server));
    return 0;
}

static inline int teardown(void **state)
{
    struct server *s = *state;
    for (int i = 0; i < NODES; i++) server_kill(&s[i]);
    free(s);
    return 0;
}

static inline void world_open(void)
{
    snprintf(folder, sizeof folder, "/tmp/rankserve-view-XXXXXX");
    if (!mkdtemp(folder)) exit(1);
    for (uint32_t i = 0; i < KEYS; i++) keys[i] = (struct hash128){ i * 7919 + 1, i };
}

static inline int world_close(int failed)
{
    char command[96];
    snprintf(command, sizeof command, "rm -rf %s", folder);
    return system(command) == 0 ? failed : 1;
}

#endif
