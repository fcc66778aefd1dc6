"""Which checkpoints stay: the newest ones, milestones for ever, and always two that are whole."""

from collections.abc import Callable, Iterable


def steps_to_remove(
    steps: Iterable[int], is_whole: Callable[[int], bool], *, new: int, keep_last: int, keep_every: int | None
) -> list[int]:
    """Decide which checkpoints go once a new one is whole.

    The `keep_last` newest stay, the new one among them wherever it lies; so do the multiples of `keep_every`; and so
    does the newest other whole one, however many damaged ones are newer: with one checkpoint kept, damage to it on the
    disk would cost the run.

    Args:
        steps: Steps of the checkpoints that are there.
        is_whole: Tells whether a step's checkpoint verifies; asked only where one could go, newest first.
        new: The step that was just written and verified.
        keep_last: Checkpoints that stay, 2 or more.
        keep_every: Steps whose multiples stay for ever, None for none.

    Returns:
        Steps, newest first.
    """
    others = sorted(set(steps) - {new}, reverse=True)
    newest = set(others[: keep_last - 1])
    going = [step for step in others if step not in newest and not (keep_every and step % keep_every == 0)]
    if not going:
        return []
    second = next((step for step in others if is_whole(step)), None)
    return [step for step in going if step != second]
