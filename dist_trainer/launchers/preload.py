"""What multiprocessing's forkserver imports before it forks workers; importing it changes this process.

The one module here that acts on import: a list of module names is all that multiprocessing lets a forkserver
be told. Only the forkserver imports it.
"""

import gc
import importlib
import os
import signal
from contextlib import suppress

from dist_trainer.adapters.interpreter import importing
from dist_trainer.adapters.lazy_compiler import COMPILER, COMPILES_VARIABLE, defer
from dist_trainer.adapters.parent_death import AGENT_PID_VARIABLE, kill_me_with_my_parent

FORKSERVER_PID = os.getpid()
# The whole of what a worker will need; what is missing here is imported in each worker, after each restart.
_MODULES = (
    "torch",
    "torch.distributed",
    "torch.nn.parallel",
    "torch.optim",
    "torch.utils.data",
    "dist_trainer.adapters.distributed",
    "dist_trainer.worker",
)

# The alive pipe, by which a forkserver learns of its parent's death, is held open by every worker too.
_agent = os.environ.get(AGENT_PID_VARIABLE)  # not there if multiprocessing itself started a dead one anew
kill_me_with_my_parent(parent_pid=int(_agent) if _agent else None)
# A signal to the whole process group is the agent's to handle. Workers inherit this until they own signals.
for _number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
    signal.signal(_number, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_SETMASK, ())
with importing():
    for _name in _MODULES:
        with suppress(ImportError):  # raised again, and seen, in the worker that needs it
            importlib.import_module(_name)
    if os.environ.get(COMPILES_VARIABLE):
        importlib.import_module(COMPILER)
    else:
        defer()
gc.freeze()  # a worker that looks for garbage in all this would copy it
