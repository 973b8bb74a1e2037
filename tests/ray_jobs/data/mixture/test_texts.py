"""The GPT-2 workload on sources: texts become samples of one length, with the tokenizer of its vocabulary."""

import json
from pathlib import Path
from typing import Any

import pytest

from control_plane.core.model.errors import Invalid
from ray_jobs.config.run_config import RunConfig
from ray_jobs.data.mixture.dataset import MixtureDataset
from ray_jobs.data.sample_order import Corpus
from ray_jobs.workloads import build
from ray_jobs.workloads.gpt2 import NO_LABEL, Documents
from ray_jobs.workloads.vocabulary import END_OF_TEXT, tokenized, tokenizer_of

CORPUS = Corpus(("some text to learn from, " * 20, "more text"), ("other text",))


def test_tokenizer_is_the_one_of_the_vocabulary_and_is_kept(tmp_path: Path) -> None:
    first = tokenizer_of(CORPUS, 260, tmp_path)
    assert [*first.encode("other text").ids, END_OF_TEXT] == tokenized(CORPUS, 260, tmp_path).evaluation.tolist()
    (path,) = tmp_path.glob("tokenizer-*.json")
    before = path.stat().st_mtime_ns
    assert tokenizer_of(CORPUS, 260, tmp_path).to_str() == first.to_str()
    assert path.stat().st_mtime_ns == before
    path.write_text("{half")
    assert tokenizer_of(CORPUS, 260, tmp_path).to_str() == first.to_str()


def test_sample_is_a_document_filled_up_or_cut(tmp_path: Path) -> None:
    documents = Documents(tokenizer_of(CORPUS, 260, tmp_path), 16)
    short, long = documents({"text": "text"}), documents({"text": "z" * 100})
    length = int(short["attention_mask"].sum())
    assert (short["input_ids"].shape, int(short["input_ids"][length - 1])) == ((16,), END_OF_TEXT)
    assert short["labels"][length:].tolist() == [NO_LABEL] * (16 - length)
    assert (int(long["attention_mask"].sum()), int(long["labels"][-1])) == (16, END_OF_TEXT)
    with pytest.raises(Invalid, match="has no text, but label"):
        documents({"label": 3})


def test_workload_trains_on_the_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEERWAY_HOME", str(tmp_path))
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "import os"}) + "\n")
    raw: dict[str, Any] = {
        "name": "mixed",
        "seed": 1,
        "workload": {"kind": "gpt2"},
        "model": {"n_layer": 1, "n_head": 1, "n_embd": 4},
        "data": {"source": "stdlib", "block_size": 8, "vocab_size": 260, "max_train_bytes": 20_000,
                 "max_eval_bytes": 2_000},
        "deepspeed": {"zero_optimization": {"stage": 2}},
        "sources": {"code": {"format": "jsonl", "path": str(tmp_path / "*.jsonl"), "fields": {"text": "text"}}},
    }  # fmt: skip
    packed = build(RunConfig.model_validate(raw | {"mixture": {"unit": "packed"}})).train_dataset
    assert isinstance(packed, MixtureDataset)
    assert packed[0]["attention_mask"].tolist()[: len("import")] == [1] * 6
    assert len(list((tmp_path / "cache" / "samples").glob("*.arrow"))) == 1
    workload = build(RunConfig.model_validate(raw))
    assert len(list((tmp_path / "cache" / "samples").glob("*.arrow"))) == 1, "both units have the same tokens"
    assert isinstance(workload.train_dataset, MixtureDataset)
    assert (len(workload.train_dataset), workload.train_dataset[0]["input_ids"].shape) == (1, (8,))
    assert workload.facts["first_records"] == 1
