"""Snakemake's Kubernetes executor for a cluster whose pods share a volume with this checkout.

The plugin it builds on takes it that nothing is shared and copies every input and output through an object
store. Here artifacts are found again in `build/store`, which no rule names: it has to be the same folder for
all jobs, as on any cluster with a shared file system. Snakemake finds this package by the name of its folder.
"""

import shlex
from dataclasses import replace

import snakemake_executor_plugin_kubernetes as kubernetes

ExecutorSettings = kubernetes.ExecutorSettings
common_settings = replace(
    kubernetes.common_settings,
    implies_no_shared_fs=False,
    job_deploy_sources=False,
    auto_deploy_default_storage_provider=False,
)


class Executor(kubernetes.Executor):
    def get_job_exec_prefix(self, job) -> str:
        """Pods start in an empty folder of their own: go to the checkout first."""
        return f"cd {shlex.quote(str(self.workflow.workdir_init))}"
