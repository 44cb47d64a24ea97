/* tests/unit/kv_key_test.c - keys of KV blocks: what goes into them, byte for byte. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "kv/key.h"

static const struct hash_secret SECRET = { 0x0706050403020100, 0x0f0e0d0c0b0a0908 };
static const struct kv_scope SCOPE = {
    .model_digest = { 1, 2 }, .kv_type = 3, .block_tokens = 4,
};

static void root_hashes_digest_type_block_size_and_salt(void **state)
{
    (void)state;
    uint8_t bytes[32] = { [0] = 1, [8] = 2, [16] = 3, [20] = 4, [24] = 5 };
    struct hash128 want = hash_sip128(SECRET, bytes, sizeof bytes);
    assert_true(hash_equal(want, kv_key_root(SECRET, &SCOPE, 5)));
}

static void everything_in_the_scope_changes_the_root(void **state)
{
    (void)state;
    struct hash128 root = kv_key_root(SECRET, &SCOPE, 0);
    struct kv_scope s[4] = { SCOPE, SCOPE, SCOPE, SCOPE };
    s[0].model_digest.hi++;
    s[1].model_digest.lo++;
    s[2].kv_type++;
    s[3].block_tokens *= 2;
    for (int i = 0; i < 4; i++) assert_false(hash_equal(root, kv_key_root(SECRET, &s[i], 0)));
    assert_false(hash_equal(root, kv_key_root(SECRET, &SCOPE, 1)));
    struct hash_secret other = SECRET;
    other.k1++;
    assert_false(hash_equal(root, kv_key_root(other, &SCOPE, 0)));
}

static void next_hashes_parent_then_ids_as_little_endian(void **state)
{
    (void)state;
    struct hash128 parent = { 0x1122334455667788, 9 };
    int32_t ids[4] = { 1, 258, -1, 70000 };
    uint8_t bytes[32] = {
        0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11, 9, 0, 0, 0, 0, 0, 0, 0,
        1, 0, 0, 0, 2, 1, 0, 0, 0xff, 0xff, 0xff, 0xff, 0x70, 0x11, 1, 0,
    };
    struct hash128 want = hash_sip128(SECRET, bytes, sizeof bytes);
    assert_true(hash_equal(want, kv_key_next(SECRET, parent, ids, 4)));
}

static void a_key_depends_on_the_whole_prefix(void **state)
{
    (void)state;
    int32_t a[8] = { 1, 2, 3, 4, 5, 6, 7, 8 }, b[8] = { 1, 2, 3, 9, 5, 6, 7, 8 };
    struct hash128 root = kv_key_root(SECRET, &SCOPE, 0);
    struct hash128 a0 = kv_key_next(SECRET, root, a, 4), b0 = kv_key_next(SECRET, root, b, 4);
    assert_false(hash_equal(a0, b0));
    assert_false(hash_equal(kv_key_next(SECRET, a0, a + 4, 4), kv_key_next(SECRET, b0, b + 4, 4)));
    assert_true(hash_equal(a0, kv_key_next(SECRET, root, a, 4)));
}

static void a_chain_is_the_keys_one_after_another(void **state)
{
    (void)state;
    int32_t ids[12] = { 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12 };
    struct hash128 keys[3], key = kv_key_root(SECRET, &SCOPE, 6);
    kv_key_chain(SECRET, &SCOPE, 6, ids, 3, keys);
    for (int i = 0; i < 3; i++) {
        key = kv_key_next(SECRET, key, ids + 4 * i, 4);
        assert_true(hash_equal(key, keys[i]));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(root_hashes_digest_type_block_size_and_salt),
        cmocka_unit_test(everything_in_the_scope_changes_the_root),
        cmocka_unit_test(next_hashes_parent_then_ids_as_little_endian),
        cmocka_unit_test(a_key_depends_on_the_whole_prefix),
        cmocka_unit_test(a_chain_is_the_keys_one_after_another),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
