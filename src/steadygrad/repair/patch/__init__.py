"""A plan written into the user's script: a diff that makes it train without steadygrad as it did with the plan."""

from __future__ import annotations

from steadygrad.repair.patch.script import NoPatch as NoPatch
from steadygrad.repair.patch.write import Patch as Patch
from steadygrad.repair.patch.write import write_patch as write_patch
