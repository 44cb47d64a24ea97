"""tests/service/test_template.py - our chat-template interpreter against Python's jinja2.

jinja2 is set up as Hugging Face's apply_chat_template does.  The program under test is
`rankservectl template` (env RANKSERVECTL).  The templates in tests/data/templates are rendered
with conversations of every kind; small snippets of the language go through in few calls, many to a
template, and those that must fail one by one.
"""
import datetime
import functools
import glob
import json
import os
import subprocess

import pytest

jinja2 = pytest.importorskip("jinja2")
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedEnvironment

CTL = os.environ.get("RANKSERVECTL", "build/rankservectl")
TEMPLATES = sorted(glob.glob(os.path.join(os.path.dirname(__file__), "../data/templates/*.jinja")))
MARK = "<<mark>>"


class Generation(Extension):
    """{% generation %}, as transformers has it, without the bookkeeping for training."""
    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return nodes.CallBlock(self.call_method("_say"), [], [], body).set_lineno(line)

    def _say(self, caller):
        return caller()


class Raised(jinja2.exceptions.TemplateError):
    """What raise_exception raises."""


def raise_exception(message):
    raise Raised(message)


def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators,
                      sort_keys=sort_keys)


def environment(kind=ImmutableSandboxedEnvironment, extensions=()):
    env = kind(trim_blocks=True, lstrip_blocks=True,
               extensions=[Generation, loopcontrols, *extensions])
    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    env.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return env


def ours(tmp_path, text, request):
    """(output, None) or (None, what was said)."""
    path = tmp_path / "t.jinja"
    path.write_bytes(text.encode())
    done = subprocess.run([CTL, "template", str(path)], input=json.dumps(request).encode(),
                          capture_output=True, timeout=30)
    if done.returncode == 0:
        return done.stdout.decode(), None
    assert done.returncode == 1, done.stderr.decode()
    return None, done.stderr.decode()


IMMUTABLE = environment()


@functools.lru_cache(maxsize=256)
def compiled(env, text):
    return env.from_string(text)


def theirs(text, request, env=IMMUTABLE):
    variables = {"add_generation_prompt": True, "bos_token": "", "eos_token": "", **request}
    try:
        return compiled(env, text).render(**variables), None
    except Exception as e:
        return None, e


def agree(tmp_path, text, request, env=IMMUTABLE):
    """Whether both rendered it; fails where they differ."""
    want, failure = theirs(text, request, env)
    got, said = ours(tmp_path, text, request)
    assert got == want, (said, failure)
    if isinstance(failure, Raised):
        assert str(failure) in said
    return failure is None


# --- conversations ---------------------------------------------------------------------------

USER = {"role": "user", "content": "What's the weather in Zürich? \u2603"}
SYSTEM = {"role": "system", "content": "  You are \"terse\".\nVery <terse> & 'kind'.\n"}
ANSWER = {"role": "assistant", "content": " It is cold. "}
NEXT = {"role": "user", "content": "and\ttomorrow?"}
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a place.",
        "parameters": {
            "type": "object",
            "properties": {
                "place": {"type": "string", "description": "city, \"country\""},
                "unit": {"type": "string", "enum": ["celsius", "kelvin"], "default": "celsius"},
                "days": {"type": "array", "items": {"type": "integer"}},
                "exact": {"type": ["number", "null"], "nullable": True},
                "near": {"type": "object", "properties": {"lat": {"type": "number"}}},
            },
            "required": ["place"],
        },
        "return": {"type": "object", "description": "what it found"},
    },
}
CLOCK = {"type": "function", "function": {
    "name": "now", "description": "The time.", "parameters": {"type": "object", "properties": {}}}}


def call(name="get_weather", arguments=None, id="call00001"):
    if arguments is None:
        arguments = {"place": "Zürich", "days": [1, 2], "exact": 0.5, "deep": {"a": None}}
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


CALLS = {"role": "assistant", "content": None, "tool_calls": [call()]}
TWO_CALLS = {"role": "assistant", "content": "Let me see.",
             "tool_calls": [call(), call("now", {}, "call00002")]}
RESULT = {"role": "tool", "name": "get_weather", "tool_call_id": "call00001",
          "content": "{\"temp\": -3.5}"}
RESULT2 = {"role": "tool", "name": "now", "tool_call_id": "call00002", "content": {"time": "12:00"}}
THINK = {"role": "assistant", "content": "<think>\nhm, cold?\n</think>\n\nCold."}
REASON = {"role": "assistant", "content": "Cold.", "reasoning_content": "\nlet me think\n"}
PARTS = {"role": "user", "content": [{"type": "text", "text": "Look: "}, {"type": "image"},
                                     {"type": "text", "text": "what is it?"}]}

CONVERSATIONS = {
    "user": {"messages": [USER]},
    "system": {"messages": [SYSTEM, USER]},
    "no_prompt": {"messages": [USER, ANSWER], "add_generation_prompt": False},
    "turns": {"messages": [SYSTEM, USER, ANSWER, NEXT]},
    "turns_no_system": {"messages": [USER, ANSWER, NEXT, ANSWER, USER], "bos_token": "<s>",
                        "eos_token": "</s>"},
    "two_users": {"messages": [USER, NEXT]},
    "assistant_first": {"messages": [ANSWER, USER]},
    "system_last": {"messages": [USER, SYSTEM]},
    "only_system": {"messages": [SYSTEM]},
    "nothing": {"messages": []},
    "empty": {"messages": [{"role": "user", "content": ""}]},
    "null_content": {"messages": [{"role": "user", "content": None}, ANSWER, USER]},
    "no_content": {"messages": [{"role": "user"}]},
    "unknown_role": {"messages": [USER, {"role": "critic", "content": "no"}]},
    "parts": {"messages": [SYSTEM, PARTS]},
    "parts_only_text": {"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}]}]},
    "tools": {"messages": [SYSTEM, USER], "tools": [WEATHER, CLOCK]},
    "tools_no_system": {"messages": [USER], "tools": [WEATHER]},
    "no_tools": {"messages": [USER], "tools": None},
    "empty_tools": {"messages": [USER], "tools": []},
    "calls": {"messages": [USER, CALLS, RESULT], "tools": [WEATHER]},
    "calls_and_after": {"messages": [SYSTEM, USER, TWO_CALLS, RESULT, RESULT2, ANSWER, NEXT],
                        "tools": [WEATHER, CLOCK], "bos_token": "<s>", "eos_token": "</s>"},
    "calls_text": {"messages": [USER, {"role": "assistant", "content": "",
                                       "tool_calls": [call(arguments="{\"place\": \"Bern\"}")]},
                                RESULT, THINK, NEXT], "tools": [WEATHER]},
    "result_first": {"messages": [RESULT, USER]},
    "thinking": {"messages": [USER, THINK, NEXT]},
    "thinking_off": {"messages": [USER, THINK, NEXT], "enable_thinking": False},
    "thinking_on": {"messages": [SYSTEM, USER, REASON, NEXT], "enable_thinking": True},
    "thinking_last": {"messages": [USER, REASON], "add_generation_prompt": False},
    "date": {"messages": [USER], "date_string": "1 Jan 2025"},
    "documents": {"messages": [USER], "documents": [{"title": "A", "text": "a\nb"},
                                                    {"title": "B", "text": ""}]},
    "unicode": {"messages": [{"role": "user", "content": "\u3000日本語 👩‍👩‍👧 \u00a0ñ \u2028 x\u0085"}]},
    "template_text": {"messages": [{"role": "user", "content": "{{ 7 * 7 }} {% if %} {# #}"}]},
}


@pytest.mark.parametrize("path", TEMPLATES, ids=[os.path.basename(p) for p in TEMPLATES])
def test_a_template_renders_every_conversation_as_jinja2_does(path, tmp_path):
    with open(path) as f:
        text = f.read()
    rendered = 0
    for name, request in CONVERSATIONS.items():
        try:
            rendered += agree(tmp_path, text, request)
        except AssertionError as e:
            raise AssertionError(f"conversation {name}: {e}") from e
    assert rendered >= len(CONVERSATIONS) // 3, "a template that refuses nearly all tests nothing"


def test_there_are_templates():
    assert len(TEMPLATES) >= 10


# --- snippets --------------------------------------------------------------------------------

VARIABLES = {
    "s": "Hello World", "e": "", "u": "Zürich ☃ 👩 ß", "ws": " \t a b \n", "csv": "a,b,,c",
    "n": 7, "z": 0, "neg": -3, "f": 2.5, "t": True, "no": False, "nil": None,
    "l": [3, 1, 2], "ls": ["b", "A", "c", "a"], "el": [], "mixed": [1, "a", None, 2.0, True],
    "d": {"b": 1, "a": 2, "C": 0}, "ed": {}, "items_key": {"items": 5, "keys": [1]},
    "ms": [{"role": "user", "content": "hi", "n": 2, "x": {"y": 1}},
           {"role": "assistant", "content": "", "n": 1, "x": {"y": 2}},
           {"role": "user", "content": "bye", "n": 3, "x": {}}],
    "lines": "one\ntwo\r\n\nthree\n", "html": "<a href='x'>&\"</a>", "big": 1e300, "tiny": 1e-7,
}

with open(os.path.join(os.path.dirname(__file__), "../data/template_snippets.txt")) as f:
    SNIPPETS = [s.replace("\\n", "\n") for s in f.read().splitlines() if s and s[0] != ";"]
with open(os.path.join(os.path.dirname(__file__), "../data/template_errors.txt")) as f:
    ERRORS = [s.replace("\\n", "\n") for s in f.read().splitlines() if s and s[0] != ";"]


@pytest.mark.filterwarnings("ignore:invalid escape sequence")
def test_snippets_give_what_jinja2_gives(tmp_path):
    for start in range(0, len(SNIPPETS), 100):
        part = SNIPPETS[start:start + 100]
        # Each in its own scope, so that a `set` of one is not seen by the next.
        text = MARK.join("{% with %}" + s + "{% endwith %}" for s in part)
        want, failure = theirs(text, VARIABLES)
        assert want is not None, [s for s in part if theirs(s, VARIABLES)[0] is None] or failure
        got, said = ours(tmp_path, text, VARIABLES)
        if got is None:
            bad = {s: ours(tmp_path, s, VARIABLES)[1] for s in part}
            raise AssertionError([(s, m) for s, m in bad.items() if m] or said)
        pairs = zip(part, got.split(MARK), want.split(MARK), strict=True)
        assert [(s, g, w) for s, g, w in pairs if g != w] == []


def test_what_jinja2_refuses_is_refused(tmp_path):
    assert [s for s in ERRORS if theirs(s, VARIABLES)[0] is not None] == []
    assert [(s, out) for s in ERRORS if (out := ours(tmp_path, s, VARIABLES)[0]) is not None] == []


def test_raise_exception_says_the_template_s_own_words(tmp_path):
    said = ours(tmp_path, "a\n{{ raise_exception('Only ünï ' ~ s) }}", VARIABLES)[1]
    assert said.rstrip().endswith(": Only ünï Hello World")


def test_errors_name_the_line(tmp_path):
    assert "line 2, column 8" in ours(tmp_path, "a\n{{ s + ) }}", VARIABLES)[1]
    assert "line 3" in ours(tmp_path, "a\n\n{{ missing.x }}", VARIABLES)[1]
    assert "'missing' is undefined" in ours(tmp_path, "{{ missing.x }}", VARIABLES)[1]


def test_lists_and_dicts_may_be_changed_as_outside_the_immutable_sandbox(tmp_path):
    env = environment(SandboxedEnvironment, ["jinja2.ext.do"])
    for text in [
        "{% set a = [] %}{% for m in ms %}{% set _ = a.append(m.role) %}{% endfor %}{{ a }}",
        "{% set a = [1] %}{% do a.extend([2, 3]) %}{% do a.insert(0, 0) %}{% do a.insert(-1, 9) %}"
        "{{ a }} {{ a.pop() }} {{ a.pop(0) }} {{ a }}",
        "{% set a = {'x': 1} %}{% do a.update({'y': 2}) %}{% do a.update(z=3) %}{{ a }} "
        "{{ a.pop('x') }} {{ a.pop('q', 4) }} {{ a.setdefault('y', 5) }} {{ a }}",
        "{% set a = [] %}{% set b = a %}{% do b.append(1) %}{{ a }}{{ a is sameas b }}",
    ]:
        agree(tmp_path, text, VARIABLES, env)


def test_runaway_templates_end(tmp_path):
    for text in [
        "{{ 'x' * 10 ** 9 }}", "{{ [1] * 10 ** 9 }}", "{% for i in range(10 ** 9) %}x{% endfor %}",
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{% set n = namespace(s='xxxxxxxx') %}{% for i in range(99) %}{% set n.s = n.s + n.s %}"
        "{% endfor %}",
        "{{ " + "[" * 500 + "]" * 500 + " }}", "{{ " + "(" * 9999, "{{ " + "not " * 9999 + "1 }}",
        "{% if 1 %}" * 999 + "{% endif %}" * 999, "{{ 1" + " + 1" * 9999 + " }}",
        "{{ " + "-" * 9999 + "1 }}", "{{ 1" + " if 1 else 1" * 9999 + " }}",
        "{% set a = [] %}{% set _ = a.append(a) %}{{ a }}", "{{ 9 ** 99 }}",
        "{% set a = [1] %}{% for x in a %}{% set _ = a.append(x) %}{% endfor %}",
        "{% set a = [] %}{% set n = namespace(v=[1]) %}{% for i in range(60) %}"
        "{% set n.v = [n.v, n.v] %}{% endfor %}{{ n.v }}",
    ]:
        out, said = ours(tmp_path, text, VARIABLES)
        assert out is None and said, text[:60]
