"""tests/service/test_tokenizer.py - our tokenizer against Hugging Face's `tokenizers`, id by id.

Every pre-tokenizer that we know is compared over generated text, through a vocabulary trained
here and written as a vocabulary-only GGUF; and the real model's vocabulary where
RANKSERVE_TEST_MODEL names one.  The program under test is `rankservectl tokenize` (env
RANKSERVECTL); texts go through it in few calls, joined by a control token.
"""
import json
import os
import random
import struct
import subprocess
import sys
import unicodedata

import pytest

tokenizers = pytest.importorskip("tokenizers")
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

CTL = os.environ.get("RANKSERVECTL", "build/rankservectl")
MODEL = os.environ.get("RANKSERVE_TEST_MODEL")
GOLDENS = os.path.join(os.path.dirname(__file__), "..", "data", "goldens.json")

# What ends each text in the stream that goes through rankservectl.
MARK = "<|mark|>"
NORMAL, CONTROL, USER_DEFINED = 1, 3, 4

needs_model = pytest.mark.skipif(not MODEL, reason="RANKSERVE_TEST_MODEL names no model file")


def ctl(command, model, data, *options):
    done = subprocess.run([CTL, command, "--model", str(model), *options], input=data,
                          capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def ids_of(model, data, *options):
    return [int(x) for x in ctl("tokenize", model, data, *options).split()]


# --- the vocabulary-only GGUF ---------------------------------------------------------------

def gguf_text(s):
    raw = s.encode()
    return struct.pack("<Q", len(raw)) + raw


def gguf_value(v):
    if isinstance(v, bool):
        return struct.pack("<I?", 7, v)
    if isinstance(v, int):
        return struct.pack("<II", 4, v)
    if isinstance(v, str):
        return struct.pack("<I", 8) + gguf_text(v)
    if isinstance(v[0], str):
        return struct.pack("<IIQ", 9, 8, len(v)) + b"".join(map(gguf_text, v))
    return struct.pack("<IIQ%di" % len(v), 9, 5, len(v), *v)


def gguf_write(path, keys):
    with open(path, "wb") as f:
        f.write(b"GGUF" + struct.pack("<IQQ", 3, 0, len(keys)))
        for k, v in keys.items():
            f.write(gguf_text(k) + gguf_value(v))


class GGUFReader:
    """Just the keys."""
    SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q",
               12: "d"}

    def __init__(self, path):
        with open(path, "rb") as f:
            self.data = f.read(32 << 20)
        self.at = 8
        _, count = self.unpack("QQ")
        self.keys = {}
        for _ in range(count):
            key = self.text()
            self.keys[key] = self.value(*self.unpack("I"))

    def unpack(self, form):
        values = struct.unpack_from("<" + form, self.data, self.at)
        self.at += struct.calcsize("<" + form)
        return values

    def text(self):
        size, = self.unpack("Q")
        self.at += size
        return self.data[self.at - size:self.at].decode(errors="replace")

    def value(self, kind):
        if kind == 8:
            return self.text()
        if kind == 9:
            kind, count = self.unpack("IQ")
            return [self.value(kind) for _ in range(count)]
        return self.unpack(self.SCALARS[kind])[0]


# --- texts ----------------------------------------------------------------------------------

PHRASES = """\
It's we'll THEY'RE I'D you've DON'T o'clock 'tis 'S 'Ll rock'n'roll |\
def f(x):\n    return x**2  # comment\n\n\nclass A:\n\tpass | for(int i=0;i<10;++i){a[i]+=1;} |\
3.14159 1,000,000 2024-11-25T12:00:00Z 0x1F 1e-9 12345678901234567890 ½ ² Ⅷ ٣٤٥ १२३ ①② |\
naïve café façade Straße ÆØÅ ÇA İstanbul ıI ſs 'ſ ǅ ǈ ʰʲ |\
Съешь же ещё этих мягких французских булок, да выпей чаю |Ελληνικά ΩΜΈΓΑ ὅὦᾳ | שלום עולם |\
 مرحبا بالعالم، كيف حالك؟ | नमस्ते दुनिया क्षत्रिय | สวัสดีชาวโลก |こんにちは世界。カタカナ、ひらがな！ |\
 你好，世界！「引號」《書》 | 안녕하세요 세계 | 全角ＡＢＣ１２３！？ |👋🏽 👨‍👩‍👧‍👦 🏳️‍🌈 🇩🇪🇫🇷 ❤️ ☺︎ 🤷🏾‍♀️ |\
 e\u0301 a\u0308\u0323 Z͑ͫ̓ͪ̂ͫ̽ | a\u00a0b \u2003x\u2009y\u3000z \u202f1 |\
tab\tand\ttabs  two   three    four | line\r\nline\r\n\r\nline\rline\n\n | trailing   |\
 \x00\x01\x1b[0m\x7f\x85 |\u180e\u200b\u200d\ufeff\u2028\u2029 | a\u180eb \u180e c |\
 http://user@example.com:80/p?q=1#f | {"k": [1, 2.5, null]} |<p class="x">&amp;</p> |\
 $100 + 20% = £80 ~ €90 ^ | `code` ```c\nint x;\n``` | -- ... !!! ??? ---- ==== |\
 //// path/to\n/x |HTTPServer camelCaseWord XMLHttpRequest iPhone ABCdef |\
 \n\n  indented\n    more\n | a  \n  b | x\n y\n\n z | ŉ ﬁ ﬆ""".split("|")

SPACES = [" ", " ", " ", "  ", "   ", "\n", "\n\n", "\t", "\r\n", " \n", "\n ", "\u00a0", "\u3000",
          ""]


def known(c):
    """Assigned since long, so that the Unicode tables of both sides agree about it; and not one
    of the few whose class changed."""
    return unicodedata.ucd_3_2_0.category(c) == unicodedata.category(c) not in ("Cn", "Cs")


ANY = [c for c in map(chr, range(0x30000)) if known(c)]
BLOCKS = [(0x20, 0x7F), (0xA0, 0x250), (0x370, 0x530), (0x5D0, 0x700), (0x900, 0xE00),
          (0x2000, 0x2070), (0x3040, 0x3100), (0x4E00, 0x5200), (0xAC00, 0xAD00),
          (0xFF00, 0xFF70), (0x1F600, 0x1F650)]
BLOCKS = [[c for c in map(chr, range(a, b)) if known(c) or a > 0xFFFF] for a, b in BLOCKS]


def random_text(r):
    kind = r.randrange(6)
    if kind == 0:
        return "".join(r.choice(ANY) for _ in range(r.randrange(1, 30)))
    if kind == 1:
        block = r.choice(BLOCKS)
        return "".join(r.choice(block + SPACES) for _ in range(r.randrange(1, 40)))
    if kind == 2:
        few = "aB1 \n\r\t'.sS/_-(\u00a0é中\u0301"
        return "".join(r.choice(few) for _ in range(r.randrange(1, 40)))
    words = [w for p in r.sample(PHRASES, 3) for w in p.split(" ")]
    r.shuffle(words)
    return "".join(w + r.choice(SPACES) for w in words)


def texts(count, seed):
    r = random.Random(seed)
    fixed = ["", *PHRASES, *(p.upper() for p in PHRASES), *(p * 3 for p in PHRASES)]
    runs = ["a" * 5000, " " * 5000, "ab " * 2000, "\n" * 3000, " \n" * 1500, "9" * 3000, "!" * 3000,
            "中" * 2000, "éE" * 1000]
    made = fixed + runs + [random_text(r) for _ in range(count)]
    return [t for t in made if MARK not in t]


def compare(reference, model, mark, samples):
    """All samples through rankservectl in one call; the first difference is shown."""
    data = MARK.join(samples).encode()
    ours, rest = [[]], ids_of(model, data, "--parse-special")
    for i in rest:
        if i == mark:
            ours.append([])
        else:
            ours[-1].append(i)
    assert len(ours) == len(samples)
    theirs = [e.ids for e in reference.encode_batch(samples, add_special_tokens=False)]
    for text, a, b in zip(samples, ours, theirs):
        if a != b:
            shown = [reference.decode([i]) for i in a], [reference.decode([i]) for i in b]
            raise AssertionError("%r\n ours  %r\n theirs %r"
                                 % (text[:200], shown[0][:60], shown[1][:60]))


# --- every family ---------------------------------------------------------------------------

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
GPT4 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+")
HIGH, LOW = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
WORDS = (r"[^\r\n\p{L}\p{N}]?" + HIGH + "*" + LOW + r"+%s"
         r"|[^\r\n\p{L}\p{N}]?" + HIGH + "+" + LOW + "*%s")
REST = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
TAIL = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
BLOOM = r" ?[^(\s|.,!?…。，、।۔،)]+"
CASED = (r"A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅ"
         r"Ὀ-Ὅὐ-ὗὙὛὝὟ-\u1f7dᾀ-ᾴᾶ-ᾼ\u1fbeῂ-ῄῆ-ῌῐ-\u1fd3ῖ-\u1fdbῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤ\u2126ℨ"
         r"\u212a-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃")

# Name in the file; the reference's Split expressions in turn; does a whole token beat merges?
FAMILIES = [
    ("gpt-2", [GPT2], False),
    ("smollm", [r"\p{N}", GPT2], False),
    ("command-r", [r"\p{N}", GPT2], False),
    ("llama-bpe", [GPT4 % r"\p{N}{1,3}"], True),
    ("dbrx", [GPT4 % r"\p{N}{1,3}"], False),
    ("chatglm-bpe", [GPT4 % r"\p{N}{1,3}"], False),
    ("qwen2", [GPT4 % r"\p{N}"], False),
    ("qwen35", [r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}"
                r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"], False),
    ("tekken", [WORDS % ("", "") + r"|\p{N}|" + REST], True),
    ("gpt-4o", [WORDS % (TAIL, TAIL) + r"|\p{N}{1,3}|" + REST], False),
    ("seed-coder", [r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}"
                    r"| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+"], False),
    ("bailingmoe", [r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}"
                    r"| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"], False),
    ("deepseek-v3", [r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+",
                     r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"
                     r"|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"
                     r"|\s*[\r\n]+|\s+(?!\S)|\s+"], False),
    ("deepseek-llm", [r"[\r\n]", r"\s?[" + CASED + "]+", r"\s?[!-/:-~！-／：-～‘-‟　-。]+",
                      r"\s+$", "[一-龥ࠀ-一가-퟿]+", r"\p{N}+"], False),
    ("deepseek-coder", [r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", r"\p{N}"],
     False),
    ("falcon", [r"[\p{P}\$\+<=>\^~\|`]+", GPT2, "[0-9][0-9][0-9]"], False),
    ("default", [r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"], False),
    ("bloom", [BLOOM], False),
    ("viking", [BLOOM, r"\p{N}"], False),
]


def splits(expressions):
    return pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(e), "isolated") for e in expressions]
        + [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


@pytest.fixture(scope="module")
def trained():
    """One vocabulary for all: trained on coarse pieces, so that merges reach over the places
    where the families cut, and a wrong cut shows."""
    t = Tokenizer(models.BPE())
    t.pre_tokenizer = splits([r"\S+\s{0,3}\S*"])
    trainer = trainers.BpeTrainer(vocab_size=3000, show_progress=False, max_token_length=24,
                                  initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()))
    t.train_from_iterator(PHRASES * 3 + texts(300, 7), trainer)
    model = json.loads(t.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    merges = [tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in model["merges"]]
    return tokens, merges


def vocabulary_file(path, pre, tokens, merges, special=(), **more):
    kinds = dict(special)
    types = [kinds.get(t, NORMAL) for t in tokens]
    keys = {"general.architecture": "llama", "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": pre, "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.token_type": types,
            "tokenizer.ggml.merges": [" ".join(m) for m in merges]}
    gguf_write(path, keys | more)
    return path


@pytest.mark.parametrize("pre,expressions,whole", FAMILIES, ids=[f[0] for f in FAMILIES])
def test_family_gives_the_same_ids(tmp_path, trained, pre, expressions, whole):
    tokens, merges = trained
    tokens = tokens + [MARK]
    path = vocabulary_file(tmp_path / "v.gguf", pre, tokens, merges, [(MARK, CONTROL)])
    vocabulary = {t: i for i, t in enumerate(tokens)}
    reference = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=whole))
    reference.pre_tokenizer = splits(expressions)
    compare(reference, path, len(tokens) - 1, texts(1500, 11))


def test_whole_tokens_beat_merges_only_where_the_family_says_so(tmp_path, trained):
    tokens, merges = trained
    tokens = tokens + ["ĠQzxQ"]           # no merge makes it
    for pre, whole in (("llama-bpe", True), ("qwen2", False)):
        path = vocabulary_file(tmp_path / "v.gguf", pre, tokens, merges)
        assert (ids_of(path, b" QzxQ") == [len(tokens) - 1]) == whole


def test_unknown_family_is_refused_by_name(tmp_path, trained):
    path = vocabulary_file(tmp_path / "v.gguf", "made-up", *trained)
    done = subprocess.run([CTL, "tokenize", "--model", path], input=b"x", capture_output=True,
                          timeout=60)
    assert done.returncode != 0 and b"made-up" in done.stderr and b"smollm" in done.stderr


def test_added_tokens_are_found_as_the_reference_finds_them(tmp_path, trained):
    tokens, merges = trained
    user = ["<tool>", "<tool_call>", "    ", "\n\n", "é中"]
    tokens = tokens + user + ["<|end|>", MARK]
    special = [(u, USER_DEFINED) for u in user] + [("<|end|>", CONTROL), (MARK, CONTROL)]
    path = vocabulary_file(tmp_path / "v.gguf", "qwen2", tokens, merges, special)
    reference = Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, merges))
    reference.pre_tokenizer = splits([GPT4 % r"\p{N}"])
    reference.add_tokens([AddedToken(u, special=False, normalized=False) for u in user])
    r = random.Random(3)
    parts = user + ["<tool", ">", "_call>", "<", " ", "\n", "a", "é", "中", "<|end|", "  "]
    samples = ["".join(r.choice(parts) for _ in range(12)) for _ in range(500)]
    samples = [s for s in samples if "<|end|>" not in s]
    compare(reference, path, len(tokens) - 1, samples)
    end = len(tokens) - 2
    assert end in ids_of(path, b"a<|end|>", "--parse-special")
    assert end not in ids_of(path, b"a<|end|>")


# --- the real model -------------------------------------------------------------------------

@pytest.fixture(scope="module")
def real():
    keys = GGUFReader(MODEL).keys
    tokens, kinds = keys["tokenizer.ggml.tokens"], keys["tokenizer.ggml.token_type"]
    assert keys["tokenizer.ggml.pre"] == "smollm"
    merges = [tuple(m.split(" ", 1)) for m in keys["tokenizer.ggml.merges"]]
    t = Tokenizer(models.BPE({x: i for i, x in enumerate(tokens)}, merges))
    t.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)])
    t.decoder = decoders.ByteLevel()
    t.add_special_tokens([AddedToken(x, special=True, normalized=False)
                          for i, x in enumerate(tokens) if kinds[i] == CONTROL])
    return t, keys


@needs_model
def test_real_vocabulary_gives_the_same_ids(real, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "MARK", "<file_sep>")
    compare(real[0], MODEL, real[0].token_to_id("<file_sep>"), texts(6000, 5))


@needs_model
def test_real_vocabulary_gives_text_back(real):
    samples = [t for t in texts(500, 9) if all(ord(c) < 0x10000 for c in t)]
    data = "".join(samples).encode()
    ids = ids_of(MODEL, data)
    back = ctl("detokenize", MODEL, " ".join(map(str, ids)).encode())
    if not back.endswith(data[-20:]):
        back = back.removesuffix(b"\n")      # printed for a person
    if real[0].decode(ids, skip_special_tokens=False) == data.decode():
        assert back == data
    else:                                    # the vocabulary lacks a few bytes
        assert back.decode(errors="replace") == real[0].decode(ids, skip_special_tokens=False)


def chat(messages):
    text = ""
    if messages[0]["role"] != "system":
        text = ("<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by "
                "Hugging Face<|im_end|>\n")
    for m in messages:
        text += "<|im_start|>%s\n%s<|im_end|>\n" % (m["role"], m["content"])
    return text + "<|im_start|>assistant\n"


@needs_model
@pytest.mark.skipif(not os.path.exists(GOLDENS), reason="no tests/data/goldens.json")
def test_golden_texts_give_their_ids():
    with open(GOLDENS) as f:
        cases = [c for c in json.load(f) if "text" in c or "messages" in c]
    assert cases
    for c in cases:
        text = c["text"] if "text" in c else chat(c["messages"])
        assert ids_of(MODEL, text.encode(), "--parse-special") == c["ids"], c["name"]
