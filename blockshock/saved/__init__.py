"""Saved runs and journals: what is in them, and what they say by themselves. Nothing here imports torch."""

from blockshock.saved import journal
from blockshock.saved.fits import or_inf
from blockshock.saved.how import HOW, ways, ways_apart
from blockshock.saved.journal import (
    FINISHED,
    METRICS,
    SESSION,
    Journal,
    NoJournal,
    all_unfinished,
    hold,
    journals,
    next_journal,
    next_run,
    read_journal,
    read_session,
    write_whole,
)
from blockshock.saved.judged import (
    MEASURED,
    PASSES,
    best_dense,
    dense_beside,
    faults,
    in_formats_alone,
    is_alone,
    is_dense,
    sound,
    was_checked,
)
from blockshock.saved.losses import BITS, COSINE, MEASURES, MOST_LOSS, OUTPUT, Loss, loss_of
from blockshock.saved.quality import halves, is_known, qualities
from blockshock.saved.recovering import note_saved, recover, recovered
from blockshock.saved.results import STORAGE, latest_run, read_run, run_of_session
from blockshock.saved.run import NotARun, Run, differences, named_apart
from blockshock.saved.schema import LIKENESS
from blockshock.saved.sections import COMMANDS, PHASES, SECTIONS, STAGES, judges, section_of
from blockshock.saved.settle import bare, is_timed, settled
from blockshock.saved.words import several
