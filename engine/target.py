"""The target: an unmodified Hugging Face model on our KV slots.

Refuses, with the reason, what it cannot run exactly: models that do not call the attention
interface in every layer, or that carry recurrent state, which a draft could not be rewound from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from drafter.config import DrafterError
from drafter.model import TargetParts
from drafter.target import target_parts

from .config import EngineConfig
from .extents import are_rows_alike, probe_extents
from .layers import lean_decoder
from .orders import Allocate
from .packing import pack_linears, round_linears, rounded_copy
from .pretrained import TargetError, attention_modules, kv_shape, load_model, read_config
from .ranks import Ranks
from .row_class import probe_fewest_rows
from .rows import ROW_CLASS, Rows, causal_rows, prompt_rows
from .sharding import check_split, load_share, share_shape
from .slots import KeyValueSlots

PREFILL_ROWS = 256  # prompt tokens per forward; padding then stays within the scratch columns
SCRATCH_COLUMNS = 64  # room for one padded draft tree behind the longest sequence
HEAD_TOLERANCE = 1e-3  # of the largest logit


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the target says about a forward's rows: `logits` [R,V] and `features` [R,H]."""

    logits: Tensor
    features: Tensor


class Target:
    """Model and KV slots. One slot more than asked for takes the rows of warm-up and probing.

    With `ranks` this is rank 0's share of them, and the others do what is done to it.
    """

    def __init__(
        self, model: Any, num_slots: int, context_length: int, ranks: Ranks | None = None
    ) -> None:
        self.model = model
        self.ranks = ranks
        self.config = model.config
        self.context_length = context_length
        weight = next(model.parameters())
        self.device, self.dtype = weight.device, weight.dtype
        self.hidden_size: int = self.config.hidden_size
        self.vocab_size: int = self.model.get_output_embeddings().weight.shape[0]
        self.prefill_rows = PREFILL_ROWS
        self.spare_slot = num_slots
        self._features: Tensor | None = None
        modules = attention_modules(model)
        groups = self.config.num_attention_heads // kv_shape(self.config)[0]
        shape = share_shape(model, 1 if ranks is None else ranks.size)
        self.extents = probe_extents(*shape, groups, weight.detach())
        self._attention_shape = (*shape, groups)
        capacity = self.extents.at_least(context_length + SCRATCH_COLUMNS)
        self.slots = KeyValueSlots(modules, num_slots + 1, capacity, shape, like=weight.detach())
        if ranks is not None:
            ranks.tell(Allocate(num_slots + 1, capacity, context_length))
            self.slots.tell = ranks.tell
        self.features = weight.new_zeros(num_slots + 1, capacity, self.hidden_size)
        self.model.get_decoder().register_forward_hook(self._keep_features)
        self.lean = lean_decoder(model, self.slots.tensor)
        self.head = self._head_of(self._probe())

    @property
    def end_ids(self) -> list[int]:
        """The tokens that end an answer by the model's generation config."""
        configured = self.model.generation_config.eos_token_id
        ids = configured if isinstance(configured, list) else [configured]
        return [token for token in ids if token is not None]

    @cached_property
    def fewest_rows(self) -> int:
        """What a forward is padded to; tried when the first step asks, at the latest."""
        embedded: int = self.model.get_input_embeddings().weight.shape[0]
        fewest = probe_fewest_rows(
            lambda ids, rows: self.forward(ids, rows).logits,
            min(self.vocab_size, embedded),
            self.spare_slot,
            self.context_length,
            like=self.features,
        )
        if fewest < ROW_CLASS and not are_rows_alike(*self._attention_shape, self.features):
            return ROW_CLASS
        return fewest

    @cached_property
    def parts(self) -> TargetParts:
        """What a drafter borrows: input embeddings and an output head that may be less exact."""
        return target_parts(self.model, rounded_copy)

    def forward(self, ids: Tensor, rows: Rows, logits_to_keep: int = 0) -> Verdict:
        """Run ids [R]; logits of the last `logits_to_keep` rows only, 0 for all of them."""
        rows.extent = self.extents.at_least(rows.extent)
        positions = rows.position_ids(self.context_length)
        if self.lean is not None:
            return Verdict(*self.lean(ids, positions, rows, logits_to_keep))
        if self.ranks is not None:
            self.ranks.forward(ids, rows)
        output = self.model(
            input_ids=ids[None],
            position_ids=positions,
            use_cache=False,
            logits_to_keep=logits_to_keep,
            falcon_rows=rows,
        )
        assert self._features is not None
        return Verdict(output.logits[0], self._features[0])

    def prefill(self, slot: int, start: int, ids: Sequence[int]) -> Tensor:
        """Compute keys and values of a prompt's next tokens from column `start`; features [S,H]."""
        for first in range(0, len(ids), self.prefill_rows):
            chunk = torch.tensor(ids[first : first + self.prefill_rows], device=self.device)
            begin, count = start + first, len(chunk)
            chunk = F.pad(chunk, (0, prompt_rows(count) - count))
            rows = causal_rows(slot, begin, len(chunk), self.device)
            features = self.forward(chunk, rows, logits_to_keep=1).features
            self.features[slot, begin : begin + count] = features[:count]
        whole: Tensor = self.features[slot, start : start + len(ids)]
        return whole

    def commit(self, slot: int, length: int, features: Tensor) -> None:
        """Keep the first rows of a forward: its root and nodes of the top-1 chain, which stand
        where plain decoding's do. `features` [S,H] are theirs.
        """
        self.features[slot, length : length + len(features)] = features

    def copy_prefix(self, source: int, slot: int, length: int) -> None:
        """Let `slot` hold the first `length` tokens of `source`."""
        self.slots.copy_prefix(source, slot, length)
        self.features[slot, :length] = self.features[source, :length]

    def scrub(self, slot: int, start: int = 0) -> None:
        """Leave nothing in a slot, from column `start` on, that could spread."""
        self.slots.scrub(slot, start)
        self.features[slot, start:] = 0

    def close(self) -> None:
        """End the other ranks, if there are any; nothing can be run afterwards."""
        if self.ranks is not None:
            self.ranks.close()

    def _keep_features(self, module: nn.Module, args: object, output: Any) -> None:
        self._features = output.last_hidden_state

    def _head_of(self, verdict: Verdict) -> Callable[[Tensor], Tensor] | None:
        """Features [...,H] to logits [...,V]; None where that is not what gave these logits.

        A model may scale them in a way of its own, which `target_parts` does not know.
        """
        try:
            head = target_parts(self.model).head
        except DrafterError:
            return None
        with torch.inference_mode():
            error = (head(verdict.features).float() - verdict.logits.float()).abs().max()
        return head if error <= HEAD_TOLERANCE * verdict.logits.abs().max() else None

    @torch.inference_mode()
    def _probe(self) -> Verdict:
        """One tiny forward; every layer must have written its slot."""
        ids = torch.zeros(2, dtype=torch.long, device=self.device)
        try:
            verdict = self.forward(ids, causal_rows(self.spare_slot, 0, 2, self.device))
        except (TypeError, NotImplementedError, AttributeError, RuntimeError, IndexError) as error:
            raise TargetError(
                f"{self.config.model_type} does not run on this engine: {error}"
            ) from error
        written = self.slots.tensor[:, :, self.spare_slot, :, :2].abs().sum(dim=(1, 2, 3, 4))
        if not bool((written > 0).all()):
            raise TargetError(
                f"{self.config.model_type} does not attend through the interface in every layer"
            )
        return verdict


def load_target(config: EngineConfig, drafts: bool = False) -> Target:
    """Load safetensors weights from a folder; raises `TargetError` with what is wrong.

    A model that only `drafts` need not be exact (`round_linears`).
    """
    model_config = read_config(config)
    own_length = getattr(model_config, "max_position_embeddings", 0) or 2048
    if config.max_model_len > own_length:
        raise TargetError(
            f"max_model_len {config.max_model_len} is more than the model's {own_length}"
        )
    sizes = config.max_num_seqs, config.max_model_len or own_length
    if config.tensor_parallel_size == 1:
        model = load_model(config, model_config.dtype)
        pack_linears(model)
        if drafts:
            round_linears(model)
        return Target(model, *sizes)
    check_split(config, model_config)
    ranks = Ranks(config)
    try:
        model = load_share(config, model_config, rank=0)
        ranks.await_word()
        return Target(model, *sizes, ranks)
    except BaseException:
        ranks.close()
        raise
