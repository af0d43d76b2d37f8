"""A plan of one's own data: `load_data` judges the rows, `plan_own_data` writes plan, scores and report (README, Your own data).

The modules follow the path of a row: settings, read, validate, represent, fit, arrange, tables, caveats, run; the
report is `saerl_lib.report.page`.
"""

from saerl_lib.data.rows import Fields
from saerl_lib.own.run import Outcome, load_data, plan_own_data
from saerl_lib.own.settings import OwnConfig

__all__ = ["Fields", "Outcome", "OwnConfig", "load_data", "plan_own_data"]
