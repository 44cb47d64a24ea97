/* tests/unit/mpi_outbox_test.c - no place is written again before its reader has read it, and a
 * writer that waits for room is always woken.
 */
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#include "common/mem.h"
#include "mpi/outbox.h"

enum { READERS = 3, BYTES = 10000, MESSAGES = 20000 };

struct world {
    void *at;
    struct outbox *o;
    struct inbox in[READERS];
};

static void world_open(struct world *w)
{
    size_t bytes = outbox_bytes(READERS, BYTES);
    w->at = aligned_alloc(4096, bytes);
    assert_non_null(w->at);
    memset(w->at, 0, bytes);
    w->o = outbox_open(w->at, READERS, BYTES);
    for (uint32_t i = 0; i < READERS; i++)
        w->in[i] = (struct inbox){ .at = w->at, .readers = READERS, .reader = i,
                                   .slot_bytes = BYTES };
}

static void world_close(struct world *w)
{
    outbox_close(w->o);
    free(w->at);
}

static void *take(struct world *w, uint32_t reader)
{
    uint8_t *at = outbox_take(w->o, reader);
    if (at) memset(at, (int)reader + 1, BYTES);
    return at;
}

static void a_place_is_taken_again_when_its_own_reader_has_read_it(void **state)
{
    struct world w;
    (void)state;
    world_open(&w);
    void *first = take(&w, 0), *second = take(&w, 1);
    assert_non_null(first);
    assert_ptr_not_equal(first, second);
    assert_false(inbox_done(&w.in[1]));
    assert_ptr_equal(take(&w, 2), second);
    assert_false(inbox_done(&w.in[0]));
    assert_ptr_equal(take(&w, 1), first);
    world_close(&w);
}

static void the_reader_finds_it_by_number_and_nothing_beyond(void **state)
{
    struct world w;
    (void)state;
    world_open(&w);
    take(&w, 0);
    uint8_t *at = take(&w, 0);
    int slot = outbox_slot(w.o, at);
    assert_true(slot >= 0 && slot < OUTBOX_SLOTS);
    assert_ptr_equal(inbox_look(&w.in[0], (uint32_t)slot, BYTES), at);
    assert_null(inbox_look(&w.in[0], (uint32_t)slot, BYTES + 1));
    assert_null(inbox_look(&w.in[0], OUTBOX_SLOTS, 1));
    assert_null(inbox_look(&(struct inbox){ 0 }, 0, 1));
    assert_int_equal(outbox_slot(w.o, w.at), -1);
    assert_int_equal(outbox_slot(w.o, &w), -1);
    assert_int_equal(outbox_slot(w.o, (uint8_t *)w.at + outbox_bytes(READERS, BYTES)), -1);
    world_close(&w);
}

static void a_reader_that_hangs_leaves_places_for_others_until_it_is_forgotten(void **state)
{
    struct world w;
    const uint8_t *unread[OUTBOX_SLOTS - OUTBOX_UNREAD_MAX];
    (void)state;
    world_open(&w);
    for (int i = 0; i < OUTBOX_SLOTS - OUTBOX_UNREAD_MAX; i++)
        assert_non_null(unread[i] = take(&w, 1));
    for (int i = 0; i < OUTBOX_UNREAD_MAX; i++) assert_non_null(take(&w, 0));
    assert_null(take(&w, 0));
    assert_null(take(&w, 2));
    outbox_forget(w.o, 0);
    for (int i = 0; i < OUTBOX_UNREAD_MAX; i++) assert_non_null(take(&w, 2));
    assert_false(inbox_done(&w.in[0]));      /* it lives after all: nobody else's is freed */
    assert_null(take(&w, 2));
    for (int i = 0; i < OUTBOX_SLOTS - OUTBOX_UNREAD_MAX; i++) assert_int_equal(*unread[i], 2);
    world_close(&w);
}

static void only_who_waits_is_rung_and_once(void **state)
{
    struct world w;
    (void)state;
    world_open(&w);
    for (int i = 0; i < OUTBOX_UNREAD_MAX; i++) take(&w, 0);
    assert_false(outbox_has_room(w.o, 0));
    assert_true(inbox_done(&w.in[0]));
    assert_false(inbox_done(&w.in[0]));
    assert_true(outbox_has_room(w.o, 0));
    assert_true(outbox_has_room(w.o, 1));
    assert_false(inbox_done(&w.in[0]));
    world_close(&w);
}

/* -- both at once ----------------------------------------------------------------------------- */

struct pair {
    struct world w;
    _Atomic uint32_t told;            /* as MPI would: what was sent, in order */
    int slots[MESSAGES];
    sem_t rung;
    uint32_t wrong;
};

static void *reader_main(void *ctx)
{
    struct pair *p = ctx;
    for (uint32_t i = 0; i < MESSAGES; i++) {
        while (atomic_load(&p->told) == i) sched_yield();
        const uint32_t *at = inbox_look(&p->w.in[1], (uint32_t)p->slots[i], BYTES);
        for (uint32_t j = 0; j < 64; j++) p->wrong += at[j] != i;
        if (inbox_done(&p->w.in[1])) sem_post(&p->rung);
    }
    return NULL;
}

static bool wait_for_ring(struct pair *p)
{
    struct timespec end;
    clock_gettime(CLOCK_REALTIME, &end);
    end.tv_sec += 20;
    return sem_timedwait(&p->rung, &end) == 0;
}

static void a_fast_writer_sleeps_and_every_message_is_whole(void **state)
{
    struct pair *p = mem_alloc(sizeof *p);
    pthread_t reader;
    (void)state;
    world_open(&p->w);
    sem_init(&p->rung, 0, 0);
    assert_int_equal(pthread_create(&reader, NULL, reader_main, p), 0);
    for (uint32_t i = 0; i < MESSAGES; i++) {
        while (!outbox_has_room(p->w.o, 1)) assert_true(wait_for_ring(p));
        uint32_t *at = outbox_take(p->w.o, 1);
        assert_non_null(at);
        for (uint32_t j = 0; j < 64; j++) at[j] = i;
        p->slots[i] = outbox_slot(p->w.o, at);
        atomic_store(&p->told, i + 1);
    }
    pthread_join(reader, NULL);
    assert_int_equal(p->wrong, 0);
    sem_destroy(&p->rung);
    world_close(&p->w);
    free(p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_place_is_taken_again_when_its_own_reader_has_read_it),
        cmocka_unit_test(the_reader_finds_it_by_number_and_nothing_beyond),
        cmocka_unit_test(a_reader_that_hangs_leaves_places_for_others_until_it_is_forgotten),
        cmocka_unit_test(only_who_waits_is_rung_and_once),
        cmocka_unit_test(a_fast_writer_sleeps_and_every_message_is_whole),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
