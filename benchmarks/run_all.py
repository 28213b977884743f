"""Every speed table in one command, a line of JSON for each comparison: `python benchmarks/run_all.py`.

--toy runs all of them at their smallest sizes in this one process: for CI, which looks at whether they run
and never at how long they take. What docs/benchmarks.md tells is made by this command.
"""

import argparse
import importlib
import subprocess
import sys
from pathlib import Path

TABLES = (
    ("step_time", []),
    ("step_time", ["--rows-per-step", "128", "--rounds", "8"]),
    ("pretraining_speed", []),
    ("finetuning_speed", []),
    ("bundle_speed", []),
    ("embedding_speed", []),
    ("kmeans_speed", []),
    ("loader_share", []),
    ("training_memory", []),
    ("growth", []),
)
"""Each table and its options, in the order of docs/benchmarks.md."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--toy", action="store_true")
    options = parser.parse_args()
    if options.toy:
        for name in dict.fromkeys(name for name, _ in TABLES):
            sys.argv = [name, "--toy"]
            importlib.import_module(name).main()
        return
    for name, arguments in TABLES:
        subprocess.run([sys.executable, Path(__file__).with_name(f"{name}.py"), *arguments], check=True)


if __name__ == "__main__":
    main()
