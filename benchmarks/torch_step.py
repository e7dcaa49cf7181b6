"""Two ways to write the training step in torch: as the paper's code has it, and well.

Both take the same examples as this project's side, and lay them out as their authors
would.
"""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

from benchmarks.sides import Losses, Ways, serve
from benchmarks.torch_device import DEVICE, placed
from benchmarks.torch_version import clip_with_records, logits_of, make_optimizer
from benchmarks.training import LEARNING_RATE, LENGTH, MAX_NORM, TOTAL_STEPS, Work
from cwgnc_train.data import TokenArrays

Batch = dict[str, torch.Tensor]
PAPER, WELL = "torch, as the paper", "torch, well written"


class TorchStep:
    """A run in torch; subclasses say how its steps are written.

    Args:
      directory: The weights, as transformers reads them.
      precision: "float32", "tf32" or "bfloat16".
      dropout: Whether there is dropout, at the model's rates.
    """

    attention: str

    def __init__(self, directory: Path, precision: str, dropout: bool = True):
        self.precision = precision
        model = transformers.BertForSequenceClassification.from_pretrained(
            directory, attn_implementation=self.attention
        )
        self.model = placed(model).train(dropout)

    def loss(self, forward: Any, batch: Batch) -> torch.Tensor:
        """The mean loss of a batch."""
        batch = {
            name: tensor.to(DEVICE, non_blocking=True) for name, tensor in batch.items()
        }
        half = self.precision == "bfloat16"
        cast = torch.autocast(DEVICE, torch.bfloat16)
        with cast if half else contextlib.nullcontext():
            logits = logits_of(forward, batch)
        return torch.nn.functional.cross_entropy(logits.float(), batch["labels"])

    def _over(
        self, batches: list[Batch], step: Callable[[Batch], torch.Tensor]
    ) -> Callable[[], Losses]:
        def steps():
            losses = torch.stack([step(batch) for batch in batches]).tolist()
            # Else all sides keep their gradients while another one is at work.
            self.model.zero_grad()
            return losses

        return steps


class AsThePaper(TorchStep):
    """Padded to 128, eager attention, a clip in a loop that records every parameter."""

    attention = "eager"

    def __init__(
        self,
        directory: Path,
        precision: str,
        dropout: bool = True,
        learning_rate: float = LEARNING_RATE,
    ):
        super().__init__(directory, precision, dropout)
        self.optimizer = make_optimizer(
            self.model, learning_rate, eps=1e-8, weight_decay=0.0, correct_bias=True
        )
        self.schedule = _schedule(self.optimizer)

    def ways(self, work: Work) -> Ways:
        """A function that takes the steps of the work; the losses before them."""
        batches = [padded(examples, LENGTH) for examples in work.batches()]
        return {PAPER: self._over(batches, self._step)}

    def _step(self, batch: Batch) -> torch.Tensor:
        loss = self.loss(self.model, batch)
        self.optimizer.zero_grad()
        loss.backward()
        clip_with_records(self.model.named_parameters(), MAX_NORM)
        self.optimizer.step()
        self.schedule.step()
        return loss.detach()


class WellWritten(TorchStep):
    """Padded to the longest of the batch, fused attention, clip and optimizer.

    Nothing is recorded and nothing waits for the device.

    Args:
      directory: The weights, as transformers reads them.
      precision: "float32", "tf32" or "bfloat16".
      dropout: Whether there is dropout, at the model's rates.
      learning_rate: Of the first step.
      compiled: Whether there is a way with ``torch.compile`` too.
    """

    attention = "sdpa"

    def __init__(
        self,
        directory: Path,
        precision: str,
        dropout: bool = True,
        learning_rate: float = LEARNING_RATE,
        compiled: bool = False,
    ):
        super().__init__(directory, precision, dropout)
        # Lengths change from batch to batch, and a program for each would take minutes.
        self.compiled = torch.compile(self.model, dynamic=True) if compiled else None
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), learning_rate, weight_decay=0.0, fused=True
        )
        self.schedule = _schedule(self.optimizer)

    def ways(self, work: Work) -> Ways:
        """Functions that take the steps of the work; the losses before them."""
        batches = [
            padded(examples, examples.lengths.max()) for examples in work.batches()
        ]
        forwards = {WELL: self.model}
        if self.compiled is not None:
            forwards[f"{WELL}, compiled"] = self.compiled
        return {
            name: self._over(batches, lambda batch, f=forward: self._step(f, batch))
            for name, forward in forwards.items()
        }

    def _step(self, forward: Any, batch: Batch) -> torch.Tensor:
        loss = self.loss(forward, batch)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        clip_foreach([p.grad for p in self.model.parameters()], MAX_NORM)
        self.optimizer.step()
        self.schedule.step()
        return loss.detach()


def clip_foreach(grads: list[Any], max_norm: float) -> None:
    """Clips each gradient on its own, in place, without waiting for the device."""
    # Torch's own clip calls these two.
    norms = torch.stack(
        torch._foreach_norm(grads)  # pyright: ignore[reportPrivateImportUsage]
    )
    factors = torch.clamp(max_norm / (norms + 1e-6), max=1.0)
    torch._foreach_mul_(  # pyright: ignore[reportPrivateImportUsage]
        grads, list(factors.unbind())
    )


def padded(examples: TokenArrays, length: int) -> Batch:
    """Examples as a batch of this length."""
    batch = {"labels": torch.from_numpy(examples.labels).long()}
    for name in ("input_ids", "attention_mask", "token_type_ids"):
        rows = torch.from_numpy(getattr(examples, name)[:, :length]).long()
        batch[name] = torch.nn.functional.pad(rows, (0, length - rows.shape[1]))
    return batch


def _schedule(optimizer: torch.optim.Optimizer) -> Any:
    return transformers.get_linear_schedule_with_warmup(optimizer, 0, TOTAL_STEPS)


def make(
    directory: Path,
    precision: str,
    dropout: bool,
    learning_rate: float,
    side: str,
    compiled: bool = False,
) -> Callable[..., Ways]:
    """A function from the arrays of some work to the ways to take its steps."""
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    if side == PAPER:
        found = AsThePaper(directory, precision, dropout, learning_rate)
    else:
        found = WellWritten(directory, precision, dropout, learning_rate, compiled)
    return lambda arrays: found.ways(Work.of(arrays))


if __name__ == "__main__":
    serve(make, ["torch", "transformers"])
