"""tests/service/test_gateway_input.py - what the gateway says to requests that it cannot serve."""
import os

import pytest

from gateway_bench import chat, complete, http, job, raw, shared  # noqa: F401


BAD_FIELDS = [
    ({"temperature": "hot"}, "temperature"), ({"temperature": 2.5}, "temperature"),
    ({"temperature": -0.1}, "temperature"), ({"temperature": True}, "temperature"),
    ({"top_p": 0}, "top_p"), ({"top_p": 1.01}, "top_p"), ({"top_k": -2}, "top_k"),
    ({"top_k": 1.5}, "top_k"), ({"min_p": 2}, "min_p"), ({"repetition_penalty": 0}, "repetition_penalty"),
    ({"presence_penalty": 3}, "presence_penalty"), ({"frequency_penalty": []}, "frequency_penalty"),
    ({"n": 0}, "n"), ({"n": 129}, "n"), ({"n": "1"}, "n"), ({"seed": 1.5}, "seed"),
    ({"max_tokens": 0}, "max_tokens"), ({"max_tokens": -1}, "max_tokens"),
    ({"max_tokens": 1000000000}, "max_tokens"), ({"max_tokens": 1e9}, "max_tokens"),
    ({"max_completion_tokens": 100000}, "max_completion_tokens"), ({"min_tokens": -1}, "min_tokens"),
    ({"min_tokens": 9, "max_tokens": 8}, "min_tokens"), ({"stop": [1]}, "stop"), ({"stop": ""}, "stop"),
    ({"stop": ["x"] * 17}, "stop"), ({"stop": "x" * 1025}, "stop"), ({"stop_token_ids": [259]}, "stop_token_ids"),
    ({"stop_token_ids": list(range(9))}, "stop_token_ids"), ({"stop_token_ids": 5}, "stop_token_ids"),
    ({"logit_bias": {"259": 1}}, "logit_bias"), ({"logit_bias": {"-1": 1}}, "logit_bias"),
    ({"logit_bias": {"x": 1}}, "logit_bias"), ({"logit_bias": {"1": 101}}, "logit_bias"),
    ({"logit_bias": {"1": "a"}}, "logit_bias"), ({"logit_bias": []}, "logit_bias"),
    ({"logit_bias": {str(i): 1 for i in range(301)}}, "logit_bias"),
    ({"stream": "yes"}, "stream"), ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"stream": True, "stream_options": 1}, "stream_options"),
    ({"stream": True, "prompt_logprobs": 1}, "prompt_logprobs"), ({"prompt_logprobs": 21}, "prompt_logprobs"),
    ({"priority": 2**40}, "priority"), ({"cache_salt": 5}, "cache_salt"), ({"timeout": -1}, "timeout"),
    ({"response_format": {"type": "json_object"}}, "response_format"), ({"response_format": "x"}, "response_format"),
    ({"guided_json": {}}, "guided_json"), ({"chat_template": "{{ 1 }}"}, "chat_template"),
    ({"bad_words": ["x"]}, "bad_words"), ({"use_beam_search": True}, "use_beam_search"), ({"ignore_eos": 1}, "ignore_eos"), ({"model": 7}, "model"),
]
BAD_CHAT = [
    ({"messages": []}, "messages"), ({"messages": "hi"}, "messages"), ({"messages": None}, "messages"),
    ({"messages": ["hi"]}, "messages"), ({"messages": [{"content": "x"}]}, "messages"),
    ({"messages": [{"role": "user"}]}, "messages"), ({"messages": [{"role": "", "content": "x"}]}, "messages"),
    ({"messages": [{"role": "<|im_end|>", "content": "x"}]}, "messages"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages"),
    ({"messages": [{"role": "user", "content": "x"}] * 4097}, "messages"),
    ({"logprobs": 1}, "logprobs"), ({"top_logprobs": 2}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"), ({"tools": {}}, "tools"),
    ({"chat_template_kwargs": []}, "chat_template_kwargs"),
    ({"continue_final_message": True, "add_generation_prompt": True}, "continue_final_message"),
]
BAD_COMPLETION = [
    ({"prompt": ""}, "prompt"), ({"prompt": []}, "prompt"), ({"prompt": [""]}, "prompt"),
    ({"prompt": 5}, "prompt"), ({"prompt": None}, "prompt"), ({"prompt": [[]]}, "prompt"),
    ({"prompt": [259]}, "prompt"), ({"prompt": [1, "a"]}, "prompt"), ({"prompt": [-1]}, "prompt"),
    ({"prompt": [{}]}, "prompt"), ({"prompt": ["a"] * 129}, "prompt"), ({"prompt": ["a"] * 65, "n": 2}, "prompt"),
    ({"logprobs": 21}, "logprobs"), ({"best_of": 2}, "best_of"), ({"suffix": "x"}, "suffix"),
]


@pytest.mark.parametrize("fields,name", BAD_FIELDS + BAD_CHAT, ids=repr)
def test_bad_fields_of_a_chat(http, job, fields, name):
    r = http.post("/v1/chat/completions",
                  json={"messages": [{"role": "user", "content": "hi"}], **fields})
    error = r.json()["error"]
    assert (r.status_code, error["type"], error["param"]) == (400, "invalid_request_error", name)
    assert name in error["message"] and set(error) == {"message", "type", "param", "code"}
    assert not job.requests


@pytest.mark.parametrize("fields,name", BAD_FIELDS + BAD_COMPLETION, ids=repr)
def test_bad_fields_of_a_completion(http, job, fields, name):
    r = http.post("/v1/completions", json={"prompt": "hi", **fields})
    assert (r.status_code, r.json()["error"]["param"]) == (400, name)
    assert not job.requests


BAD_BODIES = [
    b"", b"{", b"[]", b"null", b'"x"', b"{}x", b'{"messages":}', b"\xff\xfe", b'{"prompt":"\xff"}',
    b'{"prompt":"\\ud800"}', b'{"prompt":"\\udc00\\ud800"}', b'{"prompt":"\\ud800x"}',
    b'{"n":1e999,"prompt":"x"}', b'{"n":99999999999999999999,"prompt":"x"}', b"[" * 100000,
    b'{"a":' * 65 + b"1" + b"}" * 65, b'{"prompt":"a\x00b"}', b"{'prompt':'x'}", b'{"\\u0000":1}',
    b'{"prompt":"' + b"\xed\xa0\x80" + b'"}',
]


@pytest.mark.parametrize("body", BAD_BODIES, ids=lambda b: repr(b[:24]))
def test_bodies_that_are_not_json_we_accept(http, job, body):
    r = http.post("/v1/completions", content=body, headers={"content-type": "application/json"})
    assert r.status_code == 400 and r.json()["error"]["type"] == "invalid_request_error"
    assert not job.requests


def test_depth_has_a_limit_that_is_not_too_low(http, job):
    deep = {"x": 1}
    for _ in range(60):
        deep = {"x": deep}
    assert http.post("/v1/completions", json={"prompt": "a", "extra": deep}).status_code == 200
    assert complete(http, "[" * 200).status_code == 200


def test_prompts_that_are_too_long_are_told_both_lengths(http, job):
    error = complete(http, "x" * 600).json()["error"]
    assert error["code"] == "context_length_exceeded"
    assert "512" in error["message"] and "600" in error["message"]
    assert complete(http, "x" * 512).status_code == 400
    assert complete(http, "x" * 511).status_code == 200
    assert job.requests[-1].max_tokens == 1
    error = complete(http, "x" * 100000).json()["error"]
    assert "512" in error["message"] and "more than 2048" in error["message"]
    error = complete(http, "x" * 10, max_tokens=503).json()["error"]
    assert "503" in error["message"] and "512" in error["message"]


def test_unknown_model_route_method_and_type(http, job):
    r = chat(http, model="gpt-5")
    assert (r.status_code, r.json()["error"]["code"]) == (404, "model_not_found")
    assert http.get("/nothing").status_code == 404
    assert http.get("/v1/chat/completions").status_code == 405
    assert http.put("/v1/models").status_code == 405
    r = http.post("/v1/completions", content=b"{}", headers={"content-type": "text/plain"})
    assert r.status_code in (400, 415)
    r = http.post("/v1/completions", content=b'{"prompt":"a"}',
                  headers={"content-type": "application/json; charset=utf-8"})
    assert r.status_code == 200


def test_a_large_body_is_refused_before_it_is_read(shared, http, job):
    head = (b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Content-Length: 104857600\r\n\r\n")
    assert b" 413 " in raw(shared[1], head).split(b"\r\n")[0]

    def flood():                             # no length is announced
        for _ in range(40):
            yield b" " * (1 << 20)
    r = http.post("/v1/completions", content=flood(), headers={"content-type": "application/json"})
    assert r.status_code == 413
    assert http.get("/health").status_code == 200


def test_floods_of_headers_and_rubbish_are_cut_off(shared, http, job):
    flood = b"GET /health HTTP/1.1\r\nHost: x\r\n" + b"".join(
        b"X-%d: %s\r\n" % (i, b"y" * 1000) for i in range(500)) + b"\r\n"
    first = raw(shared[1], flood).split(b"\r\n")[0]
    assert b" 200" not in first
    for rubbish in (b"\x16\x03\x01" + os.urandom(500), b"\r\n" * 1000, b"GET\r\n\r\n",
                    b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
                    b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n"):
        assert b" 200 " not in raw(shared[1], rubbish, seconds=1)
    assert http.get("/health").status_code == 200


def test_what_asks_for_nothing_is_not_refused(http, job):
    r = complete(http, suffix="", chat_template=None, use_beam_search=False, bad_words=[])
    assert r.status_code == 200


def test_a_model_name_that_goes_on_after_a_nul_is_another_name(http, job):
    r = chat(http, model="tiny\0x")
    assert (r.status_code, r.json()["error"]["code"]) == (404, "model_not_found")


def test_tokenize_takes_one_prompt(http, job):
    assert http.post("/tokenize", json={"prompt": "ab"}).json()["count"] == 2
    r = http.post("/tokenize", json={"prompt": ["ab", "cd"]})
    assert (r.status_code, r.json()["error"]["param"]) == (400, "prompt")


def test_a_call_of_a_tool_may_have_no_content(http, job):
    calls = [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
    for silent in ({"content": None}, {}):
        r = http.post("/v1/chat/completions", json={"messages": [
            {"role": "user", "content": "a"}, {"role": "assistant", "tool_calls": calls, **silent},
            {"role": "tool", "tool_call_id": "1", "content": "b"}]})
        assert r.status_code == 200, r.text


def test_a_wrong_method_is_told_the_right_ones(http, job):
    assert http.get("/v1/completions").headers["allow"] == "POST"
    assert http.delete("/v1/models").headers["allow"] == "GET, HEAD"
    assert http.delete("/ping").headers["allow"] == "GET, HEAD, POST"
    assert "allow" not in http.get("/nothing").headers


def test_a_body_whose_length_is_doubtful_or_that_is_compressed_is_refused(shared, http, job):
    head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    body = b'{"prompt":"a"}'
    for lengths in (b"Content-Length: 14\r\nContent-Length: 3\r\n\r\n" + body,
                    b"Content-Length: 14\r\nTransfer-Encoding: chunked\r\n\r\ne\r\n" + body +
                    b"\r\n0\r\n\r\n"):
        assert b" 400 " in raw(shared[1], head + lengths).split(b"\r\n")[0]
    coded = raw(shared[1], head + b"Content-Encoding: gzip\r\nContent-Length: 14\r\n\r\n" + body)
    assert b" 415 " in coded.split(b"\r\n")[0]
    assert not job.requests
