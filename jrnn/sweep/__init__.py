"""Sweeps: runs that differ only in scalar hyper-parameters are trained with one compilation."""

from jrnn.sweep.ray_cluster import RayCluster as RayCluster
from jrnn.sweep.sweep import SweepResult as SweepResult
from jrnn.sweep.sweep import TrialResult as TrialResult
from jrnn.sweep.sweep import sweep as sweep
