/* tests/unit/mpi_outbox_test.c - no place is written again before its reader has read it, a writer
 * that waits for room is always woken, and neither end can hurt the other.
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
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/check.h"
#include "common/limits.h"
#include "common/mem.h"
#include "mpi/outbox.h"
#include "populate.h"

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

static void put_head(struct msg_kv *m, size_t bytes)
{
    memset(m, 0, sizeof *m);
    msg_head_set(&m->head, MSG_KV, bytes);
    m->layers = m->count = 1;
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
    struct msg_kv head;
    const void *payload;
    (void)state;
    world_open(&w);
    take(&w, 0);
    struct msg_kv *at = take(&w, 0);
    put_head(at, BYTES);
    int slot = outbox_slot(w.o, at);
    assert_true(slot >= 0 && slot < OUTBOX_SLOTS);
    assert_true(inbox_look(&w.in[0], (uint32_t)slot, BYTES, &head, &payload));
    assert_memory_equal(&head, at, sizeof head);
    assert_ptr_equal(payload, at + 1);
    assert_false(inbox_look(&w.in[0], (uint32_t)slot, BYTES - 1, &head, &payload));
    assert_false(inbox_look(&w.in[0], (uint32_t)slot, sizeof head - 1, &head, &payload));
    put_head(at, BYTES + 1);
    assert_false(inbox_look(&w.in[0], (uint32_t)slot, BYTES + 1, &head, &payload));
    assert_false(inbox_look(&w.in[0], OUTBOX_SLOTS, BYTES, &head, &payload));
    assert_false(inbox_look(&(struct inbox){ 0 }, 0, BYTES, &head, &payload));
    msg_head_set(&at->head, MSG_KVEND, BYTES);
    assert_false(inbox_look(&w.in[0], (uint32_t)slot, BYTES, &head, &payload));
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
    outbox_ask(w.o, 0);
    assert_false(inbox_done(&w.in[1]));
    assert_true(inbox_done(&w.in[0]));
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
    struct msg_kv *spoiled;
};

static void *reader_main(void *ctx)
{
    struct pair *p = ctx;
    for (uint32_t i = 0; i < MESSAGES; i++) {
        while (atomic_load(&p->told) == i) sched_yield();
        struct msg_kv head;
        const void *at = NULL;
        CHECK(inbox_look(&p->w.in[1], (uint32_t)p->slots[i], BYTES, &head, &at));
        for (uint32_t j = 0; j < 64; j++) p->wrong += ((const uint32_t *)at)[j] != i;
        p->wrong += head.first != i;
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
        struct msg_kv *at = outbox_take(p->w.o, 1);
        assert_non_null(at);
        put_head(at, BYTES);
        at->first = i;
        for (uint32_t j = 0; j < 64; j++) ((uint32_t *)(at + 1))[j] = i;
        p->slots[i] = outbox_slot(p->w.o, at);
        atomic_store(&p->told, i + 1);
    }
    pthread_join(reader, NULL);
    assert_int_equal(p->wrong, 0);
    sem_destroy(&p->rung);
    world_close(&p->w);
    free(p);
}

/* A writer that means harm: what was checked and what is used are one copy.  Of a reader that looks
 * twice this sees one in four on busy cores, nearly all on idle ones. */
static void *spoiler_main(void *ctx)
{
    struct pair *p = ctx;
    struct msg_kv *volatile at = p->spoiled;
    for (uint32_t i = 0; !atomic_load(&p->told); i++) {
        *(volatile uint32_t *)&at->layers = i % 2 ? MODEL_LAYERS_MAX + 1 : 1;
        *(volatile uint32_t *)&at->head.bytes = i % 3 ? BYTES : UINT32_MAX;
    }
    return NULL;
}

static void what_the_writer_changes_after_a_look_is_not_seen(void **state)
{
    struct pair *p = mem_alloc(sizeof *p);
    pthread_t writer;
    uint32_t seen = 0, refused = 0;
    (void)state;
    world_open(&p->w);
    put_head(p->spoiled = outbox_take(p->w.o, 1), BYTES);
    uint32_t slot = (uint32_t)outbox_slot(p->w.o, p->spoiled);
    assert_int_equal(pthread_create(&writer, NULL, spoiler_main, p), 0);
    for (uint32_t i = 0; i < 30000000 && (i < 2000000 || !seen || !refused); i++) {
        struct msg_kv head;
        const void *payload;
        if (!inbox_look(&p->w.in[1], slot, BYTES, &head, &payload)) {
            refused++;
            continue;
        }
        seen++;
        p->wrong += head.layers != 1 || head.head.bytes != BYTES;
    }
    atomic_store(&p->told, 1);
    pthread_join(writer, NULL);
    assert_true(seen > 0 && refused > 0);
    assert_int_equal(p->wrong, 0);
    world_close(&p->w);
    free(p);
}

/* The file behind it ends in the third place: as if the host had no more memory. */
static void places_without_memory_are_not_given(void **state)
{
    size_t bytes = outbox_bytes(READERS, BYTES), page = 4096, words = page;
    size_t place = (BYTES + page - 1) / page * page;
    (void)state;
    if (!kernel_populates()) skip();
    for (size_t there = 0; there <= words + 3 * place; there += page) {
        int fd = memfd_create("outbox", MFD_CLOEXEC);
        assert_int_equal(ftruncate(fd, (off_t)there), 0);
        void *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        assert_true(at != MAP_FAILED);
        struct outbox *o = outbox_open(at, READERS, BYTES);
        assert_int_equal(o != NULL, there >= words);
        for (size_t i = 0; o && i < 4; i++) {
            void *got = outbox_take(o, (uint32_t)i % READERS);
            assert_int_equal(got != NULL, words + (i + 1) * place <= there);
            if (got) memset(got, 1, BYTES);
        }
        if (o) outbox_close(o);
        munmap(at, bytes);
        close(fd);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_place_is_taken_again_when_its_own_reader_has_read_it),
        cmocka_unit_test(the_reader_finds_it_by_number_and_nothing_beyond),
        cmocka_unit_test(a_reader_that_hangs_leaves_places_for_others_until_it_is_forgotten),
        cmocka_unit_test(only_who_waits_is_rung_and_once),
        cmocka_unit_test(a_fast_writer_sleeps_and_every_message_is_whole),
        cmocka_unit_test(what_the_writer_changes_after_a_look_is_not_seen),
        cmocka_unit_test(places_without_memory_are_not_given),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
