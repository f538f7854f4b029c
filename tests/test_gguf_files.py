"""GGUF files: read, written, and loaded by llama.cpp."""

import json
import urllib.request

import numpy as np
import pytest
import torch

from supplementary.checkpoints import load_pretrained
from supplementary.data import DATA, encode_prompt, load_entries, split_entries
from supplementary.download import fetch_default_model
from supplementary.generation import respond
from supplementary.gguf_files import export_gguf, open_gguf, read_gguf
from supplementary.lora import add_lora
from supplementary.model import CausalLM
from supplementary.prompts import prompt_pieces
from supplementary.templates import chat_template, user_message
from supplementary.tokenizer import Tokenizer

from .comparing import assert_same_model
from .conftest import randomize

TEXT = "What is an antonym of 'complicated'?\n 12 km"


# Files that llama.cpp's tools wrote


def permute(weight, heads):
    """Put the rows of a query or key matrix into llama.cpp's order (conversion/llama.py there)."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, -1)


def gguf_tensors(reference):
    """Give the weights of a model of `transformers` under the names that llama.cpp uses."""
    config = reference.config
    weights = {name: tensor.numpy() for name, tensor in reference.state_dict().items()}
    tensors = {
        "token_embd.weight": weights["model.embed_tokens.weight"],
        "output_norm.weight": weights["model.norm.weight"],
    }
    if not config.tie_word_embeddings:
        tensors["output.weight"] = weights["lm_head.weight"]
    for layer in range(config.num_hidden_layers):
        ours, theirs = f"model.layers.{layer}.", f"blk.{layer}."
        q = weights[ours + "self_attn.q_proj.weight"]
        k = weights[ours + "self_attn.k_proj.weight"]
        tensors[theirs + "attn_q.weight"] = permute(q, config.num_attention_heads)
        tensors[theirs + "attn_k.weight"] = permute(k, config.num_key_value_heads)
        for name, part in {
            "attn_norm": "input_layernorm",
            "attn_v": "self_attn.v_proj",
            "attn_output": "self_attn.o_proj",
            "ffn_norm": "post_attention_layernorm",
            "ffn_gate": "mlp.gate_proj",
            "ffn_up": "mlp.up_proj",
            "ffn_down": "mlp.down_proj",
        }.items():
            tensors[f"{theirs}{name}.weight"] = weights[f"{ours}{part}.weight"]
    return tensors


@pytest.fixture
def write_gguf(make_llama, train_tokenizer, tmp_path):
    """Return a function that writes a tiny GGUF file and gives its path and the reference model."""
    from gguf import GGUFWriter
    from gguf.quants import quantize

    def write(architecture="llama", kind=None, extra=None, before_writing=None, **settings):
        reference = make_llama(**settings)
        config = reference.config
        description = json.loads(train_tokenizer().to_str())["model"]
        path = tmp_path / "tiny.gguf"
        writer = GGUFWriter(path, architecture)
        writer.add_block_count(config.num_hidden_layers)
        writer.add_context_length(config.max_position_embeddings)
        writer.add_embedding_length(config.hidden_size)
        writer.add_feed_forward_length(config.intermediate_size)
        writer.add_head_count(config.num_attention_heads)
        if config.num_key_value_heads != config.num_attention_heads:
            writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        if "rope_theta" in settings:
            writer.add_rope_freq_base(settings["rope_theta"])
        if "head_dim" in settings:
            writer.add_rope_dimension_count(settings["head_dim"])
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("gpt-2")
        writer.add_token_list(sorted(description["vocab"], key=description["vocab"].get))
        writer.add_token_types([3, 3, 3] + [1] * 317)
        writer.add_token_merges([" ".join(pair) for pair in description["merges"]])
        writer.add_eos_token_id(0)
        if before_writing:
            before_writing(writer)
        for name, values in (gguf_tensors(reference) | (extra or {})).items():
            if kind is None or values.ndim == 1:
                writer.add_tensor(name, values)
            else:
                writer.add_tensor(name, quantize(values, kind), raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path, reference

    return write


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"num_key_value_heads": 4},
        {"tie_word_embeddings": False},
        {"head_dim": 16},
        {"rope_theta": 500.0, "rms_norm_eps": 1e-2},
    ],
    ids=["grouped", "all heads", "untied", "wide heads", "rope and norm"],
)
def test_a_gguf_file_gives_the_logits_of_the_model_it_was_made_from(write_gguf, settings):
    path, reference = write_gguf(**settings)
    assert_same_model(load_pretrained(path)[0], reference)


def test_a_gguf_file_gives_its_tokenizer(write_gguf, train_tokenizer):
    tokenizer = load_pretrained(write_gguf()[0])[1]
    assert tokenizer.encode(TEXT) == train_tokenizer().encode(TEXT).ids
    assert tokenizer.special_id("<|im_start|>") == 1
    assert (tokenizer.eos_token_id, tokenizer.vocab_size) == (0, 320)


@pytest.mark.parametrize("kind", ["F16", "Q8_0", "Q4_1"])
def test_quantized_weights_become_the_float32_values_they_stand_for(write_gguf, kind):
    from gguf import GGMLQuantizationType, dequantize
    from gguf.quants import quantize

    kind = GGMLQuantizationType[kind]
    path, reference = write_gguf(kind=kind)
    _, weights, _ = read_gguf(path)
    expected = reference.state_dict()
    assert weights.keys() == expected.keys() - {"lm_head.weight"}
    for name, tensor in weights.items():
        assert tensor.dtype == torch.float32
        values = expected[name].numpy()
        if values.ndim > 1:
            # Blocks lie within a row, so the order of the rows does not change what they become.
            values = np.asarray(dequantize(quantize(values, kind), kind), dtype=np.float32)
        assert torch.equal(tensor, torch.from_numpy(values)), name


@pytest.mark.parametrize(
    ("architecture", "tokenizer", "said"),
    [("gpt2", "gpt2", "a 'gpt2' model"), ("llama", "llama", "a 'llama' tokenizer")],
)
def test_a_gguf_file_of_another_kind_is_refused(write_gguf, architecture, tokenizer, said):
    def change(writer):
        values = writer.kv_data[0]
        del values["tokenizer.ggml.model"]
        writer.add_tokenizer_model(tokenizer)

    path, _ = write_gguf(architecture=architecture, before_writing=change)
    with pytest.raises(ValueError, match=rf"tiny\.gguf holds.*{said}"):
        load_pretrained(path)


@pytest.mark.parametrize("kept", [0, 3, 100, 30_000, -500])
def test_a_cut_off_gguf_file_is_refused_and_named(write_gguf, kept):
    path, _ = write_gguf()
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"tiny\.gguf is no whole GGUF file"):
        load_pretrained(path)


def test_a_file_that_is_no_gguf_file_is_refused_and_named(tmp_path):
    path = tmp_path / "model.bin"
    path.write_bytes(b"\x80\x02}q\x00." * 100)
    with pytest.raises(ValueError, match=r"model\.bin is no whole GGUF file"):
        load_pretrained(path)


@pytest.mark.parametrize("name", ["blk.0.attn_q.bias", "rope_freqs.weight"])
def test_a_gguf_tensor_that_the_model_lacks_is_refused_and_named(write_gguf, name):
    path, _ = write_gguf(extra={name: np.ones(32, dtype=np.float32)})
    with pytest.raises(ValueError, match=rf"tiny\.gguf.*{name}"):
        load_pretrained(path)


def test_rope_scaling_in_a_gguf_file_is_refused(write_gguf):
    from gguf import RopeScalingType

    def scale(writer):
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(2.0)

    path, _ = write_gguf(before_writing=scale)
    with pytest.raises(ValueError, match=r"tiny\.gguf.*rope.*linear"):
        load_pretrained(path)


@pytest.mark.parametrize("key", ["llama.context_length", "tokenizer.ggml.eos_token_id"])
def test_a_gguf_file_without_a_field_is_refused_and_the_field_is_named(write_gguf, key):
    path, _ = write_gguf(before_writing=lambda writer: writer.kv_data[0].pop(key))
    with pytest.raises(ValueError, match=rf"tiny\.gguf.*{key}"):
        load_pretrained(path)


def test_the_plain_reader_finds_what_the_library_finds(gguf_reader):
    reader = open_gguf(fetch_default_model())
    assert type(reader.data) is np.ndarray and isinstance(gguf_reader.data, np.memmap)
    assert list(reader.fields) == list(gguf_reader.fields)
    for name, field in reader.fields.items():
        assert field.contents() == gguf_reader.fields[name].contents(), name
    for ours, theirs in zip(reader.tensors, gguf_reader.tensors, strict=True):
        assert (ours.name, ours.tensor_type) == (theirs.name, theirs.tensor_type)
        assert np.array_equal(ours.data, theirs.data)


def test_the_workshops_model_has_the_sizes_of_smollm2_135m(pretrained):
    config = vars(pretrained[0].config)
    assert config == {
        "vocab_size": 49_152,
        "hidden_size": 576,
        "intermediate_size": 1_536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "head_dim": 64,
        "max_position_embeddings": 8_192,
        "rope_theta": 100_000.0,
        "rms_norm_eps": pytest.approx(1e-5),
        "tie_word_embeddings": True,
    }
    assert sum(p.numel() for p in pretrained[0].parameters()) == 134_515_008


# Files that we write


@pytest.fixture
def make_model(tiny_config, train_tokenizer):
    """Return a function that makes a tiny model whose vocabulary is larger than its tokenizer's."""

    def make(**settings):
        config = type(tiny_config)(**vars(tiny_config) | {"vocab_size": 352} | settings)
        tokenizer = Tokenizer(json.loads(train_tokenizer().to_str()), eos_token_id=2)
        return randomize(CausalLM(config)), tokenizer

    return make


@pytest.mark.parametrize("quantization", ["f16", "q8_0"])
@pytest.mark.parametrize("tied", [True, False])
def test_an_exported_model_comes_back_as_precisely_as_it_was_stored(
    make_model, tmp_path, quantization, tied
):
    from gguf import GGMLQuantizationType, dequantize
    from gguf.quants import quantize

    model, tokenizer = make_model(tie_word_embeddings=tied, head_dim=16, rope_theta=500.0)
    export_gguf(model, tokenizer, tmp_path / "model.gguf", quantization=quantization)
    config, weights, read = read_gguf(tmp_path / "model.gguf")
    assert vars(config) == pytest.approx(vars(model.config))
    expected = model.state_dict()
    assert weights.keys() == expected.keys() - ({"lm_head.weight"} if tied else set())
    kind = GGMLQuantizationType[quantization.upper()]
    for name, tensor in weights.items():
        values = expected[name].numpy()
        if values.ndim > 1:
            values = np.asarray(dequantize(quantize(values, kind), kind), dtype=np.float32)
            assert 0 < np.abs(values - expected[name].numpy()).max() < 0.01
        assert torch.equal(tensor, torch.from_numpy(values)), name
    assert read.encode(TEXT) == tokenizer.encode(TEXT)
    assert read.eos_token_id == 2
    assert read.special_id("<|im_start|>") == tokenizer.special_id("<|im_start|>")
    assert read.description["model"]["vocab"]["[PAD351]"] == 351


def test_rows_that_are_no_whole_blocks_are_stored_as_float16(make_model, tmp_path):
    from gguf import GGUFReader

    model, tokenizer = make_model(intermediate_size=48)
    export_gguf(model, tokenizer, tmp_path / "model.gguf", quantization="q8_0")
    kinds = {t.name: t.tensor_type.name for t in GGUFReader(tmp_path / "model.gguf").tensors}
    assert kinds["blk.0.ffn_down.weight"] == "F16"  # rows of 48; Q8_0 has blocks of 32
    assert kinds["blk.0.ffn_up.weight"] == "Q8_0"
    assert kinds["output_norm.weight"] == "F32"
    assert load_pretrained(tmp_path / "model.gguf")[0].config.intermediate_size == 48


def test_an_exported_file_says_how_to_ask_the_model(make_model, tmp_path):
    from gguf import GGUFReader

    model, tokenizer = make_model()
    export_gguf(model, tokenizer, tmp_path / "my.gguf", "chatml")
    fields = GGUFReader(tmp_path / "my.gguf").fields
    assert fields["tokenizer.chat_template"].contents() == chat_template("chatml")
    assert fields["tokenizer.ggml.add_bos_token"].contents() is False
    raw = (tmp_path / "Modelfile").read_bytes()
    assert b"\r" not in raw  # it would be in the prompt
    recipe = raw.decode()
    assert recipe.startswith("FROM ./my.gguf\n")
    assert "PARAMETER stop <|im_end|>\n" in recipe


@pytest.mark.parametrize("name", ["my.gguf", "Modelfile"])
def test_an_export_onto_an_existing_file_is_refused(make_model, tmp_path, name):
    (tmp_path / name).write_text("precious", encoding="utf-8")
    with pytest.raises(FileExistsError, match=f"{name} exists already; move it away"):
        export_gguf(*make_model(), tmp_path / "my.gguf")
    assert [(p.name, p.read_text(encoding="utf-8")) for p in tmp_path.iterdir()] == [
        (name, "precious")
    ]


def test_an_export_that_fails_leaves_nothing(make_model, tmp_path, monkeypatch):
    def fail(*arguments):
        raise OSError("disk full")

    monkeypatch.setattr("gguf.GGUFWriter.write_tensors_to_file", fail)
    with pytest.raises(OSError, match="disk full"):
        export_gguf(*make_model(), tmp_path / "my.gguf")
    assert list(tmp_path.iterdir()) == []


def test_a_model_with_lora_layers_is_not_exported_without_them(make_model, tmp_path):
    model, tokenizer = make_model()
    add_lora(model, rank=2)
    with pytest.raises(ValueError, match="has LoRA layers; merge_lora it"):
        export_gguf(model, tokenizer, tmp_path / "my.gguf")
    assert list(tmp_path.iterdir()) == []


def test_a_tokenizer_that_is_larger_than_the_model_is_refused(make_model, tmp_path):
    model, tokenizer = make_model(vocab_size=319)
    with pytest.raises(ValueError, match="the tokenizer has 320 tokens, the model only 319"):
        export_gguf(model, tokenizer, tmp_path / "my.gguf")


def test_added_tokens_come_back_as_what_they_were(make_model, tmp_path):
    model, tokenizer = make_model()
    added = {"id": 320, "content": "<tool call>", "special": False}
    description = tokenizer.description | {
        "added_tokens": [*tokenizer.description["added_tokens"], added]
    }
    export_gguf(model, Tokenizer(description, 2), tmp_path / "my.gguf")
    _, _, read = read_gguf(tmp_path / "my.gguf")
    (found,) = [t for t in read.description["added_tokens"] if t["id"] == 320]
    assert (found["content"], found["special"]) == ("<tool call>", False)
    assert read.encode(TEXT) == tokenizer.encode(TEXT)


def test_a_name_that_is_no_gguf_files_is_refused(make_model, tmp_path):
    with pytest.raises(ValueError, match=r"Modelfile does not end in \.gguf"):
        export_gguf(*make_model(), tmp_path / "Modelfile")


def test_an_unknown_quantization_is_refused(make_model, tmp_path):
    with pytest.raises(ValueError, match=r"unknown quantization 'q2'.*f16.*q8_0"):
        export_gguf(*make_model(), tmp_path / "my.gguf", quantization="q2")
    assert list(tmp_path.iterdir()) == []


def test_a_tokenizer_without_a_name_in_gguf_files_is_refused(make_model, train_tokenizer, tmp_path):
    from tokenizers import Regex, pre_tokenizers

    words = pre_tokenizers.Split(Regex(r"\s?\w+"), "isolated")
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    steps = pre_tokenizers.Sequence([words, bytes_])
    tokenizer = Tokenizer(json.loads(train_tokenizer(steps).to_str()), eos_token_id=0)
    with pytest.raises(ValueError, match=r"convert_hf_to_gguf\.py"):
        export_gguf(make_model()[0], tokenizer, tmp_path / "my.gguf")
    assert list(tmp_path.iterdir()) == []


# llama.cpp


@pytest.fixture(scope="module")
def llama_cpp(finetuned, tmp_path_factory):
    """A server of llama.cpp with the finetuned model in float16; asks it with JSON."""
    xllamacpp = pytest.importorskip("xllamacpp", reason="no build of llama.cpp for this system")
    path = tmp_path_factory.mktemp("gguf") / "model.gguf"
    export_gguf(*finetuned, path)
    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_ctx = 1024
    server = xllamacpp.Server(params)

    def ask(route, **content):
        request = urllib.request.Request(
            f"{server.listening_address}/{route}",
            json.dumps(content).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=300) as reply:
            return json.load(reply)

    return ask


ASKED = split_entries(load_entries(DATA)).test[:20]


def test_llama_cpp_finds_the_same_tokens(llama_cpp, finetuned, entries):
    _, tokenizer = finetuned
    for entry in entries[::10]:
        prompt = "".join(prompt_pieces(entry))
        found = llama_cpp("tokenize", content=prompt, add_special=True)["tokens"]
        assert found == encode_prompt(entry, tokenizer)
    for text in (TEXT, "x   7", "\n\n  1984 and\t 20", "naïve 你好 🙂"):  # spaces before digits
        found = llama_cpp("tokenize", content=text, add_special=True)["tokens"]
        assert found == tokenizer.encode(text)


def test_llama_cpp_finds_the_same_tokens_in_a_format_with_control_tokens(llama_cpp, finetuned):
    _, tokenizer = finetuned
    for entry in ASKED:
        prompt = "".join(prompt_pieces(entry, "chatml"))
        found = llama_cpp("tokenize", content=prompt, add_special=True, parse_special=True)
        assert found["tokens"] == encode_prompt(entry, tokenizer, "chatml")


def test_llama_cpp_writes_the_prompt_of_the_training_from_the_template(llama_cpp):
    for entry in ASKED:
        message = {"role": "user", "content": user_message(entry)}
        found = llama_cpp("apply-template", messages=[message])["prompt"]
        assert found == "".join(prompt_pieces(entry))


def test_llama_cpp_gives_the_same_answers_and_stops(llama_cpp, finetuned):
    expected = respond(*finetuned, ASKED, max_new_tokens=64)
    same = 0
    for entry, response in zip(ASKED, expected, strict=True):
        message = {"role": "user", "content": user_message(entry)}
        reply = llama_cpp("v1/chat/completions", messages=[message], temperature=0, max_tokens=64)[
            "choices"
        ][0]
        same += reply["message"]["content"].strip() == response
        assert reply["finish_reason"] == "stop"  # the end-of-text token, not the limit
    assert same >= 18  # float16 may tip a word
