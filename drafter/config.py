"""What a drafter is made of, as stored in its checkpoint's `config.json`."""

from __future__ import annotations

from typing import Literal

import msgspec

from tree.topology import MAX_NODES


class DrafterError(ValueError):
    """The drafter cannot be used: broken, or made for another target."""


class Dynamic(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Lets every draft have a shape of its own, by the drafter's trust in its tokens.

    Of a draft's nodes those are verified that it trusts most, `num_verified` with the root and
    provisional tokens, but one node at least. No more is named where the chances of all nodes that
    it would go on from come to less than `least_trust`.
    `sharpness` is what its logits are multiplied by to give chances that hold. `tau` tokens and
    `passes` are what a step came to when this was tuned.
    """

    num_verified: int
    least_trust: float = 0.0
    sharpness: float = 1.0
    tau: float | None = None
    passes: float | None = None

    def __post_init__(self) -> None:
        if self.num_verified < 2:
            raise DrafterError(f"num_verified must be at least 2, not {self.num_verified}")
        if not (self.least_trust >= 0 and self.sharpness > 0):
            raise DrafterError("least_trust must be at least 0 and sharpness above 0")
        if self.tau is not None and not self.tau >= 1:
            raise DrafterError("tau must be at least 1")
        if self.passes is not None and not self.passes > 0:
            raise DrafterError("passes must be above 0")


class _Config(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="method"
):
    """What all have: `hidden_size` and `vocab_size` are the target's, `fingerprint` names its
    weights.
    """

    hidden_size: int
    vocab_size: int
    fingerprint: str = ""

    def __post_init__(self) -> None:
        if self.hidden_size < 1 or self.vocab_size < 1:
            raise DrafterError("hidden_size and vocab_size must be positive")


class DrafterConfig(_Config, frozen=True, kw_only=True, tag="falcon"):
    """A Falcon head; `block_size` is the paper's k.

    `window` bounds attention, the key-value cache and prefill to so many positions; None is
    unbounded. `coupled` slots are told what those before them named (`coupling.py`).
    `mixer: linear` with `block_size: 1` is EAGLE-1.
    """

    block_size: int = 2
    num_layers: int = 1
    mixer: Literal["lstm", "linear"] = "lstm"
    num_heads: int = 4
    intermediate_size: int = 0
    window: int | None = None
    rope_theta: float = 10000.0
    coupled: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.block_size <= 4:
            raise DrafterError(f"block_size must be 1 to 4, not {self.block_size}")
        if self.num_layers < 1:
            raise DrafterError(f"num_layers must be at least 1, not {self.num_layers}")
        if self.num_heads < 1 or self.hidden_size % (2 * self.num_heads):
            raise DrafterError(
                f"num_heads {self.num_heads} must split hidden_size {self.hidden_size} evenly"
            )
        if self.coupled and self.block_size == 1:
            raise DrafterError("coupled slots need a block_size of 2 to 4, not 1")
        if self.window is not None and self.window < self.block_size:
            raise DrafterError(f"window must be at least block_size, not {self.window}")

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def mlp_size(self) -> int:
        """Width of the MLP: `intermediate_size`, or four times the hidden size."""
        return self.intermediate_size or 4 * self.hidden_size


class MedusaConfig(_Config, frozen=True, kw_only=True, tag="medusa"):
    """Medusa heads: head s foretells the token s + 1 places behind the root, all in one pass.

    There are `block_size` of them, each with `num_layers` residual layers and an output layer of
    its own.
    """

    block_size: int = 5
    num_layers: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.block_size <= 8:
            raise DrafterError(f"block_size must be 1 to 8, not {self.block_size}")
        if self.num_layers < 1:
            raise DrafterError(f"num_layers must be at least 1, not {self.num_layers}")


class LookaheadConfig(
    msgspec.Struct, frozen=True, kw_only=True, tag_field="method", tag="lookahead"
):
    """Lookahead decoding, which has no weights: window W, n-gram size N, most guesses G of a step.

    One step verifies 1 + (W + G) * (N - 1) nodes.
    """

    window: int = 4
    ngram: int = 4
    guesses: int = 4

    def __post_init__(self) -> None:
        for name, least in {"window": 1, "ngram": 2, "guesses": 1}.items():
            if getattr(self, name) < least:
                raise DrafterError(f"{name} must be at least {least}, not {getattr(self, name)}")
        if (self.window + self.guesses) * (self.ngram - 1) >= MAX_NODES:
            raise DrafterError(
                f"window {self.window}, ngram {self.ngram} and guesses {self.guesses} make more "
                f"than {MAX_NODES} nodes"
            )


HeadConfig = DrafterConfig | MedusaConfig
