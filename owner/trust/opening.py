"""Opening what a provider sent: vouched for, not older than seen, digests checked."""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

from owner.trust.remembering import check_not_rolled_back, remember_version
from owner.trust.vouching import (
    Trust,
    check_vouched,
    describe_voucher,
    explain_unknown,
    related_key_ids,
    usable_keys,
)
from shared.bundle import Bundle, open_bundle
from shared.errors import UnknownKeyError
from shared.progress import Say, show


def open_vouched(path: Path, stack: ExitStack, trust: Trust, say: Say) -> tuple[Bundle, dict[str, Any]]:
    """Open a bundle that this owner's trust covers; return it and who vouches. Digests are not checked.

    It is closed with the stack. Raises SignatureError, BundleError.
    """
    try:
        bundle = stack.enter_context(open_bundle(path, usable_keys(trust)))
    except UnknownKeyError as error:
        raise explain_unknown(trust, error) from None
    voucher = check_vouched(trust, bundle)
    if line := describe_voucher(voucher):
        say(f"trust file   {line}")
    return bundle, voucher


def open_trusted(path: Path, stack: ExitStack, trust: Trust, say: Say) -> tuple[Bundle, dict[str, Any]]:
    """Do the same for a bundle that is to be used: no older than one seen, every digest checked.

    Raises SignatureError, BundleError.
    """
    bundle, voucher = open_vouched(path, stack, trust, say)
    manifest = bundle.manifest
    check_not_rolled_back(related_key_ids(trust, bundle.key_id), manifest.name, manifest.version)
    if manifest.kind != "mix":  # of a mixture only the chosen expert is read, and checked then
        bundle.verify_all(lambda done, total: show(done, total, "bytes"))
    remember_version(bundle.key_id, manifest.name, manifest.version)
    return bundle, voucher
