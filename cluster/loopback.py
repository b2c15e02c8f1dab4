"""`python -m cluster.loopback start ...`: Ray's command line, listening on 127.0.0.1 only.

`ray start --node-ip-address=127.0.0.1` replaces the address by the machine's external one, and its servers listen on all
interfaces (Ray 2.60, services.resolve_ip_for_localhost). With VARIABLE=0, meant for systems whose firewalls ask about every
listener, Ray and its child processes stay on loopback. Ray then refuses worker nodes, so this module allows them again.
"""

import os

VARIABLE = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"


def main() -> None:
    """Run Ray's command line with this process's arguments."""
    os.environ[VARIABLE] = "0"
    from ray._private import ray_constants, services

    ray_constants.ENABLE_RAY_CLUSTER = True
    services.get_node_ip_address = lambda address=None: "127.0.0.1"
    from ray.scripts.scripts import main as ray_command

    ray_command()


if __name__ == "__main__":
    main()
