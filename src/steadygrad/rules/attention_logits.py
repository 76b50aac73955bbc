from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from steadygrad.records import Portrait, StepStats
from steadygrad.rules.portrait_rule import PortraitRule, Seen

LOGIT = 30.0
ENTROPY = 0.5


@dataclass
class AttentionLogits(PortraitRule):
    """An attention looks at one key only, because its logits are large.

    What it measures: in each softmax over keys, the largest |logit| that is no mask, above 30, and the mean entropy of
    its rows over log(number of keys), below 0.5. Where only the weights were kept: the entropy alone, below 0.1.

    Why it matters: a saturated softmax passes no gradient to queries and keys; their size then grows on.

    Stays silent on: intended masks; a softmax at the end of a classifier; attention over one key.

    Remedies: `sg.nn.qk_norm`; a soft cap; smaller query and key weights; warm-up.

    Source: Wortsman et al. (2023), arXiv 2309.14322, sec. 3.1; Zhai et al. (2023), arXiv 2303.06296.
    """

    code: ClassVar[str] = "F105"
    severity: ClassVar = "info"

    def look(self, portrait: Portrait, stats: StepStats) -> Seen | None:
        for a in portrait.attention:
            large = a.max_logit > LOGIT and a.entropy < ENTROPY
            if large or math.isnan(a.max_logit) and a.entropy < 0.1:
                logit = "" if math.isnan(a.max_logit) else f"logits reach {a.max_logit:.3g}, "
                return Seen(
                    a.name or "attention",
                    f"{logit}the weights have {a.entropy:.2f} of the entropy of equal ones over {a.keys} keys",
                    {"max_logit": a.max_logit, "entropy": a.entropy, "keys": float(a.keys)},
                )
        return None
