"""tests/service/test_goldens.py - the whole service against an fp32 oracle, through HTTP.

tests/data/goldens.json holds, for six texts, the oracle's top-20 log-probabilities at every position,
the log-probability of the token that really follows, and a greedy continuation with its margins.
Bounds: float activations (the plain-C path) must be nearly exact; 8-bit activations may differ as
much as rounding them to 8 bits per 32 values does.
"""
import pytest

from service import LONG, Service, goldens

CASES = goldens()
BOUNDS = {  # top-1 agreement, mean |delta log-prob|, margin that decides a greedy step
    "float": (0.995, 0.005, 0.02),
    "auto": (0.975, 0.065, 0.4),
}


@pytest.fixture(scope="module", params=["auto", "float"])
def served(request, needs_model):
    with Service("--activations", request.param) as s:
        s.bounds = BOUNDS[request.param]
        # The plain-C path is slow: the long text has its turn in the long run.
        s.cases = [c for c in CASES if LONG or request.param == "auto" or len(c["ids"]) < 500]
        s.answers = [s.complete(c["ids"], max_tokens=len(c["greedy"]), prompt_logprobs=1,
                                return_token_ids=True)["choices"][0] for c in s.cases]
        yield s


def scores(case, answer):
    """(position, log-prob of the actual token, most likely id) for positions 1.."""
    out = []
    for i, entry in enumerate(answer["prompt_logprobs"]):
        if i == 0:
            assert entry is None
            continue
        actual = entry[str(case["ids"][i])]["logprob"]
        best = next(int(t) for t, v in entry.items() if v["rank"] == 1)
        out.append((i, actual, best))
    assert len(out) == len(case["ids"]) - 1
    return out


def test_log_probabilities_agree_with_the_oracle(served):
    agree = decided = 0
    differences = []
    for case, answer in zip(served.cases, served.answers):
        for i, actual, best in scores(case, answer):
            top = case["top"][i - 1]
            differences.append(abs(actual - case["actual"][i]))
            if top[0][1] - top[1][1] > 0.05:
                decided += 1
                agree += best == top[0][0]
    share, mean = agree / decided, sum(differences) / len(differences)
    print(f"top-1 {share:.4f} of {decided}, mean difference {mean:.5f} of {len(differences)}")
    assert share >= served.bounds[0]
    assert mean <= served.bounds[1]
    served.settle()


def test_greedy_continuations_equal_the_oracles_while_its_margin_is_wide(served):
    for case, answer in zip(served.cases, served.answers):
        for step, margin in enumerate(case["margin"]):
            if margin < served.bounds[2]:
                break
            assert answer["token_ids"][step] == case["greedy"][step], (case["name"], step)


def test_token_ids_of_all_texts_are_equal(served):
    for case in CASES:
        if "text" in case:
            body = {"prompt": case["text"]}
        else:
            body = {"messages": case["messages"], "add_generation_prompt": True}
        r = served.post("/tokenize", model=served.model(), **body).json()
        assert r["tokens"] == case["ids"], case["name"]
        assert r["count"] == len(case["ids"])
