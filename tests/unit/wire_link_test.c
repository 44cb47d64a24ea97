/* tests/unit/wire_link_test.c - the link's frames: whole, cut, split, mangled and hostile. */
#include "wire/link.h"

#include <fcntl.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

static struct link_request *request_make(uint32_t bias, uint32_t keys, uint32_t ids)
{
    size_t bytes = link_request_bytes(bias, keys, ids);
    struct link_request *r = mem_alloc(bytes);
    link_head_set(&r->head, LINK_REQUEST, 7, bytes);
    r->id_count = ids;
    r->key_count = keys;
    r->params = (struct sampling){ .temperature = 1, .top_p = 1, .repetition_penalty = 1,
                                   .max_tokens = 16, .bias_count = (uint16_t)bias };
    struct logit_bias *b = (struct logit_bias *)link_request_bias(r);
    for (uint32_t i = 0; i < bias; i++) b[i] = (struct logit_bias){ (int32_t)i, 1.5f };
    int32_t *id = (int32_t *)link_request_ids(r);
    for (uint32_t i = 0; i < ids; i++) id[i] = (int32_t)(i * 3);
    return r;
}

static void tokens_make(struct buf *out, uint32_t count, uint16_t tops)
{
    struct link_tokens t = { .count = count };
    size_t record_bytes = sizeof(struct token_record) + tops * sizeof(struct top_logprob);
    link_head_set(&t.head, LINK_TOKENS, 9, sizeof t + count * record_bytes);
    buf_add(out, &t, sizeof t);
    for (uint32_t i = 0; i < count; i++) {
        struct token_record record = { .position = i, .id = 100 + (int32_t)i, .top_count = tops };
        buf_add(out, &record, sizeof record);
        for (uint16_t k = 0; k < tops; k++) {
            struct top_logprob top = { k, -1.0f * k };
            buf_add(out, &top, sizeof top);
        }
    }
}

/* A stream with one frame of each kind, of lengths that leave the next one unaligned. */
static void stream_make(struct buf *out)
{
    struct link_hello hello = { .nonce = { 1 } };
    link_head_set(&hello.head, LINK_HELLO, 0, sizeof hello);
    buf_add(out, &hello, sizeof hello);
    tokens_make(out, 3, 1);
    struct link_request *r = request_make(2, 1, 5);
    buf_add(out, r, r->head.bytes);
    free(r);
    tokens_make(out, 1, 0);
    struct link_end end = { .finish = FINISH_STOP };
    link_head_set(&end.head, LINK_END, 9, sizeof end);
    buf_add(out, &end, sizeof end);
}

static void frames_fed_in_pieces_of_any_size_come_out_whole(void **state)
{
    (void)state;
    struct buf stream = { 0 };
    stream_make(&stream);
    for (size_t piece = 1; piece <= stream.size; piece++) {
        struct link_reader reader = { 0 };
        int seen = 0;
        for (size_t at = 0; at < stream.size; at += piece) {
            size_t bytes = stream.size - at < piece ? stream.size - at : piece;
            assert_int_equal(link_reader_feed(&reader, stream.data + at, bytes), OK);
            const struct link_head *h;
            while (assert_int_equal(link_reader_next(&reader, &h), OK), h) {
                assert_int_equal((uintptr_t)h % 8, 0);
                if (seen == 0) assert_non_null(link_as_hello(h));
                if (seen == 1 || seen == 3) assert_non_null(link_as_tokens(h));
                if (seen == 2) {
                    const struct link_request *r = link_as_request(h);
                    assert_non_null(r);
                    assert_int_equal(link_request_ids(r)[4], 12);
                    assert_int_equal(link_request_bias(r)[1].id, 1);
                }
                if (seen == 4) assert_int_equal(link_as_end(h)->finish, FINISH_STOP);
                seen++;
            }
        }
        assert_int_equal(seen, 5);
        link_reader_release(&reader);
    }
    buf_release(&stream);
}

static void a_stream_cut_anywhere_gives_fewer_frames_and_no_error(void **state)
{
    (void)state;
    struct buf stream = { 0 };
    stream_make(&stream);
    for (size_t cut = 0; cut < stream.size; cut++) {
        struct link_reader reader = { 0 };
        char *copy = mem_text_n(stream.data, cut);
        assert_int_equal(link_reader_feed(&reader, copy, cut), OK);
        free(copy);
        const struct link_head *h;
        int seen = 0;
        while (assert_int_equal(link_reader_next(&reader, &h), OK), h) seen++;
        assert_true(seen < 5);
        link_reader_release(&reader);
    }
    buf_release(&stream);
}

static void as_anything(const struct link_head *h)
{
    (void)link_as_hello(h);
    (void)link_as_challenge(h);
    (void)link_as_proof(h);
    (void)link_as_welcome(h);
    const struct link_request *r = link_as_request(h);
    if (r) assert_true(link_request_ids(r)[r->id_count - 1] >= 0);
    const struct link_tokens *t = link_as_tokens(h);
    size_t at = 0;
    struct token_record record;
    const void *top;
    for (uint32_t i = 0; t && i < t->count; i++) {
        assert_true(link_record_next(t, &at, &record, &top));
    }
    (void)link_as_end(h);
    (void)link_as_state(h);
}

static void a_body_shorter_than_its_counts_is_refused_at_every_length(void **state)
{
    (void)state;
    struct link_request *r = request_make(2, 1, 5);
    uint32_t whole = r->head.bytes;
    for (uint32_t bytes = sizeof(struct link_head); bytes < whole; bytes++) {
        struct link_request *cut = malloc(bytes); /* exact, so that ASan sees a read past it */
        r->head.bytes = bytes;
        memcpy(cut, r, bytes);
        assert_null(link_as_request(&cut->head));
        free(cut);
    }
    free(r);
    struct buf b = { 0 };
    tokens_make(&b, 3, 2);
    for (uint32_t bytes = sizeof(struct link_head); bytes < b.size; bytes++) {
        struct link_head *cut = malloc(bytes);
        memcpy(cut, b.data, bytes);
        cut->bytes = bytes;
        assert_null(link_as_tokens(cut));
        free(cut);
    }
    buf_release(&b);
}

static void mangled_streams_never_read_outside(void **state)
{
    (void)state;
    struct buf stream = { 0 };
    stream_make(&stream);
    srand(1);
    for (int round = 0; round < 20000; round++) {
        char *copy = malloc(stream.size);
        memcpy(copy, stream.data, stream.size);
        for (int i = 0; i < 1 + round % 4; i++) {
            copy[(size_t)rand() % stream.size] = (char)(rand() % 3 ? rand() : -1);
        }
        struct link_reader reader = { 0 };
        size_t first = (size_t)rand() % stream.size;
        const struct link_head *h;
        assert_int_equal(link_reader_feed(&reader, copy, first), OK);
        while (link_reader_next(&reader, &h) == OK && h) as_anything(h);
        assert_int_equal(link_reader_feed(&reader, copy + first, stream.size - first), OK);
        while (link_reader_next(&reader, &h) == OK && h) as_anything(h);
        link_reader_release(&reader);
        free(copy);
    }
    buf_release(&stream);
}

static void what_is_not_our_protocol_is_an_error_after_one_head(void **state)
{
    (void)state;
    static const struct { size_t at, bytes; uint32_t value; } bad[] = {
        { offsetof(struct link_head, magic), 4, 0x20544547 },         /* "GET " */
        { offsetof(struct link_head, version), 2, LINK_VERSION + 1 },
        { offsetof(struct link_head, type), 2, 0 },
        { offsetof(struct link_head, type), 2, LINK_TYPE_COUNT },
        { offsetof(struct link_head, bytes), 4, 23 },
        { offsetof(struct link_head, bytes), 4, LINK_BYTES_MAX + 1 },
        { offsetof(struct link_head, bytes), 4, UINT32_MAX },
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct link_head head;
        link_head_set(&head, LINK_CANCEL, 1, sizeof head);
        memcpy((char *)&head + bad[i].at, &bad[i].value, bad[i].bytes);
        struct link_reader reader = { 0 };
        const struct link_head *h;
        assert_int_equal(link_reader_feed(&reader, &head, sizeof head - 1), OK);
        assert_int_equal(link_reader_next(&reader, &h), OK);
        assert_null(h);
        assert_int_equal(link_reader_feed(&reader, (char *)&head + sizeof head - 1, 1), OK);
        assert_int_equal(link_reader_next(&reader, &h), ERR_FORMAT);
        link_reader_release(&reader);
    }
}

static void a_peer_that_never_ends_a_frame_meets_a_limit(void **state)
{
    (void)state;
    struct link_reader reader = { 0 };
    static char zeros[LINK_BYTES_MAX];
    enum err e = OK;
    for (int i = 0; i < 64 && e == OK; i++) e = link_reader_feed(&reader, zeros, sizeof zeros);
    assert_int_equal(e, ERR_LIMIT);
    link_reader_release(&reader);
}

static bool request_ok(void (*spoil)(struct link_request *))
{
    struct link_request *r = request_make(1, 1, 4);
    if (spoil) spoil(r);
    bool ok = link_as_request(&r->head);
    free(r);
    return ok;
}
static void stream_zero(struct link_request *r) { r->head.stream = 0; }
static void ids_none(struct link_request *r) { r->id_count = 0; }
static void ids_huge(struct link_request *r) { r->id_count = UINT32_MAX; }
static void ids_wrap(struct link_request *r) { r->id_count = (1u << 30) + 4; }
static void keys_huge(struct link_request *r) { r->key_count = UINT32_MAX; }
static void bias_huge(struct link_request *r) { r->params.bias_count = UINT16_MAX; }
static void stops_huge(struct link_request *r) { r->params.stop_id_count = STOP_IDS_MAX + 1; }
static void eos_over(struct link_request *r) { r->params.eos_id_count = 1; }
static void tops_huge(struct link_request *r) { r->params.top_count = TOP_LOGPROBS_MAX + 1; }
static void temperature_nan(struct link_request *r) { r->params.temperature = NAN; }
static void top_p_over(struct link_request *r) { r->params.top_p = 1.5f; }
static void penalty_zero(struct link_request *r) { r->params.repetition_penalty = 0; }
static void max_tokens_zero(struct link_request *r) { r->params.max_tokens = 0; }
static void id_negative(struct link_request *r) { ((int32_t *)link_request_ids(r))[3] = -1; }
static void bias_infinite(struct link_request *r)
{
    ((struct logit_bias *)link_request_bias(r))[0].bias = INFINITY;
}

static void requests_with_values_out_of_range_are_refused(void **state)
{
    (void)state;
    assert_true(request_ok(NULL));
    void (*const spoils[])(struct link_request *) = {
        stream_zero, ids_none, ids_huge, ids_wrap, keys_huge, bias_huge, stops_huge, eos_over,
        tops_huge, temperature_nan, top_p_over, penalty_zero, max_tokens_zero, id_negative,
        bias_infinite,
    };
    for (size_t i = 0; i < sizeof spoils / sizeof *spoils; i++) {
        assert_false(request_ok(spoils[i]));
    }
}

static void a_welcome_must_name_its_job_within_its_field(void **state)
{
    (void)state;
    struct link_welcome w = { .max_model_len = 100, .block_tokens = 16, .vocab = 10 };
    link_head_set(&w.head, LINK_WELCOME, 0, sizeof w);
    assert_non_null(link_as_welcome(&w.head));
    memset(w.job_id, 'x', sizeof w.job_id);
    assert_null(link_as_welcome(&w.head));
    w.job_id[31] = '\0';
    w.max_model_len = SEQ_TOKENS_MAX + 1;
    assert_null(link_as_welcome(&w.head));
}

static void the_two_proofs_differ_and_depend_on_each_nonce(void **state)
{
    (void)state;
    uint8_t secret[SECRET_BYTES] = { 0 }, a[16] = { 1 }, b[16] = { 2 };
    struct hash128 job = link_proof_of_job(secret, a, b);
    assert_false(hash_equal(job, link_proof_of_gateway(secret, a, b)));
    assert_false(hash_equal(job, link_proof_of_job(secret, b, a)));
    secret[16] = 1; /* the other half: not the job's key */
    assert_true(hash_equal(job, link_proof_of_job(secret, a, b)));
    secret[15] = 1;
    assert_false(hash_equal(job, link_proof_of_job(secret, a, b)));
}

static enum err secret_try(const char *text, mode_t mode, uint8_t secret[SECRET_BYTES],
                           struct why *why)
{
    char path[] = "/tmp/link_secret_XXXXXX";
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, text, strlen(text)), (ssize_t)strlen(text));
    assert_int_equal(fchmod(fd, mode), 0);
    close(fd);
    enum err e = link_secret_read(path, secret, why);
    unlink(path);
    return e;
}

static void only_a_private_file_of_64_hex_digits_is_a_secret(void **state)
{
    (void)state;
    static const char good[] = "00112233445566778899aabbccddeeff00112233445566778899AABBCCDDEEFF\n";
    uint8_t secret[SECRET_BYTES];
    struct why why;
    assert_int_equal(secret_try(good, 0600, secret, &why), OK);
    assert_int_equal(secret[1], 0x11);
    assert_int_equal(secret[31], 0xff);
    assert_int_equal(secret_try(good, 0640, secret, &why), ERR_DENIED);
    assert_int_equal(secret_try(good + 1, 0600, secret, &why), ERR_FORMAT);
    assert_int_equal(secret_try("", 0600, secret, &why), ERR_FORMAT);
    assert_int_equal(link_secret_read("/nonexistent", secret, &why), ERR_IO);
    assert_non_null(strstr(why.text, "/nonexistent"));
    assert_int_equal(link_secret_read("/tmp", secret, &why), ERR_FORMAT);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(frames_fed_in_pieces_of_any_size_come_out_whole),
        cmocka_unit_test(a_stream_cut_anywhere_gives_fewer_frames_and_no_error),
        cmocka_unit_test(a_body_shorter_than_its_counts_is_refused_at_every_length),
        cmocka_unit_test(mangled_streams_never_read_outside),
        cmocka_unit_test(what_is_not_our_protocol_is_an_error_after_one_head),
        cmocka_unit_test(a_peer_that_never_ends_a_frame_meets_a_limit),
        cmocka_unit_test(requests_with_values_out_of_range_are_refused),
        cmocka_unit_test(a_welcome_must_name_its_job_within_its_field),
        cmocka_unit_test(the_two_proofs_differ_and_depend_on_each_nonce),
        cmocka_unit_test(only_a_private_file_of_64_hex_digits_is_a_secret),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
