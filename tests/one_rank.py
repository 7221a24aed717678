"""A command as one of the processes that share it. The rank named in KILLED_RANK dies, as by a power cut, while it
measures its second part; started again, it lives. Plots and report, which other tests look at, are left out."""

import os
import signal
import sys

from pathnet.cli.main import main
from pathnet.study import lesions, run

measured, evaluate = [], lesions.evaluate


def die_in_the_second(*args, **options):
    measured.append(1)
    first = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"
    if first and os.environ["RANK"] == os.environ.get("KILLED_RANK") and len(measured) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return evaluate(*args, **options)


lesions.evaluate = die_in_the_second
run.draw_figures = run.write_report = lambda document, folder: None
sys.exit(main(sys.argv[1:]))
