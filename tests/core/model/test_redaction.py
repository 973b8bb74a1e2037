"""What may be a secret is found by name, flag, shape and value, and the settings of a training stay."""

import time
from uuid import UUID

import pytest

from control_plane.api.messages import Point, Report
from control_plane.core.model.records import CheckpointFailed, CommandSettled, Death, GenerationLost, RunClosed
from control_plane.core.model.redaction import (
    HIDDEN,
    Redaction,
    concealed_arguments,
    conceals,
    names_secret,
    secrets_in,
)
from control_plane.core.rules.decisions import GenerationStart

SECRET_NAMES = [
    "token",
    "hf_token",
    "hfToken",
    "HFToken",
    "HF_TOKEN",
    "hub_token",
    "tokens",
    "access_token",
    "auth-token",
    "huggingface.token",
    "secret",
    "client_secret",
    "aws_secret_access_key",
    "AWS_ACCESS_KEY_ID",
    "access_key",
    "access_keys",
    "accessKeyId",
    "api_key",
    "apikey",
    "apiKey",
    "api_keys",
    "APIKeys",
    "OPENAI_API_KEY",
    "wandb_key",
    "private_key",
    "ssh_key",
    "signing-key",
    "password",
    "passwd",
    "db_password",
    "PGPASSWORD",
    "passphrase",
    "db_pass",
    "pwd",
    "authorization",
    "Authorization",
    "auth",
    "http_auth",
    "oauth",
    "credential",
    "credentials",
    "aws_credentials",
    "dsn",
    "sentry_dsn",
    "pin",
    "jwt",
    "cookie",
    "session_cookies",
    "webhook",
    "slack_webhook",
    "github_pat",
    "connection_string",
    "totp",
    "--hf-token",
    "--api-key",
    "encryptionKey",
]

PLAIN_NAMES = [
    "max_new_tokens",
    "maxNewTokens",
    "pad_token",
    "pad_token_id",
    "eos_token",
    "bos_token_id",
    "tokenizer",
    "tokenizer_name",
    "tokens_per_batch",
    "num_tokens",
    "train_tokens",
    "special_tokens",
    "additional_special_tokens",
    "decoder_start_token",
    "tokens_seen",
    "key",
    "keys",
    "sort_key",
    "label_keys",
    "keep_best_key",
    "keep_key",
    "num_key_value_heads",
    "key_dim",
    "author",
    "authors",
    "pin_memory",
    "dataloader_pin_memory",
    "pinned",
    "secret_name",
    "token_path",
    "password_file",
    "auth_mode",
    "group",
    "name",
    "lr",
    "seed",
    "use_cache",
    "metric_for_best_model",
    "compass",
    "passes",
    "monkey",
    "turkey",
    "bypass",
    "forward_pass",
    "spin",
    "opinion",
    "hidden_size",
    "author_id",
    "patience",
    "path",
    "pattern",
]


@pytest.mark.parametrize("name", SECRET_NAMES)
def test_name_of_a_secret(name: str) -> None:
    assert names_secret(name)


@pytest.mark.parametrize("name", PLAIN_NAMES)
def test_name_of_a_setting(name: str) -> None:
    assert not names_secret(name)


@pytest.mark.parametrize("value", [None, True, False, ""])
def test_what_is_no_value_is_no_secret(value: object) -> None:
    assert not conceals("token", value)


def test_numbers_are_secrets_but_not_of_tokens() -> None:
    assert conceals("pin", 1234)
    assert conceals("token", 1234)
    assert not conceals("tokens", 4096)
    assert not conceals("tokens", "1e9")


SHAPED = {
    "huggingface": "hf_" + "A1b2" * 8,
    "openai": "sk-proj-" + "A1b2" * 8,
    "github": "ghp_" + "A1b2" * 9,
    "github, fine-grained": "github_pat_" + "A1_b2" * 9,
    "aws": "AKIAIOSFODNN7EXAMPLE",
    "jwt": "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl",
    "google": "AIza" + "x" * 35,
}


@pytest.mark.parametrize("secret", SHAPED.values(), ids=SHAPED)
def test_a_known_shape_is_hidden_anywhere(secret: str) -> None:
    said = Redaction().text(f"401 for <{secret}>, see log")
    assert said == f"401 for <{HIDDEN}>, see log"
    assert Redaction().value({"any": ["where", {"x": secret}]}) == {"any": ["where", {"x": HIDDEN}]}


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("login failed: HF_TOKEN=hf_canary_env", "login failed: HF_TOKEN=***"),
        ("GET https://u:pa55@h/x?api_key=Canary&y=1 failed", "GET https://***@h/x?api_key=***&y=1 failed"),
        ("Authorization: Bearer Canary77", "Authorization: ***"),
        ("headers {'Authorization': 'Basic Q2FuYXJ5'}", "headers {'Authorization': '***'}"),
        ("sent Bearer Canary77.x, refused", "sent Bearer ***, refused"),
        ('{"password": "can ary 1"}', '{"password": "***"}'),
        ("argv: train.py --hf-token Canary1 --lr 1e-4", "argv: train.py --hf-token *** --lr 1e-4"),
        ("postgres://user:c4n@ry@db/x", "postgres://***@db/x"),
        ("x.wandb_key=Canary", "x.wandb_key=***"),
        ("-----BEGIN PRIVATE KEY-----\nTUlJ\n-----END PRIVATE KEY----- and so on", "*** and so on"),
    ],
)
def test_what_stands_behind_a_name_is_hidden(text: str, clean: str) -> None:
    assert Redaction().text(text) == clean
    assert Redaction().text(clean) == clean, "once more changes nothing"


@pytest.mark.parametrize(
    "text",
    [
        "KeyError: 'pad_token'",
        "max_new_tokens=128, pad_token_id: 50256, tokenizer=gpt2",
        "hf_hub_download() got an unexpected keyword argument 'revision'",
        "Unexpected token: end of input",
        "give --token or another way to log in",
        "rank 1 read {'lr': [0.1]} back, rank 0 read {'lr': [0.2]}",
        "unknown setting training.sort_key=length at step-00000012-g3",
        "the run's control server at http://127.0.0.1:8700/api/v1 did not answer; ray://head:10001",
        "sha256 3f5a2b" * 8,
        "task-force-one-of-the-many-disk-drives",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert Redaction().text(text) == text


def test_values_of_variables_with_a_secret_s_name_are_hidden_in_every_text() -> None:
    environ = {
        "MY_SERVICE_TOKEN": "canary/first",
        "MY_SERVICE_TOKEN_2": "not-named-so",
        "DB_PASSWORD": "canary/first and more",
        "KEY_PEM_SECRET": "line one of a key\nline two of a key!",
        "SHORT_SECRET": "abc",
        "PWD": "/srv/somebody/work",
        "HOME": "/srv/somebody",
    }
    clean = Redaction.of(environ).text
    assert clean("ValueError: got canary/first and more!") == "ValueError: got ***!"
    assert clean("canary/first") == HIDDEN
    assert clean("?t=canary%2Ffirst") == "?t=***"
    assert clean("last line: line two of a key!") == "last line: ***"
    assert clean("abc not-named-so /srv/somebody/work") == "abc not-named-so /srv/somebody/work"


def test_arguments_of_a_command_line() -> None:
    line = [
        "--hf-token",
        "hf_A1",
        "--api-key=B2",
        "--use-auth-token",
        "--lr",
        "1e-4",
        "run.wandb_key=C3",
        "--pin",
        1234,
    ]
    assert dict(concealed_arguments(line)) == {1: "", 2: "--api-key=", 6: "run.wandb_key=", 8: ""}
    assert Redaction().value(line)[:3] == ["--hf-token", HIDDEN, "--api-key=" + HIDDEN]


def test_secrets_of_a_config_are_known_by_their_values() -> None:
    config = {
        "workload": {"args": ["--api-key=canary-one", "--pad-token", "not-a-secret", "--token", "canary-two"]},
        "auth": {"user": "canary-three", "more": [{"x": "canary-four"}]},
        "training": {"max_new_tokens": 12345678, "hub_token": "canary-five"},
    }
    assert sorted(secrets_in(config)) == ["canary-five", "canary-four", "canary-one", "canary-three", "canary-two"]


def test_records_keep_their_names_and_lose_their_secrets() -> None:
    clean = Redaction(["canary-7"]).words
    lost = GenerationLost(generation=1, step=3, deaths=(Death(rank=0, node="canary-7", reason="got canary-7"),))
    assert clean(lost).deaths == (Death(rank=0, node="canary-7", reason="got ***"),)
    assert clean(RunClosed(ending="failed", reason="x canary-7")).reason == "x ***"
    settled = CommandSettled(uuid=UUID(int=1), status="applied", after={"said": ["canary-7", 0.5], "n": 1, "pin": "12"})
    assert clean(settled).after == {"said": [HIDDEN, 0.5], "n": 1, "pin": HIDDEN}
    failed = CheckpointFailed(checkpoint="step-1", step=1, generation=1, reason="canary-7")
    report = Report(
        generation=1,
        outcomes=(settled,),
        failed_checkpoints=(failed,),
        points=(Point(step=1, name="x", value=1, time_s=0),),
    )
    assert "canary" not in clean(report).model_dump_json()
    start = GenerationStart(UUID(int=1), (), 0, 1, {"lr": [0.1]}, {"data": "at canary-7"})
    assert clean(start).facts == {"data": "at ***"}


def test_knob_with_the_name_of_a_secret_can_still_be_steered() -> None:
    facts = {"knobs": {"aux_key": {"kind": "number", "least": 0.0}, "loss/secret": {"kind": "switch"}}}
    start = GenerationStart(UUID(int=1), (), 0, 1, {"aux_key": 0.5, "loss/secret": True, "token": [0.1, 0.2]}, facts)
    assert Redaction(["canary-7"]).words(start) is start


def test_what_hides_nothing_is_answered_as_it_is() -> None:
    settled = CommandSettled(
        uuid=UUID(int=1), status="applied", after={"lr": [0.1, "NaN"], "on": True}, ranks=({"a": 1},)
    )
    report = Report(generation=1, outcomes=(settled,))
    assert Redaction(["canary-7"]).words(report) is report


@pytest.mark.parametrize(
    "piece", ["a=", "x ", "://", "eyJ-", "Bearer ", "a.", "--a ", "'", "-----BEGIN PRIVATE KEY-----"]
)
def test_hostile_texts_take_no_time(piece: str) -> None:
    began_s = time.perf_counter()
    Redaction(["canary-7"]).text(piece * (100_000 // len(piece)))
    assert time.perf_counter() - began_s < 5.0
