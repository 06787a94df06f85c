"""Several processes that do one thing: how they find one another, agree, and notice a loss."""

from jrnn.processes.cluster import Cluster as Cluster
from jrnn.processes.team import Team as Team
from jrnn.processes.team import joined as joined
from jrnn.processes.team import leave as leave
