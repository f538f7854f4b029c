"""The judge, against a real server on this computer that misbehaves on purpose."""

import itertools
import json
import random
import socket
import ssl
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from supplementary.data import DATA
from supplementary.judge import (
    GRADES,
    Judge,
    collect_replies,
    grading_prompts,
    pair_prompt,
    pairing_prompts,
    parse_preference,
    parse_score,
    rubric_prompt,
)
from supplementary.reports import load_responses

ROW = {
    "instruction": "Convert the length.",
    "input": "12 km in meters",
    "output": "12,000 m",
    "response_before": "about 7 miles",
    "response_after": "12000 meters",
}


class Server(ThreadingHTTPServer):
    """A server of OpenAI's chat API.

    `script` holds what to do with the next requests, in order, and then `last` holds for all that
    follow; `requests` holds what was asked.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}/v1"
        self.script = []
        self.last = answer
        self.requests = []
        self.before_reply = lambda: None
        self.closing = threading.Event()

    @property
    def asked(self):
        return [body["messages"][0]["content"] for _, _, body in self.requests]


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append((self.path, self.headers, body))
        self.server.before_reply()
        behave = self.server.script.pop(0) if self.server.script else self.server.last
        behave(self, body)

    def log_message(self, *arguments):
        pass


def send(handler, body, status=200, kind="application/json", length=None):
    data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
    handler.send_response(status)
    handler.send_header("Content-Type", kind)
    handler.send_header("Content-Length", str(length or len(data)))
    handler.send_header("retry-after-ms", "1")  # or the client pauses for half a second
    handler.end_headers()
    handler.wfile.write(data)


def completion(content):
    message = {"role": "assistant", "content": content}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return {"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}


def answer(handler, body, text=None):
    """Reply as a server should: with `text`, or else with words that tell the prompt."""
    text = f"reply to {body['messages'][0]['content']}" if text is None else text
    send(handler, completion(text))


def give(body, **settings):
    """Return a behaviour that sends `body`, a text or something to be written as JSON."""
    return lambda handler, _: send(handler, body, **settings)


def cut_off(handler, body):
    """Promise more bytes than come, then close the connection."""
    send(handler, json.dumps(completion("Score: 4"))[:60], length=1000)


def hang_up(handler, body):
    """Close the connection without a word."""


def dawdle(handler, body):
    """Say nothing until the test is over."""
    handler.server.closing.wait(20)


failing = give({"error": {"message": "out of memory", "type": "server_error"}}, status=500)

BAD = {
    "500": failing,
    "404": give({"error": {"message": "model 'm' not found"}}, status=404),
    "HTML": give("<html><body>Log in</body></html>", kind="text/html"),
    "HTML that calls itself JSON": give("<html><body>Log in</body></html>"),
    "broken JSON": give(json.dumps(completion("Score: 4"))[:-9]),
    "no body": give(""),
    "JSON null": give(None),
    "a JSON list": give([completion("Score: 4")]),
    "a JSON string": give("Score: 4"),
    "no choices": give({"id": "1", "object": "chat.completion"}),
    "choices null": give({"choices": None}),
    "empty choices": give({"choices": []}),
    "a choice that is null": give({"choices": [None]}),
    "a choice without message": give({"choices": [{"index": 0}]}),
    "choices that are an object": give({"choices": {"message": {"content": "Score: 4"}}}),
    "content that is a list": give(completion([{"type": "text", "text": "Score: 4"}])),
    "content that is a number": give(completion(4)),
    "connection closed in the body": cut_off,
    "connection closed at once": hang_up,
}


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch):
    """No setting of whoever runs the tests reaches the client."""
    for name in ("OPENAI_BASE_URL", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "*")
    # Every client reads the system's certificates, which takes longer than all else here.
    monkeypatch.setattr(ssl.SSLContext, "load_verify_locations", lambda *_, **__: None)


@pytest.fixture
def server():
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.closing.set()
        running.shutdown()
        thread.join()


@pytest.fixture
def judge(server):
    return Judge("m", base_url=server.url, timeout=20, retries=0)


@contextmanager
def closed_address():
    """Give an address where nobody listens, and keep others from listening there."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}/v1"


@pytest.fixture
def closed():
    with closed_address() as address:
        yield address


@pytest.fixture
def path(tmp_path):
    return tmp_path / "new folder" / "replies.jsonl"


def numbered(count):
    return {f"entry {i}": f"prompt {i}" for i in range(count)}


def replies_to(prompts):
    return {name: f"reply to {prompt}" for name, prompt in prompts.items()}


def stored(path):
    """Return name and reply of each line of the file; every line must be whole."""
    text = path.read_text(encoding="utf-8")
    assert text == "" or text.endswith("\n")
    lines = [json.loads(line) for line in text.split("\n")[:-1]]
    return {line["name"]: line["reply"] for line in lines}


# One request


def test_request_carries_model_settings_and_the_prompt_as_the_users_message(server, judge):
    judge = replace(judge, model="llama3:8b", temperature=0.7, max_tokens=5)
    assert judge.ask("How good is “Zoë”?", seed=42) == "reply to How good is “Zoë”?"
    ((route, headers, body),) = server.requests
    assert route == "/v1/chat/completions"
    assert headers["Authorization"] == "Bearer none"
    assert body == {
        "model": "llama3:8b",
        "messages": [{"role": "user", "content": "How good is “Zoë”?"}],
        "temperature": 0.7,
        "max_tokens": 5,
        "seed": 42,
    }


def test_unset_settings_ask_for_the_likeliest_reply(server, judge):
    judge.ask("Hi")
    ((_, _, body),) = server.requests
    assert (body["temperature"], body["max_tokens"], body["seed"]) == (0, 24, 0)


def test_address_is_ollamas_unless_the_environment_or_the_caller_names_one(monkeypatch):
    assert Judge("m").url == "http://localhost:11434/v1"
    monkeypatch.setenv("OPENAI_BASE_URL", "")
    assert Judge("m").url == "http://localhost:11434/v1"
    monkeypatch.setenv("OPENAI_BASE_URL", "http://there:1/v1")
    assert Judge("m").url == "http://there:1/v1"
    assert Judge("m", base_url="http://here:2/v1").url == "http://here:2/v1"


def test_address_of_the_environment_is_asked(server, monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    assert Judge("m", timeout=20, retries=0).ask("Hi") == "reply to Hi"


def test_address_of_the_caller_wins_over_the_environment(server, judge, closed, monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", closed)
    assert judge.ask("Hi") == "reply to Hi"
    with pytest.raises(OSError, match=closed):
        Judge("m", timeout=20, retries=0).ask("Hi")
    assert server.asked == ["Hi"]


def test_key_of_the_environment_is_sent(server, judge, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    judge.ask("Hi")
    assert server.requests[0][1]["Authorization"] == "Bearer secret"


def test_an_absent_server_is_an_os_error_with_its_address(closed):
    with pytest.raises(OSError, match=f"the judge at {closed} failed"):
        Judge("m", base_url=closed, retries=0).ask("Hi")


@pytest.mark.parametrize("address", ["localhost:11434/v1", "http://localhost:port/v1", "http://["])
def test_an_address_that_is_none_is_an_os_error(address):
    with pytest.raises(OSError, match="the judge at ") as caught:
        Judge("m", base_url=address, retries=0).ask("Hi")
    assert address in str(caught.value)


def test_a_slow_server_is_given_up_after_the_timeout(server, judge):
    server.last = dawdle
    start = time.monotonic()
    with pytest.raises(OSError, match=f"the judge at {server.url} failed"):
        replace(judge, timeout=0.2).ask("Hi")
    assert 0.2 <= time.monotonic() - start < 10


def test_a_request_that_failed_once_is_repeated(server, judge):
    server.script = [failing]
    assert replace(judge, retries=1).ask("Hi") == "reply to Hi"
    assert server.asked == ["Hi", "Hi"]


def test_a_request_is_repeated_no_more_often_than_allowed(server, judge):
    server.last = failing
    with pytest.raises(OSError):
        replace(judge, retries=2).ask("Hi")
    assert server.asked == ["Hi"] * 3


@pytest.mark.parametrize("content", [None, ""])
def test_a_reply_without_words_is_empty_and_counts_as_a_reply(server, judge, path, content):
    server.last = give(completion(content))
    assert collect_replies(judge, numbered(1), path) == {"entry 0": ""}
    assert collect_replies(judge, numbered(1), path) == {"entry 0": ""}
    assert len(server.asked) == 1


# Many requests


def test_every_reply_is_in_the_file_before_the_next_request_is_sent(server, judge, path):
    seen = []
    server.before_reply = lambda: seen.append(stored(path))
    prompts = numbered(4)
    expected = replies_to(prompts)
    assert collect_replies(judge, prompts, path) == expected
    assert seen == [dict(list(expected.items())[:i]) for i in range(4)]
    assert stored(path) == expected


def test_a_second_call_asks_only_what_is_missing(server, judge, path):
    first = collect_replies(judge, numbered(2), path)
    assert collect_replies(judge, numbered(4), path) == replies_to(numbered(4))
    assert server.asked == ["prompt 0", "prompt 1", "prompt 2", "prompt 3"]
    before = path.read_bytes()
    assert collect_replies(judge, numbered(2), str(path)) == first
    assert len(server.asked) == 4
    assert path.read_bytes() == before


def test_nothing_to_ask_asks_nothing(closed, path):
    assert collect_replies(Judge("m", base_url=closed), {}, path) == {}


def test_equal_prompts_are_asked_once(server, judge, path):
    assert collect_replies(judge, {"a": "same", "b": "same"}, path) == dict.fromkeys(
        "ab", "reply to same"
    )
    assert server.asked == ["same"]


CHANGES = {
    "prompt": lambda judge, ask: ask(judge, {"entry 0": "prompt 0 "}),
    "seed": lambda judge, ask: ask(judge, seed=1),
    "model": lambda judge, ask: ask(replace(judge, model="n")),
    "temperature": lambda judge, ask: ask(replace(judge, temperature=0.7)),
    "max_tokens": lambda judge, ask: ask(replace(judge, max_tokens=25)),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_another_prompt_seed_or_judge_is_asked_anew_and_the_old_reply_is_kept(
    server, judge, path, change
):
    def ask(judge, prompts=None, seed=0):
        return collect_replies(judge, prompts or numbered(1), path, seed)["entry 0"]

    server.script = [partial(answer, text="old"), partial(answer, text="new")]
    assert ask(judge) == "old"
    assert change(judge, ask) == "new"
    assert ask(judge) == "old"
    assert change(judge, ask) == "new"
    assert len(server.asked) == 2


def test_what_leaves_the_reply_as_it_is_asks_nothing_anew(server, judge, path, closed):
    first = collect_replies(judge, numbered(1), path)
    for same in (
        replace(judge, base_url=closed),
        replace(judge, timeout=1),
        replace(judge, retries=1),
    ):
        assert collect_replies(same, numbered(1), path) == first
    renamed = collect_replies(judge, {"other name": "prompt 0"}, path)
    assert renamed == {"other name": "reply to prompt 0"}
    assert len(server.asked) == 1


def test_equal_judges_share_their_replies(server, judge, path):
    same = replace(judge, temperature=0)
    assert same == judge  # whose temperature is 0.0
    assert collect_replies(judge, numbered(1), path) == collect_replies(same, numbered(1), path)
    assert len(server.asked) == 1


def test_three_failures_in_a_row_end_the_call_and_lose_no_reply(server, judge, path):
    server.script = [answer, answer]
    server.last = failing
    with pytest.raises(OSError) as caught:
        collect_replies(judge, numbered(9), path)
    assert len(server.asked) == 5
    for part in (server.url, "out of memory", "OPENAI_BASE_URL", "the 2 replies", str(path)):
        assert part in str(caught.value)
    assert stored(path) == replies_to(numbered(2))

    server.last = answer
    assert collect_replies(judge, numbered(9), path) == replies_to(numbered(9))
    assert server.asked[5:] == [f"prompt {i}" for i in range(2, 9)]


@pytest.mark.parametrize("kind", ["absent", "slow"])
def test_a_server_that_is_gone_takes_no_reply_with_it(server, judge, closed, path, kind):
    collect_replies(judge, numbered(1), path)
    server.last = dawdle
    gone = {
        "absent": replace(judge, base_url=closed),
        "slow": replace(judge, timeout=0.2),
    }[kind]
    with pytest.raises(OSError, match=f"{gone.url} .* the 1 replies"):
        collect_replies(gone, numbered(4), path)
    assert stored(path) == replies_to(numbered(1))
    server.last = answer
    assert collect_replies(judge, numbered(2), path) == replies_to(numbered(2))
    assert server.asked[-1] == "prompt 1" and server.asked.count("prompt 0") == 1


def test_a_success_resets_the_count_of_failures(server, judge, path):
    server.script = [failing, failing, answer, failing, failing, answer, failing, failing]
    prompts = numbered(8)
    replies = collect_replies(judge, prompts, path)
    assert replies == {f"entry {i}": f"reply to prompt {i}" for i in (2, 5)}
    assert stored(path) == replies
    assert collect_replies(judge, prompts, path) == replies_to(prompts)
    assert server.asked[8:] == [f"prompt {i}" for i in (0, 1, 3, 4, 6, 7)]


def test_a_reply_of_an_earlier_call_does_not_reset_the_count_of_failures(server, judge, path):
    collect_replies(judge, {"entry 2": "prompt 2"}, path)
    server.last = failing
    with pytest.raises(OSError, match="the 1 replies"):
        collect_replies(judge, numbered(9), path)
    assert server.asked[1:] == ["prompt 0", "prompt 1", "prompt 3"]


@pytest.mark.parametrize("behave", BAD.values(), ids=BAD)
def test_a_server_that_misbehaves_counts_as_gone_and_no_reply_is_lost(server, judge, path, behave):
    server.script = [answer]
    server.last = behave
    with pytest.raises(
        OSError, match=f"the judge at {server.url} failed .* the 1 replies"
    ) as caught:
        collect_replies(judge, numbered(9), path)
    assert str(path) in str(caught.value)
    assert stored(path) == replies_to(numbered(1))
    assert server.asked == [f"prompt {i}" for i in range(4)]


def test_an_interruption_loses_no_reply(server, judge, path):
    class Interrupted(dict):
        def __getitem__(self, name):
            if name == "entry 2":
                raise KeyboardInterrupt
            return super().__getitem__(name)

    with pytest.raises(KeyboardInterrupt):
        collect_replies(judge, Interrupted(numbered(4)), path)
    assert stored(path) == replies_to(numbered(2))


# The file of replies

ODD = {
    "lines": "Score: 4\nbecause\r\nit is right\r",
    "other scripts": "Оценка: 4 — très bien 😀",
    "separators of lines and paragraphs": "one\u2028two\u2029three\x85four\x0b\x0c\x1c\x1efive",
    "JSON": '{"mark": "x"}\n',
    "half a surrogate pair": "\ud83d",
}


@pytest.mark.parametrize("text", ODD.values(), ids=ODD)
def test_a_reply_comes_back_from_the_file_as_it_was(server, judge, path, text):
    server.last = partial(answer, text=text)
    assert collect_replies(judge, numbered(2), path) == dict.fromkeys(numbered(2), text)
    assert collect_replies(judge, numbered(2), path) == dict.fromkeys(numbered(2), text)
    assert len(server.asked) == 2


def test_a_torn_last_line_is_dropped_and_asked_again(server, judge, path):
    replies = collect_replies(judge, numbered(2), path)
    whole = path.read_bytes()
    for missing in (1, 2, 40):  # of which the first is the line's end
        path.write_bytes(whole[:-missing])
        assert collect_replies(judge, numbered(2), path) == replies
        assert path.read_bytes() == whole
    assert server.asked == ["prompt 0"] + ["prompt 1"] * 4


def test_a_last_line_may_be_torn_at_any_byte(server, judge, path):
    server.last = partial(answer, text="4 — très bien 😀")
    collect_replies(judge, numbered(2), path)
    whole = path.read_bytes()
    start = whole.index(b"\n") + 1
    for cut in range(start + 1, len(whole)):
        path.write_bytes(whole[:cut])
        collect_replies(judge, numbered(1), path)
        assert path.read_bytes() == whole[:start]
    assert len(server.asked) == 2


def test_a_torn_line_is_dropped_even_if_the_server_is_gone(server, judge, path, closed):
    collect_replies(judge, numbered(2), path)
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"judge": "m", "na')
    with pytest.raises(OSError, match="the 2 replies"):
        collect_replies(replace(judge, base_url=closed), numbered(9), path)
    assert path.read_bytes() == whole


def test_a_file_of_one_torn_line_is_a_file_without_replies(server, judge, path):
    path.parent.mkdir()
    path.write_bytes(b'{"judge": "m"')
    assert collect_replies(judge, numbered(1), path) == replies_to(numbered(1))
    assert stored(path) == replies_to(numbered(1))


DAMAGE = {
    "half a line": b'{"judge": "m", "na',
    "an empty line": b"",
    "bytes of no text": b'{"mark": "\xff"}',
    "zeros": b"\0" * 20,
    "a line without mark": b'{"judge": "m", "reply": "Score: 4"}',
    "a line without reply": b'{"judge": "m", "mark": "0"}',
    "a number": b"4",
    "a reply that is no text": b'{"judge": "m", "name": "a", "mark": "0", "reply": 4}',
}


@pytest.mark.parametrize("line", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_line_in_the_middle_is_named_and_nothing_is_asked(server, judge, path, line):
    collect_replies(judge, numbered(2), path)
    first, second = path.read_bytes().splitlines(keepends=True)
    damaged = first + line + b"\n" + second
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match="line 2 is damaged; delete that line") as caught:
        collect_replies(judge, numbered(3), path)
    assert str(path) in str(caught.value)
    assert len(server.asked) == 2
    assert path.read_bytes() == damaged

    path.write_bytes(first + second)  # as the message says
    assert collect_replies(judge, numbered(3), path) == replies_to(numbered(3))
    assert len(server.asked) == 3


# Reading replies


@pytest.mark.parametrize("grade", [1, 2, 3, 4, 5])
@pytest.mark.parametrize(
    "form",
    [
        "Score: {}",
        "{}",
        " {}.\n",
        "{}/5",
        "{} / 5.",
        "**{}**",
        "**Score:** {}",
        "**Score: {}**",
        "score {}",
        "SCORE={}",
        "Score : {}.",
        "Score:{}/5",
        "Score: {}/5.",
        "Score:\n{}",
        "Score: {} (right, with a small flaw)",
        "The score is {}.",
        "The response is right.\n\nScore: {}",
        "Score: {}\nScore: {}",
        "There are 3 flaws of 17. Score: {}",
    ],
)
def test_a_grade_is_read_in_many_forms(form, grade):
    assert parse_score(form.replace("{}", str(grade))) == grade


@pytest.mark.parametrize(
    "reply",
    [
        "",
        " \n",
        "Score:",
        "Score: N",
        "Score: 0",
        "Score: 6",
        "Score: 10",
        "Score: 45",
        "Score: 4.5",
        "Score: -4",
        "Score: four",
        "6",
        "0",
        "-4",
        "45",
        "4.5",
        "4/10",
        "4 5",
        "4/55",
        "Score: 2\nScore: 3",
        "Score: 4. No, score: 6",
        "Scores: 2 or 3",
        "Score: 2 or 3",
        "Score: 3-4",
        "Score: 4,5",
        "Score: 4/10",
        "The response has 4 flaws.",
        "I would grade this as good.",
        "underscore 4",
        "Score: ४",
        "④",
    ],
)
def test_a_reply_without_exactly_one_grade_has_none(reply):
    assert parse_score(reply) is None


@pytest.mark.parametrize(
    ("reply", "preferred"),
    [
        ("A", "A"),
        ("B", "B"),
        (" B.\n", "B"),
        ("**A**", "A"),
        ("(B)", "B"),
        ("Response B", "B"),
        ("Response A is better.", "A"),
        ("The better response is B.", "B"),
        ("A\nA", "A"),
        ("B: it is right and short", "B"),
    ],
)
def test_a_preference_is_read_in_many_forms(reply, preferred):
    assert parse_preference(reply) == preferred


@pytest.mark.parametrize(
    "reply",
    [
        "",
        " \n",
        "A or B",
        "Both A and B are right.",
        "AB",
        "C",
        "Neither",
        "a",
        "All right",
        "Better",
        "BA",
        "Α",  # a Greek letter
        "A tie.",
    ],
)
def test_a_reply_without_exactly_one_preference_has_none(reply):
    assert parse_preference(reply) is None


WORDS = ["Score", "score", "is", ":", "*", "/5", ".", " ", "\n", "0", "4", "5", "½", "A", "B"]


def test_every_text_is_read_as_what_it_says_or_as_nothing():
    draw = random.Random(0)
    characters = [chr(code) for code in range(sys.maxunicode + 1)]
    texts = [f"Score: {c}" for c in characters if c.isnumeric()]
    texts += [
        "".join(words) for size in range(4) for words in itertools.product(WORDS, repeat=size)
    ]
    texts += ["".join(draw.choices(characters, k=draw.randrange(30))) for _ in range(500)]
    for text in texts:
        grade, preferred = parse_score(text), parse_preference(text)
        assert grade is None or (grade in range(1, 6) and str(grade) in text), text
        assert preferred is None or (preferred in ("A", "B") and preferred in text), text


# Prompts


def test_rubric_holds_task_reference_and_response_under_their_headings():
    prompt = rubric_prompt(ROW, "12 kilometers")
    assert "### Task\nConvert the length.\n12 km in meters\n\n" in prompt
    assert "### Reference response\n12,000 m\n\n" in prompt
    assert "### Student's response\n12 kilometers\n\n" in prompt
    assert prompt.endswith("Score: N")
    assert "{" not in prompt


def test_pair_holds_task_reference_and_both_responses_in_the_order_given():
    prompt = pair_prompt(ROW, "12 kilometers", "7 miles")
    assert "### Task\nConvert the length.\n12 km in meters\n\n" in prompt
    assert "### Reference response\n12,000 m\n\n" in prompt
    assert "### Response A\n12 kilometers\n\n" in prompt
    assert "### Response B\n7 miles\n\n" in prompt
    assert prompt.endswith("A or B")
    assert "{" not in prompt


def test_an_empty_input_leaves_no_line():
    entry = ROW | {"input": ""}
    assert "### Task\nConvert the length.\n\n### Ref" in rubric_prompt(entry, "x")
    assert "### Task\nConvert the length.\n\n### Ref" in pair_prompt(entry, "x", "y")


@pytest.mark.parametrize(
    "text",
    ["{task}", "{response} {first} {0}", "{}", "{", "}", "{{}}", "%s %(task)s %", "$task \\1"],
)
def test_braces_and_format_characters_stay_as_they_are(text):
    entry = {"instruction": f"i {text}", "input": f"j {text}", "output": f"o {text}"}
    graded = rubric_prompt(entry, f"r {text}")
    paired = pair_prompt(entry, f"a {text}", f"b {text}")
    for prompt, words in ((graded, "ijor"), (paired, "ijoab")):
        assert [f"{word} {text}" in prompt.splitlines() for word in words] == [True] * len(words)
        assert prompt.count(text) >= len(words)
    plain = {"instruction": "i ", "input": "j ", "output": "o "}
    assert len(graded) == len(rubric_prompt(plain, "r ")) + 4 * len(text)
    assert len(paired) == len(pair_prompt(plain, "a ", "b ")) + 5 * len(text)


def test_every_response_is_graded_once_under_its_own_name():
    other = {"instruction": "Spell.", "input": "", "output": "c", "response_before": "a"}
    rows = [ROW, other | {"response_after": "b"}]
    assert grading_prompts(rows) == {
        "before 0": rubric_prompt(ROW, "about 7 miles"),
        "before 1": rubric_prompt(other, "a"),
        "after 0": rubric_prompt(ROW, "12000 meters"),
        "after 1": rubric_prompt(other, "b"),
    }
    assert grading_prompts([]) == {}


def test_every_pair_is_compared_in_both_orders():
    assert pairing_prompts([ROW, ROW]) == {
        f"{order} first {number}": pair_prompt(ROW, *texts)
        for order, texts in (
            ("before", ("about 7 miles", "12000 meters")),
            ("after", ("12000 meters", "about 7 miles")),
        )
        for number in (0, 1)
    }
    assert pairing_prompts([]) == {}


def test_the_stored_replies_answer_all_that_notebook_06_asks(tmp_path):
    replies = tmp_path / "replies.jsonl"
    replies.write_bytes((DATA.parent / "judge-replies.jsonl").read_bytes())
    name = json.loads(replies.read_text(encoding="utf-8").splitlines()[0])["judge"]
    judge = Judge(name, base_url="http://127.0.0.1:9/v1", retries=0)  # nobody listens there
    grader = replace(judge, choices=GRADES)
    grading = grading_prompts(load_responses(DATA.parent / "test-responses.json"))
    pairing = pairing_prompts(load_responses(DATA.parent / "test-responses.json"))
    after = {name: prompt for name, prompt in grading.items() if name.startswith("after")}
    assert collect_replies(judge, after, replies).keys() == after.keys()
    assert collect_replies(grader, grading, replies).keys() == grading.keys()
    voter = replace(judge, choices=("A", "B"))
    assert collect_replies(voter, pairing, replies).keys() == pairing.keys()
    for seed in range(3):
        warm = replace(grader, temperature=0.7)
        assert collect_replies(warm, after, replies, seed=seed).keys() == after.keys()


def test_choices_are_sent_as_a_schema_and_make_another_judge(server, judge, tmp_path):
    forced = replace(judge, choices=GRADES)
    collect_replies(judge, {"a": "x"}, tmp_path / "r.jsonl")
    collect_replies(forced, {"a": "x"}, tmp_path / "r.jsonl")
    bodies = [body for _, _, body in server.requests]
    assert len(bodies) == 2 and "response_format" not in bodies[0]
    assert bodies[1]["response_format"]["json_schema"]["schema"] == {"enum": list(GRADES)}
