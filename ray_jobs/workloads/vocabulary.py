"""Tokenization by a byte-level BPE that is trained on the text itself, with a cache."""

import hashlib
import logging
import os
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tokenizers

from ray_jobs.data.sample_order import Corpus, Ids, cache_folder

log = logging.getLogger(__name__)

END_OF_TEXT = 0  # the id of the token after each document
_END_OF_TEXT = "<|endoftext|>"
_LAYOUT = 1  # of the cached file; raise it when the file or the tokenizer's settings change


@dataclass(frozen=True)
class TokenizedCorpus:
    """Token ids of both splits, int32 in `[0, vocab_size)`, documents joined by END_OF_TEXT."""

    train: Ids
    evaluation: Ids
    vocab_size: int


def tokenized(corpus: Corpus, vocab_size: int, cache: Path | None = None) -> TokenizedCorpus:
    """Tokenize the corpus by a BPE of at most `vocab_size` tokens, trained on its train split.

    Reads the result from `cache` if it is there and intact. Ranks that start at once may each do the work; each then
    publishes the same file atomically, so that none reads a half-written one.
    """
    settings = f"{_LAYOUT} {tokenizers.__version__} {vocab_size} {corpus.digest()}"
    key = hashlib.sha256(settings.encode("ascii")).hexdigest()
    path = (cache or cache_folder()) / f"tokens-{key[:32]}.npz"
    tokens = _read(path)
    if tokens is None:
        tokens = _tokenize(corpus, vocab_size)
        _write(path, tokens)
    return tokens


def tokenizer_of(corpus: Corpus, vocab_size: int, cache: Path | None = None) -> tokenizers.Tokenizer:
    """Return the tokenizer that `tokenized` has used, for texts that are not of the corpus; its file is cached."""
    settings = f"{_LAYOUT} {tokenizers.__version__} {vocab_size} {corpus.digest()}"
    path = (cache or cache_folder()) / f"tokenizer-{hashlib.sha256(settings.encode('ascii')).hexdigest()[:32]}.json"
    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises nothing more specific, also where there is no file
        log.info("the tokenizer is trained, since %s cannot be read: %s", path, error)
    tokenizer = _trained(corpus, vocab_size)
    own = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        tokenizer.save(str(own))
        own.replace(path)
    except Exception as error:
        log.warning("the tokenizer could not be cached in %s: %s", path, error)
    return tokenizer


def _tokenize(corpus: Corpus, vocab_size: int) -> TokenizedCorpus:
    tokenizer = _trained(corpus, vocab_size)
    train, evaluation = (_ids(tokenizer, split) for split in (corpus.train, corpus.evaluation))
    return TokenizedCorpus(train, evaluation, tokenizer.get_vocab_size())


def _trained(corpus: Corpus, vocab_size: int) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[_END_OF_TEXT],
        initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus.train, trainer)
    return tokenizer


def _ids(tokenizer: tokenizers.Tokenizer, documents: tuple[str, ...]) -> Ids:
    parts = [[*encoding.ids, END_OF_TEXT] for encoding in tokenizer.encode_batch(list(documents))]
    return np.concatenate([np.asarray(part, dtype=np.int32) for part in parts])


def _digest(tokens: TokenizedCorpus) -> str:
    digest = hashlib.sha256(f"{tokens.vocab_size} {len(tokens.train)}".encode("ascii"))
    digest.update(tokens.train.tobytes())
    digest.update(tokens.evaluation.tobytes())
    return digest.hexdigest()


def _read(path: Path) -> TokenizedCorpus | None:
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as stored:
            tokens = TokenizedCorpus(stored["train"], stored["evaluation"], int(stored["vocab_size"]))
            intact = str(stored["digest"]) == _digest(tokens)
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        log.warning("The cached tokens in %s cannot be read and are recomputed: %s", path, error)
        return None
    if not intact:
        log.warning("The cached tokens in %s are damaged and are recomputed.", path)
    return tokens if intact else None


def _write(path: Path, tokens: TokenizedCorpus) -> None:
    """Write the cache; an error is only logged: the next start then tokenizes again, for a few seconds."""
    digest, size = np.array(_digest(tokens)), np.array(tokens.vocab_size)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".tmp", delete=False) as file:
            temporary = file.name
            np.savez(file, train=tokens.train, evaluation=tokens.evaluation, vocab_size=size, digest=digest)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        log.warning("The tokens could not be cached in %s: %s", path, error)
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
