"""Rainspark: masked pretraining of convolutional encoders on radar rain sequences, and nowcasting with them."""

import sys
from pathlib import Path

_SETTINGS_EXIT_CODE = 3


def check_tree(tree: Path) -> None:
    """End the process where a script of one source tree would run the package of another.

    A second clone that is run in the first one's environment would execute the first one's code without a word.

    Args:
        tree: Root of the tree that the script lies in.

    Raises:
        SystemExit: The imported package lies elsewhere; both trees are named.
    """
    imported = Path(__file__).resolve().parent
    if imported == tree.resolve():
        return
    sys.stderr.write(
        f"settings: this script belongs to {tree}, but the environment's rainspark is {imported}: its code would run "
        f"instead; run that tree's script, or install this tree into an environment of its own (make -C {tree})\n"
    )
    sys.exit(_SETTINGS_EXIT_CODE)
