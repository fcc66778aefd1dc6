"""Credentials: which environment variables hold them, what they look like, and how they are kept out of messages."""

import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final
from urllib.parse import quote, quote_plus

from .errors import DataError

YES: Final = frozenset({"1", "true", "on", "yes", "y"})
_AZURE_KEYS: Final = """
    AZURE_STORAGE_ACCOUNT_KEY AZURE_STORAGE_ACCESS_KEY AZURE_STORAGE_MASTER_KEY AZURE_STORAGE_SAS_KEY
    AZURE_STORAGE_SAS_TOKEN AZURE_STORAGE_TOKEN AZURE_FEDERATED_TOKEN_FILE AZURE_CLIENT_SECRET
    AZURE_STORAGE_CLIENT_SECRET AZURE_MSI_ENDPOINT AZURE_IDENTITY_ENDPOINT AZURE_SKIP_SIGNATURE=true
    AZURE_USE_AZURE_CLI=true"""
CREDENTIALS: Final[Mapping[str, str]] = {
    # AWS_EC2_METADATA_DISABLED is the AWS tools' own switch; where it is off outright, the machine's role is meant.
    "s3": """AWS_ACCESS_KEY_ID+AWS_SECRET_ACCESS_KEY AWS_WEB_IDENTITY_TOKEN_FILE AWS_METADATA_ENDPOINT
        AWS_CONTAINER_CREDENTIALS_RELATIVE_URI AWS_CONTAINER_CREDENTIALS_FULL_URI
        AWS_SKIP_SIGNATURE=true AWS_EC2_METADATA_DISABLED=false""",
    "gs": """GOOGLE_APPLICATION_CREDENTIALS GOOGLE_SERVICE_ACCOUNT GOOGLE_SERVICE_ACCOUNT_PATH
        GOOGLE_SERVICE_ACCOUNT_KEY GOOGLE_BEARER_TOKEN GCE_METADATA_HOST GOOGLE_SKIP_SIGNATURE=true
        ~/.config/gcloud/application_default_credentials.json""",
    "az": "AZURE_STORAGE_USE_EMULATOR=true "
    + " ".join(f"AZURE_STORAGE_ACCOUNT_NAME+{key}" for key in _AZURE_KEYS.split()),
    "knmi": "KNMI_API_KEY",
}
"""Where credentials come from, by service: environment variables, or files of its own tool, of which one suffices.

Joined by `+`, all of them are needed; `NAME=true` is a switch that asks for none, or for the machine's own.
"""
ADVICE: Final[Mapping[str, str]] = {
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (with AWS_SESSION_TOKEN for temporary ones; `aws configure "
    "export-credentials --format env` prints those of a profile) and AWS_REGION, or AWS_SKIP_SIGNATURE=true for a "
    "public bucket, or AWS_EC2_METADATA_DISABLED=false to use the role of the machine",
    "gs": "set GOOGLE_APPLICATION_CREDENTIALS or GOOGLE_SERVICE_ACCOUNT to the path of a key file (or run `gcloud auth "
    "application-default login`), or GOOGLE_SKIP_SIGNATURE=true for a public bucket, or GCE_METADATA_HOST to use the "
    "account of the machine",
    "az": "set AZURE_STORAGE_ACCOUNT_NAME, and AZURE_STORAGE_ACCOUNT_KEY, or AZURE_STORAGE_SAS_TOKEN, or "
    "AZURE_CLIENT_ID, AZURE_CLIENT_SECRET and AZURE_TENANT_ID, or AZURE_SKIP_SIGNATURE=true for a public container, or "
    "AZURE_IDENTITY_ENDPOINT for the machine's identity",
    "knmi": "ask for a free key at https://developer.dataplatform.knmi.nl/open-data-api (registered: 1000 requests an "
    "hour; that page shows a public anonymous one too) and set it: export KNMI_API_KEY=...",
}

HIDDEN: Final = "[hidden]"
MIN_SECRET_CHARACTERS: Final = 6
"""Environment variables with shorter values are taken for switches, not secrets."""

_SECRET_VARIABLE = re.compile(
    r"SECRET|TOKEN|PASSWORD|PASSWD|API_?KEY|ACCESS_KEY|ACCOUNT_KEY|MASTER_KEY|SERVICE_ACCOUNT_KEY|SAS_KEY"
    r"|CUSTOMER_KEY|ENCRYPTION_KEY|PRIVATE_KEY"
)
_PLAIN_VARIABLE = re.compile(r"_(?:FILE|PATH|URI|URL|ENDPOINT)$")
_FIELD = (
    r"x-amz-(?:signature|credential|security-token)|x-goog-(?:signature|credential)|x-api-key|api[_-]?key|sig|signature"
    r"|access_?key(?:_?id)?|aws_?access_?key_?id|secret(?:_?access)?_?key|session_?token|security_?token|access_?token"
    r"|refresh_?token|id_?token|client_?secret|private_?key(?:_?id)?|account_?key|password|passwd|googleaccessid|token"
)
# A switch that says to sign nothing, and the one file that is called like a secret and found on every machine.
_HARMLESS = r"(?!(?:aws|google|azure)_skip_signature=(?:true|false)(?![^\s&\"'<>,;)]))(?!(?<=/etc/)passwd:\s)"
# A query: what signs an address stands there, whatever the store calls it.
_QUERY_RULE: Final = (re.compile(r"(?i)([a-z][a-z0-9+.-]*:/{1,2}[^\s?\"'<>]*)\?[^\s\"'<>]*"), rf"\1?{HIDDEN}")
_RULES: Final = (
    # The part of an address before its host: user, or user and password.
    # One slash: as a path shows an address that was given for one.
    (re.compile(r"(?i)([a-z][a-z0-9+.-]*:/{1,2})[^\s/?#\"'<>]*@"), rf"\1{HIDDEN}@"),
    _QUERY_RULE,
    (re.compile(r"(?is)-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)"), HIDDEN),
    (re.compile(r"(?i)((?:proxy-)?authorization\W{1,4})[^\r\n]+"), rf"\1{HIDDEN}"),
    (
        re.compile(r"(?i)\b(bearer|basic|sharedkey(?:lite)?|aws4-hmac-sha256|aws)\s+[^\s,;]*[=:/.+0-9][^\s,;]*"),
        rf"\1 {HIDDEN}",
    ),
    (
        re.compile(rf"(?i)\b{_HARMLESS}((?:\w{{1,40}}[_-])?(?:{_FIELD}))(\"?'?\s*[=:]\s*\"?'?)[^\s&\"'<>,;)]+"),
        rf"\1\2{HIDDEN}",
    ),
    (re.compile(rf"(?i)<({_FIELD})>[^<]*"), rf"<\1>{HIDDEN}"),
    (re.compile(r"(?i)<(StringToSign|CanonicalRequest|SignatureProvided)(?:Bytes)?>[^<]*"), rf"<\1>{HIDDEN}"),
    # Access key ids of AWS, keys of Google, JSON web tokens: known by their shape.
    (re.compile(r"\b(?:AKIA|ASIA|AROA|AIDA)[A-Z0-9]{12,}\b"), HIDDEN),
    (re.compile(r"\bAIza[0-9A-Za-z_-]{30,}"), HIDDEN),
    (re.compile(r"\bya29\.[0-9A-Za-z._-]+"), HIDDEN),
    (re.compile(r"\beyJ[0-9A-Za-z_-]{8,}\.[0-9A-Za-z_-]+(?:\.[0-9A-Za-z_-]*)?"), HIDDEN),
)


def check_credentials(service: str, where: str) -> None:
    """Check that there are credentials of a service, right or wrong.

    Raises:
        DataError: There are none; names `where`, and what to set.
    """
    if not has_credentials(service):
        raise DataError(f"{where}: no credentials in the environment; {ADVICE[service]}")


def has_credentials(service: str) -> bool:
    """Check whether there are credentials of a service, right or wrong, or a switch that asks for none."""
    return any(all(_is_given(name) for name in choice.split("+")) for choice in CREDENTIALS[service].split())


def variable(name: str) -> str:
    """Read an environment variable; "" where it is not set."""
    return os.environ.get(name, "").strip()


def is_on(name: str) -> bool:
    """Check whether an environment variable is switched on."""
    return variable(name).lower() in YES


def redact(text: str) -> str:
    """Replace what may be a secret by "[hidden]".

    Hidden are the query and the user part of every address, values of Authorization headers and of fields named like
    secrets, private keys, access keys and tokens known by their shape, and the values of environment variables that are
    named like secrets, also in the forms an address gives them.

    Args:
        text: A message, on its way to a user, a log or a file.
    """
    for secret in _environment_secrets():
        text = text.replace(secret, HIDDEN)
    for pattern, shown in _RULES:
        text = pattern.sub(shown, text)
    return text


def looks_secret(text: str, *, any_query: bool = True) -> bool:
    """Check whether a text holds what has the form of a credential, whatever the environment holds.

    That is a user or a password in an address, a field named like a secret, a key or token known by its shape.

    Args:
        text: A setting or an address.
        any_query: Whether an address with a query counts, whatever stands in it.
    """
    return any(rule[0].search(text) for rule in _RULES if any_query or rule is not _QUERY_RULE)


class RedactingFormatter(logging.Formatter):
    """Writes log records, their tracebacks too, without what may be a secret."""

    def format(self, record: logging.LogRecord) -> str:
        """Write one record."""
        return redact(super().format(record))


def _is_given(choice: str) -> bool:
    """Check whether a variable is set, a switch has its value, or a file is there."""
    name, _, value = choice.partition("=")
    if name.startswith("~"):
        return Path(name).expanduser().is_file()
    if value == "true":
        return is_on(name)
    return variable(name).lower() == value if value else variable(name) != ""


def _environment_secrets() -> list[str]:
    """The values of variables named like secrets, longest first, so that none is cut up by a part of it."""
    values = {
        form
        for name, value in os.environ.items()
        if len(value.strip()) >= MIN_SECRET_CHARACTERS
        and _SECRET_VARIABLE.search(name.upper())
        and not _PLAIN_VARIABLE.search(name.upper())
        for form in (value.strip(), quote(value.strip(), safe=""), quote_plus(value.strip()))
    }
    return sorted(values, key=len, reverse=True)
