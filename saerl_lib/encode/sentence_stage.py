"""Stage `saes_sentence`: SAEs of the sentence encoder's own residual stream, trained on real mathematics (ours).

An encoder that was pre-trained on a thousand million pairs of sentences shows what an SAE keeps where the model itself is
good. It needs the optional package of `saerl_lib.encode.sentence`.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from saerl_lib.artifacts import Stage, file_sha256, get_or_compute
from saerl_lib.config import EncoderConfig, Profile, to_dict
from saerl_lib.encode.activations import truncate
from saerl_lib.encode.kinds_stage import SAE_CODE, collect_text_vectors, sae_seeds, train_kinds
from saerl_lib.encode.readers import Reader
from saerl_lib.encode.real_stage import corpus_files
from saerl_lib.encode.sentence import MAX_TOKENS, load_sentence_model, sentence_model_folder
from saerl_lib.encode.spans import Layout

NAMES = {"trained": "sentence_sae", "untrained": "sentence_sae_untrained"}
"""Kind of an SAE -> its name in the ladder."""
CODE = (*SAE_CODE, "encode/sentence.py", "encode/sentence_stage.py")
LAYOUT = Layout(max_tokens=MAX_TOKENS)


def sentence_config(profile: Profile) -> EncoderConfig:
    """The settings of the SAEs of real text, on the sentence encoder's layer."""
    return dataclasses.replace(profile.method.text_sae, hook_layer=profile.method.sentence_layer)


def sentence_sae_stage(profile: Profile, model_folder: Path) -> Stage:
    """`<ladder name>#<seed>/` for both kinds and every seed, and quality.parquet."""
    config = sentence_config(profile)

    def compute(folder: Path) -> None:
        model, tokenizer = load_sentence_model(model_folder)
        decoder = truncate(model, config.hook_layer)
        vectors = collect_text_vectors(decoder, tokenizer, config, profile.method, LAYOUT, profile.seed)
        train_kinds(vectors, config, NAMES, sae_seeds(profile), profile.method, folder)

    settings = {**to_dict(config), "seeds": profile.method.sae_seeds, "seed": profile.seed}
    settings["data"] = corpus_files(profile.method)
    settings |= {"model": file_sha256(model_folder / "model.safetensors"), "cosine": profile.method.decoder_cosine}
    return get_or_compute(profile, "saes_sentence", CODE, settings, compute)


def sentence_reader(profile: Profile) -> tuple[Reader, Stage] | None:
    """The reader of the sentence encoder's SAEs and their stage, or None when the package is not installed."""
    model_folder = sentence_model_folder()
    if model_folder is None:
        return None
    saes, config = sentence_sae_stage(profile, model_folder), sentence_config(profile)
    folders = {path.name: path for path in sorted(saes.folder.iterdir()) if path.is_dir()}
    width = load_sentence_model(model_folder)[0].config.hidden_size
    return Reader(model_folder, config.hook_layer, folders, config.tokens_per_batch, LAYOUT, width, load_sentence_model), saes
