import json
import random

import pytest

from supplementary.prompts import format_input
from supplementary.tokenizer import Tokenizer, describe_gguf_tokenizer

WHITE_SPACE = list(" \t\n\r\v\f\x1c\x1e\x1f\x85\xa0\u1680\u2003\u2028\u2029\u202f\u205f\u3000")
SNIPPETS = [
    *WHITE_SPACE,
    *["  ", "   ", "\n\n", "\r\n", " \n ", "\t\t", "\u200b", "\ufeff"],
    *"abcdefgxyzABCXYZ",
    *["the", " the", "ing", "Hello", "HTTP", "snake_case", "straße", "ﬁ", "ǅ", "ß"],
    *"0123456789",
    *["12", "3.14", "1,000", "\u00b2", "\u00bd", "\u2167", "\u0663", "\u0967", "\u3007"],
    *".,;:!?-_=+*/\\|()[]{}<>#$%&@^~`\"'",
    *["...", "==", "->", "###", " - ", "\u201c", "\u2019", "\u2026", "\u2014", "\u20ac"],
    *["'s", "'t", "'re", "'ve", "'m", "'ll", "'d", "'S", "'LL", "\u2019s", "''", "don't"],
    *["é", "e\u0301", "ñ", "n\u0303", "Å", "A\u030a", "\u0301", "ő", "ệ", "e\u0323\u0302"],
    *["中", "文", "日本語", "한국", "\u1112\u1161", "かな", "ｱ", "。", "\u4dff", "\U00020000"],
    *["привет", "ελ", "שלום", "مرحبا", "नमस्ते", "ไทย", "\u0e33", "ქართ"],
    *["😀", "👍🏽", "👨\u200d👩\u200d👧", "🇩🇪", "❤\ufe0f", "\U0001f9d1"],
    *["\x00", "\x01", "\x07", "\x08", "\x1b", "\x7f", "\x80", "\x9f", "\xad", "\ufffd"],
    *["<|im_start|>", "<|endoftext|>", "<file_sep>", "<|im_end", "\ue000", "\U000e0041"],
]
# Characters whose UTF-8 form has a byte that the vocabulary of the workshop's model lacks.
LACKING = [*"\x04\x06\x13\x14\x16\x1d", "\U00040000", "\U00050123", "\U00080000", "\U000bffff"]
GPT2_TEXT = "It's 12 o'clock,  isn't it?\n\n 2024 naïve  words  中文 😀 \t x\n"
LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def mixtures(count, snippets, seed, longest=12):
    """Draw `count` strings, each of 1 to `longest` snippets."""
    rng = random.Random(seed)
    return ["".join(rng.choices(snippets, k=rng.randint(1, longest))) for _ in range(count)]


def random_characters(count, seed):
    """Draw strings of characters from everywhere in Unicode, for which there are bytes."""
    rng = random.Random(seed)
    ranges = [range(0x20, 0x3400), range(0xA000, 0xD800), range(0xE000, 0x20000)]
    return ["".join(chr(rng.choice(rng.choice(ranges))) for _ in range(4)) for _ in range(count)]


def disagreements(ours, reference, texts):
    """Return the texts that are encoded differently."""
    encodings = reference.encode_batch(texts, add_special_tokens=False)
    triples = [(text, ours.encode(text), e.ids) for text, e in zip(texts, encodings, strict=True)]
    return [(text, got, expected) for text, got, expected in triples if got != expected]


@pytest.fixture(scope="module")
def tokenizer(pretrained):
    return pretrained[1]


@pytest.fixture(scope="module")
def reference(gguf_reader):
    """The tokenizer of the GGUF file in `tokenizers`, built without our description of it."""
    from tokenizers import Tokenizer as Reference
    from tokenizers import models, pre_tokenizers

    tokens = gguf_reader.fields["tokenizer.ggml.tokens"].contents()
    merges = gguf_reader.fields["tokenizer.ggml.merges"].contents()
    vocab = {token: number for number, token in enumerate(tokens)}
    result = Reference(models.BPE(vocab, [tuple(merge.split(" ")) for merge in merges]))
    digits = pre_tokenizers.Digits(individual_digits=True)
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    result.pre_tokenizer = pre_tokenizers.Sequence([digits, byte_level])
    return result


@pytest.fixture(scope="module")
def dataset_texts(entries):
    texts = [text for entry in entries for text in entry.values()]
    whole = [f"{format_input(entry)}\n\n### Response:\n{entry['output']}" for entry in entries]
    return texts + whole


@pytest.fixture(scope="module")
def mixed_texts():
    return mixtures(19_000, SNIPPETS, seed=0) + random_characters(1_000, seed=1)


def load(trained):
    """Make our tokenizer from one of `tokenizers`, through the contents of its file."""
    return Tokenizer(json.loads(trained.to_str()), eos_token_id=0)


def test_ids_of_the_dataset_agree_with_tokenizers(tokenizer, reference, dataset_texts):
    assert len(dataset_texts) == 4_400
    assert disagreements(tokenizer, reference, dataset_texts) == []


def test_ids_of_random_mixtures_agree_with_tokenizers(
    tokenizer, reference, dataset_texts, mixed_texts
):
    assert len(set(dataset_texts + mixed_texts)) > 20_000
    assert disagreements(tokenizer, reference, mixed_texts) == []


def test_white_space_before_a_digit_is_split_as_tokenizers_does(tokenizer, reference):
    gaps = [first + second for first in WHITE_SPACE for second in ["", *WHITE_SPACE]]
    texts = [f"{left}{gap}{right}" for gap in gaps for left in ("a", "4", "") for right in "5x."]
    assert disagreements(tokenizer, reference, texts) == []


def test_bytes_without_a_token_are_dropped_as_tokenizers_does(tokenizer, reference):
    from tokenizers import pre_tokenizers

    symbols = set(pre_tokenizers.ByteLevel.alphabet())
    assert len(symbols - reference.get_vocab().keys()) == 21
    assert tokenizer.encode("".join(LACKING[:6])) == []
    texts = mixtures(2_000, [*SNIPPETS, *LACKING * 8], seed=2)
    assert disagreements(tokenizer, reference, texts) == []


def test_the_file_we_write_gives_the_same_ids_in_tokenizers(
    tokenizer, dataset_texts, mixed_texts, tmp_path
):
    from tokenizers import Tokenizer as Reference

    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(tokenizer.description), encoding="utf-8")
    written = Reference.from_file(str(path))
    # There, what looks like a special token in a text becomes one.
    texts = [text for text in dataset_texts[:1_100] + mixed_texts[:2_000] if "<" not in text]
    assert len(texts) > 2_000
    assert disagreements(tokenizer, written, texts) == []
    assert written.encode("<|im_start|>").ids == [tokenizer.special_id("<|im_start|>")]
    assert written.decode(tokenizer.encode(GPT2_TEXT)) == GPT2_TEXT


def test_decoding_undoes_encoding(tokenizer, dataset_texts, mixed_texts):
    texts = dataset_texts + mixed_texts
    assert [text for text in texts if tokenizer.decode(tokenizer.encode(text)) != text] == []


def test_text_that_looks_like_a_special_token_is_ordinary(tokenizer):
    special = {token["content"]: token["id"] for token in tokenizer.description["added_tokens"]}
    assert len(special) == 17
    for content, token_id in special.items():
        ids = tokenizer.encode(f"a{content}b")
        assert token_id not in ids
        assert tokenizer.decode(ids) == f"a{content}b"


def test_special_tokens_have_the_ids_of_the_checkpoint(tokenizer):
    assert tokenizer.special_id("<|endoftext|>") == 0
    assert tokenizer.special_id("<|im_start|>") == 1
    assert tokenizer.special_id("<|im_end|>") == 2
    assert tokenizer.special_id("<|user|>") is None
    assert tokenizer.special_id("the") is None
    assert tokenizer.decode([1, 2]) == "<|im_start|><|im_end|>"


def test_the_workshops_tokenizer_has_its_known_sizes_and_ids(tokenizer):
    assert tokenizer.vocab_size == 49_152
    assert tokenizer.eos_token_id == tokenizer.pad_token_id == 2
    assert tokenizer.encode("Hello world 12") == [19556, 905, 216, 33, 34]


def test_the_empty_text_has_no_tokens(tokenizer):
    assert tokenizer.encode("") == []
    assert tokenizer.decode([]) == ""


def test_half_a_character_decodes_to_the_replacement_character(tokenizer):
    assert tokenizer.decode(tokenizer.encode("😀")[:1]) == "\ufffd"


@pytest.mark.parametrize("style", ["gpt-2", "llama-3", "digits"])
def test_a_tokenizer_that_tokenizers_trained_gives_the_same_ids(train_tokenizer, style):
    from tokenizers import Regex, pre_tokenizers

    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    split = pre_tokenizers.Split(Regex(LLAMA3_PATTERN), behavior="isolated")
    steps = {
        "gpt-2": byte_level,
        "llama-3": pre_tokenizers.Sequence([split, raw_bytes]),
        "digits": pre_tokenizers.Sequence([pre_tokenizers.Digits(True), byte_level]),
    }
    trained = train_tokenizer(steps[style])
    ours = load(trained)
    assert ours.vocab_size == 320
    assert len(ours.encode(" antonym of")) < 6  # merges take place
    ordinary = [snippet for snippet in SNIPPETS if "<" not in snippet]
    texts = [GPT2_TEXT, *mixtures(1_000, ordinary + LACKING, seed=3)]
    assert disagreements(ours, trained, texts) == []
    assert [text for text in texts if ours.decode(ours.encode(text)) != text] == []


def test_text_that_a_split_pattern_does_not_match_is_kept(train_tokenizer):
    from tokenizers import Regex, pre_tokenizers

    split = pre_tokenizers.Split(Regex(r"\p{N}"), behavior="isolated")
    raw_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trained = train_tokenizer(pre_tokenizers.Sequence([split, raw_bytes]))
    assert disagreements(load(trained), trained, ["an antonym", "12 is 1", "1\n", GPT2_TEXT]) == []


def test_merges_may_be_pairs_or_strings(train_tokenizer):
    description = json.loads(train_tokenizer().to_str())
    pairs = description["model"]["merges"]
    assert isinstance(pairs[0], list)
    strings = {**description["model"], "merges": [" ".join(pair) for pair in pairs]}
    other = Tokenizer(description | {"model": strings}, eos_token_id=0)
    assert other.encode(GPT2_TEXT) == Tokenizer(description, eos_token_id=0).encode(GPT2_TEXT)


def test_added_tokens_past_the_vocabulary_count_in_its_size(train_tokenizer):
    trained = train_tokenizer()
    trained.add_special_tokens(["<|pad|>"])
    ours = load(trained)
    assert ours.vocab_size == 321
    assert ours.special_id("<|pad|>") == 320
    assert 320 not in ours.encode("<|pad|>")


def test_a_normalizer_is_refused(train_tokenizer):
    from tokenizers import normalizers

    trained = train_tokenizer()
    trained.normalizer = normalizers.NFC()
    with pytest.raises(ValueError, match=r"NFC|normalizer"):
        load(trained).encode("a")


def test_another_model_than_bpe_is_refused_by_its_name():
    from tokenizers import Tokenizer as Reference
    from tokenizers import models, pre_tokenizers

    other = Reference(models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    other.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(ValueError, match="WordPiece"):
        load(other).encode("a")


def test_byte_fallback_is_refused(train_tokenizer):
    description = json.loads(train_tokenizer().to_str())
    description["model"]["byte_fallback"] = True
    with pytest.raises(ValueError, match=r"byte_fallback|byte fallback"):
        Tokenizer(description, eos_token_id=0).encode("a")


def test_a_prefix_space_is_refused(train_tokenizer):
    from tokenizers import pre_tokenizers

    trained = train_tokenizer(pre_tokenizers.ByteLevel(add_prefix_space=True))
    with pytest.raises(ValueError, match=r"add_prefix_space|prefix space"):
        load(trained).encode("a")


def test_a_suffix_at_the_end_of_words_is_refused(train_tokenizer):
    description = json.loads(train_tokenizer().to_str())
    description["model"]["end_of_word_suffix"] = "</w>"
    with pytest.raises(ValueError, match=r"end_of_word_suffix|suffix"):
        Tokenizer(description, eos_token_id=0).encode("a")


def test_a_pre_tokenizer_of_white_space_is_refused_by_its_name(train_tokenizer):
    from tokenizers import pre_tokenizers

    with pytest.raises(ValueError, match="WhitespaceSplit"):
        load(train_tokenizer(pre_tokenizers.WhitespaceSplit())).encode("a")


def test_a_vocabulary_of_characters_instead_of_bytes_is_refused():
    from tokenizers import Tokenizer as Reference
    from tokenizers import models, pre_tokenizers

    other = Reference(models.BPE({"▁": 0, "中": 1, "▁中": 2}, [("▁", "中")]))
    other.pre_tokenizer = pre_tokenizers.Metaspace()
    with pytest.raises(ValueError, match="byte-level"):
        load(other).encode("中")


def test_a_tokenizer_without_a_pre_tokenizer_is_refused(train_tokenizer):
    description = json.loads(train_tokenizer().to_str()) | {"pre_tokenizer": None}
    with pytest.raises(ValueError, match="not supported"):
        Tokenizer(description, eos_token_id=0).encode("a")


@pytest.mark.parametrize("behavior", ["removed", "merged_with_next"])
def test_a_split_that_does_not_isolate_is_refused(train_tokenizer, behavior):
    from tokenizers import Regex, pre_tokenizers

    split = pre_tokenizers.Split(Regex(LLAMA3_PATTERN), behavior=behavior)
    raw_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    description = json.loads(train_tokenizer().to_str())
    steps = json.loads(train_tokenizer(pre_tokenizers.Sequence([split, raw_bytes])).to_str())
    description["pre_tokenizer"] = steps["pre_tokenizer"]
    with pytest.raises(ValueError, match="not supported"):
        Tokenizer(description, eos_token_id=0).encode("a b")


def test_ids_out_of_the_order_of_the_merges_are_refused(train_tokenizer):
    description = json.loads(train_tokenizer().to_str())
    vocab = description["model"]["vocab"]
    first, second = ("".join(pair) for pair in description["model"]["merges"][:2])
    vocab[first], vocab[second] = vocab[second], vocab[first]
    with pytest.raises(ValueError, match="order of its merges"):
        Tokenizer(description, eos_token_id=0).encode("a")


def test_an_unknown_pre_tokenizer_of_a_gguf_file_is_refused_and_the_known_ones_are_named():
    with pytest.raises(ValueError, match=r"'tekken'.*gpt-2, smollm"):
        describe_gguf_tokenizer(["a", "b", "ab"], ["a b"], [1, 1, 1], "tekken")
