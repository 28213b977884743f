"""The whole job with real processes: a provider releases, an owner specializes, both are killed."""

import json
import os
import shutil
import stat
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.office import write_folder
from tests.parties import kill_after, run, start, write_corpus, write_key, write_private, write_recipe


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """A folder in which a provider has released tiny.st, and an owner trusts its key."""
    folder = tmp_path_factory.mktemp("released")
    home = folder / "home"
    write_recipe(folder / "release.toml")
    write_corpus(folder / "corpus")
    write_key(folder)
    done = run("provider", "release", "release.toml", "--corpus", "corpus", cwd=folder, home=home)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "tiny.st\n"
    assert run("owner", "trust", "add", "provider.pub", cwd=folder, home=home).returncode == 0
    write_private(folder / "private")
    return folder


@pytest.fixture(scope="module")
def specialized(released):
    """The same folder after `owner specialize`, with what the command printed."""
    done = run(
        "owner", "specialize", "--bundle", "tiny.st", "--data", "private", "--epochs", 2,
        cwd=released, home=released / "home",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return released, done


def specialize(folder, *more, bundle="tiny.st", data="private", out="other"):
    return run(
        "owner", "specialize", "--bundle", bundle, "--data", data, "--out", out, "--epochs", 2, *more,
        cwd=folder, home=folder / "home",
    )  # fmt: skip


def assert_refused(done, message, folder, out="other"):
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert not (folder / out).exists()


def test_a_released_stage_is_skipped_and_the_bundle_repeats(released):
    before = (released / "tiny.st").read_bytes()
    done = run(
        "provider", "release", "release.toml", "--corpus", "corpus", cwd=released, home=released / "home"
    )
    assert done.returncode == 0, done.stderr
    for stage in ("tokenizer", "corpus", "embeddings", "clusters", "sorted", "pretrain-pn", "pretrain-slm"):
        line = next(line for line in done.stderr.splitlines() if f" {stage}" in line)
        assert line.endswith("unchanged, skipped")
    assert (released / "tiny.st").read_bytes() == before
    assert stat.S_IMODE((released / "provider.key").stat().st_mode) == 0o600


def test_an_owner_sees_what_the_largest_clusters_are_about(released):
    home = released / "home"
    found = json.loads(run("owner", "inspect", "tiny.st", "--json", cwd=released, home=home).stdout)
    largest, terms = found["largest_clusters"], found["manifest"]["training"]["cluster_terms"]
    assert [entry["windows"] for entry in largest] == sorted((e["windows"] for e in largest), reverse=True)
    assert sum(entry["windows"] for entry in largest) == found["manifest"]["clusters"]["corpus_windows"]
    assert len(terms) == 4
    assert sum(map(bool, terms)) > 1
    shown = run("owner", "inspect", "tiny.st", cwd=released, home=home).stdout
    for entry in largest:
        assert entry["label"] == (", ".join(terms[entry["cluster"]][:3]) or f"cluster {entry['cluster']}")
        assert f"of windows · {entry['label']}\n" in shown


def test_a_release_killed_by_sigkill_at_many_moments_gives_the_same_bytes(released, tmp_path):
    for name in ("release.toml", "corpus", "provider.key"):
        source = released / name
        copy = shutil.copytree if source.is_dir() else shutil.copy2
        copy(source, tmp_path / name)
    kills = 0
    arguments = ["release", "release.toml", "--corpus", "corpus"]
    for seconds in (3.0, 5.0, 7.0, 9.0, 12.0):
        kills += kill_after(start("provider", arguments, tmp_path, tmp_path), seconds)
    done = run("provider", *arguments, cwd=tmp_path, home=tmp_path)
    assert done.returncode == 0, done.stderr
    assert kills >= 2
    assert (tmp_path / "tiny.st").read_bytes() == (released / "tiny.st").read_bytes()


def test_the_specialized_model_is_a_standard_directory(specialized):
    folder, done = specialized
    assert done.stdout == "specialized/model\n"
    model_folder = folder / "specialized" / "model"
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    assert type(model).__name__ == "LlamaForCausalLM"
    from dataclasses import replace

    from shared.sizes import PRESETS
    from shared.slm import build_slm

    sizes = replace(PRESETS["test"], width=32, ffn_width=48, vocab_size=500, context_tokens=64)
    plain = build_slm(sizes)
    weights = load_file(model_folder / "model.safetensors")
    assert set(weights) == {name for name, _ in plain.named_parameters()}
    plain.load_state_dict(weights, strict=False)
    ids = tokenizer("def is a keyword", return_tensors="pt").input_ids
    with torch.no_grad():
        assert torch.equal(model.eval()(ids).logits, plain.eval()(ids).logits)
    assert tokenizer.decode(ids[0]) == "def is a keyword"
    generated = model.generate(ids, max_new_tokens=3, do_sample=False, pad_token_id=2)
    assert generated.shape[1] > ids.shape[1]


def test_the_report_has_what_was_promised_and_the_model_folder_nothing_private(specialized):
    folder, _ = specialized
    report = json.loads((folder / "specialized" / "report.json").read_text())
    perplexity = report["perplexity"]
    assert set(perplexity) == {"before", "after", "slm_before", "slm_after"}
    assert perplexity["after"] < perplexity["before"]
    assert perplexity["slm_after"] < perplexity["slm_before"]
    assert 0 <= report["expert"] < 4
    assert report["histogram"][report["expert"]] == max(report["histogram"])
    assert report["tokens"] > 1000
    assert {"verify", "read", "select", "adapt"} <= set(report["seconds"])
    assert len(report["bundle"]["key_id"]) == 16
    assert report["split"] == "documents"
    for path in (folder / "specialized" / "model").iterdir():
        if path.suffix == ".json":
            text = path.read_text()
            assert "histogram" not in text
            assert '"expert' not in text
    assert not (folder / ".specialized.unfinished").exists()
    assert stat.S_IMODE((folder / "specialized").stat().st_mode) == 0o700


def test_before_is_the_loss_of_the_expert_as_published(specialized):
    from owner.documents.reading import read_documents
    from owner.documents.windows import split_documents, window_documents
    from owner.training.finetuning import FinetuneConfig
    from shared.batches import all_microbatches
    from shared.bundle import open_bundle
    from shared.losses import evaluate
    from shared.materializing import comparison_slm, materialize
    from shared.pieces import build_tokenizer, read_pieces
    from shared.signature import read_public_key

    folder, _ = specialized
    report = json.loads((folder / "specialized" / "report.json").read_text())
    with open_bundle(folder / "tiny.st", [read_public_key(folder / "provider.pub")]) as bundle:
        tokenizer = build_tokenizer(read_pieces(bundle.file("tokenizer.json")))
        private = window_documents(read_documents(folder / "private", []), tokenizer, 64)
        split = split_documents(private, FinetuneConfig.heldout_fraction, FinetuneConfig.seed)
        for model, key in (
            (materialize(bundle, report["expert"]), "before"),
            (comparison_slm(bundle), "slm_before"),
        ):
            found = evaluate(model, None, all_microbatches(split.heldout, 64, 4)).perplexity
            # the command ran with the machine's own products, bfloat16 where it has them
            assert found == pytest.approx(report["perplexity"][key], rel=2e-2)
    model = AutoModelForCausalLM.from_pretrained(folder / "specialized" / "model")
    found = evaluate(model, None, all_microbatches(split.heldout, 64, 4)).perplexity
    assert found == pytest.approx(report["perplexity"]["after"], rel=2e-2)


def test_a_specialization_killed_by_sigkill_at_many_moments_gives_the_same_bytes(specialized):
    folder, _ = specialized
    arguments = ["specialize", "--bundle", "tiny.st", "--data", "private", "--epochs", 2, "--out", "killed"]
    kills = 0
    for seconds in (2.0, 3.0, 4.0, 5.0, 6.0, 7.5):
        kills += kill_after(start("owner", arguments, folder, folder / "home"), seconds)
    done = run("owner", *arguments, cwd=folder, home=folder / "home")
    assert done.returncode == 0, done.stderr
    assert kills >= 2
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        ours = (folder / "killed" / "model" / name).read_bytes()
        assert ours == (folder / "specialized" / "model" / name).read_bytes(), name
    assert not (folder / ".killed.unfinished").exists()


def test_the_same_command_again_finds_its_work_done_and_another_is_refused(specialized):
    folder, _ = specialized
    before = (folder / "specialized" / "report.json").read_bytes()
    again = specialize(folder, out="specialized")
    assert again.returncode == 0
    assert "already finished by the same command" in again.stderr
    other = specialize(folder, "--seed", 5, out="specialized")
    assert other.returncode == 1
    assert "specialized: already exists" in other.stderr
    assert (folder / "specialized" / "report.json").read_bytes() == before


def test_an_unknown_key_is_refused_with_the_command_to_type(released):
    done = run(
        "owner", "specialize", "--bundle", "tiny.st", "--data", "private", "--out", "other",
        cwd=released, home=released / "nobody",
    )  # fmt: skip
    assert_refused(done, "signed by unknown key", released)
    assert "owner trust add provider.pub" in done.stderr


def test_tampered_truncated_and_resigned_bundles_are_refused(released):
    content = (released / "tiny.st").read_bytes()
    flipped = bytearray(content)
    flipped[-1000] ^= 1
    (released / "flipped.st").write_bytes(flipped)
    assert_refused(specialize(released, bundle="flipped.st"), "is not what was signed", released)
    (released / "short.st").write_bytes(content[:-7])
    assert_refused(specialize(released, bundle="short.st"), "short.st", released)
    save_file(load_file(released / "tiny.st"), released / "unsigned.st")
    assert_refused(specialize(released, bundle="unsigned.st"), "unsigned.st", released)
    other = released / "other-provider"
    other.mkdir()
    write_key(other)
    done = run(
        "provider", "release", "release.toml", "--corpus", "corpus", "--key", "other-provider/provider.key",
        "--out", "other-provider", cwd=released, home=released / "home",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert_refused(specialize(released, bundle="other-provider/tiny.st"), "unknown key", released)
    assert_refused(specialize(released, bundle="missing.st"), "missing.st", released)


def test_an_older_version_of_a_bundle_already_seen_is_refused(released, tmp_path):
    write_recipe(released / "newer.toml", version=2)
    newer = released / "newer"
    done = run(
        "provider", "release", "newer.toml", "--corpus", "corpus", "--out", "newer",
        cwd=released, home=released / "home",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    home = tmp_path / "home"
    assert run("owner", "trust", "add", "provider.pub", cwd=released, home=home).returncode == 0
    for bundle, code in ((newer / "tiny.st", 0), (released / "tiny.st", 1)):
        done = run(
            "owner", "specialize", "--bundle", bundle, "--data", released / "private", "--epochs", 1,
            "--out", tmp_path / f"out-{code}", cwd=released, home=home,
        )  # fmt: skip
        assert done.returncode == code, done.stderr
    assert "version" in done.stderr


@pytest.mark.parametrize("kind", ["mix", "slm"])
def test_mixtures_and_plain_models_are_bundles_too(released, kind):
    embedder = "files" if kind == "mix" else "digest"
    write_recipe(released / f"{kind}.toml", kind=kind, embedder=embedder)
    done = run(
        "provider", "release", f"{kind}.toml", "--corpus", "corpus", "--out", kind,
        cwd=released, home=released / "home",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    more = []
    if kind == "mix":  # the embedder's files in the bundle are used, not the installed package
        (released / "nothing").mkdir()
        more = ["--embedder", "nothing"]
    done = specialize(released, *more, bundle=f"{kind}/tiny.st", out=f"out-{kind}")
    assert done.returncode == 0, done.stderr
    report = json.loads((released / f"out-{kind}" / "report.json").read_text())
    assert report["perplexity"]["after"] < report["perplexity"]["before"]
    assert ("slm_after" in report["perplexity"]) == (kind == "mix")
    assert AutoModelForCausalLM.from_pretrained(released / f"out-{kind}" / "model") is not None


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "empty"),
        ({"a.png": b"\x89PNG\x00", "b.txt": b""}, "no document with text"),
        ({"a.txt": b"one short text"}, "too little to train on one part"),
        ({"a.txt": "naïve".encode("latin-1")}, "no document with text"),
    ],
)
def test_folders_without_enough_text_are_refused(released, tmp_path, files, message):
    data = tmp_path / "data"
    data.mkdir()
    for name, content in files.items():
        (data / name).write_bytes(content)
    assert_refused(specialize(released, data=data), message, released)


def test_one_document_of_500_bytes_and_another_are_enough_to_run(released, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    (data / "a.txt").write_text("The court finds for the plaintiff. " * 15)
    (data / "b.txt").write_text("The appeal is dismissed with costs. " * 15)
    done = specialize(released, data=data, out=tmp_path / "out")
    assert done.returncode == 0, done.stderr


def test_no_space_left_is_one_clear_line_and_leaves_no_result(released, tmp_path):
    """A real file-size limit: what the kernel answers is what a full disk gives, but for the number."""
    import resource

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))

    import subprocess
    import sys

    code = "from owner.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "specialize", "--bundle", str(released / "tiny.st"), "--data",
         str(released / "private"), "--out", str(tmp_path / "out"), "--epochs", "1"],
        cwd=tmp_path, env=os.environ | {"PLANEARLY_HOME": str(released / "home")},
        capture_output=True, text=True, preexec_fn=limit,
    )  # fmt: skip
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "error:" in done.stderr
    assert not (tmp_path / "out").exists()


def test_private_text_appears_in_no_message_and_no_file_but_the_weights(released, tmp_path):
    canary = "xyzzy-7731-plugh"
    data = tmp_path / "data"
    data.mkdir()
    for number in range(3):
        (data / f"{number}.txt").write_text(f"Dear {canary}, number {number}. " * 40)
    (data / "bad.jsonl").write_text('{"text": "' + canary + "\n[" + canary)
    (data / "latin.txt").write_bytes((canary + " é").encode("latin-1"))
    done = specialize(released, data=data, out=tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert canary not in done.stdout + done.stderr
    for path in Path(tmp_path / "out").rglob("*"):
        if path.is_file():
            assert canary.encode() not in path.read_bytes(), path


def test_a_replay_pack_joins_and_auto_reports_what_it_measured(released):
    done = specialize(released, "--select", "auto", "--replay", "tiny-replay.st", "--replay-tokens", 2000)
    assert done.returncode == 0, done.stderr
    assert "replay pack  tiny-replay.st" in done.stderr
    report = json.loads((released / "other" / "report.json").read_text())
    shutil.rmtree(released / "other")
    assert {start["name"] for start in report["starts"]} >= {"histogram", "learned", "slm"}
    assert report["chosen"] in report["finetuning"]
    assert report["replay_pack"]["name"] == "tiny-replay"
    for figures in report["finetuning"].values():
        assert figures["replay"]["tokens"] > 1500
    assert report["perplexity"]["after"] <= report["perplexity"]["slm_after"]


def test_a_pack_is_no_bundle_and_a_bundle_no_pack(released):
    assert_refused(specialize(released, bundle="tiny-replay.st"), "holds no model", released)
    assert_refused(specialize(released, "--replay", "tiny.st"), "expected replay", released)


def test_a_teacher_and_lora_from_the_command_line(released):
    done = specialize(released, "--teacher", "tiny.st", "--lora", 2, out="taught")
    assert done.returncode == 0, done.stderr
    report = json.loads((released / "taught" / "report.json").read_text())
    assert report["teacher"]["file"] == "tiny.st"
    assert report["config"]["finetune"]["lora_rank"] == 2
    assert AutoModelForCausalLM.from_pretrained(released / "taught" / "model") is not None


def test_a_histogram_is_shown_before_it_is_written_and_trains_for_its_owner(released):
    home, arguments = released / "home", ("--bundle", "tiny.st", "--data", "private", "--epsilon", "1.0")
    refused = run("owner", "histogram", *arguments, "--out", "no.json", cwd=released, home=home)
    assert refused.returncode == 1
    assert "documents per cluster, after noise" in refused.stderr
    assert not (released / "no.json").exists()
    plain = ("--yes", "--quiet", "--json", "--out", "request.json")
    done = run("owner", "histogram", *arguments, *plain, cwd=released, home=home)
    assert (done.returncode, done.stderr) == (0, "")
    request = json.loads((released / "request.json").read_text())
    assert json.loads(done.stdout) == request
    assert set(request) == {"format", "centroids_sha256", "counts", "epsilon", "mechanism"}
    again = run("owner", "histogram", *arguments, "--yes", "--out", "request.json", cwd=released, home=home)
    assert_refused(again, "request.json: already exists", released)

    request["counts"] = [0, 9, 0, 3]
    (released / "request.json").write_text(json.dumps(request))
    write_recipe(released / "is.toml", kind="slm")
    release = ("release", "is.toml", "--corpus", "corpus", "--out", "is", "--histogram", "request.json")
    done = run("provider", *release, cwd=released, home=home)
    assert done.returncode == 0, done.stderr
    from shared.bundle import open_bundle
    from shared.signature import read_public_key

    with open_bundle(released / "is" / "tiny.st", [read_public_key(released / "provider.pub")]) as bundle:
        training = bundle.manifest.raw["training"]
    assert training["importance"]["n_clusters"] == 2
    assert len(training["request_sha256"]) == 64
    assert "counts" not in json.dumps(training)

    request["centroids_sha256"] = "0" * 64
    (released / "foreign.json").write_text(json.dumps(request))
    done = run("provider", *release[:-1], "foreign.json", cwd=released, home=home)
    assert done.returncode == 1
    assert "its counts are of the clustering 0000" in done.stderr


def test_one_expert_of_a_mixture_is_trained_alone_and_touches_only_its_windows(released):
    write_recipe(released / "alone.toml", kind="mix")
    home = released / "home"
    release = ("release", "alone.toml", "--corpus", "corpus", "--out", "alone", "--expert")
    done = run("provider", *release, 2, cwd=released, home=home)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "alone/tiny-expert2.st\n"
    assert "expert 2/4" in done.stderr
    assert not any(f"expert {i}/4" in done.stderr for i in (0, 1, 3))
    from shared.bundle import open_bundle
    from shared.signature import read_public_key

    key = read_public_key(released / "provider.pub")
    with open_bundle(released / "alone" / "tiny-expert2.st", [key]) as bundle:
        losses = bundle.manifest.raw["training"]["heldout_loss_per_cluster"]
        assert bundle.manifest.kind == "slm"
    assert [loss is not None for loss in losses] == [False, False, True, False]
    done = run("provider", *release, 4, cwd=released, home=home)
    assert done.returncode == 1
    assert "expert 4 of 4" in done.stderr


def test_a_private_model_says_what_it_promises_and_can_be_audited(released):
    done = specialize(released, "--dp-epsilon", 6, "--canaries", 2, out="promised")
    assert done.returncode == 0, done.stderr
    assert "epsilon 5.9" in done.stderr
    assert "without differential privacy ->" in done.stderr
    report = json.loads((released / "promised" / "report.json").read_text())
    privacy = report["privacy"]
    assert 5.9 < privacy["epsilon"] <= 6.0
    assert privacy["epsilon"] == privacy["epsilon_selection"] + privacy["epsilon_training"]
    assert "document" in privacy["unit"]
    assert privacy["perplexity_private"] <= privacy["perplexity_start"]
    assert privacy["perplexity_without"] < privacy["perplexity_start"]
    assert "slm" not in report["finetuning"]
    assert not (released / ".promised.unfinished").exists()
    home, before = released / "home", set((released / "promised").iterdir())
    done = run("owner", "audit", "promised", "--data", "private", cwd=released, home=home)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in set((released / "promised").iterdir()) - before} == {"audit.json"}
    assert [line.split()[0] for line in done.stdout.splitlines()] == [
        "membership", "verbatim", "canaries", "start", "promise"
    ]  # fmt: skip
    written = released / "promised" / "audit.json"
    assert stat.S_IMODE(written.stat().st_mode) == 0o600
    found = json.loads(written.read_text())
    membership = found["membership"]
    assert membership["trained"] + membership["heldout"] == report["documents"]
    assert privacy["n_documents"] == membership["trained"] + 2  # the canaries
    assert found["start"]["true"] == report["chosen"]
    assert found["canaries"]["planted"] == 2
    (released / "fewer").mkdir()
    for path in sorted((released / "private").iterdir())[1:]:
        shutil.copy(path, released / "fewer")
    done = run("owner", "audit", "promised", "--data", "fewer", cwd=released, home=home)
    assert done.returncode == 1
    assert "its documents have digest" in done.stderr
    done = run(
        "owner", "audit", "promised", "--data", "private", "--bundle", "no.st", cwd=released, home=home
    )
    assert done.returncode == 1


@pytest.mark.parametrize(
    "others", [("--select", "auto"), ("--replay", "tiny.replay.st"), ("--teacher", "tiny.st")]
)
def test_what_a_promise_does_not_account_for_is_refused(released, others):
    done = specialize(released, "--dp-epsilon", 1, *others)
    assert_refused(done, "does not account for", released)


def test_an_office_folder_is_specialized_in_one_command_and_every_skip_is_named(released):
    expected = write_folder(released / "office")
    done = specialize(released, data="office", out="from-office")
    assert done.returncode == 0, done.stderr
    report = json.loads((released / "from-office" / "report.json").read_text())
    assert {item["path"]: item["reason"] for item in report["skipped"]} == expected
    assert len(report["skipped"]) == len(expected)
    assert f"{len(expected)} skipped (see report.json)" in done.stderr
    assert report["documents"] > 20
    assert report["duplicates"]["exact"] >= 1
    assert {layer["name"] for layer in report["isolation"]["layers"]} >= {"landlock", "seccomp"}
