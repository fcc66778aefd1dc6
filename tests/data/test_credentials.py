"""Secrets in messages: whatever is around them, they are not shown."""

import os
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from rainspark.data.credentials import HIDDEN, check_credentials, redact
from rainspark.data.errors import DataError

SECRETS = st.text("ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz0123456789", min_size=24, max_size=40)
AROUND = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=40)
PLACES = (
    "GET https://bucket.example/a/b.tar?X-Amz-Credential=AKIA/x&X-Amz-Signature={} in 2 ms",
    "url=s3://user:{}@bucket/prefix/name failed",
    "https://{}@host/path",
    "postgres://{}:x@host",
    "Authorization: Bearer {}",
    "authorization: AWS4-HMAC-SHA256 Credential=AK/2026/us-east-1/s3/aws4_request, SignedHeaders=host, Signature={}",
    "'Authorization': '{}'",
    '{{"authorization": "Basic {}"}}',
    "<Error><AWSAccessKeyId>{}</AWSAccessKeyId></Error>",
    "<StringToSign>AWS4-HMAC-SHA256\n20260101\n{}</StringToSign>",
    "<SignatureProvided>{}</SignatureProvided>",
    "aws_secret_access_key = {}",
    "x-amz-security-token: {}",
    '"access_token": "{}", "expires_in": 1',
    '{{"private_key": "{}"}}',
    "password={}",
    "sig={}&se=2026",
    "-----BEGIN RSA PRIVATE KEY-----\n{}\n-----END RSA PRIVATE KEY-----",
    "-----BEGIN PRIVATE KEY-----\n{}",
)


@pytest.mark.parametrize("place", PLACES)
@given(secret=SECRETS, before=AROUND, after=AROUND)
def test_a_secret_is_hidden_wherever_it_stands(place: str, secret: str, before: str, after: str) -> None:
    assume(secret not in before + after)
    shown = redact(f"{before} {place.format(secret)} {after}")
    assert secret not in shown
    assert HIDDEN in shown


@given(secret=SECRETS, before=AROUND, after=AROUND)
def test_values_of_secret_variables_are_hidden_in_every_form(secret: str, before: str, after: str) -> None:
    assume(secret not in before + after)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KNMI_API_KEY", f"{secret}/+ =")
        for form in (f"{secret}/+ =", f"{secret}%2F%2B%20%3D", f"{secret}%2F%2B+%3D"):
            assert secret not in redact(f"{before}{form}{after}")


VARIABLES = """
    AWS_SECRET_ACCESS_KEY AWS_ACCESS_KEY_ID AWS_SESSION_TOKEN AZURE_STORAGE_ACCOUNT_KEY AZURE_STORAGE_SAS_TOKEN
    AZURE_CLIENT_SECRET GOOGLE_BEARER_TOKEN GOOGLE_SERVICE_ACCOUNT_KEY KNMI_API_KEY NEPTUNE_API_TOKEN WANDB_API_KEY
    HTTP_PASSWORD"""


@pytest.mark.parametrize("name", VARIABLES.split())
def test_the_variables_of_the_services_are_known(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "CANARYVALUE")
    assert redact("found CANARYVALUE, expected x") == f"found {HIDDEN}, expected x"


@pytest.mark.parametrize(
    ("service", "variables", "are_enough"),
    [
        ("s3", {}, False),
        ("s3", {"AWS_ACCESS_KEY_ID": "a"}, False),
        ("s3", {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}, True),
        ("s3", {"AWS_SKIP_SIGNATURE": "Yes"}, True),
        ("s3", {"AWS_SKIP_SIGNATURE": "false"}, False),
        ("s3", {"AWS_EC2_METADATA_DISABLED": "false"}, True),
        ("s3", {"AWS_EC2_METADATA_DISABLED": "true"}, False),
        ("gs", {}, False),
        ("gs", {"GOOGLE_APPLICATION_CREDENTIALS": "/key.json"}, True),
        ("gs", {"HOME": "{home}"}, True),
        ("az", {"AZURE_STORAGE_ACCOUNT_KEY": "a"}, False),
        ("az", {"AZURE_STORAGE_ACCOUNT_KEY": "a", "AZURE_STORAGE_ACCOUNT_NAME": "b"}, True),
        ("az", {"AZURE_STORAGE_USE_EMULATOR": "1"}, True),
    ],
)
def test_credentials_are_looked_for_in_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, service: str, variables: dict[str, str], are_enough: bool
) -> None:
    home = tmp_path / "home"
    (home / ".config" / "gcloud").mkdir(parents=True)
    (home / ".config" / "gcloud" / "application_default_credentials.json").write_bytes(b"{}")
    for name in [name for name in os.environ if name.startswith(("AWS_", "GOOGLE_", "AZURE_", "GCE_"))]:
        monkeypatch.delenv(name)
    for name, value in {"HOME": str(tmp_path), **variables}.items():
        monkeypatch.setenv(name, value.format(home=home))

    if are_enough:
        check_credentials(service, "place")
    else:
        with pytest.raises(DataError, match=r"^place: no credentials in the environment; set "):
            check_credentials(service, "place")


def test_what_is_no_secret_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", "/var/run/token")
    monkeypatch.setenv("MY_TOKEN", "1")
    for text in (
        "s3://bucket/prefix/shard-00001.tar: could not read: status 503, SlowDown; tried 7 times in 12.1 s",
        "https://api.dataplatform.knmi.nl/open-data/v1/datasets/x: 404",
        "bytes 1 to 12 were asked for; /var/run/token has 5",
        "set AWS_SKIP_SIGNATURE=true for a public bucket, or GOOGLE_SKIP_SIGNATURE=true, (AZURE_SKIP_SIGNATURE=false)",
        "/etc/passwd: no checkpoint",
        "SHA-256 0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
    ):
        assert redact(text) == text
    for text in ("AWS_SKIP_SIGNATURE=true{}", "X_SKIP_SIGNATURE={}", "/etc/passwd={}", "passwd: {}", "/a/passwd: {}"):
        assert "CANARY" not in redact(text.format("CANARY")), text
    assert redact("/run/https:/u:p@host/a.tar?x=1 and more") == f"/run/https:/{HIDDEN}@host/a.tar?{HIDDEN} and more"
    assert redact("https://host/a.tar?x=1 and more") == f"https://host/a.tar?{HIDDEN} and more"


@pytest.mark.parametrize(
    "shape", ["AKIAIOSFODNN7EXAMPLE", "AIza" + "a1B2" * 9, "ya29.a0Abc", "eyJhbGciOiJI.eyJzdWIi.abc"]
)
def test_keys_known_by_their_shape_are_hidden(shape: str) -> None:
    assert redact(f"used {shape}.") in (f"used {HIDDEN}.", f"used {HIDDEN}")


@given(text=AROUND, secret=SECRETS)
def test_what_is_redacted_stays_as_it_is(text: str, secret: str) -> None:
    once = redact(f"{text} password={secret} https://h/x?y={secret}")
    assert redact(once) == once
