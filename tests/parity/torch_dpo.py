"""Preference training in plain torch that shares nothing with rapo_jax: what trajectories are compared with.

One response per sequence, its prompt repeated, padded on the right; losses, schedules and clipping spelled out. Only the
model comes from transformers.
"""

import copy
import math
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Pair:
    """Token ids. `side` says whose reward was the goal: "chosen" or "rejected". SFT reads `chosen` alone."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]
    side: str


@dataclass(frozen=True)
class Recipe:
    objective: str = "dpo"
    beta: float = 0.1
    label_smoothing: float = 0.0
    learning_rate: float = 1e-3
    num_warmup: int = 0
    schedule: str = "cosine"
    max_grad_norm: float | None = None
    weight_decay: float = 0.0
    eps: float = 1e-8  # of Adam


def summed_logps(model, prompts, responses) -> torch.Tensor:
    """log pi(response | prompt), one sequence for each."""
    sequences = [[*prompt, *response] for prompt, response in zip(prompts, responses, strict=True)]
    length = max(map(len, sequences))
    ids = torch.tensor([s + [0] * (length - len(s)) for s in sequences])
    attention = torch.tensor([[1] * len(s) + [0] * (length - len(s)) for s in sequences])
    scored = torch.tensor(
        [
            [0] * len(p) + [1] * len(r) + [0] * (length - len(p) - len(r))
            for p, r in zip(prompts, responses, strict=True)
        ]
    )
    logits = model(input_ids=ids, attention_mask=attention, use_cache=False).logits
    logps = torch.log_softmax(logits[:, :-1].float(), dim=-1).gather(-1, ids[:, 1:, None])[..., 0]
    return (logps * scored[:, 1:]).sum(-1)


def learning_rate_factor(step: int, *, recipe: Recipe, num_steps: int) -> float:
    if step < recipe.num_warmup:
        return step / recipe.num_warmup
    progress = (step - recipe.num_warmup) / (num_steps - recipe.num_warmup)
    return {"cosine": (1 + math.cos(math.pi * progress)) / 2, "linear": 1 - progress}[recipe.schedule]


def trained(model) -> list:
    """All parameters, or those that adapters left trainable."""
    return [p for p in model.parameters() if p.requires_grad]


def decay_groups(model, weight_decay: float) -> list[dict]:
    """Matrices decay; norms and biases do not."""
    matrices = [p for p in trained(model) if p.ndim > 1]
    vectors = [p for p in trained(model) if p.ndim <= 1]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]


def train(model, steps: list[list[Pair]], recipe: Recipe) -> list[dict[str, float]]:
    """Trains `model` in place, one optimizer step per list of pairs; the metrics of each step."""
    model.eval()  # there is no dropout to speak of
    reference = copy.deepcopy(model).requires_grad_(False)
    optimizer = torch.optim.AdamW(decay_groups(model, recipe.weight_decay), lr=recipe.learning_rate, eps=recipe.eps)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: learning_rate_factor(step, recipe=recipe, num_steps=len(steps))
    )
    history = []
    for pairs in steps:
        loss, metrics = OBJECTIVES[recipe.objective](model, reference, pairs, recipe)
        optimizer.zero_grad()
        loss.backward()
        norm = math.sqrt(sum(float((p.grad.double() ** 2).sum()) for p in trained(model)))
        if recipe.max_grad_norm is not None and norm > recipe.max_grad_norm:
            for p in trained(model):
                p.grad *= recipe.max_grad_norm / norm
        metrics |= {"loss": float(loss.detach()), "grad_norm": norm, "learning_rate": optimizer.param_groups[0]["lr"]}
        history.append(metrics)
        optimizer.step()
        schedule.step()
    return history


def dpo(model, reference, pairs: list[Pair], recipe: Recipe):
    prompts = [pair.prompt for pair in pairs] * 2
    responses = [pair.chosen for pair in pairs] + [pair.rejected for pair in pairs]
    logps = summed_logps(model, prompts, responses)
    with torch.no_grad():
        reference_logps = summed_logps(reference, prompts, responses)
    chosen, rejected = (recipe.beta * (logps - reference_logps)).chunk(2)
    p = torch.sigmoid(chosen - rejected)  # that the chosen response is preferred
    losses = -(1 - recipe.label_smoothing) * torch.log(p) - recipe.label_smoothing * torch.log(1 - p)
    columns = {"loss": losses, "rewards/chosen": chosen, "rewards/rejected": rejected}
    columns |= {"rewards/margins": chosen - rejected, "rewards/accuracies": (chosen > rejected).float()}
    columns |= dict(zip(("logps/chosen", "logps/rejected"), logps.chunk(2), strict=True))
    metrics = {name: float(column.detach().mean()) for name, column in columns.items()}
    for side in ("chosen", "rejected"):
        members = [index for index, pair in enumerate(pairs) if pair.side == side]
        if members:
            metrics |= {f"goal_{side}/{name}": float(c.detach()[members].mean()) for name, c in columns.items()}
    return losses.mean(), metrics


def sft(model, reference, pairs: list[Pair], recipe: Recipe):
    logps = summed_logps(model, [pair.prompt for pair in pairs], [pair.chosen for pair in pairs])
    lengths = torch.tensor([float(len(pair.chosen)) for pair in pairs])
    return (-logps / lengths).mean(), {"logps/chosen": float(logps.detach().mean())}


OBJECTIVES = {"dpo": dpo, "sft": sft}
