"""A judge behind a server: against one that misbehaves on demand."""

import email.utils
import json
import math
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from faithful_sae.features.index import FeatureError
from faithful_sae.features.judging import Explanation, Windows
from faithful_sae.features.language_judges import endpoint
from faithful_sae.features.language_judges.answers import Answers
from faithful_sae.features.language_judges.endpoint import Endpoint
from faithful_sae.features.language_judges.judge import LanguageJudge, NoAnswerError

KEY = "sk-very/secret"
ASKED = [{"role": "user", "content": "which?"}]


class Server(ThreadingHTTPServer):
    """Answers each request with the next of `script`, (status, body, headers) or a function of the
    request, and keeps what was asked. The last one is for all that follow.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.script = []
        self.asked = []
        self.headers = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, *_):
        pass


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        server = self.server
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server.asked.append(asked)
        server.headers.append((self.path, dict(self.headers)))
        step = server.script.pop(0) if len(server.script) > 1 else server.script[0]
        status, body, headers = step(asked) if callable(step) else step
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in ({"Content-Length": len(body)} | headers).items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with Server() as made:
        threading.Thread(target=made.serve_forever, args=(0.01,), daemon=True).start()
        yield made
        made.shutdown()


@pytest.fixture
def waits(monkeypatch):
    """Seconds that were waited for, none of them really."""
    found = []
    monkeypatch.setattr(endpoint.time, "sleep", found.append)
    return found


@pytest.fixture
def asks(server, waits):
    """An endpoint of the server."""

    def make(**options):
        return Endpoint(server.url, "small", **({"timeout": 5.0, "retries": 2} | options))

    return make


def completion(text, logprobs=None, model="small-2026"):
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "logprobs": logprobs}
    return 200, {"id": "x", "model": model, "choices": [choice]}, {}


def refusal(status, said="no", **headers):
    return (
        status,
        {"error": {"message": said}},
        {k.replace("_", "-"): v for k, v in headers.items()},
    )


def token(text, **likeliest):
    """A place with the probability of each of some tokens; the written one's is that of `text`."""
    top = [{"token": t.strip("_"), "logprob": math.log(p)} for t, p in likeliest.items()]
    own = next((t["logprob"] for t in top if t["token"] == text), math.log(0.5))
    return {"token": text, "logprob": own, "top_logprobs": top}


# --- what is asked and read -----------------------------------------------------------------------


def test_a_text_is_asked_for_and_read(server, asks):
    server.script = [completion("Description: cats")]
    answer = asks().write(ASKED, 77)
    assert (answer.text, answer.model) == ("Description: cats", "small-2026")
    expected = {"model": "small", "messages": ASKED, "temperature": 0, "max_tokens": 77}
    assert server.asked == [expected]
    assert server.headers[0][0] == "/v1/chat/completions"
    assert "Authorization" not in server.headers[0][1]


def test_probabilities_by_hand(server, asks):
    places = [
        token("["),
        token("1", _1=0.6, _0=0.2),
        token(", "),
        # joined with what is around, twice
        {
            "token": " 0]",
            "logprob": math.log(0.3),
            "top_logprobs": [
                {"token": " 0]", "logprob": math.log(0.3)},
                {"token": " 1", "logprob": math.log(0.06)},
                {"token": " 1]", "logprob": math.log(0.04)},
                {"token": " none", "logprob": math.log(0.5)},
            ],
        },
    ]
    server.script = [completion("[1, 0]", {"content": places})]
    answer = asks().decide(ASKED, 2)
    assert answer.p == pytest.approx([0.6 / 0.8, 0.1 / 0.4])
    assert server.asked[0]["logprobs"] is True
    assert server.asked[0]["top_logprobs"] == 5


def test_only_the_list_at_the_end_counts(server, asks):
    places = [token("0", _0=0.9, _1=0.1), token("["), token("1", _1=0.75, _0=0.25), token("]")]
    server.script = [completion("0 of them? [1]", {"content": places})]
    assert asks().decide(ASKED, 1).p == pytest.approx([0.75])


@pytest.mark.parametrize(
    "logprobs",
    [
        None,
        {},
        {"content": None},
        {"content": []},
        {"content": [token("1", _1=1.0)]},
        {"content": [token("0", _0=1.0), token("1", _1=1.0)]},
        {"content": [{"token": "1"}, {"token": "0"}]},
        {"content": [{"token": "1", "logprob": -math.inf}, {"token": "0", "logprob": 0.0}]},
        {"tokens": ["1", "0"], "token_logprobs": [0.0, 0.0]},
        "none",
    ],
)
def test_without_probabilities_the_list_is_read(server, asks, logprobs, capsys):
    server.script = [completion("[1, 0]", logprobs)]
    small = asks()
    assert [small.decide(ASKED, 2).p, small.decide(ASKED, 2).p] == [[1.0, 0.0]] * 2
    assert capsys.readouterr().out.count("tells no probabilities") == 1


@pytest.mark.parametrize("status", [400, 422, 500])
def test_a_server_that_refuses_logprobs_is_asked_without(server, asks, waits, status):
    def strict(asked):
        if "logprobs" in asked:
            return refusal(status, "logprobs is not supported here")
        return completion("[1]")

    server.script = [strict]
    small = asks()
    assert [small.decide(ASKED, 1).p, small.decide(ASKED, 1).p] == [[1.0], [1.0]]
    # refused once, then known
    assert ["logprobs" in asked for asked in server.asked] == [True, False, False]
    assert waits == []


def test_a_server_that_calls_the_limit_by_another_name(server, asks):
    def newer(asked):
        if "max_tokens" in asked:
            return refusal(400, "use 'max_completion_tokens' instead of 'max_tokens'")
        return completion("a")

    server.script = [newer]
    assert asks().write(ASKED, 7).text == "a"
    assert server.asked[-1]["max_completion_tokens"] == 7


# --- what goes wrong ------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", None, "I refuse", "[1, 0]", "[1, 0, 1, 1]", "[a, b, c]"])
def test_nonsense_and_wrong_lengths_have_no_probabilities(server, asks, text):
    server.script = [completion(text)]
    assert asks().decide(ASKED, 3).p == ()


@pytest.mark.parametrize(
    "body", [{}, [], {"choices": []}, {"choices": [{}]}, {"choices": None}, {"choices": ["a"]}, 7]
)
def test_what_is_no_completion_is_a_failure(server, asks, body):
    server.script = [(200, body, {})]
    with pytest.raises(NoAnswerError, match="no chat completion"):
        asks().write(ASKED, 7)


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503])
def test_errors_that_pass_are_tried_again_after_longer_and_longer(server, asks, waits, status):
    server.script = [refusal(status), refusal(status), completion("a")]
    assert asks().write(ASKED, 7).text == "a"
    assert waits == [1, 2]


def test_errors_that_do_not_pass_are_a_failure(server, asks, waits):
    server.script = [refusal(503)]
    with pytest.raises(NoAnswerError, match="no answer after 3 tries"):
        asks().write(ASKED, 7)
    assert len(server.asked) == 3
    assert waits == [1, 2]


def test_what_an_error_says_of_logprobs_matters_where_they_were_asked_for(server, asks, waits):
    server.script = [refusal(500, "logprobs worker died"), completion("a")]
    assert asks().write(ASKED, 7).text == "a"


def test_retry_after_is_honoured(server, asks, waits):
    soon = email.utils.formatdate(time.time() + 40, usegmt=True)
    server.script = [
        refusal(429, Retry_After="17"),
        refusal(503, Retry_After=soon),
        completion("a"),
    ]
    assert asks().write(ASKED, 7).text == "a"
    assert waits == [17, pytest.approx(39, abs=2)]


def test_a_retry_after_that_is_nonsense_is_not(server, asks, waits):
    server.script = [refusal(429, Retry_After="later"), completion("a")]
    asks().write(ASKED, 7)
    assert waits == [1]


def test_a_server_that_asks_to_wait_for_an_hour_ends_the_run(server, asks, waits):
    server.script = [refusal(429, Retry_After="3600")]
    with pytest.raises(FeatureError, match="asks to wait 3600 s"):
        asks().write(ASKED, 7)
    assert waits == []


def test_a_slow_server_is_left_and_tried_again(server, asks):
    def slow(_):
        # sleeping is what the test has taken out
        threading.Event().wait(0.4)
        return completion("late")

    server.script = [slow, completion("a")]
    assert asks(timeout=0.1).write(ASKED, 7).text == "a"


def test_a_reply_that_is_cut_or_no_json_is_tried_again(server, asks):
    whole = json.dumps(completion("a")[1]).encode()
    server.script = [
        (200, b"<html>", {}),
        (200, b"\xff\xfe", {}),
        (200, whole, {"Content-Length": 2 * len(whole), "Connection": "close"}),
        completion("a"),
    ]
    assert asks(retries=3).write(ASKED, 7).text == "a"


def test_a_server_that_is_away_ends_the_run(waits):
    small = Endpoint("http://127.0.0.1:9/v1", "small", retries=0)
    for _ in range(4):
        with pytest.raises(NoAnswerError):
            small.write(ASKED, 7)
    with pytest.raises(FeatureError, match="5 prompts in a row without an answer"):
        small.write(ASKED, 7)


def test_a_prompt_that_is_too_long_is_one_failure(server, asks):
    server.script = [refusal(400, "context of 4096 exceeded"), completion("a")]
    small = asks()
    with pytest.raises(NoAnswerError, match="HTTP 400"):
        small.write(ASKED, 7)
    assert small.write(ASKED, 7).text == "a"


def test_a_server_that_takes_no_prompt_ends_the_run_with_what_it_says(server, asks):
    server.script = [refusal(400, "temperature must be 1")]
    small = asks()
    for _ in range(4):
        with pytest.raises(NoAnswerError):
            small.write(ASKED, 7)
    with pytest.raises(FeatureError, match="temperature must be 1"):
        small.write(ASKED, 7)


@pytest.mark.parametrize("status, remedy", [(401, "right?"), (403, "may the key"), (404, "/v1")])
def test_a_refusal_ends_the_run_at_once(server, asks, status, remedy):
    server.script = [refusal(status, "go away")]
    with pytest.raises(FeatureError) as error:
        asks().write(ASKED, 7)
    assert remedy in str(error.value)
    assert "go away" in str(error.value)
    assert len(server.asked) == 1


# --- the key --------------------------------------------------------------------------------------


@pytest.fixture
def keyed(asks, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    return asks(key_variable="JUDGE_KEY")


def test_the_key_is_sent(server, keyed):
    server.script = [completion("a")]
    keyed.write(ASKED, 7)
    assert server.headers[0][1]["Authorization"] == f"Bearer {KEY}"


def test_the_key_is_read_when_it_is_used(server, keyed, monkeypatch):
    server.script = [completion("a")]
    monkeypatch.setenv("JUDGE_KEY", "another")
    keyed.write(ASKED, 7)
    assert server.headers[0][1]["Authorization"] == "Bearer another"


def test_the_key_turns_up_nowhere(server, keyed, tmp_path, capsys):
    escaped = KEY.replace("/", "\\/").encode()
    server.script = [
        completion(f"Description: {KEY}", model=f"m-{KEY}"),
        refusal(429, f"slow down, {KEY}"),
        completion(f"[1] {KEY}"),
        (401, b'{"error": "wrong key: ' + escaped + b'"}', {}),
    ]
    judge = LanguageJudge(keyed, ["a", " b"], Answers(tmp_path / "answers"), 1, 2)
    some = Windows(np.array([[0, 1]]), np.array([[0, 1.0]], np.float32))
    assert judge.explain(some, 9) == Explanation("(key)")
    judge.detect(Explanation("b"), some)
    with pytest.raises(FeatureError) as error:
        judge.detect(Explanation("c"), some)
    assert "wrong key: (key)" in str(error.value)
    kept = b"".join(file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())
    told = [
        kept.decode(errors="replace"),
        capsys.readouterr().out,
        str(judge.identity()),
        str(judge.tally),
        repr(vars(keyed)),
        str(error.value),
    ]
    assert b"(key)" in kept
    assert not any(KEY in text or escaped.decode() in text for text in told)


@pytest.mark.parametrize("value", ["", "  ", "one\ntwo", "ключ"])
def test_a_key_that_is_missing_or_cannot_be_sent(server, keyed, monkeypatch, value):
    monkeypatch.setenv("JUDGE_KEY", value)
    with pytest.raises(FeatureError, match="JUDGE_KEY") as error:
        keyed.write(ASKED, 7)
    assert not value.strip() or value not in str(error.value)
    assert server.asked == []


def test_the_key_does_not_follow_to_another_server(server, keyed):
    server.script = [refusal(302, Location=server.url + "/elsewhere"), completion("a")]
    with pytest.raises(FeatureError, match="HTTP 302"):
        keyed.write(ASKED, 7)
    assert len(server.asked) == 1


# --- together -------------------------------------------------------------------------------------


def test_a_last_prompt_of_fewer_windows(server, asks, tmp_path):
    def says(asked):
        lines = asked["messages"][-1]["content"].split("\n\n")[1].split("\n")
        return completion(str([int(" b" in line) for line in lines]))

    server.script = [says]
    ids = np.array([[0, i % 2] for i in range(7)])
    judge = LanguageJudge(asks(), ["a", " b"], Answers(tmp_path / "answers"), 1, 7)
    found = judge.detect(Explanation("b"), Windows(ids, np.zeros(ids.shape, np.float32)))
    assert found == [0, 1, 0, 1, 0, 1, 0]
    sizes = [asked["messages"][-1]["content"].count("\n") - 1 for asked in server.asked]
    assert sizes == [5, 2]


@pytest.mark.parametrize(
    "url",
    [
        "localhost:8000",
        "ftp://host/v1",
        "http://",
        "http://host:port/v1",
        "http://name:word@host/v1",
        "https://host/v1?key=word",
    ],
)
def test_urls_that_are_refused(url):
    with pytest.raises(FeatureError) as error:
        Endpoint(url, "small")
    assert "word" not in str(error.value)


@pytest.mark.parametrize("options", [{"at_once": 0}, {"retries": -1}, {"timeout": 0}])
def test_settings_that_are_refused(options):
    with pytest.raises(FeatureError, match=next(iter(options))):
        Endpoint("http://host/v1", "small", **options)
