"""Sample order, token blocks, and the text sources of the shipped configs."""

import logging
import math
import os
import shutil
import threading
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from control_plane.core.model.errors import Invalid
from ray_jobs.config.run_config import DataSettings, RunConfig, load
from ray_jobs.data.sample_order import Corpus, SampleOrder, TokenBlocks, cache_folder, sample_order, unigram_entropy
from ray_jobs.workloads import build, stdlib_text, wikitext2
from ray_jobs.workloads.vocabulary import END_OF_TEXT, TokenizedCorpus, tokenized

CONFIGS = Path(__file__).parents[3] / "configs"
TRAIN, VALID, TEST = ("the cat sat on the mat .\n" * 60, "a dog sat on a log .\n" * 60, "one two three .\n" * 60)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STEERWAY_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def folder_of(path: Path, **files: str) -> Path:
    """A folder with one file for each keyword, `wiki_valid_tokens` being wiki.valid.tokens."""
    path.mkdir()
    for name, text in files.items():
        (path / name.replace("_", ".")).write_text(text)
    return path


@pytest.fixture
def wikitext(tmp_path: Path) -> Path:
    """The start of the real files where they can be found, else a folder of the same layout."""
    beside = Path(__file__).parents[4] / "shared" / "data" / "wikitext-2"
    real = Path(os.environ.get("STEERWAY_TEST_WIKITEXT2", beside))
    if not real.is_dir():
        return folder_of(tmp_path / "wikitext-2", valid_txt=VALID, test_txt=TEST)
    starts = {name: (real / f"{name}.txt").read_text()[:40_000] for name in ("valid", "test")}
    return folder_of(tmp_path / "wikitext-2", valid_txt=starts["valid"], test_txt=starts["test"])


def texts(data: DataSettings) -> tuple[str, str]:
    corpus = wikitext2.read(data)
    return "".join(corpus.train), "".join(corpus.evaluation)


# --- Sample order ---


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 10_000), st.integers(0, 500))
def test_sample_order_visits_every_sample_once(seed: int, epoch: int, n: int) -> None:
    assert sorted(sample_order(seed, epoch, n).tolist()) == list(range(n))


def test_sample_order_is_the_same_in_every_version() -> None:
    assert sample_order(20260101, 0, 8).tolist() == [3, 5, 1, 6, 2, 4, 0, 7]
    assert sample_order(20260101, 0, 8).dtype == np.int64


def test_sample_order_differs_between_seeds_and_epochs() -> None:
    orders = {tuple(sample_order(seed, epoch, 50)) for seed in range(4) for epoch in range(4)}
    assert len(orders) == 16


def test_sample_order_as_a_sampler_follows_the_epoch_and_no_global_state() -> None:
    sampler = SampleOrder(20, seed=3)
    first = list(sampler)
    torch.manual_seed(1)
    np.random.seed(1)
    assert list(sampler) == first == sample_order(3, 0, 20).tolist()
    sampler.set_epoch(2)
    assert list(sampler) == sample_order(3, 2, 20).tolist()
    assert len(sampler) == 20


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_sample_order_of_a_global_batch_does_not_depend_on_the_world_size(ranks: int) -> None:
    """As accelerate shares batches out: batch i of the sampler goes to rank i modulo the world size."""
    from accelerate.data_loader import BatchSamplerShard
    from torch.utils.data import BatchSampler

    batches = BatchSampler(SampleOrder(64, seed=5), batch_size=8 // ranks, drop_last=True)
    shards = [list(BatchSamplerShard(batches, num_processes=ranks, process_index=rank)) for rank in range(ranks)]
    steps = [sorted(chain.from_iterable(parts)) for parts in zip(*shards, strict=True)]
    order = sample_order(5, 0, 64).tolist()
    assert steps == [sorted(order[start : start + 8]) for start in range(0, 64, 8)]


# --- Blocks and entropy ---


def test_token_blocks_are_cut_in_order_and_the_rest_is_left_out() -> None:
    blocks = TokenBlocks(np.arange(11, dtype=np.int32), block_size=4)
    assert len(blocks) == 2
    assert blocks[1]["input_ids"].tolist() == blocks[1]["labels"].tolist() == [4, 5, 6, 7]
    assert blocks[0]["input_ids"].dtype == torch.int64


def test_token_blocks_end_where_the_blocks_end() -> None:
    with pytest.raises(IndexError):
        TokenBlocks(np.arange(8, dtype=np.int32), block_size=4)[2]


@pytest.mark.parametrize(
    ("ids", "nats"),
    [([5, 5, 5], 0.0), ([0, 1, 2, 3], math.log(4)), ([1, 1, 2, 3], 0.5 * math.log(2) + 0.5 * math.log(4))],
)
def test_unigram_entropy_is_that_of_the_frequencies(ids: list[int], nats: float) -> None:
    assert unigram_entropy(np.array(ids, dtype=np.int32)) == pytest.approx(nats, abs=1e-12)


# --- Vocabulary and cache ---


def cached_file(cache: Path) -> Path:
    (only,) = cache.iterdir()
    return only


def same(one: TokenizedCorpus, other: TokenizedCorpus) -> bool:
    splits = np.array_equal(one.train, other.train) and np.array_equal(one.evaluation, other.evaluation)
    return splits and one.vocab_size == other.vocab_size


CORPUS = Corpus((TRAIN, VALID), (TEST,))


def test_tokens_end_each_document_and_stay_in_the_vocabulary(tmp_path: Path) -> None:
    tokens = tokenized(CORPUS, 300, tmp_path)
    assert (tokens.train == END_OF_TEXT).sum() == 2
    assert tokens.evaluation[-1] == END_OF_TEXT
    assert 257 <= tokens.vocab_size <= 300
    assert tokens.train.max() < tokens.vocab_size


def test_tokens_come_from_the_cache_the_second_time(tmp_path: Path) -> None:
    """Proved by a cache that holds something else, under the right name and with the right digest."""
    tokenized(CORPUS, 300, tmp_path / "one")
    other = tokenized(Corpus((VALID,), (TRAIN,)), 300, tmp_path / "two")
    shutil.copy(cached_file(tmp_path / "two"), cached_file(tmp_path / "one"))
    assert same(tokenized(CORPUS, 300, tmp_path / "one"), other)


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: b"not an archive",
        lambda content: content[: len(content) // 2],
        lambda content: content.replace(content[300:304], bytes(4), 1),
    ],
    ids=["empty", "other", "torn", "flipped"],
)
def test_tokens_of_a_damaged_cache_are_made_again(
    tmp_path: Path, damage: Callable[[bytes], bytes], caplog: pytest.LogCaptureFixture
) -> None:
    tokens = tokenized(CORPUS, 300, tmp_path)
    sound = cached_file(tmp_path).read_bytes()
    cached_file(tmp_path).write_bytes(damage(sound))
    assert same(tokenized(CORPUS, 300, tmp_path), tokens)
    assert "recomputed" in caplog.text
    caplog.clear()
    assert same(tokenized(CORPUS, 300, tmp_path), tokens)
    assert not caplog.text


def test_tokens_of_another_corpus_or_size_are_cached_apart(tmp_path: Path) -> None:
    for corpus, size in ((CORPUS, 300), (CORPUS, 310), (Corpus((TRAIN,), (VALID, TEST)), 300)):
        tokenized(corpus, size, tmp_path)
    assert len(list(tmp_path.iterdir())) == 3


def test_tokens_made_by_several_at_once_agree_and_leave_one_file(tmp_path: Path) -> None:
    made: list[TokenizedCorpus] = []
    ranks = [threading.Thread(target=lambda: made.append(tokenized(CORPUS, 300, tmp_path))) for _ in range(4)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()
    assert len(made) == 4
    assert all(same(made[0], tokens) for tokens in made)
    assert cached_file(tmp_path).suffix == ".npz"


def test_tokens_are_made_without_a_cache_that_can_be_written(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("in the way")
    assert len(tokenized(CORPUS, 300, tmp_path / "file" / "cache").train)
    assert "could not be cached" in caplog.text


def test_cache_folder_is_below_the_home(home: Path) -> None:
    assert cache_folder() == home / "cache"


# --- The standard library ---


def test_stdlib_text_is_the_same_twice_and_keeps_to_its_caps() -> None:
    data = DataSettings(source="stdlib", max_train_bytes=200_000, max_eval_bytes=20_000)
    corpus = stdlib_text.read(data)
    assert corpus.digest() == stdlib_text.read(data).digest()
    assert sum(len(text.encode("utf-8")) for text in corpus.train) == 200_000
    assert sum(len(text.encode("utf-8")) for text in corpus.evaluation) == 20_000
    assert not set(corpus.train) & set(corpus.evaluation)


def test_stdlib_text_leaves_out_what_is_not_the_library(tmp_path: Path) -> None:
    for index in range(64):
        (tmp_path / f"module_{index}.py").write_text(f"kept = {index}\n")
    for folder in stdlib_text.LEFT_OUT:
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "module.py").write_text("left_out = 1\n")
    (tmp_path / "_sysconfigdata_x.py").write_text("left_out = 1\n")
    corpus = stdlib_text.read(DataSettings(source="stdlib"), tmp_path)
    assert sorted(corpus.train + corpus.evaluation) == sorted(f"kept = {index}\n" for index in range(64))
    assert len(corpus.train) > len(corpus.evaluation) > 0


def test_stdlib_text_split_of_a_file_does_not_change_with_the_others(tmp_path: Path) -> None:
    for index in range(64):
        (tmp_path / f"module_{index}.py").write_text(f"kept = {index}\n")
    before = stdlib_text.read(DataSettings(source="stdlib"), tmp_path)
    (tmp_path / "another.py").write_text("another = 1\n")
    after = stdlib_text.read(DataSettings(source="stdlib"), tmp_path)
    assert set(before.train) <= set(after.train)
    assert set(before.evaluation) <= set(after.evaluation)


def test_stdlib_text_without_sources_is_refused_by_folder(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match=f"source files, and {tmp_path} has too few"):
        stdlib_text.read(DataSettings(source="stdlib"), tmp_path)


# --- Wikitext-2 ---


def test_wikitext_without_a_train_file_trains_on_valid_and_says_so(
    wikitext: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        train, evaluation = texts(DataSettings(source="wikitext2", path=str(wikitext)))
    assert train == (wikitext / "valid.txt").read_text().removesuffix("\n") + "\n"
    assert evaluation == (wikitext / "test.txt").read_text().removesuffix("\n") + "\n"
    assert "training on valid.txt and evaluating on test.txt instead" in caplog.text


@pytest.mark.parametrize(
    "names",
    [
        {"train_txt": TRAIN, "valid_txt": VALID, "test_txt": TEST},
        {"train_txt": TRAIN, "validation_txt": VALID},
        {"wiki_train_tokens": TRAIN, "wiki_valid_tokens": VALID},
        {"wiki_train_raw": TRAIN, "wiki_valid_raw": VALID, "wiki_test_raw": TEST},
        {"train_txt": TRAIN, "valid_txt": "", "test_txt": VALID},
    ],
    ids=["txt", "validation", "tokens", "raw", "empty valid"],
)
def test_wikitext_takes_the_names_that_are_in_use(
    tmp_path: Path, names: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    folder = folder_of(tmp_path / "texts", **names)
    assert texts(DataSettings(source="wikitext2", path=str(folder))) == (TRAIN, VALID)
    assert "instead" not in caplog.text


def test_wikitext_is_cut_at_the_caps(wikitext: Path) -> None:
    data = DataSettings(source="wikitext2", path=str(wikitext), max_train_bytes=500, max_eval_bytes=100)
    assert [len(text.encode("utf-8")) for text in texts(data)] == [500, 100]


@pytest.mark.parametrize("names", [{}, {"train_txt": TRAIN}, {"valid_txt": VALID}, {"notes_md": "x"}])
def test_wikitext_folder_without_two_splits_is_refused_by_name(tmp_path: Path, names: dict[str, str]) -> None:
    folder = folder_of(tmp_path / "texts", **names)
    with pytest.raises(Invalid) as refused:
        wikitext2.read(DataSettings(source="wikitext2", path=str(folder)))
    assert str(folder) in refused.value.reason
    assert "wiki.train.tokens" in refused.value.reason


def test_wikitext_missing_folder_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match=f"data.path is {tmp_path}/none, but there is no such folder"):
        wikitext2.read(DataSettings(source="wikitext2", path=str(tmp_path / "none")))


def test_wikitext_hub_that_cannot_be_reached_suggests_a_folder() -> None:
    def unreachable(*name: str) -> object:
        raise ConnectionError(f"Couldn't reach {name[0]} on the Hub")

    with pytest.raises(Invalid) as refused:
        wikitext2.read(DataSettings(source="wikitext2"), load=unreachable)
    assert "Couldn't reach Salesforce/wikitext on the Hub" in refused.value.reason
    assert "set data.path=" in refused.value.reason


def test_wikitext_from_the_hub_uses_train_and_validation() -> None:
    asked: list[tuple[str, ...]] = []

    def hub(*name: str) -> dict[str, dict[str, list[str]]]:
        asked.append(name)
        return {"train": {"text": ["a", "b"]}, "validation": {"text": ["c"]}, "test": {"text": ["d"]}}

    corpus = wikitext2.read(DataSettings(source="wikitext2"), load=hub)
    assert asked == [("Salesforce/wikitext", "wikitext-2-raw-v1")]
    assert (corpus.train, corpus.evaluation) == (("a\nb\n",), ("c\n",))


# --- The workload ---


def small(path: str, *overrides: str) -> RunConfig:
    small_model = ("model.n_layer=1", "model.n_embd=16", "model.n_head=2", "data.block_size=32", "data.vocab_size=300")
    return load(CONFIGS / path, [*small_model, "data.max_train_bytes=30000", *overrides])


def test_workload_on_wikitext_has_a_model_that_takes_its_samples(wikitext: Path) -> None:
    workload = build(small("gpt2-wikitext2.yaml", f"data.path={wikitext}"))
    sample = {name: value[None] for name, value in workload.train_dataset[0].items()}
    loss = workload.model.eval()(**sample).loss
    assert loss.item() == pytest.approx(math.log(workload.model.config.vocab_size), rel=0.1)
    assert len(workload.eval_dataset) * 32 == workload.facts["eval_tokens"]


def test_workload_is_the_same_on_every_rank_and_leaves_the_random_state_alone() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one, other = build(small("gpt2-local.yaml")), build(small("gpt2-local.yaml"))
    assert one.facts == other.facts
    assert torch.equal(before, torch.get_rng_state())
    pairs = zip(one.model.state_dict().values(), other.model.state_dict().values(), strict=True)
    assert all(torch.equal(mine, its) for mine, its in pairs)


def test_workload_of_another_seed_has_other_weights() -> None:
    one, other = build(small("gpt2-local.yaml")), build(small("gpt2-local.yaml", "seed=3"))
    assert one.facts == other.facts
    name = "transformer.wte.weight"
    assert not torch.equal(one.model.state_dict()[name], other.model.state_dict()[name])


def test_workload_with_less_than_a_block_of_text_is_refused() -> None:
    with pytest.raises(Invalid, match=r"less than one block of data\.block_size 32"):
        build(small("gpt2-local.yaml", "data.max_eval_bytes=10"))


def test_workload_of_a_script_is_not_built_here(tmp_path: Path) -> None:
    (tmp_path / "x.py").write_text("")
    (tmp_path / "run.yaml").write_text("name: mine\nseed: 1\nworkload: {kind: script, path: x.py}\n")
    with pytest.raises(Invalid, match=r"workload\.kind is script"):
        build(load(tmp_path / "run.yaml"))


def test_order_that_keeps_its_tail_visits_every_sample_and_knows_the_batch_of_each_step() -> None:
    order = SampleOrder(10, seed=7, global_batch_samples=4, keeps_the_tail=True)
    assert (len(order), order.left_out, order.has_a_tail) == (10, 0, True)
    epochs = [[int(sample) for step in steps for sample in order.batch(step)] for steps in ((1, 2, 3), (4, 5, 6))]
    assert [sorted(epoch) for epoch in epochs] == [list(range(10))] * 2
    order.set_epoch(1)
    assert list(order) == epochs[1]
    assert len(SampleOrder(3, seed=7, global_batch_samples=4, keeps_the_tail=True)) == 3
