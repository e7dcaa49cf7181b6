"""The same recipe in torch: the paper's own loop on transformers' BERT.

    python -m benchmarks.torch_version --model DIR --task cola --data-dir DIR \
        --epochs 3 --learning-rate 1e-4 --seed 1 --json FILE

It reads the same examples in the same order as ``cwgnc finetune`` and scores
them with the same metrics; model, dropout, optimizer and clip are torch's, on a GPU if
torch sees one. As the paper's code it pads to --max-length and measures every parameter
in every step.
"""

import argparse
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
import torch
import transformers
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.padded import padded_batch
from benchmarks.torch_device import placed, wait
from cwgnc_train.config import DataConfig
from cwgnc_train.data import (
    CachedTokenizer,
    TokenArrays,
    load_examples,
    pad_tokens,
    score,
    steps_per_epoch,
)


class AdamW(torch.optim.Optimizer):
    """Adam as in transformers 4.12.5, which torch's own differs from.

    Eps is added to the root of the second moment before its bias is corrected, the
    correction can be switched off, and the decay acts on the updated parameter.
    """

    def __init__(self, params, lr, eps=1e-8, weight_decay=0.0, correct_bias=True):
        defaults = {"lr": lr, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults | {"correct_bias": correct_bias})

    @torch.no_grad()
    def step(self, closure=None):
        """Updates every parameter that has a gradient."""
        b1, b2 = 0.9, 0.999
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state.update(t=0, m=torch.zeros_like(p), v=torch.zeros_like(p))
                state["t"] += 1
                state["m"].mul_(b1).add_(p.grad, alpha=1 - b1)
                state["v"].mul_(b2).addcmul_(p.grad, p.grad, value=1 - b2)
                size = group["lr"]
                if group["correct_bias"]:
                    size *= math.sqrt(1 - b2 ** state["t"]) / (1 - b1 ** state["t"])
                p.addcdiv_(
                    state["m"], state["v"].sqrt().add_(group["eps"]), value=-size
                )
                if group["weight_decay"]:
                    p.mul_(1 - group["lr"] * group["weight_decay"])


def make_optimizer(model, learning_rate, *, eps, weight_decay, correct_bias) -> AdamW:
    """AdamW whose decay spares biases and LayerNorm."""
    spared = [
        name
        for name, _ in model.named_parameters()
        if "LayerNorm" in name or name.endswith("bias")
    ]
    groups = [
        {"params": [p for n, p in model.named_parameters() if n not in spared]},
        {
            "params": [p for n, p in model.named_parameters() if n in spared],
            "weight_decay": 0.0,
        },
    ]
    return AdamW(groups, learning_rate, eps, weight_decay, correct_bias)


def clip_each_parameter(parameters: Iterable[torch.nn.Parameter], max_norm: float):
    """The paper's clip: each parameter's gradient on its own."""
    if math.isinf(max_norm):
        return
    for parameter in parameters:
        torch.nn.utils.clip_grad_norm_(parameter, max_norm)


def clip_with_records(
    named: Iterable[tuple[str, torch.nn.Parameter]], max_norm: float
) -> dict[str, dict[str, float]]:
    """The paper's clip, and what its code writes down of each parameter before it."""
    records = {}
    for name, parameter in named:
        record, grad = {}, parameter.grad
        assert grad is not None, f"{name} has no gradient"
        for kind, tensor in (("grad", grad), ("weight", parameter.data)):
            record[f"{kind}_norm"] = tensor.norm().item()
            record[f"{kind}_min"] = tensor.min().item()
            record[f"{kind}_max"] = tensor.max().item()
            record[f"{kind}_mean"] = tensor.mean().item()
        torch.nn.utils.clip_grad_norm_(parameter, max_norm)
        records[name] = record
    return records


def finetune(
    model: torch.nn.Module,
    batch_of: Callable[[int], Mapping[str, np.ndarray]],
    *,
    steps: int,
    learning_rate: float,
    max_norm: float = 0.05,
    warmup_steps: int = 0,
    total_steps: int | None = None,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    correct_bias: bool = True,
    report: Callable[[int, float], None] = lambda step, loss: None,
) -> list[float]:
    """Trains a classifier of transformers in place.

    Args:
      model: In training mode, or in evaluation mode for no dropout.
      batch_of: The batch of a step; see :func:`padded_batch`.
      steps: Steps to take.
      learning_rate: The highest learning rate; it falls linearly to 0.
      max_norm: The clip's threshold for every parameter.
      warmup_steps: Steps over which the learning rate rises.
      total_steps: The steps of the schedule, if not those taken.
      eps: Adam's eps.
      weight_decay: Not on biases and LayerNorm.
      correct_bias: Adam's bias correction.
      report: Called with each step's number and loss.

    Returns:
      The loss of each step.
    """
    optimizer = make_optimizer(
        model,
        learning_rate,
        eps=eps,
        weight_decay=weight_decay,
        correct_bias=correct_bias,
    )
    schedule = transformers.get_linear_schedule_with_warmup(
        optimizer, warmup_steps, total_steps or steps
    )
    device = next(model.parameters()).device
    losses = []
    for step in range(steps):
        batch = {k: torch.from_numpy(v).to(device) for k, v in batch_of(step).items()}
        logits = logits_of(model, batch)
        each = torch.nn.functional.cross_entropy(
            logits, batch["labels"].long(), reduction="none"
        )
        loss = (each * batch["weights"]).sum() / batch["weights"].sum()
        optimizer.zero_grad()
        loss.backward()
        clip_with_records(model.named_parameters(), max_norm)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        report(step + 1, losses[-1])
    return losses


def logits_of(model: torch.nn.Module, batch: Mapping[str, torch.Tensor]):
    """The logits of a batch."""
    return model(
        input_ids=batch["input_ids"].long(),
        attention_mask=batch["attention_mask"],
        token_type_ids=batch["token_type_ids"].long(),
    ).logits


@torch.no_grad()
def evaluate(model: torch.nn.Module, arrays: TokenArrays) -> np.ndarray:
    """The logits of a whole set, ``[examples, classes]``, without dropout."""
    model.eval()
    names = ("input_ids", "attention_mask", "token_type_ids")
    tokens = [torch.from_numpy(getattr(arrays, name)) for name in names]
    device = next(model.parameters()).device
    parts = []
    for tensors in DataLoader(TensorDataset(*tokens), batch_size=64):
        placed = (tensor.to(device) for tensor in tensors)
        parts.append(logits_of(model, dict(zip(names, placed, strict=True))).cpu())
    return torch.cat(parts).numpy()


def main() -> None:
    """Fine-tunes and scores one run, and prints or writes its result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--task", required=True)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=2e-5)
    parser.add_argument("--warmup-ratio", type=float, default=0.0)
    parser.add_argument("--weight-decay", type=float, default=0.0)
    parser.add_argument("--max-norm", type=float, default=0.05)
    parser.add_argument("--max-length", type=int, default=128)
    parser.add_argument("--train-examples", type=int)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()

    data = DataConfig(data_dir=args.data_dir, train_examples=args.train_examples)
    task, examples = load_examples(args.task, data)
    tokenizer, length = CachedTokenizer(Path(args.model), cache=False), args.max_length
    sets = {
        name: pad_tokens(
            tokenizer.encode(part.texts, length), part.labels, length, length
        )
        for name, part in examples.items()
    }
    torch.manual_seed(args.seed)
    model = transformers.BertForSequenceClassification.from_pretrained(
        args.model, num_labels=task.num_labels, attn_implementation="eager"
    )
    model = placed(model).train()
    train = sets.pop("train")
    per_epoch = steps_per_epoch(len(train.input_ids), args.batch_size)
    load_before = os.getloadavg()[0]
    start = time.monotonic()

    def report(step, loss):
        if step % 50 == 0:
            print(f"step {step}  loss {loss:.4f}", flush=True)

    steps = args.epochs * per_epoch
    finetune(
        model,
        lambda step: padded_batch(train, args.seed, step, args.batch_size),
        steps=steps,
        learning_rate=args.learning_rate,
        warmup_steps=math.ceil(args.warmup_ratio * steps),
        weight_decay=args.weight_decay,
        max_norm=args.max_norm,
        report=report,
    )
    wait()
    trained = time.monotonic()
    scores = {}
    for name, arrays in sets.items():
        assert arrays.labels is not None
        scores[name] = score(task, evaluate(model, arrays).argmax(-1), arrays.labels)
    result = {
        "arguments": {k: str(v) for k, v in vars(args).items() if k != "json"},
        "scores": scores,
        "seconds": {
            "training": round(trained - start, 1),
            "evaluation": round(time.monotonic() - trained, 1),
        },
        "steps": steps,
        "threads": torch.get_num_threads(),
        "load_average": {"before": load_before, "after": os.getloadavg()[0]},
        "versions": {
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }
    print(json.dumps(result, indent=2))
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
