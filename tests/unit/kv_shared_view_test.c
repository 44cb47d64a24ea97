/* tests/unit/kv_shared_view_test.c - the shared view against real Redis servers, well and ill. */
#include "redis_world.h"

/* -- without a server -------------------------------------------------------------------------- */

static enum err read_address(struct view_address *a, const char *url, const char *password_file,
                             struct why *why)
{
    struct shared_view_config c = { .url = url, .password_file = password_file, .tls = NO_TLS };
    return view_address_read(a, &c, why);
}

static void an_address_is_read_or_refused_with_a_line(void **state)
{
    (void)state;
    struct view_address a;
    struct why why;
    assert_int_equal(read_address(&a, "redis-cluster", "", &why), OK);
    assert_string_equal(a.seeds[0].host, "redis-cluster");
    assert_int_equal(a.seeds[0].port, 6379);
    assert_int_equal(read_address(&a, "redis://h:1,[::1]:2,[fe80::1]/3", "", &why), OK);
    assert_int_equal(a.seed_count, 3);
    assert_string_equal(a.seeds[1].host, "::1");
    assert_int_equal(a.seeds[1].port, 2);
    assert_string_equal(a.seeds[2].host, "fe80::1");
    assert_int_equal(a.db, 3);
    assert_false(a.secure);
    assert_int_equal(read_address(&a, "rediss://h:1", "", &why), OK);
    assert_true(a.secure);
    assert_int_equal(read_address(&a, "unix:/run/r.sock", "", &why), OK);
    assert_string_equal(a.path, "/run/r.sock");
    static const char *const bad[][2] = {
        { "tls://h", "rediss://" }, { "http://h", "only redis://" }, { "redis://h:x", "HOST:PORT" },
        { "redis://", "HOST" }, { "h:0", "HOST" }, { "h:70000", "HOST" }, { "h,", "HOST" },
        { "redis://u:secret@h", "--redis-password-file" }, { "u@h", "needs --redis-password" },
        { "h/x", "database" }, { "unix:", "path" }, { "[::1", "HOST" },
        { "a,a,a,a,a,a,a,a,a,a,a,a,a,a,a,a,a", "more than" },
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_int_not_equal(read_address(&a, bad[i][0], "", &why), OK);
        if (!strstr(why.text, bad[i][1])) fail_msg("%s: %s", bad[i][0], why.text);
        assert_null(strstr(why.text, "secret"));
    }
}

static void slots_are_those_of_the_specification(void **state)
{
    (void)state;
    assert_int_equal(view_slot("123456789", 9), 0x31c3);
    assert_int_equal(view_slot("foo", 3), 12182);
    assert_int_equal(view_slot("a{foo}b", 7), 12182);
    assert_int_equal(view_slot("{}foo", 5), view_slot("{}foo", 5));
    assert_int_not_equal(view_slot("{}foo", 5), 12182);
}

static void without_redis_nothing_waits_and_nothing_is_kept_beyond_the_ring(void **state)
{
    (void)state;
    struct server nobody = { .port = free_port() };
    struct shared_view *v = view(&nobody, "one", 1);
    uint32_t blocks[2], told = 0;
    for (; told < VIEW_RING_KEYS + KEYS; told += KEYS) shared_view_announce(v, keys, KEYS);
    assert_int_equal(stats(v).dropped, told - VIEW_RING_KEYS);
    assert_false(look(v, 100, blocks));
    assert_int_equal(blocks[0], 0);
    WAIT(stats(v).errors[VIEW_CONNECTION] > 1);
    assert_false(stats(v).connected);
    shared_view_close(v);
    shared_view_announce(NULL, keys, 1);
}

/* -- with one ---------------------------------------------------------------------------------- */

static void what_is_announced_is_found_at_every_length(void **state)
{
    struct server *s = *state;
    server_start(s, NULL);
    struct shared_view *one = view(s, "one", 1), *two = view(s, "two", 2), *g = view(s, NULL, 0);
    uint32_t had = 0;
    for (uint32_t h = 1; h <= KEYS; h = h * 2 + 1) {
        announce(one, had, h - had);
        had = h;
        for (uint32_t n = 1; n <= KEYS; n = n * 3 + 2) {
            uint32_t right = h < n ? h : n, got = held(g, n, 0);
            assert_true(got <= right && got + n / 256 >= right);
            assert_int_equal(held(g, n, 1), 0);
        }
    }
    announce(two, 0, 3);
    assert_int_equal(held(g, 10, 0), 10);
    assert_int_equal(held(g, 10, 1), 3);
    shared_view_close(one);
    shared_view_close(two);
    shared_view_close(g);
}

static void what_others_wrote_is_not_believed(void **state)
{
    struct server *s = *state;
    server_start(s, NULL);
    struct shared_view *old = view(s, "one", 77), *one = view(s, "one", 1), *g = view(s, NULL, 0);
    announce(old, 0, 10);             /* an earlier run under the same name */
    assert_int_equal(held(g, 10, 0), 0);
    tell(s, "FLUSHALL");
    for (int i = 0; i < 10; i++) {
        tell(s, "LPUSH rankserve:{%016llx%016llx}:one 0000000000000001",
             (unsigned long long)keys[i].lo, (unsigned long long)keys[i].hi);
        tell(s, "SET rankserve:{%016llx%016llx}:two nonsense", (unsigned long long)keys[i].lo,
             (unsigned long long)keys[i].hi);
    }
    uint32_t blocks[2];
    WAIT(look(g, 10, blocks));
    assert_int_equal(blocks[0] + blocks[1], 0);
    announce(one, 0, 10);
    assert_int_equal(held(g, 10, 0), 10);
    shared_view_close(old);
    shared_view_close(one);
    shared_view_close(g);
}

static void an_entry_expires_by_itself(void **state)
{
    struct server *s = *state;
    char url[64];
    server_start(s, NULL);
    snprintf(url, sizeof url, "127.0.0.1:%d", s->port);
    struct shared_view *one = view_at(url, "", "one", 1, 1), *two = view(s, "two", 2);
    announce(two, 0, 50);
    announce(one, 0, 50);
    struct shared_view *g = view(s, NULL, 0);
    WAIT(held(g, 50, 0) == 0);
    assert_int_equal(held(g, 50, 1), 50);
    WAIT(tell(s, "DBSIZE") == 50);
    shared_view_close(one);
    shared_view_close(two);
    shared_view_close(g);
}

static void a_password_is_needed_where_one_is_set(void **state)
{
    struct server *s = *state;
    static const char *const flags[] = { "--requirepass", "pw", NULL };
    char url[64], right[96], wrong[96];
    struct why why;
    struct view_address a;
    server_start(s, flags);
    snprintf(url, sizeof url, "127.0.0.1:%d", s->port);
    snprintf(right, sizeof right, "%s/right", folder);
    snprintf(wrong, sizeof wrong, "%s/wrong", folder);
    FILE *f = fopen(right, "w");
    fputs("pw\n", f);
    fclose(f);
    f = fopen(wrong, "w");
    fputs("other", f);
    fclose(f);
    chmod(right, 0644);
    assert_int_equal(read_address(&a, url, right, &why), ERR_DENIED);
    chmod(right, 0600);
    chmod(wrong, 0600);
    struct shared_view *none = view(s, NULL, 0), *bad = view_at(url, wrong, NULL, 0, 600);
    struct shared_view *one = view_at(url, right, "one", 1, 600);
    announce(one, 0, 20);
    assert_int_equal(held(one, 20, 0), 20);
    WAIT(stats(none).errors[VIEW_AUTH] > 0 && stats(bad).errors[VIEW_AUTH] > 0);
    assert_false(stats(none).connected || stats(bad).connected);
    shared_view_close(one);
    shared_view_close(none);
    shared_view_close(bad);

    server_start(&s[1], NULL);        /* a user who may do no more than is needed */
    tell(&s[1], "ACL SETUSER little on >pw ~rankserve:* +set +mget");
    snprintf(url, sizeof url, "redis://little@127.0.0.1:%d", s[1].port);
    one = view_at(url, right, "one", 1, 600);
    announce(one, 0, 20);
    assert_int_equal(held(one, 20, 0), 20);
    tell(&s[1], "ACL SETUSER little -set"); /* later on */
    shared_view_announce(one, keys, 20);
    WAIT(stats(one).errors[VIEW_AUTH] == 20);
    assert_int_equal(held(one, 20, 0), 20);
    shared_view_close(one);
}

static void a_server_that_hangs_dies_and_comes_back_heals(void **state)
{
    struct server *s = *state;
    uint32_t blocks[2];
    server_start(s, NULL);
    struct shared_view *one = view(s, "one", 1), *g = view(s, NULL, 0);
    announce(one, 0, 20);
    assert_int_equal(held(g, 20, 0), 20);
    kill(s->pid, SIGSTOP);
    assert_false(shared_view_look(g, keys, 20, jobs, 2, 5 * NS_PER_MS, blocks));
    assert_int_equal(stats(g).errors[VIEW_TIMEOUT], 1);
    assert_false(look(g, 20, blocks)); /* left out: not asked at all */
    assert_true(stats(g).skipped >= 2);
    shared_view_announce(one, keys, 20);
    WAIT(stats(one).dropped == 20 && stats(one).errors[VIEW_TIMEOUT] > 0);
    kill(s->pid, SIGCONT);
    assert_int_equal(held(g, 20, 0), 20);
    server_kill(s);
    WAIT(!look(g, 20, blocks));
    shared_view_announce(one, keys, 20);
    server_run(s);
    assert_int_equal(held(g, 30, 0), 0); /* it forgot all */
    WAIT(stats(one).connected);
    announce(one, 0, 20);
    assert_int_equal(held(g, 20, 0), 20);
    shared_view_close(one);
    shared_view_close(g);
}

static void a_full_server_is_counted_and_still_asked(void **state)
{
    struct server *s = *state;
    server_start(s, NULL);
    struct shared_view *one = view(s, "one", 1), *g = view(s, NULL, 0);
    announce(one, 0, 20);
    tell(s, "CONFIG SET maxmemory 1");
    shared_view_announce(one, keys + 20, 20);
    WAIT(stats(one).errors[VIEW_FULL] == 20 && stats(one).dropped == 20);
    assert_true(stats(one).connected);
    assert_int_equal(held(g, 40, 0), 20);
    tell(s, "CONFIG SET maxmemory 0");
    announce(one, 0, 40);
    assert_int_equal(held(g, 40, 0), 40);
    shared_view_close(one);
    shared_view_close(g);
}

/* -- with a cluster ---------------------------------------------------------------------------- */

static const char *const member[] = { "--cluster-enabled", "yes", "--cluster-node-timeout", "2000",
                                      "--cluster-require-full-coverage", "no", NULL };

static struct shared_view *cluster_view(const struct server *s, const char *job)
{
    char url[96];                     /* the first seed is nobody */
    snprintf(url, sizeof url, "redis://127.0.0.1:1,127.0.0.1:%d,127.0.0.1:%d", s[1].port,
             s[2].port);
    return view_at(url, "", job, 1, 600);
}

static void a_cluster_is_spread_over_its_nodes_and_moves_are_followed(void **state)
{
    struct server *s = *state;
    cluster_start(s, member);
    struct shared_view *one = cluster_view(s, "one"), *g = cluster_view(s, NULL);
    announce(one, 0, 300);
    assert_int_equal(held(g, 300, 0), 300);
    for (int i = 0; i < NODES; i++) WAIT(tell(&s[i], "DBSIZE") > 50);
    tell(&s[0], "FLUSHALL");
    tell(&s[1], "FLUSHALL");
    tell(&s[2], "FLUSHALL");
    char name[64];
    int bytes = snprintf(name, sizeof name, "{%016llx%016llx}", (unsigned long long)keys[0].lo,
                         (unsigned long long)keys[0].hi);
    int slot = view_slot(name, (size_t)bytes), from = owner(keys[0]), to = (from + 1) % NODES;
    move_slot(s, slot, from, to, false); /* the key is not there: ASK */
    announce(one, 0, 1);
    assert_int_equal(tell(&s[to], "DBSIZE"), 1);
    move_slot(s, slot, from, to, true); /* from now on MOVED */
    uint32_t blocks[2];
    WAIT(look(g, 1, blocks) && blocks[0] == 1);
    announce(one, 0, 1);
    assert_int_equal(stats(one).errors[VIEW_MOVED], 0);
    shared_view_close(one);
    shared_view_close(g);
}

static void a_cluster_without_a_node_is_used_for_the_rest(void **state)
{
    struct server *s = *state;
    uint32_t blocks[2], there = 0, last = 0;
    cluster_start(s, member);
    struct shared_view *one = cluster_view(s, "one"), *g = cluster_view(s, NULL);
    announce(one, 0, 16);
    assert_int_equal(held(g, 16, 0), 16);
    server_kill(&s[0]);
    for (uint32_t i = 0; i < 16; i++) {
        there += owner(keys[i]) != 0;
        if (owner(keys[i]) != 0) last = i + 1;
    }
    assert_true(there > 0 && there < 16);
    shared_view_announce(one, keys, 16);
    WAIT(stats(one).dropped > 0);
    uint64_t before = stats(one).announced;
    shared_view_announce(one, keys, 16);
    WAIT(stats(one).announced >= before + there);
    WAIT(look(g, 16, blocks) && blocks[0] == last);
    assert_true(stats(g).connected);
    server_run(&s[0]);
    WAIT((shared_view_announce(one, keys, 16), look(g, 16, blocks)) && blocks[0] == 16 &&
         tell(&s[0], "DBSIZE") == 16 - there);
    shared_view_close(one);
    shared_view_close(g);
}

/* -- all --------------------------------------------------------------------------------------- */

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_address_is_read_or_refused_with_a_line),
        cmocka_unit_test(slots_are_those_of_the_specification),
        cmocka_unit_test(without_redis_nothing_waits_and_nothing_is_kept_beyond_the_ring),
#define WITH_SERVER(test) cmocka_unit_test_setup_teardown(test, setup, teardown)
        WITH_SERVER(what_is_announced_is_found_at_every_length),
        WITH_SERVER(what_others_wrote_is_not_believed),
        WITH_SERVER(an_entry_expires_by_itself),
        WITH_SERVER(a_password_is_needed_where_one_is_set),
        WITH_SERVER(a_server_that_hangs_dies_and_comes_back_heals),
        WITH_SERVER(a_cluster_is_spread_over_its_nodes_and_moves_are_followed),
        WITH_SERVER(a_cluster_without_a_node_is_used_for_the_rest),
        WITH_SERVER(a_full_server_is_counted_and_still_asked),
    };
    world_open();
    return world_close(cmocka_run_group_tests(tests, NULL, NULL));
}
