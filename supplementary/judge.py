"""A language model as judge: prompts, a client that loses nothing, and strict reading of replies.

Any server that speaks OpenAI's chat API will do; `OPENAI_BASE_URL` names it, and without that it is
Ollama on this computer.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tqdm.auto import tqdm

from .files import whole_file
from .prompts import Entry, user_text

OLLAMA = "http://localhost:11434/v1"
GRADES = ("1", "2", "3", "4", "5")
_GIVE_UP = 3  # failed requests in a row after which the server counts as gone

RUBRIC = """You grade a student's response to a task. Compare it with the reference response.
Other wordings and other right answers are as good as the reference.

### Task
{task}

### Reference response
{reference}

### Student's response
{response}

### Grades
5: right and complete, in the form asked for
4: right, with a small flaw of form or wording
3: partly right
2: mostly wrong
1: wrong, empty, or about something else

Reply with one line and nothing else: Score: N"""

PAIR = """Two students responded to the same task. Which response is better?
Judge by the reference response; length does not count.

### Task
{task}

### Reference response
{reference}

### Response A
{first}

### Response B
{second}

Reply with one letter and nothing else: A or B"""


@dataclass(frozen=True)
class Judge:
    """A model behind a server.

    Args:
        model: the name by which the server knows it.
        base_url: the server's address; None for `OPENAI_BASE_URL`, or else Ollama on this computer.
        timeout: seconds after which a request counts as failed.
        retries: how often a failed request is repeated, with growing pauses.
        temperature: 0 for the likeliest reply.
        max_tokens: most tokens of a reply.
        choices: if given, the server is made to reply with one of these (structured output, as a
            JSON schema); else the reply is free.
    """

    model: str
    base_url: str | None = None
    timeout: float = 60.0
    retries: int = 2
    temperature: float = 0.0
    max_tokens: int = 24
    choices: tuple[str, ...] | None = None

    @property
    def url(self) -> str:
        """The server's address."""
        return self.base_url or os.environ.get("OPENAI_BASE_URL") or OLLAMA

    def ask(self, prompt: str, seed: int = 0) -> str:
        """Return the reply to one prompt.

        Args:
            prompt: the user's message.
            seed: of the sampling, for servers that heed it; matters if the temperature is not 0.

        Raises:
            OSError: if the server cannot be reached, takes too long, fails, or answers nonsense.
        """
        import openai

        key = os.environ.get("OPENAI_API_KEY") or "none"  # servers on this computer want no key
        settings = {"timeout": self.timeout, "max_retries": self.retries}
        form = {}
        if self.choices:
            schema = {"name": "choice", "schema": {"enum": self.choices}}
            form = {"response_format": {"type": "json_schema", "json_schema": schema}}
        try:
            with openai.OpenAI(base_url=self.url, api_key=key, **settings) as client:
                answer = client.chat.completions.create(
                    model=self.model,
                    messages=[{"role": "user", "content": prompt}],
                    temperature=self.temperature,
                    max_tokens=self.max_tokens,
                    seed=seed,
                    **form,
                )
            reply = answer.choices[0].message.content
        except Exception as error:  # no address, no server, no JSON, JSON of another form
            raise OSError(f"the judge at {self.url} failed ({error})") from error
        if not isinstance(reply, str | None):
            raise OSError(f"the judge at {self.url} failed (its reply is no text: {reply!r})")
        return reply or ""


def rubric_prompt(entry: Entry, response: str) -> str:
    """Return the prompt that asks for a grade from 1 to 5."""
    return RUBRIC.format(task=user_text(entry), reference=entry["output"], response=response)


def pair_prompt(entry: Entry, first: str, second: str) -> str:
    """Return the prompt that asks which of two responses is better, A (the first) or B."""
    return PAIR.format(task=user_text(entry), reference=entry["output"], first=first, second=second)


def grading_prompts(rows: list[dict]) -> dict[str, str]:
    """Return the prompts that grade every response before and after finetuning, by name."""
    return {
        f"{when} {number}": rubric_prompt(row, row[f"response_{when}"])
        for when in ("before", "after")
        for number, row in enumerate(rows)
    }


def pairing_prompts(rows: list[dict]) -> dict[str, str]:
    """Return the prompts that compare the two responses of every row, each in both orders."""
    orders = {"before first": ("before", "after"), "after first": ("after", "before")}
    return {
        f"{name} {number}": pair_prompt(row, *(row[f"response_{when}"] for when in order))
        for name, order in orders.items()
        for number, row in enumerate(rows)
    }


def parse_score(reply: str) -> int | None:
    """Read the grade of a reply: 1 to 5, or None if the reply gives none or more than one.

    >>> parse_score("Score: 4"), parse_score("**5**/5"), parse_score("Score: 2 or 3")
    (4, 5, None)
    """
    text = re.sub(r"(?<=[1-5])\s*/\s*5\b", "", reply.replace("*", ""))
    named = re.search(r"(?is)\bscore\b.*", text) or re.fullmatch(r"\W*[0-9]\W*", text)
    numbers = set(re.findall(r"-?[0-9]+(?:[.,/-][0-9]+)*", named[0])) if named else set()
    return int(numbers.pop()) if len(numbers) == 1 and numbers <= set(GRADES) else None


def parse_preference(reply: str) -> str | None:
    """Read which response is preferred: "A", "B", or None if the reply does not say one of them.

    >>> [parse_preference(reply) for reply in ("B.", "Response A is better.", "A or B")]
    ['B', 'A', None]
    """
    if re.search(r"(?i)\bnot\b", reply):
        return None
    named = re.findall(r"(?i:response|answer)\s+([AB])\b", reply)
    bare = re.findall(r"\b(B|A(?!\s+(?!(?:is|or|and)\b)[a-z]))\b", reply)  # not the article A
    found = {*named, *bare}
    return found.pop() if len(found) == 1 else None


def collect_replies(
    judge: Judge, prompts: dict[str, str], path: Path | str, seed: int = 0, progress: bool = False
) -> dict[str, str]:
    """Ask a judge everything that it has not answered yet; each reply is on disk before the next.

    A request that fails is left out; after three failures in a row the server counts as gone. Call
    again to ask what is missing.

    Args:
        judge: the judge.
        prompts: the prompts by a name for each.
        path: JSON Lines file of the replies; a reply counts if judge, seed and prompt are the same.
        seed: see `Judge.ask`.
        progress: whether to show a bar.

    Returns:
        The replies by name, without those of requests that failed.

    Raises:
        OSError: if the server is gone; the message says how many replies are kept, and where.
        ValueError: if a line of the file is damaged.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    marks = {name: _mark(judge, prompt, seed) for name, prompt in prompts.items()}
    kept = {line["mark"]: line["reply"] for line in _read_lines(path)}
    failed = 0
    with path.open("a", encoding="utf-8") as file:
        for name in tqdm(prompts, desc=judge.model, disable=not progress):
            if marks[name] in kept:
                continue
            try:
                reply = judge.ask(prompts[name], seed)
            except OSError as error:
                failed += 1
                if failed == _GIVE_UP:
                    raise OSError(
                        f"{error}; start the server or set OPENAI_BASE_URL, then run this again: "
                        f"the {len(kept)} replies so far are kept in {path}"
                    ) from error
                continue
            failed = 0
            kept[marks[name]] = reply
            line = {"judge": judge.model, "name": name, "mark": marks[name], "reply": reply}
            file.write(json.dumps(line) + "\n")
            file.flush()
    return {name: kept[mark] for name, mark in marks.items() if mark in kept}


def _mark(judge: Judge, prompt: str, seed: int) -> str:
    """Return a short mark of everything that a reply depends on."""
    parts = [judge.model, float(judge.temperature), judge.max_tokens, judge.choices, seed, prompt]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _read_lines(path: Path) -> Iterator[dict]:
    """Give the whole lines of a file; a last one that was cut off is dropped from the file."""
    if not path.exists():
        return
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        with whole_file(path) as beside:
            beside.write_bytes(whole)
    for number, line in enumerate(whole.split(b"\n")[:-1], start=1):
        try:
            row = json.loads(line)
            yield {"mark": row["mark"], "reply": row["reply"] + ""}
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}: line {number} is damaged; delete that line") from error
