"""Two processes run the tests, a file each at a time; so each computes on one thread."""

import os
import signal

os.environ.setdefault("OMP_NUM_THREADS", "1")  # torch reads it when it is imported, in subprocesses too
os.environ.pop("MPLBACKEND", None)  # a notebook hands down its own
os.environ["TORCH_HOME"] = os.devnull  # LPIPS takes seconds; the tests of it say where its net lies
if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup has it ignored, which what is started would inherit
