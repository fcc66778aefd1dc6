"""Check the ranges of settings, in one wording."""

from ...data.errors import ConfigError


def at_least(name: str, value: int, least: int) -> None:
    """Raise ConfigError for a setting below its least value."""
    if value < least:
        raise ConfigError(f"{name} is {value}; it must be {least} or more")
