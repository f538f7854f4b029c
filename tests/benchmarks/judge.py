"""Let a model judge the stored test responses, and keep its replies in `data/`.

    pip install xllamacpp
    python -m tests.benchmarks.judge

serves the workshop's own model with llama.cpp on this computer and asks it everything that
notebook 06 analyses. With `--model NAME` it asks the server at OPENAI_BASE_URL (by default Ollama)
instead. Interrupted, it goes on where it stopped.
"""

import argparse
from dataclasses import replace

from supplementary.data import ROOT
from supplementary.download import fetch_default_model
from supplementary.judge import GRADES, Judge, collect_replies, grading_prompts, pairing_prompts
from supplementary.reports import load_responses

RESPONSES = ROOT / "data" / "test-responses.json"
REPLIES = ROOT / "data" / "judge-replies.jsonl"
LOCAL = "SmolLM2-135M-Instruct.Q4_1 (llama.cpp)"


def main() -> None:
    """Ask for free grades, forced grades, preferences in both orders, and grades once more."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="ask this model instead of serving the workshop's own")
    name = parser.parse_args().model
    server = None if name else _serve()
    judge = Judge(name or LOCAL, base_url=f"{server.listening_address}/v1" if server else None)
    grader, voter = replace(judge, choices=GRADES), replace(judge, choices=("A", "B"))
    warm = replace(grader, temperature=0.7)
    rows = load_responses(RESPONSES)
    grading = grading_prompts(rows)
    after = {name: prompt for name, prompt in grading.items() if name.startswith("after")}
    collect_replies(judge, after, REPLIES, progress=True)
    collect_replies(grader, grading, REPLIES, progress=True)
    collect_replies(voter, pairing_prompts(rows), REPLIES, progress=True)
    for seed in range(3):
        collect_replies(warm, after, REPLIES, seed=seed, progress=True)


def _serve():
    """Start llama.cpp's server with the workshop's model."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(fetch_default_model())
    params.n_ctx = 2048
    return xllamacpp.Server(params)


if __name__ == "__main__":
    main()
