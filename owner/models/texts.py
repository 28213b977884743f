"""Which texts a model is measured on: never those that it was trained on, where that can be known.

The report beside a model has a digest of its documents. Where these are the same documents, only those that
its run held out are scored, found again from the report's seed. Other documents are all scored; whether some
of them were among the training documents nobody can tell from the report.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from owner.documents.duplicates import document_tokens, read_distinct
from owner.documents.reading import read_documents
from owner.documents.walking import Skipped
from owner.documents.windows import split_documents
from owner.models.loading import LanguageModel, read_run
from shared.errors import DocumentsError
from shared.pieces import EOS_ID
from shared.progress import Say, show, stage


@dataclass(frozen=True)
class Texts:
    """Texts to score, by document, and what they are."""

    texts: list[str]
    are_heldout: bool
    """Whether they are what the run of a model held out, of the documents that it was made from."""
    is_seen: bool = False
    """Whether a model was trained on them, and nothing was held out that could be told apart."""

    @property
    def n_bytes(self) -> int:
        """Bytes of the texts in UTF-8."""
        return sum(len(text.encode()) for text in self.texts)


def read_texts(data: Path, models: list[LanguageModel], say: Say) -> Texts:
    """Return the documents' texts, or what all the models held out of them where they were made from these.

    Raises DocumentsError when there is no text, or when nothing is held out for all models.
    """
    with stage("read"):
        return _read_texts(data, models, say)


def _read_texts(data: Path, models: list[LanguageModel], say: Say) -> Texts:
    heldout: list[str] | None = None
    is_seen = False
    for model in models:
        own = _heldout_texts(data, model)
        if own is None:
            continue
        if not own:
            is_seen = True
            say(f"warning      {model.name} was trained on these documents: the figures flatter it")
            continue
        say(f"held out     {model.name} was made from these documents: only what its run held out counts")
        heldout = own if heldout is None else [text for text in heldout if text in own]
    if heldout is not None:
        if not heldout:
            raise DocumentsError(
                f"{data}: no document was held out of every model's training",
                hint="give other documents, or models that were made with the same --seed",
            )
        return Texts(heldout, True)
    skipped: list[Skipped] = []
    texts: list[str] = []
    for document in read_documents(data, skipped):
        texts.append(document.text)
        show(len(texts), None, "documents")
    say(f"documents    {len(texts):,} documents · {sum(item.n for item in skipped)} skipped")
    return Texts(texts, False, is_seen)


def _heldout_texts(data: Path, model: LanguageModel) -> list[str] | None:
    """Return what a model's run held out of these documents; None where it was made from others.

    Empty where one document was divided: its halves cannot be scored apart.
    """
    report = read_run(model.folder)
    if report is None or model.pieces is None or model.context_tokens is None:
        return None
    private, _ = read_distinct(data, [], model.tokenizer, model.context_tokens)
    if private.digest() != report.get("documents_sha256"):
        return None
    finetune = report["config"]["finetune"]
    split = split_documents(private, finetune["heldout_fraction"], finetune["seed"])
    if split.by != "documents":
        return []
    ids = document_tokens(private)
    return [_text(model, ids[document]) for document in np.unique(split.heldout_document)]


def _text(model: LanguageModel, ids: np.ndarray) -> str:
    """Return a document's text, which our tokenizer gives back as it was (but U+2581, which is a space)."""
    return model.decode(ids[ids != EOS_ID].tolist())
