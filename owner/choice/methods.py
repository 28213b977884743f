"""The names of the ways to choose where fine-tuning starts; owner/choice/candidates.py has what they do."""

METHODS = {
    "most-frequent": "the expert of the cluster with most of your windows (the paper's default)",
    "best-pretrained": "the expert with the lowest held-out loss before fine-tuning (Table 5)",
    "best-fine-tuned": "the expert with the lowest held-out loss after fine-tuning each of them (Table 5)",
    "histogram": "the mean of the experts, weighted by your histogram",
    "learned": "a point between experts, learned on your windows",
    "auto": "measures most-frequent, histogram, learned and the plain model; fine-tunes the best of the first"
    " three and the plain model, and keeps the better",
}
