"""Drafts that keep to a grammar: at each node the likeliest of what may follow its own path.

A pass ranks candidates before it is known which path each of them will follow, and what the grammar
does not allow there would be verified in vain. All this is for speed: whatever is drafted, the
target's pick decides.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Items

from torch import Tensor

from drafter.naming import Family, Naming
from drafter.plan import DraftPlan

from .matcher import Matcher
from .sampling import Sampler
from .sequence import Sequence


class Mender:
    """For one step: called after each naming of its draft."""

    def __init__(self, sampler: Sampler, sequences: Items[Sequence], plan: DraftPlan) -> None:
        self._sampler = sampler
        self._plan = plan
        self._governed = {
            b: (sequence, sequence.matcher, {0})  # and the nodes whose path is allowed
            for b, sequence in enumerate(sequences)
            if sequence.matcher is not None
        }

    @property
    def acts(self) -> bool:
        """Whether any sequence has a grammar."""
        return bool(self._governed)

    def __call__(self, logits: Tensor, tokens: Tensor, naming: Naming) -> None:
        """Change what was named of tokens [B,N] by draft logits [B,E,L,V]."""
        for b, (sequence, matcher, fitting) in self._governed.items():
            rows = logits[b].flatten(0, 1)
            self._mend(rows, tokens[b], naming.families, sequence, matcher, fitting)

    def _mend(
        self,
        rows: Tensor,
        tokens: Tensor,
        families: Iterable[Family],
        sequence: Sequence,
        matcher: Matcher,
        fitting: set[int],
    ) -> None:
        tree, params = self._plan.tree, sequence.request.sampling
        named: list[int] = tokens.tolist()  # sync: the parser runs on the host
        for family in families:
            children = list(family.children)
            above = [named[node] for node in tree.path_to(family.parent)]
            path = [*sequence.provisional, *above]
            if family.parent not in fitting or (allowed := matcher.allowed(path)) is None:
                continue
            fits = allowed[[named[node] for node in children]].tolist()
            if not all(fits):  # else they are the best of what is allowed, too
                where = [[len(sequence.ids) + len(path)]]
                row = self._sampler.adjust(rows[None, family.row, None], [sequence], where, [path])
                best = self._sampler.rank(row, [params], where, len(children)).flatten()
                for node, token in zip(children, best.tolist(), strict=True):
                    named[node] = token
                fits = allowed[best.cpu()].tolist()
            fitting.update(node for node, is_fit in zip(children, fits, strict=True) if is_fit)
        tokens.copy_(tokens.new_tensor(named))
