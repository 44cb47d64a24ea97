/* perf/latency_bench.c - what a service adds to a first token, seen by a client that adds little.
 *
 *   latency_bench PORT RATE SECONDS [SEED [FILE]]
 *
 * Requests for one token of a prompt of 200 ids, made before they are due, at random times RATE a
 * second, each on a connection that is open already; milliseconds from just before a request is
 * written to just after the read that holds its first token.  Then the same for GET /ping, which
 * the gateway answers by itself: what sockets, wake-ups and HTTP take of it.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <math.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/check.h"
#include "common/clock.h"
#include "common/mem.h"
#include "common/splitmix.h"
#include "figures.h"

enum { CONNECTIONS = 64, IDS = 200, REPLY_BYTES_MAX = 1 << 16 };

struct connection {
    uint64_t sent_ns;                 /* 0: free */
    bool first;                       /* its first token has come */
    size_t bytes;
    char reply[REPLY_BYTES_MAX + 1];
};

struct load {
    const char *first, *last; /* what the first token and the end of a reply hold */
    bool pings;
    uint64_t state;
    double *ms;
    uint32_t count, sent, done, ended; /* done: have their first token */
    struct connection connections[CONNECTIONS];
    struct pollfd polls[CONNECTIONS];
};

static void make_request(struct load *l, struct buf *out)
{
    buf_clear(out);
    if (l->pings) {
        buf_text(out, "GET /ping HTTP/1.1\r\nHost: localhost\r\n\r\n");
        return;
    }
    struct buf body = { 0 };
    buf_print(&body, "{\"max_tokens\":1,\"temperature\":0,\"stream\":true,\"ignore_eos\":true,"
              "\"prompt\":[");
    for (int i = 0; i < IDS; i++) {
        int id = (int)(1000 + splitmix_next(&l->state) % 29000);
        buf_print(&body, i ? ",%d" : "%d", id);
    }
    buf_text(&body, "]}");
    buf_print(out, "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: "
              "application/json\r\nContent-Length: %zu\r\n\r\n", body.size);
    buf_add(out, body.data, body.size);
    buf_release(&body);
}

static void connect_all(struct load *l, int port)
{
    struct sockaddr_in to = { .sin_family = AF_INET, .sin_port = htons((uint16_t)port),
                              .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    for (int i = 0; i < CONNECTIONS; i++) {
        int fd = socket(AF_INET, SOCK_STREAM, 0), one = 1;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        if (connect(fd, (struct sockaddr *)&to, sizeof to) != 0) die("connect: %s", strerror(errno));
        l->polls[i] = (struct pollfd){ .fd = fd, .events = POLLIN };
    }
}

static void send_one(struct load *l, const struct buf *request)
{
    int i = 0;
    while (i < CONNECTIONS && l->connections[i].sent_ns) i++;
    if (i == CONNECTIONS) die("%d requests are unanswered: the rate is too high", CONNECTIONS);
    struct connection *c = &l->connections[i];
    c->bytes = 0;
    c->first = false;
    c->sent_ns = clock_now_ns();
    if (send(l->polls[i].fd, request->data, request->size, 0) != (ssize_t)request->size)
        die("send: %s", strerror(errno));
    l->sent++;
}

/* A stream that was over before its head was written has a length. */
static bool is_over(const struct load *l, const char *reply)
{
    return strstr(reply, strcasestr(reply, "\ncontent-length:") ? l->last : "\r\n0\r\n\r\n");
}

static void take(struct load *l, int i)
{
    struct connection *c = &l->connections[i];
    ssize_t got = recv(l->polls[i].fd, c->reply + c->bytes, REPLY_BYTES_MAX - c->bytes, 0);
    uint64_t now = clock_now_ns();
    if (got <= 0 || !c->sent_ns) die("the service closed a connection");
    c->bytes += (size_t)got;
    c->reply[c->bytes] = '\0';
    if (strncmp(c->reply, "HTTP/1.1 200", 12) != 0) die("refused: %.300s", c->reply);
    if (!c->first && strstr(c->reply, l->first)) {
        c->first = true;
        l->ms[l->done++] = (double)(now - c->sent_ns) / 1e6;
    }
    if (!is_over(l, c->reply)) return;
    c->sent_ns = 0;
    l->ended++;
}

static void run(struct load *l, double rate, double seconds)
{
    struct buf request = { 0 };
    uint64_t due = clock_now_ns();
    l->count = (uint32_t)(rate * seconds);
    l->sent = l->done = l->ended = 0;
    l->ms = mem_array(l->count, sizeof *l->ms);
    make_request(l, &request);
    while (l->ended < l->count) {
        uint64_t now = clock_now_ns(), wait = due > now ? due - now : 0;
        if (l->sent == l->count) wait = NS_PER_S;
        struct timespec t = { (time_t)(wait / NS_PER_S), (long)(wait % NS_PER_S) };
        if (ppoll(l->polls, CONNECTIONS, &t, NULL) > 0) {
            for (int i = 0; i < CONNECTIONS; i++)
                if (l->polls[i].revents) take(l, i);
        }
        if (l->sent == l->count || clock_now_ns() < due) continue;
        send_one(l, &request);
        make_request(l, &request);
        double u = splitmix_unit(&l->state) + 0x1p-54;
        due += (uint64_t)(-log(u) / rate * 1e9);
    }
    buf_release(&request);
}

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void report(struct load *l, struct figures *f, const char *what)
{
    static const struct { const char *name; double at; } shares[] = {
        { "p10", 0.1 }, { "p50", 0.5 }, { "p90", 0.9 }, { "p99", 0.99 },
    };
    char name[64];
    qsort(l->ms, l->count, sizeof *l->ms, ascending);
    printf("%-12s", what);
    for (size_t i = 0; i < sizeof shares / sizeof shares[0]; i++) {
        double value = l->ms[(size_t)(l->count * shares[i].at)];
        printf("  %s %.3f ms", shares[i].name, value);
        snprintf(name, sizeof name, "%s_%s_ms", what, shares[i].name);
        figure(f, name, value);
    }
    printf("\n");
    free(l->ms);
}

int main(int argc, char **argv)
{
    if (argc < 4) die("usage: latency_bench PORT RATE SECONDS [SEED [FILE]]");
    struct load *l = mem_alloc(sizeof *l);
    struct figures f = figures_open(argc > 5 ? argv[5] : NULL);
    double rate = atof(argv[2]), seconds = atof(argv[3]);
    prctl(PR_SET_TIMERSLACK, 1000, 0, 0, 0);
    l->state = argc > 4 ? strtoull(argv[4], NULL, 10) : 1;
    connect_all(l, atoi(argv[1]));
    l->first = "data: {";
    l->last = "[DONE]\n\n";
    run(l, rate, seconds);
    report(l, &f, "first_token");
    l->pings = true;
    l->first = l->last = "\"}";
    run(l, rate, seconds);
    report(l, &f, "ping");
    figures_close(&f);
    return 0;
}
