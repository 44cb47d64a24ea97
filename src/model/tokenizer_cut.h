/* model/tokenizer_cut.h - places where the pre-tokenizer cuts in any case.
 *
 * At such a place the pieces of the whole text are those of what is before it, by itself, and then
 * those of what is behind it, by itself.  So both sides can be tokenized apart, and remembered.
 *
 *   words   a letter | white space        "end| of", "end|\n"
 *   stops   a letter of Chinese or Japanese | 、 or 。 or ，
 *
 * Why, for each family of tokenizer_split.c.  Its expressions match from left to right, each match
 * begun where the one before ended (or what lies between became a piece), and none looks behind
 * itself, but for SPACES_LAST, at white space.  So it is enough that a match or a gap always ends
 * at the place, and that what ends there does not depend on what follows:
 *   - GPT2, the GPT-4 and GPT-4o kinds, QWEN35, SEED_CODER, BAILING, TEKKEN: every letter is in a
 *     match; no alternative has white space, 、, 。 or ， behind a letter: runs of letters are
 *     greedy and end there, contractions are an apostrophe and letters.  What looks ahead,
 *     \s+(?!\S), never ends at a letter.
 *   - DIGIT, DIGITS, THREE_DIGITS, PUNCTUATION*, LINE_BREAK and CJK_DEEPSEEK* are runs of classes
 *     that have neither letters nor spaces, or only letters of Chinese and Japanese (which end at
 *     the place, too): before such an expression the place is inside a gap, which both sides share
 *     without changing it, or at its end.
 *   - BLOOM: runs of all but white space and the full stops and commas above.
 *   - deepseek-v3, deepseek-coder: \p{L}+ or a run of Chinese ends there.
 *   - deepseek-llm: letters with case are in a run of CASED_DEEPSEEK; letters without case stay in
 *     one gap with the spaces between them (keeps_uncased), but PUNCTUATION_DEEPSEEK begins at 、.
 * The test compares all of them over random text (model_cut_test.c).
 * A special token of the file that could span a place forbids its rule (cut_rules_open).
 */
#ifndef RANKSERVE_MODEL_TOKENIZER_CUT_H
#define RANKSERVE_MODEL_TOKENIZER_CUT_H

#include <stdbool.h>
#include <stddef.h>

#include "model/tokenizer_special.h"
#include "model/tokenizer_split.h"

struct cut_rules {
    bool words, uncased, stops;
};

/* `always`: the special tokens that are found in any text. */
void cut_rules_open(struct cut_rules *r, const struct pre_family *f,
                    const struct special_set *always);

/* May the text be cut before text[at]?  Reads text[0] to text[at + 2], at + 2 < bytes; at > 0. */
bool cut_allowed(const struct cut_rules *r, const char *text, size_t bytes, size_t at);

#endif
