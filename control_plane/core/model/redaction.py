"""What may be a secret, and its removal: by its key's name, behind a flag, by its shape, and where its value is known.

Pure. A journal is chained and passed on: what it was once told, it keeps for ever. So a text is cleaned before it
becomes a record, and a config before it is exported. In doubt something is a secret; but settings of a training that
only sound like one (`max_new_tokens`, `pad_token`, `sort_key`) stay.

Not covered: a secret of no known shape, behind no name that says so, that is in no environment variable.
"""

import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from functools import lru_cache
from typing import Any, TypeVar
from urllib.parse import quote

T = TypeVar("T")

HIDDEN = "***"
"""In the place of a secret inside a text."""

MIN_KNOWN_CHARS = 8
"""A shorter value of an environment variable is found in many a word that is no secret."""

TEXTS = frozenset({"reason", "note", "label", "description"})
"""The fields of records and reports that hold what an exception, a script or a person said; others are names."""

_JOINS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_NO_WORD = re.compile(r"[^a-z0-9]+")

_NAMED = re.compile(
    r"(?:^|_)(?:"
    r"[a-z0-9]*(?:password|passwd|passphrase|passcode|secret|credential)s?"
    r"|dsn|jwt|cookies?|webhooks?|creds?|connection_string|conn_str|access_keys?"
    r"|o?auth|authorization|authentication|bearer"
    r")(?:_|$)"
    r"|(?:^|_)(?:pin|pwd|otp|totp)$"
    r"|(?:^|_)(?:db|user|smtp|sql|mysql|pg|postgres|redis|ftp|http|proxy|login|admin|root|ssh|mail)_?pass$"
    r"|(?:git|gh|github|gitlab|azure)_pat$"
)
_DESCRIBES = re.compile(
    r"path|file|dir|folder|mode|type|method|kind|url|uri|scheme|provider|timeout|enabled|length|sock|name|names"
)
"""How a key ends that tells of a secret, and is none."""

_PLAIN_TOKENS = re.compile(
    r"pad|eos|bos|unk|mask|sep|cls|special|stop|start|end|new|max|min|num|n|no|image|video|audio|prompt|forced|"
    r"suppress|begin|added|extra|additional|input|output|total|train|eval|target|source|per|of|prefix|suffix|"
    r"fill|word|sub|pre|multi|bad|ignore|ignored|boi|eoi|think|tool|next|last|first|every|by"
)
"""Before `token`: a word of a vocabulary, or a number of them."""

_PLAIN_KEYS = re.compile(
    r"sort|group|text|label|input|output|target|source|column|image|audio|ignore|include|exclude|primary|"
    r"foreign|cache|dataset|data|feature|metric|prompt|response|question|answer|batch|id|public|row|name|dict|"
    r"map|hash|index"
)
"""Before `key`: where something is found."""

_OWNED_KEYS = re.compile(
    r"^(?:api|access|private|secret|auth|signing|encryption|master|account|ssh|wandb|openai|anthropic|aws|azure|hf)+keys?$"
)

_SHAPES = re.compile(
    r"(?<![A-Za-z0-9])(?:"
    r"hf_[A-Za-z0-9]{16,}"
    r"|sk-[A-Za-z0-9_-]{16,}"
    r"|gh[pousr]_[A-Za-z0-9]{16,}|github_pat_\w{16,}|glpat-[\w-]{16,}"
    r"|(?:AKIA|ASIA)[0-9A-Z]{12,}|AIza[\w-]{30,}|npm_[A-Za-z0-9]{30,}|xox[abprs]-[A-Za-z0-9-]{10,}"
    r")"
    r"|(?<![\w-])eyJ[\w-]{6,}+\.[\w-]{6,}+(?:\.[\w-]*+)?"
    r"|-----BEGIN[A-Z ]*PRIVATE KEY-----.*?(?:-----END[A-Z ]*PRIVATE KEY-----|\Z)",
    re.DOTALL,
)
_BEARER = re.compile(r"\b(Bearer\s+)[^\s'\",;)\]}]{4,}", re.IGNORECASE)
_AUTHORIZATION = re.compile(r"(\bauthorization['\"]?\s*[:=]\s*['\"]?)(?:\w+\s+)?[^\s'\",;)\]}]+", re.IGNORECASE)
_IN_URL = re.compile(r"://[^\s/'\"]*@")
_ASSIGNED = re.compile(r"(?<![\w.-])(?P<name>-*+[A-Za-z_][\w.-]*+)(?P<sign>['\"]?\s*[:=]\s*)")
_FLAGGED = re.compile(r"(?<!\S)(?P<name>--?[A-Za-z][\w.-]*)(?P<sign>\s+)(?!-)")
_VALUE = re.compile(r"(?P<quote>['\"])(?P<quoted>[^'\"]+)(?P=quote)|(?P<plain>[^\s'\"&,;)\]}]+)")
_A_WORD = re.compile(r"[A-Za-z]?[a-z]*[.,:]?")
_OPTION = re.compile(r"(?P<name>-{0,2}[A-Za-z_][\w.-]*)=(?P<value>.+)", re.DOTALL)


@lru_cache(maxsize=4096)
def names_secret(key: str) -> bool:
    """Whether what is called so may be a secret: `hf_token`, `apiKey`, `AWS_ACCESS_KEY_ID`, `--db-password`."""
    words = _NO_WORD.sub("_", _JOINS.sub("_", key).lower()).strip("_").split("_")
    last, before = words[-1], words[-2] if len(words) > 1 else ""
    if words[0] == "keep" or _DESCRIBES.fullmatch(last):
        return False
    singular = last.removesuffix("s")
    if singular.endswith("token"):
        return not _PLAIN_TOKENS.fullmatch(singular.removesuffix("token") or before)
    if singular == "key" and before:
        return not _PLAIN_KEYS.fullmatch(before)
    return bool(_OWNED_KEYS.match(last) or _NAMED.search("_".join(words)))


def conceals(key: str, value: Any) -> bool:
    """Whether this scalar below this key may be a secret. True, false and nothing are none, nor are `tokens: 4096`."""
    if value is None or isinstance(value, bool) or value == "" or not names_secret(key):
        return False
    return not (key.lower().endswith("tokens") and _is_number(value))


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True


def concealed_arguments(arguments: Sequence[Any]) -> Iterator[tuple[int, str]]:
    """Which arguments of a command line hold a secret, and what of them is none of it: `--hf-token X`, `--pin=X`."""
    flag = ""
    for number, argument in enumerate(arguments):
        if not isinstance(argument, str):
            if conceals(flag, argument):
                yield number, ""
            flag = ""
            continue
        option = _OPTION.fullmatch(argument)
        if option is not None and conceals(_last_part(option["name"]), option["value"]):
            yield number, option["name"] + "="
        elif flag and not argument.startswith("--") and conceals(flag, argument):
            yield number, ""
        flag = _last_part(argument) if argument.startswith("-") and option is None else ""


def _last_part(name: str) -> str:
    return name.rpartition(".")[2]


def secrets_in(settings: Any, key: str = "") -> Iterator[str]:
    """The values of a config that may be secrets, at least `MIN_KNOWN_CHARS` long. `key`: below which it all lies."""
    if isinstance(settings, Mapping):
        for name, value in settings.items():
            yield from secrets_in(value, key if key and names_secret(key) else str(name))
    elif isinstance(settings, list | tuple):
        for number, before in concealed_arguments(settings):
            yield str(settings[number]).removeprefix(before)
        for value in settings:
            yield from secrets_in(value, key)
    elif isinstance(settings, str | int | float) and conceals(key, settings):
        yield str(settings)


class Redaction:
    """Takes secrets out of texts: those of known shape, those behind a name that says so, and the values of `known`."""

    def __init__(self, known: Iterable[str] = ()) -> None:
        # The longest first: one secret may be the beginning of another.
        long = {each for each in known if len(each) >= MIN_KNOWN_CHARS}
        lines = {line for each in long for line in each.splitlines() if len(line) >= 2 * MIN_KNOWN_CHARS}
        spelled = {quote(each, safe="") for each in long}
        values = sorted(long | lines | spelled, key=lambda each: (-len(each), each))
        self._known = re.compile("|".join(map(re.escape, values))) if values else None

    @classmethod
    def of(cls, environ: Mapping[str, str], known: Iterable[str] = ()) -> "Redaction":
        """One that also knows the values of those variables whose name is a secret's. `PWD` is a folder."""
        named = (value for name, value in environ.items() if name not in ("PWD", "OLDPWD") and names_secret(name))
        return cls([*named, *known])

    def text(self, text: str) -> str:
        """The text without its secrets."""
        if self._known is not None:
            text = self._known.sub(HIDDEN, text)
        text = _IN_URL.sub(f"://{HIDDEN}@", text)
        text = _SHAPES.sub(HIDDEN, text)
        text = _BEARER.sub(rf"\g<1>{HIDDEN}", text)
        text = _AUTHORIZATION.sub(rf"\g<1>{HIDDEN}", text)
        return _hidden_behind(_FLAGGED, _hidden_behind(_ASSIGNED, text))

    def value(self, value: Any, key: str = "") -> Any:
        """A plain value of JSON without its secrets: no text is left of a key that names one.

        Numbers are, and what lies deeper: a script may call a knob `aux_key`, and it has to be steered.
        """
        if isinstance(value, Mapping):
            return {name: self.value(each, str(name)) for name, each in value.items()}
        if isinstance(value, list | tuple):
            changed = [self.value(each, key) for each in value]
            for number, before in concealed_arguments(value):
                changed[number] = before + HIDDEN
            return type(value)(changed)
        if isinstance(value, str) and conceals(key, value):
            return HIDDEN
        return self.text(value) if isinstance(value, str) else self.words(value)

    def words(self, words: T) -> T:
        """A record, a report or another of our typed messages, without secrets in its `TEXTS` and readings.

        Names are left: of runs, branches, checkpoints and ranks. What has nothing to hide is answered as it is.
        """
        names = _field_names(words)
        changed = {name: new for name in names if (new := self._field(name, old := getattr(words, name))) is not old}
        if not changed:
            return words
        typed: Any = words
        return dataclasses.replace(typed, **changed) if is_dataclass(words) else typed.model_copy(update=changed)

    def _field(self, name: str, value: Any) -> Any:
        if isinstance(value, str):
            if name not in TEXTS:
                return value
            new = self.text(value)
            return value if new == value else new
        if isinstance(value, Mapping):
            read = self.value(value)
            return value if read == value else read
        if isinstance(value, tuple) and value and not isinstance(value[0], str):
            each = tuple(self._field(name, one) for one in value)
            return value if all(new is old for new, old in zip(each, value, strict=True)) else each
        return self.words(value)


def _hidden_behind(names: re.Pattern[str], text: str) -> str:
    """The text without the values that stand behind a secret's name. After a colon or a blank stands many a word."""
    kept, done, found = list[str](), 0, names.search(text)
    while found is not None:
        at = found.end()
        value = _VALUE.match(text, at) if names_secret(_last_part(found["name"])) else None
        if value is not None:
            is_prose = "=" not in found["sign"] and _A_WORD.fullmatch(value[0]) is not None
            if not is_prose and conceals(_last_part(found["name"]), value["quoted"] or value["plain"]):
                mark = value["quote"] or ""
                kept += [text[done:at], mark + HIDDEN + mark]
                done = at = value.end()
        found = names.search(text, at)
    return "".join([*kept, text[done:]])


def _field_names(words: object) -> Iterable[str]:
    if is_dataclass(words):
        return [each.name for each in dataclasses.fields(words)]
    return getattr(type(words), "model_fields", ())
