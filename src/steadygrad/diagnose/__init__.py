"""From findings to ranked causes. Pure: records and facts in, causes out."""

from steadygrad.diagnose.advice import ADVICE
from steadygrad.diagnose.causes import diagnose as diagnose
from steadygrad.diagnose.causes import rank_causes as rank_causes
from steadygrad.diagnose.facts import Facts as Facts
from steadygrad.diagnose.facts import facts_at as facts_at

CAUSES = tuple(ADVICE)  # the names that a diagnosis may give
