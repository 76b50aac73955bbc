"""A page for each cause and each rule: how it looks, why it happens, what cures it. Needs no torch."""

from steadygrad.knowledge.pages import SECTIONS as SECTIONS
from steadygrad.knowledge.pages import UnknownPage as UnknownPage
from steadygrad.knowledge.pages import cause_page as cause_page
from steadygrad.knowledge.pages import causes as causes
from steadygrad.knowledge.pages import explain as explain
from steadygrad.knowledge.pages import summary as summary
from steadygrad.knowledge.plain import plain as plain
