"""What all that has to do with ranks agrees on."""

DEVICES = ("cpu", "cuda")
START_SECONDS = 120.0  # the least that a start may take: it imports torch, however short the calls are to be
GRACE_SECONDS = 1.0  # for the other ranks to finish, once one has failed
