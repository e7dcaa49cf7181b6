"""What programs cost on accelerators that this machine doesn't have."""

from cwgnc_train.plan.accelerators import ACCELERATORS as ACCELERATORS
from cwgnc_train.plan.accelerators import Accelerator as Accelerator
from cwgnc_train.plan.accelerators import Slice as Slice
from cwgnc_train.plan.accelerators import find_slice as find_slice
from cwgnc_train.plan.compiling import compile_for as compile_for
from cwgnc_train.plan.compiling import devices_of as devices_of
from cwgnc_train.plan.compiling import without_devices as without_devices
from cwgnc_train.plan.costs import Costs as Costs
from cwgnc_train.plan.costs import estimate as estimate
from cwgnc_train.plan.lowering import abstract_runs as abstract_runs
from cwgnc_train.plan.lowering import lower_evaluation as lower_evaluation
from cwgnc_train.plan.lowering import lower_train_steps as lower_train_steps
from cwgnc_train.plan.needs import Need as Need
from cwgnc_train.plan.needs import find_needs as find_needs
from cwgnc_train.plan.program import Program as Program
from cwgnc_train.plan.program import read_program as read_program
