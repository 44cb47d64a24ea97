/* tests/unit/common_config_test.c - the option table: parsing, ranges, typos, round trips. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/config.h"
#include "common/config_table.h"

enum { WORDS_MAX = 16 };

static enum err load(struct config *c, enum program program, const char *line, struct why *why)
{
    static char text[4][512];
    static int turn;
    char *argv[WORDS_MAX + 1] = { "rankserve" };
    int argc = 1;
    char *copy = text[turn++ % 4];
    snprintf(copy, sizeof text[0], "%s", line);
    for (char *at = strtok(copy, " "); at && argc < WORDS_MAX; at = strtok(NULL, " ")) {
        argv[argc++] = at;
    }
    why->text[0] = '\0';
    return config_load(c, program, argc, argv, NULL, why);
}

static void refused(const char *line, const char *part)
{
    struct config c;
    struct why why;
    assert_int_not_equal(load(&c, PROGRAM_CTL, line, &why), OK);
    if (!strstr(why.text, part)) fail_msg("%s: '%s' does not say '%s'", line, why.text, part);
    assert_null(strchr(why.text, '\n'));
}

static void defaults_are_those_of_the_design(void **state)
{
    (void)state;
    struct config c;
    struct why why;
    assert_int_equal(load(&c, PROGRAM_RANKSERVE, "", &why), OK);
    assert_int_equal(c.block_size, 16);
    assert_int_equal(c.kv_cache_memory_bytes, 0);
    assert_string_equal(c.kv_cache_dtype, "auto");
    assert_int_equal(c.max_num_seqs, 128);
    assert_int_equal(c.max_num_batched_tokens, 512);
    assert_int_equal(c.both, 1);
    assert_int_equal(c.prefill + c.decode, 0);
    assert_true(c.enable_prefix_caching && c.enable_chunked_prefill);
    assert_true(c.gpu_memory_utilization == 0.92);
    assert_string_equal(c.listen, "127.0.0.1:8000");
    assert_string_equal(c.model, "");
}

static void both_forms_of_an_argument_are_read(void **state)
{
    (void)state;
    struct config c;
    struct why why;
    assert_int_equal(load(&c, PROGRAM_CTL, "--max-model-len 8k --block_size=32 --model /a/b=c "
                          "--prefill 1 --decode 2 --no-enable-prefix-caching --debug-headers",
                          &why), OK);
    assert_int_equal(c.max_model_len, 8000);
    assert_int_equal(c.block_size, 32);
    assert_string_equal(c.model, "/a/b=c");
    assert_int_equal(c.prefill, 1);
    assert_int_equal(c.decode, 2);
    assert_int_equal(c.both, 0);
    assert_false(c.enable_prefix_caching);
    assert_true(c.debug_headers);
}

static void suffixes_mean_what_they_mean_in_vllm(void **state)
{
    (void)state;
    static const struct { const char *text; uint64_t bytes; } cases[] = {
        { "2000000", 2000000 }, { "2m", 2000000 }, { "2M", 2 << 20 }, { "1.5g", 1500000000 },
        { "1GiB", 1 << 30 }, { "1Gi", 1 << 30 }, { "1GB", 1000000000 }, { "3000k", 3000000 },
        { "0.5G", 1 << 29 }, { "2097152B", 2097152 },
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char line[80];
        struct config c;
        struct why why;
        snprintf(line, sizeof line, "--kv-cache-memory-bytes %s", cases[i].text);
        if (load(&c, PROGRAM_CTL, line, &why) != OK) fail_msg("%s: %s", line, why.text);
        assert_int_equal(c.kv_cache_memory_bytes, cases[i].bytes);
    }
    refused("--kv-cache-memory-bytes 2X", "whole number");
    refused("--kv-cache-memory-bytes 1e9", "whole number");
    refused("--kv-cache-memory-bytes 0x100000", "whole number");
    refused("--kv-cache-memory-bytes 1048576.5", "whole number");
    refused("--kv-cache-memory-bytes 99999999999999999999999999", "must be from");
    refused("--max-model-len 1KiB", "whole number");
}

static void values_out_of_range_are_refused_in_one_line(void **state)
{
    (void)state;
    refused("--threads 10000", "--threads is 10000; it must be from 1 to 256, or auto");
    refused("--threads 0", "--threads is 0; it must be from 1 to 256, or auto");
    refused("--threads -1", "--threads is -1; it must be from");
    refused("--tensor-parallel-size 2", "not supported yet");
    refused("--linear-backend cublas", "is for --backend cuda");
    refused("--pipeline-parallel-size 2", "not supported");
    refused("--block-size 24", "power of two");
    refused("--block-size 4", "from 8 to 256");
    refused("--gpu-memory-utilization 1.5", "from 0.01 to 1");
    refused("--gpu-memory-utilization nan", "a number");
    refused("--kv-cache-dtype f15", "one of: auto f16");
    refused("--log-level loud", "one of: error warn");
    refused("--max-num-seqs 600", "at least --max-num-seqs");
    refused("--prefill 1", "needs --decode");
    refused("--decode 1", "needs --prefill");
    refused("--both 1000 --spares 1000", "at most 1024");
    refused("--enable-prefix-caching=maybe", "true or false");
}

static void addresses_to_listen_on_are_checked(void **state)
{
    (void)state;
    struct config c;
    struct why why;
    assert_int_equal(load(&c, PROGRAM_CTL, "--listen 0.0.0.0:0", &why), OK);
    assert_int_equal(load(&c, PROGRAM_CTL, "--listen [::1]:8000", &why), OK);
    refused("--listen 8000", "HOST:PORT");
    refused("--listen :8000", "HOST:PORT");
    refused("--listen ::1:8000", "HOST:PORT");
    refused("--listen localhost:", "HOST:PORT");
    refused("--listen localhost:65536", "HOST:PORT");
    refused("--listen localhost:+80", "HOST:PORT");
    refused("--listen localhost:80x", "HOST:PORT");
}

static void a_typo_names_the_nearest_option(void **state)
{
    (void)state;
    refused("--max-model-length 8", "did you mean --max-model-len?");
    refused("--modle x", "did you mean --model?");
    refused("--theads=4", "did you mean --threads?");
    refused("--zzzzzzzz 4", "unknown option --zzzzzzzz");
    refused("-x", "unknown option -x");
    refused("--model", "--model needs a value");
    refused("--model --threads", "--model needs a value");
    refused("--no-model", "unknown option --no-model");
    refused("--no-debug-headers=1", "takes no value");
    refused("--config", "needs a file name");
    refused("stray --threads 2", "unexpected word 'stray'");
    struct config c;
    struct why why;
    assert_int_not_equal(load(&c, PROGRAM_RANKSERVE, "--listen x:1", &why), OK);
    assert_non_null(strstr(why.text, "--listen is not an option of rankserve"));
}

static void words_are_moved_to_the_front(void **state)
{
    (void)state;
    char *argv[] = { "up", "--threads", "2", "one", "--both=3", "--", "--two", NULL };
    int words = 0;
    struct config c;
    struct why why;
    assert_int_equal(config_load(&c, PROGRAM_CTL, 7, argv, &words, &why), OK);
    assert_int_equal(words, 2);
    assert_string_equal(argv[1], "one");
    assert_string_equal(argv[2], "--two");
    assert_int_equal(c.threads, 2);
    assert_int_equal(c.both, 3);
}

static void the_command_line_wins_over_the_environment(void **state)
{
    (void)state;
    struct config c;
    struct why why;
    setenv("RANKSERVE_MAX_NUM_SEQS", "7", 1);
    setenv("RANKSERVE_THREADS", "3", 1);
    assert_int_equal(load(&c, PROGRAM_CTL, "--threads 5", &why), OK);
    assert_int_equal(c.max_num_seqs, 7);
    assert_int_equal(c.threads, 5);
    setenv("RANKSERVE_MAX_NUM_SEQS", "many", 1);
    refused("", "RANKSERVE_MAX_NUM_SEQS is 'many'");
    config_forget_environment();
    assert_null(getenv("RANKSERVE_THREADS"));
    assert_int_equal(load(&c, PROGRAM_CTL, "", &why), OK);
    assert_int_equal(c.max_num_seqs, 128);
}

static void write_file(const char *path, const char *text)
{
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
}

static char *printed(const struct config *c)
{
    char *text = NULL;
    size_t bytes = 0;
    FILE *out = open_memstream(&text, &bytes);
    config_print(c, PROGRAM_CTL, out);
    fclose(out);
    return text;
}

static void what_is_printed_can_be_read_back(void **state)
{
    (void)state;
    char path[] = "/tmp/rankserve-config-XXXXXX";
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    close(fd);
    struct config c, again;
    struct why why;
    assert_int_equal(load(&c, PROGRAM_CTL, "--max-model-len 8k --prefill 2 --decode 3 --seed 77 "
                          "--no-enable-prefix-caching --gpu-memory-utilization 0.3 "
                          "--model \"q=#x\" --kv-cache-dtype f16 --debug-headers", &why), OK);
    c.served_model_name = " spaced name ";
    char *first = printed(&c);
    write_file(path, first);
    char line[80];
    snprintf(line, sizeof line, "--config=%s", path);
    if (load(&again, PROGRAM_CTL, line, &why) != OK) fail_msg("%s", why.text);
    char *second = printed(&again);
    assert_string_equal(first, second);
    assert_string_equal(again.served_model_name, " spaced name ");
    assert_string_equal(again.model, "\"q=#x\"");

    write_file(path, "# a comment\n\nmax_model_len = 4K\nblok-size = 4\n");
    refused(line, ":4: unknown setting 'blok-size'; did you mean block-size?");
    write_file(path, "threads = 10000\n");
    refused(line, ":1: threads is 10000");
    write_file(path, "threads\n");
    refused(line, ":1: not of the form");
    unlink(path);
    refused(line, "No such file");
    free(first);
    free(second);
}

static void arguments_for_another_program_carry_what_is_not_default(void **state)
{
    (void)state;
    struct config c, again;
    struct why why;
    assert_int_equal(load(&c, PROGRAM_CTL, "--listen h:1 --threads 2 --model m --block-size 16",
                          &why), OK);
    char **list = config_arguments(&c, PROGRAM_RANKSERVE);
    char *argv[WORDS_MAX] = { "rankserve" };
    int argc = 1;
    for (char **at = list; *at; at++) argv[argc++] = *at;
    assert_int_equal(argc, 4);
    assert_string_equal(argv[1], "--model=m");
    assert_int_equal(config_load(&again, PROGRAM_RANKSERVE, argc, argv, NULL, &why), OK);
    assert_int_equal(again.threads, 2);
    for (char **at = list; *at; at++) free(*at);
    free(list);
}

static void help_fits_the_screen_and_names_every_option(void **state)
{
    (void)state;
    char *text = NULL;
    size_t bytes = 0, count;
    FILE *out = open_memstream(&text, &bytes);
    config_help(PROGRAM_CTL, out);
    fclose(out);
    const struct option *o = option_table(&count);
    for (size_t i = 0; i < count; i++) {
        assert_non_null(o[i].help);
        assert_true(o[i].choices || o[i].metavar || o[i].kind == OPTION_SWITCH);
        if (o[i].programs & PROGRAM_CTL) assert_non_null(strstr(text, o[i].name));
    }
    for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n")) {
        assert_true(strlen(line) <= 100);
    }
    free(text);
}

/* A gateway reads as many policies as it is sent. */
static void what_is_set_again_takes_no_more_memory(void **state)
{
    (void)state;
    struct config c, again;
    struct why why;
    const struct option *o = option_find("policy");
    char word[] = "random";
    config_defaults(&c);
    config_defaults(&again);
    assert_int_equal(option_set(&c, o, "policy", word, &why), OK);
    assert_int_equal(option_set(&again, o, "policy", word, &why), OK);
    word[0] = 'x';
    assert_string_equal(c.policy, "random");
    assert_ptr_equal(c.policy, again.policy);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(defaults_are_those_of_the_design),
        cmocka_unit_test(both_forms_of_an_argument_are_read),
        cmocka_unit_test(suffixes_mean_what_they_mean_in_vllm),
        cmocka_unit_test(values_out_of_range_are_refused_in_one_line),
        cmocka_unit_test(addresses_to_listen_on_are_checked),
        cmocka_unit_test(a_typo_names_the_nearest_option),
        cmocka_unit_test(words_are_moved_to_the_front),
        cmocka_unit_test(the_command_line_wins_over_the_environment),
        cmocka_unit_test(what_is_printed_can_be_read_back),
        cmocka_unit_test(arguments_for_another_program_carry_what_is_not_default),
        cmocka_unit_test(what_is_set_again_takes_no_more_memory),
        cmocka_unit_test(help_fits_the_screen_and_names_every_option),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
