"""The tokenizer: text to token ids and back, by byte-pair encoding (tiktoken).

A tokenizer is described by the contents of a Hugging Face `tokenizer.json`. `Tokenizer` turns such
a description, if it is a byte-level one, into a `tiktoken.Encoding` that gives the same ids.
"""

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import regex
import tiktoken

# The splitting pattern of GPT-2, which the byte-level pre-tokenizer of `tokenizers` applies.
_GPT2 = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# The same after digits have been split off one by one: a digit takes no space with it, and white
# space before a digit ends a piece, so it stays whole.
_DIGITS_THEN_GPT2 = (
    r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?=\p{N})|\s+(?!\S)|\s+"
)
_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
_DIGITS = {"type": "Digits", "individual_digits": True}
GGUF_PRE_TOKENIZERS = {  # the value of `tokenizer.ggml.pre` -> the steps of tokenizer.json
    "gpt-2": [_BYTE_LEVEL | {"use_regex": True}],
    "smollm": [_DIGITS, _BYTE_LEVEL | {"use_regex": True}],
}


def _byte_symbols() -> dict[str, int]:
    """Map the printable symbol that stands for a byte in a vocabulary to that byte.

    Source: https://github.com/openai/gpt-2, the function `bytes_to_unicode` (the mapping, not the
    code): printable Latin-1 bytes stand for themselves, the rest follow from U+0100 on.
    """
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in plain]
    return {chr(b): b for b in plain} | {chr(256 + i): b for i, b in enumerate(rest)}


def _pattern(pre_tokenizer: dict | None) -> str:
    if pre_tokenizer is None:
        raise ValueError("a tokenizer without a pre-tokenizer is not supported")
    steps = pre_tokenizer.get("pretokenizers", [pre_tokenizer])
    kinds = [step["type"] for step in steps]
    if kinds[-1:] == ["ByteLevel"]:
        first, last = steps[0], steps[-1]
        if last["add_prefix_space"]:
            raise ValueError("a tokenizer that adds a prefix space to its text is not supported")
        splits_words = last.get("use_regex", True)
        if kinds == ["ByteLevel"] and splits_words:
            return _GPT2
        if kinds == ["Digits", "ByteLevel"] and first["individual_digits"] and splits_words:
            return _DIGITS_THEN_GPT2
        if kinds == ["Split", "ByteLevel"] and not splits_words and _isolates(first):
            found = first["pattern"]["Regex"]
            return rf"{found}|(?:(?!{found})[\s\S])+"  # what it does not find are pieces too
    raise ValueError(
        f"this tokenizer splits text with {' + '.join(kinds)}, which is not supported; "
        "supported are byte-level tokenizers such as those of SmolLM2, GPT-2 and Llama 3"
    )


def _isolates(split: dict) -> bool:
    regular = "Regex" in split["pattern"]
    return regular and split["behavior"] == "Isolated" and not split["invert"]


@dataclass(frozen=True)
class Tokenizer:
    """A byte-level BPE tokenizer.

    Args:
        description: the contents of a `tokenizer.json` file.
        eos_token_id: the id of the end-of-text token; it also serves as padding.

    Raises:
        ValueError: on first use, if the description is not of a byte-level BPE tokenizer.
    """

    description: dict
    eos_token_id: int

    @property
    def pad_token_id(self) -> int:
        """The padding id: the end-of-text id, so padding has to be masked by length."""
        return self.eos_token_id

    @cached_property
    def eos_token(self) -> str:
        """The end-of-text token as text.

        Raises:
            ValueError: if there is no token of that id.
        """
        if self.eos_token_id >= self.vocab_size:
            raise ValueError(f"the end-of-text id {self.eos_token_id} is no token's id")
        return self.decode([self.eos_token_id])

    @cached_property
    def encoding(self) -> tiktoken.Encoding:
        """The `tiktoken.Encoding` that does the work."""
        model = self.description["model"]
        self._check_kind()
        special = {t["content"]: t["id"] for t in self.description["added_tokens"]}
        symbols = _byte_symbols()
        ranks = {
            bytes(symbols[symbol] for symbol in token): token_id
            for token, token_id in model["vocab"].items()
            if token not in special
        }
        self._check_merge_order(model)
        # Bytes without a token of their own get an id past the vocabulary; `encode` drops them.
        for byte in range(256):
            ranks.setdefault(bytes([byte]), self.vocab_size + byte)
        return tiktoken.Encoding(
            name="checkpoint",
            pat_str=_pattern(self.description["pre_tokenizer"]),
            mergeable_ranks=ranks,
            special_tokens=special,
        )

    def _check_kind(self) -> None:
        model = self.description["model"]
        vocab = set(model["vocab"]) - {t["content"] for t in self.description["added_tokens"]}
        wanted = {
            "model type": (model.get("type", "BPE"), "BPE"),
            "normalizer": (self.description["normalizer"], None),
            "byte_fallback": (model.get("byte_fallback") or False, False),
            "end_of_word_suffix": (model.get("end_of_word_suffix") or None, None),
            "continuing_subword_prefix": (model.get("continuing_subword_prefix") or None, None),
            "symbols that are no bytes": (sorted(set("".join(vocab)) - _byte_symbols().keys()), []),
        }
        for name, (got, supported) in wanted.items():
            if got != supported:
                raise ValueError(
                    f"this tokenizer has the {name} {got!r}, supported is {supported!r}: only "
                    "byte-level BPE tokenizers, such as those of SmolLM2, GPT-2 and Llama 3"
                )

    @staticmethod
    def _check_merge_order(model: dict) -> None:
        """tiktoken merges by id, so the ids have to be in merge order."""
        pairs = [m.split(" ") if isinstance(m, str) else m for m in model["merges"]]
        merged = [model["vocab"][left + right] for left, right in pairs]
        if any(after < before for before, after in pairwise(merged)):
            raise ValueError("the token ids of this tokenizer are not in the order of its merges")

    @cached_property
    def vocab_size(self) -> int:
        """One more than the largest token id."""
        added = [token["id"] for token in self.description["added_tokens"]]
        return max([*self.description["model"]["vocab"].values(), *added]) + 1

    def encode(self, text: str) -> list[int]:
        """Encode ordinary text; what looks like a special token is ordinary text too.

        The few bytes for which a vocabulary has no token (control characters, unassigned planes of
        Unicode) are dropped, as `tokenizers` does.
        """
        ids = self.encoding.encode_ordinary(text)
        missing = bytes(i - self.vocab_size for i in set(ids) if i >= self.vocab_size)
        if not missing:
            return ids
        # The bytes around a dropped one may merge, so it has to go before the merges.
        pieces = regex.finditer(self.encoding._pat_str, text)
        kept = [piece.group().encode().translate(None, missing) for piece in pieces]
        return [i for piece in kept if piece for i in self.encoding._encode_single_piece(piece)]

    def decode(self, ids: list[int]) -> str:
        """Decode token ids; bytes that are no whole character become U+FFFD."""
        return self.encoding.decode(ids)

    def special_id(self, token: str) -> int | None:
        """Return the id of a special token such as `<|im_start|>`, or None if there is none."""
        return self.encoding._special_tokens.get(token)


def describe_gguf_tokenizer(
    tokens: list[str], merges: list[str], types: list[int], pre: str
) -> dict:
    """Write the tokenizer of a GGUF file as the contents of a `tokenizer.json`.

    Args:
        tokens: `tokenizer.ggml.tokens`, one string for each id.
        merges: `tokenizer.ggml.merges`, in order of rank.
        types: `tokenizer.ggml.token_type`; 3 marks a control token, 4 another added one.
        pre: `tokenizer.ggml.pre`, the name of the pre-tokenizer.

    Raises:
        ValueError: if the pre-tokenizer is not a known one.
    """
    if pre not in GGUF_PRE_TOKENIZERS:
        raise ValueError(
            f"unknown pre-tokenizer {pre!r} in the GGUF file; "
            f"known: {', '.join(GGUF_PRE_TOKENIZERS)}"
        )
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = [
        {"id": i, "content": token, **flags, "special": types[i] == 3}
        for i, token in enumerate(tokens)
        if types[i] in (3, 4)
    ]
    steps = GGUF_PRE_TOKENIZERS[pre]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
        "post_processor": None,
        "decoder": _BYTE_LEVEL | {"add_prefix_space": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": merges,
        },
    }
