import numpy as np
import pytest

from owner.choice.selecting import Selection, embed_windows, select_expert
from owner.documents.reading import Document
from owner.documents.windows import split_documents, window_documents
from owner.training.finetuning import FinetuneConfig, train_config
from shared.batches import Sampler
from shared.errors import DocumentsError
from shared.tokenizer import encode_document
from tests.conftest import make_windows


def private(tokenizer, texts, context=16):
    return window_documents([Document(f"{i}.txt", 0, t) for i, t in enumerate(texts)], tokenizer, context)


def test_no_private_token_is_lost(tokenizer):
    texts = ["the cat sat. " * n for n in (1, 3, 9, 27)]
    found = private(tokenizer, texts)
    whole = np.concatenate([encode_document(tokenizer, text) for text in texts])
    cut = np.concatenate([found.windows.tokens(i) for i in range(len(found.windows))])
    assert cut.tolist() == whole.tolist()
    split = split_documents(found, 0.3, seed=0)
    assert split.train.n_tokens + split.heldout.n_tokens == len(whole)


@pytest.mark.parametrize("seed", range(5))
def test_whole_documents_are_held_out_about_a_tenth_of_the_tokens(tokenizer, seed):
    found = private(tokenizer, ["the cat sat. " * (3 + n % 5) for n in range(60)])
    split = split_documents(found, 0.1, seed)
    assert split.by == "documents"
    assert 0.05 < split.heldout.n_tokens / found.windows.n_tokens < 0.16
    train_starts, heldout_starts = set(split.train.start.tolist()), set(split.heldout.start.tolist())
    for document in range(60):
        starts = set(found.windows.start[found.document == document].tolist())
        assert starts <= train_starts or starts <= heldout_starts


def test_one_huge_document_among_small_ones_stays_in_training(tokenizer):
    found = private(tokenizer, ["the cat. " * 500, "the cat. ", "a sat. "])
    split = split_documents(found, 0.1, seed=0)
    assert split.train.n_tokens > 0.9 * found.windows.n_tokens
    assert len(split.heldout)


def test_of_a_single_document_the_last_windows_are_held_out(tokenizer):
    found = private(tokenizer, ["the cat sat. " * 100])
    split = split_documents(found, 0.1, seed=0)
    assert split.by == "windows"
    assert split.heldout.start.min() > split.train.start.max()


def test_a_single_window_cannot_be_split(tokenizer):
    with pytest.raises(DocumentsError, match="1 document with .* tokens in 1 window"):
        split_documents(private(tokenizer, ["the cat"]), 0.1, seed=0)


def test_little_text_divides_the_base_rate_by_three_and_much_does_not():
    class Small:
        train = make_windows([32] * 40)

    config = train_config(FinetuneConfig(), Small, 32, 3e-3, 8, "adam")  # type: ignore[arg-type]
    assert config.learning_rate == pytest.approx(1e-3)
    config = train_config(FinetuneConfig(small_tokens=100), Small, 32, 3e-3, 8, "adam")  # type: ignore[arg-type]
    assert config.learning_rate == pytest.approx(3e-3)


@pytest.mark.parametrize("n_rows", [1, 3, 65, 450, 1500])
def test_a_pass_shows_every_row(n_rows):
    class Some:
        train = make_windows([32] * n_rows)

    config = train_config(FinetuneConfig(), Some, 32, 3e-3, 32, "adam")  # type: ignore[arg-type]
    assert config.rows_per_step % config.rows_per_microbatch == 0
    steps_per_pass = config.steps // FinetuneConfig.max_epochs
    sampler = Sampler(Some.train, 32, config.rows_per_step, config.rows_per_microbatch, 0)
    shown = sum(batch.n_tokens for step in range(steps_per_pass) for batch in sampler.step(step))
    assert shown >= Some.train.n_tokens


def test_the_expert_is_the_most_frequent_cluster_and_the_next_is_told():
    selection = Selection(2, [1, 4, 9, 4])
    assert (selection.n_windows, selection.share, selection.runner_up) == (18, 0.5, (1, 4 / 18))
    assert Selection(0, [5]).runner_up is None


def test_documents_about_one_thing_select_the_cluster_of_that_thing(tokenizer):
    import torch

    from shared.embedder import find_embedder_files
    from shared.embedding import embed_texts, load_embedder

    embedder = load_embedder(*find_embedder_files(), torch.device("cpu"))
    centroids = embed_texts(embedder, ["law court judge contract", "cooking recipe onion", "football match"])
    texts = ["fry the onion in butter, then add salt"] * 3 + ["the judge dismissed the appeal"]
    found = private(tokenizer, texts, context=64)
    selection = select_expert(embed_windows(found.windows, tokenizer, embedder), centroids)
    assert selection.expert == 1
    assert selection.histogram == [1, 3, 0]
