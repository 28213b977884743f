"""Evaluate, compare, generate: what is scored, what it is held against, what comes out."""

import json
import math
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from tokenizers.decoders import ByteLevel
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from owner.models.comparing import compare, summarize_comparison
from owner.models.evaluating import cut_overlapping, evaluate, score, summarize
from owner.models.generating import generate
from owner.models.loading import load
from owner.models.texts import Texts, read_texts
from shared.batches import IGNORED
from shared.errors import DocumentsError, PlanearlyError
from shared.pieces import BOS_ID
from tests.specialized import make_specialized, save_other
from tests.terminals import Terminal
from tests.tiny import quiet

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_specialized(tmp_path_factory.mktemp("made"))


@pytest.fixture(scope="module")
def model(made):
    return load(made.out, CPU)


@pytest.fixture(scope="module")
def stranger(tmp_path_factory):
    """A tiny GPT-2 with a tokenizer of bytes, as somebody else would have saved it."""
    folder = tmp_path_factory.mktemp("stranger") / "gpt2"
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the cat sat on the mat, the other cat did not"], trainer)
    torch.manual_seed(1)
    config = GPT2Config(
        vocab_size=300, n_positions=48, n_embd=32, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0
    )
    GPT2LMHeadModel(config).save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>").save_pretrained(folder)
    return folder


def log_probabilities(model, ids):
    with torch.no_grad():
        return model.module(input_ids=torch.tensor([ids]), use_cache=False).logits[0].log_softmax(-1)


@pytest.mark.parametrize("n", [1, 2, 7, 8, 9, 12, 13, 31, 100])
@pytest.mark.parametrize("window", [2, 8, 9])
def test_every_token_is_scored_once_with_half_a_window_before_it(n, window):
    ids = list(range(10, 10 + n))
    scored = []
    for inputs, labels in cut_overlapping(ids, 1, window):
        assert len(inputs) == len(labels) <= window
        assert inputs[0] == 1
        for place, label in enumerate(labels):
            if label != IGNORED:
                assert inputs[1 : place + 1] == ids[label - 10 - place : label - 10]
                assert place >= min(label - 10, window - window // 2 - 1)
                scored.append(label)
    assert scored == ids


def test_a_documents_loss_is_that_of_a_slow_loop_whatever_else_is_scored(model):
    texts = ["the value of an expression", "x" * 400, "a"]
    found = score(model, texts)
    for text, nats, tokens in zip(texts, found.nats, found.tokens, strict=True):
        ids = model.encode(text)
        slow = 0.0
        for inputs, labels in cut_overlapping(ids, BOS_ID, found.window_tokens):
            table = log_probabilities(model, inputs)
            slow -= sum(float(table[i, label]) for i, label in enumerate(labels) if label != IGNORED)
        assert nats == pytest.approx(slow, rel=1e-5)
        assert tokens == len(ids)
    assert found.n_bytes.tolist() == [26.0, 400.0, 1.0]


def test_bits_per_byte_and_perplexity_are_the_same_loss_in_other_units(model, made):
    texts = read_texts(made.others, [model], quiet)
    found = evaluate(model, texts)
    nats = found["nats_per_token"]["value"] * found["tokens"]
    assert found["bits_per_byte"]["value"] == pytest.approx(nats / math.log(2) / texts.n_bytes)
    assert found["perplexity"]["value"] == pytest.approx(math.exp(nats / found["tokens"]))
    assert found["perplexity"]["low"] < found["perplexity"]["value"] < found["perplexity"]["high"]
    assert not found["are_heldout"]
    assert found["report_perplexity"] is None
    assert any("perplexity" in line for line in summarize(found))


def test_of_the_documents_it_was_made_from_only_those_held_out_count(model, made):
    said = []
    texts = read_texts(made.private, [model], said.append)
    originals = [path.read_text() for path in made.private.iterdir()]
    assert texts.are_heldout
    assert 0 < len(texts.texts) < len(originals)
    assert all(text in originals for text in texts.texts)
    report = json.loads((made.out / "report.json").read_text())
    n_ends = len(texts.texts)
    found = evaluate(model, texts)
    assert found["tokens"] == report["heldout_tokens"] - n_ends
    assert found["report_perplexity"] == report["perplexity"]["after"] != found["perplexity"]["value"]
    (line,) = [line for line in summarize(found) if line.startswith("report ")]
    assert f"perplexity {report['perplexity']['after']:.2f} of the same documents" in line
    assert any("only what its run held out counts" in line for line in said)


def test_a_document_that_was_divided_is_scored_with_a_warning(made, tmp_path):
    from owner.documents.duplicates import read_distinct

    shutil.copytree(made.out, tmp_path / "one")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.txt").write_text("an expression is evaluated in this order. " * 40)
    one = load(tmp_path / "one", CPU)
    private, _ = read_distinct(tmp_path / "data", [], one.tokenizer, one.context_tokens)
    report = json.loads((tmp_path / "one" / "report.json").read_text())
    (tmp_path / "one" / "report.json").write_text(json.dumps(report | {"documents_sha256": private.digest()}))
    said = []
    texts = read_texts(tmp_path / "data", [one], said.append)
    assert texts.is_seen
    assert any("was trained on these documents" in line for line in said)


def test_models_that_held_out_different_documents_cannot_be_compared_on_theirs(model, made, tmp_path):
    shutil.copytree(made.out, tmp_path / "other")
    report = json.loads((tmp_path / "other" / "report.json").read_text())
    mine = set(read_texts(made.private, [model], quiet).texts)
    for seed in range(50):
        report["config"]["finetune"]["seed"] = seed
        (tmp_path / "other" / "report.json").write_text(json.dumps(report))
        other = load(tmp_path / "other", CPU)
        theirs = set(read_texts(made.private, [other], quiet).texts)
        if not mine & theirs:
            break
    assert not mine & theirs
    with pytest.raises(DocumentsError, match="held out of every model"):
        read_texts(made.private, [model, other], quiet)


def test_a_model_against_itself_is_not_decided(model, made):
    found = compare(model, model, read_texts(made.others, [model, model], quiet))
    assert found["bits_per_byte_a_minus_b"]["value"] == 0.0
    assert found["better"] is None
    assert "covers zero" in summarize_comparison(found)[-1]


def test_a_trained_model_beats_a_random_one_from_either_side(model, made, tmp_path):
    random = load(save_other(made.out, tmp_path / "random", "llama", 32), CPU)
    texts = read_texts(made.others, [model, random], quiet)
    found, turned = compare(model, random, texts), compare(random, model, texts)
    assert (found["better"], turned["better"]) == ("a", "b")
    assert found["bits_per_byte_a_minus_b"]["high"] < 0
    assert summarize_comparison(turned)[-1].startswith("B is better: ")
    few = compare(model, random, Texts(texts.texts[:3], False))
    assert few["better"] is None
    assert "too few documents" in summarize_comparison(few)[-1]


def test_a_strangers_model_is_scored_on_the_same_bytes_with_its_own_tokenizer(model, stranger, made):
    other = load(stranger, CPU)
    texts = Texts(["the cat — naïve 😀 <|endoftext|> </s>", "the mat " * 30], False)
    found = compare(model, other, texts)
    assert found["a"]["bytes"] == found["b"]["bytes"] == texts.n_bytes
    assert found["a"]["tokens"] != found["b"]["tokens"]
    ids = other.encode(texts.texts[0])
    assert other.begin_id == 0  # it has no beginning of text but an end of one
    assert 0 not in ids  # text that says <|endoftext|> is text
    table = log_probabilities(other, [0, *ids[:-1]])
    slow = -float(table[np.arange(len(ids)), ids].sum())
    assert score(other, texts.texts[:1]).nats[0] == pytest.approx(slow, rel=1e-5)


def test_weights_that_can_hold_code_are_refused(stranger, tmp_path):
    folder = tmp_path / "pickled"
    shutil.copytree(stranger, folder)
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(PlanearlyError, match="cannot be loaded as a causal language model"):
        load(folder, CPU)


def test_code_in_a_model_folder_is_not_run(stranger, tmp_path):
    folder = tmp_path / "coded"
    shutil.copytree(stranger, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.C", "AutoModelForCausalLM": "mine.M"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nC = M = None\n")
    with pytest.raises(PlanearlyError, match="cannot be loaded"):
        load(folder, CPU)
    assert not (tmp_path / "ran").exists()


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(PlanearlyError, match=r"no config\.json in it or in its model/"):
        load(tmp_path, CPU)


def test_greedy_text_is_the_likeliest_token_each_time_after_the_beginning_of_text(model):
    ids = [BOS_ID, *model.encode("the value")]
    for _ in range(12):
        ids.append(int(log_probabilities(model, ids)[-1].argmax()))
    assert "the value" + generate(model, "the value", 12) == model.decode(ids)


def test_drawn_text_follows_its_seed(model):
    drawn = [generate(model, "the", 20, temperature=1.0, seed=seed) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_text_ends_with_the_context(model):
    room = model.context_tokens
    prompt = "a" * 40
    n_prompt = 1 + len(model.encode(prompt))
    written = generate(model, prompt, 10_000)
    assert n_prompt + len(model.encode(written)) <= room + 2  # pieces may join at the seam
    with pytest.raises(PlanearlyError, match=f"expected fewer than the model's {room}"):
        generate(model, "x = y + z\n" * 60, 1)


def test_a_prompt_can_come_from_the_standard_input_and_the_text_comes_alone(made, model):
    code = "from owner.cli import main; main()"
    options = ["--tokens", "4", "--quiet", "--json"]
    command = [sys.executable, "-c", code, "generate", str(made.out), "-", *options]
    done = subprocess.run(command, input="an", capture_output=True, text=True)
    assert json.loads(done.stdout) == {"prompt": "an", "text": generate(model, "an", 4)}
    assert done.stderr == ""


LIVE = {
    ("evaluate", "OUT", "--data", "PRIVATE"): ("load", "read", "score"),
    ("compare", "OUT", "STRANGER", "--data", "OTHERS", "--json"): ("load", "read", "score A", "score B"),
    ("generate", "OUT", "an", "--tokens", "4"): ("load", "write"),
    ("audit", "OUT", "--data", "PRIVATE", "--bundle", "BUNDLE"): ("load", "read", "recite", "experts"),
    ("histogram", "--bundle", "BUNDLE", "--data", "OTHERS", "--yes"): ("verify", "read", "embed"),
    ("export", "OUT", "--format", "safetensors", "--out", "new"): ("load", "sample", "write", "check"),
}
"""Commands, and the stages that their live line goes through."""


@pytest.mark.parametrize("arguments", LIVE, ids=lambda arguments: arguments[0])
def test_on_a_terminal_every_stage_of_a_command_is_a_live_line_and_gone_at_the_end(
    made, model, stranger, tmp_path, arguments
):
    places = {
        "OUT": made.out,
        "STRANGER": stranger,
        "OTHERS": made.others,
        "PRIVATE": made.private,
        "BUNDLE": made.out.parent / "out" / "tiny.st",
    }
    command = ["-c", "from owner.cli import main; main()", *(places.get(word, word) for word in arguments)]
    terminal = Terminal(command, tmp_path, tmp_path / "stdout", PLANEARLY_HOME=str(made.home))
    assert terminal.wait() == 0, terminal.shown.decode()
    drawn = terminal.shown.decode()
    for stage in LIVE[arguments]:
        assert re.search(rf"owner: {stage} +\S*━", drawn), stage
    if "score" in drawn:
        assert re.search(r"tokens · (\S+ s left · )?\d\.\d{3} nats/token · [\d.]+k tokens/s", drawn)
    assert not any("━" in line or line.strip() == "owner:" for line in terminal.screen())
    assert "isolation" in drawn
    printed = (tmp_path / "stdout").read_text()
    if arguments[0] == "compare":
        found = json.loads(printed)
        assert found["a"]["documents"] == 12
        assert found["a"]["bits_per_byte"]["value"] > 0
    elif arguments[0] == "generate":
        assert printed == "an" + generate(model, "an", 4) + "\n"
    else:
        assert printed
