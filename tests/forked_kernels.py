"""The kernels of the notebooks that are tested, forked from a process that has imported what takes
seconds to import.

That process imports nothing of the library, so that a forgotten import of ours is noticed. The
end-to-end test runs the notebooks in kernels that nothing has prepared.
"""

import multiprocessing
import os
from importlib.metadata import EntryPoint
from typing import Any

from jupyter_client.provisioning.factory import KernelProvisionerFactory
from jupyter_client.provisioning.local_provisioner import LocalProvisioner

# with no thread yet, and without matplotlib, which asks on import where it is to show figures
IMPORTED = [
    *("torch._dynamo", "transformers.modeling_utils", "transformers.generation"),
    *("pandas", "scipy.stats", "sklearn.linear_model", "numba", "ipykernel.kernelapp"),
]
SERVER = multiprocessing.get_context("forkserver")


def install() -> None:
    """Whatever this process starts as a kernel is forked from now on."""
    SERVER.set_forkserver_preload(IMPORTED)
    factory = KernelProvisionerFactory.instance()
    name = factory.default_provisioner_name = "forked"
    factory.provisioners[name] = EntryPoint(
        name, f"{__name__}:Forked", KernelProvisionerFactory.GROUP_NAME
    )


class Forked(LocalProvisioner):
    """Forks a kernel where others start a process."""

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> Any:
        # the rest says which interpreter and module
        arguments = cmd[cmd.index("-f") :]
        child = SERVER.Process(target=_be_a_kernel, args=(arguments, kwargs["cwd"], kwargs["env"]))
        child.start()
        self.process = _Process(child)
        self.pid = child.pid
        return self.connection_info


class _Process:
    """What is asked of a `subprocess.Popen`."""

    stdin = stdout = stderr = None

    def __init__(self, child):
        self.child = child

    def poll(self):
        return self.child.exitcode

    def wait(self):
        self.child.join()
        return self.child.exitcode

    def send_signal(self, signum):
        os.kill(self.child.pid, signum)


def _be_a_kernel(arguments: list[str], folder: str, environment: dict[str, str]) -> None:
    from ipykernel.kernelapp import launch_new_instance

    # of its own, so that what interrupts the tests ends it, but not the reverse
    os.setsid()
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    # as nbval has it
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    launch_new_instance(argv=arguments)
