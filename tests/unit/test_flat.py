"""FlatModel: views of flat vectors behave as the module they were made from."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedmpi.errors import ConfigError
from fedmpi.flat import FlatModel, layout_of, leave_out_cudnn, unaligned_norms


def conv_net(seed: int = 0) -> nn.Module:
    """Return a net with every kind of tensor: 4-D and other weights, float and integer buffers, no bias in places."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(2, 3, (5, 4), bias=False), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 4 * 5, 6),
        nn.BatchNorm1d(6, affine=False), nn.Linear(6, 4),
    )  # fmt: skip


def batch(seed: int = 1) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(7, 2, 8, 8, generator=rng), torch.randint(0, 4, (7,), generator=rng)


def test_sizes() -> None:
    flat = FlatModel(conv_net())
    # 3*2*5*4 + 2*3, 60*6 + 6, 6*4 + 4; running mean and variance of 3 and of 6 channels; two counters of batches.
    assert flat.layout.num_params == flat.params_P.numel() == flat.grads_P.numel() == 120 + 6 + 366 + 28
    assert flat.layout.num_state == flat.state_S.numel() == 520 + 6 + 12
    assert flat.layout.num_int_buffers == flat.ints_I.numel() == 2
    assert (flat.state_S.dtype, flat.ints_I.dtype) == (torch.float32, torch.int64)
    assert flat.layout.schema().sizes == {"params": 520, "buffers": 18, "state": 538, "int_buffers": 2}
    assert flat.layout.schema().segments["params"].tolist() == [0, 120, 123, 126, 486, 492, 516, 520]
    assert flat.layout.schema().segments["state"].tolist()[-5:] == [520, 523, 526, 532, 538]
    assert flat.layout.schema().layout_id == flat.layout.layout_id


def test_entries_fill_the_vectors_without_gap_or_overlap() -> None:
    layout = layout_of(conv_net())
    used = {"state": torch.zeros(layout.num_state), "ints": torch.zeros(layout.num_int_buffers)}
    for entry in layout.entries:
        view = entry.view(used["ints" if entry.role == "int_buffer" else "state"])
        assert tuple(view.shape) == entry.shape
        view += 1
    assert torch.equal(used["state"], torch.ones(538))
    assert torch.equal(used["ints"], torch.ones(2))


def test_parameters_and_buffers_are_views() -> None:
    module = conv_net()
    want = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    flat = FlatModel(module)
    assert flat.module is module
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, want[name])
        vector = flat.state_S if tensor.is_floating_point() else flat.ints_I
        assert tensor.untyped_storage().data_ptr() == vector.untyped_storage().data_ptr()
    flat.state_S.fill_(2.0)
    flat.ints_I.fill_(5)
    for tensor in module.state_dict().values():
        assert torch.equal(tensor, torch.full_like(tensor, 2 if tensor.is_floating_point() else 5))
    with torch.no_grad():
        module[4].weight.zero_()
    assert int((flat.params_P == 0).sum()) == 360
    assert int((flat.state_S == 0).sum()) == 360  # params_P is the head of state_S


def test_convolution_weights_lie_as_ohwi() -> None:
    module = conv_net()
    weight = module[0].weight.detach().clone()
    flat = FlatModel(module)
    entry = flat.layout.entries[0]
    assert (entry.name, entry.shape, entry.stored_shape) == ("0.weight", (3, 2, 5, 4), (3, 5, 4, 2))
    number = 0
    for o in range(3):
        for h in range(5):
            for w in range(4):
                for i in range(2):
                    assert flat.params_P[number] == weight[o, i, h, w]
                    number += 1
    assert torch.equal(module[0].weight, weight)
    assert module[0].weight.is_contiguous(memory_format=torch.channels_last)


def test_forward_equals_that_of_the_original_module() -> None:
    module = conv_net()
    flat = FlatModel(copy.deepcopy(module))
    x, _ = batch()
    for mode in (True, False):
        module.train(mode)
        flat.module.train(mode)
        torch.testing.assert_close(flat.module(x), module(x), rtol=1e-6, atol=1e-6)
    for name, tensor in module.state_dict().items():
        torch.testing.assert_close(flat.module.state_dict()[name], tensor, rtol=1e-6, atol=1e-7)
    assert flat.ints_I.tolist() == [1, 1]


def test_gradients_accumulate_into_one_vector() -> None:
    module = conv_net()
    flat = FlatModel(copy.deepcopy(module))
    x, y = batch()
    memory = flat.grads_P.data_ptr()
    for _ in range(2):
        for net in (module, flat.module):
            F.cross_entropy(net(x), y).backward()
    assert flat.grads_P.data_ptr() == memory
    for entry in flat.layout.entries:
        if entry.role == "param":
            param = module.get_parameter(entry.name)
            torch.testing.assert_close(entry.view(flat.grads_P), param.grad, rtol=1e-5, atol=1e-6)
            ours = flat.module.get_parameter(entry.name).grad
            assert ours.untyped_storage().data_ptr() == flat.grads_P.untyped_storage().data_ptr()
    assert float(flat.grads_P.abs().max()) > 0


def test_the_leafs_gradient_is_added_to_the_networks() -> None:
    flat = FlatModel(conv_net())
    x, y = batch()
    flat.module.eval()
    F.cross_entropy(flat.module(x), y).backward()
    alone = flat.grads_P.clone()
    (0.5 * flat.leaf_P.square().sum()).backward()
    assert torch.equal(flat.grads_P, alone + flat.params_P)
    assert flat.leaf_P.grad is flat.grads_P
    flat.params_P.add_(1.0)
    assert torch.equal(flat.leaf_P.detach(), flat.params_P)


def test_buffers_that_are_not_saved_are_no_state() -> None:
    module = nn.Linear(2, 2)
    module.register_buffer("scratch", torch.ones(5), persistent=False)
    assert layout_of(module).num_state == 6


def test_parameters_of_another_dtype_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"parameter weight must be float32, got torch.float64"):
        layout_of(nn.Linear(2, 2).double())


def test_the_layout_id_is_pinned() -> None:
    """It is in every frame: a change here makes old frames unreadable, so it must be wanted."""
    assert layout_of(nn.Linear(2, 3)).layout_id == 0xD1230E18


class Renamed(nn.Module):
    def __init__(self, *names: str, shape: tuple[int, ...] = (4, 3)) -> None:
        super().__init__()
        for name in names:
            self.register_parameter(name, nn.Parameter(torch.zeros(shape)))


def test_the_layout_id_names_names_shapes_and_order() -> None:
    same = layout_of(Renamed("a", "b")).layout_id
    others = [Renamed("a", "c"), Renamed("b", "a"), Renamed("a"), Renamed("a", "b", shape=(3, 4)),
              Renamed("a", "b", shape=(12,)), nn.Sequential(Renamed("a", "b"))]  # fmt: skip
    assert layout_of(Renamed("a", "b")).layout_id == same
    ids = [layout_of(module).layout_id for module in others]
    assert len({same, *ids}) == 7
    assert all(0 <= layout_id < 2**32 for layout_id in [same, *ids])


def test_the_layout_id_names_roles_and_storage() -> None:
    layout = layout_of(conv_net())
    first, *rest = layout.entries
    for change in ({"role": "buffer"}, {"stored_shape": (3, 2, 5, 4)}, {"offset": 1}):
        entries = (dataclasses.replace(first, **change), *rest)
        assert dataclasses.replace(layout, entries=entries).layout_id != layout.layout_id


def test_load() -> None:
    flat, other = FlatModel(conv_net()), FlatModel(conv_net(seed=5))
    x, y = batch()
    F.cross_entropy(other.module(x), y)  # moves the running statistics and counters
    flat.load(other.state_S, other.ints_I)
    assert torch.equal(flat.state_S, other.state_S)
    assert flat.ints_I.tolist() == [1, 1]
    assert flat.state_S.data_ptr() != other.state_S.data_ptr()
    flat.module.eval()
    other.module.eval()
    assert torch.equal(flat.module(x), other.module(x))


def test_a_model_without_integers_loads_without_them() -> None:
    flat = FlatModel(nn.Linear(2, 2))
    flat.load(torch.arange(6.0))
    assert flat.module.bias.tolist() == [4.0, 5.0]


def test_momentum_is_one_vector_that_starts_at_zero() -> None:
    flat = FlatModel(conv_net())
    assert torch.equal(flat.momentum_P, torch.zeros(520))
    assert flat.momentum_P is flat.momentum_P
    assert torch.equal(flat.second_moment_P, torch.zeros(520))
    assert flat.second_moment_P.data_ptr() not in (flat.momentum_P.data_ptr(), flat.params_P.data_ptr())


class Tied(nn.Module):
    """One weight under two names, and one buffer in two submodules."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
        self.second.weight = self.first.weight
        scale = torch.tensor([1.0, 2.0, 3.0])
        for layer in (self.first, self.second):
            layer.register_buffer("scale", scale)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x) * self.first.scale) * self.second.scale


def test_tied_tensors_stay_tied() -> None:
    module = Tied()
    flat = FlatModel(copy.deepcopy(module))
    assert (flat.layout.num_params, flat.layout.num_state) == (9 + 3 + 3, 15 + 3)
    x = torch.randn(5, 3)
    for _ in range(2):
        for net in (module, flat.module):
            net.zero_grad(set_to_none=False)
            net(x).square().sum().backward()
            for param in net.parameters():
                param.data.add_(param.grad, alpha=-1e-3)
        torch.testing.assert_close(flat.module(x), module(x))
    assert flat.module.second.weight is flat.module.first.weight
    flat.state_S[15:].fill_(7.0)
    assert flat.module.first.scale.tolist() == flat.module.second.scale.tolist() == [7.0] * 3


def test_frozen_parameters_are_state_and_not_trained() -> None:
    module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 3), nn.BatchNorm1d(3))
    module[0].requires_grad_(False)
    want = module[0].weight.clone()
    flat = FlatModel(module)
    names = [(entry.name, entry.role) for entry in flat.layout.entries]
    assert names == [
        ("2.weight", "param"), ("2.bias", "param"), ("3.weight", "param"), ("3.bias", "param"),
        ("0.weight", "buffer"), ("0.bias", "buffer"), ("3.running_mean", "buffer"), ("3.running_var", "buffer"),
        ("3.num_batches_tracked", "int_buffer"),
    ]  # fmt: skip
    assert (flat.layout.num_params, flat.layout.num_state) == (24 + 3 + 6, 33 + 20 + 6)
    assert torch.equal(module[0].weight, want)
    F.cross_entropy(module(torch.randn(4, 1, 4, 4)), torch.tensor([0, 1, 2, 0])).backward()
    assert float(flat.grads_P.abs().max()) > 0
    assert module[0].weight.grad is None
    flat.params_P.zero_()
    assert torch.equal(module[0].weight, want)
    flat.state_S.zero_()
    assert not module[0].weight.any()


class SharedMemory(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.zeros(4))
        self.b = nn.Parameter(self.a.data.view(2, 2))


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (nn.Flatten, "no parameter that is trained"),
        (lambda: nn.Linear(2, 2).requires_grad_(False), "no parameter that is trained"),
        (lambda: nn.LazyLinear(2), "parameter weight is lazy or meta"),
        (lambda: nn.Linear(2, 2, device="meta"), "parameter weight is lazy or meta"),
        (lambda: nn.Sequential(nn.Linear(2, 2), nn.LazyBatchNorm1d(affine=False)), "buffer 1.running_mean is lazy"),
        (SharedMemory, "parameters a and b share memory"),
    ],
)
def test_modules_that_are_refused(module: Callable[[], nn.Module], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        FlatModel(module())


def test_what_masks_may_leave_out() -> None:
    """Weights of convolutions and fully connected layers: no bias, no number of a normalization."""
    layout = layout_of(conv_net())
    assert layout.maskable == ("0.weight", "4.weight", "6.weight")
    assert [entry.name for entry in layout.maskable_entries] == list(layout.maskable)
    assert [(entry.offset, entry.numel) for entry in layout.maskable_entries] == [(0, 120), (126, 360), (492, 24)]
    others = nn.ModuleDict(
        {
            "words": nn.Embedding(5, 3), "recurrent": nn.GRU(3, 4), "norm": nn.LayerNorm(4), "one": nn.Conv1d(4, 2, 3),
            "three": nn.Conv3d(1, 2, 2), "turned": nn.ConvTranspose2d(2, 2, 2), "both": nn.Bilinear(2, 2, 2),
        }
    )  # fmt: skip
    assert layout_of(others).maskable == ("one.weight", "three.weight")


def test_a_weight_with_two_names_is_masked_once_and_a_frozen_one_never() -> None:
    assert layout_of(Tied()).maskable == ("first.weight",)
    tied_to_words = nn.ModuleDict({"words": nn.Embedding(5, 3), "head": nn.Linear(3, 5)})
    tied_to_words["head"].weight = tied_to_words["words"].weight
    assert layout_of(tied_to_words).maskable == ("words.weight",)
    frozen = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    frozen[0].requires_grad_(False)
    assert layout_of(frozen).maskable == ("1.weight",)


def test_cudnn_is_left_out_where_a_batch_norm_is_not_aligned() -> None:
    """What cuDNN reads four numbers at a time from must start at a multiple of 16 bytes."""
    aligned = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8 * 4, 4))
    flat = FlatModel(aligned)
    assert [entry.offset % 4 for entry in flat.layout.entries] == [0] * 9
    assert unaligned_norms(aligned) == []
    uneven = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8 * 4, 3))
    FlatModel(uneven)  # the running mean comes after 3 biases
    assert unaligned_norms(uneven) == [uneven[1]]
    frozen = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8, affine=False), nn.Linear(3, 1))
    assert unaligned_norms(frozen) == []  # a tensor by itself is aligned


class Watched(nn.BatchNorm2d):
    """Says whether cuDNN is in use; refuses one sample."""

    seen: ClassVar[list[bool]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(torch.backends.cudnn.enabled)
        if len(x) == 1:
            raise ValueError("one sample")
        return super().forward(x)


def test_a_layer_without_cudnn_leaves_it_to_the_others() -> None:
    layer = Watched(3)
    leave_out_cudnn(layer)
    x = torch.randn(2, 3, 4, 4)
    assert torch.equal(layer(x), nn.BatchNorm2d(3)(x))
    assert torch.backends.cudnn.enabled
    with pytest.raises(ValueError, match="one sample"):
        layer(x[:1])
    assert torch.backends.cudnn.enabled
    copy.deepcopy(layer)(x)
    assert torch.backends.cudnn.enabled
    assert Watched.seen == [False] * 3


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("num_classes", [3, 4])
def test_batch_norm_learns_on_a_gpu_wherever_its_numbers_lie(num_classes: int) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8 * 36, num_classes))
    x = torch.randn(16, 3, 8, 8).to(memory_format=torch.channels_last)
    found = []
    for device in ("cpu", "cuda"):
        flat = FlatModel(copy.deepcopy(module), torch.device(device))
        F.cross_entropy(flat.module(x.to(device)), torch.arange(16, device=device) % num_classes).backward()  # type: ignore[no-untyped-call]
        found.append((flat.grads_P.cpu(), flat.state_S.cpu()))
    for here, there in zip(*found, strict=True):
        torch.testing.assert_close(here, there, rtol=1e-3, atol=1e-5)
