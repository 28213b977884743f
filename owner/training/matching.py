"""Whether another bundle fits the one that is specialized: a teacher or a pack, of the same tokens."""

from owner.choice.candidates import check_method
from shared.bundle import Bundle
from shared.errors import PlanearlyError
from shared.replay import check_is_pack


def tokenizer_digest(bundle: Bundle) -> str:
    """Return the digest of a bundle's tokenizer: what teacher, pack and bundle must share."""
    return bundle.manifest.tensors["files.tokenizer.json"].sha256


def check_pack(bundle: Bundle, pack: Bundle) -> None:
    """Refuse what is no replay pack, or one of other tokens or longer windows. Raises PlanearlyError."""
    check_is_pack(pack)
    check_same_tokenizer(bundle, pack)
    _check_context(pack, pack.manifest.model.context_tokens, bundle.manifest.model.context_tokens)


def check_teacher(bundle: Bundle, teacher: Bundle) -> None:
    """Refuse a teacher that is no model, or has other tokens or a shorter context. Raises PlanearlyError."""
    check_method("most-frequent", teacher)
    check_same_tokenizer(bundle, teacher)
    _check_context(teacher, bundle.manifest.model.context_tokens, teacher.manifest.model.context_tokens)


def _check_context(other: Bundle, longest: int, limit: int) -> None:
    if longest > limit:
        raise PlanearlyError(
            f"{other.path}: windows of {longest} tokens for a context of {limit}",
            hint="bundle, teacher and pack must come from releases of one context length",
        )


def check_same_tokenizer(bundle: Bundle, other: Bundle) -> None:
    """Refuse a teacher or a pack whose token ids mean something else. Raises PlanearlyError."""
    if tokenizer_digest(bundle) != tokenizer_digest(other):
        raise PlanearlyError(
            f"{other.path}: its tokenizer has digest {tokenizer_digest(other)[:16]}..., expected"
            f" {tokenizer_digest(bundle)[:16]}... as in {bundle.path}",
            hint="both must come from releases of one corpus and vocabulary",
        )
