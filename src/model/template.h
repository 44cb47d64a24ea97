/* model/template.h - runs a model's own chat template: a bounded subset of Jinja2.
 *
 * What Hugging Face's apply_chat_template runs: trim_blocks and lstrip_blocks on, the globals
 * raise_exception, strftime_now, namespace, range, dict, cycler, joiner; loops with `loop`,
 * conditions, set (and blocks), macros, filters, tests, slices, string and list methods, `tojson`,
 * inline if; {% generation %} ignored.  Compiled once, rendered often, by many threads at once.
 * Always true: rendering ends within TEMPLATE_STEPS_MAX steps, TEMPLATE_OUTPUT_BYTES_MAX bytes and
 * TEMPLATE_DEPTH_MAX nesting, whatever the template; all memory of a rendering is freed with it.
 */
#ifndef RANKSERVE_MODEL_TEMPLATE_H
#define RANKSERVE_MODEL_TEMPLATE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <time.h>

#include "common/check.h"
#include "common/mem.h"

struct template;
struct json_t; /* jansson's */

/* `why` gives line and column of a syntax error. */
enum err template_open(struct template **out, const char *text, size_t bytes, struct why *why);
void template_close(struct template *t);

/* Renders with the members of the JSON object `variables` (messages, tools, add_generation_prompt,
 * bos_token, ...) as the template's variables.  `now` is what strftime_now sees.  On failure `why`
 * holds the template's own message (raise_exception: ERR_DENIED) or what went wrong where
 * (ERR_FORMAT), or which bound was passed (ERR_LIMIT). */
enum err template_render(const struct template *t, const struct json_t *variables, time_t now,
                         struct buf *out, struct why *why);

#endif
