"""For the tests of surveyors: a run that they watch."""

from contextlib import contextmanager

from steadygrad.repair.effects.change import Change


@contextmanager
def watched_by(*surveyors):
    """A run under no plan; it is to be told of its optimizer, and of backward passes where the survey needs them."""
    run = Change({}, more=surveyors)
    run.install()
    try:
        yield run
    finally:
        run.remove()
