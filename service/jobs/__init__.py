"""Work that takes minutes: begun now, watched while it goes on, fetched when it is done. Nothing here knows HTTP.

    submit -> waiting, first come first served -> a nice thread -> step, step, step ... -> done | failed | cancelled
                                                     |-> View, Preview -> whoever listens

A job belongs to this process and lives in its memory only: what it is made from until it begins, what came of it for a while after
it has ended. Everything is bounded: how many run, wait and are kept, the bytes that wait, and the seconds that one may run.
Listeners are woken and then look at the newest View: nothing is queued for one that is slow.
"""

from service.jobs.job import Job, Painting, Preview, Status, View, Work
from service.jobs.queue import Jobs

__all__ = ["Job", "Jobs", "Painting", "Preview", "Status", "View", "Work"]
