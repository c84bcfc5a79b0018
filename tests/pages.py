"""Execute every page: what all import is imported once, before workers are forked, and seldom searched for garbage.

python tests/pages.py"""

import gc

from nbdev.test import nbdev_test

import toolrl_lit.train  # noqa: F401, for the workers

gc.freeze()
gc.set_threshold(50_000)
nbdev_test(n_workers=2, do_print=True)
