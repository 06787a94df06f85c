"""Tasks: data sets, each with a kind of target and a metric."""

from jrnn.tasks.adding import Adding as Adding
from jrnn.tasks.arrays import Arrays as Arrays
from jrnn.tasks.copy import Copy as Copy
from jrnn.tasks.digits import Digits as Digits
from jrnn.tasks.table import Table as Table
from jrnn.tasks.task import Data as Data
from jrnn.tasks.task import Split as Split
from jrnn.tasks.task import Task as Task
from jrnn.tasks.text import Text as Text
from jrnn.tasks.tracking import Tracking as Tracking
from jrnn.tasks.validate import load as load

REGISTRY: dict[str, type[Task]] = {
    "digits": Digits,
    "adding": Adding,
    "copy": Copy,
    "tracking": Tracking,
    "text": Text,
    "arrays": Arrays,
    "table": Table,
}
"""All tasks by name; the fields of a task are its options."""
