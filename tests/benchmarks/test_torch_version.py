"""The torch version against the arithmetic that it stands for."""

import math

import numpy as np
import pytest
import torch

from benchmarks.torch_version import AdamW, clip_each_parameter, finetune

LEARNING_RATE = 1e-2


def adam_by_hand(parameter, gradients, learning_rates, eps, weight_decay, correct_bias):
    """Adam of transformers 4.12.5, a line for each of its steps."""
    m = v = np.zeros_like(parameter)
    for t, (g, rate) in enumerate(zip(gradients, learning_rates, strict=True), start=1):
        m = 0.9 * m + 0.1 * g
        v = 0.999 * v + 0.001 * g**2
        size = rate
        if correct_bias:
            size = rate * math.sqrt(1 - 0.999**t) / (1 - 0.9**t)
        parameter = parameter - size * m / (np.sqrt(v) + eps)
        parameter = parameter - rate * weight_decay * parameter
    return parameter


@pytest.mark.parametrize("correct_bias", [True, False])
@pytest.mark.parametrize("eps", [1e-8, 1e-6])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)]
)
def test_adam_is_that_of_transformers_4(
    correct_bias, eps, weight_decay, dtype, tolerance
):
    rng = np.random.default_rng(0)
    start = rng.normal(size=(3, 4))
    # As small as behind a clip, where the place of eps shows.
    gradients = rng.normal(size=(10, 3, 4)) * 1e-6
    parameter = torch.nn.Parameter(torch.tensor(start, dtype=dtype))
    optimizer = AdamW([parameter], LEARNING_RATE, eps, weight_decay, correct_bias)
    for gradient in gradients:
        parameter.grad = torch.tensor(gradient, dtype=dtype)
        optimizer.step()
    rates = [LEARNING_RATE] * len(gradients)
    expected = adam_by_hand(start, gradients, rates, eps, weight_decay, correct_bias)
    np.testing.assert_allclose(
        parameter.detach().numpy(), expected, rtol=0, atol=tolerance
    )


def test_first_step_weighs_eps_more_than_the_adam_of_torch():
    moved = []
    for optimizer_class in (AdamW, torch.optim.Adam):
        parameter = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
        parameter.grad = torch.full((1,), 1e-6, dtype=torch.float64)
        optimizer_class([parameter], lr=1.0, eps=1e-8).step()
        moved.append(-parameter.item())
    root = math.sqrt(0.001) * 1e-6  # of the uncorrected second moment
    assert moved[0] == pytest.approx(root / (root + 1e-8), rel=1e-9)
    assert moved[1] == pytest.approx(1e-6 / (1e-6 + 1e-8), rel=1e-9)


def test_each_parameter_is_clipped_on_its_own():
    gradients = {"large": [3.0, 4.0], "small": [0.003, 0.004], "zero": [0.0, 0.0]}
    parameters = {name: torch.nn.Parameter(torch.zeros(2)) for name in gradients}
    for name, parameter in parameters.items():
        parameter.grad = torch.tensor(gradients[name])
    without_gradient = torch.nn.Parameter(torch.zeros(2))
    clip_each_parameter([*parameters.values(), without_gradient], 0.05)
    for name, gradient in gradients.items():
        factor = min(1.0, 0.05 / (np.linalg.norm(gradient) + 1e-6))
        np.testing.assert_allclose(
            np.asarray(parameters[name].grad),
            np.multiply(gradient, factor),
            rtol=1e-6,
        )
    assert without_gradient.grad is None


def test_an_infinite_threshold_changes_nothing():
    parameter = torch.nn.Parameter(torch.zeros(2))
    parameter.grad = torch.tensor([3e30, math.nan])
    clip_each_parameter([parameter], math.inf)
    np.testing.assert_array_equal(parameter.grad.numpy(), np.float32([3e30, np.nan]))


class Logits(torch.nn.Module):
    """One weight and one bias, called as a classifier of transformers is."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([0.5, -0.25]))
        self.bias = torch.nn.Parameter(torch.tensor([0.1, 0.2]))
        self.logits = None

    def forward(self, input_ids, attention_mask, token_type_ids):
        self.logits = input_ids.float() * self.weight + self.bias
        return self


def batch_of(step):
    rng = np.random.default_rng(step)
    ids = rng.integers(1, 9, size=(4, 1))
    ones = np.ones_like(ids)
    return {
        "input_ids": ids,
        "attention_mask": ones,
        "token_type_ids": ones,
        "labels": rng.integers(0, 2, size=4),
        "weights": np.float32([1, 1, 1, 0]),
    }


def recipe_by_hand(steps, learning_rates, max_norm, weight_decay):
    """The losses and end parameters of the whole recipe, in float64."""
    params = {"weight": np.array([0.5, -0.25]), "bias": np.array([0.1, 0.2])}
    start = dict(params)
    history = {"weight": [], "bias": []}
    losses = []
    for step in range(steps):
        batch = batch_of(step)
        x, labels = batch["input_ids"][:3].astype(float), batch["labels"][:3]
        logits = x * params["weight"] + params["bias"]
        p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        losses.append(-np.log(p[np.arange(3), labels]).mean())
        error = (p - np.eye(2)[labels]) / 3
        for name, g in (("weight", (error * x).sum(0)), ("bias", error.sum(0))):
            norm = np.linalg.norm(g)
            history[name].append(g * min(1.0, max_norm / (norm + 1e-6)))
            params[name] = adam_by_hand(
                start[name],
                history[name],
                learning_rates[: step + 1],
                eps=1e-8,
                weight_decay=weight_decay if name == "weight" else 0.0,
                correct_bias=True,
            )
    return losses, params


@pytest.mark.parametrize("max_norm", [0.05, math.inf])
def test_whole_recipe_by_hand(max_norm):
    steps, warmup = 6, 2
    # From 0 over two steps to the top, then linearly towards 0.
    rates = [LEARNING_RATE * f for f in (0, 1 / 2, 1, 3 / 4, 2 / 4, 1 / 4)]
    expected, params = recipe_by_hand(steps, rates, max_norm, weight_decay=0.1)
    model = Logits()
    losses = finetune(
        model,
        batch_of,
        steps=steps,
        learning_rate=LEARNING_RATE,
        max_norm=max_norm,
        warmup_steps=warmup,
        weight_decay=0.1,
    )
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    for name, parameter in model.named_parameters():
        np.testing.assert_allclose(
            parameter.detach().numpy(), params[name], rtol=0, atol=1e-6
        )
