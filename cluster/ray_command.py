"""`python -m cluster.ray_command start ...`: Ray's command line, patient on a busy machine, and on 127.0.0.1 alone if told so.

`ray start --node-ip-address=127.0.0.1` replaces the address by the machine's external one, and its servers listen on all
interfaces (Ray 2.60, services.resolve_ip_for_localhost). With RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0 the servers stay on loopback.
Ray then refuses worker nodes, so this module allows them again.
"""

import os
import sys

from jobs.run.mutual_tls import LOOPBACK
from jobs.run.session import NETWORK_VARIABLE, wait_for_slow_nodes


def main() -> None:
    """Run Ray's command line with this process's arguments."""
    on_loopback = f"--node-ip-address={LOOPBACK}" in sys.argv
    if on_loopback:
        os.environ[NETWORK_VARIABLE] = "0"
    from ray._private import ray_constants, services

    if on_loopback:
        ray_constants.ENABLE_RAY_CLUSTER = True
        services.get_node_ip_address = lambda address=None: LOOPBACK
    wait_for_slow_nodes()
    from ray.scripts.scripts import main as ray_command

    ray_command()


if __name__ == "__main__":
    main()
