import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from codec.layers.activation import Snake
from codec.layers.conv import Conv1d, ConvTranspose1d, split_padding


def saved_for_backward(module: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """The distinct memory that a forward pass keeps for the gradients, parameters left out."""
    own = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        module(x)
    return [tensor for pointer, tensor in kept.items() if pointer not in own]


def snake(alphas: list[float]) -> Snake:
    module = Snake(len(alphas))
    module.alpha.data = torch.tensor(alphas)[None, :, None]
    return module


def formula(x: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
    return x + (alpha * x).sin() ** 2 / alpha


ALPHAS = [0.05, 0.5, 1.0, 3.0, 20.0, -2.0]


def test_snake_and_its_gradients_are_the_formula_s():
    module, x = snake(ALPHAS), 3 * torch.randn(2, len(ALPHAS), 50)
    weights = torch.randn_like(x)
    exact_x, exact_alpha = x.double().requires_grad_(), module.alpha.detach().double().requires_grad_()
    exact = formula(exact_x, exact_alpha)
    (weights.double() * exact).sum().backward()
    x.requires_grad_()
    y = module(x)
    (weights * y).sum().backward()
    torch.testing.assert_close(y.double(), exact, rtol=1e-6, atol=2e-6)
    torch.testing.assert_close(x.grad.double(), exact_x.grad, rtol=1e-5, atol=5e-5)
    torch.testing.assert_close(module.alpha.grad.double(), exact_alpha.grad, rtol=1e-5, atol=2e-4)
    with torch.no_grad():
        assert torch.equal(module(x), y)


def test_snake_passes_gradcheck():
    module = snake(ALPHAS).double()
    x = torch.randn(2, len(ALPHAS), 7, dtype=torch.float64, requires_grad=True)

    def activate(x: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(module, {"alpha": alpha}, x)

    assert torch.autograd.gradcheck(activate, (x, module.alpha))


def test_snake_of_alpha_zero_is_the_identity():
    x = torch.randn(1, 1, 9, requires_grad=True)
    module = snake([0.0])
    y = module(x)
    y.sum().backward()
    assert torch.equal(y, x)
    assert torch.equal(x.grad, torch.ones_like(x))
    assert module.alpha.grad.item() == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_snake_under_autocast_rounds_its_input_and_output_alone(dtype):
    module = snake(ALPHAS)
    x = (3 * torch.randn(2, len(ALPHAS), 50)).to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype):
        y = module(x)
    y.float().sum().backward()
    wide = x.detach().float().requires_grad_()
    reference = snake(ALPHAS)
    exact = reference(wide)
    exact.sum().backward()
    assert y.dtype == x.grad.dtype == dtype
    assert torch.equal(y, exact.to(dtype))
    torch.testing.assert_close(x.grad, wide.grad.to(dtype))
    torch.testing.assert_close(module.alpha.grad, reference.alpha.grad)
    assert module.to(dtype)(x).dtype == dtype


def test_snake_keeps_no_more_than_its_input_and_output_for_the_gradients():
    x = torch.randn(2, 6, 40, requires_grad=True)
    assert sum(tensor.numel() == x.numel() for tensor in saved_for_backward(Snake(6), x)) == 2


def test_snake_compiles_whole_and_exports_as_plain_operations():
    module, x = snake(ALPHAS), torch.randn(2, len(ALPHAS), 16)
    expected = module(x)
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    y = compiled(x)
    torch.testing.assert_close(y, expected)
    y.sum().backward()
    gradient, module.alpha.grad = module.alpha.grad, None
    module(x).sum().backward()
    torch.testing.assert_close(gradient, module.alpha.grad)
    exported = torch.export.export(module, (x,))
    torch.testing.assert_close(exported.module()(x), expected)
    assert all(
        str(node.target).startswith("aten.") for node in exported.graph.nodes if node.op == "call_function"
    )


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("kernel, stride, dilation", [(7, 1, 9), (3, 1, 1), (1, 1, 1), (2, 1, 1), (4, 1, 3)])
def test_convolution_is_that_of_the_padded_signal(causal, kernel, stride, dilation):
    compare_with_padded(causal, kernel, stride, dilation)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("stride", range(2, 9))
def test_strided_convolution_is_that_of_the_padded_signal(causal, stride):
    compare_with_padded(causal, 2 * stride, stride, 1)
    compare_with_padded(causal, stride, stride, 1)
    compare_with_padded(causal, 2 * stride + 1, stride, 1)


def compare_with_padded(causal: bool, kernel: int, stride: int, dilation: int) -> None:
    module = Conv1d(2, 3, kernel, stride=stride, dilation=dilation, causal=causal)
    x = torch.randn(2, 2, 12 * stride, requires_grad=True)
    total = (kernel - 1) * dilation + 1 - stride
    left = total if causal else math.ceil(total / 2)
    padded = functional.pad(x, (left, total - left))
    expected = functional.conv1d(padded, module.conv.weight, module.conv.bias, stride, 0, dilation)
    compare(module(x), expected, x, length=12)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("stride", range(1, 9))
@pytest.mark.parametrize("factor", [1, 2, 3])
def test_transposed_convolution_is_the_full_one_trimmed(causal, stride, factor):
    module = ConvTranspose1d(2, 3, factor * stride, stride=stride, causal=causal)
    x = torch.randn(2, 2, 7, requires_grad=True)
    full = functional.conv_transpose1d(x, module.conv.weight, module.conv.bias, stride)
    left = 0 if causal else split_padding((factor - 1) * stride, causal)[0]
    compare(module(x), full[..., left : left + 7 * stride], x, length=7 * stride)


def compare(result: torch.Tensor, expected: torch.Tensor, x: torch.Tensor, length: int) -> None:
    assert result.shape[-1] == length
    torch.testing.assert_close(result, expected)
    weights = torch.randn_like(expected)
    gradients = [torch.autograd.grad((y * weights).sum(), x)[0] for y in (result, expected)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("kernel, stride, dilation", [(7, 1, 1), (7, 1, 9), (4, 2, 1), (10, 5, 1), (1, 1, 1)])
def test_centered_convolution_copies_nothing(kernel, stride, dilation):
    module = Conv1d(4, 4, kernel, stride=stride, dilation=dilation, causal=False)
    x = torch.randn(1, 4, 20, requires_grad=True)
    (kept,) = saved_for_backward(module, x)
    assert kept.data_ptr() == x.data_ptr()
