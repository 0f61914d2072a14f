"""What a refiner is trained for: to drift towards real clips of its class, or to hit the truth.

`DriftObjective` compares *distributions*, class by class, in feature space; no term pairs a
refined clip with the clip that it was made from. `PairedObjective` is the usual regression, which
blurs what it cannot know; it trains the network that multi-step sampling needs.

A step draws classes, then clips of each; corrupts them to a random level; refines them in one step.
Positives come from memory banks of real latents that each step refreshes with its own clips, so a
class is compared with more clips than a step could encode anew; unconditional negatives from all
training clips, or from a memory bank of those of the last steps where loading more is too dear.

Clips too large to be refined at once go through refiner and encoder in chunks without a graph; the
drift's gradient by their features is known then (drift.py), and each chunk is run again with a
graph to take it to the weights (gradient caching, Gao et al. 2021, arXiv 2101.06983). Gradients
are those of all clips at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from braid.drifting.config import BatchesConfig, DriftBatchesConfig, PositiveSampling
from braid.drifting.loss.drift import DriftLoss, Samples
from braid.drifting.training.memory_bank import Drawn, MemoryBank, MemoryBanks, ReadAhead
from braid.drifting.video.corruption import Corrupted, ForwardProcess
from braid.training import distributed
from braid.training.trainer import Stateful

Features = Callable[[Tensor], Mapping[str, Tensor]]  # [B, C, T, H, W] to groups of [B, L, D]
Branch = tuple[float, Features]  # weight of its loss, and what the drift is computed in
Latents = Callable[[Tensor], Tensor]  # clips by position [B] in the training split
# Clips, levels, ids and a generator to the clips one level finer.
Finer = Callable[[Tensor, Tensor, Tensor, torch.Generator], Tensor]
POSITIVES: dict[PositiveSampling, str] = {
    "random": "without replacement",
    "nearest": "the nearest to the refined clips",
    "own": "after the truth of the refined clips",
}


def distinct(
    ids: Tensor,  # [B] int64 below `total`
    total: int,
) -> Tensor:
    """Ids [B] of which none repeats: the k-th repetition of an id has k times `total` added.

    A clip that stands in a step twice must not get the same random numbers twice.
    """
    order = ids.argsort(stable=True)
    ranked = ids[order]
    repetition = torch.empty_like(ids)
    repetition[order] = torch.arange(len(ids)) - torch.searchsorted(ranked, ranked)
    return ids + total * repetition


@dataclass(frozen=True)
class Refined:
    """One step's clips."""

    classes: Tensor  # [C]
    members: Tensor  # [C, N] positions in the training split
    truth: Tensor  # [C, N, ...]
    target: Tensor  # [C, N, ...] the truth, or as it is one level finer
    corrupted: Corrupted  # of C N clips
    level: Tensor  # [C N]
    clips: Tensor  # [C, N, ...] refined
    repeated: int  # clips drawn twice because their class is too small


class Refinement(nn.Module):
    """What both objectives share: draw clips, corrupt them, refine them."""

    def __init__(
        self,
        refiner: nn.Module,  # called as `Refiner` is
        corruption: ForwardProcess,
        latents: Latents,
        labels: Tensor,  # [n] of the training clips
        batches: DriftBatchesConfig,
        anchors: Latents | None = None,  # phase-1 outputs for the same clips
        level_of: Literal["clip", "class", "step"] = "clip",  # what a step draws a level for
        texts: Latents | None = None,  # text embeddings of the same clips, if the refiner takes any
        finer: Finer | None = None,  # refine to the next finer level; None: to the clip
        chunk: int = 0,  # clips that go through the networks at once; 0: all
    ) -> None:
        super().__init__()
        self.texts, self.finer = texts, finer
        self.level_of, self.chunk = level_of, chunk
        self.refiner = refiner
        self.corruption = corruption
        self.latents = latents
        self.anchors = anchors
        self.sampler = ClassSampler(labels)
        self.batches = batches
        self.diagnostics: dict[str, float | Tensor] = {}
        self.following: torch.Generator | None = None

    def stateful(self) -> dict[str, Stateful]:
        """What a resumed training must find as it was."""
        return {}

    def card(self, effective: int) -> dict[str, str]:
        """What a card says of the objective beside its params, `effective` samples an update."""
        return {
            "effective batch": f"{effective}, {self.clips_per_step} at once",
            "sampling": "class-balanced, without replacement inside a class",
            "encoder": "none",
        }

    @property
    def device(self) -> torch.device:
        """Where the refiner is."""
        return next(self.refiner.parameters()).device

    @property
    def clips_per_step(self) -> int:
        """How many clips one batch has."""
        return self.batches.classes * self.batches.generated

    def load(self, source: Latents, members: Tensor) -> Tensor:
        """Clips [..., C, T, H, W] at positions [...]."""
        return source(members.flatten()).to(self.device).unflatten(0, members.shape)

    def guidance(self, _: torch.Generator) -> Tensor:
        """Alpha of a step's classes, [C]; without guidance all 1."""
        return torch.ones(self.batches.classes)

    def draw(self, generator: torch.Generator) -> Batch:
        """The classes and clips of a step whose guidance is drawn."""
        return self.sampler.draw(self.batches.classes, self.batches.generated, generator)

    def ahead(self, following: torch.Generator | None) -> None:
        """Take note of the next step's generator; None: there is no next step."""
        self.following = following

    def read_ahead(self) -> None:
        """Start to read the next step's clips, all of this one's being read."""
        if self.following is not None and isinstance(self.latents, ReadAhead):
            cpu = _on_cpu(self.following)
            self.guidance(cpu)
            self.latents.announce(self.draw(cpu).members.flatten())

    def refine(self, alpha: Tensor, generator: torch.Generator) -> Refined:
        """Draw one step's clips and refine them under guidance alpha [C]."""
        classes, members = self.batches.classes, self.batches.generated
        batch = self.draw(generator)
        truth = self.load(self.latents, batch.members)
        alike = {"clip": 1, "class": members, "step": classes * members}[self.level_of]
        count, end = classes * members // alike, self.corruption.levels + 1
        level = torch.randint(1, end, (count,), generator=generator)
        level = level.repeat_interleave(alike).to(self.device)
        ids = batch.members.flatten()
        anchors = {"anchors": self.load(self.anchors, ids)} if self.anchors else {}
        text = {"text": self.load(self.texts, ids)} if self.texts else {}
        draws = distinct(ids, len(self.sampler.order))
        corrupted = self.corruption(truth.flatten(0, 1), level, draws, generator, **anchors)
        labels = batch.classes.to(self.device).repeat_interleave(members)
        guidance = alpha.to(self.device).repeat_interleave(members)
        columns = (*corrupted, labels, level, guidance)
        rows = torch.arange(len(ids)).split(self.chunk or len(ids))
        parts = [
            self._run(
                self.refiner,
                *(column[part] for column in columns),
                **{name: values[part] for name, values in text.items()},
            )
            for part in rows
        ]
        refined = parts[0] if len(parts) == 1 else torch.cat(parts)
        target = truth
        if self.finer is not None:
            target = self.finer(truth.flatten(0, 1), level, draws, generator).view_as(truth)
        return Refined(
            batch.classes,
            batch.members,
            truth,
            target,
            corrupted,
            level,
            refined.unflatten(0, (classes, members)),
            batch.repeated,
        )

    def _run(self, network: Callable[..., Any], *columns: Any, **named: Any) -> Any:
        """A network's outputs; of chunks without a graph, which is made again for the gradient."""
        if not self.chunk or not torch.is_grad_enabled():
            return network(*columns, **named)
        return checkpoint(network, *columns, use_reentrant=False, preserve_rng_state=False, **named)


class PairedObjective(Refinement):
    """Mean squared error of the missing frames against the clip that they were taken from.

    Or against that clip one level finer, its keyframes true and the rest interpolated between them.
    """

    def forward(self, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        """The loss of one step."""
        cpu = _on_cpu(generator)
        refined = self.refine(self.guidance(cpu), cpu)
        self.read_ahead()
        error = (refined.clips - refined.target).flatten(0, 1).square().mean(dim=(1, 3, 4))
        missing = ~refined.corrupted.mask
        self.diagnostics = {"repeated_clips": float(refined.repeated)}
        # Levels are drawn, so processes miss different numbers of frames: each frame counts alike.
        count = distributed.mean(missing.sum().float())
        return {"paired": (error * missing).sum() / count.clamp(min=1)}


class DriftObjective(Refinement):
    """The drifting loss in the encoder's feature space and on the latents themselves."""

    def __init__(
        self,
        *base: Any,  # of `Refinement`
        branches: Mapping[str, Branch],  # by name; those of weight 0 are not run
        loss: DriftLoss,
        log_every: int,  # statistics are computed on logging steps only
        **more: Any,
    ) -> None:
        super().__init__(*base, **more)
        self.branches = {name: branch for name, branch in branches.items() if branch[0] > 0}
        self.loss = loss
        self.log_every = log_every
        self.positions = self.batches.bank_holds == "positions"
        shape = tuple(self.latents(torch.zeros(1, dtype=torch.long))[0].shape)
        read = partial(self.load, self.latents) if self.positions else None
        real = () if self.positions else shape
        classes, size = len(self.sampler.sizes), self.batches.bank
        self.banks = {
            "real": MemoryBanks(classes, size, real, read),
            # Generated clips are nowhere else; without any to draw they take no memory.
            "generated": MemoryBanks(classes, size, shape if self.batches.negatives else (0,)),
        }
        kept = self.batches.bank_unconditional
        self.unconditional = MemoryBank(kept, real, read) if kept else None

    def forward(self, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        """The loss terms of one step."""
        config, cpu, logged = self.batches, _on_cpu(generator), step % self.log_every == 0
        alpha = self.guidance(cpu).to(self.device)
        refined = self.refine(alpha, cpu)
        self._refresh(refined, cpu)
        positives = self._positives(refined, cpu)
        negatives = self.banks["generated"].draw(refined.classes, config.negatives, cpu)
        unconditional = self._unconditional(config.unconditional, cpu)
        positives = self._one_finer(positives, refined.level, cpu)
        unconditional = self._one_finer(unconditional, refined.level, cpu)
        if config.negatives:
            self.banks["generated"].push(*_rows(refined.classes, refined.clips.detach()))
        self.read_ahead()

        banked = negatives.counts.to(self.device)
        weight = unconditional_weight(alpha, config.generated, config.unconditional, banked)
        terms, self.diagnostics = {}, self._fallbacks(refined)
        for name, (branch_weight, features) in self.branches.items():
            groups = self._groups(features, refined.clips, positives, negatives, unconditional)
            result = self.loss(groups, weight, step=step, statistics=logged)
            terms[name] = branch_weight * result.loss
            statistics = {**result.statistics}
            if logged:
                statistics |= balance(refined, result.per_group, branch_weight)
            self.diagnostics |= {f"{name}_{key}": value for key, value in statistics.items()}
        return terms

    def guidance(self, generator: torch.Generator) -> Tensor:
        """Alpha of a step's classes, [C]."""
        return draw_alpha(self.batches.classes, self.batches, generator)

    def card(self, effective: int) -> dict[str, str]:
        """Where positives and negatives come from, and how many vectors phi has in each branch."""
        sample = self.load(self.latents, torch.zeros(1, dtype=torch.long))
        phi, how, banks = [], self.batches.positive_sampling, f"real {self.batches.bank_holds}"
        for name, (_, features) in self.branches.items():
            groups = features(sample)
            count = sum(vectors.shape[1] for vectors in groups.values())
            phi.append(f"{name}: {count} vectors in {len(groups)} groups")
        return {
            **super().card(effective),
            "positives": f"memory banks of {banks} by class, {POSITIVES[how]}",
            "negatives": "this step's clips, then banked ones, then weighted unconditional ones",
            "encoder": "frozen" if "encoder" in self.branches else "none",
            "phi": "; ".join(phi),
        }

    def _groups(
        self,
        features: Features,
        generated: Tensor,  # [C, N, ...] clips
        positives: Tensor,  # [C, P, ...]
        negatives: Drawn,  # [C, Q, ...]
        unconditional: Tensor,  # [U, ...]
    ) -> dict[str, Samples]:
        """What the loss compares in one branch; only generated clips get a gradient."""
        groups = self._encode(features, generated)
        counts = negatives.counts.to(self.device) if self.batches.negatives else None
        with torch.no_grad():
            real = self._encode(features, positives)
            other = self._encode(features, unconditional[None])
            banked = {} if counts is None else self._encode(features, negatives.samples)
        return {
            name: Samples(
                vectors, real[name], banked.get(name), other[name][0], negative_count=counts
            )
            for name, vectors in groups.items()
        }

    def _encode(self, features: Features, clips: Tensor) -> dict[str, Tensor]:
        """Groups [C, N, L, D] of clips [C, N, ...]."""
        rows = clips.to(self.device).flatten(0, 1)
        parts = [self._run(features, part) for part in rows.split(self.chunk or len(rows))]
        groups = parts[0]
        if len(parts) > 1:
            groups = {name: torch.cat([part[name] for part in parts]) for name in groups}
        return {name: vectors.unflatten(0, clips.shape[:2]) for name, vectors in groups.items()}

    def _refresh(self, refined: Refined, generator: torch.Generator) -> None:
        """Push this step's real clips; fill the bank of a class that is met for the first time."""
        real = refined.members if self.positions else refined.truth
        self.banks["real"].push(*_rows(refined.classes, real))
        if self.unconditional is not None:
            self.unconditional.push(real.flatten(0, 1))
        short = self.banks["real"].sizes[refined.classes] < self.batches.positives
        for label in refined.classes[short][:, None]:
            count = min(int(self.sampler.sizes[label]), self.batches.positives)
            members = self.sampler.members(label, count, generator).members
            met = members if self.positions else self.load(self.latents, members)
            self.banks["real"].push(*_rows(label, met))

    def _one_finer(self, clips: Tensor, level: Tensor, generator: torch.Generator) -> Tensor:
        """Real clips [..., C, T, H, W] at the level that all clips of the step are refined to."""
        if self.finer is None:
            return clips
        rows = clips.flatten(0, -5)
        ids = torch.arange(len(rows))
        return self.finer(rows, level[:1].expand(len(rows)), ids, generator).view_as(clips)

    def _positives(self, refined: Refined, generator: torch.Generator) -> Tensor:
        """Real clips of each class, [C, P, ...]."""
        count, how = self.batches.positives, self.batches.positive_sampling
        own = refined.truth[:, : count if how == "own" else 0]
        near = refined.clips if how == "nearest" else None
        banked = self.banks["real"].draw(refined.classes, count - own.shape[1], generator, near)
        samples = self.load(self.latents, banked.samples) if self.positions else banked.samples
        return torch.cat([own.to(samples), samples], 1)

    def _unconditional(self, count: int, generator: torch.Generator) -> Tensor:
        """Real clips of any class, each training clip with the same chance."""
        if self.unconditional is not None:
            drawn = self.unconditional.draw(count, generator)
            return self.load(self.latents, drawn) if self.positions else drawn
        return self.load(self.latents, _cycled(len(self.sampler.order), count, generator))

    def _fallbacks(self, refined: Refined) -> dict[str, float | Tensor]:
        """How often a class had too few clips, so far; and in this step's batch."""
        return {
            "repeated_clips": float(refined.repeated),
            "short_banks": float(self.banks["real"].fallbacks),
        }

    def stateful(self) -> dict[str, Stateful]:
        """The memory banks."""
        kept = {} if self.unconditional is None else {"unconditional": self.unconditional}
        return {**self.banks, **kept}


def balance(
    refined: Refined,
    per_group: Mapping[str, Tensor],  # [] the loss of each group
    weight: float,  # of them all
) -> dict[str, Tensor]:
    """Which groups push hardest, and which push towards the truth, where the start is not true.

    `balance_norm_<group>`: length of the loss's gradient by the refined clips, in latent units;
    `balance_cosine_<group>`: cosine between the drift, which is minus that gradient, and the target
    less the clips that were refined. Given frames have no part in either.
    """
    start = refined.corrupted.latents.unflatten(0, refined.truth.shape[:2])
    towards = refined.target - start
    figures = {}
    for name, loss in per_group.items():
        (gradient,) = torch.autograd.grad(loss, refined.clips, retain_graph=True)
        drift = -weight * gradient.float().masked_fill(towards == 0, 0)
        figures[f"balance_norm_{name}"] = drift.norm()
        cosine = torch.cosine_similarity(drift.flatten(), towards.flatten(), dim=0)
        figures[f"balance_cosine_{name}"] = cosine
    return figures


def recompute_blocks(refiner: nn.Module) -> None:
    """Keep what goes into each block of a refiner alone, and run it again for the gradient."""
    for block in refiner.get_submodule("blocks").children():
        block.forward = partial(
            checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False
        )


def compile_deterministic(refiner: nn.Module) -> None:
    """Compile a refiner in place; the compiler's kernels are deterministic too."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    refiner.compile()


def _on_cpu(generator: torch.Generator) -> torch.Generator:
    """The same stream wherever the step's generator is: clips are drawn and kept on the CPU."""
    return torch.Generator().manual_seed(generator.initial_seed())


def _rows(classes: Tensor, clips: Tensor) -> tuple[Tensor, Tensor]:
    """Classes [C] and clips [C, N, ...] as rows [C N]."""
    return classes.repeat_interleave(clips.shape[1]), clips.flatten(0, 1)


# ---- Classifier-free guidance: drawn in training, a condition of the refiner afterwards ---------
# Guidance alpha >= 1 mixes real samples of any class into the negatives (arXiv 2602.04770, section
# 3.5 and A.7): q~ = (1 - gamma) q + gamma p_unconditional with alpha = 1 / (1 - gamma). At
# equilibrium q = alpha p_class - (alpha - 1) p_unconditional; alpha = 1 is no guidance.


def draw_alpha(
    count: int,
    config: BatchesConfig,
    generator: torch.Generator,
) -> Tensor:
    """Guidance [count] by its inverse CDF, and none for a fraction; on the generator's device.

    On [1, alpha_max] with density ~ alpha^-power, of which power 0 is uniform, 1 log-uniform; or
    one of some values.
    """
    uniform = torch.rand(count, generator=generator, device=generator.device)
    if config.alpha_values:
        bounds = uniform.new_tensor(config.alpha_probabilities).cumsum(0)[:-1]
        values = uniform.new_tensor(config.alpha_values)
        alpha = values[torch.searchsorted(bounds, uniform, right=True)]
    else:
        alpha = _power_law(uniform, config.alpha_max, config.alpha_power)
    if config.no_guidance:
        chance = torch.rand(count, generator=generator, device=generator.device)
        alpha = alpha.masked_fill(chance < config.no_guidance, 1)
    return alpha


def _power_law(
    uniform: Tensor,  # [n] in [0, 1)
    alpha_max: float,
    power: float,
) -> Tensor:
    """What has the density ~ alpha^-power on [1, alpha_max], [n]."""
    # alpha^(1 - power) is uniform; in logarithms, for that says nothing at power 1.
    exponent = (1 - power) * math.log(alpha_max)
    if abs(exponent) < 1e-6:
        place = uniform
    else:
        place = torch.log1p(uniform * math.expm1(exponent)) / exponent
    return (place * math.log(alpha_max)).exp().clamp(1, alpha_max)


def unconditional_weight(
    alpha: Tensor,  # [C]
    generated: int | Tensor,  # N: samples of a class; or [C]
    unconditional: int,  # U
    banked: int | Tensor = 0,  # Q: further negatives of the class; or [C]
) -> Tensor:
    """The weight w of each unconditional negative: (alpha - 1)(N - 1 + Q) / U, [C].

    It gives those negatives the fraction gamma of the whole, a sample being no negative of itself.

    Raises:
        ValueError: no unconditional samples.
    """
    if unconditional < 1:
        raise ValueError(f"guidance: expected unconditional samples, got {unconditional}")
    return (alpha - 1) * (generated - 1 + banked) / unconditional


# ---- Class-balanced batches: a step draws classes, then clips of each ---------------------------


@dataclass(frozen=True)
class Batch:
    """The clips of a step."""

    classes: Tensor  # [C]
    members: Tensor  # [C, N] indices into the training clips
    repeated: int  # how many of them stand there more than once: their class is too small


class ClassSampler:
    """Draws classes and clips of each, both without replacement.

    A class with fewer clips repeats them as evenly as it can; a step that wants more classes than
    there are repeats classes.
    """

    def __init__(
        self,
        labels: Tensor,  # [n] the class of each training clip
    ) -> None:
        """Sort clips by class.

        Raises:
            ValueError: there are no clips.
        """
        if not len(labels):
            raise ValueError("there are no training clips to draw batches from")
        self.sizes = torch.bincount(labels)
        self.occupied = self.sizes.nonzero().flatten()
        self.order = labels.argsort(stable=True)
        self.first = self.sizes.cumsum(0) - self.sizes

    def draw(self, classes: int, members: int, generator: torch.Generator) -> Batch:
        """One step's classes and clips."""
        chosen = self.occupied[_cycled(len(self.occupied), classes, generator)]
        return self.members(chosen, members, generator)

    def members(self, classes: Tensor, members: int, generator: torch.Generator) -> Batch:
        """Clips of the given classes [C]."""
        sizes = self.sizes[classes]
        keys = torch.rand(len(classes), int(sizes.max()), generator=generator)
        beyond = torch.arange(keys.shape[1]) >= sizes[:, None]
        ranked = keys.masked_fill(beyond, 2.0).argsort(dim=1)  # a class's own clips first
        turn = torch.arange(members) % sizes[:, None]
        within = ranked.gather(1, turn)
        repeated = int((members - sizes).clamp(min=0).sum())
        return Batch(classes, self.order[self.first[classes][:, None] + within], repeated)


def _cycled(size: int, count: int, generator: torch.Generator) -> Tensor:
    """`count` of `size` things: all different, or as evenly repeated as can be."""
    return torch.randperm(size, generator=generator)[torch.arange(count) % size]
