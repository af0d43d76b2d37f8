"""Gates of the world that its texts and labels alone decide: neither topic, difficulty nor source may be read off trivially.

Each function returns one number; bounds lie in `TEXT_BOUNDS`. Gates that need the policy are in `saerl_lib.rl.gates`.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np
from scipy.stats import spearmanr
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from saerl_lib.data.sample import Sample

Bounds = tuple[float | None, float | None]

TEXT_BOUNDS: dict[str, Bounds] = {
    "guess rate": (None, 0.01),
    "rho(difficulty, prompt length)": (None, 0.4),
    "rho(difficulty, solution length)": (None, 0.6),
    "best single-token leaf accuracy": (None, 0.5),
    "TF-IDF leaf accuracy": (0.4, 0.8),
    "TF-IDF leaf accuracy, signs as tokens": (0.4, 0.8),
    "TF-IDF AUC target vs parent": (0.7, 0.95),
}
"""Allowed ranges, fixed before any SAERL arm was trained."""


def tokens(text: str) -> set[str]:
    """Words and marks of a text, without its numbers."""
    return set(re.findall(r"[a-z]+|[^\sa-z0-9]", text.lower()))


def guess_rate(train: Sequence[Sample], test: Sequence[Sample]) -> float:
    """Share of test answers that equal the most frequent training answer of their leaf."""
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    for sample in train:
        answers[sample.topic][sample.answer] += 1
    best = {topic: min(c, key=lambda a: (-c[a], a)) for topic, c in answers.items()}
    return float(np.mean([best.get(s.topic) == s.answer for s in test]))


def single_token_accuracy(train: Sequence[Sample], test: Sequence[Sample]) -> float:
    """Test accuracy of the token, best in training, whose presence or absence picks the leaf."""
    bags = [tokens(s.prompt) for s in train]
    totals = Counter(s.topic for s in train)
    inside: dict[str, Counter[str]] = defaultdict(Counter)
    for bag, sample in zip(bags, train, strict=True):
        for token in bag:
            inside[token][sample.topic] += 1

    def rule(token: str) -> tuple[str, str, int]:
        absent = totals - inside[token]
        with_it, without = (max(sorted(c), key=lambda t: c[t], default="") for c in (inside[token], absent))
        return with_it, without, inside[token][with_it] + absent[without]

    best = max(sorted(inside), key=lambda token: rule(token)[2])
    with_it, without, _ = rule(best)
    return float(np.mean([(with_it if best in tokens(s.prompt) else without) == s.topic for s in test]))


WORDS = r"(?u)\b\w\w+\b"
"""scikit-learn's default tokens: words and numbers of two characters or more."""
SIGNS = r"\w+|[^\w\s]"
"""Every word, number and sign: the stronger reader of bare notation, and that of the probe ladder."""


def _tfidf(texts: Sequence[str], pattern: str = WORDS) -> TfidfVectorizer:
    return TfidfVectorizer(ngram_range=(1, 2), token_pattern=pattern).fit(texts)


def tfidf_leaf_accuracy(train: Sequence[Sample], test: Sequence[Sample], pattern: str = WORDS) -> float:
    """Accuracy of a logistic regression on 1-2-grams of the prompt; `pattern` says what a token is."""
    vectors = _tfidf([s.prompt for s in train], pattern)
    model = LogisticRegression(C=10.0, max_iter=1000).fit(vectors.transform([s.prompt for s in train]), [s.topic for s in train])
    return float(model.score(vectors.transform([s.prompt for s in test]), [s.topic for s in test]))


def tfidf_source_auc(train: Sequence[Sample], test: Sequence[Sample]) -> float:
    """ROC-AUC of target against parent from 1-2-grams of the prompt."""
    vectors = _tfidf([s.prompt for s in train])
    model = LogisticRegression(C=1.0, max_iter=1000)
    model.fit(vectors.transform([s.prompt for s in train]), [s.source == "target" for s in train])
    scores = model.decision_function(vectors.transform([s.prompt for s in test]))
    return float(roc_auc_score([s.source == "target" for s in test], scores))


def text_gates(
    labelled: Sequence[Sample], test: Sequence[Sample], negatives: Sequence[Sample], pool: Sequence[Sample]
) -> dict[str, tuple[float, int]]:
    """gate -> (value, n), fitted on `labelled` (and `negatives`).

    Measured on `test`; the source on `pool`; guessing, a rare event, on both.
    """
    difficulty = [s.difficulty for s in test]
    n = len(test)
    return {
        "guess rate": (guess_rate(labelled, [*test, *pool]), n + len(pool)),
        "rho(difficulty, prompt length)": (float(spearmanr(difficulty, [len(s.prompt) for s in test])[0]), n),
        "rho(difficulty, solution length)": (float(spearmanr(difficulty, [len(s.solution) for s in test])[0]), n),
        "best single-token leaf accuracy": (single_token_accuracy(labelled, test), n),
        "TF-IDF leaf accuracy": (tfidf_leaf_accuracy(labelled, test), n),
        "TF-IDF leaf accuracy, signs as tokens": (tfidf_leaf_accuracy(labelled, test, SIGNS), n),
        "TF-IDF AUC target vs parent": (tfidf_source_auc([*labelled, *negatives], pool), len(pool)),
    }


def met(value: float, bounds: Bounds) -> bool:
    """Whether a value lies inside its bounds, ends included."""
    low, high = bounds
    return (low is None or value >= low) and (high is None or value <= high)
