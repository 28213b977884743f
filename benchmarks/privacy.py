"""What a model gives away and what hiding it costs: epsilon 1, 3, 8 and none, on the demo's bundle and text.

  python benchmarks/privacy.py

Documents are the demo's topics cut after paragraphs into pieces of about a thousand characters, so that
there are enough of them. Each row is one `owner specialize --canaries 16` and one `owner audit`; what is
finished in --work is not run again. Options: --work (.privacy), --epsilons (1 3 8 inf), --canaries (16).
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from pydoc_data.topics import topics

ROOT = Path(__file__).parent.parent
DEMO = ROOT / "examples" / "demo"
DOCUMENT_CHARACTERS, LEAST_CHARACTERS = 1000, 200
COLUMNS = ["epsilon", "perplexity", "AUC (95 %)", "mean exposure, bits", "canaries written"]
COLUMNS += ["longest verbatim, tokens"]


def write_documents(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    with (folder / "topics.jsonl").open("w") as out:
        for _, text in sorted(topics.items()):
            held = ""
            for paragraph in [*text.split("\n\n"), ""]:
                if len(held) >= DOCUMENT_CHARACTERS or (not paragraph and len(held) >= LEAST_CHARACTERS):
                    out.write(json.dumps({"text": held}) + "\n")
                    held = ""
                held += paragraph + "\n\n"


def owner(work: Path, *arguments: object) -> str:
    environment = os.environ | {"PLANEARLY_HOME": str(work / "home"), "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = str(ROOT)
    command = [sys.executable, "-c", "from owner.cli import main; main()", *map(str, arguments)]
    done = subprocess.run(command, cwd=work, env=environment, stdout=subprocess.PIPE)
    if done.returncode:
        raise SystemExit(done.returncode)
    return done.stdout.decode()


def row(work: Path, epsilon: str, n_canaries: int) -> str:
    out = work / f"epsilon-{epsilon}"
    more = ["--canaries", n_canaries] + ([] if epsilon == "inf" else ["--dp-epsilon", epsilon])
    bundle = DEMO / "pn16.st"
    owner(work, "specialize", "--bundle", bundle, "--data", "private", "--out", out, *more)
    if not (out / "audit.json").exists():
        owner(work, "audit", out, "--data", "private", "--bundle", bundle)
    report, found = (json.loads((out / name).read_text()) for name in ("report.json", "audit.json"))
    membership, canaries, verbatim = found["membership"], found["canaries"], found["verbatim"]
    perplexity, (low, high) = report["perplexity"], membership["auc_95"]
    cells = [
        epsilon,
        f"{perplexity['before']:.1f} -> {perplexity['after']:.1f}",
        f"{membership['auc']:.3f} ({low:.3f} to {high:.3f})",
        f"{canaries['model']['mean_bits']:.2f} (start {canaries['start']['mean_bits']:.2f})",
        f"{canaries['model']['completed']} of {canaries['planted']}",
        f"{verbatim['model']['trained']['longest_tokens']} (start"
        f" {verbatim['start']['trained']['longest_tokens']}; held out"
        f" {verbatim['model']['heldout']['longest_tokens']})",
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", type=Path, default=ROOT / ".privacy")
    parser.add_argument("--epsilons", nargs="+", default=["1", "3", "8", "inf"])
    parser.add_argument("--canaries", type=int, default=16)
    options = parser.parse_args()
    work = options.work.absolute()
    work.mkdir(exist_ok=True)
    if not (work / "home").exists():
        write_documents(work / "private")
        owner(work, "trust", DEMO / "provider.pub")
    print(f"| {' | '.join(COLUMNS)} |\n{'| --- ' * len(COLUMNS)}|", flush=True)
    for epsilon in options.epsilons:
        print(row(work, epsilon, options.canaries), flush=True)


if __name__ == "__main__":
    main()
