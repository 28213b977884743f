"""Write the Python language reference that every Python installation carries, one file per topic.

It stands for private documents: half a megabyte of technical text that needs no download.
"""

import sys
from pathlib import Path
from pydoc_data.topics import topics

folder = Path(sys.argv[1])
folder.mkdir(parents=True, exist_ok=True)
for name, text in topics.items():
    (folder / f"{name}.txt").write_text(text, encoding="utf-8")
print(f"{len(topics)} files, {sum(len(text.encode()) for text in topics.values()):,} bytes in {folder}/")
