/* tests/cusim/ptx_decode.c - an opcode and its operands to what runs, by the rows of exec_*.c.
 *
 * Every part of an opcode must be a word of its row: an option that is passed over could change the
 * meaning.  The letters of a row's operands, in the order of the text:
 *
 *   4 8 p      a register or number of 4 or 8 bytes, a predicate
 *   w          the same, as wide as the first type
 *   v          a register of either width, or a number as wide as the first type
 *   V {        one or several v; always a vector.  A digit behind it: so many
 *   a          an address
 *   m          the mask of the lanes that take part
 *   n          a number, which is ins.count and an operand too, unless one follows
 *   L          where a branch goes
 *   - 0        nothing in the text: the place stays empty, or holds zero
 *   ?          what follows may be missing
 */
#include "ptx_parse.h"

#define X(name, text, bytes) {text, bytes},
static const struct {
    const char *text;
    uint32_t bytes;
} types[] = {TYPE_LIST(X)};
#undef X

enum type type_named(const char *text)
{
    for (int t = 1; t < TYPE_COUNT; t++) {
        if (!strcmp(types[t].text, text)) return (enum type)t;
    }
    return T_NO_TYPE;
}

uint32_t type_bytes(enum type t) { return types[t].bytes; }
bool is_signed(enum type t) { return types[t].text[0] == 's'; }
bool is_float(enum type t) { return t == T_F16 || t == T_F32 || t == T_F64; }

int number_in(const char *list, const char *word)
{
    size_t n = strlen(word);
    for (int k = 0; list && *list; k++) {
        size_t length = strcspn(list, " ");
        if (length == n && !memcmp(list, word, n)) return k;
        list += length + (list[length] == ' ');
    }
    return -1;
}

/* Says what no row needs to: exact enough here, or hints for caches. */
static bool is_quiet(const char *part)
{
    return number_in("rn ftz approx full noftz", part) >= 0 || !strncmp(part, "L1::", 4) ||
           !strncmp(part, "L2::", 4);
}

static bool words_fit(const struct row *row, const struct opcode *op, struct ins *i)
{
    static const char *const spaces = "generic global shared local param";
    int mode = row->modes && row->modes[0] != '-' ? -1 : 0, found = 0, at;
    size_t first = strcspn(row->name, " ");
    if (strncmp(row->name, op->part[0], first) || op->part[0][first]) return false;
    for (const char *blank = row->name; (blank = strchr(blank + 1, ' '));) found--;
    i->type = i->from = i->option = 0;
    i->space = SPACE_GENERIC;
    for (uint32_t k = 1; k < op->parts; k++) {
        const char *part = op->part[k];
        if (number_in(row->name, part) > 0) {
            found++;
        } else if (type_named(part)) {
            if (number_in(row->types, part) < 0) return false;
            if (!i->type) i->type = (uint8_t)type_named(part);
            else if (!i->from) i->from = (uint8_t)type_named(part);
        } else if ((at = number_in(row->modes, part)) >= 0) {
            mode = at;
        } else if ((at = number_in(row->options, part)) >= 0) {
            i->option = (uint8_t)(at + 1);
        } else if (number_in(row->ignored, part) < 0 && !is_quiet(part)) {
            return false;
        }
        if ((at = number_in(spaces, strcmp(part, "shared::cta") ? part : "shared")) > 0) {
            i->space = (uint8_t)at;
        }
    }
    i->mode = (uint8_t)mode;
    return mode >= 0 && !found && !*row->types == !i->type;
}

static bool operands_fit(const struct row *row, const struct arg *a, uint32_t n)
{
    uint32_t k = 0;
    for (const char *c = row->operands; *c; c++) {
        if (*c == '?' && k == n) return true;
        if (strchr("-0?", *c)) continue;
        if (k == n) return false;
        bool vector = *c == '{' || *c == 'V';
        char shape = a[k].shape, want = *c == '{' ? '{' : *c == 'a' ? '[' : 0;
        if (shape != want && !(*c == 'V' && shape == '{')) return false;
        if (vector && c[1] >= '1' && c[1] <= '9' && (int)a[k].count != *++c - '0') return false;
        k++;
    }
    return k == n;
}

static uint32_t constant_slot(struct kernel *k, uint32_t bytes, uint64_t value)
{
    if (bytes < 8) value = bytes ? (uint32_t)value : value ? UINT32_MAX : 0;
    for (uint32_t i = 0; i < k->constant_count; i++) {
        const struct constant *c = &k->constants[i];
        if (c->bytes == bytes && c->value == value) return c->slot;
    }
    uint32_t slot = new_slot(k, bytes);
    APPEND(k->constants, k->constant_count) = (struct constant){slot, (uint8_t)bytes, value};
    return slot;
}

static uint32_t slot_of(struct reader *r, const struct operand *o, uint32_t bytes)
{
    if (o->meaning == NEW) return r->junk;
    if (o->meaning == NUMBER) return constant_slot(r->k, bytes, o->number);
    if (o->meaning != REGISTER) bad_ptx(r, "unknown name", o->name->text);
    if (o->name->bytes != bytes) bad_ptx(r, "a register of another width", o->name->text);
    return (uint32_t)o->name->value;
}

/* Operand k is a register of either width, or a number of `bytes`. */
static void place_value(struct reader *r, struct ins *i, uint32_t k, const struct operand *o,
                        uint32_t bytes)
{
    uint32_t wide = o->meaning == REGISTER ? o->name->bytes : bytes > 4 ? 8 : 4;
    i->o[k] = slot_of(r, o, wide);
    if (wide == 8) i->bits64 |= 1u << k;
}

/* One letter of the row; *k is the place of the next operand, *address that of an address. */
static void place_arg(struct reader *r, struct ins *i, char letter, const struct arg *a,
                      uint32_t *k, uint32_t *address)
{
    const struct operand *o = &a->item[0];
    uint32_t bytes = type_bytes(i->type), width = i->type == T_PRED ? 0 : bytes == 8 ? 8 : 4;
    if (o->negated) bad_ptx(r, "a negated operand", i->text);
    switch (letter) {
    case '4': case '8': i->o[(*k)++] = slot_of(r, o, (uint32_t)(letter - '0')); break;
    case 'w': i->o[(*k)++] = slot_of(r, o, width); break;
    case 'p': i->o[(*k)++] = slot_of(r, o, 0); break;
    case 'm': i->members = slot_of(r, o, 4); break;
    case 'L': i->target = (uint32_t)o->number; break;
    case 'n':
        i->count = (uint8_t)o->number;
        i->o[*k] = slot_of(r, o, 4);
        break;
    case 'a':
        i->offset[*address - ADDRESS] = a->offset;
        place_value(r, i, (*address)++, o, 8);
        break;
    default:                                /* v, V, { */
        if (letter != 'v' && !i->count) i->count = (uint8_t)a->count;
        for (uint32_t n = 0; n < a->count; n++) place_value(r, i, (*k)++, &a->item[n], bytes);
        break;
    }
}

static void place_operands(struct reader *r, struct ins *i, const char *letters,
                           const struct arg *a, uint32_t n)
{
    uint32_t k = 0, address = ADDRESS, used = 0;
    for (const char *c = letters; *c; c++) {
        if (*c == '0') i->o[k++] = constant_slot(r->k, 4, 0);
        else if (*c == '-') k++;
        else if (used == n) break;
        else if (*c != '?') {
            place_arg(r, i, *c, &a[used++], &k, &address);
            if (strchr("V{", *c) && c[1] >= '1' && c[1] <= '9') c++;
        }
    }
    for (; k < 5; k++) i->o[k] = i->o[1] ? i->o[1] : i->o[0];      /* read, and not used */
    if (n && a[0].item[0].second) i->second = (uint32_t)a[0].item[0].second->value;
}

void decode(struct reader *r, struct ins *i, const struct opcode *op, const struct arg *args,
            uint32_t count)
{
    static const struct row *const tables[] = {alu_rows, compare_rows, memory_rows, warp_rows,
                                               atomic_rows, flow_rows};
    for (size_t t = 0; t < sizeof tables / sizeof *tables; t++) {
        for (const struct row *row = tables[t]; row->name; row++) {
            if (!words_fit(row, op, i) || !operands_fit(row, args, count)) continue;
            i->run = row->run;
            i->flow = (uint8_t)row->flow;
            place_operands(r, i, row->operands, args, count);
            return;
        }
    }
    bad_ptx(r, "an instruction that cusim does not know", i->text);
}
