"""What ``ci/bootstrap`` runs; the standard library only, since nothing is installed yet.

* ``console``: what the user sees, and commands with progress and a log
* ``cache``: artefacts in folders keyed by version, made atomically, safe when two runs race
* ``archive``: the distribution's package archive, through apt with its own configuration
* ``system``, ``qemu``, ``libvfio_user``, ``guest``, ``python_env``: one step each
* ``main``: the order of the steps and ``environment.json``, which ``vdcm.environment`` reads
"""
