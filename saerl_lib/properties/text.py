"""TF-IDF features of a text: the baseline that an SAE probe has to beat (ours; the paper has none).

The matrices are sparse and feed the same probes as the SAE features, with the same search budget (`probes`).
"""

from __future__ import annotations

from collections.abc import Sequence

from sklearn.feature_extraction.text import TfidfVectorizer

TOKEN_PATTERN = r"\w+|[^\w\s]"
"""Words, whole numbers and single signs: scikit-learn's default drops digits and operators, which carry mathematics."""
MAX_TERMS = 5000
"""Most frequent terms kept, which bounds the time of the elastic net."""


def fit_tfidf(train_texts: Sequence[str], max_terms: int = MAX_TERMS) -> TfidfVectorizer:
    """A vectoriser of lower-case 1-grams and 2-grams with sublinear counts, fitted on training texts only.

    `fit_tfidf(train).transform(texts)` is a sparse matrix [N, at most max_terms] with rows of norm 1.
    Raises ValueError when there is no text or no text holds a term.
    """
    if not any(text.strip() for text in train_texts):
        raise ValueError("train_texts is empty or blank: pass the texts of the training samples")
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), token_pattern=TOKEN_PATTERN, max_features=max_terms, sublinear_tf=True)
    return vectorizer.fit(train_texts)
