"""The programs that every rank runs: module-level functions of a case, sent through ``Ranks.run``."""
