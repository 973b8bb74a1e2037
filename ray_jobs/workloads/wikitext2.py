"""Wikitext-2 dataset, from the Hugging Face hub or from a folder of text files."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets

from control_plane.core.model.errors import Invalid
from ray_jobs.config.run_config import DataSettings
from ray_jobs.data.sample_order import Corpus, cache_folder

log = logging.getLogger(__name__)

HUB_NAME, HUB_CONFIG = "Salesforce/wikitext", "wikitext-2-raw-v1"
# The names under which the files of a split have been distributed.
SPLIT_FILES = {
    "train": ("train.txt", "wiki.train.tokens", "wiki.train.raw"),
    "validation": ("valid.txt", "validation.txt", "wiki.valid.tokens", "wiki.valid.raw"),
    "test": ("test.txt", "wiki.test.tokens", "wiki.test.raw"),
}
Load = Callable[..., Any]


def read(data: DataSettings, load: Load = datasets.load_dataset) -> Corpus:
    """Return the training and evaluation text, cut at the size caps of `data`. Raises `Invalid` if there is none."""
    splits = _local(Path(data.path), load) if data.path is not None else _hub(load)
    train, evaluation = ("".join(f"{line}\n" for line in split["text"]) for split in splits)
    return Corpus((_cut(train, data.max_train_bytes),), (_cut(evaluation, data.max_eval_bytes),))


def _hub(load: Load) -> tuple[Any, Any]:
    try:
        dataset = load(HUB_NAME, HUB_CONFIG)
    except Exception as error:  # the hub's client raises errors of four libraries; all mean the same here
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise Invalid(
            f"Wikitext-2 ({HUB_NAME}) could not be loaded from the Hugging Face hub: {first.rstrip('.')}. "
            "To use local files, set data.path= to their folder."
        ) from error
    return dataset["train"], dataset["validation"]


def _local(folder: Path, load: Load) -> tuple[Any, Any]:
    train, evaluation = chosen_files(folder)
    dataset = load(
        "text",
        data_files={"train": str(train), "evaluation": str(evaluation)},
        cache_dir=str(cache_folder() / "datasets"),
    )
    return dataset["train"], dataset["evaluation"]


def chosen_files(folder: Path) -> tuple[Path, Path]:
    """Return the files for training and for evaluation. Logs a warning unless they are the usual splits."""
    if not folder.is_dir():
        raise Invalid(f"data.path is {folder}, but there is no such folder.")
    files = {split: file for split in SPLIT_FILES if (file := _first_file(folder, split))}
    if "train" in files and (evaluation := files.get("validation") or files.get("test")):
        return files["train"], evaluation
    if "validation" in files and "test" in files:
        log.warning(
            "%s has no file to train on (%s): training on %s and evaluating on %s instead.",
            *(folder, ", ".join(SPLIT_FILES["train"]), files["validation"].name, files["test"].name),
        )
        return files["validation"], files["test"]
    looked_for = "; ".join(f"{split}: {', '.join(names)}" for split, names in SPLIT_FILES.items())
    raise Invalid(
        f"data.path is {folder}, which must hold two non-empty text files, one for training and one for evaluation; "
        f"looked for {looked_for}."
    )


def _first_file(folder: Path, split: str) -> Path | None:
    candidates = (folder / name for name in SPLIT_FILES[split])
    return next((file for file in candidates if file.is_file() and file.stat().st_size), None)


def _cut(text: str, cap_bytes: int | None) -> str:
    return text if cap_bytes is None else text.encode("utf-8")[:cap_bytes].decode("utf-8", errors="ignore")
