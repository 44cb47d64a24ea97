/* kv/shared_view_net.c - see shared_view_net.h: logging in, the map of slots, pipelines.
 *
 * The deadline is over the whole exchange.  A node that fails is let go with all its replies.
 */
#include "kv/shared_view_net.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/clock.h"
#include "common/mem.h"

#define STEP_NS (100 * NS_PER_MS)     /* connecting, or one question of logging in */
#define STEP_TLS_NS (300 * NS_PER_MS) /* with a handshake, and keys to be computed */

/* -- one connection ---------------------------------------------------------------------------- */

static void say(struct view_net *n, enum view_error e, const struct view_place *p, const char *what)
{
    n->why = e;
    const char *path = n->address->path;
    if (*path) snprintf(n->text, sizeof n->text, "%.107s: %.200s", path, what);
    else snprintf(n->text, sizeof n->text, "%.100s:%u: %.200s", p->host, p->port, what);
    for (char *at = n->text; *at; at++) { /* a server's words become a line of the log */
        if (iscntrl((unsigned char)*at)) *at = '?';
    }
}

static void say_fault(struct view_net *n, const struct view_node *node, const struct view_fault *f)
{
    say(n, f->kind, &node->at, f->text);
}

static void drop_node(struct view_node *node)
{
    view_link_close(node->link);
    node->link = NULL;
}

enum view_error view_error_of(const char *text)
{
    static const struct { const char *begin; enum view_error e; } kinds[] = {
        { "NOAUTH", VIEW_AUTH }, { "WRONGPASS", VIEW_AUTH }, { "NOPERM", VIEW_AUTH },
        { "OOM", VIEW_FULL }, { "MOVED", VIEW_MOVED }, { "ASK", VIEW_MOVED },
        { "CLUSTERDOWN", VIEW_MOVED }, { "TRYAGAIN", VIEW_MOVED },
    };
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        if (strncmp(text, kinds[i].begin, strlen(kinds[i].begin)) == 0) return kinds[i].e;
    }
    return VIEW_OTHER;
}

static bool flush(struct view_net *n, const struct view_node *node, uint64_t deadline)
{
    struct view_fault f;
    if (view_link_flush(node->link, deadline, &f)) return true;
    say_fault(n, node, &f);
    return false;
}

/* NULL: n->why and n->text say it.  The caller frees the reply. */
static redisReply *next_reply(struct view_net *n, const struct view_node *node, uint64_t deadline)
{
    struct view_fault f;
    redisReply *r = view_link_take(node->link, deadline, &f);
    if (!r) say_fault(n, node, &f);
    return r;
}

static uint64_t step_end(const struct view_net *n, uint64_t deadline)
{
    uint64_t until = clock_now_ns() + (n->tls ? STEP_TLS_NS : STEP_NS);
    return until < deadline ? until : deadline;
}

static redisReply *ask(struct view_net *n, struct view_node *node, int argc, const char **argv,
                       uint64_t deadline)
{
    uint64_t until = step_end(n, deadline);
    view_link_put(node->link, argc, argv, NULL);
    return flush(n, node, until) ? next_reply(n, node, until) : NULL;
}

/* A command whose answer must not be an error. */
static bool must(struct view_net *n, struct view_node *node, int argc, const char **argv,
                 uint64_t deadline)
{
    redisReply *r = ask(n, node, argc, argv, deadline);
    bool good = r && r->type != REDIS_REPLY_ERROR;
    if (r && !good) {
        say(n, strcmp(argv[0], "AUTH") == 0 ? VIEW_AUTH : view_error_of(r->str), &node->at, r->str);
    }
    if (r) freeReplyObject(r);
    return good;
}

static bool log_in(struct view_net *n, struct view_node *node, uint64_t deadline)
{
    const struct view_address *a = n->address;
    const char *with_user[] = { "AUTH", a->user, a->password };
    const char *without[] = { "AUTH", a->password };
    bool good = !*a->password || (*a->user ? must(n, node, 3, with_user, deadline)
                                           : must(n, node, 2, without, deadline));
    char db[12];
    snprintf(db, sizeof db, "%u", a->db);
    const char *select[] = { "SELECT", db };
    return good && (a->db == 0 || must(n, node, 2, select, deadline));
}

static bool connect_node(struct view_net *n, struct view_node *node, uint64_t deadline)
{
    const struct view_address *a = n->address;
    if (clock_now_ns() >= deadline) {
        say(n, VIEW_TIMEOUT, &node->at, "no time left to connect");
        return false;
    }
    struct view_fault f;
    node->link = view_link_open(&node->at, a->path, n->tls, step_end(n, deadline), &f);
    if (!node->link) {
        say_fault(n, node, &f);
        return false;
    }
    if (log_in(n, node, deadline)) return true;
    drop_node(node);
    return false;
}

/* -- the map ----------------------------------------------------------------------------------- */

/* The number of the node there; VIEW_NODES_MAX: there are too many. */
static uint32_t node_at(struct view_net *n, const char *host, size_t bytes, long long port)
{
    struct view_place p = { .port = (uint16_t)port };
    bool fits = bytes > 0 && bytes < sizeof p.host && port >= 1 && port <= UINT16_MAX;
    if (!fits) return VIEW_NODES_MAX;
    memcpy(p.host, host, bytes);
    for (uint32_t i = 0; i < n->node_count; i++) {
        if (n->nodes[i].at.port == p.port && strcmp(n->nodes[i].at.host, p.host) == 0) return i;
    }
    if (n->node_count < VIEW_NODES_MAX) n->nodes[n->node_count++] = (struct view_node){ .at = p };
    else return VIEW_NODES_MAX;
    return n->node_count - 1;
}

/* One range of CLUSTER SLOTS: first, last, master [host, port, ...], replicas. */
static void take_range(struct view_net *n, const struct view_place *seed, const redisReply *r)
{
    if (r->type != REDIS_REPLY_ARRAY || r->elements < 3) return;
    const redisReply *first = r->element[0], *last = r->element[1], *master = r->element[2];
    bool fits = first->type == REDIS_REPLY_INTEGER && last->type == REDIS_REPLY_INTEGER &&
                first->integer >= 0 && last->integer < VIEW_SLOTS &&
                master->type == REDIS_REPLY_ARRAY && master->elements >= 2 &&
                master->element[1]->type == REDIS_REPLY_INTEGER;
    if (!fits) return;
    const redisReply *host = master->element[0];
    bool named = host->type == REDIS_REPLY_STRING && host->len > 0;
    uint32_t node = named ? node_at(n, host->str, (size_t)host->len, master->element[1]->integer)
                          : node_at(n, seed->host, strlen(seed->host), master->element[1]->integer);
    if (node == VIEW_NODES_MAX) return;
    for (long long slot = first->integer; slot <= last->integer; slot++) {
        n->slots[slot] = (uint8_t)node;
    }
}

/* The seed is node 0, all slots its own; a cluster then says better. */
static bool learn_slots(struct view_net *n, uint64_t deadline)
{
    const char *words[] = { "CLUSTER", "SLOTS" };
    const struct view_place seed = n->nodes[0].at;
    redisReply *r = ask(n, &n->nodes[0], 2, words, deadline);
    if (!r) return false;
    bool refused = r->type == REDIS_REPLY_ERROR && view_error_of(r->str) == VIEW_AUTH &&
                   strncmp(r->str, "NOPERM", 6) != 0;
    if (refused) say(n, VIEW_AUTH, &seed, r->str);
    bool cluster = r->type == REDIS_REPLY_ARRAY && !*n->address->path;
    for (size_t i = 0; cluster && i < r->elements; i++) {
        take_range(n, &seed, r->element[i]);
    }
    freeReplyObject(r);
    for (uint32_t i = 1; !refused && i < n->node_count; i++) {
        if (!connect_node(n, &n->nodes[i], deadline)) n->stale = true;
    }
    return !refused;
}

bool view_net_connect(struct view_net *n, const struct view_address *a, uint64_t deadline)
{
    struct why why;
    uint32_t seeds = *a->path ? 1 : a->seed_count;
    bool good = false;
    *n = (struct view_net){ .address = a };
    if (a->secure && view_tls_open(&n->tls, &a->tls, &why) != OK) {
        n->why = VIEW_TLS;
        snprintf(n->text, sizeof n->text, "%.300s", why.text);
        return false;
    }
    for (uint32_t i = 0; i < seeds && !good; i++) {
        n->nodes[0] = (struct view_node){ .at = a->seeds[i] };
        n->node_count = 1;
        good = connect_node(n, &n->nodes[0], deadline) && learn_slots(n, deadline);
        if (!good) view_net_close(n);
    }
    view_tls_close(n->tls);           /* sessions keep what they need */
    n->tls = NULL;
    return good;
}

void view_net_close(struct view_net *n)
{
    for (uint32_t i = 0; i < n->node_count; i++) drop_node(&n->nodes[i]);
}

/* -- pipelines --------------------------------------------------------------------------------- */

/* The node of "MOVED SLOT HOST:PORT" or "ASK SLOT HOST:PORT"; NULL: none that is connected. */
static struct view_node *node_of_redirect(struct view_net *n, const char *text, uint16_t slot,
                                          const struct view_node *from)
{
    const char *place = strrchr(text, ' '), *colon = strrchr(text, ':');
    n->stale = true;
    if (!place || !colon || colon < place) return NULL;
    size_t bytes = (size_t)(colon - place - 1);
    const char *host = bytes ? place + 1 : from->at.host;
    uint32_t i = node_at(n, host, bytes ? bytes : strlen(host), strtol(colon + 1, NULL, 10));
    if (i == VIEW_NODES_MAX || !n->nodes[i].link) return NULL;
    if (*text == 'M') n->slots[slot] = (uint8_t)i;
    return &n->nodes[i];
}

static bool append(const struct view_node *node, const struct view_command *c)
{
    if (!node->link) return false;
    view_link_put(node->link, (int)c->argc, c->argv, c->bytes);
    return true;
}

static bool lose_node(struct view_net *n, struct view_node *node)
{
    drop_node(node);
    n->stale = true;
    return false;
}

/* The redirected command at the other node; NULL: it failed. */
static redisReply *follow(struct view_net *n, const struct view_command *c, const redisReply *r,
                          const struct view_node *from, uint64_t deadline)
{
    struct view_node *node = node_of_redirect(n, r->str, c->slot, from);
    if (!node) return NULL;
    static const char *const word[] = { "ASKING" };
    bool asking = *r->str == 'A';
    if (asking) view_link_put(node->link, 1, word, NULL);
    append(node, c);
    redisReply *first = NULL, *second = NULL;
    if (flush(n, node, deadline)) first = next_reply(n, node, deadline);
    if (first && asking) second = next_reply(n, node, deadline);
    if (first && asking) freeReplyObject(first);
    redisReply *got = asking ? second : first;
    if (!got) lose_node(n, node);
    return got;
}

static bool is_redirect(const redisReply *r)
{
    return r->type == REDIS_REPLY_ERROR &&
           (strncmp(r->str, "MOVED ", 6) == 0 || strncmp(r->str, "ASK ", 4) == 0);
}

bool view_net_run(struct view_net *n, const struct view_command *c, uint32_t count,
                  uint64_t deadline,
                  void (*take)(void *ctx, uint32_t index, const redisReply *r), void *ctx)
{
    bool used[VIEW_NODES_MAX] = { false }, whole = true;
    uint8_t *of = mem_array(count, sizeof *of);
    redisReply **moved = mem_array(count, sizeof *moved);
    for (uint32_t i = 0; i < count; i++) {
        of[i] = n->slots[c[i].slot];
        used[of[i]] = true;
        n->stale |= !append(&n->nodes[of[i]], &c[i]);
    }
    for (uint32_t k = 0; k < n->node_count; k++) {
        if (!used[k] || !n->nodes[k].link || flush(n, &n->nodes[k], deadline)) continue;
        whole = lose_node(n, &n->nodes[k]);
    }
    for (uint32_t i = 0; i < count; i++) {
        struct view_node *node = &n->nodes[of[i]];
        redisReply *r = node->link ? next_reply(n, node, deadline) : NULL;
        if (node->link && !r) whole = lose_node(n, node);
        if (r && is_redirect(r)) {
            moved[i] = r;
            continue;
        }
        if (!r) continue;
        take(ctx, i, r);
        freeReplyObject(r);
    }
    for (uint32_t i = 0; i < count; i++) { /* only now: no connection has replies under way */
        if (!moved[i]) continue;
        redisReply *r = follow(n, &c[i], moved[i], &n->nodes[of[i]], deadline);
        take(ctx, i, r ? r : moved[i]);
        if (r) freeReplyObject(r);
        freeReplyObject(moved[i]);
    }
    free(moved);
    free(of);
    return whole;
}
