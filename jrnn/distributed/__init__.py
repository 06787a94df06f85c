"""Training on many devices and in many processes: meshes, launchers and process groups."""

from jrnn.distributed.launcher import Launcher as Launcher
from jrnn.distributed.mesh import Mesh as Mesh
from jrnn.distributed.process_group import ProcessGroup as ProcessGroup
from jrnn.distributed.process_group import init_process_group as init_process_group
