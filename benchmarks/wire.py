"""Messages beside their Shannon bound: size and speed of masks, sparse updates, activations and vectors.

    OMP_NUM_THREADS=1 python benchmarks/wire.py [masks] [topk] [activations] [dense] [scaling] [frame] [naive]

Every message goes through a whole frame, checksum at both ends included, and must come back bit for bit. Times are
encode + decode, medians of the thread's CPU time on one core. Sizes are of the whole frame, where not said otherwise.
Each figure stands beside its target. Updates and activations are those of a CNN of 1,001,094 parameters after 12 steps
of SGD on the images that ship with fedmpi; all else is drawn with fixed seeds.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedmpi.compress.quantize import quantize
from fedmpi.compress.topk import num_kept, topk_indices
from fedmpi.config import DataConfig, TrainConfig, WireConfig
from fedmpi.data.datasets import load_dataset
from fedmpi.data.shapes import ImageShape
from fedmpi.data.shard import Shard, device_data
from fedmpi.flat import FlatModel, layout_of
from fedmpi.ledger.schema import MessageRow
from fedmpi.models.vision import ConvNet
from fedmpi.train.local import train_local
from fedmpi.weigh.measure import measure
from fedmpi.wire.bound import entropy_nbits
from fedmpi.wire.known import KnownMask, KnownProbabilities
from fedmpi.wire.message import Message, Schema, dense, mask, message, quantized, sparse
from fedmpi.wire.values import Dense, Mask, Quantized, Sparse

MILLION = 1_000_000
CHANNELS, HIDDEN = (1, 32, 128), (436,)
STEPS, BATCH = 12, 32


@message("bench-mask", "up")
class MaskUp(Message):
    """A mask."""

    bits: Mask = mask("params", prior="prior", base="base")


@message("bench-sparse", "up")
class SparseUp(Message):
    """An update's largest numbers."""

    num_samples: int
    update: Sparse = sparse("params")


@message("bench-symbols", "up")
class SymbolsUp(Message):
    """Quantized activations."""

    symbols: Quantized = quantized(("samples", "channels", "height", "width"))


@message("bench-dense", "up")
class DenseUp(Message):
    """A model."""

    num_samples: int
    state: Dense = dense("params")


class Targets:
    """Prints figures beside their targets, and counts those that were missed."""

    def __init__(self) -> None:
        self.missed: list[str] = []
        self.num_targets = 0

    def show(self, what: str, *figures: tuple[str, float, float]) -> None:
        """Print a line; a figure is its unit, what was measured, and the most that it may be (inf: no target)."""
        parts = []
        for unit, measured, most in figures:
            digits = 4 if unit.startswith("x") else 2 if unit.startswith(("ms", "s")) else 0
            text = f"{measured:.{digits}f} {unit}"
            if most != np.inf:
                self.num_targets += 1
                met = measured <= most
                text += f" (at most {most:g}: {'met' if met else 'MISSED'})"
                if not met:
                    self.missed.append(f"{what}: {measured:.{digits}f} {unit} instead of {most:g}")
            parts.append(text)
        print(f"  {what:<42} {'   '.join(parts)}", flush=True)


class Trained(NamedTuple):
    """A net that was trained a little.

    Attributes
    ----------
    layout_schema : Schema
        Sizes, and where the tensors begin.
    update_P : Tensor, shape (num_params,)
        New parameters minus old.
    activations_BCHW : Tensor, shape (64, 128, 8, 8)
        Behind the ReLU of the second convolution, of test images.
    """

    layout_schema: Schema
    update_P: Tensor
    activations_BCHW: Tensor


@functools.cache
def trained() -> Trained:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    net = ConvNet(CHANNELS, 2, 2, ImageShape(28, 28, 1), HIDDEN, 10)
    model = FlatModel(net)
    before_P = model.params_P.clone()
    data = load_dataset(DataConfig(), 0)
    device = torch.device("cpu")
    shard = Shard(device_data(data, "train", device), np.arange(STEPS * BATCH))
    train_local(model, shard, TrainConfig(batch_size=BATCH), rng=np.random.default_rng(0))
    images, _ = device_data(data, "test", device).gather(torch.arange(64))
    with torch.no_grad():
        a_BCHW = F.relu(net.conv2(F.relu(net.pool(net.conv1(images))))).contiguous()
    return Trained(model.layout.schema(), model.params_P - before_P, a_BCHW)


Case = tuple[Message, Schema]


def schema_of(numel: int, **wire: Any) -> Schema:
    return Schema({"params": numel}, 1, wire=WireConfig.model_validate(wire))


def milliseconds(row: MessageRow) -> float:
    return 1e3 * (row.encode_s + row.decode_s)


def over_bound(row: MessageRow) -> float:
    return 8 * row.wire_nbytes / row.bound_nbits


def drawn_mask(density: float, numel: int = MILLION, seed: int = 0) -> np.ndarray:
    bits: np.ndarray = np.random.default_rng(seed).random(numel) < density
    return bits


def drawn_from(theta_N: np.ndarray, rng: np.random.Generator) -> tuple[MaskUp, Schema]:
    """Return a mask of bits with these probabilities, and the schema of ends that hold them."""
    prior, schema = KnownProbabilities.of(theta_N.astype(np.float32), 7), schema_of(theta_N.size)
    schema.known.hold("prior", prior)
    return MaskUp(bits=Mask(rng.random(theta_N.size) < theta_N, prior)), schema


def masks(targets: Targets) -> None:
    print(f"masks of {MILLION} independent positions, by their density; x is size / bound")
    for density, most in ((0.5, 1.002), (0.3, 1.002), (0.1, 1.002), (0.05, 1.002)):
        row = measure(MaskUp(bits=Mask(drawn_mask(density))), schema_of(MILLION))
        figures = (("x", over_bound(row), most), ("ms", milliseconds(row), 5.0))
        targets.show(f"{density}, {row.codec}", *figures, ("bytes", row.wire_nbytes, np.inf))
    for density, most in ((0.01, 1.003), (1e-3, 1.01), (1e-4, 1.03)):
        row = measure(MaskUp(bits=Mask(drawn_mask(density))), schema_of(MILLION))
        ratio = 8 * row.payload_nbytes / row.bound_nbits
        figures = (("x (payload)", ratio, most), ("ms", milliseconds(row), 1.0))
        targets.show(f"{density}, {row.codec}", *figures, ("bytes", row.wire_nbytes, np.inf))

    print("masks whose probabilities both ends hold; x is size / cross entropy under the exact probabilities")
    rng = np.random.default_rng(1)
    for name, theta_N in (
        ("U(0, 1)", rng.random(MILLION)),
        ("Beta(.3, .3)", rng.beta(0.3, 0.3, MILLION)),
        ("Beta(.1, .1)", rng.beta(0.1, 0.1, MILLION)),
    ):
        sent, schema = drawn_from(theta_N, rng)
        row = measure(sent, schema)
        nbits = -np.log2(np.where(sent.bits.bits, theta_N, 1 - theta_N)).sum()
        figures = (("x", 8 * row.wire_nbytes / nbits, 1.003), ("ms", milliseconds(row), 8.0))
        targets.show(f"{name}, {row.codec}", *figures, ("bytes", row.wire_nbytes, np.inf))

    print("masks of density .1 of which a share moved since one that both ends hold; x is size / bound of the change")
    for share, most in ((0.01, 1.03), (0.05, 1.01)):
        old = drawn_mask(0.1, seed=2)
        kept, others = np.flatnonzero(old), np.flatnonzero(~old)
        num_moved = round(share * kept.size)
        new = old.copy()
        new[rng.choice(kept, num_moved, replace=False)] = False
        new[rng.choice(others, num_moved, replace=False)] = True
        base, schema = KnownMask(old, 7), schema_of(MILLION)
        schema.known.hold("base", base)
        row = measure(MaskUp(bits=Mask(new, base=base)), schema)
        figures = (("x", over_bound(row), most), ("ms", milliseconds(row), 8.0))
        targets.show(f"{share:.0%} moved, {row.codec}", *figures, ("bytes", row.wire_nbytes, np.inf))


def topk_update(density: float) -> SparseUp:
    update_P = trained().update_P
    indices_K = topk_indices(update_P, num_kept(update_P.numel(), density))
    return SparseUp(num_samples=STEPS * BATCH, update=Sparse.of(update_P.numel(), indices_K, update_P[indices_K]))


def with_codec(schema: Schema, **wire: str) -> Schema:
    return dataclasses.replace(schema, wire=WireConfig.model_validate(wire))


def topk(targets: Targets) -> None:
    schema = trained().layout_schema
    print(f"top-k of a real update of {schema.sizes['params']} parameters; positions beside the best single codec")
    for density in (0.1, 0.01, 0.001):
        sent = topk_update(density)
        row = measure(sent, schema)
        best = min(
            (fixed.index_nbytes, fixed.codec.partition("+")[0])
            for codec in get_args(WireConfig.model_fields["sparse"].annotation)
            if codec not in ("auto", "ranks")  # there is no earlier set to rank against
            for fixed in [measure(sent, with_codec(schema, sparse=codec), budget_s=0.0)]
        )
        figures = (("bytes where", row.index_nbytes, best[0] + 2), ("ms", milliseconds(row), 10.0))
        rest = (("x (whole / bound)", over_bound(row), np.inf), ("bytes what", row.value_nbytes, np.inf))
        targets.show(f"{density}, {row.codec} (best {best[1]})", *figures, *rest)


def activations(targets: Targets) -> None:
    a_BCHW = trained().activations_BCHW
    print(f"activations {tuple(a_BCHW.shape)} behind a ReLU, clipped at 99.9 %; x is size / conditional entropy")
    sizes = dict(zip(("samples", "channels", "height", "width"), a_BCHW.shape, strict=True))
    for bits in (8, 4, 2):
        rounded = quantize(a_BCHW, bits, "unsigned", clip_percentile=99.9)
        value = Quantized(rounded.symbols.numpy(), bits, rounded.scales.numpy())
        row = measure(SymbolsUp(symbols=value), Schema(sizes, 1))
        order0 = entropy_nbits(np.bincount(value.symbols.reshape(-1), minlength=2**bits))
        targets.show(
            f"{bits} bits, {row.codec}",
            ("x", over_bound(row), 1.02),
            ("x order 0", 8 * row.wire_nbytes / order0, 1.005),
            ("ms a million", milliseconds(row) * MILLION / value.numel, 25.0),
            ("bytes", row.wire_nbytes, np.inf),
        )


def dense_vector(numel: int) -> DenseUp:
    state = Dense.framed(numel)
    state.array[:] = np.random.default_rng(3).standard_normal(numel, np.float32)
    return DenseUp(num_samples=600, state=state)


def dense_vectors(targets: Targets) -> None:
    print("vectors of float32 as they are, framed in place; at least 2 GB/s")
    for numel in (MILLION, 10 * MILLION):
        row = measure(dense_vector(numel), schema_of(numel), in_place=True)
        figures = (
            ("ms", milliseconds(row), 2e-6 * numel),
            ("bytes beside the numbers", row.wire_nbytes - 4 * numel, 64),
        )
        targets.show(f"{numel} numbers, {4e-6 * numel / milliseconds(row):.1f} GB/s", *figures)


def scaling(targets: Targets) -> None:
    print("time a number at 10^7 numbers over that at 10^6")

    rng = np.random.default_rng(4)

    def sparse_of(numel: int) -> Case:
        indices = np.flatnonzero(drawn_mask(0.01, numel))
        values = rng.standard_normal(indices.size, np.float32)
        return SparseUp(num_samples=1, update=Sparse(numel, indices, values)), schema_of(numel)

    def symbols_of(numel: int) -> Case:
        symbols = np.minimum(np.abs(4 * rng.standard_normal((numel // 4000, 40, 10, 10), np.float32)), 15)
        value = Quantized(symbols.astype(np.uint8), 4, np.ones(1, np.float32))
        sizes = dict(zip(("samples", "channels", "height", "width"), symbols.shape, strict=True))
        return SymbolsUp(symbols=value), Schema(sizes, 1)

    def mask_of(density: float, numel: int) -> Case:
        return MaskUp(bits=Mask(drawn_mask(density, numel))), schema_of(numel)

    makers: dict[str, Callable[[int], Case]] = {
        "mask, density .5": functools.partial(mask_of, 0.5),
        "mask, density .1": functools.partial(mask_of, 0.1),
        "mask, density .01": functools.partial(mask_of, 0.01),
        "mask with probabilities": lambda numel: drawn_from(rng.random(numel), rng),
        "sparse, density .01": sparse_of,
        "quantized, 4 bits": symbols_of,
    }
    for name, make in makers.items():
        small, large = (milliseconds(measure(*make(numel))) for numel in (MILLION, 10 * MILLION))
        targets.show(name, ("x", large / (10 * small), 1.25), ("ms for 10^7", large, np.inf))


def frame(targets: Targets) -> None:
    layers = [nn.Linear(90, 90) for _ in range(9)]
    layout = layout_of(nn.Sequential(*layers, nn.Linear(90, 10, bias=False)))
    print(f"frame and section table of messages about a model of {len(layout.entries)} tensors")
    numel, schema = layout.num_params, layout.schema()
    indices = np.flatnonzero(drawn_mask(0.1, numel))
    sent: dict[str, Message] = {
        "mask": MaskUp(bits=Mask(drawn_mask(0.1, numel))),
        "sparse": SparseUp(num_samples=600, update=Sparse(numel, indices, np.ones(indices.size, np.float32))),
        "dense": dense_vector(numel),
    }
    for name, msg in sent.items():
        row = measure(msg, schema, budget_s=0.0)
        targets.show(f"{name}, payload {row.payload_nbytes}", ("bytes", row.header_nbytes, 64))


def naive(targets: Targets) -> None:
    print("what plain codecs cost: bytes on the wire, and how often those of auto")
    schema = trained().layout_schema
    for density in (0.1, 0.01, 0.001):
        sent = topk_update(density)
        auto = measure(sent, schema, budget_s=0.0).wire_nbytes
        for codec in ("int64", "uint32"):
            plain = measure(sent, with_codec(schema, sparse=codec, values="raw"), budget_s=0.0).wire_nbytes
            figures = (("bytes", plain, np.inf), ("bytes with auto", auto, np.inf), ("x", plain / auto, np.inf))
            targets.show(f"top-k {density}, {codec}+raw", *figures)
    for density in (0.5, 0.1, 0.01):
        msg = MaskUp(bits=Mask(drawn_mask(density)))
        auto = measure(msg, schema_of(MILLION), budget_s=0.0).wire_nbytes
        plain = measure(msg, schema_of(MILLION, mask="bits"), budget_s=0.0).wire_nbytes
        figures = (("bytes", plain, np.inf), ("bytes with auto", auto, np.inf), ("x", plain / auto, np.inf))
        targets.show(f"mask {density}, bits", *figures)


PARTS: dict[str, Callable[[Targets], None]] = {
    "masks": masks,
    "topk": topk,
    "activations": activations,
    "dense": dense_vectors,
    "scaling": scaling,
    "frame": frame,
    "naive": naive,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)} (default: all)")
    args = parser.parse_args()
    unknown = set(args.parts) - set(PARTS)
    if unknown:
        parser.error(f"there is no part {', '.join(sorted(unknown))}; parts are {', '.join(PARTS)}")
    targets = Targets()
    for name in args.parts or PARTS:
        PARTS[name](targets)
    print(f"{targets.num_targets - len(targets.missed)} of {targets.num_targets} targets met")
    for line in targets.missed:
        print(f"  missed: {line}")


if __name__ == "__main__":
    main()
