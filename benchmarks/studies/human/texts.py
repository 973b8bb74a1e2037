"""Texts of the study, by one tokenizer: the standard library to pre-train on, Wikitext-2 to train and evaluate on."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch

from benchmarks.studies.human.plan import BLOCK_TOKENS, PRETRAINING_BYTES, VOCABULARY
from control_plane.core.model.errors import NotFound
from ray_jobs.config.run_config import DataSettings
from ray_jobs.data.sample_order import Corpus, Ids
from ray_jobs.workloads import stdlib_text, wikitext2
from ray_jobs.workloads.vocabulary import END_OF_TEXT, tokenized

WIKITEXT = Path(__file__).parents[3].parent / "shared" / "data" / "wikitext-2"
"""Folder with `valid.txt`, which trains, and `test.txt`, which evaluates: beside the project's own folder."""


@dataclass(frozen=True)
class Texts:
    """Blocks of token ids, each of shape (blocks, tokens a block), int64."""

    pretraining: torch.Tensor
    pretraining_evaluation: torch.Tensor
    train: torch.Tensor
    evaluation: torch.Tensor


@cache
def texts() -> Texts:
    """Return the texts. The tokenizer is the workloads' own, trained on the text of the pre-training.

    Raises `NotFound` without Wikitext-2 or without the sources of the standard library.
    """
    if not WIKITEXT.is_dir():
        raise NotFound(f"the study trains on Wikitext-2, and there is no {WIKITEXT}")
    library = stdlib_text.read(DataSettings(source="stdlib", max_train_bytes=PRETRAINING_BYTES, max_eval_bytes=200_000))
    wikitext = wikitext2.read(DataSettings(source="wikitext2", path=str(WIKITEXT)))
    # The tokenizer is trained on the first split alone; both splits of Wikitext-2 are documents of the second.
    others = (*wikitext.train, *wikitext.evaluation, *library.evaluation)
    tokens = tokenized(Corpus(library.train, others), VOCABULARY)
    ends = np.flatnonzero(tokens.evaluation == END_OF_TEXT) + 1
    return Texts(
        pretraining=_blocks(tokens.train),
        pretraining_evaluation=_blocks(tokens.evaluation[ends[1] :]),
        train=_blocks(tokens.evaluation[: ends[0]]),
        evaluation=_blocks(tokens.evaluation[ends[0] : ends[1]]),
    )


def _blocks(ids: Ids) -> torch.Tensor:
    whole = len(ids) // BLOCK_TOKENS * BLOCK_TOKENS
    return torch.from_numpy(ids[:whole].reshape(-1, BLOCK_TOKENS).astype(np.int64))


def evenly(blocks: torch.Tensor, count: int) -> torch.Tensor:
    """Return blocks evenly spread over a text, the same for all runs: shape (count, tokens)."""
    at = torch.linspace(0, len(blocks) - 1, min(count, len(blocks))).long()
    return blocks[at]
