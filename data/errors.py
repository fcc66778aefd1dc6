"""What a user's data can cause: errors that say what was found, what was expected, where, and what to do."""


class DataError(ValueError):
    """What a user's data can cause: what was found, what was expected, where, and what to do."""


class DamagedError(DataError):
    """What was read is not what the index says, or is not there: other data of the same archive may be good."""


class ConfigError(ValueError):
    """A setting that the user has to change."""
