"""Where a latent fires: the tokens of its highest-activating samples, as text and as HTML (paper, Table 12; form ours).

The paper lets a language model describe such samples; here a reader sees the tokens. The strength of a token is shown by
shade and by weight (bold from half the maximum, the maximum underlined), so that it also reads without colour.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from saerl_lib.data.sample import Sample
from saerl_lib.encode.activations import token_batches
from saerl_lib.encode.pooling import Encoder, batch_latents

BOLD_SHARE = 0.5
"""Tokens from this share of the maximum on are bold (ours)."""
CONTEXT_TOKENS = 24
"""Tokens before and after the strongest one in the text version (ours)."""
BOX = "font-family:monospace;white-space:pre-wrap;background:#FFFFFF;color:#000000;padding:0.3em"
"""Style of the token box: black on white whatever the notebook's theme."""
FULL_SHADE = (86, 180, 233)
"""RGB of the strongest token: sky blue of Okabe and Ito; black text stays readable on it."""


@dataclass(frozen=True)
class TokenHighlights:
    """One span of one sample with the activations of one latent."""

    feature: str
    """Column name such as sol_mean/50831."""
    sample_id: str
    span: str
    """prompt or solution."""
    tokens: tuple[str, ...]
    activations: tuple[float, ...]
    """One a token, at least 0, in the SAE's units."""

    def __post_init__(self) -> None:
        if len(self.tokens) != len(self.activations):
            raise ValueError(
                f"{self.sample_id}: {len(self.tokens)} tokens, {len(self.activations)} activations: lengths must agree"
            )

    @property
    def strongest(self) -> int | None:
        """Place of the first token with the largest activation, None when no token is active."""
        peak = max(self.activations, default=0.0)
        return self.activations.index(peak) if peak > 0 else None

    def text(self, context: int = CONTEXT_TOKENS) -> str:
        """The strongest token in guillemets with `context` tokens on both sides, line breaks as ' | '.

        >>> TokenHighlights("sol_max/3", "a", "solution", ("x", " =", " 7"), (0.0, 0.5, 2.0)).text()
        'x =« 7»'
        """
        best = self.strongest
        marked = [f"«{t}»" if i == best else t for i, t in enumerate(self.tokens)]
        low = max(0, (best or 0) - context)
        high = min(len(marked), (best or 0) + context + 1)
        cut = ("..." if low else "") + "".join(marked[low:high]) + ("..." if high < len(marked) else "")
        return cut.replace("\n", " | ").strip()

    def _repr_html_(self) -> str:
        peak = max(self.activations, default=0.0)
        pairs = enumerate(zip(self.tokens, self.activations, strict=True))
        shown = "".join(_token(t, a / peak if peak else 0.0, i == self.strongest, a) for i, (t, a) in pairs)
        feature, span, sample = (html.escape(name) for name in (self.feature, self.span, self.sample_id))
        head = f"<b>{feature}</b> in the {span} of {sample}, maximum {peak:.2f}"
        return f'<div style="margin:0 0 0.8em 0">{head}<div style="{BOX}">{shown}</div></div>'


@dataclass(frozen=True)
class HighlightPage:
    """Some highlights below each other."""

    items: tuple[TokenHighlights, ...]

    def _repr_html_(self) -> str:
        return "".join(item._repr_html_() for item in self.items)

    def text(self) -> str:
        """One line an item: feature, sample, excerpt."""
        return "\n".join(f"{i.feature}  {i.sample_id}  {i.text()}" for i in self.items)

    def of(self, feature: str) -> HighlightPage:
        """The highlights of one feature."""
        return HighlightPage(tuple(item for item in self.items if item.feature == feature))


def _token(token: str, share: float, strongest: bool, activation: float) -> str:
    text = html.escape(token)
    if share <= 0:
        return text
    shade = "".join(f"{round(255 - share * (255 - c)):02X}" for c in FULL_SHADE)
    style = f"background:#{shade};font-weight:{'bold' if share >= BOLD_SHARE else 'normal'}"
    style += ";text-decoration:underline" if strongest else ""
    return f'<span style="{style}" title="{activation:.2f}">{text}</span>'


@dataclass(frozen=True)
class Wanted:
    """A latent to be shown in one sample."""

    feature: str
    latent: int
    """Index of the SAE's dictionary."""
    span: str
    """prompt or solution."""
    sample: Sample


def token_highlights(wanted: Sequence[Wanted], encoder: Encoder) -> HighlightPage:
    """Highlights in the order of `wanted`; every sample is encoded once, one batch at a time."""
    samples = list({w.sample.id: w.sample for w in wanted}.values())
    found: dict[int, TokenHighlights] = {}
    for batch in token_batches(samples, encoder.tokenizer, encoder.tokens_per_batch, encoder.layout):
        latents = batch_latents(encoder, batch, samples)
        for b, row in enumerate(batch.rows):
            for place, w in enumerate(wanted):
                if w.sample.id == samples[row].id:
                    mask = batch.prompt[b] if w.span == "prompt" else batch.solution[b]
                    tokens = tuple(_piece(encoder, i) for i in batch.ids[b][mask].tolist())
                    values = latents[b, mask, w.latent].to(torch.float64)
                    found[place] = TokenHighlights(w.feature, w.sample.id, w.span, tokens, tuple(values.tolist()))
    return HighlightPage(tuple(found[place] for place in range(len(wanted))))


def _piece(encoder: Encoder, token: int) -> str:
    return str(encoder.tokenizer.decode([token]))


def to_records(page: HighlightPage) -> list[dict[str, Any]]:
    """JSON-ready records of a page; activations to 5 digits."""
    return [{**asdict(item), "activations": [round(a, 5) for a in item.activations]} for item in page.items]


def from_records(records: Iterable[dict[str, Any]]) -> HighlightPage:
    """A page from the records of `to_records`."""
    return HighlightPage(
        tuple(TokenHighlights(**{**r, "tokens": tuple(r["tokens"]), "activations": tuple(r["activations"])}) for r in records)
    )
