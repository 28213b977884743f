"""Specialize a bundle from Python: python examples/specialize.py pn32.st private/ specialized/."""

import sys

from transformers import AutoModelForCausalLM, AutoTokenizer

from owner import specialize

bundle, data, out = sys.argv[1:4]
report = specialize(bundle, data, out, epochs=2)
print(f"perplexity {report['perplexity']['before']:.1f} -> {report['perplexity']['after']:.1f}")
model = AutoModelForCausalLM.from_pretrained(f"{out}/model")
tokenizer = AutoTokenizer.from_pretrained(f"{out}/model")
ids = tokenizer("<s>The", return_tensors="pt").input_ids
print(tokenizer.decode(model.generate(ids, max_new_tokens=20)[0]))
