"""What a step costs on many nodes, from message sizes and stated links: `python -m tests.bench.projection`.

Nothing here is measured but the counts of the model: link speeds, latencies and a GPU's rate are parameters. The
formulas are the ones of tests/bench/SCALING.md.
"""

import argparse
import math
from dataclasses import dataclass

from rainspark.models.norm import BatchNorm2d
from tests.bench.memory import build

FLOAT_BYTES = 4
EFFICIENCY = 0.8
"""Share of a link's stated speed that large messages are taken to reach."""
NORM_MESSAGES = 2
"""All-reduces a normalisation layer and micro-step: of the statistics forward, of two sums backward."""
NORM_BYTES = 2 * 8 + 2 * FLOAT_BYTES
"""Of both together, a channel: models/norm.py averages in float64."""


@dataclass(frozen=True, kw_only=True)
class Link:
    """A link as its maker states it: bytes/s in one direction, seconds of latency a message."""

    name: str
    bytes_per_s: float
    latency_s: float


NVLINK = Link(name="NVLink, 300 GB/s", bytes_per_s=300e9, latency_s=2e-6)
OUTSIDE = (
    Link(name="InfiniBand, 400 Gbit/s a node", bytes_per_s=50e9, latency_s=5e-6),
    Link(name="InfiniBand, 200 Gbit/s a node", bytes_per_s=25e9, latency_s=5e-6),
    Link(name="Ethernet, 25 Gbit/s a node", bytes_per_s=3.125e9, latency_s=30e-6),
)


def ring_s(num_bytes: float, ranks: int, link: Link) -> float:
    """Seconds of a ring all-reduce: 2 (n - 1) / n of the bytes over the link, 2 (n - 1) messages in a row."""
    if ranks == 1:
        return 0.0
    return 2 * (ranks - 1) / ranks * num_bytes / (EFFICIENCY * link.bytes_per_s) + 2 * (ranks - 1) * link.latency_s


def hierarchical_s(num_bytes: float, nodes: int, per_node: int, inside: Link, outside: Link) -> float:
    """Seconds of an all-reduce in steps: reduce-scatter inside, all-reduce of parts between nodes, all-gather inside.

    The parts of a node's ranks share its link to the others, so that the whole message crosses it.
    """
    return ring_s(num_bytes, per_node, inside) + ring_s(num_bytes, nodes, outside)


def small_s(nodes: int, per_node: int, inside: Link, outside: Link) -> float:
    """Seconds of an all-reduce of a few kilobytes by a tree: there and back, the logarithm of the ranks in hops."""
    return 2 * (math.ceil(math.log2(per_node)) * inside.latency_s + math.ceil(math.log2(nodes)) * outside.latency_s)


def norm_s(channels: int, layers: int, nodes: int, per_node: int, inside: Link, outside: Link) -> float:
    """Seconds of one micro-step's synchronised normalisation, which nothing hides.

    Their bytes do not grow with the ranks and are a small message a layer: it is the number of layers that costs.
    """
    summed_s = 2 * NORM_BYTES * channels / (EFFICIENCY * min(outside.bytes_per_s, inside.bytes_per_s))
    return summed_s + NORM_MESSAGES * layers * small_s(nodes, per_node, inside, outside)


def main() -> None:
    """Print the projection."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--encoder", default="resnet50")
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--nodes", type=int, default=64)
    parser.add_argument("--per-node", nargs="+", type=int, default=[4, 8])
    parser.add_argument("--batch", type=int, default=32768)
    parser.add_argument("--micro", type=int, default=32, help="windows a GPU and forward, at most")
    parser.add_argument("--rates", nargs="+", type=float, default=[100, 400], help="windows/s of a GPU: an assumption")
    given = parser.parse_args()
    model = build(given.encoder, given.width)
    num_bytes = FLOAT_BYTES * sum(parameter.numel() for parameter in model.parameters())
    norms = [module for module in model.modules() if isinstance(module, BatchNorm2d)]
    layers, channels = len(norms), sum(module.num_features for module in norms)
    print(f"{given.encoder}, decoder {given.width}: {num_bytes / 1e6:.0f} MB of gradients, {layers} normalisations of "
          f"{channels} channels")  # fmt: skip
    print("| GPUs | link between nodes | windows/s a GPU (assumed) | micro-steps x windows a GPU | computing, ms | "
          "gradients, ms | normalisation, ms | efficiency, nothing overlaps | gradients hidden | "
          "windows/s a node to read |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|---|---|")
    for per_node in given.per_node:
        ranks = given.nodes * per_node
        part = given.batch // ranks
        steps = -(-part // given.micro)
        for link in OUTSIDE:
            gradients_s = hierarchical_s(num_bytes, given.nodes, per_node, NVLINK, link)
            own_s = steps * norm_s(channels, layers, given.nodes, per_node, NVLINK, link)
            for rate in given.rates:
                computing_s = part / rate
                # Gradients travel with the last micro-step's backward only, which is two thirds of its computing.
                left_s = max(0.0, gradients_s - computing_s / steps * 2 / 3)
                whole, hidden = computing_s + gradients_s + own_s, computing_s + left_s + own_s
                print(f"| {given.nodes} x {per_node} | {link.name} | {rate:g} | {steps} x {part // steps} | "
                      f"{computing_s * 1e3:.0f} | {gradients_s * 1e3:.1f} | {own_s * 1e3:.1f} | "
                      f"{computing_s / whole:.0%} | {computing_s / hidden:.0%} | "
                      f"{per_node * part / hidden:.0f} |")  # fmt: skip


if __name__ == "__main__":
    main()
